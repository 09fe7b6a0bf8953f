"""Action following, counted on worlds whose answer is known."""

import numpy as np
import pytest

from worldgen.evaluation.judges.action_following import HeldMotion, compare_held_actions
from worldgen.evaluation.judges.probes import TileColumn, TileProbeConfig
from worldgen.evaluation.judges.tile_following import (
    MOVES,
    TileRules,
    follow_tiles,
    reading_agreement,
)
from worldgen.evaluation.measures import shifted

_MAP = (
    "outside",
    "grass",
    "stone",
    "path",
    "tree",
    *(f"player-{move}" for move in MOVES),
    "zombie",
)
_CONFIG = TileProbeConfig(
    columns=(
        TileColumn(name="tiles", rows=6, classes=_MAP),
        TileColumn(name="inventory", rows=2, classes=("none", "one", "two")),
    )
)
_RULES = TileRules.from_config(_CONFIG)


def _held(turned: list[float], speed: list[float], gained: list[float]) -> HeldMotion:
    return HeldMotion(turned=np.array(turned), speed=np.array(speed), gained=np.array(gained))


def test_shares_count_only_states_in_which_the_simulator_reacts() -> None:
    rest = _held([0.0, 0.0], [5.0, 5.0], [0.0, 0.0])
    simulated = {
        "left": _held([0.5, 0.0], [5.0, 0.0], [0.0, 0.0]),
        "right": _held([-0.5, -0.5], [5.0, 5.0], [0.0, 0.0]),
        "nothing": rest,
        "gas": _held([0.0, 0.0], [9.0, 9.0], [4.0, 4.0]),
        "brake": _held([0.0, 0.0], [1.0, 4.5], [-4.0, -0.5]),
    }
    generated = {
        **simulated,
        "left": _held([0.3, -0.1], [5.0, 0.0], [0.0, 0.0]),
        "right": _held([-0.1, 0.1], [5.0, 5.0], [0.0, 0.0]),
        "gas": _held([0.0, 0.0], [7.0, 4.0], [2.0, 2.0]),
    }
    figures = compare_held_actions(generated, simulated)
    shares = figures["shares"]
    assert shares["left_turns_left"] == {"share": 1.0, "states": 1, "share_of_all_states": 0.5}
    assert shares["right_turns_right"]["share"] == 0.5
    assert shares["gas_faster_than_nothing"]["share"] == 0.5
    assert shares["brake_slower_than_nothing"] == {
        "share": 1.0,
        "states": 1,
        "share_of_all_states": 1.0,
    }
    assert figures["speed_gained_by_gas"]["ratio"] == pytest.approx(0.5)
    assert figures["speed_lost_by_brake"]["ratio"] == pytest.approx(1.0)


def test_without_a_simulator_every_state_counts_and_no_ratio_is_given() -> None:
    held = {name: _held([1.0], [2.0], [0.5]) for name in ("left", "right", "nothing", "gas")}
    held["brake"] = _held([1.0], [1.0], [-0.5])
    figures = compare_held_actions(held, None)
    assert figures["shares"]["right_turns_right"] == {
        "share": 0.0,
        "states": 1,
        "share_of_all_states": 0.0,
    }
    assert figures["speed_lost_by_brake"]["ratio"] is None


def _tile_world() -> np.ndarray:
    random = np.random.default_rng(0)
    tiles = random.choice([1, 2, 3], (20, 8, 8)).astype(int)
    tiles[:, 3, 4] = _RULES.player[0]
    tiles[:, 6:] = len(_MAP)
    return tiles


def _after(tiles: np.ndarray, move: str) -> np.ndarray:
    """Return what truly follows a move: facing turns, and the map scrolls where the way is free."""
    row, column = MOVES[move]
    following = tiles.copy()
    for before, after in zip(tiles, following, strict=True):
        if before[3 + row, 4 + column] in _RULES.walkable:
            ground = before[:6].copy()
            ground[3, 4] = 1
            moved = shifted(ground, -row, -column)
            after[:6] = np.where(moved >= 0, moved, 1)
        after[3, 4] = _RULES.player[list(MOVES).index(move)]
    return following


@pytest.mark.parametrize("move", list(MOVES))
def test_the_true_world_follows_every_move(move: str) -> None:
    tiles = _tile_world()
    figures = follow_tiles(tiles, _after(tiles, move), np.repeat(move, len(tiles)), _RULES)
    assert figures["free_moves_scroll"]["share"] == 1.0
    assert figures["blocked_moves_stay"]["share"] == 1.0
    assert figures["player_faces_the_move"]["share"] == 1.0
    assert set(figures["blocked_moves_stay_by_obstacle"]) == {"stone"}
    assert figures["free_moves_scroll"]["cases"] + figures["blocked_moves_stay"]["cases"] == 20


def test_a_world_that_goes_the_other_way_or_stands_still_is_found_out() -> None:
    tiles = _tile_world()
    actions = np.repeat("left", len(tiles))
    still = follow_tiles(tiles, tiles, actions, _RULES)
    assert still["free_moves_scroll"]["share"] == 0.0
    assert still["blocked_moves_stay"]["share"] == 1.0
    wrong = follow_tiles(tiles, _after(tiles, "right"), actions, _RULES)
    assert wrong["free_moves_scroll"]["share"] == 0.0


def test_do_counts_blocks_that_truly_went_away() -> None:
    tiles = _tile_world()
    tree, grass = _MAP.index("tree"), _MAP.index("grass")
    tiles[:, 3, 3] = tree
    truth = tiles.copy()
    truth[:10, 3, 3] = grass
    dreamt = truth.copy()
    dreamt[:2, 3, 3] = tree
    actions = np.repeat("do", len(tiles))
    figures = follow_tiles(tiles, dreamt, actions, _RULES, truth)["do_removes_the_block"]
    assert figures["cases"] == 10
    assert figures["share"] == 0.8
    assert figures["blocks"] == {"tree": {"share": 0.8, "cases": 10}}


def test_reading_agreement_counts_rare_classes_apart() -> None:
    originals = _tile_world()
    originals[:, 0, 0] = _MAP.index("zombie")
    originals[:, 6, 0] = len(_MAP) + 2
    others = originals.copy()
    others[:5, 3, 4] = _RULES.player[1]
    others[:10, 0, 0] = _MAP.index("grass")
    figures = reading_agreement(_CONFIG, originals, others)
    assert figures["player"]["agreement"] == 1.0
    assert figures["facing"]["agreement"] == 0.75
    assert figures["mobs"] == {"agreement": 0.5, "tiles": 20}
    assert figures["digits"] == {"agreement": 1.0, "tiles": 20}
    assert figures["classes"]["zombie"]["agreement"] == 0.5
