"""What every reader of recordings offers: detect, inspect, and a stream of native episodes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from worldgen.data.episodes import Column, Episode, EpisodeInfo, TokenGrid
from worldgen.data.formats.report import Problem, Report
from worldgen.errors import ConfigError
from worldgen.tokenizers.action.schema import ActionSchema

__all__ = [
    "CUT",
    "Content",
    "Layout",
    "Progress",
    "ReadOptions",
    "Reading",
    "Recording",
    "Step",
    "cut_into_episodes",
]

Gui = Literal["drop", "keep"]
Progress = Callable[[int], None]
"""Told how many more recordings are done."""

CUT = Column(dtype="bool", meaning="the next frame does not follow: the last row")
_FEWEST_FRAMES = 2


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How recordings become episodes.

    Attributes:
        size: Height and width of the episodes' frames; None keeps that of the recordings.
        schema: Preset of Minecraft's actions; None is "minecraft". Other recordings have their own.
        gui: "drop" leaves frames out in which a window of the game is open, "keep" keeps them and
            draws the cursor, which the video lacks.
        camera: Which of several videos; None is the first.
        episode_frames: Longer recordings become several episodes, each with no more frames. One
            episode is held in memory.
        frames_per_second: Fewer frames than recorded, for recordings of a drive; None is all.
        crop: Cut frames to the shape of `size` before they are scaled, instead of stretching them.
    """

    size: tuple[int, int] | None = None
    schema: str | None = None
    gui: Gui = "drop"
    camera: str | None = None
    episode_frames: int = 600
    frames_per_second: float | None = None
    crop: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise ConfigError(f"frames of {self.size[0]} x {self.size[1]} pixels; use 1 or more")
        if self.gui not in ("drop", "keep"):
            raise ConfigError(f"gui={self.gui!r}; use drop or keep")
        if self.episode_frames < _FEWEST_FRAMES:
            raise ConfigError(
                f"episodes of {self.episode_frames} frames; use {_FEWEST_FRAMES} or more"
            )
        rate = self.frames_per_second
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ConfigError(f"{rate} frames per second; use a number above 0")
        if self.crop and self.size is None:
            raise ConfigError("frames are cropped to the shape of a size; give height and width")


@dataclass
class Reading:
    """What is noted while recordings are read: what was wrong, and where the time went.

    Attributes:
        options: How they become episodes.
        problems: What was wrong so far, each kind once for each file, with its lines.
        frames: Decoded so far.
        decode_seconds: Spent on files and codecs, conversion to RGB included.
        resize_seconds: Spent on scaling.
    """

    options: ReadOptions = field(default_factory=ReadOptions)
    problems: list[Problem] = field(default_factory=list)
    frames: int = 0
    decode_seconds: float = 0.0
    resize_seconds: float = 0.0

    def note(self, path: str, message: str, line: int | None = None) -> None:
        """Add a problem, or count it if the file has it already."""
        for index in range(len(self.problems) - 1, -1, -1):
            known = self.problems[index]
            if known.path == path and known.message == message:
                self.problems[index] = known.once_more(line)
                return
        lines = () if line is None else (line,)
        self.problems.append(Problem(path=path, message=message, lines=lines))


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One thing that somebody recorded; it becomes one episode or several.

    Attributes:
        name: Unique in its folder and the same on every run.
        split: "train", "validation" or "test" where the recording says so.
        key: What the reader finds it by.
    """

    name: str
    split: str | None = None
    key: Any = None


@dataclass(frozen=True, kw_only=True)
class Content:
    """What all episodes of a folder have in common.

    Attributes:
        schema: Of the actions.
        columns: What episodes hold beside frames and actions.
        frames_per_second: Of the recordings.
        frame_size: Height and width of the episodes' frames.
        environment: Gymnasium "id" and "options", None where there is none to ask.
        tokens: What the column `visual_ids` holds in recordings without frames.
    """

    schema: ActionSchema
    columns: Mapping[str, Column]
    frames_per_second: float
    frame_size: tuple[int, int]
    environment: dict[str, Any] | None = None
    tokens: TokenGrid | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """A frame, the action taken in it, and the values of the columns beside it."""

    frame: NDArray[np.uint8]
    action: NDArray[Any]
    values: Mapping[str, Any] = field(default_factory=dict)


class Layout(ABC):
    """A way in which recordings lie on disk; one file of this folder for each.

    Args:
        path: Folder or file for which `detect` says yes.
    """

    name: ClassVar[str]
    """One word, as in reports."""
    looks_like: ClassVar[str]
    """One line for a person whose folder fits nothing."""
    can_thin_out: ClassVar[bool] = False
    """Whether it knows `ReadOptions.frames_per_second`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    @abstractmethod
    def detect(path: Path) -> bool:
        """Return whether a path holds such recordings, from names and beginnings of files alone."""

    @abstractmethod
    def recordings(self) -> list[Recording]:
        """Return what there is, in an order that stays."""

    @abstractmethod
    def inspect(self, limit: int | None = None, progress: Progress | None = None) -> Report:
        """Return what is there and what is wrong with it, without decoding pictures.

        Args:
            limit: Most recordings to look into.
            progress: Told after each.
        """

    @abstractmethod
    def content(self, options: ReadOptions) -> Content:
        """Return what the episodes have in common.

        Raises:
            DataError: If no recording can be read, or the options do not fit this layout.
        """

    @abstractmethod
    def read(self, recording: Recording, content: Content, reading: Reading) -> Iterator[Episode]:
        """Yield the episodes of one recording, decoded once and in order.

        What cannot be used is noted in `reading` and left out. `info.index` and `info.seed` count
        from 0; whoever writes the episodes numbers them.
        """

    def write_beside(self, out: Path) -> None:
        """Write what a folder of converted episodes needs beside them; most layouts need nothing."""
        del out

    def episodes(self, reading: Reading | None = None) -> Iterator[Episode]:
        """Yield the episodes of all recordings in order."""
        reading = reading or Reading()
        content = self.content(reading.options)
        for recording in self.recordings():
            yield from self.read(recording, content, reading)


def cut_into_episodes(
    steps: Iterable[Step | None], content: Content, longest: int, driver: str
) -> Iterator[Episode]:
    """Yield episodes made of steps that follow each other.

    Args:
        steps: None where the next step does not follow from the one before.
        content: Dtypes of actions and columns.
        longest: Most frames of an episode.
        driver: Who chose the actions.
    """
    held: list[Step] = []
    index = 0
    for step in _ended(steps):
        if step is not None:
            held.append(step)
        # A single frame shows nothing of what its action does.
        if (step is None and len(held) >= _FEWEST_FRAMES) or len(held) >= longest:
            yield _episode(held, content, index, driver)
            index += 1
            held = []
        elif step is None:
            held = []


def _ended(steps: Iterable[Step | None]) -> Iterator[Step | None]:
    yield from steps
    yield None


def _episode(steps: list[Step], content: Content, index: int, driver: str) -> Episode:
    columns = {
        name: np.array([step.values[name] for step in steps], column.dtype)
        for name, column in content.columns.items()
        if name != "cut"
    }
    columns["cut"] = np.arange(len(steps)) == len(steps) - 1
    return Episode(
        frames=np.stack([step.frame for step in steps]),
        actions=np.stack([step.action for step in steps]),
        columns=columns,
        info=EpisodeInfo(index=index, seed=index, length=len(steps), driver=driver),
    )
