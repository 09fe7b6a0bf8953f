"""Where frames go as they are made: mp4, WebM, GIF or a folder of pictures, each fit to go on."""

import errno
import re
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from worldgen.checkpoint import check_new_folder, write_atomically
from worldgen.data.fragments import FragmentEncoder, GifFrames, Mp4Fragments, WebmClusters
from worldgen.errors import DataError

__all__ = ["FrameOutput", "Mark", "check_frame_output", "open_output"]

_SUFFIXES = (".mp4", ".webm", ".gif")
_PICTURE = re.compile(r"[0-9]{6,}\.png")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A place in an output from which it can go on."""

    frames: int
    """Frames before it."""
    size: int
    """Bytes before it in the file; 0 in a folder."""


class FrameOutput(ABC):
    """Frames on their way to disk; memory does not grow with their number.

    A context manager. Whatever ends the block, an error as well, what was written can be played;
    only `finish` makes it complete.

    Example:
        >>> with open_output(Path("long.mp4"), 20.0, scale=4) as output:
        ...     for frame in session.play(actions):
        ...         output.write(frame)
        ...     output.finish()
    """

    def __init__(self, path: Path, num_frames: int) -> None:
        self.path = path
        self.num_frames = num_frames
        """Frames written so far."""
        self._size: tuple[int, ...] | None = None

    def write(self, frame: UInt8[np.ndarray, "height width 3"]) -> None:
        """Append one frame; it reaches the disk with the next `settle` or by itself soon.

        Args:
            frame: uint8 [height, width, 3]; every frame has the shape of the first.

        Raises:
            DataError: If the frame is not uint8 RGB, has a size that the format cannot hold or
                that differs from the first one's, or there is no room on the disk.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            raise DataError(
                f"a video frame is uint8 [height, width, 3], got {frame.dtype} {frame.shape}"
            )
        if self._size is None:
            self._check_size(*frame.shape[:2])
            self._size = frame.shape[:2]
        if frame.shape[:2] != self._size:
            raise DataError(
                f"video frames change size: first {self._size}, now {frame.shape[:2]}; write them "
                "to two files"
            )
        self._append(frame)
        self.num_frames += 1

    @property
    @abstractmethod
    def mark(self) -> Mark:
        """Behind the last frame that is on disk: where it can go on from."""

    @abstractmethod
    def settle(self) -> Mark:
        """Bring every frame written so far to disk; return the mark behind them.

        Raises:
            DataError: If there is no room on the disk; what fitted can be played.
        """

    @abstractmethod
    def finish(self) -> None:
        """Bring everything to disk and complete it; nothing can be written afterwards.

        Raises:
            DataError: If there is no room on the disk, or there is no frame.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._close()
        else:
            # The first error is the one to tell.
            with suppress(DataError, OSError):
                self._close()

    @abstractmethod
    def _check_size(self, height: int, width: int) -> None: ...

    @abstractmethod
    def _append(self, frame: UInt8[np.ndarray, "height width 3"]) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def _no_room(self, error: OSError, frames: int) -> DataError:
        reason = "the disk is full" if error.errno in _FULL else (error.strerror or str(error))
        return DataError(
            f"cannot write {self.path} on after {frames} frames: {reason}; these frames can be "
            "played"
        )


class _FragmentedFile(FrameOutput):
    """A file of pieces, written a second at a time under its own name."""

    def __init__(self, path: Path, encoder: FragmentEncoder, mark: Mark | None) -> None:
        super().__init__(path, 0 if mark is None else mark.frames)
        self._encoder = encoder
        self._waiting: list[UInt8[np.ndarray, "height width 3"]] = []
        self._settled = self.num_frames
        if mark is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w+b")
            return
        try:
            self._file = path.open("r+b")
        except FileNotFoundError:
            raise DataError(f"{path} is not there to go on with; begin again") from None
        length = self._file.seek(0, 2)
        if length < mark.size:
            self._file.close()
            raise DataError(
                f"{path} has {length:,} bytes, of the {mark.size:,} that were written into it; it "
                "was cut or replaced, begin again"
            )
        self._file.truncate(self._file.seek(mark.size))

    @property
    def mark(self) -> Mark:
        return Mark(frames=self._settled, size=self._file.seek(0, 2))

    def settle(self) -> Mark:
        if self._waiting:
            frames, self._waiting = self._waiting, []
            header, piece = self._encoder.encode(frames, self._settled)
            self._check_header(header)
            end = self._file.seek(0, 2)
            try:
                self._file.write(piece if self._settled else header + piece)
                self._file.flush()
            except OSError as error:
                self._cut(end)
                raise self._no_room(error, self._settled) from error
            self._settled += len(frames)
        return self.mark

    def finish(self) -> None:
        self._close()
        if not self.num_frames:
            raise DataError(f"no frames to write to {self.path}")
        # All frames are there and can be played, even if there is no room for a better copy.
        with suppress(OSError, av.FFmpegError):
            self._encoder.seal(self.path)

    def _check_size(self, height: int, width: int) -> None:
        self._encoder.check_size(height, width)

    def _append(self, frame: UInt8[np.ndarray, "height width 3"]) -> None:
        self._waiting.append(frame)
        if len(self._waiting) == self._encoder.num_frames:
            self.settle()

    def _check_header(self, header: bytes) -> None:
        self._file.seek(0)
        if self._settled and self._file.read(len(header)) != header:
            raise DataError(
                f"{self.path} was written with other settings, or by another version of the "
                "encoder, and cannot go on; begin again"
            )

    def _cut(self, end: int) -> None:
        # What Python still holds back would be written by the next call.
        with suppress(OSError):
            self._file.close()
        with self.path.open("r+b") as file:
            file.truncate(end)
        self._file = self.path.open("r+b")

    def _close(self) -> None:
        if self._file.closed:
            return
        try:
            self.settle()
            if self._settled:
                self._file.write(self._encoder.ending)
                self._file.flush()
        finally:
            self._file.close()


class _PictureFolder(FrameOutput):
    """A folder of PNG files, named by the number of their frame from 000000.png on."""

    def __init__(self, path: Path, scale: int, mark: Mark | None) -> None:
        super().__init__(path, 0 if mark is None else mark.frames)
        self._scale = scale
        if mark is None:
            check_new_folder(path)
            path.mkdir(parents=True, exist_ok=True)
            return
        if mark.frames and not self._place(mark.frames - 1).is_file():
            raise DataError(
                f"{path} has no {self._place(mark.frames - 1).name}, which was written into it; "
                "begin again"
            )
        for picture in path.iterdir():
            if _PICTURE.fullmatch(picture.name) and int(picture.stem) >= mark.frames:
                picture.unlink()

    @property
    def mark(self) -> Mark:
        return Mark(frames=self.num_frames, size=0)

    def settle(self) -> Mark:
        return self.mark

    def finish(self) -> None:
        if not self.num_frames:
            raise DataError(f"no frames to write to {self.path}")

    def _check_size(self, height: int, width: int) -> None:
        pass

    def _append(self, frame: UInt8[np.ndarray, "height width 3"]) -> None:
        large = frame.repeat(self._scale, axis=0).repeat(self._scale, axis=1)
        picture = Image.fromarray(large)
        try:
            write_atomically(self._place(self.num_frames), picture.save)
        except OSError as error:
            raise self._no_room(error, self.num_frames) from error

    def _close(self) -> None:
        pass

    def _place(self, number: int) -> Path:
        return self.path / f"{number:06d}.png"


def open_output(
    path: Path,
    frames_per_second: float,
    *,
    scale: int = 1,
    lossless: bool = False,
    go_on: Mark | None = None,
) -> FrameOutput:
    """Return a place for frames, of the kind that its name says.

    Args:
        path: `*.mp4`, `*.webm` or `*.gif`, overwritten; without an ending a folder for PNG files,
            which must be missing or empty.
        frames_per_second: Rate written into the file.
        scale: Each pixel becomes a square of this many pixels.
        lossless: Keep every RGB value in mp4 and WebM; PNG always does, GIF has 256 colours in each
            frame.
        go_on: As `FrameOutput.settle` returned it: what is behind it is cut off, what is before it
            stays as it is.

    Raises:
        DataError: If the name has another ending, a folder holds something, or the file to go on
            with is missing or shorter than the mark.
    """
    check_frame_output(path)
    match path.suffix.lower():
        case ".mp4":
            mp4 = Mp4Fragments(frames_per_second, scale=scale, lossless=lossless)
            return _FragmentedFile(path, mp4, go_on)
        case ".webm":
            webm = WebmClusters(frames_per_second, scale=scale, lossless=lossless)
            return _FragmentedFile(path, webm, go_on)
        case ".gif":
            return _FragmentedFile(path, GifFrames(frames_per_second, scale=scale), go_on)
        case _:
            return _PictureFolder(path, scale, go_on)


def check_frame_output(path: Path) -> None:
    """Refuse a name whose ending says no kind of output.

    Raises:
        DataError: If it does.
    """
    if path.suffix and path.suffix.lower() not in _SUFFIXES and not path.is_dir():
        raise DataError(
            f"{path} ends in {path.suffix!r}; frames go to {', '.join(_SUFFIXES)}, or into a folder "
            "of PNG files where the name has no ending"
        )
