"""Captions of the simulators: true, varied, each with one meaning, and written again at will."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from envs.caption import caption, main
from envs.captions import NARRATORS, CaptionWriter, Statement, find_narrator
from envs.crafter import PLAYER_COLUMN, PLAYER_ROW, TILE_CLASSES
from envs.record import RecordConfig, play_episode, record
from worldgen.config import build, load_config
from worldgen.data.captions import CAPTIONS_FILE, caption_indices, fact_holds, load_captions
from worldgen.data.episodes import (
    Dataset,
    DatasetMetadata,
    Episode,
    EpisodeInfo,
    EpisodeWriter,
)
from worldgen.errors import DataError


@pytest.fixture(scope="module", params=["crafter", "car_racing"])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return 200 captioned frames in train, and 40 in test."""
    folder = tmp_path_factory.mktemp("recording") / request.param
    config = build(RecordConfig, load_config("record", [f"env={request.param}"])).env
    environment = gymnasium.make(config.id, disable_env_checker=True, **config.options)
    unwrapped: Any = environment.unwrapped
    rate = float(unwrapped.metadata["render_fps"])
    DatasetMetadata(
        environment={"id": config.id, "options": config.options},
        frames_per_second=rate,
        frame_height=64,
        frame_width=64,
        action_schema=unwrapped.action_schema.to_json(),
        columns=unwrapped.COLUMNS,
    ).write(folder)
    info = EpisodeInfo(index=0, seed=5, length=240, driver="")
    episode = play_episode(environment, config.driver, info)
    assert episode is not None
    # One play in two parts: a world of crafter takes seconds to make.
    for split, rows in (("train", slice(200)), ("test", slice(200, None))):
        part = Episode(
            frames=episode.frames[rows],
            actions=episode.actions[rows],
            columns={name: column[rows] for name, column in episode.columns.items()},
            info=replace(episode.info, length=len(episode.frames[rows]), split=split),
        )
        EpisodeWriter(folder / split, rate).write(part)
    caption(folder)
    return Dataset(folder)


def test_every_fact_of_every_caption_is_true_of_its_frame(recording: Dataset) -> None:
    table = load_captions(recording)
    assert table is not None
    for info in (*recording.episodes("train"), *recording.episodes("test")):
        columns = recording.load_columns(info)
        checked = 0
        for frame, number in enumerate(columns["caption"]):
            for fact in table.captions[number].facts:
                if fact["kind"] == "tiles":
                    assert fact_holds(fact, columns["tiles"][frame], TILE_CLASSES), fact
                elif fact["column"] != "heading_change":
                    names = ("speed", "yaw_rate", "wheels_on_road")
                    values = {name: float(columns[name][frame]) for name in names}
                    assert fact_holds(fact, values), fact
                else:
                    # 25 frames are 1.5 s.
                    change = columns["yaw"][frame + 25] - columns["yaw"][frame]
                    assert fact_holds(fact, {"heading_change": change}), fact
                    assert (columns["wheels_on_road"][frame : frame + 26] == 4).all()
                checked += 1
        assert checked >= info.length


def test_every_frame_has_a_caption_and_captions_differ(recording: Dataset) -> None:
    table = load_captions(recording)
    assert table is not None
    numbers = caption_indices(recording, "train")
    assert (numbers >= 0).all()
    assert len(np.unique(numbers)) > 15
    sizes = {len(table.captions[number].facts) for number in numbers}
    assert {1, 2} <= sizes


def test_captions_are_the_same_when_they_are_written_again(recording: Dataset) -> None:
    def content() -> dict[str, bytes]:
        paths = [recording.folder / CAPTIONS_FILE, *recording.folder.rglob("*.npz")]
        return {str(path): path.read_bytes() for path in paths}

    before = content()
    assert main([str(recording.folder)]) == 0
    assert content() == before
    indices = caption_indices(recording, "train")
    assert main([str(recording.folder), "--seed", "1"]) == 0
    assert not np.array_equal(caption_indices(recording, "train"), indices)
    caption(recording.folder)
    assert content() == before


@pytest.mark.slow  # starts two recorders
def test_a_captioned_recording_can_be_continued(tmp_path: Path) -> None:
    def frames(number: int) -> Dataset:
        settings = ["env=car_racing", f"out={tmp_path / 'car'}", f"frames={number}"]
        return record(build(RecordConfig, load_config("record", [*settings, "episode_length=20"])))

    frames(60)
    caption(tmp_path / "car")
    dataset = frames(100)
    assert (caption_indices(dataset, "train")[:20] >= 0).all()
    assert (caption_indices(dataset, "train")[20:] == -1).all()
    caption(tmp_path / "car")
    assert (caption_indices(dataset, "train") >= 0).all()


@pytest.mark.parametrize("name", list(NARRATORS))
def test_no_two_statements_are_made_in_the_same_words(name: str) -> None:
    phrases = [phrase for each in NARRATORS[name].statements for phrase in each.phrases]
    assert len(set(phrases)) == len(phrases)
    # Else "a and b" could be one statement or two.
    assert not any(", " in phrase or " and " in phrase for phrase in phrases)


def _statement(phrase: str) -> Statement:
    statements = NARRATORS["crafter"].statements
    return next(each for each in statements if phrase in each.phrases)


def _says(phrase: str, tiles: np.ndarray) -> bool:
    return all(fact_holds(fact, tiles, TILE_CLASSES) for fact in _statement(phrase).facts)


@pytest.mark.parametrize(
    ("row", "column", "true", "false"),
    [
        (0, 4, "water to the north", "water to the north-west"),
        (2, 4, "facing water to the north", "water to the west"),
        (5, 7, "water to the south-east", "water to the north"),
        (3, 0, "water to the west", "water to the north-west"),
        (3, 5, "water to the east", "facing water to the north"),
        (1, 1, "water north of you", "water to the south"),
        (1, 1, "water in sight", "no water in sight"),
        (1, 1, "looking north", "facing south"),
        (1, 1, "no tree in sight", "surrounded by water"),
        (1, 1, "surrounded by grass", "a tree beside you"),
    ],
)
def test_directions_are_those_of_the_map(row: int, column: int, true: str, false: str) -> None:
    tiles = np.full((6, 8), TILE_CLASSES.index("grass"))
    tiles[PLAYER_ROW, PLAYER_COLUMN] = TILE_CLASSES.index("player-up")
    tiles[row, column] = TILE_CLASSES.index("water")
    assert _says(true, tiles)
    assert not _says(false, tiles)


def test_what_is_rare_is_said_more_often_than_its_share() -> None:
    tiles = np.full((400, 6, 8), TILE_CLASSES.index("grass"), np.uint8)
    tiles[:, PLAYER_ROW, PLAYER_COLUMN] = TILE_CLASSES.index("player-left")
    tiles[:, 0, 0] = TILE_CLASSES.index("diamond")
    tiles[:, 0, 1] = TILE_CLASSES.index("stone")
    writer = CaptionWriter(NARRATORS["crafter"])
    numbers = writer.write({"tiles": tiles}, 10.0, np.random.default_rng(0))
    texts = [writer.captions[number].text for number in numbers]
    assert sum("diamond" in text for text in texts) > 2 * sum("stone" in text for text in texts)


def test_there_is_an_end_to_different_captions() -> None:
    generator = np.random.default_rng(0)
    tiles = generator.integers(1, 13, (300, 6, 8)).astype(np.uint8)
    tiles[:, PLAYER_ROW, PLAYER_COLUMN] = TILE_CLASSES.index("player-left")
    free, bound = (CaptionWriter(NARRATORS["crafter"], most) for most in (10_000, 50))
    for writer in (free, bound):
        numbers = writer.write({"tiles": tiles}, 10.0, np.random.default_rng(1))
        assert (numbers >= 0).all()
    several = [each for each in bound.captions if ", " in each.text or " and " in each.text]
    assert len(several) <= 50
    assert len(bound.captions) < len(free.captions)


def test_a_recording_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"nothing to say about columns x, y; .* crafter: tiles"):
        find_narrator(["x", "y"])
    assert main([str(tmp_path)]) == 2
    assert "is not a recording" in capsys.readouterr().err


def test_a_damaged_episode_leaves_all_captions_as_they_were(
    recording: Dataset, tmp_path: Path
) -> None:
    dataset = Dataset(shutil.copytree(recording.folder, tmp_path / "copy"))
    before = (dataset.folder / CAPTIONS_FILE).read_bytes()
    indices = caption_indices(dataset, "train")
    (info,) = dataset.episodes("test")
    dataset.stem(info).with_suffix(".npz").write_bytes(b"half a file")
    with pytest.raises(DataError, match="is damaged"):
        caption(dataset.folder, seed=1)
    assert (dataset.folder / CAPTIONS_FILE).read_bytes() == before
    assert np.array_equal(caption_indices(dataset, "train"), indices)
