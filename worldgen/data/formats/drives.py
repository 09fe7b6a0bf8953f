"""One recorded drive: its frames, times and poses, and which of them become steps of ego motion."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int

from worldgen.data.formats.base import Reading
from worldgen.ego_motion import check_poses, relative_motion
from worldgen.errors import DataError
from worldgen.tokenizers.action import ActionSchema, Axis
from worldgen.tokenizers.action.driving import driving_schema

__all__ = [
    "MICROSECONDS",
    "SAME_RATE",
    "Drive",
    "Track",
    "inside",
    "make_track",
    "numbers",
    "schema_at",
]

MICROSECONDS = "time stamps were taken for microseconds"
SAME_RATE = 0.05
"""Frame rates that differ by no more than this share are taken for the same."""
_PRESET_RATE = 5.0
"""Frames a second that the bins of "drivingworld" are for."""
_LONGEST_STEP = 1.75
"""Times the usual distance of two frames. With one frame missing in between it is twice that, and
where poses come from lidar sweeps, twice as many as pictures, it reaches 1.5 without any missing."""


@dataclass(frozen=True, kw_only=True)
class Drive:
    """One drive as it was recorded, before anything of it was judged.

    Attributes:
        source: File with the poses, as messages name it.
        times: Seconds; NaN where nobody knows.
        poses: As in `worldgen.ego_motion`; NaN in a frame without a pose.
        pictures: The frames, where each is a file.
        video: The frames, where they are in one file.
        units: What was assumed of the numbers, for the message that they make no sense.
        values: Columns of the layout beside `COLUMNS`, a row for each frame.
    """

    source: str
    times: Float64[np.ndarray, " frame"]
    poses: Float64[np.ndarray, "frame pose"]
    pictures: Sequence[Path] = ()
    video: Path | None = None
    units: str = ""
    values: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Frames a second, by the usual distance of two frames."""
        seconds = np.diff(self.times[np.isfinite(self.times)])
        usual = float(np.median(seconds[seconds > 0])) if (seconds > 0).any() else 0.0
        if usual == 0.0:
            raise DataError(f"{self.source} has no two frames at different times")
        return 1.0 / usual


@dataclass(frozen=True, kw_only=True)
class Track:
    """Frames of a drive that are used, each with the motion to the next one used.

    Attributes:
        rows: Frames, by their places in the drive.
        follows: Whether a frame follows from the one before in `rows`.
        motion: Yaw in degrees, x and y in metres.
        seconds: Until the next frame.
    """

    rows: Int[np.ndarray, " step"]
    follows: Bool[np.ndarray, " step"]
    motion: Float64[np.ndarray, "step 3"]
    seconds: Float64[np.ndarray, " step"]

    @property
    def speeds(self) -> Float64[np.ndarray, " step"]:
        """Metres a second."""
        return np.asarray(np.linalg.norm(self.motion[:, 1:], axis=-1) / self.seconds)


def make_track(drive: Drive, recorded: float, wanted: float | None, reading: Reading) -> Track:
    """Return the frames of a drive that are used, and the motion from each to the next.

    Args:
        drive: As recorded.
        recorded: Its frames a second.
        wanted: Fewer frames a second, or None for all.
        reading: Where what is wrong with times and poses is noted.

    Raises:
        DataError: If no two frames follow each other, or the poses are in another unit.
    """
    try:
        check = check_poses(
            drive.times, drive.poses, source=drive.source, max_gap=_LONGEST_STEP / drive.rate
        )
    except DataError as error:
        raise DataError(f"{error}; {drive.units}" if drive.units else str(error)) from error
    for problem in check.problems:
        text = problem.removeprefix(f"{drive.source}: ")
        if text.startswith("row") and not text.endswith("left out"):
            text += "; a new episode begins there"
        reading.note(drive.source, text)
    rows = np.flatnonzero(check.kept)
    pieces = [
        _thinned(piece, drive.times, recorded, wanted)
        for piece in np.split(rows, np.flatnonzero(~check.follows[rows][1:]) + 1)
    ]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise DataError(f"{drive.source} has no two frames that follow each other")
    return Track(
        # What happens in the last frame of a piece is not known.
        rows=np.concatenate([piece[:-1] for piece in pieces]),
        follows=np.concatenate([np.arange(len(piece) - 1) > 0 for piece in pieces]),
        motion=np.concatenate([relative_motion(drive.poses[piece]) for piece in pieces]),
        seconds=np.concatenate([np.diff(drive.times[piece]) for piece in pieces]),
    )


def schema_at(frames_per_second: float) -> ActionSchema:
    """Return DrivingWorld's bins for steps of another length.

    The axes reach from the same speeds to the same speeds, 0 to 40 m/s ahead, 2.5 m/s to either
    side and 40 degrees a second of turning, in as many bins; at 5 frames a second they are
    DrivingWorld's own.
    """
    schema = driving_schema("drivingworld")
    share = _PRESET_RATE / frames_per_second
    if share == 1.0:
        return schema
    axes = [group for group in schema.groups if isinstance(group, Axis)]
    return dataclasses.replace(
        schema,
        groups=tuple(
            dataclasses.replace(axis, low=axis.low * share, high=axis.high * share) for axis in axes
        ),
        named={
            name: {axis: float(setting) * share for axis, setting in settings.items()}
            for name, settings in schema.named.items()
        },
    )


def inside(root: Path, name: str) -> Path:
    """Return the path that a data set's own table names, never one outside of its folder.

    Raises:
        DataError: If it lies outside.
    """
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"{name!r} lies outside of {root}; refused")
    return path


def numbers(values: Sequence[object]) -> list[float]:
    """Return values as floats, NaN for those that are no numbers."""
    return [
        float(value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else float("nan")
        for value in values
    ]


def _thinned(
    rows: Int[np.ndarray, " frame"],
    times: Float64[np.ndarray, " frame"],
    recorded: float,
    wanted: float | None,
) -> Int[np.ndarray, " kept"]:
    """Return every n-th row, or where that is no whole number the rows nearest to even times."""
    if wanted is None or len(rows) < 2:
        return rows
    stride = max(1, round(recorded / wanted))
    if abs(recorded / wanted - stride) <= SAME_RATE * stride:
        return rows[::stride]
    seconds = times[rows] - times[rows[0]]
    even = np.arange(int(seconds[-1] * wanted + 1e-6) + 1) / wanted
    after = np.clip(np.searchsorted(seconds, even), 1, len(rows) - 1)
    nearest = after - (even - seconds[after - 1] <= seconds[after] - even)
    return np.asarray(rows[np.unique(nearest)])
