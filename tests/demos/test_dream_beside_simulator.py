"""The demo of dream and simulator: files, sizes, and worlds that have no simulator."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import worldgen
from demos.dream_beside_simulator import main, peak_signal_to_noise, reality
from tests.factories import tiny_world
from worldgen.data.video import read_video
from worldgen.pipeline import EnvironmentCard
from worldgen.real_environment import RealEnvironment

CAR = EnvironmentCard(id="envs.car_racing:worldgen/CarRacing-v0")


def test_strip_and_video_show_dream_and_simulator_under_the_same_actions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("Box2D")
    folder = tiny_world(tmp_path / "world", environment=CAR)
    out = tmp_path / "story"
    words = ["--world", str(folder), "--actions", "gas*3,left+gas*2", "--scale", "2"]
    assert main([*words, "--out", str(out)]) == 0
    assert read_video(out.with_suffix(".mp4")).shape == (6, 2 * 64, 2 * (64 + 4 + 64), 3)
    assert Image.open(out.with_suffix(".png")).width > 6 * 128
    printed = capsys.readouterr().out
    assert "step    5:" in printed
    assert "story.png and" in printed


def test_the_simulator_begins_where_the_dream_begins(tmp_path: Path) -> None:
    pytest.importorskip("Box2D")
    world = worldgen.load(tiny_world(tmp_path / "world", environment=CAR))
    actions = np.array([[1, 1], [0, 2]])
    start = world.starts[1]
    assert start.environment_actions is not None
    with RealEnvironment(CAR.id, CAR.options) as environment:
        environment.reset(seed=1)
        every = [*start.environment_actions, *actions]
        frames = [environment.step(action) for action in every]
    np.testing.assert_array_equal(reality(world, actions, start=1), frames[-3:])


def test_a_world_without_a_simulator_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_world(tmp_path / "world")
    assert main(["--world", str(folder), "--actions", "gas"]) == 2
    assert "does not say how its simulator comes to start 0" in capsys.readouterr().err


def test_equal_frames_are_infinitely_near() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    grey = np.stack([black[0], black[0] + 51])
    np.testing.assert_allclose(peak_signal_to_noise(grey, black), [np.inf, 20 * np.log10(5)])
