"""Clips cut out of runs of frames, frames made smaller, and rare ones favoured."""

import numpy as np
import pytest
import torch

from worldgen.records import to_float
from worldgen.training.clip_pool import ClipPool, rarity_weights, resize


def numbered_pool(*lengths: int) -> ClipPool:
    """Frames whose one pixel is their place, in runs of the given lengths."""
    count = sum(lengths)
    is_last = np.zeros(count, dtype=bool)
    is_last[np.cumsum(lengths) - 1] = True
    return ClipPool(np.arange(count, dtype=np.uint8).repeat(3).reshape(count, 1, 1, 3), is_last)


def test_clips_never_reach_into_another_run() -> None:
    pool = numbered_pool(4, 2, 5)
    assert np.flatnonzero(pool.begins_clip(3)).tolist() == [0, 1, 6, 7, 8]
    assert pool.separate_clips(2).tolist() == [0, 2, 4, 6, 8]
    clips = pool.clips(np.array([1, 8]), 3)
    assert clips[..., 0].flatten(1).tolist() == [[1, 2, 3], [8, 9, 10]]


def test_shrunk_frames_are_means_of_what_they_cover() -> None:
    checks = np.indices((16, 16)).sum(0) % 2 * 200
    frames = torch.from_numpy(checks.astype(np.uint8))[None, None, :, :, None].expand(
        1, 2, 16, 16, 3
    )
    shrunk = resize(to_float(frames), (4, 4))
    assert shrunk.shape == (1, 2, 3, 4, 4)
    # Without antialiasing a checkerboard turns black or white.
    torch.testing.assert_close(
        shrunk, torch.full_like(shrunk, 100 / 127.5 - 1), atol=0.05, rtol=0.0
    )


def test_frames_with_rare_squares_weigh_more() -> None:
    frames = np.zeros((10, 8, 8, 3), dtype=np.uint8)
    frames[7, 4:, 4:] = 200
    weights = rarity_weights(frames, square=4, power=1.0)
    # Black squares occur 39 times, the bright one once.
    assert weights[0] == pytest.approx(1 / 39)
    assert weights[7] == pytest.approx((3 / 39 + 1) / 4)


def test_power_zero_weighs_all_frames_alike() -> None:
    frames = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    assert rarity_weights(frames, square=8, power=0.0).tolist() == [1.0, 1.0, 1.0]
