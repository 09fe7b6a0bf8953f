"""Binary messages of the socket: steps going up, pictures coming down.

Numbers are little-endian. A step goes up as a header of 16 bytes and a float32 per action group:

    kind uint8 = 0 | settings uint8 | 6 bytes of zero | stamp float64 | setting float32 each

Where the actions of the next steps are known, their settings may follow. Without any the model itself
chooses the action, if it can.

A picture comes down as a header of 32 bytes and its pixels:

    kind uint8 | encoding uint8 | branch uint16 | frame index uint32 | stamp float64
    | model milliseconds float32 | PSNR float32 (NaN: unknown) | height uint16 | width uint16
    | digest uint32 of the frame's visual tokens (0: not a frame of the dream)

`stamp` is the page's own clock and comes back unchanged, so latency needs no second clock. What is
in no hurry is JSON: see `worldgen.serving.commands`.
"""

import dataclasses
import enum
import io
import math
import struct
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

__all__ = [
    "MAX_STEP_BYTES",
    "Encoding",
    "Kind",
    "Picture",
    "ProtocolError",
    "Step",
    "encode_picture",
    "pack_differences",
    "pack_file",
    "pack_picture",
    "pack_step",
    "unpack_picture",
    "unpack_step",
]

MAX_STEP_BYTES: Final = 16 + 4 * 64
"""A step has at most 64 settings; a longer binary message is garbage."""
RAW_PIXELS: Final = 128 * 128
"""Up to this size raw pixels reach the canvas sooner than any encoding (see docs/serving.md)."""

_STEP: Final = struct.Struct("<BB6xd")
_PICTURE: Final = struct.Struct("<BBHIdffHHI")


class ProtocolError(Exception):
    """A message that the page would never send: the socket is closed and the log gets a line."""


class Kind(enum.IntEnum):
    """First byte of a binary message."""

    STEP = 0
    DREAM = 1
    REALITY = 2
    DREAM_PREVIEW = 3
    REALITY_PREVIEW = 4
    DIFFERENCES = 5
    VIDEO = 6


class Encoding(enum.IntEnum):
    """How the pixels of a picture are written."""

    RGB = 0
    WEBP = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One step: `stamp` of the page in milliseconds and the setting of every action group.

    More settings are those of the steps after it; none leave the action to the model.
    """

    stamp: float
    values: Float32[np.ndarray, " settings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture on its way to the page, with what the page shows beside it."""

    kind: Kind
    frame: UInt8[np.ndarray, "height width 3"]
    frame_index: int
    branch: int = 0
    stamp: float = 0.0
    model_milliseconds: float = 0.0
    difference: float = math.nan
    digest: int = 0


def pack_step(step: Step) -> bytes:
    """Return the bytes of a step; the page does the same in JavaScript."""
    values = np.asarray(step.values, "<f4")
    return _STEP.pack(Kind.STEP, values.size, step.stamp) + values.tobytes()


def unpack_step(message: bytes) -> Step:
    """Return the step that a binary message holds.

    Raises:
        ProtocolError: If its length, its kind or one of its numbers cannot come from the page.
    """
    if not _STEP.size <= len(message) <= MAX_STEP_BYTES:
        raise ProtocolError(f"a binary message of {len(message)} bytes, which is no step")
    kind, groups, stamp = _STEP.unpack_from(message)
    if kind != Kind.STEP or len(message) != _STEP.size + 4 * groups:
        raise ProtocolError(f"a binary message of kind {kind} and {len(message)} bytes")
    values = np.frombuffer(message, "<f4", offset=_STEP.size)
    if not (math.isfinite(stamp) and np.isfinite(values).all()):
        raise ProtocolError("a step with numbers that are not finite")
    return Step(stamp=stamp, values=values)


def encode_picture(frame: UInt8[np.ndarray, "height width 3"]) -> tuple[Encoding, bytes]:
    """Return the pixels in the encoding that is soonest on the canvas; both are lossless."""
    height, width, _ = frame.shape
    if height * width <= RAW_PIXELS:
        return Encoding.RGB, frame.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "WEBP", lossless=True, method=0, quality=0)
    return Encoding.WEBP, buffer.getvalue()


def pack_picture(picture: Picture) -> bytes:
    """Return the bytes of a picture: header, then pixels."""
    encoding, pixels = encode_picture(picture.frame)
    height, width, _ = picture.frame.shape
    header = _PICTURE.pack(
        *(picture.kind, encoding, picture.branch, picture.frame_index, picture.stamp),
        *(picture.model_milliseconds, picture.difference, height, width, picture.digest),
    )
    return header + pixels


def unpack_picture(message: bytes) -> Picture:
    """Return the picture of a binary message, as clients in Python read it.

    Raises:
        ProtocolError: If the message is no picture.
    """
    if len(message) < _PICTURE.size:
        raise ProtocolError(f"{len(message)} bytes are no picture")
    header = _PICTURE.unpack_from(message)
    kind, encoding, branch, frame_index, stamp, milliseconds, difference = header[:7]
    height, width, digest = header[7:]
    pixels = message[_PICTURE.size :]
    if encoding == Encoding.WEBP:
        frame = np.asarray(Image.open(io.BytesIO(pixels)).convert("RGB"))
    elif encoding == Encoding.RGB and len(pixels) == height * width * 3:
        frame = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
    else:
        raise ProtocolError(f"a picture in encoding {encoding} with {len(pixels)} bytes of pixels")
    return Picture(
        kind=Kind(kind),
        frame=frame,
        frame_index=frame_index,
        branch=branch,
        stamp=stamp,
        model_milliseconds=milliseconds,
        difference=difference,
        digest=digest,
    )


def pack_differences(first: int, values: Float32[np.ndarray, " frames"]) -> bytes:
    """Return PSNR values of consecutive frames from index `first`: header of 8 bytes, float32."""
    return struct.pack("<B3xI", Kind.DIFFERENCES, first) + np.asarray(values, "<f4").tobytes()


def pack_file(content: bytes) -> bytes:
    """Return a video for download: header of 4 bytes, then the file."""
    return struct.pack("<B3x", Kind.VIDEO) + content
