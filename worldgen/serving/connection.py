"""One WebSocket with its limits: what comes in is parsed and counted, what goes out cannot hang."""

import asyncio
import dataclasses
import json
import time
from typing import Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from worldgen.serving import commands, protocol

__all__ = ["CloseCode", "Connection", "ConnectionEndedError", "Limits"]

_SEND_SECONDS: Final = 20.0
"""A visitor that reads nothing for so long has vanished."""


class CloseCode:
    """Why the server closes a socket; the page reacts to each in its own way."""

    GARBAGE: Final = 1003
    FLOOD: Final = 1008
    FAILURE: Final = 1011
    IDLE: Final = 4001
    FULL: Final = 4003


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a visitor may ask of the server."""

    idle_seconds: float = 600.0
    """A visitor that sends nothing for so long gives its place to others."""
    messages_per_second: float = 1000.0
    """More than the fastest page sends; as many may come at once."""
    max_waiting: int = 32
    """Messages that wait for an answer; a page waits for one before it sends the next."""


class ConnectionEndedError(Exception):
    """The socket is to be closed with `code`; `expected` tells manners from misuse."""

    def __init__(self, code: int, reason: str, *, expected: bool = False) -> None:
        super().__init__(reason)
        self.code = code
        # A close frame holds 123 bytes of reason.
        self.reason = reason.encode("ascii", "replace")[:120].decode()
        self.expected = expected


class Connection:
    """The socket of one visitor.

    Args:
        websocket: Not accepted yet.
        limits: What the visitor may ask for.
    """

    def __init__(self, websocket: WebSocket, limits: Limits) -> None:
        self._websocket = websocket
        self._limits = limits
        self._waiting: asyncio.Queue[protocol.Step | commands.Command] = asyncio.Queue()
        self._allowance, self._counted_at = limits.messages_per_second, time.monotonic()
        self.cancelled = False
        """Set when the visitor asks to stop a long command; whoever runs one resets it."""

    async def accept(self) -> None:
        """Complete the handshake."""
        await self._websocket.accept()

    async def read(self) -> None:
        """Read for ever, so that a visitor who vanishes is noticed while a step is computed.

        Raises:
            ConnectionEndedError: If the visitor is idle, floods or sends garbage.
            WebSocketDisconnect: If it leaves.
        """
        while True:
            try:
                async with asyncio.timeout(self._limits.idle_seconds):
                    message = await self._websocket.receive()
            except TimeoutError:
                raise ConnectionEndedError(
                    CloseCode.IDLE, "idle for too long", expected=True
                ) from None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            self._count()
            try:
                self._take(message)
            except protocol.ProtocolError as error:
                raise ConnectionEndedError(CloseCode.GARBAGE, f"garbage: {error}") from error

    async def receive(self) -> protocol.Step | commands.Command:
        """Return the next message that was read."""
        return await self._waiting.get()

    async def send(self, message: bytes) -> None:
        """Send a binary message.

        Raises:
            WebSocketDisconnect: If the visitor is gone or does not read.
        """
        await self._within_time(self._websocket.send_bytes(message))

    async def say(self, notice: str, **fields: Any) -> None:
        """Send a JSON notice; raises as `send`."""
        text = json.dumps({"say": notice, **fields}, separators=(",", ":"))
        await self._within_time(self._websocket.send_text(text))

    async def close(self, code: int, reason: str) -> None:
        """Close the socket; a visitor that is gone already is left alone."""
        try:
            await self._within_time(self._websocket.close(code, reason))
        except (WebSocketDisconnect, RuntimeError):
            return

    async def _within_time(self, sending: Any) -> None:
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await sending
        except (TimeoutError, OSError) as error:
            raise WebSocketDisconnect(1006) from error

    def _take(self, message: Any) -> None:
        step = message.get("bytes")
        if step is not None:
            self._waiting.put_nowait(protocol.unpack_step(step))
            return
        command = commands.parse_command(message.get("text") or "")
        if isinstance(command, commands.Cancel):
            self.cancelled = True
        else:
            self._waiting.put_nowait(command)

    def _count(self) -> None:
        # A bucket that fills at the allowed rate; every message takes one out of it.
        now, rate = time.monotonic(), self._limits.messages_per_second
        filled = self._allowance + (now - self._counted_at) * rate
        self._allowance, self._counted_at = min(rate, filled) - 1, now
        if self._allowance < 0 or self._waiting.qsize() >= self._limits.max_waiting:
            raise ConnectionEndedError(CloseCode.FLOOD, "flood: more messages than a page sends")
