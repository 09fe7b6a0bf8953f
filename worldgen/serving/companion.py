"""Reality as a visitor sees it: runs it beside the drive and sends what it shows."""

import asyncio
import functools

import numpy as np
from jaxtyping import UInt8

from worldgen.config import to_mapping
from worldgen.pipeline import World
from worldgen.serving import protocol
from worldgen.serving.connection import Connection
from worldgen.serving.player import Player
from worldgen.serving.protocol import Kind, Picture
from worldgen.serving.reality import (
    Reality,
    RealityDifferences,
    RealityEvent,
    RealityFrame,
    RealityState,
)

__all__ = ["Companion"]

Frame = UInt8[np.ndarray, "height width 3"]


class Companion:
    """Keeps the real environment beside whatever a visitor plays, or says why it cannot.

    Args:
        connection: Gets the pictures and notices.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reality: Reality | None = None
        self._world: World | None = None
        self._events: asyncio.Queue[RealityEvent] = asyncio.Queue()
        self.wanted = True
        """Whether the visitor wants to see reality; takes effect with the next `follow`."""

    async def follow(self, player: Player | None) -> None:
        """Bring reality to where the drive is now: after a new one, a rewind or a switch."""
        if player is None:
            return
        if not self.wanted or player.start is None or player.world is not self._world:
            self.stop()
        if not self.wanted:
            await self._connection.say("reality", state="off")
        elif player.start is None:
            reason = "this log has a start of its own, which no environment can be brought to"
            await self._connection.say("reality", state="missing", reason=reason)
        else:
            if self._reality is None:
                loop = asyncio.get_running_loop()
                publish = functools.partial(self._publish, loop)
                self._reality, self._world = Reality(player.world, publish), player.world
            self._reality.restart(player.start, list(player.actions), player.current.window)

    def step(self, action: np.ndarray, index: int, dream: Frame) -> None:
        """Let reality take the action that led the dream to its frame `index`."""
        if self._reality is not None:
            self._reality.step(action, index, dream)

    def frames(self, first: int, last: int) -> list[Frame] | None:
        """Return real frames by index, or None while one of them is not at hand."""
        return None if self._reality is None else self._reality.frames(first, last)

    def stop(self) -> None:
        """End the environment and its thread."""
        if self._reality is not None:
            self._reality.stop()
        self._reality, self._world = None, None

    async def show(self) -> None:
        """Send what reality shows, for ever; raises as `Connection.send`."""
        shown: RealityState | None = None
        while True:
            event = await self._events.get()
            if self._reality is None or event.version != self._reality.version:
                continue
            match event:
                case RealityFrame():
                    picture = Picture(
                        kind=Kind.REALITY,
                        frame=event.frame,
                        frame_index=event.index,
                        difference=event.difference,
                    )
                    await self._connection.send(protocol.pack_picture(picture))
                case RealityDifferences():
                    message = protocol.pack_differences(event.first, event.values)
                    await self._connection.send(message)
                case RealityState() if event != shown:
                    shown = event
                    await self._connection.say("reality", **to_mapping(event))

    def _publish(self, loop: asyncio.AbstractEventLoop, event: RealityEvent) -> None:
        # Called in reality's thread; the loop may have stopped with the server.
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._events.put_nowait, event)
