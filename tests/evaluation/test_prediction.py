"""Likeness to the truth, picture by picture and token by token, on cases worked out by hand."""

import numpy as np
import pytest

from worldgen.evaluation.measures import shifted
from worldgen.evaluation.prediction import changed_tokens, frame_quality, rollout_quality


def test_frame_quality_of_known_noise_is_its_known_psnr() -> None:
    truth = np.full((2, 3, 16, 16, 3), 100, np.uint8)
    frames = truth.copy()
    frames[1] += 10
    quality = frame_quality(frames, truth)
    assert quality.psnr[0] == pytest.approx([100.0] * 3)
    assert quality.psnr[1] == pytest.approx([20 * np.log10(255 / 10)] * 3, rel=1e-4)
    assert quality.ssim[0] == pytest.approx([1.0] * 3)


def test_rollout_quality_reports_the_gain_over_repeating_by_step() -> None:
    truth = np.random.default_rng(0).integers(0, 256, (4, 5, 16, 16, 3), dtype=np.uint8)
    near = truth.copy()
    near[..., 0] ^= 8
    far = truth.copy()
    far[..., 0] ^= 16
    qualities = {
        "generated": frame_quality(near, truth),
        "repeat_last_frame": frame_quality(far, truth),
        "tokenizer_reconstruction": frame_quality(truth, truth),
    }
    changed = np.ones((4, 5), bool)
    changed[:, 0] = False
    figures = rollout_quality(qualities, changed)
    assert figures["steps"] == [1, 2, 4]
    assert figures["gain_db"] == pytest.approx([20 * np.log10(2)] * 3, rel=1e-3)
    assert figures["gain_db_of_mean_error"] == pytest.approx([20 * np.log10(2)] * 3, rel=1e-3)
    assert figures["gain_db_on_changed_frames"][0] is None
    assert figures["gain_db_on_changed_frames"][1:] == pytest.approx([20 * np.log10(2)] * 2)
    assert figures["clips_better_than_repeating"] == [1.0] * 3


def test_a_scrolling_world_is_explained_by_the_best_shift_except_where_it_scrolls_in() -> None:
    random = np.random.default_rng(0)
    true = np.zeros((3, 5, 8, 8), int)
    for clip in true:
        clip[0] = random.integers(0, 50, (8, 8))
        for time in range(1, 5):
            clip[time] = clip[time - 1]
            moved = shifted(clip[time - 1][:6], 0, 1)
            # What scrolls in differs from everything that was there.
            clip[time][:6] = np.where(moved >= 0, moved, 50 * (time + 1))
    figures = changed_tokens(true[:, 2:], true, static_rows=2)
    assert figures["frames"] == 9
    assert figures["changed"]["generated"] == 1.0
    assert figures["changed"]["best_shift"] == 1.0
    assert figures["changed"]["copying"] == 0.0
    assert figures["scrolled_in"]["tokens"] == 3 * 3 * 6
    assert figures["scrolled_in"]["best_shift"] == 0.0
    assert figures["unchanged"]["copying"] == 1.0
    assert figures["all"]["tokens"] == 9 * 64
