"""Recordings whose actions become the motion between their poses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.factories import car_schema
from worldgen.cli import main
from worldgen.data.episodes import (
    Column,
    Dataset,
    DatasetMetadata,
    Episode,
    EpisodeInfo,
    EpisodeWriter,
)
from worldgen.data.motion import convert_to_motion
from worldgen.ego_motion import integrate
from worldgen.errors import DataError
from worldgen.tokenizers.action import ActionTokenizer, is_driving_schema

RATE = 10.0
LENGTH = 12


def drive(seed: int, length: int = LENGTH) -> np.ndarray:
    random = np.random.default_rng(seed)
    motion = np.stack(
        [
            random.normal(0, 5, length - 1),
            random.uniform(0.5, 2, length - 1),
            random.normal(0, 0.1, length - 1),
        ],
        -1,
    )
    return integrate(motion, (3.0, -4.0, random.uniform(-3, 3)))


def write_recording(
    folder: Path,
    poses: list[np.ndarray],
    *,
    angle_unit: str = "radian",
    length_unit: str = "simulation unit",
) -> Path:
    columns = {
        "x": Column(dtype="float64", unit=length_unit),
        "y": Column(dtype="float64", unit=length_unit),
        "yaw": Column(dtype="float64", unit=angle_unit),
        "reward": Column(dtype="float64"),
        "cut": Column(dtype="bool"),
    }
    DatasetMetadata(
        environment={"id": "Car-v0", "options": {}},
        frames_per_second=RATE,
        frame_height=8,
        frame_width=8,
        action_schema=car_schema().to_json(),
        columns=columns,
        seeds={"train": 0},
    ).write(folder)
    for split in ("train", "validation", "test"):
        (folder / split).mkdir()
    for index, rows in enumerate(poses):
        random = np.random.default_rng(index)
        EpisodeWriter(folder / "train", RATE).write(
            Episode(
                frames=random.integers(0, 256, (len(rows), 8, 8, 3), np.uint8),
                actions=random.integers(0, 3, (len(rows), 2)),
                columns={
                    "x": rows[:, 0],
                    "y": rows[:, 1],
                    "yaw": rows[:, 2],
                    "reward": np.arange(len(rows)) * 1.0,
                    "cut": np.arange(len(rows)) == len(rows) - 1,
                },
                info=EpisodeInfo(index=index, seed=70 + index, length=len(rows), driver="hand"),
            )
        )
    return folder


@pytest.mark.parametrize("quarter_turns", [0, 1, -1, 2])
def test_actions_lead_through_the_recorded_poses(tmp_path: Path, quarter_turns: int) -> None:
    # A recording may count its headings from any axis.
    poses = [drive(seed) - [0.0, 0.0, quarter_turns * np.pi / 2] for seed in range(6)]
    folder = write_recording(tmp_path / "old", poses)
    conversion = convert_to_motion(folder, tmp_path / "new")
    assert conversion.episodes == {"train": 6, "validation": 0, "test": 0}
    assert conversion.problems == ()
    old, new = Dataset(folder), Dataset(tmp_path / "new")
    assert is_driving_schema(new.metadata.schema)
    assert new.metadata.environment is None
    tokenizer = ActionTokenizer(new.metadata.schema)
    for info, rows in zip(new.episodes("train"), poses, strict=True):
        before, after = old.load(info), new.load(info)
        assert after.info == before.info
        assert np.array_equal(after.frames, before.frames)
        for name, column in before.columns.items():
            assert np.array_equal(after.columns[name], column)
        assert np.array_equal(after.columns["action_steering"], before.actions[:, 0])
        assert np.array_equal(after.columns["action_pedals"], before.actions[:, 1])
        start = rows[0] + [0.0, 0.0, quarter_turns * np.pi / 2]
        np.testing.assert_allclose(
            integrate(after.actions[:-1], start)[:, :2], rows[:, :2], atol=1e-9
        )
        # Nobody saw where the last action led.
        assert np.array_equal(after.actions[-1], after.actions[-2])
        assert tokenizer.encode(after.actions).shape == (LENGTH, 3)
    assert set(new.metadata.columns) == set(new.load_columns(info)) - {"action"}


def test_videos_are_linked_and_the_old_recording_stays(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "old", [drive(0)])
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    convert_to_motion(folder, tmp_path / "new", schema="car_racing")
    name = "train/episode_000000.mp4"
    assert (tmp_path / "new" / name).samefile(folder / name)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_headings_in_degrees(tmp_path: Path) -> None:
    poses = [drive(seed) for seed in range(3)]
    radians = write_recording(tmp_path / "radians", poses)
    turned = [rows * [1.0, 1.0, 180 / np.pi] for rows in poses]
    degrees = write_recording(tmp_path / "degrees", turned, angle_unit="degree")
    for folder in (radians, degrees):
        convert_to_motion(folder, folder.with_name(folder.name + "_new"))
    one, other = (Dataset(tmp_path / f"{name}_new") for name in ("radians", "degrees"))
    for info in one.episodes("train"):
        np.testing.assert_allclose(one.load(info).actions, other.load(info).actions, atol=1e-9)


def test_poses_in_space(tmp_path: Path) -> None:
    poses = [drive(seed) for seed in range(3)]
    planar = write_recording(tmp_path / "planar", poses)
    # The same recording with quaternions, which say where x points and need no guess.
    shutil.copytree(planar, tmp_path / "space")
    described = json.loads((tmp_path / "space" / "dataset.json").read_text())
    names = ("x", "y", "z", "qx", "qy", "qz", "qw")
    described["columns"] |= {name: {"dtype": "float64"} for name in names}
    (tmp_path / "space" / "dataset.json").write_text(json.dumps(described))
    for path, rows in zip(sorted((tmp_path / "space").rglob("*.npz")), poses, strict=True):
        columns = dict(np.load(path))
        nothing, half = np.zeros(len(rows)), rows[:, 2] / 2
        columns |= {"z": nothing, "qx": nothing, "qy": nothing}
        np.savez(path, qz=np.sin(half), qw=np.cos(half), **columns)
    convert_to_motion(planar, tmp_path / "one")
    convert_to_motion(tmp_path / "space", tmp_path / "other", columns=names)
    one, other = Dataset(tmp_path / "one"), Dataset(tmp_path / "other")
    for info in one.episodes("train"):
        np.testing.assert_allclose(one.load(info).actions, other.load(info).actions, atol=1e-9)


def test_headings_that_turn_the_wrong_way_are_refused(tmp_path: Path) -> None:
    poses = [drive(seed, 60) * [1.0, 1.0, -1.0] for seed in range(8)]
    folder = write_recording(tmp_path / "old", poses)
    with pytest.raises(DataError, match=r"do not drive where they head.*counterclockwise"):
        convert_to_motion(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_episodes_with_bad_poses_are_left_out_and_named(tmp_path: Path) -> None:
    poses = [drive(seed) for seed in range(4)]
    poses[1][5, 0] = np.nan
    poses[2][6:, 0] += 1e4
    folder = write_recording(tmp_path / "old", poses, length_unit="metre")
    conversion = convert_to_motion(folder, tmp_path / "new")
    kept = [info.index for info in Dataset(tmp_path / "new").episodes("train")]
    assert kept == [0, 3]
    text = "\n".join(map(str, conversion.problems))
    assert "episode_000001.npz: row 6: numbers are missing" in text
    assert "episode_000002.npz: row 7: a jump" in text


def test_wrong_units_and_missing_columns(tmp_path: Path) -> None:
    poses = [drive(seed) * [1e3, 1e3, 1.0] for seed in range(2)]
    folder = write_recording(tmp_path / "old", poses, length_unit="metre")
    with pytest.raises(DataError, match=r"likely in .*millimetres"):
        convert_to_motion(folder, tmp_path / "new")
    with pytest.raises(DataError, match="no column lon to take poses from; it has x, y"):
        convert_to_motion(folder, tmp_path / "new", columns=("x", "lon", "yaw"))
    with pytest.raises(DataError, match="3 columns"):
        convert_to_motion(folder, tmp_path / "new", columns=("x", "y"))


def test_motion_beyond_the_bins_is_clipped_and_named(tmp_path: Path) -> None:
    poses = drive(0)
    poses[7:, :2] += 9 * np.array([np.cos(poses[6, 2]), np.sin(poses[6, 2])])
    folder = write_recording(tmp_path / "old", [poses, drive(1), drive(2)])
    conversion = convert_to_motion(folder, tmp_path / "new", schema="drivingworld")
    assert conversion.clipped >= 1
    assert any("x reaches" in str(problem) for problem in conversion.problems)
    new = Dataset(tmp_path / "new")
    assert new.load(new.episodes("train")[0]).actions[6, 1] == 8.0


def test_the_command_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_recording(tmp_path / "old", [drive(0), drive(1)])
    words = ["data", "convert", str(folder), "--actions", "ego_motion", "--schema"]
    assert main([*words, "car_racing", "--out", str(tmp_path / "new")]) == 0
    assert "train: 2 episodes, 24 frames" in capsys.readouterr().out
    described = json.loads((tmp_path / "new" / "dataset.json").read_text())
    assert [group["name"] for group in described["action_schema"]["groups"]] == ["yaw", "x", "y"]
    # Not a second time into the same folder, not with the bins of Minecraft, not of nothing.
    assert main([*words, "car_racing", "--out", str(tmp_path / "new")]) == 2
    assert main([*words, "vpt_camera", "--out", str(tmp_path / "other")]) == 2
    assert "vpt_camera is of Minecraft" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    words[2] = str(tmp_path / "empty")
    assert main([*words, "auto", "--out", str(tmp_path / "other")]) == 2
    assert "no dataset.json" in capsys.readouterr().err
