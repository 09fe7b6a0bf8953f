"""`worldgen rollout` with trajectories, with the model at the wheel, and for so many seconds."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.factories import tiny_driven_world, tiny_world
from worldgen.cli import main
from worldgen.data.trajectory import read_trajectory, write_motion
from worldgen.data.video import read_video
from worldgen.ego_motion import resample_motion
from worldgen.generation import RolloutLog
from worldgen.pipeline import load
from worldgen.tokenizers.action import ActionTokenizer, driving_schema

RATE = 16.0


@pytest.fixture
def world(tmp_path: Path) -> str:
    return str(tiny_driven_world(tmp_path / "world", frames_per_second=RATE))


def drive(path: Path, steps: int = 5, rate: float = 8.0) -> np.ndarray:
    motion = np.tile([[4.0, 2.0, 0.1]], (steps, 1))
    write_motion(path, motion, rate)
    return motion


def rollout(world: str, *words: str) -> int:
    return main(["rollout", "--world", world, *words])


def through_the_bins(motion: np.ndarray) -> np.ndarray:
    tokenizer = ActionTokenizer(driving_schema("car_racing"))
    return tokenizer.decode(tokenizer.encode(motion))


def test_a_trajectory_is_driven_at_the_worlds_frame_rate(world: str, tmp_path: Path) -> None:
    motion = drive(tmp_path / "drive.csv")
    video, driven = tmp_path / "out.mp4", tmp_path / "driven.csv"
    words = ("--trajectory", str(tmp_path / "drive.csv"), "--out", str(video))
    assert rollout(world, *words, "--motion", str(driven)) == 0
    assert len(read_video(video)) == 11
    expected = through_the_bins(resample_motion(motion, 8.0, RATE))
    found = read_trajectory(driven).motion_at(RATE)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # What was driven can be driven again.
    logs = [tmp_path / "first.json", tmp_path / "again.json"]
    for path, log in zip((tmp_path / "drive.csv", driven), logs, strict=True):
        assert rollout(world, "--trajectory", str(path), "--log", str(log)) == 0
    assert RolloutLog.read(logs[0]) == RolloutLog.read(logs[1])


def test_seconds_hold_the_end_of_a_trajectory_and_repeat_a_list(world: str, tmp_path: Path) -> None:
    drive(tmp_path / "drive.csv", steps=2, rate=RATE)
    log = tmp_path / "log.json"
    words = ("--seconds", "0.5", "--log", str(log))
    assert rollout(world, "--trajectory", str(tmp_path / "drive.csv"), *words) == 0
    held = RolloutLog.read(log).actions
    assert len(held) == 8
    assert len(set(held)) == 1
    assert rollout(world, "--actions", "forward,left,right", *words) == 0
    repeated = RolloutLog.read(log).actions
    assert len(repeated) == 8
    assert repeated[:3] == repeated[3:6]
    assert len(set(repeated)) == 3
    # Less than all of it.
    assert rollout(world, "--actions", "forward*99", *words) == 0
    assert len(RolloutLog.read(log).actions) == 8


def test_a_list_of_actions_may_stand_in_a_file(world: str, tmp_path: Path) -> None:
    path, log, same = (tmp_path / name for name in ("list.txt", "log.json", "same.json"))
    path.write_text("forward*2, left\nforward+right*2\n")
    assert rollout(world, "--actions", str(path), "--log", str(log)) == 0
    words = ("--actions", "forward*2,left,forward+right*2", "--log", str(same))
    assert rollout(world, *words) == 0
    assert RolloutLog.read(log) == RolloutLog.read(same)


def test_a_trajectory_may_be_repeated(world: str, tmp_path: Path) -> None:
    write_motion(tmp_path / "drive.csv", np.array([[4.0, 1.0, 0.0], [-4.0, 1.0, 0.0]]), RATE)
    log = tmp_path / "log.json"
    words = ("--trajectory", str(tmp_path / "drive.csv"), "--repeat", "3", "--log", str(log))
    assert rollout(world, *words) == 0
    actions = RolloutLog.read(log).actions
    assert actions == actions[:2] * 3


def test_the_model_drives_itself(world: str, tmp_path: Path) -> None:
    log, driven = tmp_path / "log.json", tmp_path / "driven.csv"
    words = ("--drive", "--seconds", "0.5", "--seed", "7")
    assert rollout(world, *words, "--log", str(log), "--motion", str(driven)) == 0
    session = load(world).session(seed=7)
    for _ in range(8):
        session.step(session.predict_action())
    assert RolloutLog.read(log) == session.log()
    np.testing.assert_allclose(read_trajectory(driven).motion_at(RATE), session.actions, atol=1e-5)
    # Nobody drives twice the same way by accident.
    assert len(np.unique(session.actions, axis=0)) > 1


def test_clipping_is_said_and_the_rest_is_driven(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_motion(tmp_path / "fast.csv", np.array([[0.0, 2.0, 0.0], [0.0, 9.0, 0.0]]), RATE)
    assert rollout(world, "--trajectory", str(tmp_path / "fast.csv")) == 0
    assert re.search(r"fast\.csv: x reaches 9 metres.*in step 1", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--drive",), "for how long with --seconds"),
        (("--actions", "left", "--seconds", "1", "--repeat", "2"), "give one of them"),
        (("--actions", "left", "--seconds", "1e9"), "more than 1,000,000"),
        (("--trajectory", "nothing.csv"), "no trajectory at nothing.csv"),
        (("--actions", "left", "--motion", "WORLD"), "it is a folder"),
    ],
)
def test_mistakes(
    world: str, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rollout(world, *(word.replace("WORLD", world) for word in words)) == 2
    assert message in capsys.readouterr().err


def test_worlds_that_are_not_driven_by_motion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = str(tiny_world(tmp_path / "keys"))
    drive(tmp_path / "drive.csv")
    assert rollout(world, "--trajectory", str(tmp_path / "drive.csv")) == 2
    assert "this one has steering, pedals" in capsys.readouterr().err
    assert rollout(world, "--actions", "gas", "--motion", str(tmp_path / "m.csv")) == 2
    assert "driven by steering, pedals and not by ego motion" in capsys.readouterr().err
    assert rollout(world, "--drive", "--seconds", "1") == 2
    assert "predicts frames and no actions" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [(), ("--actions", "gas", "--drive"), ("--drive", "--seconds", "0")]
)
def test_one_way_to_play_is_needed(world: str, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as error:
        rollout(world, *words)
    assert error.value.code == 2
