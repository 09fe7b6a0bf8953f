"""Files with poses or motion: what they mean at another frame rate, and what is wrong in them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from worldgen.data.trajectory import parse_trajectory, read_trajectory, write_motion
from worldgen.ego_motion import integrate, relative_motion
from worldgen.errors import ActionError, DataError
from worldgen.tokenizers.action import (
    ActionSchema,
    ActionTokenizer,
    Axis,
    clip_to_bins,
    driving_schema,
)

EXAMPLES = Path(__file__).parents[2] / "demos" / "trajectories"
STEP = np.array([2.0, 1.2, 0.1])


def bend(steps: int = 20) -> np.ndarray:
    return np.tile(STEP, (steps, 1))


def write(path: Path, header: str, rows: np.ndarray, first: str = "") -> Path:
    lines = [first, header, *(",".join(map(repr, row)) for row in rows.tolist())]
    path.write_text("\n".join(lines))
    return path


def motion_rows(path: Path) -> Path:
    return write(path, "yaw_deg,x_m,y_m", bend(), "# steps_per_second: 10")


def timed_motion_rows(path: Path) -> Path:
    times = np.arange(20)[:, None] * 100.0
    return write(path, "time (ms), yaw [rad], x_cm, y_m", np.hstack([times, bend() * SCALES]))


SCALES = np.array([math.pi / 180, 100.0, 1.0])


def pose_rows(path: Path) -> Path:
    times = 7 + np.arange(21)[:, None] * 0.1
    poses = integrate(bend(), (5.0, -3.0, 1.0)) * [1.0, 1.0, 180 / math.pi]
    return write(path, "time_s,x_m,y_m,heading_deg", np.hstack([times, poses]))


def space_rows(path: Path) -> Path:
    times = np.arange(21)[:, None] * 0.1
    poses = integrate(bend())
    half, nothing = poses[:, 2:] / 2, np.zeros((21, 1))
    columns = [times, poses[:, :2], nothing, nothing, nothing, np.sin(half), np.cos(half)]
    return write(path, "time_s,x_m,y_m,z_m,qx,qy,qz,qw", np.hstack(columns))


def json_motion(path: Path) -> Path:
    path = path.with_suffix(".json")
    content = {"columns": ["steps", "yaw_deg", "x_m", "y_m"], "steps_per_second": 10}
    path.write_text(json.dumps({**content, "rows": [[15, *STEP], [5, *STEP]]}))
    return path


def array_of_poses(path: Path) -> Path:
    path = path.with_suffix(".npy")
    np.save(path, np.hstack([np.arange(21)[:, None] * 0.1, integrate(bend())]))
    return path


@pytest.mark.parametrize(
    "make",
    [motion_rows, timed_motion_rows, pose_rows, space_rows, json_motion, array_of_poses],
)
def test_every_kind_of_file_is_the_same_drive(tmp_path: Path, make: object) -> None:
    assert callable(make)
    trajectory = read_trajectory(make(tmp_path / "drive.csv"))
    assert trajectory.problems == ()
    np.testing.assert_allclose(trajectory.motion_at(10.0), bend(), atol=1e-9)
    # At half the rate two steps are one.
    twice = relative_motion(integrate(bend(2))[[0, 2]])
    np.testing.assert_allclose(trajectory.motion_at(5.0), np.repeat(twice, 10, 0), atol=1e-9)


def test_an_array_of_motion_has_the_rate_of_who_drives(tmp_path: Path) -> None:
    np.save(tmp_path / "drive.npy", bend())
    trajectory = read_trajectory(tmp_path / "drive.npy")
    for rate in (3.0, 16.0):
        np.testing.assert_allclose(trajectory.motion_at(rate), bend())


def test_places_without_headings_are_driven_nose_first(tmp_path: Path) -> None:
    angle = np.linspace(0, math.pi, 91)
    rows = np.stack([angle * 10, 20 * np.sin(angle), 20 - 20 * np.cos(angle)], -1)
    trajectory = read_trajectory(write(tmp_path / "drive.csv", "time_s,x_m,y_m", rows))
    motion = trajectory.motion_at(5.0)
    # A circle of 20 m, half of it in 31.4 s.
    assert len(motion) == 157
    np.testing.assert_allclose(motion[5:-5, 1], 0.4, rtol=0.01)
    np.testing.assert_allclose(motion[5:-5, 0], math.degrees(0.02), rtol=0.02)
    assert np.abs(motion[5:-5, 2]).max() < 0.02


def test_written_motion_is_read_again(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    motion = random.normal(size=(50, 3))
    write_motion(tmp_path / "drive.csv", motion, 50 / 3)
    trajectory = read_trajectory(tmp_path / "drive.csv")
    np.testing.assert_allclose(trajectory.motion_at(50 / 3), motion, atol=1e-6)


@pytest.mark.parametrize("name", ["change_road", "slalom"])
def test_the_examples(name: str) -> None:
    trajectory = read_trajectory(EXAMPLES / f"{name}.csv")
    schema = driving_schema("drivingworld" if name == "change_road" else "car_racing")
    actions, changes = trajectory.actions(schema, 5.0)
    assert changes == ()
    ActionTokenizer(schema).encode(actions)
    # Both turn as much to the left as to the right.
    assert actions[:, 0].sum() == pytest.approx(0)
    if name == "change_road":
        assert len(actions) == 60
        assert (actions[:, 1] == 0.3).all()
        assert actions[[0, 10, 20, 30, 40, 50], 0].tolist() == [1, -1, 0, -1, 1, 0]


def test_what_does_not_fit_is_clipped_and_named(tmp_path: Path) -> None:
    rows = np.tile(STEP, (4, 1)) * [[1.0], [1.0], [40.0], [1.0]]
    path = write(tmp_path / "drive.csv", "yaw_deg,x_m,y_m", rows, "# steps_per_second: 5")
    schema = driving_schema("drivingworld")
    actions, changes = read_trajectory(path).actions(schema, 5.0)
    assert np.array_equal(actions, clip_to_bins(rows, schema)[0])
    assert any("drive.csv: yaw reaches 80 degrees" in change for change in changes)
    assert all("in step 2" in change for change in changes)


def test_bad_rows_of_poses_are_left_out_and_named(tmp_path: Path) -> None:
    lines = pose_rows(tmp_path / "drive.csv").read_text().splitlines()
    lines[5] = "7.3,,,"
    lines.insert(10, "# a remark")
    lines[15] = lines[12]
    (tmp_path / "drive.csv").write_text("\n".join(lines))
    trajectory = read_trajectory(tmp_path / "drive.csv")
    text = "\n".join(trajectory.problems)
    # Rows are called by their lines, so that an editor finds them.
    assert "row 6: numbers are missing" in text
    assert "row 16: the time is not later" in text
    np.testing.assert_allclose(trajectory.motion_at(10.0), bend(), atol=1e-6)


def test_a_gap_is_driven_through_and_named(tmp_path: Path) -> None:
    rows = np.array([[0.0, 0, 0], [0.1, 1, 0], [0.2, 2, 0], [2.2, 22, 0], [2.3, 23, 0]])
    trajectory = read_trajectory(write(tmp_path / "drive.csv", "time_s,x_m,y_m", rows))
    assert any("row 6: more than 1 s after" in problem for problem in trajectory.problems)
    np.testing.assert_allclose(trajectory.motion_at(10.0)[:, 1], 1.0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "time_s,x_m,y_m,heading\n0,0,0,0", "'heading' names no unit; .*heading_deg"),
        ("a.csv", "time_s,x_miles,y_m\n0,0,0", "unknown unit 'miles'"),
        ("a.csv", "time_s,lat,lon\n0,0,0", "unknown column 'lat'"),
        ("a.csv", "x_m,y_m\n0,0", "needed is motion .* or poses"),
        ("a.csv", "x_m,x_m,yaw_deg\n0,0,0", "two columns are 'x'"),
        ("a.csv", "yaw_deg,x_m,y_m\n0,1,0\n0,one,0", "row 3: 'one' is not a number"),
        ("a.csv", "yaw_deg,x_m,y_m\n0,1,0\n0,1", "row 3: 2 numbers for 3 columns"),
        ("a.csv", "yaw_deg,x_m,y_m", "no rows"),
        ("a.csv", "yaw_deg,x_m,y_m,steps\n0,1,0,0.5", "row 2: steps is 0.5"),
        ("a.csv", "yaw_deg,x_m,y_m,steps\n0,1,0,1e6\n0,1,0,9", "more than 1,000,000"),
        ("a.csv", "# steps_per_second: fast\nyaw_deg,x_m,y_m\n0,1,0", "'fast' is not a number"),
        ("a.csv", "# steps_per_second: 0\nyaw_deg,x_m,y_m\n0,1,0", "a number above 0"),
        ("a.csv", "time_s,yaw_deg,x_m,y_m\n0,0,1,0\n0,0,1,0", "row 3: the time is not later"),
        (
            "a.csv",
            "time_s,yaw_deg,x_m,y_m\n0,0,1,0\n1,0,1,0\n2,0,1,0\n9,0,1,0",
            "row 5: 7 s after the row before, where others are 1 s apart",
        ),
        ("a.csv", "time_s,x_m,y_m\n0,0,0\n1,9000,0\n2,18000,0", "likely in millimetres"),
        ("a.csv", "time_s,x_m,y_m\n5,0,0\n4,1,0", "1 of 2 rows can be used"),
        ("a.json", "[1", "no JSON"),
        ("a.json", "[]", "no object"),
        ("a.json", '{"columns": ["x_m"], "rows": 3}', '"rows" must be'),
        ("a.json", '{"columns": 1, "rows": []}', '"columns" must'),
        (
            "a.json",
            '{"columns": ["yaw_deg", "x_m", "y_m"], "rows": [[1, true, 0]]}',
            "row 1: 'True'",
        ),
        ("a.json", '{"columns": ["x_m"], "rows": [], "rate": 5}', "unknown key 'rate'"),
        ("a.npy", "nonsense", "damaged or no plain array"),
        ("a.txt", "0,0,0", "ends in .csv, .json, .npy"),
    ],
)
def test_bad_files_are_refused_by_file_and_row(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_trajectory(path)
    assert name in str(error.value)


def test_bad_arrays_missing_files_and_worlds_of_another_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 5)))
    with pytest.raises(DataError, match=r"shape \[4, 5\]"):
        read_trajectory(tmp_path / "a.npy")
    with pytest.raises(DataError, match="no trajectory at"):
        read_trajectory(tmp_path / "b.npy")
    np.save(tmp_path / "a.npy", bend(1))
    path = write(tmp_path / "a.csv", "yaw_deg,x_m,y_m", bend(1), "# steps_per_second: 10")
    with pytest.raises(DataError, match="shorter than one frame"):
        read_trajectory(path).motion_at(5.0)
    schema = ActionSchema(groups=(Axis("yaw_rate", -1.0, 1.0, 3),))
    with pytest.raises(ActionError, match="this one has yaw_rate"):
        read_trajectory(tmp_path / "a.npy").actions(schema, 5.0)


def test_the_text_of_a_file_is_read_as_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "yaw_deg,x_m,y_m", bend(4), "# steps_per_second: 10")
    parsed = parse_trajectory(path.read_text(), "sent.csv")
    assert parsed.source == "sent.csv"
    np.testing.assert_array_equal(parsed.motion_at(10.0), read_trajectory(path).motion_at(10.0))
    with pytest.raises(DataError, match=r"sent\.npy: a trajectory in text ends in"):
        parse_trajectory("", "sent.npy")


@pytest.mark.parametrize(
    "text",
    [
        "# steps_per_second: 1e-9\nyaw_deg,x_m,y_m\n0,1,0\n0,1,0\n",
        "time_s,x_m,y_m\n0,0,0\n1,1,0\n2,2,0\n1e9,3,0\n",
    ],
)
def test_few_rows_that_last_for_ages_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="more than 1,000,000 steps in all"):
        parse_trajectory(text, "long.csv").motion_at(10.0)
