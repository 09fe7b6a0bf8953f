"""Does a world of tiles do what the player says: scrolling, blocked ways, blocks removed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from worldgen.evaluation.judges.probes import TileProbeConfig
from worldgen.evaluation.measures import fraction, shift_agreement, shifted
from worldgen.tokenizers.action import ActionSchema

__all__ = [
    "MOVES",
    "TileRules",
    "action_names",
    "follow_tiles",
    "free_moves",
    "is_visible",
    "landmarks",
    "player_cell",
    "reading_agreement",
]

MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""Action -> where the player goes, rows down and columns right; the map scrolls the other way."""

_LEAST_CELLS = 2
"""A scroll counts where it changes at least so many cells: on an even plain nobody can see it."""


@dataclass(frozen=True, kw_only=True)
class TileRules:
    """What the classes of a tile world mean; found by their names."""

    names: tuple[str, ...]
    """Of all classes, in the order of their numbers."""
    player: tuple[int, ...]
    """Classes of the player, in the order left, right, up, down."""
    walkable: tuple[int, ...]
    mobs: tuple[int, ...]
    arrows: tuple[int, ...]
    removable: tuple[int, ...]
    """Blocks that `do` can take away."""
    digits: tuple[int, ...]
    map_rows: int
    """Rows of tiles that scroll; the inventory is below."""

    @classmethod
    def from_config(cls, config: TileProbeConfig) -> "TileRules":
        """Return the rules of a Crafter-like world, whose first column of classes is its map."""
        names = config.classes

        def numbers(*wanted: str) -> tuple[int, ...]:
            return tuple(names.index(name) for name in wanted if name in names)

        first = len(config.columns[0].classes)
        return cls(
            names=names,
            player=numbers(*(f"player-{move}" for move in MOVES)),
            walkable=numbers("grass", "sand", "path"),
            mobs=numbers("cow", "zombie", "skeleton"),
            arrows=numbers(*(f"arrow-{move}" for move in MOVES)),
            removable=numbers("tree", "stone", "coal", "iron", "diamond", "table", "furnace"),
            digits=tuple(range(first, len(names))),
            map_rows=config.columns[0].rows,
        )


def reading_agreement(
    config: TileProbeConfig,
    originals: Int[np.ndarray, "*leading row column"],
    others: Int[np.ndarray, "*leading row column"],
) -> dict[str, Any]:
    """Return how often the judge reads other frames as it reads the originals, rare classes apart.

    Args:
        config: Names the classes.
        originals: Readings of real frames.
        others: Readings of the same frames, for example after the tokenizer.
    """
    rules = TileRules.from_config(config)
    agree = originals == others
    player = np.isin(originals, rules.player)
    # Digits of an empty place are blank; those that show a number are the ones to read.
    shown = tuple(number for number in rules.digits if config.classes[number] != "none")
    groups = {
        "player": (np.isin(others, rules.player), player),
        "facing": (agree, player),
        "mobs": (agree, np.isin(originals, rules.mobs)),
        "arrows": (agree, np.isin(originals, rules.arrows)),
        "digits": (agree, np.isin(originals, shown)),
        "all": (agree, np.ones_like(agree)),
    }
    return {
        **{
            name: {"agreement": fraction(hits[where]), "tiles": int(where.sum())}
            for name, (hits, where) in groups.items()
        },
        "classes": {
            name: {
                "agreement": fraction(agree[originals == number]),
                "tiles": int((originals == number).sum()),
            }
            for number, name in enumerate(config.classes)
            if (originals == number).any()
        },
    }


def free_moves(
    tiles: Int[np.ndarray, "frame row column"], rules: TileRules
) -> dict[str, Bool[np.ndarray, " frame"]]:
    """Return for each move in which frames nothing stands in its way.

    Args:
        tiles: True classes; the player stands in the same cell of every frame.
        rules: What is walkable.
    """
    row, column = player_cell(tiles, rules)
    return {
        move: np.isin(tiles[:, row + down, column + right], rules.walkable)
        for move, (down, right) in MOVES.items()
    }


def player_cell(tiles: Int[np.ndarray, "frame row column"], rules: TileRules) -> tuple[int, int]:
    """Return row and column of the player, the same in every frame of a view centred on him."""
    counts = np.isin(tiles[:, : rules.map_rows], rules.player).sum(axis=0)
    row, column = np.unravel_index(int(counts.argmax()), counts.shape)
    return int(row), int(column)


def action_names(schema: ActionSchema, actions: np.ndarray) -> np.ndarray:
    """Return the name of each action, [...], empty where the schema names none.

    Args:
        schema: Of the world.
        actions: Settings of its groups, [..., group].
    """
    names = np.full(actions.shape[:-1], "", dtype="<U64")
    for name, settings in schema.named.items():
        names[(actions == schema.action(settings)).all(axis=-1)] = name
    return names


def follow_tiles(
    before: Int[np.ndarray, "frame row column"],
    after: Int[np.ndarray, "frame row column"],
    actions: np.ndarray,
    rules: TileRules,
    true_after: Int[np.ndarray, "frame row column"] | None = None,
) -> dict[str, Any]:
    """Return shares of frames in which an action had its effect.

    Args:
        before: True classes of the frames in which the actions were taken.
        after: Classes that the judge reads from the generated next frames.
        actions: Name of the action taken in each frame, [frame].
        rules: What the classes mean.
        true_after: True classes of the next frames, None where the action was never really taken;
            `do` is measured only with them.
    """
    cell = player_cell(before, rules)
    free = free_moves(before, rules)
    scrolled: list[bool] = []
    stayed: list[bool] = []
    faced: list[bool] = []
    by_move: dict[str, list[bool]] = {move: [] for move in MOVES}
    by_obstacle: dict[str, list[bool]] = {}
    for move, (down, right) in MOVES.items():
        for frame in np.flatnonzero(actions == move):
            expected = (-down, -right) if free[move][frame] else (0, 0)
            first, then = (
                landmarks(before[frame], cell, rules),
                landmarks(after[frame], cell, rules),
            )
            if not is_visible(first, (-down, -right)):
                continue
            agreement = shift_agreement(first, then)
            hit = max(agreement, key=lambda shift: agreement[shift]) == expected
            (scrolled if free[move][frame] else stayed).append(hit)
            if free[move][frame]:
                by_move[move].append(hit)
            else:
                obstacle = before[frame, cell[0] + down, cell[1] + right]
                by_obstacle.setdefault(rules.names[obstacle], []).append(hit)
            faced.append(bool(after[(frame, *cell)] == rules.player[list(MOVES).index(move)]))
    result: dict[str, Any] = {
        "free_moves_scroll": _share(scrolled),
        "blocked_moves_stay": _share(stayed),
        "player_faces_the_move": _share(faced),
        "free_moves_scroll_by_direction": {m: _share(hits) for m, hits in by_move.items()},
        "blocked_moves_stay_by_obstacle": {
            name: _share(hits) for name, hits in sorted(by_obstacle.items())
        },
    }
    if true_after is not None:
        result["do_removes_the_block"] = _removed(
            before, after, true_after, actions == "do", rules, cell
        )
    return result


def _removed(
    before: Int[np.ndarray, "frame row column"],
    after: Int[np.ndarray, "frame row column"],
    true_after: Int[np.ndarray, "frame row column"],
    done: Bool[np.ndarray, " frame"],
    rules: TileRules,
    cell: tuple[int, int],
) -> dict[str, Any]:
    hits: list[bool] = []
    blocks: Mapping[int, list[bool]] = {number: [] for number in rules.removable}
    for frame in np.flatnonzero(done):
        facing = int(before[(frame, *cell)])
        if facing not in rules.player:
            continue
        down, right = list(MOVES.values())[rules.player.index(facing)]
        target = (frame, cell[0] + down, cell[1] + right)
        block = int(before[target])
        # Whether the tools sufficed is the simulator's to say: the block truly went away.
        if block in rules.removable and true_after[target] != block:
            hits.append(bool(after[target] == true_after[target]))
            blocks[block].append(hits[-1])
    return {**_share(hits), "blocks": {rules.names[n]: _share(h) for n, h in blocks.items() if h}}


def landmarks(
    tiles: Int[np.ndarray, "row column"], cell: tuple[int, int], rules: TileRules
) -> Int[np.ndarray, "row column"]:
    """Return the map with the player and the mobs unknown (-1): they move on their own."""
    ground = tiles[: rules.map_rows].copy()
    ground[np.isin(ground, (*rules.mobs, *rules.arrows))] = -1
    ground[cell] = -1
    return ground


def is_visible(ground: Int[np.ndarray, "row column"], shift: tuple[int, int]) -> bool:
    """Whether a scroll of the map by so many rows and columns can be seen: a plain looks alike."""
    moved = shifted(ground, *shift)
    return int(((moved != ground) & (moved >= 0) & (ground >= 0)).sum()) >= _LEAST_CELLS


def _share(hits: list[bool]) -> dict[str, Any]:
    return {"share": fraction(hits), "cases": len(hits)}
