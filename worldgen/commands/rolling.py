"""What `rollout`, `generate` and `replay` share: frames into an output, progress, Ctrl-C, records."""

import dataclasses
import signal
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from tqdm import tqdm

from worldgen.commands.output import note
from worldgen.data.outputs import FrameOutput
from worldgen.data.trajectory import write_motion
from worldgen.errors import ActionError, ConfigError, WorldgenError
from worldgen.generation import SamplingConfig, Session
from worldgen.pipeline import World
from worldgen.tokenizers.action import MAX_STEPS, is_driving_schema

__all__ = [
    "INTERRUPTED",
    "Frame",
    "Keeper",
    "Records",
    "SessionSource",
    "Source",
    "draw",
    "num_steps",
    "run",
    "sampling_of",
]

INTERRUPTED = 130

Frame = UInt8[np.ndarray, "height width 3"]


class Source(ABC):
    """Makes the frames of a video, from frame 0 on.

    Args:
        total: Number of the last one.
    """

    def __init__(self, total: int) -> None:
        self.total = total

    @abstractmethod
    def frames(self, first: int) -> Iterator[Frame]:
        """Yield the frames from number `first` to the last one."""

    @property
    def can_stop(self) -> bool:
        """Whether it can go on from the frame that came last."""
        return True


class SessionSource(Source):
    """Plays a session.

    Args:
        session: At the frame to go on from.
        actions: From that frame on, as many as there are frames to make.
        total: Number of the last frame.
        origin: Frame of the session that is frame 0 of the video; those up to the current one are
            shown as they are.
    """

    def __init__(
        self, session: Session, actions: Iterable[NDArray[Any]], total: int, *, origin: int = 0
    ) -> None:
        super().__init__(total)
        self.session = session
        self._actions = actions
        self._origin = origin

    def frames(self, first: int) -> Iterator[Frame]:
        """See `Source.frames`."""
        for index in range(self._origin + first, self.session.frame_index + 1):
            yield self.session.frame_at(index)
        yield from self.session.play(self._actions)


class Keeper(Protocol):
    """Keeps what it takes to go on later."""

    def keep(self, output: FrameOutput) -> None:
        """Called where the source could go on; writes it down now and then."""

    def keep_now(self, output: FrameOutput) -> None:
        """Write it down."""

    def forget(self) -> None:
        """Remove it: the video is complete."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """What is written beside a video that a session was played for."""

    world: World
    session: Session
    log: Path | None
    """JSON to be replayed; as safetensors all ids, from which a session goes on at once."""
    motion: Path | None = None

    def __post_init__(self) -> None:
        schema = self.world.action_tokenizer.schema
        if self.motion is not None and not is_driving_schema(schema):
            names = ", ".join(group.name for group in schema.groups)
            raise ActionError(
                f"world {self.world.card.name!r} is driven by {names} and not by ego motion, so "
                "there is none to write; leave --motion out"
            )

    @property
    def paths(self) -> list[Path]:
        """Files that are written."""
        return [path for path in (self.log, self.motion) if path is not None]

    def write(self) -> None:
        """Write the log and the motion of all frames so far."""
        if self.log is not None:
            (self.session.save_state if _is_state(self.log) else self.session.save)(self.log)
        if self.motion is not None:
            write_motion(self.motion, self.session.actions, self.world.frames_per_second)


def run(
    source: Source,
    output: FrameOutput | None,
    *,
    records: Records | None = None,
    keeper: Keeper | None = None,
) -> int:
    """Make the frames that an output lacks, say what became of it, and return the exit status.

    Ctrl-C ends after the frame that is being made, with everything written; the second one breaks.

    Args:
        source: Of frames.
        output: None lets frames go.
        records: Written at the end, whatever ends it.
        keeper: None where nobody can go on later: then what there is becomes a complete output.
    """
    try:
        with output or nullcontext(), _interruptible() as interrupted:

            def stop_here() -> bool:
                if source.can_stop and keeper is not None and output is not None:
                    keeper.keep(output)
                return source.can_stop and interrupted()

            made = draw(source.frames, total=source.total, output=output, stop_here=stop_here)
            complete = made == source.total + 1
            if output is not None:
                if keeper is not None and not complete:
                    keeper.keep_now(output)
                else:
                    if keeper is not None:
                        keeper.forget()
                    output.finish()
    except BaseException:
        # Whatever became of the video, the log can make it again; the first error is told.
        if records is not None:
            with suppress(OSError, WorldgenError):
                records.write()
        raise
    written = [] if output is None else [output.path]
    told = f"{made - 1} frames"
    if records is not None:
        records.write()
        written += records.paths
        told += f", hash {records.session.log().total_hash}"
    print(told + (f", written to {' and '.join(map(str, written))}" if written else ""))
    if complete:
        return 0
    note(f"stopped after {made - 1} of {source.total} steps; all of these are written")
    return INTERRUPTED


def _is_state(path: Path) -> bool:
    return path.suffix.lower() == ".safetensors"


def draw(
    frames: Callable[[int], Iterator[Frame | None]],
    *,
    total: int,
    output: FrameOutput | None,
    stop_here: Callable[[], bool] = lambda: False,
) -> int:
    """Draw frame 0 and `total` more under a progress bar, into an output if one is wanted.

    Args:
        frames: Gives the frames from a number on.
        total: Number of the last frame.
        output: None lets frames go. Frames that it holds are not asked for.
        stop_here: Asked after each frame whether it is to be the last one.

    Returns:
        How many frames there are now.
    """
    made = 0 if output is None else output.num_frames
    # disable=None: no bar where nobody watches, as in a pipe.
    with tqdm(total=total, initial=max(made - 1, 0), unit=" frames", disable=None) as bar:
        for frame in frames(made):
            if output is not None and frame is not None:
                output.write(frame)
            bar.update(min(made, 1))
            made += 1
            if stop_here():
                break
    return made


def sampling_of(world: World, arguments: Namespace) -> SamplingConfig | None:
    """Return the world's sampling with what a command says about it; None if it says nothing."""
    names = {field.name for field in dataclasses.fields(SamplingConfig)}
    given = {
        name: value
        for name, value in vars(arguments).items()
        if name in names and value is not None
    }
    return dataclasses.replace(world.card.sampling, **given) if given else None


def num_steps(
    script: NDArray[Any] | None, world: World, seconds: float | None, repeat: int = 1
) -> int:
    """Return how many steps to make: as many seconds as asked for, or all that is written down.

    Raises:
        ConfigError: If neither says how many.
        ActionError: If they are too many.
    """
    if seconds is not None:
        steps: int = max(1, round(seconds * world.frames_per_second))
    elif script is None:
        raise ConfigError("without a script it goes on for ever; say for how long with --seconds")
    else:
        steps = len(script) * repeat
    if steps > MAX_STEPS:
        raise ActionError(f"{steps:,} steps are more than {MAX_STEPS:,}; ask for fewer")
    return steps


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed, so that no frame is left half drawn; the second one breaks."""
    pressed = False

    def press(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
