"""Does a place look the same again: walks out and back in worlds of tiles, beside the simulator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Int, UInt8
from tqdm import tqdm

from worldgen.errors import ActionError, ConfigError
from worldgen.evaluation.clips import ClipSpec
from worldgen.evaluation.judges.probes import TileProbe
from worldgen.evaluation.judges.tile_following import (
    MOVES,
    TileRules,
    is_visible,
    landmarks,
    player_cell,
)
from worldgen.evaluation.live import frames_of, sessions_after, step_together
from worldgen.evaluation.machine import hardware, versions
from worldgen.evaluation.material import clips_of, tile_probe
from worldgen.evaluation.measures import fraction, shift_agreement
from worldgen.evaluation.pages.film_strip import draw_film_strip
from worldgen.evaluation.pages.strips import Strip
from worldgen.generation import Session
from worldgen.generation.batch import LARGEST_BATCH
from worldgen.pipeline import World
from worldgen.real_environment import RealEnvironment
from worldgen.tokenizers.action import parse_action

__all__ = ["RevisitProtocol", "Walks", "compare_visits", "evaluate_revisits", "walk"]

_SIDEWAYS = {
    "left": ("up", "down"),
    "right": ("up", "down"),
    "up": ("left", "right"),
    "down": ("left", "right"),
}
_BACK = {"left": "right", "right": "left", "up": "down", "down": "up"}

Frames = UInt8[np.ndarray, "walk time height width 3"]
_Step = Callable[[Sequence[str]], np.ndarray]
"""Takes a move of each walk and returns the frames that follow, [walk, height, width, 3]."""


@dataclass(frozen=True, kw_only=True)
class RevisitProtocol:
    """Which walks are taken."""

    out_steps: int = 10
    """Steps on the way out, and as many back."""
    clips: int = 48
    """Test clips whose contexts walks begin from."""
    decoder: str | None = None
    """None: the first on the world's card."""

    def __post_init__(self) -> None:
        if self.out_steps < 1 or self.clips < 1:
            raise ConfigError(
                f"walks need one step out and one clip at least, got {self.out_steps} steps and "
                f"{self.clips} clips"
            )


@dataclass(frozen=True, kw_only=True)
class Walks:
    """Walks out and back, and what was seen on them."""

    frames: Frames
    """From where they begin to the one after the last move."""
    tiles: Int[np.ndarray, "walk time row column"]
    """Classes that the judge reads from the frames, of the rows of the map."""
    moves: tuple[tuple[str, ...], ...]
    """For each walk."""
    scrolled: Bool[np.ndarray, "walk step"]
    """Whether the map scrolled with the move, or at least did not visibly stay."""
    cell: tuple[int, int]
    """Row and column of the player in every frame."""

    @property
    def went_out(self) -> Bool[np.ndarray, " walk"]:
        """Walks without a blocked step on the way out."""
        half = self.scrolled.shape[1] // 2
        return np.asarray(self.scrolled[:, :half].all(axis=1))

    @property
    def came_back(self) -> Bool[np.ndarray, " walk"]:
        """Walks without a blocked step."""
        return np.asarray(self.scrolled.all(axis=1))

    def pick(self, rows: Sequence[int] | np.ndarray) -> "Walks":
        """Return the walks of these numbers."""
        chosen = np.asarray(rows, np.int64)
        return Walks(
            frames=self.frames[chosen],
            tiles=self.tiles[chosen],
            moves=tuple(self.moves[row] for row in chosen),
            scrolled=self.scrolled[chosen],
            cell=self.cell,
        )


def evaluate_revisits(
    world: World,
    protocol: RevisitProtocol,
    *,
    data: Path | None = None,
    beside: Sequence[World] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Return how much of a place looks the same when the player comes back, as JSON holds it.

    From the contexts of test clips the player walks out some steps, straight on where a judge sees
    the way free and else to a side, and back on the same way. Frame *i* of the way out and frame
    *i* from the end of the way back show one place. The figure is the share of tiles of the map
    that the judge reads alike in both: of all tiles but the player's own, and of those that were
    out of the picture in between, which is memory. Beside it stand what different places share,
    and walks of the same kind in the simulator, where creatures move too: figures of the ground
    leave out tiles with a creature in either frame.

    Every world, and the simulator, goes its own way: what one invents ahead may block what another
    leaves free. Walks that were blocked on the way out do not count. Figures are given of all that
    `went_out`, and of those that `came_back` without a blocked step: only these show the same place
    for sure, but a world that forgets the way is often blocked by what it invents instead, and the
    luckier walks would flatter it.

    An interrupt (Ctrl-C) ends the measurement with the walks that are complete.

    Args:
        world: World to measure; a tile probe lies in its folder.
        protocol: Which walks.
        data: Recording whose test split gives the contexts; without it the clips of the world's
            `evaluation.json`, rendered again by the real environment.
        beside: Worlds with frames and actions of the same kind, measured from the same contexts.
        progress: Show a bar on the terminal.

    Raises:
        DataError: If there are no test clips, or the world has no tile probe.
        EnvironmentMissingError: If the clips must be rendered and the environment is missing.
        ConfigError: If a world is not played by such moves, or the decoder is unknown.
    """
    probe = tile_probe(world)
    rules = TileRules.from_config(probe.config)
    worlds = _named([world, *beside])
    settings = {name: _moves(each) for name, each in worlds.items()}
    for each in worlds.values():
        # Refuses an unknown decoder before anything is read.
        each.session(decoder=protocol.decoder)
    clips, environment = clips_of(
        world, protocol.clips, data, lambda _: None, horizon=2 * protocol.out_steps
    )
    cell = player_cell(
        rearrange(probe.read(clips.frames), "clip time row column -> (clip time) row column"), rules
    )
    taken: dict[str, list[Walks]] = {}
    sources = len(worlds) + (environment is not None)
    with tqdm(
        total=len(clips) * 2 * protocol.out_steps * sources,
        desc=f"evaluate revisits {world.name}",
        unit="frame",
        mininterval=1.0,
        disable=not progress,
    ) as bar:

        def go(first_frames: np.ndarray, step: _Step) -> Walks:
            def told(moves: Sequence[str]) -> np.ndarray:
                bar.update(len(moves))
                return step(moves)

            return walk(first_frames, told, probe, cell, protocol.out_steps)

        try:
            for first in range(0, len(clips), LARGEST_BATCH):
                part = clips.pick(range(first, min(first + LARGEST_BATCH, len(clips))))
                made = {}
                for name, each in worlds.items():
                    sessions = sessions_after(
                        each, part, decoder=protocol.decoder, first_seed=first
                    )
                    made[name] = [go(frames_of(sessions), _dream(sessions, settings[name]))]
                if environment is not None:
                    made["simulator"] = [
                        go(*_simulate(environment, spec, settings[world.name]))
                        for spec in part.specs
                    ]
                for name, walks in made.items():
                    taken.setdefault(name, []).extend(walks)
        except KeyboardInterrupt:
            if not taken:
                raise
    walked = {name: _join(parts) for name, parts in taken.items()}
    count = len(walked[world.name].moves)
    figures = {name: _figures(each, rules) for name, each in walked.items()}
    return {
        "world": world.name,
        "world_hash": world.hash,
        "interrupted": count < len(clips),
        "protocol": {
            "out_steps": protocol.out_steps,
            "walks": count,
            "episodes": len({spec.seed for spec in clips.specs[:count]}),
            "decoder": protocol.decoder or world.card.decoders[0],
            "temperature": world.card.sampling.temperature,
            "source": "recording" if data is not None else "rendered by the real environment",
        },
        "simulator": figures.pop("simulator", None),
        "another_place": _another_place(
            probe.read(clips.frames[:count, clips.context - 1])[:, : rules.map_rows], cell
        ),
        "worlds": {name: {"hash": worlds[name].hash, **each} for name, each in figures.items()},
        "hardware": hardware(),
        "versions": versions(),
        "film_strips": [
            strip.to_json()
            for source, each in walked.items()
            for strip in _strips(source, each, rules)
        ],
    }


def _moves(world: World) -> dict[str, np.ndarray]:
    schema = world.action_tokenizer.schema
    try:
        return {move: parse_action(move, schema) for move in MOVES}
    except ActionError as error:
        raise ConfigError(
            f"walks lead {', '.join(MOVES)}, and world {world.name!r} is not played so: {error}"
        ) from error


def _named(worlds: Iterable[World]) -> dict[str, World]:
    """Return worlds by name, with their folders where names are equal."""
    named: dict[str, World] = {}
    for world in worlds:
        name = world.name if world.name not in named else f"{world.name} ({world.folder})"
        named[name] = world
    return named


def _dream(sessions: Sequence[Session], settings: Mapping[str, np.ndarray]) -> _Step:
    def step(moves: Sequence[str]) -> np.ndarray:
        step_together(sessions, np.stack([settings[move] for move in moves])[:, None])
        return frames_of(sessions)

    return step


def _simulate(
    environment: RealEnvironment, spec: ClipSpec, settings: Mapping[str, np.ndarray]
) -> tuple[UInt8[np.ndarray, "1 height width 3"], _Step]:
    """Lead the environment to the end of a clip's context; return that frame, and what goes on."""
    return spec.lead(environment)[None], lambda moves: environment.step(settings[moves[0]])[None]


def walk(
    first_frames: UInt8[np.ndarray, "walk height width 3"],
    step: _Step,
    probe: TileProbe,
    cell: tuple[int, int],
    out_steps: int,
) -> Walks:
    """Return walks out and back.

    The way out begins where the most tiles in sight are free, goes straight on while it can, then
    to the side where more tiles are free.

    Args:
        first_frames: Where they begin.
        step: Takes a move of each walk and returns the frames that follow, as `first_frames`.
        probe: Reads what is free.
        cell: Row and column of the player in every frame.
        out_steps: Steps on the way out.
    """
    rules = TileRules.from_config(probe.config)
    frames, tiles = [first_frames], [probe.read(first_frames)[:, : rules.map_rows]]
    moves: list[list[str]] = [[] for _ in first_frames]
    for number in range(2 * out_steps):
        for seen, taken in zip(tiles[-1], moves, strict=True):
            taken.append(
                _way_on(seen, cell, rules, taken)
                if number < out_steps
                else _BACK[taken[2 * out_steps - 1 - number]]
            )
        frames.append(step([taken[-1] for taken in moves]))
        tiles.append(probe.read(frames[-1])[:, : rules.map_rows])
    grids = np.stack(tiles, axis=1)
    scrolled = [
        [
            _scrolled(grids[row, at], grids[row, at + 1], move, cell, rules)
            for at, move in enumerate(taken)
        ]
        for row, taken in enumerate(moves)
    ]
    return Walks(
        frames=np.stack(frames, axis=1),
        tiles=grids,
        moves=tuple(map(tuple, moves)),
        scrolled=np.array(scrolled, bool),
        cell=cell,
    )


def _way_on(
    tiles: Int[np.ndarray, "row column"],
    cell: tuple[int, int],
    rules: TileRules,
    moves: Sequence[str],
) -> str:
    """Return the next move on a way out."""
    if moves and _free(tiles, cell, rules, moves[-1]):
        return moves[-1]
    ways = _SIDEWAYS[moves[-1]] if moves else tuple(MOVES)
    return max(ways, key=lambda way: _free(tiles, cell, rules, way))


def _free(
    tiles: Int[np.ndarray, "row column"], cell: tuple[int, int], rules: TileRules, move: str
) -> int:
    """Return how many tiles next to each other are free that way."""
    (row, column), (down, right), count = cell, MOVES[move], 0
    while True:
        row, column = row + down, column + right
        inside = 0 <= row < rules.map_rows and 0 <= column < tiles.shape[1]
        if not inside or tiles[row, column] not in rules.walkable:
            return count
        count += 1


def _scrolled(
    before: Int[np.ndarray, "row column"],
    after: Int[np.ndarray, "row column"],
    move: str,
    cell: tuple[int, int],
    rules: TileRules,
) -> bool:
    """Whether the map went on with a move; on a plain that looks alike, it is taken to have."""
    down, right = MOVES[move]
    known = landmarks(before, cell, rules)
    if not is_visible(known, (-down, -right)):
        return True
    agreement = shift_agreement(known, landmarks(after, cell, rules))
    return agreement[-down, -right] >= agreement[0, 0]


def _join(parts: Sequence[Walks]) -> Walks:
    return Walks(
        frames=np.concatenate([part.frames for part in parts]),
        tiles=np.concatenate([part.tiles for part in parts]),
        moves=tuple(taken for part in parts for taken in part.moves),
        scrolled=np.concatenate([part.scrolled for part in parts]),
        cell=parts[0].cell,
    )


def compare_visits(walks: Walks, rules: TileRules) -> list[dict[str, Any]]:
    """Return the shares of tiles that are the same again, of pairs of frames of one place.

    The player's own tile does not count, for he looks the other way.

    Args:
        walks: At least one.
        rules: Say which classes are creatures.

    Returns:
        For each pair, the innermost first, `frames_between`, the distance of its two frames, and
        the shares, None where there is no such tile: `all_tiles`; `tiles_that_left` of those that
        were out of the picture in between; `ground` and `ground_that_left`, without tiles that
        show a creature in either frame.
    """
    ground, cell = walks.tiles, walks.cell
    last = ground.shape[1] - 1
    offsets = np.cumsum(
        [[(0, 0), *(MOVES[move] for move in names)] for names in walks.moves], axis=1
    )  # [walk, time, 2]: where the player is, counted from his first place.
    places = np.moveaxis(np.indices(ground.shape[2:]), 0, -1)
    counted = np.ones(ground.shape[2:], bool)
    counted[cell] = False
    pairs = []
    for frame in range(last // 2 - 1, -1, -1):
        before, after = ground[:, frame], ground[:, last - frame]
        left = np.zeros(before.shape, bool)
        for between in range(frame + 1, last - frame):
            moved = (offsets[:, frame] - offsets[:, between])[:, None, None] + places
            left |= ((moved < 0) | (moved >= ground.shape[2:])).any(axis=-1)
        pairs.append(
            {"frames_between": last - 2 * frame, **_same(before, after, counted, left, rules)}
        )
    return pairs


def _same(
    before: Int[np.ndarray, "walk row column"],
    after: Int[np.ndarray, "walk row column"],
    counted: Bool[np.ndarray, "row column"],
    left: Bool[np.ndarray, "walk row column"],
    rules: TileRules,
) -> dict[str, float | None]:
    creatures = (*rules.mobs, *rules.arrows)
    still = ~np.isin(before, creatures) & ~np.isin(after, creatures)
    same = before == after
    return {
        "all_tiles": fraction(same[:, counted]),
        "tiles_that_left": fraction(same[counted & left]),
        "ground": fraction(same[counted & still]),
        "ground_that_left": fraction(same[counted & still & left]),
    }


def _figures(walks: Walks, rules: TileRules) -> dict[str, Any]:
    counted = {"went_out": walks.went_out, "came_back": walks.came_back}
    pairs = {
        name: compare_visits(walks.pick(np.flatnonzero(rows)), rules) if rows.any() else None
        for name, rows in counted.items()
    }
    return {
        "walks": {name: int(rows.sum()) for name, rows in counted.items()},
        "after_the_walk": {name: each[-1] if each else None for name, each in pairs.items()},
        "by_frames_between": pairs,
    }


def _another_place(
    first: Int[np.ndarray, "place row column"], cell: tuple[int, int]
) -> float | None:
    """Return the share of tiles that agree between real frames of different contexts."""
    counted = np.ones(first.shape[1:], bool)
    counted[cell] = False
    hits = [(first == np.roll(first, by, axis=0))[:, counted] for by in range(1, len(first))]
    return fraction(np.concatenate(hits)) if hits else None


def _strips(source: str, walks: Walks, rules: TileRules) -> list[Strip]:
    """Return ways out, with the way back below: the best, the median and the worst."""
    out = np.flatnonzero(walks.went_out)
    if not len(out):
        return []
    same = [compare_visits(walks.pick([int(row)]), rules)[-1]["all_tiles"] for row in out]
    order = np.argsort([-share for share in same], kind="stable")
    strips = []
    for name, place in {"best": 0, "median": len(order) // 2, "worst": -1}.items():
        row, share = int(out[order[place]]), same[order[place]]
        frames, steps = walks.frames[row], walks.frames.shape[1] // 2
        title = f"{source}, {name} walk: {100 * share:.0f} % of tiles the same"
        if not walks.came_back[row]:
            title += ", blocked on the way back"
        picture = draw_film_strip(
            {"out": frames[: steps + 1], "back": frames[: steps - 1 : -1]}, scale=1
        )
        strips.append(Strip(title=f"{title} ({_told(walks.moves[row][:steps])})", picture=picture))
    return strips


def _told(moves: Sequence[str]) -> str:
    """Return moves in words, such as `left 4, up 6`."""
    parts: list[tuple[str, int]] = []
    for move in moves:
        if parts and parts[-1][0] == move:
            parts[-1] = (move, parts[-1][1] + 1)
        else:
            parts.append((move, 1))
    return ", ".join(f"{move} {count}" for move, count in parts)
