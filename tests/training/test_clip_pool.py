"""Which frames and clips a training sees, and how often."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.recordings import write_recording
from worldgen.errors import ConfigError, DataError
from worldgen.records import to_float
from worldgen.training.clip_pool import ClipPool, ClipPoolConfig, Loader, rarity_weights, resize


def config(*folders: Path, **changes: object) -> ClipPoolConfig:
    settings: dict[str, object] = {"training_frames": 100, "evaluation_frames": 100}
    names = tuple(str(folder) for folder in folders)
    return ClipPoolConfig(folders=names, **(settings | changes))  # type: ignore[arg-type]


def loader(clip_frames: int = 1, size: int = 16, seed: int = 0) -> Loader:
    return Loader((size, size), clip_frames, seed)


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


def test_all_frames_are_loaded_when_they_fit(tmp_path: Path) -> None:
    pool, _ = loader().training_pool(config(write_recording(tmp_path)))
    assert pool.frames.shape == (24, 16, 16, 3)


def test_fewer_frames_are_spread_over_the_episodes(tmp_path: Path) -> None:
    pool, _ = loader().training_pool(config(write_recording(tmp_path), training_frames=8))
    assert len(pool) == 8
    # The episodes have colours of their own.
    assert len({tuple(frame.reshape(-1, 3).max(0)) for frame in pool.frames}) == 2


def test_the_choice_of_frames_depends_on_the_seed_alone(tmp_path: Path) -> None:
    chosen = config(write_recording(tmp_path), training_frames=8)
    first, _ = loader(seed=1).training_pool(chosen)
    second, _ = loader(seed=1).training_pool(chosen)
    assert np.array_equal(first.frames, second.frames)


def test_clips_are_of_one_episode_and_as_recorded(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, cut_after=6)
    pool, clip_weights = loader(clip_frames=3).training_pool(config(folder))
    weights = clip_weights(3)
    assert np.array_equal(weights > 0, pool.begins_clip(3))
    # Two episodes of 12 frames, cut after the seventh frame: 5 + 3 clips in each.
    assert np.count_nonzero(weights) == 16
    for clip in pool.clips(np.flatnonzero(weights), 3).numpy():
        assert len({tuple(frame.reshape(-1, 3).max(0)) for frame in clip}) == 1


def test_long_recordings_give_runs_of_clips(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, episodes=4, length=64)
    pool, _ = loader(clip_frames=2).training_pool(config(folder, training_frames=64))
    assert len(pool) == 64
    # Every fourth run of eight frames, so eight runs, in each of which seven frames begin a clip.
    assert np.count_nonzero(pool.begins_clip(2)) == 8 * 7


def test_folders_are_drawn_from_in_their_shares_whatever_their_length(tmp_path: Path) -> None:
    short = write_recording(tmp_path / "short", episodes=1)
    long = write_recording(tmp_path / "long", episodes=3)
    for shares, expected in (((), 0.5), ((3.0, 1.0), 0.75)):
        _, clip_weights = loader(clip_frames=5).training_pool(config(short, long, shares=shares))
        for clip_frames in (1, 5):
            weights = clip_weights(clip_frames)
            assert weights[:12].sum() / weights.sum() == pytest.approx(expected)


def test_a_folder_without_clips_leaves_them_to_the_others(tmp_path: Path) -> None:
    stills = write_recording(tmp_path / "stills", length=1)
    films = write_recording(tmp_path / "films")
    _, clip_weights = loader(clip_frames=3).training_pool(config(stills, films))
    assert not clip_weights(3)[:2].any()
    assert clip_weights(1)[:2].sum() == pytest.approx(0.5)
    with pytest.raises(DataError, match="holds a clip of 3 frames"):
        loader(clip_frames=3).training_pool(config(stills))[1](3)


def test_evaluation_pools_hold_whole_clips_of_each_folder(tmp_path: Path) -> None:
    first = write_recording(tmp_path / "first")
    second = write_recording(tmp_path / "second")
    pools = loader(clip_frames=4).evaluation_pools(config(first, second), "validation", 100)
    assert list(pools) == ["first", "second"]
    assert [len(pool.separate_clips(4)) for pool in pools.values()] == [6, 6]


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    names = config(tmp_path / "a" / "frames", tmp_path / "b" / "frames").names
    assert names == (str(tmp_path / "a" / "frames"), str(tmp_path / "b" / "frames"))


def test_frames_are_brought_to_one_size_and_keep_their_proportions(tmp_path: Path) -> None:
    small = write_recording(tmp_path / "small", size=16)
    large = write_recording(tmp_path / "large", size=32)
    pool, _ = loader(size=16).training_pool(config(small, large))
    assert pool.frames.shape == (48, 16, 16, 3)
    wide, _ = Loader((8, 16), 1, 0).training_pool(config(small))
    plain, _ = loader().training_pool(config(small))
    # Twice as wide as high: the upper and the lower quarter are cut off, nothing is squeezed.
    assert np.array_equal(wide.frames, plain.frames[:, 4:12])


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


def test_a_split_without_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete test episode"):
        loader().evaluation_pools(config(write_recording(tmp_path, episodes=0)), "test", 8)


def test_a_damaged_episode_is_left_out_and_named(tmp_path: Path) -> None:
    folder = write_recording(tmp_path)
    (folder / "train" / "episode_000001.mp4").write_bytes(b"not a video")
    reader = loader()
    pool, _ = reader.training_pool(config(folder))
    assert len(pool) == 12
    assert list(reader.skipped) == [f"{folder / 'train'} episode 1"]
    (folder / "train" / "episode_000000.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError, match="none of the 2 train episodes"):
        loader().training_pool(config(folder))


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recording to train on"):
        config()
    with pytest.raises(ConfigError, match="one positive number for each of 1 folders"):
        config(tmp_path, shares=(1.0, 2.0))


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
