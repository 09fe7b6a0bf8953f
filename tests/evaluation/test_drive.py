"""A world of ego motion is measured by where its frames seem to go, and where it goes itself."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation import toy_car
from tests.factories import tiny_driven_world, tiny_world
from worldgen.cli import main
from worldgen.data.episodes import Dataset, DatasetMetadata, Episode, EpisodeWriter
from worldgen.errors import CheckpointError
from worldgen.evaluation.drive import evaluate_drive
from worldgen.evaluation.judges.inverse_dynamics import (
    InverseDynamicsConfig,
    InverseDynamicsModel,
    save_inverse_dynamics,
)
from worldgen.evaluation.judges.probes import MotionProbe, MotionProbeConfig, save_probes
from worldgen.pipeline import World, load
from worldgen.tokenizers.action import driving_schema


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(tiny_driven_world(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pictures of the toy under a steady drive of two metres a step."""
    toys, folder = tmp_path_factory.mktemp("toys"), tmp_path_factory.mktemp("drives")
    toy_car.record(toys, episodes={"test": 2})
    source = Dataset(toys)
    metadata = DatasetMetadata(
        environment=None,
        frames_per_second=16.0,
        frame_height=64,
        frame_width=64,
        action_schema=driving_schema("car_racing").to_json(),
        columns=source.metadata.columns,
    )
    metadata.write(folder)
    writer = EpisodeWriter(folder / "test", 16.0)
    for info in source.episodes("test"):
        motion = np.tile([2.0, 2.0, 0.0], (info.length, 1))
        writer.write(
            Episode(
                frames=source.load(info).frames,
                actions=motion,
                columns={
                    name: values
                    for name, values in source.load_columns(info).items()
                    if name != "action"
                },
                info=info,
            )
        )
    return folder


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = InverseDynamicsConfig(
        frame_height=16, frame_width=16, window_frames=4, channels=(4, 4), width=8
    )
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_inverse_dynamics(path, InverseDynamicsModel(config, driving_schema("car_racing")), {})
    return path


def test_what_is_followed_and_what_is_predicted(world: World, recording: Path, judge: Path) -> None:
    run = {"data": recording, "seconds": 2, "clips": 3, "judge": judge, "progress": False}
    result, again = (evaluate_drive(world, **run) for _ in range(2))  # type: ignore[arg-type]
    assert result["followed"] == again["followed"]
    assert set(result["followed"]) == {"generated", "real_frames", "tokenizer_reconstruction"}
    assert all(figures["clips"] == 3 for figures in result["followed"].values())
    ahead = result["one_second_ahead"]
    # A steady drive goes on as it went: bins are centred on such numbers within a hundredth.
    assert ahead["last_motion_kept"]["deviation_end"] < 0.01
    assert ahead["model"]["deviation_end"] > 0.1
    assert ahead["path_length"] == pytest.approx(32.0, abs=0.5)


def test_the_command_prints_and_writes_what_was_measured(
    world: World,
    recording: Path,
    judge: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.json"
    drive = ["evaluate", "drive", "--world", str(world.folder), "--data", str(recording)]
    sizes = ["--seconds", "1", "--clips", "2"]
    assert main([*drive, *sizes, "--judge", str(judge), "--json", str(out)]) == 0
    assert "driven by the model itself" in capsys.readouterr().out
    assert json.loads(out.read_text())["protocol"]["clips"] == 2
    # Without a judge, and with a world of other actions, there is nothing to measure.
    assert main([*drive, *sizes]) == 2
    assert "has no inverse_dynamics.safetensors to read motion" in capsys.readouterr().err
    other = tiny_world(tmp_path / "other")
    drive[3] = str(other)
    assert main([*drive, *sizes]) == 2
    assert "are no ego motion" in capsys.readouterr().err


def test_a_probe_of_turn_and_speed_is_a_judge_as_well(
    world: World, recording: Path, tmp_path: Path
) -> None:
    config = MotionProbeConfig(
        frame_height=64, frame_width=64, quantities=("yaw_change", "speed"), width=2
    )
    torch.manual_seed(0)
    own = tmp_path / "own"
    shutil.copytree(world.folder, own)
    save_probes(own / "probe.safetensors", {"road": MotionProbe(config)}, {"road": {}})
    # A world that brings such probes needs no other judge.
    result = evaluate_drive(load(own), data=recording, seconds=1, clips=2, progress=False)
    assert result["followed"]["real_frames"]["clips"] == 2
    followed, ahead = result["summary"]
    assert followed["value"] == result["followed"]["generated"]["deviation_mean"]
    assert ahead["value"] == result["one_second_ahead"]["model"]["deviation_mean"]
    config = MotionProbeConfig(frame_height=64, frame_width=64, quantities=("speed",), width=2)
    save_probes(tmp_path / "speed.safetensors", {"speed": MotionProbe(config)}, {"speed": {}})
    with pytest.raises(CheckpointError, match="reads yaw_change and speed"):
        evaluate_drive(world, data=recording, judge=tmp_path / "speed.safetensors", progress=False)
