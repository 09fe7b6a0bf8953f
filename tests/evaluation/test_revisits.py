"""Walks out and back: what stays, what is forgotten, what was blocked, each in worlds that are known."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation import toy_tiles
from tests.factories import tiny_world
from worldgen.cli import main
from worldgen.errors import ConfigError, DataError
from worldgen.evaluation.judges.probes import TileProbe
from worldgen.evaluation.judges.tile_following import TileRules
from worldgen.evaluation.live import step_together
from worldgen.evaluation.material import clips_of
from worldgen.evaluation.revisits import (
    RevisitProtocol,
    Walks,
    compare_visits,
    evaluate_revisits,
    walk,
)
from worldgen.generation import Session
from worldgen.pipeline import World, load

RULES = TileRules.from_config(toy_tiles.PROBE)


@pytest.fixture(scope="module")
def probe() -> TileProbe:
    return toy_tiles.probe()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(toy_tiles.world(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_tiles.record(tmp_path_factory.mktemp("recording"))


def go(probe: TileProbe, environments: Sequence[toy_tiles.ToyTiles], out_steps: int) -> Walks:
    """Walk in environments that were reset."""
    first = np.stack([each._frame() for each in environments])

    def step(moves: Sequence[str]) -> np.ndarray:
        taken = [list(toy_tiles.MOVES).index(move) + 1 for move in moves]
        pairs = zip(environments, taken, strict=True)
        return np.stack([each.step(number)[0] for each, number in pairs])

    return walk(first, step, probe, toy_tiles.CELL, out_steps)


def started(count: int, **options: bool | float) -> list[toy_tiles.ToyTiles]:
    environments = [toy_tiles.ToyTiles(**options) for _ in range(count)]  # type: ignore[arg-type]
    for seed, each in enumerate(environments):
        each.reset(seed=seed)
    return environments


def test_a_world_that_stays_is_the_same_again(probe: TileProbe) -> None:
    environments = started(6)
    walks = go(probe, environments, 10)
    assert walks.came_back.all()
    assert [each.place.tolist() for each in environments] == [[20, 20]] * 6
    for pair in compare_visits(walks, RULES):
        assert pair["all_tiles"] == pair["ground"] == 1.0
    assert compare_visits(walks, RULES)[-1]["tiles_that_left"] == 1.0
    assert [pair["frames_between"] for pair in compare_visits(walks, RULES)] == [*range(2, 21, 2)]


def test_what_is_forgotten_is_what_had_left_the_picture(probe: TileProbe) -> None:
    walks = go(probe, started(12, forgetful=True, stones=0.0), 10)
    assert walks.came_back.all()
    for pair in compare_visits(walks, RULES):
        # One of three grounds, drawn again each time.
        assert pair["tiles_that_left"] == pytest.approx(1 / 3, abs=0.12)
    near = compare_visits(walks, RULES)[0]
    # One step out and back: one column of six tiles, or one row of eight, was out of the picture.
    assert 1 - 8 / 47 < near["all_tiles"] < 1.0


def test_what_left_the_picture_is_found_by_numbering_the_map(probe: TileProbe) -> None:
    walks = go(probe, started(4), 7)
    size = walks.tiles.shape[2:]
    for row, moves in enumerate(walks.moves):
        corner = np.array([50, 50])
        views = []
        for move in (None, *moves):
            corner = corner + (toy_tiles.MOVES[move] if move else (0, 0))
            across, down = np.meshgrid(np.arange(size[1]), np.arange(size[0]))
            views.append((corner[0] + down) * 1000 + corner[1] + across)
        for number, pair in enumerate(compare_visits(walks.pick([row]), RULES)):
            frame = 7 - 1 - number
            kept = [np.isin(views[frame], views[between]) for between in range(frame, 15 - frame)]
            left = ~np.logical_and.reduce(kept)
            assert (pair["tiles_that_left"] is None) == (not left.any())
            spoilt = walks.tiles.copy()
            spoilt[row, 14 - frame][left] = -1
            again = replace(walks, tiles=spoilt).pick([row])
            changed = compare_visits(again, RULES)[number]
            assert changed["tiles_that_left"] == (0.0 if left.any() else None)
            left[toy_tiles.CELL] = False
            assert changed["all_tiles"] == pytest.approx(1 - left.sum() / (left.size - 1))


def test_a_blocked_step_is_seen_and_creatures_are_not_ground(probe: TileProbe) -> None:
    class Shutting(toy_tiles.ToyTiles):
        """Puts a stone behind the player once he has turned round."""

        taken = 0

        def step(self, action: object) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
            self.taken += 1
            if self.taken == 6:
                back = toy_tiles.MOVES[list(toy_tiles.MOVES)[int(action) - 1]]  # type: ignore[call-overload]
                self.map[tuple(self.place + back)] = toy_tiles.CLASSES.index("stone")
            return super().step(action)

    shutting = Shutting(stones=0.0)
    shutting.reset(seed=0)
    walks = go(probe, [shutting], 5)
    assert walks.went_out.all()
    assert not walks.came_back.any()
    assert not walks.scrolled[0, 5]
    calm = go(probe, started(1, stones=0.0), 5)
    tiles = calm.tiles.copy()
    tiles[0, 0, 0, 0] = toy_tiles.CLASSES.index("cow")
    pair = compare_visits(replace(calm, tiles=tiles), RULES)[-1]
    assert pair["all_tiles"] == pytest.approx(46 / 47)
    assert pair["ground"] == 1.0


def test_a_walk_without_a_way_out_does_not_count(probe: TileProbe) -> None:
    walled = started(1, stones=0.0)
    walled[0].map[:] = toy_tiles.CLASSES.index("stone")
    # Alike everywhere, so a scroll could not be seen: another ground tells it.
    walled[0].map[20, 21:25] = 0
    walled[0].map[::2, ::3] = toy_tiles.CLASSES.index("cow")
    walled[0].map[20, 20] = 0
    walks = go(probe, walled, 8)
    assert not walks.went_out.any()


def test_the_command_measures_worlds_beside_the_simulator(
    world: World, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    words = ["evaluate", "revisits", "--world", str(world.folder), "--data", str(recording)]
    words += ["--beside", str(world.folder), "--clips", "9", "--out-steps", "3"]
    assert main([*words, *files]) == 0
    assert "two different places" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["simulator"]["walks"]["came_back"] == figures["simulator"]["walks"]["went_out"]
    assert figures["simulator"]["after_the_walk"]["came_back"]["all_tiles"] == 1.0
    assert 0.2 < figures["another_place"] < 0.6
    one, other = figures["worlds"].values()
    assert one == other
    assert "film_strips" not in figures
    page = (tmp_path / "out.html").read_text()
    assert "data:image/png" in page
    assert "those that came back" in page


def test_an_interrupt_leaves_the_walks_that_are_complete(
    world: World, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def stopped(sessions: Sequence[Session], known: np.ndarray) -> None:
        taken.append(known)
        if len(taken) > 5:
            raise KeyboardInterrupt
        step_together(sessions, known)

    monkeypatch.setattr("worldgen.evaluation.revisits.step_together", stopped)
    protocol = RevisitProtocol(out_steps=2, clips=10)
    result = evaluate_revisits(world, protocol, data=recording, progress=False)
    assert result["interrupted"]
    assert result["protocol"]["walks"] == 8


def test_mistakes_are_told(
    world: World, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tiny_world(tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"world 'tiny' is not played so: .* no action 'up'"):
        evaluate_revisits(world, RevisitProtocol(), data=recording, beside=[load(plain)])
    with pytest.raises(ConfigError, match="unknown decoder"):
        evaluate_revisits(world, RevisitProtocol(decoder="x"), data=tmp_path / "not read")
    with pytest.raises(DataError, match="give a recording of the same kind"):
        clips_of(load(plain), 1, recording, lambda _: None)
    words = ["evaluate", "revisits", "--world", str(plain), "--data", str(recording)]
    assert main(words) == 2
    assert "no judge of tiles" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="one step out"):
        RevisitProtocol(out_steps=0)
