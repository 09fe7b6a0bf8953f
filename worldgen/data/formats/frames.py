"""Frames of other people's videos: facts without decoding, and decoding with a clock running."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from worldgen.data.formats.base import Reading
from worldgen.data.media import centred_box
from worldgen.data.video import iterate_timed_video, num_declared_frames, video_stream
from worldgen.errors import DataError

__all__ = ["VideoFacts", "resize", "timed_frames", "video_facts"]


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a video says without decoding it.

    Attributes:
        frames: Pictures stored in the file.
        missing: Pictures that the file announces beyond those.
        frames_per_second: Mean rate, 0 where it is not told.
        height: Pixels.
        width: Pixels.
        codec: Short name, such as "h264".
    """

    frames: int
    missing: int
    frames_per_second: float
    height: int
    width: int
    codec: str


def video_facts(path: Path, *, count: bool = True) -> VideoFacts:
    """Return what can be said about a video without decoding it.

    Args:
        path: The file.
        count: Read the file through to count its pictures; otherwise believe its header.

    Raises:
        DataError: If the file is missing, damaged or not a video.
    """
    declared = num_declared_frames(path)
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = video_stream(container, path)
            frames = declared
            if count:
                frames = sum(packet.size > 0 for packet in container.demux(stream))
            return VideoFacts(
                frames=frames,
                missing=max(0, declared - frames),
                frames_per_second=round(float(stream.average_rate or 0), 3),
                height=stream.codec_context.height,
                width=stream.codec_context.width,
                codec=stream.codec_context.name,
            )
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path} is damaged or not a video ({error}); copy it again") from error


def timed_frames(
    path: Path, reading: Reading, start: float = 0.0
) -> Iterator[tuple[float, UInt8[np.ndarray, "height width 3"]]]:
    """Yield times in seconds and frames as `iterate_timed_video` does, with the clock running."""
    frames = iterate_timed_video(path, start)
    while True:
        begun = time.perf_counter()
        try:
            timed = next(frames)
        except StopIteration:
            return
        finally:
            reading.decode_seconds += time.perf_counter() - begun
        reading.frames += 1
        yield timed


def resize(
    frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], reading: Reading
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a frame of `size`, with the clock running.

    Bilinear with antialiasing: when shrinking, each pixel is the weighted mean of the area around
    the one it stands for, with weights that fall off linearly. The whole picture is kept, so its
    shape may change, as it does for the models that were trained on such recordings; with the
    option `crop` the largest centred part of the right shape is.

    Args:
        frame: uint8 RGB.
        size: Height and width, in pixels.
        reading: Holds the clock and the options.
    """
    if frame.shape[:2] == size:
        return frame
    begun = time.perf_counter()
    box = centred_box(frame.shape[:2], size) if reading.options.crop else None
    resized = np.asarray(
        Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    )
    reading.resize_seconds += time.perf_counter() - begun
    return resized
