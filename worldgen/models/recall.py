"""Finding an earlier frame of a sequence that looks like the last one: a place seen again."""

from math import ceil

import numpy as np
from jaxtyping import Int64, Integer
from numpy.typing import NDArray

from worldgen.errors import ConfigError

__all__ = ["find_recalled", "frames_around", "recalled_of_episode"]

_FRAMES_AT_ONCE = 4096
"""Compared in one piece: what fits the caches of a processor."""


def find_recalled(
    history: Integer[np.ndarray, "frame cell"], *, after: int, least_share: float = 0.7
) -> Int64[np.ndarray, "3 cell"]:
    """Return the earlier frame that the last one is most like, between its two neighbours.

    The frame with the most cells equal to those of the last one; of several the latest. It shows
    what followed when this was seen before, and where one had come from.

    Args:
        history: Ids of all frames so far, the current one last; fastest as uint16.
        after: Only frames at least that many before the last one are looked at, at least 1.
        least_share: Of the cells that must be equal, in (0, 1].

    Returns:
        Ids of the frame before it, of the frame itself and of the frame after it, int64; where
        there is no frame before it, it stands there itself. -1 everywhere if no frame is like it.

    Raises:
        ConfigError: If the history is not of whole numbers `[frame, cell]` with at least one
            frame, or `after` or `least_share` is out of its range.
    """
    least = _least_equal(history, after, least_share)
    match = _match(history, after, least)
    found: NDArray[np.int64] = frames_around(history, np.array([match]))[0]
    return found


def recalled_of_episode(
    ids: Integer[np.ndarray, "frame cell"], *, after: int, least_share: float = 0.7
) -> Int64[np.ndarray, " frame"]:
    """Return for every frame the number of the one that `find_recalled` finds at its time, or -1.

    Args:
        ids: Of all frames of an episode.
        after: As of `find_recalled`.
        least_share: As of `find_recalled`.

    Raises:
        ConfigError: As of `find_recalled`.
    """
    least = _least_equal(ids, after, least_share)
    matches = [_match(ids[:stop], after, least) for stop in range(1, len(ids) + 1)]
    return np.array(matches, dtype=np.int64)


def frames_around(
    ids: Integer[np.ndarray, "frame cell"], matches: Integer[np.ndarray, " match"]
) -> Int64[np.ndarray, "match 3 cell"]:
    """Return the frame before each match, the match and the frame after it, int64.

    Args:
        ids: Of all frames of a sequence.
        matches: Numbers of frames; those below 0 get -1 everywhere. At the ends of the sequence the
            match stands for a neighbour that is not there.
    """
    near = (matches[:, None] + np.array([-1, 0, 1])).clip(0, len(ids) - 1)
    return np.where(matches[:, None, None] < 0, -1, ids[near].astype(np.int64))


def _match(history: NDArray[np.integer], after: int, least: int) -> int:
    """Return the number of the frame that the last one is most like, or -1."""
    last, candidates = history[-1], history[: max(0, len(history) - after)]
    # A product with ones counts the equal cells several times faster than a sum of booleans.
    ones = np.ones(history.shape[1], dtype=np.float32)
    best, match = least, -1
    for first in range(0, len(candidates), _FRAMES_AT_ONCE):
        equal = (candidates[first : first + _FRAMES_AT_ONCE] == last).astype(np.float32) @ ones
        latest = len(equal) - 1 - int(equal[::-1].argmax())
        if equal[latest] >= best:
            best, match = int(equal[latest]), first + latest
    return match


def _least_equal(history: NDArray[np.integer], after: int, least_share: float) -> int:
    """Return how many cells must be equal, once all arguments are checked."""
    if history.ndim != 2 or not history.size or not np.issubdtype(history.dtype, np.integer):
        raise ConfigError(
            f"a history must be whole numbers [frame, cell] of at least one frame, got "
            f"{history.dtype} of shape {list(history.shape)}"
        )
    if after < 1 or not 0.0 < least_share <= 1.0:
        raise ConfigError(
            f"frames can be recalled after at least 1 frame and with a share of equal cells in "
            f"(0, 1], got after={after} and least_share={least_share}"
        )
    # 0.7 of 10 cells are 7, though the product of the two numbers is not exactly 7.
    return ceil(round(least_share * int(history.shape[1]), 6))
