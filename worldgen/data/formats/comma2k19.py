"""comma2k19: minutes of highway as raw HEVC video, with a pose of the camera for each frame."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int

from worldgen.data.formats.base import Reading, Recording
from worldgen.data.formats.drives import Drive
from worldgen.data.formats.driving import DrivingLayout, Frame
from worldgen.data.formats.frames import timed_frames, video_facts
from worldgen.errors import DataError

__all__ = ["Comma2k19"]

_VIDEO = "video.hevc"
_POSES = "global_pose"
_FILES = ("frame_times", "frame_positions", "frame_orientations")
_DEPTH = 4


class Comma2k19(DrivingLayout):
    """Segments `Chunk_*/DONGLE|DATE/NUMBER`, each with `video.hevc` and `global_pose/frame_*`.

    The arrays are `.npy` files, in the original without a suffix. Times are seconds, positions
    metres in the frame that turns with the earth (ECEF). Orientations are quaternions w, x, y, z
    that turn the device's axes (forward, right, down) into ECEF, as comma's own code applies them;
    here they are turned on to forward, left, up. Poses are of the camera, which looks ahead.

    The video is a raw stream without times, so its frames and the rows of `frame_times` are
    counted off against each other.

    Source: README and utilities of commaai/comma2k19 (arXiv:1812.05752).
    """

    name = "comma2k19"
    looks_like = "comma2k19: folders with video.hevc beside global_pose/frame_positions"
    usual_rate = 20.0

    @staticmethod
    def detect(path: Path) -> bool:
        """Return whether there is a segment."""
        return next(_segments(path), None) is not None

    def recordings(self) -> list[Recording]:
        """Return the segments, in the order of routes and numbers."""
        return [
            Recording(name=self._segment_name(segment), key=segment)
            for segment in sorted(_segments(self.path), key=_by_number)
        ]

    def drive(self, recording: Recording, camera: str | None, reading: Reading) -> Drive:
        """Return the poses of a segment, as many as there are frames."""
        if camera is not None:
            raise DataError(f"{self.path} has one camera; leave --camera {camera} out")
        segment: Path = recording.key
        times, places, turns = (_array(self._pose_file(segment, name)) for name in _FILES)
        name = self._name(segment / _POSES)
        if times.ndim != 1 or places.shape[1:] != (3,) or turns.shape[1:] != (4,):
            raise DataError(
                f"{name}: arrays of shape {times.shape}, {places.shape} and {turns.shape}; times, "
                "positions and orientations have 1, 3 and 4 numbers a frame"
            )
        video = segment / _VIDEO
        if not video.is_file():
            raise DataError(f"{self._name(video)}: missing beside {_POSES}; left out")
        lengths = {_VIDEO: video_facts(video).frames}
        lengths |= dict(zip(_FILES, map(len, (times, places, turns)), strict=True))
        length = min(lengths.values())
        if max(lengths.values()) > length:
            counted = ", ".join(f"{count} in {file}" for file, count in lengths.items())
            reading.note(name, f"{counted}; the first {length} of each are used")
        return Drive(
            source=name,
            times=times[:length],
            poses=np.concatenate([places[:length], _to_vehicle(turns[:length])], axis=1),
            video=video,
        )

    def frame_size(self, drive: Drive) -> tuple[int, int]:
        """Return the size that the video announces."""
        facts = video_facts(_video(drive), count=False)
        return facts.height, facts.width

    def frames(
        self, drive: Drive, rows: Int[np.ndarray, " step"], reading: Reading
    ) -> Iterator[Frame | None]:
        """Yield frames of the video, decoded in order."""
        video = _video(drive)
        wanted = iter(rows.tolist())
        row = next(wanted, None)
        try:
            for number, (_, frame) in enumerate(timed_frames(video, reading)):
                if number == row:
                    yield frame
                    row = next(wanted, None)
                if row is None:
                    return
        except DataError as error:
            message = str(error).removeprefix(f"{video} ")
            reading.note(self._name(video), f"{message}; the frames before are used")

    def _segment_name(self, segment: Path) -> str:
        return self._name(segment) if segment != self.path else segment.name

    def _pose_file(self, segment: Path, name: str) -> Path:
        plain = segment / _POSES / name
        return plain if plain.is_file() else plain.with_name(f"{name}.npy")


def _video(drive: Drive) -> Path:
    assert drive.video is not None
    return drive.video


def _segments(path: Path) -> Iterator[Path]:
    """Yield folders that hold poses, `_DEPTH` levels down at most."""
    if not path.is_dir():
        return
    for depth in range(_DEPTH):
        for poses in path.glob("*/" * depth + _POSES):
            if any(poses.glob("frame_positions*")):
                yield poses.parent


def _by_number(segment: Path) -> tuple[str, int, str]:
    number = int(segment.name) if segment.name.isdecimal() else 0
    return str(segment.parent), number, segment.name


def _array(path: Path) -> Float64[np.ndarray, "..."]:
    try:
        # allow_pickle is off, so that a file cannot run code.
        return np.asarray(np.load(path, allow_pickle=False), np.float64)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; copy the segment again") from error
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); copy it again") from error


def _to_vehicle(turns: Float64[np.ndarray, "frame 4"]) -> Float64[np.ndarray, "frame 4"]:
    """Return quaternions x, y, z, w of (forward, left, up) for w, x, y, z of (forward, right, down).

    Both differ by half a turn around the forward axis, the quaternion i: (w + xi + yj + zk) i.
    """
    w, x, y, z = turns.T
    return np.stack([w, z, -y, -x], axis=-1)
