"""Frames in memory, in runs that clips are cut out of."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ClipPool", "rarity_weights", "resize"]


class ClipPool:
    """Frames one after the other, and where a clip may begin among them."""

    frames: UInt8[np.ndarray, "frame height width 3"]
    is_last: Bool[np.ndarray, " frame"]

    def __init__(
        self,
        frames: UInt8[np.ndarray, "frame height width 3"],
        is_last: Bool[np.ndarray, " frame"],
    ) -> None:
        """Take frames in.

        Args:
            frames: All of one size.
            is_last: Where what follows is another scene, or another episode; true at the end.
        """
        self.frames = frames
        self.is_last = is_last
        ends = np.flatnonzero(is_last)
        places = np.arange(len(frames))
        self._followers = ends[np.searchsorted(ends, places)] - places

    @classmethod
    def joined(cls, pools: Sequence["ClipPool"]) -> "ClipPool":
        """Return one pool of the frames of several, which are of one size."""
        frames = np.concatenate([pool.frames for pool in pools])
        return cls(frames, np.concatenate([pool.is_last for pool in pools]))

    def __len__(self) -> int:
        return len(self.frames)

    def begins_clip(self, clip_frames: int) -> Bool[np.ndarray, " frame"]:
        """Return of each frame whether a clip of so many frames can begin with it."""
        begins: Bool[np.ndarray, " frame"] = self._followers >= clip_frames - 1
        return begins

    def separate_clips(self, clip_frames: int) -> Int[np.ndarray, " clip"]:
        """Return the first frames of clips that share none, as many as there are."""
        starts: list[int] = []
        for place in np.flatnonzero(self.begins_clip(clip_frames)):
            if not starts or place >= starts[-1] + clip_frames:
                starts.append(int(place))
        return np.array(starts, dtype=np.int64)

    def clips(
        self, starts: Int[np.ndarray, " clip"], clip_frames: int
    ) -> UInt8[Tensor, "clip time height width 3"]:
        """Return the clips that begin with the given frames."""
        return torch.from_numpy(self.frames[starts[:, None] + np.arange(clip_frames)])


def resize(
    frames: Float[Tensor, "batch time 3 height width"], size: Sequence[int]
) -> Float[Tensor, "batch time 3 new_height new_width"]:
    """Return frames at another size, bilinear, and without aliasing where they shrink."""
    if frames.shape[-2:] == tuple(size):
        return frames
    flat = rearrange(frames, "b t rgb h w -> (b t) rgb h w")
    flat = F.interpolate(flat, tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return rearrange(flat, "(b t) rgb h w -> b t rgb h w", b=frames.shape[0])


def rarity_weights(
    frames: UInt8[np.ndarray, "frame height width 3"], square: int, power: float
) -> Float[np.ndarray, " frame"]:
    """Return a sampling weight for each frame: the mean of count**-power over its squares.

    `count` is how often exactly the same square of pixels occurs anywhere in `frames`, so frames
    with seldom seen content come up more often. A power of 0 gives equal weights.

    Args:
        frames: Height and width must divide into squares.
        square: Pixels on a side.
        power: 0 or more; 0.5 is a good start for pictures made of tiles.
    """
    if power == 0:
        return np.ones(len(frames))
    count, height, width, colours = frames.shape
    rows, columns = height // square, width // square
    shape = (count, rows, square, columns, square, colours)
    # Hash a square to 64 bits: a sum of its bytes times random odd numbers, modulo 2**64.
    random = np.random.default_rng(0)
    factors = random.integers(0, 2**63, (square, square, colours), dtype=np.uint64) * 2 + 1
    hashes = np.empty((count, rows, columns), dtype=np.uint64)
    for start in range(0, count, 4096):
        part = frames[start : start + 4096].reshape(-1, *shape[1:]).astype(np.uint64)
        hashes[start : start + 4096] = np.einsum("nrscdk,sdk->nrc", part, factors)
    _, place, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    weights = counts[place.reshape(hashes.shape)].astype(np.float64) ** -power
    frame_weights: Float[np.ndarray, " frame"] = weights.mean(axis=(1, 2))
    return frame_weights
