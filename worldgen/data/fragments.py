"""Pieces of video files that stand one behind the other: mp4 fragments, WebM clusters, GIF frames.

Every piece is encoded by itself and begins with a key frame, and a file is a header and pieces. So a
file can be played while it grows, whatever is cut off its end takes only the last piece along, and
going on with a file needs nothing but its length.
"""

import io
import struct
from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import GifImagePlugin, Image

from worldgen.checkpoint import write_atomically
from worldgen.errors import DataError

__all__ = ["FragmentEncoder", "GifFrames", "Mp4Fragments", "WebmClusters"]

_KEY_FRAME_DISTANCE = 30
_CLUSTER = bytes.fromhex("1f43b675")
_GIF_COLOURS = 256

Frames = list[UInt8[np.ndarray, "height width 3"]]


class FragmentEncoder(ABC):
    """Turns frames into the header of a file and a piece to stand behind it.

    Args:
        frames_per_second: Rate written into the file.
        scale: Each pixel becomes a square of this many pixels.
    """

    ending = b""
    """What closes a file; taken off again where the file goes on."""

    def __init__(self, frames_per_second: float, *, scale: int) -> None:
        self.rate = Fraction(frames_per_second).limit_denominator(1001)
        self.scale = scale

    @property
    def num_frames(self) -> int:
        """Frames of a piece: a second of them, and no more than key frames may be apart."""
        return min(_KEY_FRAME_DISTANCE, max(1, round(self.rate)))

    @abstractmethod
    def check_size(self, height: int, width: int) -> None:
        """Refuse frames of a size that the format cannot hold.

        Args:
            height: In pixels, before scaling.
            width: In pixels, before scaling.

        Raises:
            DataError: If it cannot.
        """

    @abstractmethod
    def encode(self, frames: Frames, first: int) -> tuple[bytes, bytes]:
        """Return the header of the file, the same for every piece, and a piece.

        Args:
            frames: uint8 RGB of one size, at least one.
            first: Number of the first one in the file.
        """

    @abstractmethod
    def seal(self, path: Path) -> None:
        """Give a complete file, in place, what players need to know its length and to jump."""


class Mp4Fragments(FragmentEncoder):
    """H.264 without B-frames in fragments of mp4.

    Args:
        frames_per_second: Rate written into the file.
        scale: Each pixel becomes a square of this many pixels.
        lossless: Keep every RGB value (libx264rgb). Otherwise yuv420p, which every browser plays
            and which needs even sides.
    """

    def __init__(self, frames_per_second: float, *, scale: int, lossless: bool) -> None:
        super().__init__(frames_per_second, scale=scale)
        self.lossless = lossless

    def check_size(self, height: int, width: int) -> None:
        """See `FragmentEncoder.check_size`."""
        if not self.lossless:
            _check_even(height, width, self.scale)

    def encode(self, frames: Frames, first: int) -> tuple[bytes, bytes]:
        """See `FragmentEncoder.encode`."""
        codec, pixels = ("libx264rgb", "rgb24") if self.lossless else ("libx264", "yuv420p")
        quality = {"crf": "0", "preset": "ultrafast"} if self.lossless else {"crf": "16"}
        container = {
            "movflags": "empty_moov+default_base_moof+frag_custom+skip_trailer",
            # Numbers of fragments must grow, and need not be consecutive.
            "fragment_index": str(first + 1),
        }
        file = _encode(
            [_enlarged(frame, self.scale) for frame in frames],
            rate=self.rate,
            container="mp4",
            container_options=container,
            codec=codec,
            pixels=pixels,
            codec_options={"bf": "0", **quality},
        )
        cut = file.index(b"moof") - 4
        return file[:cut], _begin_at(file[:cut], file[cut:], first / self.rate)

    def seal(self, path: Path) -> None:
        """See `FragmentEncoder.seal`."""
        _copy_packets(path, "mp4")


class WebmClusters(FragmentEncoder):
    """VP9 in clusters of WebM.

    Args:
        frames_per_second: Rate written into the file; times are whole milliseconds.
        scale: Each pixel becomes a square of this many pixels.
        lossless: Keep every RGB value. Otherwise yuv420p, which needs even sides.
    """

    def __init__(self, frames_per_second: float, *, scale: int, lossless: bool) -> None:
        super().__init__(frames_per_second, scale=scale)
        self.lossless = lossless

    def check_size(self, height: int, width: int) -> None:
        """See `FragmentEncoder.check_size`."""
        if not self.lossless:
            _check_even(height, width, self.scale)

    def encode(self, frames: Frames, first: int) -> tuple[bytes, bytes]:
        """See `FragmentEncoder.encode`."""
        quality = {"lossless": "1"} if self.lossless else {"crf": "20", "b": "0"}
        file = _encode(
            [_enlarged(frame, self.scale) for frame in frames],
            rate=self.rate,
            container="webm",
            # Without "bitexact" every header has random numbers of its own.
            container_options={"live": "1", "fflags": "bitexact"},
            codec="libvpx-vp9",
            pixels="gbrp" if self.lossless else "yuv420p",
            codec_options={"deadline": "good", "cpu-used": "5", **quality},
            first=first,
        )
        cut = file.index(_CLUSTER)
        return file[:cut], file[cut:]

    def seal(self, path: Path) -> None:
        """See `FragmentEncoder.seal`."""
        _copy_packets(path, "webm")


class GifFrames(FragmentEncoder):
    """Frames of an animated GIF that goes round for ever, each with 256 colours of its own."""

    ending = b";"

    def check_size(self, height: int, width: int) -> None:
        """See `FragmentEncoder.check_size`."""
        side = self.scale * max(height, width)
        if side > 0xFFFF:
            raise DataError(f"the sides of a GIF have at most 65,535 pixels, got {side}")

    def encode(self, frames: Frames, first: int) -> tuple[bytes, bytes]:
        """See `FragmentEncoder.encode`."""
        height, width = (self.scale * side for side in frames[0].shape[:2])
        screen = struct.pack("<HHBBB", width, height, 0x70, 0, 0)
        for_ever = b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
        pieces = [self._encode(frame, first + place) for place, frame in enumerate(frames)]
        return b"GIF89a" + screen + for_ever, b"".join(pieces)

    def seal(self, path: Path) -> None:
        """See `FragmentEncoder.seal`; a GIF has nothing of the kind."""

    def _encode(self, frame: UInt8[np.ndarray, "height width 3"], number: int) -> bytes:
        # Colours are chosen before the pixels are enlarged, which brings no new ones.
        reduced = Image.fromarray(frame).quantize(_GIF_COLOURS, Image.Quantize.MEDIANCUT)
        picture = Image.fromarray(_enlarged(np.asarray(reduced), self.scale))
        picture.putpalette(reduced.getpalette() or [])
        # GIF counts hundredths of a second; rounding the ends of frames adds nothing up.
        ticks = round(100 * (number + 1) / self.rate) - round(100 * number / self.rate)
        return b"".join(
            GifImagePlugin.getdata(picture, duration=10 * ticks, include_color_table=True)
        )


def _encode(
    frames: Frames,
    *,
    rate: Fraction,
    container: str,
    container_options: dict[str, str],
    codec: str,
    pixels: str,
    codec_options: dict[str, object],
    first: int = 0,
) -> bytes:
    """Return a whole file of frames, the first one at the time of frame `first`."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=container_options) as file:
        stream = cast("VideoStream", file.add_stream(codec, rate=rate))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = _KEY_FRAME_DISTANCE
        stream.codec_context.thread_count = 1
        stream.options = codec_options
        for number, frame in enumerate(frames, start=first):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, 1 / rate
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def _begin_at(header: bytes, fragment: bytes, seconds: Fraction) -> bytes:
    """Return an mp4 fragment with the time at which it begins, which is 0 as it is encoded.

    Source: ISO/IEC 14496-12, boxes `mdhd` (8.4.2) and `tfdt` (8.8.12).
    """
    # Both boxes begin with version and flags, mdhd then with two times of 4 bytes in version 0.
    (ticks,) = struct.unpack_from(">I", header, header.index(b"mdhd") + 16)
    place = fragment.index(b"tfdt") + 4
    assert fragment[place] == 1, "times of 8 bytes"
    begin = struct.pack(">Q", round(seconds * ticks))
    return fragment[: place + 4] + begin + fragment[place + 12 :]


def _copy_packets(path: Path, container: str) -> None:
    """Write a file again with an index, without encoding anything."""

    def write(temporary: Path) -> None:
        with (
            av.open(str(path)) as source,
            av.open(str(temporary), "w", format=container) as copy,
        ):
            stream = copy.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    copy.mux(packet)

    write_atomically(path, write)


def _enlarged(pixels: UInt8[np.ndarray, "h w *c"], scale: int) -> UInt8[np.ndarray, "H W *c"]:
    return np.ascontiguousarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))


def _check_even(height: int, width: int, scale: int) -> None:
    height, width = height * scale, width * scale
    if height % 2 or width % 2:
        raise DataError(
            f"a lossy video needs even sides, got {height}x{width}; use lossless=True or scale=2"
        )
