"""What a look at somebody's recordings brings to light, for people and for programs."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from worldgen.tokenizers.action.schema import ActionSchema, Categorical

__all__ = [
    "Problem",
    "RecordingReport",
    "Report",
    "describe_schema",
    "format_problems",
    "format_report",
]

_MOST_RECORDINGS = 20
_MOST_PROBLEMS = 40
_MOST_LINES = 10


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong or missing.

    Attributes:
        path: File, inside the folder that was looked at.
        message: What is wrong, and what became of it.
        lines: The first ones that have it, counted from 1; empty where the file has no lines.
        count: How many lines have it.
    """

    path: str
    message: str
    lines: tuple[int, ...] = ()
    count: int = 1

    def once_more(self, line: int | None) -> "Problem":
        """Return the same problem, found on one more line."""
        more = () if line is None or len(self.lines) >= _MOST_LINES else (line,)
        return dataclasses.replace(self, lines=(*self.lines, *more), count=self.count + 1)

    def __str__(self) -> str:
        if not self.lines:
            return f"{self.path}: {self.message}"
        first, *others = self.lines
        named = [str(line) for line in others]
        if self.count > len(self.lines):
            named.append(f"{self.count - len(self.lines):,} more")
        also = f" (also lines {', '.join(named)})" if named else ""
        return f"{self.path}:{first}: {self.message}{also}"


@dataclass(frozen=True, kw_only=True)
class RecordingReport:
    """One recording: how many frames and actions it has; None where that cannot be told."""

    name: str
    frames: int | None = None
    actions: int | None = None
    version: str = ""
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a folder holds.

    Attributes:
        layout: Name of the layout.
        path: What was looked at.
        versions: Version -> number of recordings.
        frames_per_second: Rate -> number of recordings.
        frame_sizes: "height x width" -> number of recordings.
        action_schema: What an action is made of, one line for each group.
        recordings: Those that were looked into.
        total_recordings: All that are there.
        problems: What is wrong or missing.
        notes: Facts worth knowing.
    """

    layout: str
    path: str
    versions: Mapping[str, int]
    frames_per_second: Mapping[str, int]
    frame_sizes: Mapping[str, int]
    action_schema: tuple[str, ...]
    recordings: tuple[RecordingReport, ...]
    total_recordings: int
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def usable_frames(self) -> int:
        """Frames that have an action, as far as can be told without decoding."""
        return sum(
            min(count for count in (one.frames, one.actions) if count is not None)
            for one in self.recordings
            if one.frames is not None or one.actions is not None
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {**dataclasses.asdict(self), "usable_frames": self.usable_frames}


def format_report(report: Report) -> list[str]:
    """Return a report as lines for a person."""
    looked_into = len(report.recordings)
    of_all = "" if looked_into == report.total_recordings else f" of {report.total_recordings:,}"
    rate = _most_common_rate(report.frames_per_second)
    duration = f" ({_time(report.usable_frames / rate)})" if rate else ""
    lines = [
        f"layout: {report.layout}",
        f"path: {report.path}",
        *_counted("version", report.versions),
        *_counted("frames per second", report.frames_per_second),
        *_counted("frame size", report.frame_sizes),
        "action: " + ("; ".join(report.action_schema) or "none"),
        f"recordings: {looked_into:,}{of_all}, {report.usable_frames:,} frames with an action"
        f"{duration}",
    ]
    for one in report.recordings[:_MOST_RECORDINGS]:
        lines.append(
            f"  {one.name}: {_count(one.frames)} frames, {_count(one.actions)} actions"
            + (f", version {one.version}" if one.version else "")
            + (f", {one.split}" if one.split else "")
        )
    if looked_into > _MOST_RECORDINGS:
        lines.append(f"  and {looked_into - _MOST_RECORDINGS:,} more; --json lists them")
    lines += [f"note: {note}" for note in report.notes]
    return [*lines, *format_problems(report.problems)]


def format_problems(problems: Iterable[Problem]) -> list[str]:
    """Return what is wrong as lines for a person."""
    listed = list(problems)
    if not listed:
        return ["problems: none"]
    lines = [f"problems: {len(listed):,}"]
    lines += [f"  {problem}" for problem in listed[:_MOST_PROBLEMS]]
    if len(listed) > _MOST_PROBLEMS:
        lines.append(f"  and {len(listed) - _MOST_PROBLEMS:,} more")
    return lines


def _counted(what: str, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return [f"{what}: unknown"]
    if len(counts) == 1:
        return [f"{what}: {next(iter(counts))}"]
    listed = ", ".join(f"{name} ({count:,} recordings)" for name, count in counts.items())
    return [f"{what}: {listed}"]


def _most_common_rate(rates: Mapping[str, int]) -> float:
    common = Counter(rates).most_common(1)
    return float(common[0][0]) if common else 0.0


def _count(number: int | None) -> str:
    return "unreadable" if number is None else f"{number:,}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.4g} s"
    return f"{seconds / 60:.4g} min" if seconds < 7200 else f"{seconds / 3600:.4g} h"


def describe_schema(schema: ActionSchema) -> tuple[str, ...]:
    """Return one line for each group of actions."""
    return tuple(
        f"{group.name} ({group.options_text})"
        if isinstance(group, Categorical)
        else f"{group.name} ({group.low:g} to {group.high:g})"
        for group in schema.groups
    )
