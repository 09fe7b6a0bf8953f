"""Write and read video files frame by frame with PyAV; lossless when asked."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from worldgen.checkpoint import write_atomically
from worldgen.errors import DataError

__all__ = [
    "VideoWriter",
    "iterate_timed_video",
    "iterate_video",
    "num_declared_frames",
    "read_video",
    "video_stream",
    "write_video",
]

_KEY_FRAME_DISTANCE = 30
_UNSURE_SECONDS = 0.5


class VideoWriter:
    """Encode frames as they come into one mp4 file (H.264, no B-frames, a key frame every 30).

    A context manager. The file is complete only after the block ends without an error; use
    `write_video` for a file that appears at once.

    Args:
        path: Destination; overwritten.
        frames_per_second: Rate written into the file.
        lossless: Keep every RGB value (libx264rgb). Otherwise yuv420p, which every browser plays
            and which needs even sides.
        scale: Each pixel becomes a square of this many pixels.

    Example:
        >>> with VideoWriter(Path("clip.mp4"), 20.0, scale=4) as video:
        ...     video.write(frame)
    """

    def __init__(
        self, path: Path, frames_per_second: float, *, lossless: bool = False, scale: int = 1
    ) -> None:
        self._container = av.open(str(path), "w", format="mp4")
        self._rate = Fraction(frames_per_second).limit_denominator(1001)
        self._lossless = lossless
        self._scale = scale
        self._stream: VideoStream | None = None

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append one frame.

        Args:
            frame: uint8 [height, width, 3]; every frame has the shape of the first.

        Raises:
            DataError: If the frame is not uint8 RGB or changes size.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            raise DataError(
                f"a video frame is uint8 [height, width, 3], got {frame.dtype} {frame.shape}"
            )
        large = frame.repeat(self._scale, axis=0).repeat(self._scale, axis=1)
        stream = self._stream or self._open_stream(large.shape[0], large.shape[1])
        if (stream.height, stream.width) != large.shape[:2]:
            raise DataError(
                f"video frames change size: first {(stream.height, stream.width)}, "
                f"now {large.shape[:2]}; write them to two files"
            )
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(large), format="rgb24")
        self._container.mux(stream.encode(picture))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None and error is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def _open_stream(self, height: int, width: int) -> VideoStream:
        codec, pixels = ("libx264rgb", "rgb24") if self._lossless else ("libx264", "yuv420p")
        if not self._lossless and (height % 2 or width % 2):
            raise DataError(
                f"a lossy video needs even sides, got {height}x{width}; use lossless=True or scale=2"
            )
        stream = cast("VideoStream", self._container.add_stream(codec, rate=self._rate))
        stream.height, stream.width, stream.pix_fmt = height, width, pixels
        stream.codec_context.gop_size = _KEY_FRAME_DISTANCE
        stream.codec_context.thread_count = 1
        quality = {"crf": "0", "preset": "ultrafast"} if self._lossless else {"crf": "16"}
        stream.options = {"bf": "0", **quality}
        self._stream = stream
        return stream


def write_video(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    frames_per_second: float,
    *,
    lossless: bool = False,
    scale: int = 1,
) -> None:
    """Write a whole mp4 file, which appears under its name only when complete.

    Args:
        path: Destination; its folder is made when missing.
        frames: uint8 [height, width, 3] each, or one array [time, height, width, 3]; consumed one
            at a time.
        frames_per_second: Rate written into the file.
        lossless: Keep every RGB value.
        scale: Each pixel becomes a square of this many pixels.

    Raises:
        DataError: If there is no frame, or one is not uint8 RGB of the first one's size.
    """

    def write(temporary: Path) -> None:
        count = 0
        with VideoWriter(temporary, frames_per_second, lossless=lossless, scale=scale) as video:
            for frame in frames:
                video.write(frame)
                count += 1
        if count == 0:
            raise DataError(f"no frames to write to {path}")

    write_atomically(path, write)


def read_video(path: Path) -> NDArray[np.uint8]:
    """Return all frames of a video, uint8 [time, height, width, 3].

    Raises:
        DataError: If the file is missing, damaged, ends early or holds no picture.
    """
    return np.stack(list(iterate_video(path)))


def iterate_video(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a video in order, uint8 [height, width, 3], never more than a few held.

    Raises:
        DataError: At once if the file is missing, no video, or without a frame; after the last
            frame that can be read if the rest is damaged or missing.
    """
    return (frame for _, frame in iterate_timed_video(path))


def iterate_timed_video(
    path: Path, start: float = 0.0
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yield the frames of a video in order, each with its time in seconds.

    Args:
        path: The file.
        start: Seconds. Decoding begins at the last key frame that is not later, so the first
            frames may be earlier.

    Raises:
        DataError: As `iterate_video` does; a file that ends early is noticed only when it is read
            from its beginning.
    """
    if not path.is_file():
        raise DataError(f"no video at {path}; check the path")
    packets, frames = 0, 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = video_stream(container, path)
            stream.codec_context.thread_count = 1
            if start > 0.0:
                container.seek(int(start / (stream.time_base or Fraction(1))), stream=stream)
            for packet in container.demux(stream):
                # The last, empty packet only draws out what the decoder still holds.
                packets += packet.size > 0
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise DataError(
                            f"{path} is damaged at frame {frames}; copy or record it again"
                        )
                    time = (
                        frames / float(stream.average_rate or 1)
                        if frame.time is None
                        else frame.time
                    )
                    yield time, np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                    frames += 1
            # Frames that an edit list hides are packets all the same, so packets are compared.
            declared = 0 if start > 0.0 else _declared_frames(container, stream)
    except (av.FFmpegError, IndexError) as error:
        raise DataError(
            f"{path} is damaged or not a video ({error}) after {frames} frames; record it again"
        ) from error
    if not frames:
        raise DataError(f"{path} holds no frames; record it again")
    if packets < declared:
        raise DataError(
            f"{path} ends early: it announces {declared} frames and holds {packets}; copy or "
            "record it again"
        )


def num_declared_frames(path: Path) -> int:
    """Return how many frames a video announces without decoding them, 0 where it does not tell.

    Raises:
        DataError: If the file is missing, damaged or not a video.
    """
    if not path.is_file():
        raise DataError(f"no video at {path}; check the path")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return _declared_frames(container, video_stream(container, path))
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path} is damaged or not a video ({error}); record it again") from error


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the first video in an open file.

    Raises:
        DataError: If it was encoded by something unknown here.
        IndexError: If there is none.
    """
    stream = container.streams.video[0]
    codec: object = stream.codec_context
    if codec is None:
        raise DataError(f"{path} is damaged, or in a codec unknown here; copy it again")
    return stream


def _declared_frames(container: InputContainer, stream: VideoStream) -> int:
    """Count the frames in the header; where only a duration stands there, leave half a second."""
    if stream.frames:
        return stream.frames
    alone = len(container.streams) == 1
    if not alone or container.duration is None or stream.average_rate is None:
        return 0
    seconds = container.duration / av.time_base - _UNSURE_SECONDS
    return max(0, int(seconds * stream.average_rate))
