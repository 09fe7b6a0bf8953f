"""DrivingWorld's clips: pictures of a drive, with its motion in two arrays."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from worldgen.data.formats.base import Reading, Recording
from worldgen.data.formats.drives import Drive
from worldgen.data.formats.driving import PictureDrives
from worldgen.data.media import IMAGE_SUFFIXES
from worldgen.ego_motion import has_ego_data, integrate
from worldgen.errors import DataError

__all__ = ["DrivingWorldClips"]

_RATE = 5.0
_PLACES, _TURNS = "pose.npy", "yaw.npy"
_DEPTH = 3


class DrivingWorldClips(PictureDrives):
    """A folder for each clip: pictures in the order of their names, `pose.npy` and `yaw.npy`.

    The arrays, [1, frame, 2] and [1, frame, 1] with or without the first axis, hold x and y in
    metres and yaw in degrees of the step *to* each frame, at 5 frames a second; the first row is
    zero. Infinite rows are steps without ego data. There may be more motion than pictures: what was
    to be driven next.

    Source: demonstration data of DrivingWorld (arXiv:2412.19505).
    """

    name = "drivingworld"
    looks_like = "DrivingWorld's clips: folders of pictures with pose.npy and yaw.npy"
    usual_rate = _RATE

    @staticmethod
    def detect(path: Path) -> bool:
        """Return whether there is a clip."""
        return next(_clips(path), None) is not None

    def recordings(self) -> list[Recording]:
        """Return the clips by name."""
        return [
            Recording(name=self._name(clip) if clip != self.path else clip.name, key=clip)
            for clip in sorted(_clips(self.path))
        ]

    def drive(self, recording: Recording, camera: str | None, reading: Reading) -> Drive:
        """Return the pictures of a clip, and places on a plane that its motion leads through."""
        if camera is not None:
            raise DataError(f"{self.path} has one camera; leave --camera {camera} out")
        clip: Path = recording.key
        places, turns = (_rows(clip / name, width) for name, width in ((_PLACES, 2), (_TURNS, 1)))
        pictures = sorted(file for file in clip.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        source = self._name(clip / _PLACES)
        if not pictures:
            raise DataError(f"{source}: no pictures beside it; left out")
        length = min(len(places), len(turns), len(pictures))
        if length < len(pictures):
            reading.note(
                source,
                f"{len(pictures)} pictures, {len(places)} rows, {len(turns)} in {_TURNS}; the first "
                f"{length} are used",
            )
        # Row 0 leads to the first frame, from nowhere.
        motion = np.concatenate([turns[1:length], places[1:length]], axis=1)
        known = has_ego_data(motion)
        poses = integrate(np.where(known[:, None], motion, 0.0))
        # Nobody knows where an unknown step leads; the next one begins there all the same.
        poses[1:][~known] = np.nan
        return Drive(
            source=source,
            times=np.arange(length) / _RATE,
            poses=poses,
            pictures=pictures[:length],
        )


def _clips(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        return
    for depth in range(_DEPTH):
        for turns in path.glob("*/" * depth + _TURNS):
            if (turns.parent / _PLACES).is_file():
                yield turns.parent


def _rows(path: Path, width: int) -> Float64[np.ndarray, "frame number"]:
    try:
        # allow_pickle is off, so that a file cannot run code.
        rows = np.asarray(np.load(path, allow_pickle=False), np.float64)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); copy it again") from error
    if rows.ndim == 3 and len(rows) == 1:
        rows = rows[0]
    if rows.ndim != 2 or rows.shape[1] != width:
        raise DataError(f"{path} has the shape {rows.shape}; clips have [1, frame, {width}]")
    return rows
