"""nuPlan: JSON index and databases become steps of ego motion; what is wrong is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats.synthetic import numbers
from tests.data.formats.synthetic_drives import (
    motion_of_step,
    nuplan_rows,
    write_json,
    write_nuplan,
    write_nuplan_database,
)
from tests.factories import tiny_tokenizer_config
from worldgen.data.episodes import Dataset, Episode
from worldgen.data.formats import NuPlan, Reading, ReadOptions, open_layout
from worldgen.data.formats.convert import convert
from worldgen.data.token_cache import open_or_build_token_cache
from worldgen.errors import DataError
from worldgen.tokenizers.action.driving import driving_schema
from worldgen.tokenizers.visual import build_visual_tokenizer


def _read(folder: Path, **options: Any) -> tuple[list[Episode], list[str]]:
    reading = Reading(options=ReadOptions(**options))
    episodes = list(open_layout(folder).episodes(reading))
    return episodes, [str(problem) for problem in reading.problems]


def test_scenes_of_an_index_become_frames_with_the_motion_to_the_next(tmp_path: Path) -> None:
    write_nuplan(tmp_path, {"log-a": 12, "log-b": 8})
    layout = open_layout(tmp_path)
    assert isinstance(layout, NuPlan)
    assert layout.content(ReadOptions()).frames_per_second == 10.0
    episodes, problems = _read(tmp_path)
    assert not problems
    # Of the last frame of a drive nobody knows where it leads.
    assert [numbers(episode.frames) for episode in episodes] == [list(range(11)), list(range(7))]
    for episode in episodes:
        expected = np.tile(motion_of_step(0.1), (len(episode.actions), 1))
        assert np.allclose(episode.actions, expected, atol=1e-4)
        assert np.allclose(episode.columns["speed"], 6.0, atol=1e-3)
        assert np.allclose(np.diff(episode.columns["timestamp"]), 0.1)


def test_five_frames_a_second_are_every_second_frame_and_drivingworlds_bins(tmp_path: Path) -> None:
    write_nuplan(tmp_path, {"log-a": 12})
    (episode,), problems = _read(tmp_path, frames_per_second=5.0)
    assert not problems
    assert numbers(episode.frames) == [0, 2, 4, 6, 8]
    assert np.allclose(episode.actions, [motion_of_step(0.2)] * 5, atol=1e-4)
    content = open_layout(tmp_path).content(ReadOptions(frames_per_second=5.0))
    assert content.schema == driving_schema("drivingworld")
    with pytest.raises(DataError, match="20 would have to be made up, ask for 10 or fewer"):
        _read(tmp_path, frames_per_second=20.0)


def test_training_reads_drivingworlds_ids(tmp_path: Path) -> None:
    write_nuplan(tmp_path / "source", {"log-a": 12, "log-b": 12, "log-c": 12})
    options = ReadOptions(size=(64, 64), crop=True, frames_per_second=5.0)
    convert(open_layout(tmp_path / "source"), tmp_path / "out", options)
    dataset = Dataset(tmp_path / "out")
    assert dataset.metadata.frames_per_second == 5.0
    tokenizer = build_visual_tokenizer(tiny_tokenizer_config()).eval()
    cache = open_or_build_token_cache(dataset, "train", tmp_path / "tokens", tokenizer, "0" * 64)
    yaw, x, y = motion_of_step(0.2)
    # Upstream's formulas; the ids of x follow those of yaw, those of y those of x.
    expected = [
        int((yaw + 8 - 8 / 512) * 512 / 16),
        512 + int(x * 128 / 8),
        512 + 128 + int((y + 0.5 - 0.5 / 128) * 128),
    ]
    assert cache.action_ids.tolist() == [expected] * 5


def test_bins_of_another_rate_reach_to_the_same_speeds(tmp_path: Path) -> None:
    write_nuplan(tmp_path, {"log-a": 12})
    axes = open_layout(tmp_path).content(ReadOptions()).schema.groups
    for axis, preset in zip(axes, driving_schema("drivingworld").groups, strict=True):
        assert not isinstance(axis, str)
        assert axis.size == preset.size
        assert 10.0 * axis.value(axis.rest) == 5.0 * preset.value(preset.rest)
        assert axis.low * 10.0 == pytest.approx(preset.low * 5.0)  # type: ignore[union-attr]
        assert axis.high * 10.0 == pytest.approx(preset.high * 5.0)  # type: ignore[union-attr]


def test_databases_are_read_without_an_index(tmp_path: Path) -> None:
    write_nuplan_database(tmp_path, "2021.05.12_veh-35", 9)
    episodes, problems = _read(tmp_path)
    assert not problems
    assert [numbers(episode.frames) for episode in episodes] == [list(range(8))]
    assert np.allclose(episodes[0].actions, [motion_of_step(0.1)] * 8, atol=1e-4)
    assert sorted(path.name for path in (tmp_path / "splits/mini").iterdir()) == [
        "2021.05.12_veh-35.db"
    ]
    report = open_layout(tmp_path).inspect()
    assert [(one.frames, one.actions) for one in report.recordings] == [(9, 9)]
    _, problems = _read_left(tmp_path)
    assert "9 of 9 pictures are missing" in problems[0]


def _read_left(folder: Path) -> tuple[list[Episode], list[str]]:
    """Read another camera than the first, whose pictures are not there."""
    layout = open_layout(folder)
    reading = Reading(options=ReadOptions(camera="CAM_L0", size=(36, 64)))
    return list(layout.episodes(reading)), [str(problem) for problem in reading.problems]


def test_a_report_says_rate_frames_poses_speed_and_gaps(tmp_path: Path) -> None:
    _, rows = nuplan_rows(20)
    write_nuplan(tmp_path, {"log-a": 20}, rows=[*rows[:7], None, *rows[8:]])  # type: ignore[list-item]
    report = open_layout(tmp_path).inspect()
    assert dict(report.frames_per_second) == {"10": 1}
    assert dict(report.frame_sizes) == {"36 x 64": 1}
    assert [(one.frames, one.actions) for one in report.recordings] == [(20, 19)]
    assert report.notes[0].startswith("speed 6 to 6 m/s")
    assert "gaps and jumps inside of recordings: 1" in report.notes[1]
    assert report.notes[2] == "frames without a pose: 1"
    assert any("row 8: numbers are missing" in str(problem) for problem in report.problems)


def test_a_frame_without_a_pose_ends_the_episode_and_nothing_is_joined(tmp_path: Path) -> None:
    _, rows = nuplan_rows(20)
    write_nuplan(tmp_path, {"log-a": 20}, rows=[*rows[:7], None, *rows[8:]])  # type: ignore[list-item]
    episodes, problems = _read(tmp_path)
    assert [numbers(episode.frames) for episode in episodes] == [
        list(range(6)),
        list(range(8, 19)),
    ]
    assert all(np.allclose(one.actions, motion_of_step(0.1), atol=1e-4) for one in episodes)
    assert problems[0].startswith("ego_meta/log-a.json: row 8: numbers are missing")


def test_time_stamps_that_go_backwards_are_left_out(tmp_path: Path) -> None:
    _, rows = nuplan_rows(20)
    rows[9]["timestamp"] -= 500_000
    write_nuplan(tmp_path, {"log-a": 20}, rows=rows)
    episodes, problems = _read(tmp_path)
    assert [numbers(episode.frames) for episode in episodes] == [
        list(range(8)),
        list(range(10, 19)),
    ]
    assert "row 10: the time is not later" in problems[0]


@pytest.mark.parametrize(
    ("key", "factor", "message"),
    [
        ("x", 1000.0, "places are likely in millimetres"),
        ("timestamp", 1000, "time stamps were taken for microseconds"),
    ],
)
def test_wrong_units_are_named_and_cost_that_log_alone(
    tmp_path: Path, key: str, factor: float, message: str
) -> None:
    write_nuplan(tmp_path, {"log-a": 12, "log-b": 12, "log-c": 12})
    path = tmp_path / "ego_meta/log-a.json"
    content = json.loads(path.read_text())
    for row in content["CAM_F0"].values():
        row[key] *= factor
        if key == "x":
            row["y"] *= factor
    write_json(path, content)
    episodes, problems = _read(tmp_path)
    assert len(episodes) == 2
    assert len(problems) == 1
    assert problems[0].startswith("ego_meta/log-a.json: ")
    assert message in problems[0]


def test_missing_and_damaged_files_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    write_nuplan(tmp_path, {"log-a": 12, "log-b": 12, "log-c": 12})
    pictures = sorted((tmp_path / "sensor_blobs/log-a/CAM_F0").iterdir())
    pictures[4].unlink()
    pictures[8].write_bytes(b"no picture")
    (tmp_path / "ego_meta/log-b.json").unlink()
    episodes, problems = _read(tmp_path)
    assert [numbers(episode.frames) for episode in episodes] == [
        [0, 1, 2, 3],
        [5, 6, 7],
        [9, 10],
        list(range(11)),
    ]
    assert len(problems) == 3
    assert problems[0].startswith("ego_meta/log-a.json: 1 of 12 pictures are missing, left out: ")
    assert pictures[4].name in problems[0]
    assert pictures[8].name in problems[1]
    assert problems[2].startswith("ego_meta/log-b.json: missing")
    report = open_layout(tmp_path).inspect()
    assert [one.frames for one in report.recordings] == [11, None, 12]


def test_speeds_beyond_the_bins_are_clipped_and_the_frames_named(tmp_path: Path) -> None:
    _, rows = nuplan_rows(30)
    for row in rows[12:]:
        row["x"] += 4.5
    write_nuplan(tmp_path, {"log-a": 30}, rows=rows)
    episodes, problems = _read(tmp_path)
    assert len(episodes) == 1
    assert episodes[0].actions[:, 1].max() == 4.0
    assert "clipped in step 12" in problems[0]


def test_a_parked_car_that_trembles_is_no_news(tmp_path: Path) -> None:
    _, rows = nuplan_rows(30)
    for number, row in enumerate(rows[12:]):
        parked = rows[11] | {"x": rows[11]["x"] + 0.002 * (number % 2)}
        row.update(parked | {"timestamp": row["timestamp"]})
    write_nuplan(tmp_path, {"log-a": 30}, rows=rows)
    (episode,), problems = _read(tmp_path)
    assert not problems
    assert episode.actions[:, 1].min() == 0.0
    assert episode.actions[12:, 1].max() > 0.001
    assert len(episode.frames) == 29


@pytest.mark.parametrize("place", ["index.json", "json/index.json"])
@pytest.mark.parametrize("data_root", ["sensor_blobs/log-a", "log-a", "/elsewhere/log-a"])
def test_an_index_may_lie_elsewhere_and_lead_elsewhere(
    tmp_path: Path, place: str, data_root: str
) -> None:
    write_nuplan(tmp_path, {"log-a": 6})
    path = tmp_path / "nuplan_val.json"
    (scene,) = json.loads(path.read_text())
    path.unlink()
    write_json(tmp_path / place, [scene | {"data_root": data_root, "pose": "gone.json"}])
    episodes, problems = _read(tmp_path)
    assert [numbers(episode.frames) for episode in episodes] == [[0, 1, 2, 3, 4]]
    assert not problems


def test_an_entry_that_is_no_scene_costs_itself(tmp_path: Path) -> None:
    write_nuplan(tmp_path, {"log-a": 12})
    path = tmp_path / "nuplan_val.json"
    write_json(path, [*json.loads(path.read_text()), {"CAM_F0": 3}, "nonsense"])
    episodes, problems = _read(tmp_path)
    assert len(episodes) == 1
    assert len(problems) == 2
    assert "entry 2 lists no pictures" in problems[0]


def test_an_index_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    write_nuplan(tmp_path / "data", {"log-a": 12})
    path = tmp_path / "data/nuplan_val.json"
    index = json.loads(path.read_text())
    index[0]["CAM_F0"][0] = "../../../../secret.jpg"
    write_json(path, index)
    with pytest.raises(DataError, match=r"lies outside of .*; refused"):
        _read(tmp_path / "data")
