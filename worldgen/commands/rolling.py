"""What `rollout`, `generate` and `replay` share: actions, frames into an output, progress, Ctrl-C."""

import dataclasses
import itertools
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Num, UInt8
from tqdm import tqdm

from worldgen.commands.output import note
from worldgen.data.outputs import FrameOutput, open_output
from worldgen.data.trajectory import read_trajectory, write_motion
from worldgen.errors import ActionError, ConfigError, WorldgenError
from worldgen.generation import SamplingConfig, Session
from worldgen.pipeline import World
from worldgen.tokenizers.action import MAX_STEPS, is_driving_schema, parse_actions

__all__ = [
    "INTERRUPTED",
    "Action",
    "Actions",
    "Frame",
    "Keeper",
    "Roll",
    "check_motion",
    "draw",
    "driven",
    "num_steps",
    "output_of",
    "played",
    "read_script",
    "sampling_of",
]

INTERRUPTED = 130

Frame = UInt8[np.ndarray, "height width 3"]
Action = Num[np.ndarray, " group"]
Actions = Num[np.ndarray, "step group"]


class Keeper(Protocol):
    """Keeps what it takes to go on with a roll later."""

    def keep(self, session: Session, output: FrameOutput) -> None:
        """Called after every frame; writes it down now and then."""

    def keep_now(self, session: Session, output: FrameOutput) -> None:
        """Write it down."""

    def forget(self) -> None:
        """Remove it; all is done."""


@dataclass(frozen=True, kw_only=True)
class Roll:
    """A session on its way into an output."""

    world: World
    session: Session
    actions: Iterator[Action]
    """From the session's current frame on, without an end."""
    total: int
    """The frame to reach."""
    log: Path | None
    motion: Path | None
    """Where ego motion that was driven goes."""
    play: Callable[[Iterator[Action]], Iterator[Frame]] | None = None
    """Takes actions and yields frames; by default the session's `play`."""

    def run(self, output: FrameOutput | None, keeper: Keeper | None = None) -> int:
        """Draw what is left and return the exit status.

        Ctrl-C ends after the frame that is being drawn, with everything written; the second one
        breaks.
        """
        session = self.session
        play = self.play or session.play
        drawn = 0 if output is None else output.num_frames

        def frames(steps: Iterator[Action]) -> Iterator[Frame]:
            if not drawn:
                yield session.frame
            yield from play(steps)

        def keep() -> None:
            if keeper is not None and output is not None:
                keeper.keep(session, output)

        rest = itertools.islice(self.actions, self.total - session.frame_index)
        try:
            with output or nullcontext(), _interruptible(rest) as steps:
                draw(frames(steps), total=self.total, output=output, keep=keep)
                if output is not None and keeper is not None and session.frame_index < self.total:
                    keeper.keep_now(session, output)
                elif output is not None:
                    if keeper is not None:
                        keeper.forget()
                    output.finish()
        except BaseException:
            # Whatever became of the video, the log can make it again; the first error is told.
            with suppress(OSError, WorldgenError):
                self._write_records()
            raise
        self._write_records()
        return self._report(None if output is None else output.path)

    def _write_records(self) -> None:
        if self.log is not None:
            self.session.save(self.log)
        if self.motion is not None:
            write_motion(self.motion, self.session.actions, self.world.frames_per_second)

    def _report(self, out: Path | None) -> int:
        written = [str(path) for path in (out, self.log, self.motion) if path is not None]
        frames = self.session.frame_index
        print(
            f"{frames} frames, hash {self.session.log().total_hash}"
            + (f", written to {' and '.join(written)}" if written else "")
        )
        if frames < self.total:
            note(f"stopped after {frames} of {self.total} steps; all of these are written")
            return INTERRUPTED
        return 0


def draw(
    frames: Iterator[Frame | None],
    *,
    total: int,
    output: FrameOutput | None,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Draw frame 0 and `total` more under a progress bar, into an output if one is wanted.

    Args:
        frames: Those that the output does not hold yet.
        total: Number of the last frame.
        output: None lets frames go.
        keep: Called after each frame.
    """
    first = 0 if output is None else output.num_frames
    # disable=None: no bar where nobody watches, as in a pipe.
    with tqdm(total=total, initial=max(first - 1, 0), unit=" frames", disable=None) as bar:
        for number, frame in enumerate(frames, start=first):
            if output is not None and frame is not None:
                output.write(frame)
            bar.update(min(number, 1))
            keep()


def check_motion(world: World, motion: Path | None) -> None:
    """Refuse to write ego motion of a world that is not driven by it.

    Raises:
        ActionError: If it is not.
    """
    schema = world.action_tokenizer.schema
    if motion is not None and not is_driving_schema(schema):
        raise ActionError(
            f"world {world.card.name!r} is driven by {', '.join(g.name for g in schema.groups)} and "
            "not by ego motion, so there is none to write; leave --motion out"
        )


def output_of(world: World, arguments: Namespace) -> FrameOutput | None:
    """Return the output that a command names, None if it names none."""
    if arguments.out is None:
        return None
    return open_output(arguments.out, world.frames_per_second, scale=arguments.scale)


def sampling_of(world: World, arguments: Namespace) -> SamplingConfig:
    """Return the world's sampling, with what a command says about it."""
    names = ("temperature", "top_k", "top_p", "min_p", "guidance")
    given = {name: getattr(arguments, name) for name in names}
    return dataclasses.replace(
        world.card.sampling, **{name: value for name, value in given.items() if value is not None}
    )


def read_script(world: World, actions: str | None, trajectory: Path | None) -> Actions:
    """Return the actions of a list, a file of lists, or a trajectory.

    Raises:
        ActionError: If an action is unknown, or there are too many.
        DataError: If a trajectory is not one, or a file cannot be read.
    """
    schema = world.action_tokenizer.schema
    if trajectory is not None:
        read = read_trajectory(trajectory)
        steps, changes = read.actions(schema, world.frames_per_second)
        for change in changes:
            note(change)
        return steps
    text = actions or ""
    if text.endswith(".txt"):
        lines = Path(text).read_text(encoding="utf-8").splitlines()
        text = ",".join(line for line in lines if line.strip())
    return parse_actions(text, schema)


def num_steps(script: Actions | None, world: World, seconds: float | None, repeat: int) -> int:
    """Return how many steps to draw: as many seconds as asked for, or all that there is to do."""
    if seconds is not None:
        steps: int = max(1, round(seconds * world.frames_per_second))
    elif script is None:
        raise ConfigError("the model goes on for ever; say for how long with --seconds")
    else:
        steps = len(script) * repeat
    if steps > MAX_STEPS:
        raise ActionError(f"{steps:,} steps are more than {MAX_STEPS:,}; ask for fewer")
    return steps


def played(script: Actions, *, hold: bool, first: int = 0) -> Iterator[Action]:
    """Give out a script for ever: a list again and again, or with its last step held.

    Args:
        script: At least one step.
        hold: Hold the last step.
        first: Number of the step to begin with.
    """
    for number in itertools.count(first):
        yield script[min(number, len(script) - 1) if hold else number % len(script)]


def driven(session: Session) -> Iterator[Action]:
    """Give out what the model itself would do; frames that are drawn together share an action."""
    action, asked_at = session.predict_action(), session.frame_index
    while True:
        if session.frame_index != asked_at and not session.frames_left:
            action, asked_at = session.predict_action(), session.frame_index
        yield action


@contextmanager
def _interruptible(actions: Iterator[Action]) -> Iterator[Iterator[Action]]:
    """Give out actions until Ctrl-C, so that no frame is left half drawn; the second one breaks."""
    interrupted = False

    def stop(number: int, frame: object) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

    def give_out() -> Iterator[Action]:
        for action in actions:
            if interrupted:
                return
            yield action

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield give_out()
    finally:
        signal.signal(signal.SIGINT, before)
