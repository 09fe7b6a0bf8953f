"""Minecraft as pairs of a video and a text file of actions, one line for each frame."""

import itertools
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from worldgen.data.episodes import Column, Episode
from worldgen.data.formats.base import (
    CUT,
    Content,
    Layout,
    Progress,
    Reading,
    ReadOptions,
    Recording,
    Step,
    cut_into_episodes,
)
from worldgen.data.formats.cursor import draw_cursor
from worldgen.data.formats.frames import resize, timed_frames, video_facts
from worldgen.data.formats.recorder import ActionLine
from worldgen.data.formats.report import RecordingReport, Report
from worldgen.errors import ActionError, DataError
from worldgen.tokenizers.action.minecraft import minecraft_schema, to_schema_action

__all__ = ["Pair", "PairLayout", "first_object", "read_object"]

_LONGEST_LINE = 1 << 20
"""Bytes; a recorder writes some 3,000."""

LineReader = Callable[[object], ActionLine]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Where the two files of one recording are, if they are there."""

    stem: Path
    version: str = ""

    @property
    def video(self) -> Path:
        """Frames."""
        return self.stem.with_name(f"{self.stem.name}.mp4")

    @property
    def lines(self) -> Path:
        """Actions."""
        return self.stem.with_name(f"{self.stem.name}.jsonl")


class PairLayout(Layout):
    """What layouts of paired videos and action lines share."""

    columns: ClassVar[Mapping[str, Column]] = {}

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.root = path if path.is_dir() else path.parent

    @abstractmethod
    def pairs(self) -> list[Pair]:
        """Return the recordings, also those of which one file is missing."""

    @abstractmethod
    def line_reader(self, pair: Pair) -> LineReader:
        """Return what understands the lines of one recording, given in their order."""

    def note_missing(self, reading: Reading) -> None:
        """Note what is announced somewhere and not there."""

    def read_line(self, text: bytes) -> object:
        """Return the value written in one line."""
        return read_object(text)

    def recordings(self) -> list[Recording]:
        """Return the pairs of which both files are there."""
        return [
            Recording(name=self._name(pair.stem), key=pair)
            for pair in self.pairs()
            if pair.video.is_file() and pair.lines.is_file()
        ]

    def inspect(self, limit: int | None = None, progress: Progress | None = None) -> Report:
        """Return what is there; every line is read, and pictures are counted but not decoded."""
        reading = Reading()
        self.note_missing(reading)
        pairs = self.pairs()
        looked_into = pairs[:limit]
        rates, sizes, codecs = Counter[str](), Counter[str](), Counter[str]()
        recordings, gui_lines = [], 0
        for pair in looked_into:
            frames = actions = None
            if not self._note_absent(pair, reading):
                try:
                    facts = video_facts(pair.video)
                    frames = facts.frames
                    rates[f"{facts.frames_per_second:g}"] += 1
                    sizes[f"{facts.height} x {facts.width}"] += 1
                    codecs[facts.codec] += 1
                    if facts.missing:
                        self._note(
                            reading,
                            pair.video,
                            f"ends early: announces {frames + facts.missing} frames and holds "
                            f"{frames}; these are used",
                        )
                except DataError as error:
                    self._note(reading, pair.video, str(error))
                actions = 0
                for line in self._action_lines(pair, reading):
                    actions += 1
                    gui_lines += line is not None and line.gui
                self._note_lengths(pair, frames, actions, reading)
            recordings.append(
                RecordingReport(
                    name=self._name(pair.stem),
                    frames=frames,
                    actions=actions,
                    version=pair.version,
                )
            )
            if progress is not None:
                progress(1)
        versions = Counter(pair.version or "unknown" for pair in looked_into)
        return Report(
            layout=self.name,
            path=str(self.path),
            versions=dict(sorted(versions.items())) if self.has_versions else {},
            frames_per_second=dict(rates),
            frame_sizes=dict(sizes),
            action_schema=(
                "Minecraft: 23 keys and camera; --schema minecraft, mineworld or vpt_camera",
            ),
            recordings=tuple(recordings),
            total_recordings=len(pairs),
            problems=tuple(reading.problems),
            notes=tuple(self._notes(codecs, gui_lines)),
        )

    has_versions: ClassVar[bool] = False
    """Whether the layout knows versions of its recorder."""

    def content(self, options: ReadOptions) -> Content:
        """Return what the episodes have in common, by the first video that can be opened."""
        schema = minecraft_schema(options.schema or "minecraft")
        for recording in self.recordings():
            try:
                facts = video_facts(recording.key.video, count=False)
            except DataError:
                continue
            return Content(
                schema=schema,
                columns={**self.columns, "cut": CUT},
                frames_per_second=facts.frames_per_second,
                frame_size=options.size or (facts.height, facts.width),
            )
        raise DataError(
            f"none of the videos in {self.root} can be read; worldgen data inspect {self.path} "
            "says why"
        )

    def read(self, recording: Recording, content: Content, reading: Reading) -> Iterator[Episode]:
        """Yield the episodes of one recording; lines and frames are used as far as both reach."""
        steps = self._steps(recording.key, content, reading)
        longest = reading.options.episode_frames
        yield from cut_into_episodes(steps, content, longest, driver="human")

    def _steps(self, pair: Pair, content: Content, reading: Reading) -> Iterator[Step | None]:
        if not self._has_rate(pair, content, reading):
            return
        keep_gui = reading.options.gui == "keep"
        lines = self._action_lines(pair, reading)
        decoded_before, used = reading.frames, 0
        for frame, line in zip(self._frames(pair, reading), lines, strict=False):
            used += 1
            if line is None or (line.gui and not keep_gui):
                yield None
                continue
            picture = frame if line.cursor is None else draw_cursor(frame, line.cursor)
            yield Step(
                frame=resize(picture, content.frame_size, reading),
                action=to_schema_action(line.action, content.schema),
                values={**line.values, "gui": line.gui},
            )
        unused_lines = sum(1 for _ in lines)
        num_frames = reading.frames - decoded_before
        if num_frames > used:
            # The lines were at their end first, and the rest of the video was not decoded.
            num_frames = max(num_frames, video_facts(pair.video, count=False).frames)
        self._note_lengths(pair, num_frames, used + unused_lines, reading)

    def _frames(self, pair: Pair, reading: Reading) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        try:
            for _, frame in timed_frames(pair.video, reading):
                yield frame
        except DataError as error:
            self._note(reading, pair.video, f"{error}; the frames before are used")

    def _action_lines(self, pair: Pair, reading: Reading) -> Iterator[ActionLine | None]:
        """Yield the lines in order, None for those that say nothing."""
        read = self.line_reader(pair)
        for number, text in _lines(pair.lines):
            try:
                line = read(self.read_line(text))
            except (DataError, ActionError) as error:
                self._note(reading, pair.lines, f"{error}; this frame is left out", number)
                yield None
                continue
            for message in line.unknown:
                self._note(reading, pair.lines, message, number)
            yield line

    def _has_rate(self, pair: Pair, content: Content, reading: Reading) -> bool:
        try:
            rate = video_facts(pair.video, count=False).frames_per_second
        except DataError as error:
            self._note(reading, pair.video, f"{error}; left out")
            return False
        if abs(rate - content.frames_per_second) > 0.01 * content.frames_per_second:
            self._note(
                reading,
                pair.video,
                f"has {rate:g} frames per second, the others {content.frames_per_second:g}; left out",
            )
            return False
        return True

    def _note_absent(self, pair: Pair, reading: Reading) -> bool:
        absent = [path for path in (pair.video, pair.lines) if not path.is_file()]
        for path in absent:
            other = pair.video if path == pair.lines else pair.lines
            self._note(reading, path, f"missing beside {other.name}; left out")
        return bool(absent)

    def _note_lengths(self, pair: Pair, frames: int | None, actions: int, reading: Reading) -> None:
        if frames is not None and frames != actions:
            self._note(
                reading,
                pair.lines,
                f"{actions} lines for {frames} frames; the first {min(frames, actions)} of both "
                "are used",
            )

    def _notes(self, codecs: Counter[str], gui_lines: int) -> Iterator[str]:
        if codecs:
            yield f"video codec {', '.join(codecs)}"
        if gui_lines:
            yield (
                f"a window of the game is open in {gui_lines:,} frames; --gui drop leaves them out, "
                "--gui keep draws the cursor"
            )

    def _note(self, reading: Reading, path: Path, message: str, line: int | None = None) -> None:
        # The path stands in front already.
        reading.note(self._name(path), message.removeprefix(f"{path} "), line)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def read_object(text: bytes) -> object:
    """Return the JSON value of one line.

    Raises:
        DataError: If the line is no JSON, or absurdly long.
    """
    if len(text) > _LONGEST_LINE:
        raise DataError(f"longer than {_LONGEST_LINE:,} bytes")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})") from error


def first_object(path: Path, read: Callable[[bytes], object] = read_object) -> Mapping[str, Any]:
    """Return the first object among the first lines of a file, empty if there is none."""
    try:
        for _, text in itertools.islice(_lines(path), 20):
            try:
                value = read(text)
            except DataError:
                continue
            if isinstance(value, dict):
                return value
    except OSError:
        pass
    return {}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their numbers; empty ones at the end of the file are none."""
    empty: list[tuple[int, bytes]] = []
    with path.open("rb") as file:
        for number in itertools.count(1):
            text = rest = file.readline(_LONGEST_LINE + 1)
            if not text:
                return
            # Of a line that is too long, only that it is gets remembered.
            while len(rest) > _LONGEST_LINE and not rest.endswith(b"\n"):
                rest = file.readline(_LONGEST_LINE + 1)
            if not text.strip():
                empty.append((number, text))
                continue
            yield from empty
            empty = []
            yield number, text
