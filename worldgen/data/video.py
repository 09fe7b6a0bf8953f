"""Write and read video files frame by frame; lossless when asked."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from worldgen.checkpoint import write_atomically
from worldgen.data.outputs import open_output
from worldgen.errors import DataError

__all__ = [
    "at_rate",
    "iterate_timed_video",
    "iterate_video",
    "num_declared_frames",
    "read_video",
    "video_stream",
    "write_video",
]

_UNSURE_SECONDS = 0.5


def write_video(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    frames_per_second: float,
    *,
    lossless: bool = False,
    scale: int = 1,
) -> None:
    """Write a whole video, which appears under its name only when complete; see `open_output`.

    Args:
        path: Destination, `*.mp4`, `*.webm` or `*.gif`; its folder is made when missing.
        frames: uint8 [height, width, 3] each, or one array [time, height, width, 3]; consumed one
            at a time.
        frames_per_second: Rate written into the file.
        lossless: Keep every RGB value.
        scale: Each pixel becomes a square of this many pixels.

    Raises:
        DataError: If there is no frame, or one is not uint8 RGB of the first one's size.
    """

    def write(temporary: Path) -> None:
        with open_output(temporary, frames_per_second, lossless=lossless, scale=scale) as output:
            for frame in frames:
                output.write(frame)
            if not output.num_frames:
                raise DataError(f"no frames to write to {path}")
            output.finish()

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


def at_rate(
    timed: Iterable[tuple[float, NDArray[np.uint8]]], frames_per_second: float
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the frames of a video at another rate, each with its number in the video.

    Frame `i` is the one nearest in time to `i / frames_per_second` after the first one, the
    earlier of two that are as near; the last one is not later than the video's last.

    Args:
        timed: Frames with their times in seconds, as `iterate_timed_video` yields them.
        frames_per_second: Wanted.
    """
    first: float | None = None
    made = 0
    held: tuple[float, int, NDArray[np.uint8]] | None = None
    for number, (seconds, frame) in enumerate(timed):
        first = seconds if first is None else first
        time = seconds - first
        if held is not None:
            while made / frames_per_second <= (held[0] + time) / 2:
                yield held[1], held[2]
                made += 1
        held = time, number, frame
    # Times of files are whole numbers of a clock: as near as a thousandth of a frame is there.
    while held is not None and made <= held[0] * frames_per_second + 1e-3:
        yield held[1], held[2]
        made += 1


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
        DataError: If there is none, or it was encoded by something unknown here.
    """
    if not container.streams.video:
        raise DataError(f"{path} has no pictures in it; give a video")
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
