"""Ways that are drawn or read from a file, as steps of a vehicle."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.factories import tiny_driven_world, tiny_world
from worldgen.ego_motion import integrate, path_length
from worldgen.errors import DataError
from worldgen.pipeline import load
from worldgen.serving.player import Player, actions_from
from worldgen.serving.route import (
    MAX_ROUTE_STEPS,
    MAX_TRAJECTORY_BYTES,
    drawn_route,
    ego_motion_facts,
    recorded_route,
)
from worldgen.tokenizers.action import driving_schema

ORIGIN = np.zeros(3)
ELSEWHERE = np.array([40.0, -15.0, 2.5])


@pytest.fixture(scope="module", params=["car_racing", "drivingworld"])
def player(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Player:
    """A vehicle that stands at the start of a tiny world."""
    folder = tmp_path_factory.mktemp("driven")
    world = load(tiny_driven_world(folder, schema=driving_schema(request.param)))
    return Player.open(world, seed=0, start=0, decoder=None)


def curve(name: str) -> np.ndarray:
    """Return points of a line that begins at the origin along x, `[point, 2]`."""
    part = np.linspace(0, 1, 200)
    if name == "straight":
        return np.stack([120 * part, 0 * part], -1)
    if name == "bends":
        return np.stack([160 * part, 12 * np.sin(4 * math.pi * part) * part], -1)
    if name == "loop":
        angle = 2 * math.pi * 1.5 * part
        return 40 * np.stack([np.sin(angle), 1 - np.cos(angle)], -1)
    assert name == "back"
    return np.stack([-100 * part, 0 * part], -1)


def placed(line: np.ndarray, pose: np.ndarray) -> np.ndarray:
    cosine, sine = np.cos(pose[2]), np.sin(pose[2])
    return np.asarray(line @ np.array([[cosine, sine], [-sine, cosine]]) + pose[:2])


def distances(places: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Return how far each place is from the nearest point of a line of many points."""
    offsets = places[:, None] - line[None]
    return np.asarray(np.linalg.norm(offsets, axis=-1).min(-1))


@pytest.mark.parametrize("start", [ORIGIN, ELSEWHERE], ids=["origin", "elsewhere"])
@pytest.mark.parametrize("name", ["straight", "bends", "loop"])
def test_a_drawn_line_is_followed_to_its_end(player: Player, name: str, start: np.ndarray) -> None:
    line = placed(curve(name), start)
    route = drawn_route(line.tolist(), start, player)
    assert distances(route.poses[:, :2], line).max() < 2.0
    assert np.linalg.norm(route.poses[-1, :2] - line[-1]) < 2.5
    # Not a short cut where the line comes by itself again.
    flat = np.append(line, np.zeros((len(line), 1)), -1)
    assert path_length(route.poses) == pytest.approx(path_length(flat), rel=0.05)


def test_a_line_behind_the_vehicle_is_reached_by_turning(player: Player) -> None:
    line = curve("back")
    route = drawn_route(line, ORIGIN, player)
    assert distances(route.poses[-5:, :2], line).max() < 2.0
    assert np.linalg.norm(route.poses[-1, :2] - line[-1]) < 10.0


def test_the_route_is_where_the_session_will_be(player: Player) -> None:
    route = drawn_route(curve("bends"), ELSEWHERE, player)
    assert np.array_equal(
        actions_from(route.actions.astype(np.float32), player.world), route.actions
    )
    np.testing.assert_allclose(route.poses, integrate(route.actions, ELSEWHERE), atol=1e-9)


def test_a_route_goes_at_the_present_speed(player: Player) -> None:
    moving = Player.open(player.world, seed=0, start=0, decoder=None)
    for _ in range(3):
        moving.step(np.array([0.0, 0.9, 0.0]))
    slow, usual = (drawn_route(curve("straight"), ORIGIN, each) for each in (moving, player))
    assert slow.actions[:, 1].mean() == pytest.approx(0.9, abs=0.07)
    key = player.world.action_tokenizer.schema.named["forward"]["x"]
    assert usual.actions[:, 1].mean() == pytest.approx(float(key), abs=0.07)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (None, "list of places"),
        ("nonsense", "list of places"),
        ([[1, 2, 3]], "list of places"),
        ([], "1 to"),
        ([[math.nan, 0]], "1 to"),
        ([[1e300, 0]], "1 to"),
        ([[0.1, 0]], "shorter than one step"),
        ([[9e8, 0]], f"more than {MAX_ROUTE_STEPS:,} steps"),
        ([[0, 0]] * 30_000, "1 to"),
    ],
)
def test_what_is_no_way_is_refused(player: Player, points: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        drawn_route(points, ORIGIN, player)


def test_a_file_is_driven_as_it_says_from_where_the_vehicle_is(player: Player) -> None:
    content = "yaw_deg,x_m,y_m,steps\n2,1.5,0,20\n0,1.5,0.1,10\n"
    route = recorded_route("bend.csv", content, ELSEWHERE, player)
    wanted = np.repeat(np.array([[2.0, 1.5, 0.0], [0.0, 1.5, 0.1]]), [20, 10], 0)
    expected = integrate(wanted, ELSEWHERE)
    assert np.linalg.norm(route.poses[-1, :2] - expected[-1, :2]) < 1.5
    assert route.problems == ()
    assert len(route.actions) == 30


def test_what_does_not_fit_the_bins_is_said(player: Player) -> None:
    route = recorded_route("fast.csv", "yaw_deg,x_m,y_m\n0,99,0\n0,1,0\n", ORIGIN, player)
    assert len(route.problems) == 1
    assert "x reaches 99 metres a step" in route.problems[0]
    assert route.problems[0].startswith("fast.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", "", "ends in .csv, .json"),
        ("a", "", "ends in .csv, .json"),
        ("a.json", "[" * 100_000, "no JSON"),
        ("a.csv", 'yaw_deg,x_m,y_m\n"1\n2",3,4\n', "row 3"),
        ("a.csv", "yaw_deg,x_m,y_m,steps\n0,1,0,900000\n", "the most here"),
        ("a.csv", "# steps_per_second: 1e-9\nyaw_deg,x_m,y_m\n0,1,0\n0,1,0\n", "steps in all"),
        ("a.csv", "time_s,x_m,y_m\n0,0,0\n1,1,0\n2,2,0\n1e9,3,0\n", "steps in all"),
        ("a.csv", "x" * (MAX_TRAJECTORY_BYTES + 1), "larger than 1,024 KiB"),
    ],
)
def test_hostile_files_are_refused_before_they_take_memory(
    player: Player, name: str, content: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        recorded_route(name, content, ORIGIN, player)


def test_facts_are_those_of_the_card(player: Player, tmp_path: Path) -> None:
    facts = ego_motion_facts(player.world)
    assert facts is not None
    assert facts["length_unit"] == "m"
    key = float(player.world.action_tokenizer.schema.named["forward"]["x"])
    assert facts["usual_speed"] == key * 16.0
    assert ego_motion_facts(load(tiny_world(tmp_path / "keys"))) is None
