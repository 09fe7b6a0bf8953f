"""Which frames and clips a training reads from recordings and folders, and how often."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.recordings import write_recording
from worldgen.data.video import write_video
from worldgen.errors import ConfigError, DataError
from worldgen.training.clip_loader import ClipPoolConfig, Loader
from worldgen.training.clip_pool import ClipPool


def config(*folders: Path, **changes: object) -> ClipPoolConfig:
    settings: dict[str, object] = {"training_frames": 100, "evaluation_frames": 100}
    names = tuple(str(folder) for folder in folders)
    return ClipPoolConfig(folders=names, **(settings | changes))  # type: ignore[arg-type]


def loader(clip_frames: int = 1, size: int = 16, seed: int = 0) -> Loader:
    return Loader((size, size), clip_frames, seed)


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
    with pytest.raises(DataError, match="as long as a clip of 3 frames"):
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


def test_a_split_without_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete test episode"):
        loader().evaluation_pools(config(write_recording(tmp_path, episodes=0)), "test", 8)


def test_a_damaged_episode_is_left_out_and_named(tmp_path: Path) -> None:
    folder = write_recording(tmp_path)
    (folder / "train" / "episode_000001.mp4").write_bytes(b"not a video")
    reader = loader()
    pool, _ = reader.training_pool(config(folder))
    assert len(pool) == 12
    assert list(reader.skipped) == [str(folder / "train" / "episode_000001.mp4")]
    (folder / "train" / "episode_000000.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError, match="of 2 files the first says"):
        loader().training_pool(config(folder))


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder to train on"):
        config()
    with pytest.raises(ConfigError, match="one positive number for each of 1 folders"):
        config(tmp_path, shares=(1.0, 2.0))


def write_media(folder: Path, images: int, film_frames: Sequence[int]) -> Path:
    """Write images of one grey each, and videos whose frames are their own numbers."""
    folder.mkdir(parents=True)
    for number in range(images):
        picture = np.full((16, 16, 3), number, dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
    for number, length in enumerate(film_frames):
        frames = np.arange(length, dtype=np.uint8)[:, None, None, None].repeat(16, 1)
        video = frames.repeat(16, 2).repeat(3, 3)
        write_video(folder / f"{number:03d}.mp4", video, 10.0, lossless=True)
    return folder


def greys(pool: ClipPool) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in pool.frames]


def test_images_of_a_plain_folder_are_held_out_for_validation_and_test(tmp_path: Path) -> None:
    chosen = config(write_media(tmp_path / "media", 30, ()))
    train, _ = loader().training_pool(chosen)
    held_out = {
        split: greys(loader().evaluation_pools(chosen, split, 100)["media"])
        for split in ("validation", "test")
    }
    assert {split: sorted(values) for split, values in held_out.items()} == {
        "validation": [0, 10, 20],
        "test": [1, 11, 21],
    }
    assert sorted([*greys(train), *held_out["validation"], *held_out["test"]]) == list(range(30))


def test_a_plain_folder_may_have_folders_for_its_splits(tmp_path: Path) -> None:
    write_media(tmp_path / "media" / "train", 3, ())
    write_media(tmp_path / "media" / "validation", 2, ())
    chosen = config(tmp_path / "media")
    assert len(loader().training_pool(chosen)[0]) == 3
    assert len(loader().evaluation_pools(chosen, "validation", 100)["media"]) == 2
    with pytest.raises(DataError, match="none for test"):
        loader().evaluation_pools(chosen, "test", 100)


def test_long_videos_give_a_random_few_of_their_runs(tmp_path: Path) -> None:
    folder = write_media(tmp_path / "media", 0, (64,))
    begun: set[int] = set()
    for seed in range(8):
        pool, _ = loader(clip_frames=2, seed=seed).training_pool(config(folder, training_frames=16))
        values = greys(pool)
        # Two runs of eight frames each; every frame but the last of a run begins a clip.
        assert len(values) == 16
        assert np.count_nonzero(pool.begins_clip(2)) == 14
        for first in np.flatnonzero(pool.begins_clip(2)):
            assert values[first + 1] == values[first] + 1
        begun |= {values[0], values[8]}
    # Runs from all over the video, the first one no more often than others.
    assert len(begun) > 4


def test_what_was_read_of_a_video_before_it_breaks_off_is_used(tmp_path: Path) -> None:
    folder = write_media(tmp_path / "media", 1, (40,))
    film = folder / "000.mp4"
    film.write_bytes(film.read_bytes()[:-200])
    reader = loader()
    pool, _ = reader.training_pool(config(folder))
    assert len(pool) >= 1
    assert list(reader.skipped) == [str(film)]


def test_recordings_inside_a_plain_folder_are_to_be_named_themselves(tmp_path: Path) -> None:
    write_recording(tmp_path / "all" / "one")
    with pytest.raises(DataError, match=r"name each of them in data\.folders"):
        loader().training_pool(config(tmp_path / "all"))
