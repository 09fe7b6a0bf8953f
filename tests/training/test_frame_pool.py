"""Which frames a training sees, and how often."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.recordings import write_recording
from worldgen.data.episodes import Dataset
from worldgen.errors import DataError
from worldgen.training.frame_pool import load_frames, rarity_weights


def test_all_frames_are_loaded_when_they_fit(tmp_path: Path) -> None:
    dataset = Dataset(write_recording(tmp_path))
    assert load_frames(dataset, "train", 100).shape == (24, 16, 16, 3)


def test_fewer_frames_are_spread_over_the_episodes(tmp_path: Path) -> None:
    dataset = Dataset(write_recording(tmp_path))
    frames = load_frames(dataset, "train", 8)
    assert len(frames) == 8
    # The episodes have colours of their own.
    assert len({tuple(frame.reshape(-1, 3).max(0)) for frame in frames}) == 2


def test_the_choice_of_frames_depends_on_the_seed_alone(tmp_path: Path) -> None:
    dataset = Dataset(write_recording(tmp_path))
    assert np.array_equal(load_frames(dataset, "train", 8, 1), load_frames(dataset, "train", 8, 1))


def test_a_split_without_episodes_is_refused(tmp_path: Path) -> None:
    dataset = Dataset(write_recording(tmp_path, episodes=0))
    with pytest.raises(DataError, match="no complete test episode"):
        load_frames(dataset, "test", 8)


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
