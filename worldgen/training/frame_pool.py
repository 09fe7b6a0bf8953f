"""Frames of a recording in memory, spread over all its episodes, for training frame by frame."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from worldgen.data.episodes import Dataset
from worldgen.errors import DataError

__all__ = ["FramePoolConfig", "load_frames", "rarity_weights"]

_LARGEST_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class FramePoolConfig:
    """Which frames to train and to validate on."""

    folder: str
    """A recording, see docs/data-format.md."""
    training_frames: int
    """Most frames kept in memory; 64 x 64 frames take 12 kB each."""
    evaluation_frames: int
    """Most frames of validation, and of test, measured at the end."""
    rarity_power: float = 0.0
    """0 draws frames evenly; higher values favour frames with rare squares, see rarity_weights."""
    rarity_square: int = 8
    """Pixels on a side of the squares that are counted."""


def load_frames(
    dataset: Dataset, split: str, max_frames: int, seed: int = 0
) -> UInt8[np.ndarray, "frame height width 3"]:
    """Return frames spread over the episodes of a split, at most `max_frames`.

    Every k-th frame of an episode is taken, from a random one of its first k on. Where k would
    exceed 4, a random choice of episodes is read instead of all: decoding video is what takes
    time, and frames further apart differ hardly more.

    Args:
        dataset: A recording.
        split: `"train"`, `"validation"` or `"test"`.
        max_frames: Upper bound; all frames when there are fewer.
        seed: Of the random choices.

    Raises:
        DataError: If the split has no complete episode.
    """
    episodes = dataset.episodes(split)
    if not episodes:
        raise DataError(f"no complete {split} episode in the recording; record some, then retry")
    random = np.random.default_rng(seed)
    total = sum(info.length for info in episodes)
    stride = min(_LARGEST_STRIDE, max(1, -(-total // max_frames)))
    frames: list[UInt8[np.ndarray, "frame height width 3"]] = []
    missing = max_frames
    for place in random.permutation(len(episodes)):
        info = episodes[place]
        start = int(random.integers(min(stride, info.length)))
        # A copy, so that the frames left out are freed with the rest of the episode.
        frames.append(dataset.load(info).frames[start::stride][:missing].copy())
        missing -= len(frames[-1])
        if missing == 0:
            break
    return np.concatenate(frames)


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
