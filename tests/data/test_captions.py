"""Captions of recordings: facts that programs check, files that come back, and damaged ones."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories import car_schema, tiny_tokenizer_config
from worldgen.data.captions import (
    CAPTIONS_FILE,
    Caption,
    CaptionTable,
    Fact,
    caption_indices,
    fact_holds,
    load_captions,
    write_caption_column,
)
from worldgen.data.episodes import (
    Column,
    Dataset,
    DatasetMetadata,
    Episode,
    EpisodeInfo,
    EpisodeWriter,
)
from worldgen.data.formats import ReadOptions, open_layout
from worldgen.data.formats.convert import convert
from worldgen.data.motion import convert_to_motion
from worldgen.data.token_cache import open_or_build_token_cache
from worldgen.errors import DataError
from worldgen.tokenizers.visual import build_visual_tokenizer

NAMES = ("outside", "water", "grass", "tree")
NORTH = {"kind": "tiles", "classes": ["water"], "rows": [0, 1], "columns": [0, 3], "least": 2}
FAST = {"kind": "values", "column": "speed", "low": 30.0, "high": None}
TABLE = CaptionTable(
    captions=(
        Caption(text="water to the north", facts=(NORTH,)),
        Caption(text="driving fast", facts=(FAST,)),
    )
)


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write drives straight on, with 64 x 64 frames."""
    folder = tmp_path_factory.mktemp("drives")
    columns = {
        name: Column(dtype="float64", unit=unit)
        for name, unit in (("x", "unit"), ("y", "unit"), ("yaw", "radian"), ("reward", ""))
    }
    DatasetMetadata(
        environment=None,
        frames_per_second=10.0,
        frame_height=64,
        frame_width=64,
        action_schema=car_schema().to_json(),
        columns={**columns, "cut": Column(dtype="bool")},
    ).write(folder)
    for split in ("train", "validation", "test"):
        for index, length in enumerate((6, 4)):
            time = np.arange(length)
            episode = Episode(
                frames=np.full((length, 64, 64, 3), 20 * index, np.uint8),
                actions=np.zeros((length, 2), np.int64),
                columns={
                    "x": time * 1.0,
                    "y": time * 0.0,
                    "yaw": time * 0.0,
                    "reward": time * 0.0,
                    "cut": time == length - 1,
                },
                info=EpisodeInfo(index=index, seed=index, length=length, driver="hand"),
            )
            EpisodeWriter(folder / split, 10.0).write(episode)
    return folder


def _captioned(drives: Path, folder: Path) -> Dataset:
    """Return the drives in a folder of their own, where every third frame has no caption."""
    dataset = Dataset(shutil.copytree(drives, folder, dirs_exist_ok=True))
    for split in ("train", "validation", "test"):
        for info in dataset.episodes(split):
            write_caption_column(dataset, info, np.arange(info.length) % 3 - 1)
    TABLE.write(folder)
    return dataset


def test_a_fact_about_tiles_counts_its_classes_in_its_region() -> None:
    tiles = np.array([[1, 2, 1], [1, 3, 2]])
    assert fact_holds(NORTH, tiles, NAMES)
    assert not fact_holds({**NORTH, "least": 3}, tiles, NAMES)
    assert fact_holds({**NORTH, "least": 3, "classes": ["grass", "water"]}, tiles, NAMES)
    assert fact_holds({**NORTH, "least": 3, "rows": [0, 2]}, tiles, NAMES)
    assert not fact_holds({**NORTH, "columns": [0, 2]}, tiles, NAMES)
    assert not fact_holds({**NORTH, "rows": [1, 2]}, tiles, NAMES)
    assert fact_holds({**NORTH, "rows": [1, 2], "least": 1}, tiles, NAMES)


def test_a_fact_about_values_has_bounds_of_which_the_upper_is_outside() -> None:
    for speed, low, high, holds in (
        (30.0, 30.0, None, True),
        (29.9, 30.0, None, False),
        (40.0, 30.0, 40.0, False),
        (-9.0, None, 0.0, True),
        (float("nan"), None, 0.0, False),
    ):
        fact = {"kind": "values", "column": "speed", "low": low, "high": high}
        assert fact_holds(fact, {"speed": speed}) is holds


def test_a_fact_is_refused_where_it_cannot_be_checked() -> None:
    tiles = np.zeros((2, 3), np.uint8)
    with pytest.raises(DataError, match="does not fit a map of 2 x 3 tiles"):
        fact_holds({**NORTH, "rows": [1, 3]}, tiles, NAMES)
    with pytest.raises(DataError, match="of the classes outside, water, grass, tree"):
        fact_holds({**NORTH, "classes": ["lake"]}, tiles, NAMES)
    with pytest.raises(DataError, match="needs the value 'speed'"):
        fact_holds(FAST, {"yaw": 1.0})
    with pytest.raises(DataError, match="needs the value 'speed'"):
        fact_holds(FAST, tiles, NAMES)
    with pytest.raises(DataError, match="needs a map of tiles, got values"):
        fact_holds(NORTH, {"speed": 1.0})


@pytest.mark.parametrize(
    "fact",
    [
        {},
        {"kind": "smell"},
        {**NORTH, "classes": []},
        {**NORTH, "rows": [2, 2]},
        {**NORTH, "columns": [-1, 2]},
        {**NORTH, "rows": [0]},
        {**NORTH, "least": 0},
        {**NORTH, "least": "many"},
        {**FAST, "low": 3.0, "high": 2.0},
        {**FAST, "low": "fast"},
        {"kind": "values", "column": "speed", "low": 1.0},
    ],
)
def test_what_is_no_fact_stands_in_no_table(fact: Fact) -> None:
    with pytest.raises(DataError, match="is no fact; there are"):
        CaptionTable(captions=(Caption(text="a lake", facts=(fact,)),))


def test_a_text_stands_once_in_a_table() -> None:
    twice = (Caption(text="a lake", facts=()), Caption(text="a lake", facts=(NORTH,)))
    with pytest.raises(DataError, match="'a lake' is there twice"):
        CaptionTable(captions=twice)
    with pytest.raises(DataError, match="a caption is empty"):
        CaptionTable(captions=(Caption(text=" ", facts=()),))


def test_captions_come_back_in_the_order_of_the_token_cache(drives: Path, tmp_path: Path) -> None:
    dataset = _captioned(drives, tmp_path)
    assert load_captions(dataset) == TABLE
    indices = caption_indices(dataset, "train")
    assert indices.dtype == np.int32
    assert indices.tolist() == [-1, 0, 1, -1, 0, 1, -1, 0, 1, -1]
    info = dataset.episodes("train")[0]
    assert dataset.load(info).columns["x"].tolist() == [0, 1, 2, 3, 4, 5]


def test_tokens_stay_when_captions_come(drives: Path, tmp_path: Path) -> None:
    dataset = Dataset(shutil.copytree(drives, tmp_path / "recording"))
    tokenizer = build_visual_tokenizer(tiny_tokenizer_config()).eval()
    tokens = tmp_path / "tokens"
    open_or_build_token_cache(dataset, "train", tokens, tokenizer, "a" * 64)
    (made,) = tokens.rglob("meta.json")
    before = made.stat()
    _captioned(drives, tmp_path / "recording")
    cache = open_or_build_token_cache(dataset, "train", tokens, tokenizer, "a" * 64)
    # What is written anew is written aside, and so another file.
    assert made.stat().st_ino == before.st_ino
    assert made.stat().st_mtime_ns == before.st_mtime_ns
    assert len(caption_indices(dataset, "train")) == len(cache.visual_ids)


def test_without_captions_no_frame_has_one(drives: Path) -> None:
    dataset = Dataset(drives)
    assert load_captions(dataset) is None
    assert caption_indices(dataset, "train").tolist() == [-1] * 10


def test_a_stopped_captioning_leaves_no_captions(drives: Path, tmp_path: Path) -> None:
    dataset = _captioned(drives, tmp_path)
    (tmp_path / CAPTIONS_FILE).unlink()
    assert caption_indices(dataset, "train").tolist() == [-1] * 10


def test_an_episode_recorded_later_has_no_captions(drives: Path, tmp_path: Path) -> None:
    dataset = _captioned(drives, tmp_path)
    episode = dataset.load(dataset.episodes("train")[1])
    columns = {name: rows for name, rows in episode.columns.items() if name != "caption"}
    info = dataclasses.replace(episode.info, index=2)
    EpisodeWriter(tmp_path / "train", 10.0).write(
        dataclasses.replace(episode, columns=columns, info=info)
    )
    assert caption_indices(dataset, "train").tolist()[10:] == [-1] * 4


def test_what_does_not_fit_the_table_is_refused(drives: Path, tmp_path: Path) -> None:
    dataset = _captioned(drives, tmp_path)
    info = dataset.episodes("test")[0]
    write_caption_column(dataset, info, np.array([0, 1, 2, 0, 0, 0]))
    with pytest.raises(DataError, match=r"episode_000000\.npz does not fit the 2 captions of"):
        caption_indices(dataset, "test")
    before = dataset.stem(info).with_suffix(".npz").read_bytes()
    with pytest.raises(DataError, match=r"has 6 frames, got \(5,\)"):
        write_caption_column(dataset, info, np.zeros(5, np.int32))
    assert dataset.stem(info).with_suffix(".npz").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": "worldgen-captions", "version": 1}',
        '{"format": "worldgen-captions", "version": 1, "captions": [7]}',
        '{"format": "worldgen-captions", "version": 1, "captions": [{"text": "a lake"}]}',
        json.dumps(
            {
                "format": "worldgen-captions",
                "version": 1,
                "captions": [{"text": "a lake", "facts": [{"kind": "smell"}]}],
            }
        ),
    ],
)
def test_a_damaged_table_is_named(drives: Path, tmp_path: Path, content: str) -> None:
    dataset = _captioned(drives, tmp_path)
    (tmp_path / CAPTIONS_FILE).write_text(content)
    with pytest.raises(DataError, match=r"captions\.json is damaged .*; caption the recording"):
        load_captions(dataset)


def test_a_table_of_another_version_is_refused(drives: Path, tmp_path: Path) -> None:
    dataset = _captioned(drives, tmp_path)
    content: dict[str, Any] = json.loads((tmp_path / CAPTIONS_FILE).read_text())
    (tmp_path / CAPTIONS_FILE).write_text(json.dumps({**content, "version": 2}))
    with pytest.raises(DataError, match=r"of format \('worldgen-captions', 2\)"):
        load_captions(dataset)


def test_conversion_keeps_captions(drives: Path, tmp_path: Path) -> None:
    dataset = _captioned(drives, tmp_path / "recording")
    layout = open_layout(dataset.folder)
    assert "captions: 2 different ones" in layout.inspect().notes
    convert(layout, tmp_path / "small", ReadOptions(size=(32, 32)))
    convert_to_motion(dataset.folder, tmp_path / "motion")
    for folder in ("small", "motion"):
        converted = Dataset(tmp_path / folder)
        assert load_captions(converted) == TABLE
        assert np.array_equal(
            caption_indices(converted, "train"), caption_indices(dataset, "train")
        )
