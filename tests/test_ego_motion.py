"""Poses to motion and back: oracles of geometry, round trips, and what is wrong in files."""

import math

import numpy as np
import pytest

from tests.reference_cases import Case, reference_cases
from worldgen.ego_motion import (
    check_poses,
    has_ego_data,
    integrate,
    interpolate_poses,
    path_length,
    relative_motion,
    resample_motion,
)
from worldgen.errors import DataError

REFERENCE = reference_cases("drivingworld", lambda c: "quaternion_order" in c)


def some_motion(steps: int = 60, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack(
        [
            random.normal(0, 8, steps),
            random.uniform(-0.5, 3, steps),
            random.normal(0, 0.4, steps),
        ],
        -1,
    )


def in_space(poses: np.ndarray) -> np.ndarray:
    """Poses of the plane as poses in space."""
    half = poses[:, 2] / 2
    nothing = np.zeros(len(poses))
    return np.stack(
        [poses[:, 0], poses[:, 1], nothing, nothing, nothing, np.sin(half), np.cos(half)], -1
    )


def composed(motion: np.ndarray) -> np.ndarray:
    """The matrix of all steps one after the other, as an independent way to the end of a drive."""
    whole = np.eye(3)
    for yaw, x, y in motion:
        cosine, sine = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
        whole = whole @ np.array([[cosine, -sine, x], [sine, cosine, y], [0, 0, 1]])
    return whole


@pytest.mark.parametrize("case", REFERENCE)
def test_reference_ego_motion(case: Case) -> None:
    poses = case.inputs["ego_pose"].double().numpy()
    if case.config["quaternion_order"].replace(" ", "") != "x,y,z,w":
        poses = poses[:, [0, 1, 2, 4, 5, 6, 3]]
    motion = np.concatenate([np.zeros((1, 3)), relative_motion(poses)])
    outputs = {name: tensor.numpy() for name, tensor in case.outputs.items()}
    np.testing.assert_allclose(motion[:, 1:], outputs["rel_pose_f64"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(motion[:, :1], outputs["rel_yaw_f64"], rtol=0, atol=1e-6)
    single = motion.astype(np.float32)
    np.testing.assert_allclose(single[None, :, 1:], outputs["pose"], rtol=0, atol=2e-4)
    np.testing.assert_allclose(single[None, :, :1], outputs["yaw"], rtol=0, atol=2e-4)


def test_motion_in_the_vehicles_own_axes() -> None:
    # Looking along +y, a step to -x is one to the left.
    poses = np.array([[5.0, 5.0, np.pi / 2], [4.0, 7.0, np.pi]])
    np.testing.assert_allclose(relative_motion(poses), [[90.0, 2.0, 1.0]], atol=1e-12)
    np.testing.assert_allclose(relative_motion(in_space(poses)), [[90.0, 2.0, 1.0]], atol=1e-12)


def test_integration_agrees_with_matrices_and_is_undone() -> None:
    motion = some_motion()
    poses = integrate(motion)
    end = composed(motion)
    np.testing.assert_allclose(poses[-1, :2], end[:2, 2], atol=1e-9)
    assert math.cos(poses[-1, 2]) == pytest.approx(end[0, 0], abs=1e-9)
    np.testing.assert_allclose(relative_motion(poses), motion, atol=1e-9)
    np.testing.assert_allclose(relative_motion(in_space(poses)), motion, atol=1e-9)


def test_motion_does_not_depend_on_where_the_drive_begins() -> None:
    motion = some_motion()
    batch = integrate(np.stack([motion, motion]), np.array([[0.0, 0.0, 0.0], [1e3, -2e3, 300.0]]))
    np.testing.assert_allclose(batch[1, 0], [1e3, -2e3, 300.0])
    np.testing.assert_allclose(relative_motion(batch)[1], motion, atol=1e-7)
    np.testing.assert_allclose(path_length(batch)[0], path_length(batch)[1], atol=1e-7)
    # Headings of more than a turn are the same directions.
    turned = batch[0] + [0.0, 0.0, 6 * np.pi]
    assert relative_motion(turned[:2])[0, 0] == pytest.approx(motion[0, 0])


def test_a_pose_without_ego_data_hides_the_motion_around_it() -> None:
    for poses in (integrate(some_motion(6)), in_space(integrate(some_motion(6)))):
        poses[3, 0] = np.inf
        assert has_ego_data(relative_motion(poses)).tolist() == [
            True,
            True,
            False,
            False,
            True,
            True,
        ]
    motion = some_motion(6)
    motion[2, 1] = np.inf
    assert has_ego_data(integrate(motion)).tolist() == [True] * 3 + [False] * 4


@pytest.mark.parametrize("ratio", [2, 3, 5])
def test_resampling_by_whole_ratios_composes_and_divides(ratio: int) -> None:
    motion = some_motion(60)
    coarse = resample_motion(motion, 10.0, 10.0 / ratio)
    assert len(coarse) == 60 // ratio
    np.testing.assert_allclose(integrate(coarse)[:, :2], integrate(motion)[::ratio, :2], atol=1e-9)
    fine = resample_motion(motion, 10.0, 10.0 * ratio)
    assert len(fine) == 60 * ratio
    np.testing.assert_allclose(composed(fine[:ratio]), composed(motion[:1]), atol=1e-9)
    # The parts of a step are alike.
    np.testing.assert_allclose(fine[:ratio], np.tile(fine[0], (ratio, 1)), atol=1e-9)
    np.testing.assert_allclose(resample_motion(fine, 10.0 * ratio, 10.0), motion, atol=1e-9)


def test_resampling_a_circle_gives_the_same_circle() -> None:
    # A tenth of a second at 10 m/s and 0.5 rad/s: a circle of 20 m.
    step = composed(np.tile([[math.degrees(0.005), 0.1, 0.0]], (10, 1)))
    motion = np.tile([[math.degrees(0.05), step[0, 2], step[1, 2]]], (100, 1))
    resampled = resample_motion(motion, 10.0, 50 / 3)
    assert len(resampled) == 166
    assert np.ptp(resampled, axis=0) == pytest.approx(0, abs=1e-9)
    assert resampled[0, 0] == pytest.approx(math.degrees(0.03))
    ends = integrate(motion)[50], integrate(resampled)[83]  # 5 s and 4.98 s
    assert np.linalg.norm(ends[0][:2] - ends[1][:2]) == pytest.approx(0.2, rel=0.01)


def test_resampling_around_missing_rows() -> None:
    motion = some_motion(12)
    motion[5] = np.nan
    coarse = resample_motion(motion, 10.0, 5.0)
    assert has_ego_data(coarse).tolist() == [True, True, False, True, True, True]
    np.testing.assert_allclose(coarse[3:], resample_motion(motion[6:], 10.0, 5.0), atol=1e-9)
    with pytest.raises(DataError, match="above 0"):
        resample_motion(motion, 0.0, 5.0)


def test_interpolation_by_the_shorter_turn() -> None:
    times = np.array([0.0, 1.0])
    poses = np.array([[0.0, 0.0, math.radians(170)], [0.0, 0.0, math.radians(-170)]])
    middle = interpolate_poses(times, poses, np.array([0.5]))
    assert abs(math.cos(middle[0, 2]) + 1) < 1e-12
    space = interpolate_poses(times, in_space(poses), np.array([0.25, 0.5]))
    yaw = np.degrees(2 * np.arctan2(space[:, 5], space[:, 6])) % 360
    np.testing.assert_allclose(yaw, [175.0, 180.0], atol=1e-9)
    # The negative of a quaternion is the same rotation.
    flipped = in_space(poses) * [[1.0] * 7, [1.0] * 3 + [-1.0] * 4]
    again = interpolate_poses(times, flipped, np.array([0.25, 0.5]))
    np.testing.assert_allclose(np.abs(np.sum(again[:, 3:] * space[:, 3:], -1)), 1.0, atol=1e-12)


def test_interpolation_meets_the_poses_and_holds_the_ends() -> None:
    times, poses = np.array([0.0, 0.5, 2.0]), integrate(some_motion(2))
    np.testing.assert_allclose(interpolate_poses(times, poses, times), poses, atol=1e-12)
    np.testing.assert_allclose(
        interpolate_poses(times, poses, np.array([-1.0, 9.0])), poses[[0, 2]], atol=1e-12
    )
    poses[1] = np.nan
    found = interpolate_poses(times, poses, np.array([0.0, 0.1, 0.5, 1.0, 2.0]))
    assert has_ego_data(found).tolist() == [True, False, False, False, True]
    with pytest.raises(DataError, match="do not increase"):
        interpolate_poses(times[::-1], poses, times)


def drive(rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Times 0.1 s apart, poses of 12 m/s along a bend."""
    return np.arange(rows) * 0.1, integrate(np.tile([[1.0, 1.2, 0.0]], (rows - 1, 1)))


@pytest.mark.parametrize("space", [False, True])
def test_a_sound_file_has_no_problems(space: bool) -> None:
    times, poses = drive()
    check = check_poses(times, in_space(poses) if space else poses, source="poses.csv")
    assert check.kept.all()
    assert check.follows.tolist() == [False] + [True] * 39
    assert check.problems == ()


def test_bad_rows_are_left_out_and_named() -> None:
    times, poses = drive()
    poses[7, 1] = np.nan
    times[20] = times[18]
    check = check_poses(times, poses, source="poses.csv", row_numbers=range(2, 42))
    assert np.flatnonzero(~check.kept).tolist() == [7, 20]
    assert any("row 9: numbers are missing" in problem for problem in check.problems)
    assert any("row 22: the time is not later" in problem for problem in check.problems)
    # One row that is missing is no gap.
    assert check.follows[[8, 21]].all()


def test_time_that_jumps_back_is_late_until_it_has_caught_up() -> None:
    times, poses = drive()
    times[20:] -= 0.35
    check = check_poses(times, poses, source="poses.csv")
    assert np.flatnonzero(~check.kept).tolist() == [20, 21, 22]


def test_gaps_and_jumps_begin_new_episodes() -> None:
    times, poses = drive()
    times[30:] += 4.0
    poses[15:, 0] += 500.0
    check = check_poses(times, poses, source="log.json")
    assert np.flatnonzero(~check.follows).tolist() == [0, 15, 30]
    assert check.kept.all()
    assert any("row 31: more than 0.25 s" in problem for problem in check.problems)
    assert any("row 16: a jump" in problem for problem in check.problems)


@pytest.mark.parametrize(
    ("length", "time", "unit"),
    [
        (1000.0, 1.0, "millimetres .then 12"),
        (100.0, 1.0, "centimetres"),
        (1.0, 1e6, "microseconds .then 0.1 s"),
        (1.0, 1e9, "nanoseconds"),
    ],
)
def test_wrong_units_are_named(length: float, time: float, unit: str) -> None:
    times, poses = drive()
    with pytest.raises(DataError, match=rf"poses\.csv: .*{unit}"):
        check_poses(times * time, poses * [length, length, 1.0], source="poses.csv")


def test_headings_in_degrees_are_named() -> None:
    times, poses = drive()
    with pytest.raises(DataError, match="likely degrees"):
        check_poses(times, poses * [1.0, 1.0, 180 / np.pi], source="poses.csv")


def test_degrees_of_latitude_are_suspected() -> None:
    times, poses = drive()
    check = check_poses(times, poses * [1e-5, 1e-5, 1.0], source="poses.csv")
    assert any("degrees and not in metres" in problem for problem in check.problems)


def test_what_cannot_be_used_at_all() -> None:
    times, poses = drive()
    with pytest.raises(DataError, match=r"a\.csv: 0 of 40 rows can be used"):
        check_poses(times, np.full_like(poses, np.inf), source="a.csv")
    with pytest.raises(DataError, match="one time each"):
        check_poses(times[1:], poses, source="a.csv")
    with pytest.raises(DataError, match="rows of 3 numbers"):
        relative_motion(np.zeros((4, 5)))
    broken = in_space(poses)
    broken[4, 3:] = 0
    check = check_poses(times, broken, source="a.csv")
    assert any("row 5: the quaternion" in problem for problem in check.problems)
