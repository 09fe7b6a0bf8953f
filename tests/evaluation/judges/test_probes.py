"""Judges learn what they are to read, and come back from disk as they were."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation import toy_car
from worldgen.checkpoint import save_tensors
from worldgen.config import load_config
from worldgen.data.episodes import Dataset
from worldgen.errors import CheckpointError, ConfigError, DataError
from worldgen.evaluation.judges.probe_data import load_motion_data, motion_columns, tile_classes
from worldgen.evaluation.judges.probes import (
    MotionProbe,
    MotionProbeConfig,
    Probe,
    TileColumn,
    TileProbe,
    TileProbeConfig,
    load_probes,
    save_probes,
)

_MOTION = MotionProbeConfig(
    frame_height=64, frame_width=64, quantities=("yaw_change", "speed"), width=4
)
_TILES = TileProbeConfig(
    columns=(
        TileColumn(name="tiles", rows=1, classes=("grass", "stone")),
        TileColumn(name="inventory", rows=1, classes=("none", "one")),
    ),
    width=4,
)


def test_a_trained_motion_probe_reads_motion_on_episodes_it_has_not_seen(tmp_path: Path) -> None:
    from train.probe import run

    recording = tmp_path / "recording"
    toy_car.record(recording, episodes={"train": 6, "test": 2})
    folder = run(
        load_config(
            "probe",
            [
                "experiment=car_racing",
                f"run_folder={tmp_path / 'run'}",
                f"data.folder={recording}",
                "training.length.steps=120",
                "training.log_steps=60",
                "training.optimiser.learning_rate=0.003",
                "probes.road.width=6",
                "probes.dashboard.width=2",
            ],
        )
    )
    probes, figures = load_probes(folder.path / "probe.safetensors")
    assert set(probes) == {"road", "dashboard"}
    assert figures["road"]["yaw_change"]["correlation"] > 0.7
    assert figures["road"]["speed"]["correlation"] > 0.7
    road = probes["road"]
    assert isinstance(road, MotionProbe)
    data = load_motion_data(Dataset(recording), "test", road.config, 1000)
    readings = road.read(data.clips(np.arange(20), 3))
    assert readings["speed"].shape == (20, 1)
    assert np.abs(readings["speed"][:, 0] - data.targets[:20, 1]).mean() < 1.5


def test_the_road_view_hides_the_dashboard_and_the_other_way_round() -> None:
    frames = torch.rand(2, 3, 3, 64, 64) * 2 - 1
    other = frames.clone()
    other[..., 56:, :] = torch.rand(2, 3, 3, 8, 64)
    road = MotionProbe(_MOTION)
    assert torch.equal(road(frames), road(other))
    config = MotionProbeConfig(
        frame_height=64, frame_width=64, quantities=("speed",), view="dashboard", width=4
    )
    dashboard = MotionProbe(config)
    assert not torch.equal(dashboard(frames), dashboard(other))
    other = frames.clone()
    other[..., :56, :] = 0
    assert torch.equal(dashboard(frames), dashboard(other))


def test_readings_belong_to_the_last_of_their_frames() -> None:
    probe = MotionProbe(_MOTION)
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 64, 64, 3), dtype=np.uint8)
    readings = probe.read(frames)["speed"]
    assert readings.shape == (2, 4)
    assert readings[:, 1] == pytest.approx(probe.read(frames[:, 1:4])["speed"][:, 0], abs=1e-5)


def test_a_tile_probe_reads_each_tile_from_its_own_pixels() -> None:
    probe = TileProbe(_TILES)
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 16, 24, 3), dtype=np.uint8)
    classes = probe.read(frames)
    assert classes.shape == (3, 2, 2, 3)
    single = probe.read(frames[1, 1][None, 8:16, 16:24])
    assert single[0, 0, 0] == classes[1, 1, 1, 2]


def test_probes_come_back_from_disk_with_their_figures(tmp_path: Path) -> None:
    probes: dict[str, Probe] = {"road": MotionProbe(_MOTION), "tiles": TileProbe(_TILES)}
    path = tmp_path / "probe.safetensors"
    save_probes(path, probes, {"road": {"speed": {"correlation": 0.9}}, "tiles": {"accuracy": 1.0}})
    loaded, figures = load_probes(path)
    assert figures["tiles"] == {"accuracy": 1.0}
    assert loaded["road"].config == _MOTION
    assert loaded["tiles"].config == _TILES
    for name, probe in probes.items():
        for key, tensor in probe.state_dict().items():
            assert torch.equal(tensor, loaded[name].state_dict()[key])


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    save_tensors(path, {"a": torch.zeros(1)}, {"kind": "model"})
    with pytest.raises(CheckpointError, match="holds 'model', not probes"):
        load_probes(path)


def test_impossible_probes_are_refused() -> None:
    with pytest.raises(ConfigError, match="dashboard_rows must be in 1 to 63"):
        MotionProbeConfig(frame_height=64, frame_width=64, quantities=("speed",), dashboard_rows=64)
    with pytest.raises(ConfigError, match="two classes or more"):
        TileProbeConfig(columns=(TileColumn(name="tiles", rows=1, classes=("one",)),))


def test_tile_classes_are_numbered_through_the_columns() -> None:
    columns = {"tiles": np.array([[[0, 1]], [[1, 1]]]), "inventory": np.array([[1, 0], [0, 0]])}
    classes = tile_classes(columns, _TILES, leading_axes=1)
    assert classes.tolist() == [[[0, 1], [3, 2]], [[1, 1], [2, 2]]]
    with pytest.raises(DataError, match="no column 'inventory'"):
        tile_classes({"tiles": columns["tiles"]}, _TILES, leading_axes=1)
    columns["tiles"][0] = 7
    with pytest.raises(DataError, match="holds class 7"):
        tile_classes(columns, _TILES, leading_axes=1)


def test_yaw_change_is_derived_and_wrapped() -> None:
    yaw = np.array([[3.0, 3.1, -3.1, -3.0]])
    change = motion_columns({"yaw": yaw})["yaw_change"]
    assert change[0] == pytest.approx([0.0, 0.1, 2 * np.pi - 6.2, 0.1])


def test_the_shipped_configuration_names_the_classes_of_the_environment() -> None:
    crafter = pytest.importorskip("envs.crafter")
    from worldgen.config import build

    config = load_config("probe", ["experiment=crafter"])
    tiles = build(TileProbeConfig, config.probes.tiles)
    assert tiles.columns[0].classes == crafter.TILE_CLASSES
    assert tiles.rows == 8
