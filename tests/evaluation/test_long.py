"""Long rollouts in windows: what is real scores as real, what is wrong shows where it begins."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation import toy_car
from tests.factories import car_schema, tiny_world
from worldgen.cli import main
from worldgen.evaluation.frechet import RandomFeatures
from worldgen.evaluation.judges.inverse_dynamics import (
    INVERSE_DYNAMICS_FILE,
    InverseDynamicsConfig,
    InverseDynamicsModel,
    save_inverse_dynamics,
)
from worldgen.evaluation.long import LongProtocol, compare, evaluate_long, measure
from worldgen.pipeline import World, load


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    toy_car.record(folder, episodes={"test": 2})
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tiny_world(tmp_path_factory.mktemp("world"))
    torch.manual_seed(0)
    config = InverseDynamicsConfig(frame_height=16, frame_width=16, channels=(4, 4), width=8)
    judge = InverseDynamicsModel(config, car_schema())
    save_inverse_dynamics(folder / INVERSE_DYNAMICS_FILE, judge, {})
    return load(folder)


def noise(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)


def test_each_figure_tells_its_own_fault() -> None:
    network = RandomFeatures()
    real = measure(noise(300, 0), network)
    same = compare(measure(noise(300, 1), network), real)
    assert same["sharpness"] == pytest.approx(1.0, abs=0.05)
    assert same["motion"] == pytest.approx(1.0, abs=0.05)
    assert same["repeated_frames"] == 0.0
    frames = noise(300, 1)
    blurred = frames.astype(np.float64)
    for axis in (1, 2):
        blurred = (blurred + np.roll(blurred, 1, axis) + np.roll(blurred, -1, axis)) / 3
    wrong = {
        "sharpness": (blurred.astype(np.uint8), 0.0, 0.6),
        "motion": (frames[np.arange(300) // 2], 0.4, 0.6),
        "repeated_frames": (frames[np.arange(300) // 2], 0.45, 0.55),
        "colour_shift": ((frames // 2), 50.0, 80.0),
    }
    for name, (faulty, low, high) in wrong.items():
        figures = compare(measure(faulty, network), real)
        assert low < figures[name] < high, name
        if name in ("sharpness", "colour_shift"):
            assert figures["frechet"] > 2 * same["frechet"]


def test_windows_follow_each_other_and_come_out_the_same_again(
    world: World, recording: Path
) -> None:
    protocol = LongProtocol(seconds=10, rollouts=1, clips=6)
    one, other = (evaluate_long(world, protocol, data=recording, progress=False) for _ in range(2))
    assert [window["from_second"] for window in one["windows"]] == [0.0, 5.0]
    assert one["protocol"]["frames_a_window"] == 80
    assert one["windows"][0]["frechet_over_first"] == 1.0
    assert one["drift"] == one["windows"][1]["frechet_over_first"]
    for a, b in zip(one["windows"], other["windows"], strict=True):
        for window in (a, b):
            del window["milliseconds_a_frame"]
        assert a == b
        assert 0.0 <= a["actions_f1"] <= 1.0
    # A shorter run has the same windows as far as it goes.
    shorter = evaluate_long(
        world, LongProtocol(seconds=5, rollouts=1, clips=6), data=recording, progress=False
    )
    assert shorter["windows"][0]["frechet"] == one["windows"][0]["frechet"]
    # Random weights are far from the toy; two halves of the toy are not.
    halves = one["real_frames"]["frechet_between_halves"]
    assert one["windows"][0]["frechet"] > 5 * halves


def test_the_command_writes_figures_and_a_page(
    world: World, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--world", str(world.folder), "--data", str(recording)]
    files = ["--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    assert main(["evaluate", "long", *where, "--seconds", "5", "--rollouts", "1", *files]) == 0
    assert "Frechet" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert len(figures["windows"]) == 1
    page = (tmp_path / "out.html").read_text()
    assert "data:image/png" in page
    assert "repeated frames" in page


def test_a_model_without_a_policy_is_not_asked_to_drive(
    world: World, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--world", str(world.folder), "--data", str(recording)]
    assert main(["evaluate", "long", *where, "--actions", "policy", "--rollouts", "1"]) == 2
    assert "predicts frames and no actions" in capsys.readouterr().err
