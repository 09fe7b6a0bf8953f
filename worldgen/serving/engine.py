"""Loads worlds once, counts visitors, and runs every model step in one thread."""

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import torch

from worldgen.errors import SessionLimitError, WorldgenError
from worldgen.pipeline import World, load

__all__ = ["Engine"]

_Result = TypeVar("_Result")

_TRIAL_STEPS: Final = 8
_WARM_UP_STEPS: Final = 2


class Engine:
    """The worlds of a server and the one thread that computes in them.

    One thread on purpose: two sessions that run at once on the same cores finish later than the
    same two in turn, and frames of several visitors interleave fairly when every step is a job
    of its own. The event loop never waits for a model, so sockets stay alive.

    Args:
        world_names: Shipped names or folders; loaded here, so that a broken world stops the start.
        max_sessions: Visitors at once.

    Raises:
        WorldgenError: If a world cannot be loaded or none is named.
    """

    def __init__(self, world_names: Sequence[str], *, max_sessions: int) -> None:
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
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worldgen-model")
        # In that thread, because torch counts helpers per thread.
        self._thread.submit(_use_best_num_threads, next(iter(self.worlds.values()))).result()

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
        """Run a function in the model thread, after the steps that wait there already."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def stop(self) -> None:
        """Let the running step finish and drop those that wait."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _use_best_num_threads(world: World) -> None:
    """Let this thread compute alone if that is faster than with helpers, by a short trial.

    On an idle machine helpers pay off; on a busy one each step waits for the helper that gets a
    core last, and a frame takes ten times as long. A user who sets OMP_NUM_THREADS has chosen.
    """
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ:
        return
    times = {count: _median_step_time(world, count) for count in (1, most)}
    torch.set_num_threads(min(times, key=times.__getitem__))


def _median_step_time(world: World, num_threads: int) -> float:
    torch.set_num_threads(num_threads)
    session, rest = world.session(), world.action_tokenizer.schema.rest()
    times = []
    for _ in range(_WARM_UP_STEPS + _TRIAL_STEPS):
        begin = time.perf_counter()
        for _ in range(session.frames_per_step):
            session.step(rest)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[_WARM_UP_STEPS:])
