"""Worlds load by name or folder; what is missing or damaged is named."""

import json
from pathlib import Path

import pytest

import worldgen
from tests.factories import tiny_world
from worldgen.errors import CheckpointError, ConfigError, WorldgenError
from worldgen.pipeline import load, load_card, shipped_worlds


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
    assert session.step("nothing" if name == "car_racing" else "noop").shape == (64, 64, 3)
    size = sum(path.stat().st_size for path in world.folder.iterdir())
    assert size <= 25 * 2**20
    assert load_card(world.folder).figures
    assert len(world.starts) >= 8
