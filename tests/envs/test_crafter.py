"""Crafter: whole tiles, stock pictures, pinned vitals, and exact repetition in any process."""

import hashlib
import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from crafter import constants, engine
from gymnasium.utils.env_checker import check_env

from envs.crafter import ACTIONS, ITEMS, PLAYER_COLUMN, PLAYER_ROW, TILE_CLASSES
from envs.crafter_renderer import draw_inventory, draw_map

IDENTIFIER = "envs.crafter:worldgen/Crafter-v0"


def _make(**options: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(IDENTIFIER, disable_env_checker=True, **options)


@pytest.fixture(scope="module")
def environment() -> gymnasium.Env[Any, Any]:
    return _make()


def _digest(seed: int) -> str:
    environment = _make()
    digest = hashlib.sha256(environment.reset(seed=seed)[0].tobytes())
    generator = np.random.default_rng(0)
    # Long enough for many spawns and removals, whose order once hung on memory addresses.
    for action in generator.integers(0, 6, 400):
        frame, _, _, _, info = environment.step(action)
        digest.update(frame.tobytes())
        digest.update(info["tiles"].tobytes())
    return digest.hexdigest()


@pytest.mark.slow  # a dozen worlds of 0.8 s each
def test_gymnasium_accepts_the_environment() -> None:
    check_env(gymnasium.make(IDENTIFIER, render_mode="rgb_array").unwrapped)


def test_seed_and_actions_give_the_same_frames_in_any_process() -> None:
    code = "from tests.envs.test_crafter import _digest; print(_digest(3))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    assert result.stdout.strip() == _digest(3)


def test_the_map_is_the_stock_picture(environment: gymnasium.Env[Any, Any]) -> None:
    environment.reset(seed=1)
    simulation = environment.unwrapped._simulation  # type: ignore[attr-defined]
    stock = engine.LocalView(simulation._world, engine.Textures(constants.root / "assets"), [8, 6])
    generator = np.random.default_rng(1)
    for action in generator.integers(0, 6, 150):
        frame = environment.step(action)[0]
        picture = stock(simulation._player, np.array([8, 8])).astype(np.uint8)
        assert np.array_equal(frame[:48], picture.swapaxes(0, 1))


def test_dusk_is_lit_like_the_stock_picture() -> None:
    environment = _make(daylight_cycle=True)
    environment.reset(seed=1)
    simulation = environment.unwrapped._simulation  # type: ignore[attr-defined]
    stock = engine.LocalView(simulation._world, engine.Textures(constants.root / "assets"), [8, 6])
    for _ in range(20):
        frame = environment.step(2)[0]
    assert 0.5 < simulation._world.daylight < 1.0
    picture = stock(simulation._player, np.array([8, 8])).astype(np.uint8)
    assert np.array_equal(frame[:48], picture.swapaxes(0, 1))


def test_equal_tile_classes_look_equal(environment: gymnasium.Env[Any, Any]) -> None:
    looks: dict[int, set[bytes]] = {}
    frame, info = environment.reset(seed=2)
    grass, trees = TILE_CLASSES.index("grass"), 0
    for step in range(60):
        tiles = info["tiles"]
        for row in range(6):
            for column in range(8):
                tile = frame[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].tobytes()
                if tiles[row, column] < TILE_CLASSES.index("player-left"):
                    looks.setdefault(int(tiles[row, column]), set()).add(tile)
        frame, _, _, _, info = environment.step(1 + step // 20)
        trees += int((tiles == TILE_CLASSES.index("tree")).sum())
    assert grass in looks
    assert trees > 0
    assert all(len(pictures) == 1 for pictures in looks.values())
    assert len(set.union(*looks.values())) == len(looks)


def test_moves_scroll_by_one_tile_and_blocked_moves_only_turn(
    environment: gymnasium.Env[Any, Any],
) -> None:
    directions = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    _, info = environment.reset(seed=5)
    walkable = {TILE_CLASSES.index(name) for name in ("grass", "sand", "path")}
    generator = np.random.default_rng(0)
    moved = blocked = 0
    name = "right"
    for _ in range(200):
        if generator.random() < 0.1:
            name = str(generator.choice(list(directions)))
        step_x, step_y = directions[name]
        free = info["tiles"][PLAYER_ROW + step_y, PLAYER_COLUMN + step_x] in walkable
        _, _, _, _, after = environment.step(ACTIONS.index(name))
        distance = (after["x"] - info["x"], after["y"] - info["y"])
        assert distance == ((step_x, step_y) if free else (0, 0))
        player = TILE_CLASSES[after["tiles"][PLAYER_ROW, PLAYER_COLUMN]]
        assert player == f"player-{name}"
        assert after["facing"] == list(directions).index(name)
        moved, blocked, info = moved + free, blocked + (not free), after
    assert moved > 20
    assert blocked > 5


def test_vitals_stay_at_nine_unless_they_are_asked_for() -> None:
    pinned, mortal = _make(), _make(vitals=True)
    pinned.reset(seed=0)
    mortal.reset(seed=0)
    for _ in range(60):
        info = pinned.step(0)[4]
        mortal_info = mortal.step(0)[4]
    assert info["inventory"][:4].tolist() == [9, 9, 9, 9]
    assert mortal_info["inventory"][1] < 9


def test_nothing_hurts_a_pinned_player_and_lava_blocks_the_way(
    environment: gymnasium.Env[Any, Any],
) -> None:
    _, info = environment.reset(seed=0)
    simulation = environment.unwrapped._simulation  # type: ignore[attr-defined]
    simulation._world[info["x"] + 1, info["y"]] = "lava"
    simulation._player.health -= 7
    _, _, terminated, _, after = environment.step(ACTIONS.index("right"))
    assert not terminated
    assert after["x"] == info["x"]
    assert after["inventory"][0] == 9


def test_without_mobs_nothing_else_moves() -> None:
    environment = _make(mobs=False)
    environment.reset(seed=0)
    for _ in range(30):
        environment.step(2)
    things = environment.unwrapped._simulation._world.objects  # type: ignore[attr-defined]
    assert len(things) == 1


def test_gathering_and_building_work(environment: gymnasium.Env[Any, Any]) -> None:
    _, info = environment.reset(seed=0)
    simulation = environment.unwrapped._simulation  # type: ignore[attr-defined]
    front = (info["x"], info["y"] + 1)

    def act(name: str) -> dict[str, Any]:
        return dict(zip(ITEMS, environment.step(ACTIONS.index(name))[4]["inventory"], strict=True))

    for _ in range(6):
        simulation._world[front] = "tree"
        bag = act("do")
    assert bag["wood"] == 6
    simulation._world[front] = "grass"
    act("place_table")
    assert simulation._world[front][0] == "table"
    assert act("make_wood_pickaxe")["wood_pickaxe"] == 1
    act("left")
    beside = simulation._player.pos + np.array([-1, 0])
    simulation._world[beside] = "stone"
    assert act("do")["stone"] == 1
    assert simulation._world[beside][0] == "path"
    assert act("make_stone_pickaxe")["stone_pickaxe"] == 1


def test_every_amount_of_every_item_has_its_own_tile() -> None:
    pictures = [draw_inventory((amount,) * len(ITEMS), 8) for amount in range(10)]
    tiles = {
        picture[row : row + 8, column : column + 8].tobytes()
        for picture in pictures[1:]
        for row in (0, 8)
        for column in range(0, 64, 8)
    }
    assert len(tiles) == 9 * len(ITEMS)
    assert pictures[0].max() == 0


def test_objects_are_drawn_over_their_ground() -> None:
    grass = np.full((1, 2), TILE_CLASSES.index("grass"))
    plain, cow = draw_map(grass, []), draw_map(grass, [(0, 1, "cow")])
    assert np.array_equal(plain[:, :8], cow[:, :8])
    assert not np.array_equal(plain[:, 8:], cow[:, 8:])
