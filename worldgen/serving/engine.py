"""Loads worlds once, counts visitors, and runs every model step in one thread, in batches."""

import asyncio
import contextlib
import functools
import logging
import os
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8

from worldgen.errors import SessionLimitError, WorldgenError
from worldgen.generation.batch import LARGEST_BATCH
from worldgen.generation.scheduled import ScheduleDecoder
from worldgen.pipeline import World, load
from worldgen.serving.foresight import Foresight
from worldgen.serving.load import Load
from worldgen.serving.player import Player, Wish, advance_players

__all__ = ["Engine", "Step"]

_Result = TypeVar("_Result")
_logger = logging.getLogger("worldgen.serving")

_TRIAL_STEPS: Final = 8
_WARM_UP_STEPS: Final = 2

Frame = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that was taken."""

    frame: Frame
    seconds: float
    """That the model took, for all whose steps were in the batch."""


@dataclass(kw_only=True)
class _Job:
    """Something that waits for the model thread."""

    future: Future[Any] = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)


@dataclass(kw_only=True)
class _Call(_Job):
    function: Callable[[], Any]


@dataclass(kw_only=True)
class _Wait(_Job):
    """The step that a visitor waits for."""

    wish: Wish

    def joins(self, other: "_Wait") -> bool:
        """Whether the two may be drawn in one batch."""
        mine, its = self.wish.player, other.wish.player
        return mine.world is its.world and mine.decoder == its.decoder and mine is not its


class Engine:
    """The worlds of a server and the one thread that computes in them.

    One thread on purpose: two sessions that run at once on the same cores finish later than the
    same two in turn. Steps that wait at the same moment for the same world and decoder go in one
    batch; everything else goes in the order in which it came. The event loop never waits for a
    model, so sockets stay alive.

    When nobody waits, the next frame of idle players is drawn under the action they repeat; see
    `worldgen.serving.foresight`.

    Args:
        world_names: Shipped names or folders; loaded here, so that a broken world stops the start.
        max_sessions: Visitors at once.
        look_ahead: Whether frames are drawn before they are asked for.
        adaptive: Whether drives that ask for no decoding order get one by what the machine keeps up
            with, see `worldgen.serving.load`; otherwise the first one on the world's card.

    Raises:
        WorldgenError: If a world cannot be loaded or none is named.
    """

    def __init__(
        self,
        world_names: Sequence[str],
        *,
        max_sessions: int,
        look_ahead: bool = True,
        adaptive: bool = False,
    ) -> None:
        if not world_names:
            raise WorldgenError("no world to play; name at least one, for example car_racing")
        if max_sessions < 1:
            raise WorldgenError(f"max_sessions is {max_sessions}; at least 1 is needed")
        self.worlds: dict[str, World] = {}
        for name in world_names:
            world = load(name)
            self.worlds[world.name if world.name not in self.worlds else str(name)] = world
        self.max_sessions = max_sessions
        self._open_sessions = 0
        self._batches: Counter[int] = Counter()
        self._foresight = Foresight()
        self._look_ahead = look_ahead
        self.adaptive = adaptive
        self._load: Load | None = None
        self._jobs: deque[_Job] = deque()
        self._jobs_lock = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worldgen-model")
        # In that thread, because torch counts helpers per thread.
        self._warm_up = self._submit(_Call(function=self._warm)).result()

    @property
    def open_sessions(self) -> int:
        """Visitors at this moment."""
        return self._open_sessions

    @contextlib.contextmanager
    def seat(self) -> Iterator[None]:
        """Hold one of the places for visitors.

        Raises:
            SessionLimitError: If all are taken.
        """
        if self._open_sessions >= self.max_sessions:
            raise SessionLimitError(
                f"All {self.max_sessions} places in this server are taken. "
                "It tries again by itself; a place is free as soon as somebody leaves."
            )
        self._open_sessions += 1
        try:
            yield
        finally:
            self._open_sessions -= 1

    async def run(self, function: Callable[[], _Result]) -> _Result:
        """Run a function in the model thread, after what waits there already."""
        future: Future[_Result] = self._submit(_Call(function=function))
        return await asyncio.wrap_future(future)

    async def open(
        self,
        world: World,
        *,
        seed: int,
        start: int,
        decoder: str | None,
        leaving: Player | None = None,
    ) -> Player:
        """Return a player at a start of a world.

        Args:
            world: One of `worlds`.
            seed: Seed of the drive's random numbers.
            start: Number of the start, wrapped round the world's starts.
            decoder: Name of a decoding order; None leaves it to the engine.
            leaving: A player who stops when this one begins.

        Raises:
            WorldgenError: If the seed or the decoder is not allowed.
        """

        def begin() -> Player:
            name = decoder
            if name is None and self._load is not None:
                name = self._load.choose(world, leaving)
            player = Player.open(world, seed=seed, start=start, decoder=name)
            if self._load is not None:
                self._load.stepped(player)
            return player

        return await self.run(begin)

    async def step(
        self, player: Player, action: np.ndarray, following: Sequence[np.ndarray] = ()
    ) -> Step:
        """Let a player take a step, in one batch with the others who wait for theirs.

        What it draws does not depend on them, and a failure of theirs does not hurt.

        Args:
            player: Has no other step under way.
            action: Settings of the groups.
            following: The actions after it where they are known; see `Session.step`.
        """
        wish = Wish(player=player, action=action, following=tuple(following))
        return await asyncio.wrap_future(self._submit(_Wait(wish=wish)))

    def info(self) -> dict[str, Any]:
        """Return what the warm-up found, and what was done since, as JSON can hold it.

        `batches` counts steps by the number of those that were taken together; `foresight` is
        explained in `worldgen.serving.foresight`. `load` is there if the engine is adaptive: how
        many play, what frames cost in each order, and how often each was chosen.
        """
        info = {
            "warm_up": self._warm_up,
            "batches": {str(size): count for size, count in sorted(self._batches.items())},
            "foresight": self._foresight.info(),
        }
        return info if self._load is None else {**info, "load": self._load.info()}

    def report_warm_up(self) -> None:
        """Write what the warm-up found to the log."""
        for key, found in self._warm_up["worlds"].items():
            _logger.info(
                "%s is warm: %.1f ms a step by %s, torch on %d threads",
                *(key, found["milliseconds"], found["decoder"], self._warm_up["threads"]),
            )
        if self._load is not None:
            for key, costs in self._load.info()["milliseconds"].items():
                _logger.info("%s, milliseconds a frame to choose an order by: %s", key, costs)

    def stop(self) -> None:
        """Let the running step finish and drop those that wait."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        with self._jobs_lock:
            waiting, self._jobs = self._jobs, deque()
        for job in waiting:
            job.future.cancel()
        if self._batches:
            _logger.info("steps by size of batch: %s", dict(sorted(self._batches.items())))
            _logger.info("frames drawn ahead: %s", self._foresight.info())
            if self._load is not None:
                _logger.info("orders chosen: %s", self._load.info()["chosen"])

    def _submit(self, job: _Job) -> Future[Any]:
        with self._jobs_lock:
            self._jobs.append(job)
        if not self._wake():
            job.future.cancel()
        return job.future

    def _wake(self) -> bool:
        """Have the model thread look for something to do; return False if it has ended."""
        try:
            self._thread.submit(self._work)
        except RuntimeError:
            return False
        return True

    # In the model thread.

    def _work(self) -> None:
        with self._jobs_lock:
            jobs = self._next_jobs()
        given = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        waits = [job for job in given if isinstance(job, _Wait)]
        if waits:
            self._step(waits)
        for job in given:
            if isinstance(job, _Call):
                _settle(job, job.function)
        if not jobs:
            self._foresight.look()
        if not self._jobs and self._foresight.candidate is not None:
            self._wake()

    def _next_jobs(self) -> list[_Job]:
        """Take the job that has waited longest, and the steps that go in one batch with it."""
        if not self._jobs:
            return []
        first = self._jobs.popleft()
        if not isinstance(first, _Wait):
            return [first]
        company: list[_Job] = [first]
        for job in list(self._jobs):
            # A visitor has one message answered at a time, so none overtakes his own.
            if len(company) < LARGEST_BATCH and isinstance(job, _Wait) and job.joins(first):
                company.append(job)
                self._jobs.remove(job)
        return company

    def _step(self, waits: Sequence[_Wait]) -> None:
        self._batches[len(waits)] += len(waits)
        foreseen = [self._foresight.judge(wait.wish, wait.arrived) for wait in waits]
        begin = time.perf_counter()
        together = len(waits) > 1 and self._advance(waits)
        for wait in waits:
            if together:
                seconds = time.perf_counter() - begin
                _settle(wait, functools.partial(_shown, wait.wish, seconds))
            else:
                _settle(wait, functools.partial(_taken, wait.wish))
        end = time.perf_counter()
        for wait, was_there in zip(waits, foreseen, strict=True):
            player, drawing = wait.wish.player, (end - begin) / len(waits)
            if self._look_ahead:
                self._foresight.answered(player, end, None if was_there else drawing)
            if self._load is not None:
                self._load.stepped(player)
                if not was_there:
                    self._load.drew(player, drawing)

    def _advance(self, waits: Sequence[_Wait]) -> bool:
        try:
            advance_players([wait.wish for wait in waits])
        # Everybody is where he was; alone, only he fails whose fault it is.
        except Exception:
            _logger.debug("a batch failed", exc_info=True)
            return False
        return True

    def _warm(self) -> dict[str, Any]:
        """Take the first steps, which are slow, before anybody waits for them; choose threads."""
        threads = _use_best_num_threads(next(iter(self.worlds.values())))
        worlds = {}
        for key, world in self.worlds.items():
            seconds = _median_step_time(world)
            worlds[key] = {
                "decoder": world.card.decoders[0],
                "milliseconds": round(1000 * seconds, 1),
            }
        if self.adaptive:
            costs = {key: _costs_of_orders(world) for key, world in self.worlds.items()}
            self._load = Load(self.worlds, costs)
        return {"threads": threads, "worlds": worlds}


def _settle(job: _Job, function: Callable[[], Any]) -> None:
    try:
        result = function()
    # It belongs to whom waits for the result.
    except BaseException as error:
        job.future.set_exception(error)
    else:
        job.future.set_result(result)


def _taken(wish: Wish) -> Step:
    begin = time.perf_counter()
    frame = wish.take()
    return Step(frame=frame, seconds=time.perf_counter() - begin)


def _shown(wish: Wish, seconds: float) -> Step:
    return Step(frame=wish.player.show(), seconds=seconds)


def _use_best_num_threads(world: World) -> int:
    """Let this thread compute alone if that is faster than with helpers, by a short trial.

    On an idle machine helpers pay off; on a busy one each step waits for the helper that gets a
    core last, and a frame takes ten times as long. A user who sets OMP_NUM_THREADS has chosen.
    """
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ:
        return most
    times = {}
    for count in (1, most):
        torch.set_num_threads(count)
        times[count] = _median_step_time(world)
    best = min(times, key=times.__getitem__)
    torch.set_num_threads(best)
    return best


def _costs_of_orders(world: World) -> dict[str, float]:
    """Return the seconds that a frame takes in each order on a world's card.

    They are tried from the fewest calls a frame on. Once one is too slow for a single player, those
    with more calls are left out: a frame of them may take a minute.
    """

    def calls(name: str) -> int:
        decoder = world.session(decoder=name).decoder
        return len(decoder.schedule.groups) if isinstance(decoder, ScheduleDecoder) else 1

    together, costs = world.model.layout.frames_per_step, {}
    for name in sorted(world.card.decoders, key=calls):
        costs[name] = _median_step_time(world, name) / together
        if costs[name] * world.frames_per_second > 1:
            break
    return costs


def _median_step_time(world: World, decoder: str | None = None) -> float:
    session, rest = world.session(decoder=decoder), world.action_tokenizer.schema.rest()
    times = []
    for _ in range(_WARM_UP_STEPS + _TRIAL_STEPS):
        begin = time.perf_counter()
        for _ in range(session.frames_per_step):
            session.step(rest)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[_WARM_UP_STEPS:])
