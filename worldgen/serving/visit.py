"""One visitor from hello to goodbye: every message is answered in order."""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float64
from starlette.websockets import WebSocketDisconnect

from worldgen.config import to_mapping
from worldgen.ego_motion import integrate
from worldgen.errors import ActionError, LogError, SessionLimitError, WorldgenError
from worldgen.generation.log import RolloutLog, frame_digest
from worldgen.models import Policy
from worldgen.pipeline import World
from worldgen.serving import commands, protocol
from worldgen.serving.companion import Companion
from worldgen.serving.connection import CloseCode, Connection, ConnectionEndedError
from worldgen.serving.download import encode_video
from worldgen.serving.engine import Engine
from worldgen.serving.player import Player, actions_from
from worldgen.serving.protocol import Kind, Picture
from worldgen.serving.route import (
    MAX_TRAJECTORY_BYTES,
    Route,
    drawn_route,
    ego_motion_facts,
    recorded_route,
)

__all__ = ["Visit"]

_logger = logging.getLogger("worldgen.serving")

_PROGRESS_SECONDS: Final = 0.05
_POSE_DIGITS: Final = 4


class Visit:
    """Serves one connection until it ends.

    Three tasks share the work: one reads, one answers in order, one sends what the real
    environment shows. When one of them ends, all do.

    Args:
        connection: Not accepted yet.
        engine: Worlds, places and the model thread.
        name: Names the visitor in the server's log.
    """

    def __init__(self, connection: Connection, engine: Engine, name: str) -> None:
        self._connection = connection
        self._engine = engine
        self._name = name
        self._player: Player | None = None
        self._companion = Companion(connection)
        self._num_frames = 0
        self._pose: Float64[np.ndarray, " 3"] | None = None
        """Where the vehicle is, in worlds of ego motion."""

    async def run(self) -> None:
        """Serve until the visitor leaves, breaks a rule, or the server stops."""
        connection, engine = self._connection, self._engine
        try:
            await connection.accept()
            with engine.seat():
                _logger.info(
                    "%s came; %d of %d places are taken",
                    *(self._name, engine.open_sessions, engine.max_sessions),
                )
                await self._serve()
        except ConnectionEndedError as ended:
            level = logging.INFO if ended.expected else logging.WARNING
            _logger.log(level, "%s: closed, %s", self._name, ended.reason)
            await connection.close(ended.code, ended.reason)
        except WebSocketDisconnect as end:
            _logger.info(
                "%s left after %d frames (code %d)", self._name, self._num_frames, end.code
            )
        except SessionLimitError as error:
            _logger.info("%s: refused, every place is taken", self._name)
            await self._refuse(str(error))

    async def _refuse(self, message: str) -> None:
        with contextlib.suppress(WebSocketDisconnect):
            await self._connection.say("refused", message=message)
        await self._connection.close(CloseCode.FULL, "every place is taken")

    async def _serve(self) -> None:
        parts = (self._connection.read(), self._answer(), self._companion.show())
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._companion.stop()
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        # A rule that was broken says more than the disconnection that may come with it.
        for kind in (ConnectionEndedError, Exception):
            for end in ends:
                if isinstance(end, kind):
                    raise end

    async def _answer(self) -> None:
        await self._connection.say("hello", **self._hello())
        while True:
            message = await self._connection.receive()
            try:
                await self._obey(message)
            except WorldgenError as error:
                await self._connection.say("error", message=str(error))
            except (WebSocketDisconnect, ConnectionEndedError):
                raise
            # Whatever a model does, it ends one visit with one line, not the server.
            except Exception as error:
                _logger.debug("%s", self._name, exc_info=True)
                what = type(message).__name__.lower()
                reason = f"{what} failed: {type(error).__name__}: {error}"
                raise ConnectionEndedError(CloseCode.FAILURE, reason) from error

    def _hello(self) -> dict[str, Any]:
        worlds = [
            {
                "key": key,
                "num_starts": len(world.starts),
                "card": to_mapping(world.card),
                "policy": isinstance(world.model, Policy),
                "ego_motion": ego_motion_facts(world),
            }
            for key, world in self._engine.worlds.items()
        ]
        return {
            "worlds": worlds,
            "max_command_bytes": commands.MAX_COMMAND_BYTES,
            "max_trajectory_bytes": MAX_TRAJECTORY_BYTES,
            "adaptive": self._engine.adaptive,
        }

    async def _obey(self, message: protocol.Step | commands.Command) -> None:
        match message:
            case protocol.Step():
                await self._step(message)
            case commands.Open():
                await self._open(message)
            case commands.Restore():
                await self._restore(message)
            case commands.Load():
                await self._load(message)
            case commands.Rewind(frame=frame):
                await self._change(lambda player: player.rewind(frame))
            case commands.Fork(frame=frame):
                await self._change(lambda player: player.fork(frame))
            case commands.Switch(branch=branch):
                await self._change(lambda player: player.switch(branch))
            case commands.Close(branch=branch):
                await self._engine.run(functools.partial(self._current().close, branch))
                await self._say_drive()
            case commands.Preview(frame=frame):
                await self._preview(frame)
            case commands.Save():
                log = await self._engine.run(self._current().log)
                await self._connection.say("log", log=log.to_json())
            case commands.Trace(points=points):
                await self._say_route(functools.partial(drawn_route, points))
            case commands.Trajectory(name=name, content=content):
                await self._say_route(functools.partial(recorded_route, name, content))
            case commands.Video():
                await self._video()
            case commands.Reality(on=on):
                self._companion.wanted = on
                await self._companion.follow(self._player)
            case commands.Cancel():
                pass

    def _current(self) -> Player:
        if self._player is None:
            raise SessionLimitError("no world is open yet; open one first")
        return self._player

    def _world(self, key: str) -> World:
        if key not in self._engine.worlds:
            raise SessionLimitError(
                f"this server has no world {key!r}; it has {', '.join(self._engine.worlds)}"
            )
        return self._engine.worlds[key]

    # Playing.

    async def _step(self, step: protocol.Step) -> None:
        player = self._current()
        following: Sequence[np.ndarray] = ()
        try:
            if len(step.values):
                action, *following = self._actions_of(step, player)
            else:
                action = await self._engine.run(player.chosen_by_model)
        except ActionError as error:
            raise ConnectionEndedError(CloseCode.GARBAGE, f"garbage: {error}") from error
        taken = await self._engine.step(player, action, following)
        heeded = player.last_action
        if self._pose is not None:
            self._pose = integrate(heeded[None], self._pose)[-1]
        if self._pose is not None or not len(step.values):
            # Before the picture: with that the page goes on.
            await self._connection.say(
                "taken",
                frame=player.frame_index,
                action=heeded.tolist(),
                pose=None if self._pose is None else self._pose.round(_POSE_DIGITS).tolist(),
            )
        picture = _picture_of(player, step.stamp, 1000 * taken.seconds)
        await self._connection.send(protocol.pack_picture(picture))
        self._num_frames += 1
        # After the picture is on its way: the real environment must not delay the dream. It gets
        # the action that the dream has heeded, which may have been held since the frames before.
        self._companion.step(heeded, picture.frame_index, picture.frame)

    def _actions_of(self, step: protocol.Step, player: Player) -> Sequence[np.ndarray]:
        """Return the action of a step, and those after it that the page knows already."""
        num_groups = player.world.action_tokenizer.schema.num_groups
        if len(step.values) % num_groups:
            raise ActionError(f"{len(step.values)} settings for {num_groups} action groups")
        return list(actions_from(step.values.reshape(-1, num_groups), player.world))

    async def _open(self, command: commands.Open) -> None:
        player = await self._engine.open(
            self._world(command.world),
            seed=command.seed,
            start=command.start,
            decoder=command.decoder,
            leaving=self._player,
        )
        await self._begin(player)

    async def _restore(self, command: commands.Restore) -> None:
        world = self._world(command.world)
        try:
            actions = np.asarray(command.actions, np.float32)
            actions = actions.reshape(len(actions), world.action_tokenizer.schema.num_groups)
        except (ValueError, TypeError) as error:
            raise ActionError(f"the remembered actions do not fit {world.name}") from error
        player = await self._engine.open(
            world,
            seed=command.seed,
            start=command.start,
            decoder=command.decoder,
            leaving=self._player,
        )
        steps = list(actions_from(actions, world))
        if await self._replay(player, steps, len(steps)) is not None:
            same = command.digest in (0, player.digest)
            await self._connection.say("restored", frames=len(steps), same=same)

    async def _load(self, command: commands.Load) -> None:
        # Checking a long log takes seconds; other visitors are served meanwhile.
        log = await asyncio.to_thread(RolloutLog.from_json, command.log)
        known = {world.hash: world for world in self._engine.worlds.values()}
        if log.world_hash not in known:
            raise LogError(
                f"the log was made in world {log.world!r} ({log.world_hash[:12]}); this server "
                f"plays {', '.join(f'{w.name} ({w.hash[:12]})' for w in known.values())}"
            )
        world = known[log.world_hash]
        session = await self._engine.run(functools.partial(world.replay_session, log))
        player = await self._engine.run(functools.partial(Player, world, session))
        ids = np.asarray(log.actions, np.int64).reshape(-1, world.action_tokenizer.num_slots)
        actions = list(world.action_tokenizer.decode(ids))
        digests = await self._replay(player, actions, len(log.digests))
        if digests is not None:
            difference = log.first_difference(digests)
            await self._connection.say(
                "verified", frames=len(digests), first_difference=difference, hash=log.total_hash
            )

    async def _replay(
        self, player: Player, actions: list[np.ndarray], total: int
    ) -> list[str] | None:
        """Play actions as fast as the model goes; return digests, None if the visitor stops it.

        Args:
            player: At its frame 0.
            actions: Of the frames, and of those that were drawn together with the last one.
            total: Frames to play.
        """
        self._connection.cancelled = False
        digests: list[str] = []
        shown = time.monotonic()
        together = player.current.session.frames_per_step
        for number, action in enumerate(actions[:total], start=1):
            following = actions[number : number + together - 1]
            taken = await self._engine.step(player, action, following)
            digests.append(frame_digest(player.current.session.ids))
            if self._connection.cancelled:
                await self._connection.say("cancelled")
                return None
            if time.monotonic() - shown > _PROGRESS_SECONDS:
                shown = time.monotonic()
                picture = _picture_of(player, milliseconds=1000 * taken.seconds)
                await self._connection.send(protocol.pack_picture(picture))
                await self._connection.say("progress", done=number, total=total)
        await self._begin(player)
        return digests

    async def _change(self, change: Callable[[Player], None]) -> None:
        await self._engine.run(functools.partial(change, self._current()))
        await self._say_drive()
        await self._companion.follow(self._player)

    async def _begin(self, player: Player) -> None:
        self._player = player
        await self._say_drive()
        await self._companion.follow(self._player)

    async def _say_drive(self) -> None:
        """Tell the page where it is: world, branches, actions so far, and the current picture."""
        player = self._current()
        actions, path = player.actions, None
        self._pose = None
        if ego_motion_facts(player.world) is not None:
            poses = integrate(actions)
            self._pose, path = poses[-1], poses.round(_POSE_DIGITS).tolist()
        names = {id(world): key for key, world in self._engine.worlds.items()}
        branches = [
            {
                "id": branch.identifier,
                "last": branch.window.last,
                "parent": branch.parent,
                "forked_at": branch.forked_at,
            }
            for branch in player.branches
        ]
        await self._connection.say(
            "drive",
            world=names[id(player.world)],
            seed=player.seed,
            start=player.start,
            decoder=player.decoder,
            branches=branches,
            branch=player.current.identifier,
            first=player.current.window.first,
            capacity=player.current.window.capacity,
            together=player.current.session.frames_per_step,
            actions=actions.tolist(),
            path=path,
        )
        await self._connection.send(protocol.pack_picture(_picture_of(player)))

    async def _say_route(self, plan: Callable[[Float64[np.ndarray, " 3"], Player], Route]) -> None:
        """Tell the page the steps that lead along a route from where the vehicle is."""
        player = self._current()
        if self._pose is None:
            raise SessionLimitError(f"nothing drives in {player.world.name}; choose another world")
        # Another visitor's frame must not wait for a long file.
        route = await asyncio.to_thread(plan, self._pose, player)
        await self._connection.say(
            "route",
            frame=player.frame_index,
            actions=route.actions.tolist(),
            path=route.poses.round(_POSE_DIGITS).tolist(),
            problems=route.problems,
        )

    async def _preview(self, index: int) -> None:
        player = self._current()
        picture = Picture(
            kind=Kind.DREAM_PREVIEW, frame=player.current.window[index], frame_index=index
        )
        await self._connection.send(protocol.pack_picture(picture))
        real = self._companion.frames(index, index)
        if real is not None:
            picture = Picture(kind=Kind.REALITY_PREVIEW, frame=real[0], frame_index=index)
            await self._connection.send(protocol.pack_picture(picture))

    async def _video(self) -> None:
        player = self._current()
        window = player.current.window
        dream = [window[index] for index in range(window.first, window.last + 1)]
        real = self._companion.frames(window.first, window.last)
        # Not in the model thread: other visitors play on while x264 works.
        content = await asyncio.to_thread(encode_video, dream, real, player.world.frames_per_second)
        await self._connection.send(protocol.pack_file(content))


def _picture_of(player: Player, stamp: float = 0.0, milliseconds: float = 0.0) -> Picture:
    return Picture(
        kind=Kind.DREAM,
        frame=player.frame,
        frame_index=player.frame_index,
        branch=player.current.identifier,
        stamp=stamp,
        model_milliseconds=milliseconds,
        digest=player.digest,
    )
