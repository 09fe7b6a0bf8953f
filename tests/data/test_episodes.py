"""Episodes on disk: exact round trip, and nothing half-written is ever read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldgen.data.episodes import (
    Column,
    Dataset,
    DatasetMetadata,
    Episode,
    EpisodeInfo,
    EpisodeWriter,
)
from worldgen.errors import DataError
from worldgen.tokenizers.action import ActionSchema, Categorical

SCHEMA = ActionSchema(groups=(Categorical("move", ("none", "left")),))
METADATA = DatasetMetadata(
    environment={"id": "toy", "options": {"size": 16}},
    frames_per_second=10.0,
    frame_height=16,
    frame_width=16,
    action_schema=SCHEMA.to_json(),
    columns={"tiles": Column(dtype="uint8", shape=(2, 2), meaning="classes")},
    seeds={"train": 0, "validation": 1_000_000, "test": 2_000_000},
)


def _episode(index: int, length: int = 6) -> Episode:
    generator = np.random.default_rng(index)
    return Episode(
        frames=generator.integers(0, 256, (length, 16, 16, 3), np.uint8),
        actions=generator.integers(0, 2, (length, 1)),
        columns={
            "tiles": generator.integers(0, 9, (length, 2, 2), np.uint8),
            "reward": generator.normal(size=length),
            "cut": np.arange(length) == length - 1,
        },
        info=EpisodeInfo(index=index, seed=index, length=length, driver="toy"),
    )


def _dataset(folder: Path, num_episodes: int = 2) -> Dataset:
    METADATA.write(folder)
    writer = EpisodeWriter(folder / "train", 10.0)
    for index in range(num_episodes):
        writer.write(_episode(index))
    return Dataset(folder)


def test_an_episode_comes_back_exactly(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    written, read = _episode(1), dataset.load(dataset.episodes("train")[1])
    assert read.info == written.info
    assert np.array_equal(read.frames, written.frames)
    assert np.array_equal(read.actions, written.actions)
    assert read.actions.dtype == np.int64
    assert read.columns.keys() == written.columns.keys()
    for name, column in written.columns.items():
        assert np.array_equal(read.columns[name], column)
        assert read.columns[name].dtype == column.dtype


def test_metadata_comes_back_with_its_schema(tmp_path: Path) -> None:
    metadata = _dataset(tmp_path).metadata
    assert metadata == METADATA
    assert metadata.schema == SCHEMA


@pytest.mark.parametrize("missing", ["json", "mp4", "npz"])
def test_a_half_written_episode_is_skipped_and_counted(tmp_path: Path, missing: str) -> None:
    dataset = _dataset(tmp_path)
    (tmp_path / "train" / f"episode_000000.{missing}").unlink()
    assert [info.index for info in dataset.episodes("train")] == [1]
    assert dataset.num_incomplete("train") == 1


def test_temporary_files_are_no_episodes(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    (tmp_path / "train" / ".episode_000002-abc.mp4").write_bytes(b"half")
    assert len(dataset.episodes("train")) == 2
    assert dataset.num_incomplete("train") == 0


def test_a_split_without_a_folder_is_empty(tmp_path: Path) -> None:
    assert _dataset(tmp_path).episodes("test") == []


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'dev'; there are train, validation, test"):
        _dataset(tmp_path).episodes("dev")


def test_a_truncated_video_or_table_is_named(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    info, other = dataset.episodes("train")
    video = tmp_path / "train" / "episode_000000.mp4"
    video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(DataError, match=r"episode_000000.mp4 .*record it again"):
        dataset.load(info)
    table = tmp_path / "train" / "episode_000001.npz"
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(DataError, match=r"episode_000001\.npz is damaged"):
        dataset.load(other)


def test_lengths_that_disagree_are_refused_when_written_and_when_read(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    episode = _episode(5)
    wrong = replace(episode, actions=episode.actions[:-1])
    with pytest.raises(DataError, match="every array needs one row per frame"):
        EpisodeWriter(tmp_path / "train", 10.0).write(wrong)
    with pytest.raises(DataError, match="says 7 rows, has 6 frames and 6 actions"):
        dataset.load(replace(dataset.episodes("train")[0], length=7))


def test_a_folder_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a recording: it has no dataset\.json"):
        Dataset(tmp_path / "nowhere")
    (tmp_path / "dataset.json").write_text(json.dumps({"format": "other", "version": 3}))
    with pytest.raises(DataError, match=r"is of format \('other', 3\); this version reads"):
        Dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json is damaged"):
        Dataset(tmp_path)
    (tmp_path / "dataset.json").write_text(
        json.dumps({"format": "worldgen-episodes", "version": 1, "frames_per_second": "ten"})
    )
    with pytest.raises(DataError, match=r"dataset\.json is damaged"):
        Dataset(tmp_path)
