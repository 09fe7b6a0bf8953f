"""Worlds load by name or folder; what is missing or damaged is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import worldgen
from tests.factories import tiny_world
from worldgen.errors import CheckpointError, ConfigError, WorldgenError
from worldgen.generation import Start
from worldgen.pipeline import load, load_card, save_starts, shipped_worlds
from worldgen.tokenizers.text import TextTokenizer


def test_an_unknown_world_lists_the_shipped_ones() -> None:
    with pytest.raises(WorldgenError, match="no world 'nowhere'"):
        worldgen.load("nowhere")


@pytest.mark.parametrize("name", ["tokenizer", "model", "starts"])
@pytest.mark.parametrize("keep", [None, 100])
def test_missing_and_truncated_weights_are_named(
    tmp_path: Path, name: str, keep: int | None
) -> None:
    folder = tiny_world(tmp_path / "world")
    path = folder / f"{name}.safetensors"
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_parts_of_different_worlds_do_not_go_together(tmp_path: Path) -> None:
    folder = tiny_world(tmp_path / "world")
    card = json.loads((folder / "world.json").read_text())
    card["action_schema"]["groups"] = card["action_schema"]["groups"][:1]
    card["action_schema"]["named"] = {}
    card["action_schema"]["keys"] = {}
    (folder / "world.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="action tokens 1 against 2"):
        load(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": 3}'])
def test_a_malformed_card_is_named(tmp_path: Path, content: str) -> None:
    folder = tiny_world(tmp_path / "world")
    (folder / "world.json").write_text(content)
    with pytest.raises(ConfigError):
        load(folder)


def test_a_changed_file_is_loaded_again(tmp_path: Path) -> None:
    folder = tiny_world(tmp_path / "world", seed=0)
    first = load(folder)
    assert load(folder) is first
    tiny_world(folder, seed=1)
    assert load(folder).hash != first.hash


@pytest.mark.parametrize("name", shipped_worlds())
def test_a_shipped_world_plays_and_is_small(name: str) -> None:
    world = worldgen.load(name)
    session = world.session(seed=1)
    assert session.step(world.action_tokenizer.schema.rest()).shape == (64, 64, 3)
    if world.text_tokenizer is not None:
        assert world.session(start=None, text="water to the north").frame.shape == (64, 64, 3)
    size = sum(path.stat().st_size for path in world.folder.iterdir())
    assert size <= 25 * 2**20
    assert load_card(world.folder).figures
    assert len(world.starts) >= 8


@pytest.fixture(scope="module")
def text_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_world(tmp_path_factory.mktemp("world"), text_vocabulary_size=270, sink=1)
    tokenizer = TextTokenizer.train(["water to the north", "a tree to the north"], 270)
    tokenizer.save(folder / "text.json")
    return folder


def test_a_sentence_stands_in_front_of_a_session(text_world: Path) -> None:
    world = load(text_world)
    assert world.text_tokenizer is not None
    expected = world.text_tokenizer.encode("a tree to the north", 66)
    session = world.session(seed=1, start=None, text="a tree to the north")
    assert session.log().text_ids == tuple(expected.tolist())
    assert session.log().context_ids == ()
    other = world.session(seed=1, start=None, text="water to the north")
    assert not np.array_equal(session.ids, other.ids)
    null = world.session(seed=1, start=None)
    assert not np.array_equal(session.ids, null.ids)
    # In front of a shipped start, which stays the start of that number.
    continued = world.session(start=1, text="water to the north")
    assert continued.start_index == 1
    assert np.array_equal(continued.ids, world.starts[1].visual_ids[-1])
    assert continued.log().text_ids == other.log().text_ids


def test_texts_that_cannot_be_read_are_refused(text_world: Path) -> None:
    world = load(text_world)
    with pytest.raises(ConfigError, match="is empty"):
        world.session(text=" ")
    with pytest.raises(ConfigError, match="there is room for 66"):
        world.session(text="water " * 100)


def test_a_world_without_text_says_so(tmp_path: Path) -> None:
    world = load(tiny_world(tmp_path / "world"))
    assert world.text_tokenizer is None
    with pytest.raises(ConfigError, match="world 'tiny' reads no text"):
        world.session(text="water")
    with pytest.raises(ConfigError, match="needs at least 1 frame"):
        world.session(start=None)


def test_a_text_tokenizer_that_is_missing_or_too_large_is_named(tmp_path: Path) -> None:
    folder = tiny_world(tmp_path / "world", text_vocabulary_size=260, sink=1)
    with pytest.raises(CheckpointError, match=r"text\.json"):
        load(folder).session(text="water")
    # Without a text nothing is missing.
    assert load(folder).session().frame_index == 0
    TextTokenizer.train(["water to the north"] * 3, 270).save(folder / "text.json")
    with pytest.raises(CheckpointError, match=r"has 2\d\d ids, the model reads 260"):
        load(folder).session(text="water")


def test_starts_of_a_world_may_have_texts_and_no_frames(tmp_path: Path) -> None:
    folder = tiny_world(tmp_path / "world", text_vocabulary_size=9, sink=1)
    text_ids = torch.arange(66) % 9
    start = Start(
        visual_ids=torch.zeros(0, 64, dtype=torch.int64),
        action_ids=torch.zeros(0, 2, dtype=torch.int64),
        text_ids=text_ids,
    )
    save_starts(folder / "starts.safetensors", [start])
    world = load(folder)
    (again,) = world.starts
    assert again.text_ids is not None
    assert torch.equal(again.text_ids, text_ids)
    session = world.session(seed=2)
    assert session.start_index == 0
    assert np.array_equal(session.ids, world.session(seed=2, start=start).ids)
