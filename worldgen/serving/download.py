"""The last minute as an mp4 file: the dream, with reality on its right where it is at hand."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8

from worldgen.data.video import write_video

__all__ = ["encode_video"]

_MIN_HEIGHT: Final = 384
_GAP_PIXELS: Final = 2

Frame = UInt8[np.ndarray, "height width 3"]


def encode_video(
    dream: Sequence[Frame], reality: Sequence[Frame] | None, frames_per_second: float
) -> bytes:
    """Return an mp4 file that every browser plays, pixels enlarged to squares.

    Args:
        dream: Frames of one size.
        reality: As many frames; None, or frames of another size, leaves the dream alone.
        frames_per_second: The world's own rate.
    """
    height = dream[0].shape[0]
    scale = max(2, 2 * round(_MIN_HEIGHT / height / 2))
    frames = dream
    if reality is not None and reality[0].shape == dream[0].shape:
        gap = np.zeros((height, _GAP_PIXELS, 3), np.uint8)
        frames = [
            np.concatenate((left, gap, right), axis=1)
            for left, right in zip(dream, reality, strict=True)
        ]
    with tempfile.TemporaryDirectory(prefix="worldgen-") as folder:
        path = Path(folder) / "last_minute.mp4"
        write_video(path, frames, frames_per_second, scale=scale)
        return path.read_bytes()
