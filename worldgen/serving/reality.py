"""The real environment beside the dream: same start, same actions, in a thread of its own."""

import contextlib
import dataclasses
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8

from worldgen.errors import EnvironmentMissingError
from worldgen.pipeline import World
from worldgen.real_environment import RealEnvironment
from worldgen.serving.window import FrameWindow

__all__ = [
    "Reality",
    "RealityDifferences",
    "RealityEvent",
    "RealityFrame",
    "RealityState",
    "frame_difference",
]

_NOTICE_SECONDS: Final = 0.1
_MAX_DECIBEL: Final = 99.0
"""Stands for equal frames, whose PSNR is infinite."""

# Of the whole process, so that events of one history are never taken for those of another.
_versions = itertools.count()

Frame = UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealityFrame:
    """A real frame and its PSNR to the dream's frame of the same index, in decibel."""

    version: int
    index: int
    frame: Frame
    difference: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealityDifferences:
    """PSNR of the frames from index `first` on, after catching up."""

    version: int
    first: int
    values: Float32[np.ndarray, " frames"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealityState:
    """`state` is missing, catching up, running or ended; `reason` says why it is missing."""

    version: int
    state: str
    reason: str = ""
    done: int = 0
    total: int = 0


RealityEvent = RealityFrame | RealityDifferences | RealityState


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Restart:
    version: int
    start: int
    actions: Sequence[np.ndarray]
    dream: FrameWindow


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
    version: int
    action: np.ndarray
    index: int
    dream: Frame


def frame_difference(dream: Frame, real: Frame) -> float:
    """Return the PSNR of two frames in decibel, NaN where their sizes differ."""
    if dream.shape != real.shape:
        return math.nan
    error = float(np.mean((dream.astype(np.float32) - real.astype(np.float32)) ** 2))
    return _MAX_DECIBEL if error == 0 else min(_MAX_DECIBEL, 10 * math.log10(255**2 / error))


class Reality:
    """Runs a world's real environment after the dream and publishes what it sees.

    An environment cannot go back, so a rewind runs it again from the seed with the actions so
    far; jobs of a history that has been left are skipped. When its episode is over it stands still
    at its last frame, which is compared with nothing.

    Args:
        world: The world whose card names the environment.
        publish: Called with every event, from this object's thread.
    """

    def __init__(self, world: World, publish: Callable[[RealityEvent], None]) -> None:
        self._world = world
        self._publish = publish
        self._jobs: queue.SimpleQueue[_Restart | _Step | None] = queue.SimpleQueue()
        self._frames: tuple[int, FrameWindow] | None = None
        self._frames_lock = threading.Lock()
        self.version = next(_versions)
        threading.Thread(target=self._work, name="worldgen-reality", daemon=True).start()

    def restart(self, start: int, actions: Sequence[np.ndarray], dream: FrameWindow) -> None:
        """Run again from a start of the world through all actions of a branch.

        Args:
            start: Number of the start.
            actions: Every action since the start, `[step][group]`.
            dream: The branch's window; its frames are compared with the real ones.
        """
        self.version = next(_versions)
        self._jobs.put(
            _Restart(version=self.version, start=start, actions=actions, dream=dream.copy())
        )

    def step(self, action: np.ndarray, index: int, dream: Frame) -> None:
        """Take the action that led the dream to its frame `index`."""
        self._jobs.put(_Step(version=self.version, action=action, index=index, dream=dream))

    def frames(self, first: int, last: int) -> list[Frame] | None:
        """Return the real frames `first` to `last`, or None while one of them is not at hand."""
        with self._frames_lock:
            if self._frames is None or self._frames[0] != self.version:
                return None
            window = self._frames[1]
            if not (window.first <= first and last <= window.last):
                return None
            return [window[index] for index in range(first, last + 1)]

    def stop(self) -> None:
        """End the thread after the step it is in."""
        self.version = next(_versions)
        self._jobs.put(None)

    def _work(self) -> None:
        environment: RealEnvironment | None = None
        while (job := self._jobs.get()) is not None:
            if job.version != self.version:
                continue
            try:
                if isinstance(job, _Restart):
                    environment = environment or self._make()
                    self._catch_up(environment, job)
                elif environment is not None:
                    self._follow(environment, job)
            # An environment is foreign code: whatever it raises ends reality, never the dream, and
            # the next restart tries again.
            except Exception as error:
                reason = str(error)
                if not isinstance(error, EnvironmentMissingError):
                    reason = f"the real environment failed ({type(error).__name__}: {error})"
                self._publish(RealityState(version=job.version, state="missing", reason=reason))
                _close(environment)
                environment = None
        _close(environment)

    def _make(self) -> RealEnvironment:
        card = self._world.card.environment
        if card is None:
            raise EnvironmentMissingError("this world's card names no real environment")
        return RealEnvironment(card.id, card.options)

    def _catch_up(self, environment: RealEnvironment, job: _Restart) -> None:
        start = self._world.starts[job.start]
        if start.environment_seed is None or start.environment_actions is None:
            raise EnvironmentMissingError("this start was not made by an environment with a seed")
        prefix = list(start.environment_actions)
        total = len(prefix) + len(job.actions)
        window = FrameWindow(job.dream.capacity, first=0)
        differences: list[float] = []
        noticed = time.monotonic()
        frame, over = environment.reset(seed=start.environment_seed), False
        for done, action in enumerate((*prefix, *job.actions, None)):
            index = done - len(prefix)
            if index >= 0:
                window.append(frame)
            if index >= job.dream.first:
                differences.append(math.nan if over else frame_difference(job.dream[index], frame))
            if action is None:
                break
            over = environment.ended
            frame = frame if over else environment.step(action)
            if job.version != self.version:
                return
            if time.monotonic() - noticed > _NOTICE_SECONDS:
                noticed = time.monotonic()
                self._publish(
                    RealityState(version=job.version, state="catching up", done=done, total=total)
                )
        with self._frames_lock:
            self._frames = (job.version, window)
        values = np.asarray(differences, np.float32)
        self._publish(RealityDifferences(version=job.version, first=job.dream.first, values=values))
        self._publish_frame(environment, job.version, window.last, frame, differences[-1])

    def _follow(self, environment: RealEnvironment, job: _Step) -> None:
        if self._frames is None or self._frames[0] != job.version:
            return
        window, over = self._frames[1], environment.ended
        frame = window[window.last] if over else environment.step(job.action)
        with self._frames_lock:
            window.append(frame)
        difference = math.nan if over else frame_difference(job.dream, frame)
        self._publish_frame(environment, job.version, job.index, frame, difference)

    def _publish_frame(
        self,
        environment: RealEnvironment,
        version: int,
        index: int,
        frame: Frame,
        difference: float,
    ) -> None:
        self._publish(
            RealityFrame(version=version, index=index, frame=frame, difference=difference)
        )
        state = "ended" if environment.ended else "running"
        self._publish(RealityState(version=version, state=state))


def _close(environment: RealEnvironment | None) -> None:
    if environment is not None:
        with contextlib.suppress(Exception):
            environment.close()
