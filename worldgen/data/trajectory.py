"""Files that say where a vehicle shall drive: poses with times, or motion step by step."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Num

from worldgen.checkpoint import write_text
from worldgen.ego_motion import (
    check_poses,
    headings_along,
    interpolate_poses,
    relative_motion,
    resample_motion,
)
from worldgen.errors import DataError
from worldgen.tokenizers.action import MAX_STEPS, ActionSchema, clip_to_bins

__all__ = ["Trajectory", "parse_trajectory", "read_trajectory", "write_motion"]

_LENGTHS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "km": 1000.0, "ft": 0.3048}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# Radians, the unit of poses; motion is in degrees.
_ANGLES = {"rad": 1.0, "deg": math.pi / 180}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "time": _TIMES,
    "x": _LENGTHS,
    "y": _LENGTHS,
    "z": _LENGTHS,
    "heading": _ANGLES,
    "yaw": _ANGLES,
}
_QUATERNION = ("qx", "qy", "qz", "qw")
_PLAIN = (*_QUATERNION, "steps")
_COLUMN = re.compile(r"([a-z]+)(?:[ _]*[\[(]?([a-z]+)[\])]?)?")
_LONG_GAP = 10.0
"""Of the usual distance between poses; what is driven over a longer one is a guess."""
_RATE = "steps_per_second"
_RATE_LINE = re.compile(rf"#\s*{_RATE}\s*[:=]\s*(\S+)")
_MOTION = ("yaw", "x", "y")
_KINDS = (
    "motion (yaw_deg, x_m, y_m, and optionally time_s or steps) or poses (time_s, x_m, y_m, and "
    "optionally heading_rad, or z_m, qx, qy, qz, qw)"
)


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Where a vehicle shall drive.

    Attributes:
        source: File name, for messages.
        times: Seconds [pose], increasing, and `poses` of one of the two kinds of
            `worldgen.ego_motion`; or
        motion: float64 [step, 3], yaw in degrees, x and y in metres, with `steps_per_second`, None
            where the file says nothing: that of whoever drives.
        problems: What was left out of the file, one line each.
    """

    source: str
    times: Float64[np.ndarray, " pose"] | None = None
    poses: Float64[np.ndarray, "pose number"] | None = None
    motion: Float64[np.ndarray, "step 3"] | None = None
    steps_per_second: float | None = None
    problems: tuple[str, ...] = ()

    def motion_at(self, frames_per_second: float) -> Float64[np.ndarray, "step 3"]:
        """Return the motion from frame to frame at a frame rate.

        Raises:
            DataError: If the drive is shorter than one frame, or longer than `MAX_STEPS` of them.
        """
        if self.motion is not None:
            rate = self.steps_per_second or frames_per_second
            self._check_length(len(self.motion) / rate * frames_per_second)
            motion = resample_motion(self.motion, rate, frames_per_second)
        else:
            assert self.times is not None
            assert self.poses is not None
            seconds = self.times[-1] - self.times[0]
            self._check_length(seconds * frames_per_second)
            frames = math.floor(seconds * frames_per_second + 1e-6)
            at = self.times[0] + np.arange(frames + 1) / frames_per_second
            motion = relative_motion(interpolate_poses(self.times, self.poses, at))
        if not len(motion):
            raise DataError(
                f"{self.source}: the drive is shorter than one frame of {1 / frames_per_second:.3g} s"
            )
        return motion

    def actions(
        self, schema: ActionSchema, frames_per_second: float
    ) -> tuple[Num[np.ndarray, "step group"], tuple[str, ...]]:
        """Return the actions of a world that make the drive, and what had to be changed for that.

        Args:
            schema: Of the world, with the axes of motion.
            frames_per_second: Of the world.

        Raises:
            ActionError: If the world is not driven by motion.
            DataError: If the drive is shorter than one frame.
        """
        actions, clippings = clip_to_bins(self.motion_at(frames_per_second), schema)
        changed = tuple(f"{self.source}: {clipping}" for clipping in clippings)
        return actions, (*self.problems, *changed)

    def _check_length(self, steps: float) -> None:
        # Before anything is made for each of them: a file of two rows can last for ages.
        if not steps <= MAX_STEPS:
            raise DataError(f"{self.source}: more than {MAX_STEPS:,} steps in all; shorten it")


def read_trajectory(path: Path) -> Trajectory:
    """Return the trajectory in a file.

    - `.csv`: a header that names each column with its unit, as in "time_s,x_m,y_m,heading_deg";
      lines that begin with # are remarks, and "# steps_per_second: 5" is the rate of motion.
    - `.json`: an object with "columns" (names as in a CSV header), "rows" (lists of numbers, null
      where one is missing), and for motion "steps_per_second".
    - `.npy`: motion [step, 3] (yaw in degrees, x and y in metres), poses [pose, 4] (time in s, x, y,
      heading in radians) or [pose, 8] (time, x, y, z, qx, qy, qz, qw).

    Columns are those of motion, and `steps` says how often a row is driven; or those of poses, whose
    heading is where they lead when no column tells. Bad rows of poses are left out and reported.

    Raises:
        DataError: If the file is missing, no such file, or holds nothing to drive; the message
            names the row.
    """
    if not path.is_file():
        raise DataError(f"no trajectory at {path}; give a csv, json or npy file")
    readers = {".csv": _read_text, ".json": _read_text, ".npy": _read_npy}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: a trajectory is a file that ends in {', '.join(readers)}; rename or convert it"
        )
    try:
        return reader(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error


def parse_trajectory(text: str, source: str) -> Trajectory:
    """Return the trajectory in the text of a file, see `read_trajectory`.

    Args:
        text: Of a `.csv` or `.json` file.
        source: Its name; the ending tells which it is.

    Raises:
        DataError: As `read_trajectory`.
    """
    parsers = {".csv": _parse_csv, ".json": _parse_json}
    parser = parsers.get(Path(source).suffix.lower())
    if parser is None:
        raise DataError(f"{source}: a trajectory in text ends in {', '.join(parsers)}")
    try:
        return parser(text, source)
    except csv.Error as error:
        raise DataError(f"{source} cannot be read ({error})") from error


def write_motion(
    path: Path, motion: Float64[np.ndarray, "step 3"], frames_per_second: float
) -> None:
    """Write motion as a CSV file that `read_trajectory` reads.

    Args:
        path: Destination.
        motion: Yaw in degrees, x and y in metres from each frame to the next.
        frames_per_second: Of the motion.
    """
    lines = [f"# {_RATE}: {frames_per_second!r}", "time_s,yaw_deg,x_m,y_m"]
    for number, row in enumerate(np.asarray(motion, np.float64).tolist()):
        numbers = (number / frames_per_second, *row)
        lines.append(",".join(f"{each:.6f}" for each in numbers))
    write_text(path, "\n".join(lines) + "\n")


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Rows of numbers as they stand in a file, in its units."""

    source: str
    names: Sequence[str]
    rows: Sequence[Sequence[float]]
    numbers: Sequence[int]
    """Of the rows, for messages: lines of a text file."""
    rate: float | None = None


def _read_text(path: Path) -> Trajectory:
    return parse_trajectory(path.read_text(encoding="utf-8-sig"), str(path))


def _parse_csv(text: str, source: str) -> Trajectory:
    lines = text.splitlines()
    rate, kept, numbers = None, [], []
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("#"):
            if match := _RATE_LINE.match(line.strip()):
                rate = _rate(match[1], f"{source} line {number}")
        elif line.strip():
            kept.append(line)
            numbers.append(number)
    # Line by line: a quote that is not closed must not swallow the lines after it.
    table = [next(csv.reader([line], skipinitialspace=True)) for line in kept]
    if not table:
        raise DataError(f"{source} is empty; it needs a header with columns of {_KINDS}")
    names = [name.strip() for name in table[0]]
    rows = [
        [_number(cell, f"{source} row {number}") for cell in row]
        for row, number in zip(table[1:], numbers[1:], strict=True)
    ]
    return _trajectory(
        _Table(source=source, names=names, rows=rows, numbers=numbers[1:], rate=rate)
    )


def _parse_json(text: str, source: str) -> Trajectory:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{source} holds no object with columns and rows")
    names, rows = content.get("columns"), content.get("rows")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'{source}: "columns" must list the names of {_KINDS}')
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise DataError(f'{source}: "rows" must be a list of lists of numbers')
    if unknown := content.keys() - {"columns", "rows", _RATE}:
        raise DataError(f"{source}: unknown key {min(unknown)!r}; known are columns, rows, {_RATE}")
    values = [
        [_number(cell, f"{source} row {number}") for cell in row]
        for number, row in enumerate(rows, start=1)
    ]
    rate = None if content.get(_RATE) is None else _rate(content[_RATE], source)
    return _trajectory(
        _Table(
            source=source,
            names=names,
            rows=values,
            numbers=range(1, len(rows) + 1),
            rate=rate,
        )
    )


def _read_npy(path: Path) -> Trajectory:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged or no plain array ({error})") from error
    headers = {
        3: ("yaw_deg", "x_m", "y_m"),
        4: ("time_s", "x_m", "y_m", "heading_rad"),
        8: ("time_s", "x_m", "y_m", "z_m", *_QUATERNION),
    }
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[1] not in headers:
        raise DataError(
            f"{path}: an array of shape {list(np.shape(array))}; needed is [step, 3] of motion, "
            "[pose, 4] with headings or [pose, 8] with quaternions"
        )
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path} holds {array.dtype}, no numbers")
    names = headers[array.shape[1]]
    rows = array.astype(np.float64).tolist()
    return _trajectory(_Table(source=str(path), names=names, rows=rows, numbers=range(len(rows))))


def _trajectory(table: _Table) -> Trajectory:
    """Return what a table means, in seconds, metres and radians or degrees."""
    names, factors = [], []
    for name in table.names:
        word, factor = _column(name, table.source)
        if word in names:
            raise DataError(f"{table.source}: two columns are {word!r}")
        names.append(word)
        factors.append(factor)
    for row, number in zip(table.rows, table.numbers, strict=True):
        if len(row) != len(names):
            raise DataError(
                f"{table.source} row {number}: {len(row)} numbers for {len(names)} columns "
                f"({', '.join(table.names)})"
            )
    if not table.rows:
        raise DataError(f"{table.source} has a header and no rows")
    values = np.array(table.rows, np.float64) * factors
    columns = {name: values[:, index] for index, name in enumerate(names)}
    found = set(columns)
    if found - {"time", "steps"} == set(_MOTION) and not {"time", "steps"} <= found:
        return _motion(table, columns)
    if found in (
        {"time", "x", "y"},
        {"time", "x", "y", "heading"},
        {"time", "x", "y", "z", *_QUATERNION},
    ):
        return _poses(table, columns)
    raise DataError(f"{table.source}: the columns are {', '.join(table.names)}; needed is {_KINDS}")


def _motion(table: _Table, columns: Mapping[str, np.ndarray]) -> Trajectory:
    motion = np.stack([np.degrees(columns["yaw"]), columns["x"], columns["y"]], -1)
    rate = table.rate
    if "steps" in columns:
        counts = columns["steps"]
        wrong = ~((counts >= 1) & (counts == np.floor(counts)) & (counts <= MAX_STEPS))
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{table.source} row {table.numbers[row]}: steps is {counts[row]:g}; a row is driven a "
                f"whole number of times from 1 to {MAX_STEPS:,}"
            )
        if counts.sum() > MAX_STEPS:
            raise DataError(f"{table.source}: more than {MAX_STEPS:,} steps in all; shorten it")
        motion = np.repeat(motion, counts.astype(np.int64), 0)
    elif "time" in columns and rate is None and len(motion) > 1:
        distances = np.diff(columns["time"])
        if not (distances > 0).all():
            row = int((~(distances > 0)).argmax()) + 1
            raise DataError(
                f"{table.source} row {table.numbers[row]}: the time is not later than that of the row "
                "before"
            )
        usual = float(np.median(distances))
        uneven = np.abs(distances - usual) > 0.05 * usual
        if uneven.any():
            row = int(uneven.argmax()) + 1
            raise DataError(
                f"{table.source} row {table.numbers[row]}: {distances[row - 1]:.4g} s after the row "
                f"before, where others are {usual:.4g} s apart; steps of motion are equally long. "
                "Give poses with times, which may be apart as they like"
            )
        rate = 1 / float(distances.mean())
    return Trajectory(source=table.source, motion=motion, steps_per_second=rate)


def _poses(table: _Table, columns: Mapping[str, np.ndarray]) -> Trajectory:
    times = columns["time"]
    if "qw" in columns:
        poses = np.stack([columns[name] for name in ("x", "y", "z", *_QUATERNION)], -1)
    else:
        heading = columns.get("heading", np.zeros(len(times)))
        poses = np.stack([columns["x"], columns["y"], heading], -1)
    # Rows may be apart as they like, but not so far that some were likely lost.
    seconds = np.diff(np.sort(times[np.isfinite(times)]))
    gap = _LONG_GAP * float(np.median(seconds)) if len(seconds) else math.inf
    check = check_poses(times, poses, source=table.source, row_numbers=table.numbers, max_gap=gap)
    times, poses = times[check.kept], poses[check.kept]
    if "qw" not in columns and "heading" not in columns:
        poses[:, 2] = headings_along(poses[:, :2])
    return Trajectory(source=table.source, times=times, poses=poses, problems=check.problems)


def _column(name: str, source: str) -> tuple[str, float]:
    """Return what a column is and the factor to metres, seconds or radians."""
    match = _COLUMN.fullmatch(name.strip().lower())
    word, unit = (match[1], match[2]) if match else (name, None)
    if word in _PLAIN and unit is None:
        return word, 1.0
    if word not in _UNITS:
        raise DataError(f"{source}: unknown column {name!r}; needed is {_KINDS}")
    units = _UNITS[word]
    if unit is None or unit not in units:
        names = ", ".join(f"{word}_{each}" for each in units)
        said = "names no unit" if unit is None else f"has the unknown unit {unit!r}"
        raise DataError(f"{source}: column {name!r} {said}; write one of {names}")
    return word, units[unit]


def _number(cell: Any, place: str) -> float:
    """Return a number; NaN for what is missing."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan
    try:
        if isinstance(cell, bool):
            raise ValueError
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{place}: {str(cell)[:40]!r} is not a number") from None


def _rate(value: Any, place: str) -> float:
    rate = _number(value, place)
    if not (math.isfinite(rate) and rate > 0):
        raise DataError(f"{place}: {_RATE} is {value!r}; it must be a number above 0")
    return rate
