"""Long rollouts in windows: what is real scores as real, what is wrong shows where it begins."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluation import toy_car, toy_tiles
from tests.factories import car_schema, tiny_world
from worldgen.cli import main
from worldgen.data.episodes import Dataset
from worldgen.errors import ConfigError, DataError
from worldgen.evaluation import long
from worldgen.evaluation.clips import load_clips
from worldgen.evaluation.frechet import RandomFeatures
from worldgen.evaluation.judges.inverse_dynamics import (
    INVERSE_DYNAMICS_FILE,
    InverseDynamicsConfig,
    InverseDynamicsModel,
    save_inverse_dynamics,
)
from worldgen.evaluation.long import (
    LongProtocol,
    WindowMoments,
    at_seconds,
    compare,
    evaluate_long,
    measure,
)
from worldgen.evaluation.pages.long_page import read_earlier, write_page
from worldgen.evaluation.pages.report import without_pictures
from worldgen.evaluation.simulators import Simulators
from worldgen.pipeline import EnvironmentCard, World, load


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


def test_windows_that_are_joined_are_one_window() -> None:
    network = RandomFeatures()
    clips = noise(60, 0).reshape(2, 30, 16, 16, 3)
    joined, one_by_one = WindowMoments(), [measure(clip, network) for clip in clips]
    for window in one_by_one:
        joined.merge(window)
    assert joined.frames == 58
    other = measure(noise(40, 1), network)
    expected, found = (compare(window, other) for window in (measure(clips, network), joined))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


def test_what_is_lost_is_told_at_6_60_and_600_seconds() -> None:
    windows = [
        {"frechet_over_first": 1.0 + number, "actions_f1": 0.9 - 0.01 * number}
        for number in range(120)
    ]
    at = at_seconds(windows)
    assert list(at) == ["6", "60", "600"]
    # From 5 s to 10 s, from 55 s to 60 s, from 595 s to 600 s.
    assert [each["frechet_over_first"] for each in at.values()] == [2.0, 12.0, 120.0]
    lost = [each["actions_f1_lost"] for each in at.values()]
    assert lost == pytest.approx([0.0, 0.1, 1.18])
    assert at["60"]["moves_followed_lost"] is None
    assert list(at_seconds(windows[:11])) == ["6"]
    assert at_seconds(windows[:1]) == {}


def test_moves_on_tiles_are_followed_in_real_frames(tmp_path: Path) -> None:
    world = load(toy_tiles.world(tmp_path / "tiles"))
    recording = toy_tiles.record(tmp_path / "recording", episodes=2, length=100)
    result = evaluate_long(
        world, LongProtocol(seconds=5, rollouts=1, clips=4), data=recording, progress=False
    )
    assert result["real_frames"]["moves_followed"] == 1.0
    # Random weights show no player and no map.
    assert (result["windows"][0]["moves_followed"] or 0.0) < 0.9


def test_a_plan_takes_fewer_calls_and_stands_beside_another_run(
    tmp_path: Path, recording: Path
) -> None:
    planner = load(tiny_world(tmp_path / "planner", longest_jump=4, farthest_goal=4))
    plain, planned = (
        evaluate_long(
            planner,
            LongProtocol(seconds=5, rollouts=2, clips=6, plan=plan),
            data=recording,
            progress=False,
        )
        for plan in (None, 4)
    )
    assert plain["windows"][0]["calls_a_frame"] == 1.0
    # At best eight jumps and three steps for the eight gaps of a segment; how many steps go in one
    # batch is the machine's matter.
    assert 11 / 32 <= planned["windows"][0]["calls_a_frame"] <= 1.0
    assert planned["protocol"]["plan"] == 4
    # Frames of a plan are others than those drawn one after the other, under the same actions.
    assert planned["windows"][0]["frechet"] != plain["windows"][0]["frechet"]
    earlier, page = tmp_path / "earlier.json", tmp_path / "page.html"
    earlier.write_text(json.dumps(without_pictures(plain)))
    write_page(planned, page, read_earlier([earlier]))
    assert "tiny, whole_frame, every 4th frame planned" in page.read_text()
    assert page.read_text().count(">tiny, whole_frame<") > 2
    with pytest.raises(DataError, match="evaluate long"):
        read_earlier([tmp_path / "none.json"])
    earlier.write_text('{"windows": []}')
    with pytest.raises(DataError, match="evaluate long"):
        read_earlier([earlier])
    with pytest.raises(ConfigError, match="plan"):
        LongProtocol(plan=4, actions="policy")


def test_an_interrupt_leaves_the_windows_that_are_complete(
    world: World, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def stopped(*arguments: Any) -> dict[str, Any]:
        measured.append(1)
        if len(measured) > 1:
            raise KeyboardInterrupt
        return compare(*arguments)

    monkeypatch.setattr(long, "compare", stopped)
    protocol = LongProtocol(seconds=10, rollouts=1, clips=6)
    figures = evaluate_long(world, protocol, data=recording, progress=False)
    assert figures["interrupted"]
    assert len(figures["windows"]) == 1
    assert figures["protocol"]["seconds"] == 5.0


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


def test_the_simulator_goes_on_beside_a_dream_under_the_same_actions(
    tmp_path: Path, recording: Path
) -> None:
    card = EnvironmentCard(id=toy_car.ENVIRONMENT)
    driven = load(tiny_world(tmp_path / "driven", environment=card))
    clips = load_clips(Dataset(recording), count=3, horizon=12)
    simulators = Simulators(driven, clips.specs)
    actions, context = clips.actions[:, clips.context - 1 :], clips.context
    # In two parts, as windows ask: what was recorded comes again, frame by frame.
    parts = [simulators.roll(actions[:, :5]), simulators.roll(actions[:, 5:])]
    simulators.close()
    np.testing.assert_array_equal(parts[0], clips.frames[:, context - 1 : context + 5])
    np.testing.assert_array_equal(parts[1], clips.frames[:, context + 4 :])

    protocol = LongProtocol(seconds=5, rollouts=2, clips=6)
    window = evaluate_long(driven, protocol, data=recording, progress=False)["windows"][0]
    # A dream of random weights is nowhere near; what it is compared with is.
    assert window["frechet_of_simulator"] < window["frechet"] / 5
    assert window["frechet_to_simulator"] > 5 * window["frechet_of_simulator"]
    alone = load(tiny_world(tmp_path / "alone"))
    assert Simulators.of(alone, clips.specs) is None
    missing = EnvironmentCard(id="no_such_module:Nothing-v0")
    elsewhere = load(tiny_world(tmp_path / "elsewhere", environment=missing))
    assert Simulators.of(elsewhere, clips.specs) is None
