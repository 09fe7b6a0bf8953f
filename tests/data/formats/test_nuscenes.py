"""nuScenes: tables become steps of ego motion, from token to token."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats.synthetic import numbers
from tests.data.formats.synthetic_drives import motion_of_step, write_json, write_nuscenes
from worldgen.data.episodes import Episode
from worldgen.data.formats import NuScenes, Reading, ReadOptions, open_layout
from worldgen.errors import DataError


def _read(folder: Path, **options: Any) -> tuple[list[Episode], list[str]]:
    reading = Reading(options=ReadOptions(**options))
    episodes = list(open_layout(folder).episodes(reading))
    return episodes, [str(problem) for problem in reading.problems]


def _edit(folder: Path, table: str, change: Any) -> None:
    """Change rows of a table; a row for which `change` returns false goes."""
    path = folder / f"v1.0-mini/{table}.json"
    rows = json.loads(path.read_text())
    write_json(path, [row for row in rows if change(row) is not False])


@pytest.mark.parametrize("part", [".", "v1.0-mini"])
def test_scenes_become_frames_with_the_motion_to_the_next(tmp_path: Path, part: str) -> None:
    write_nuscenes(tmp_path, {"scene-0061": 13, "scene-0103": 8})
    layout = open_layout(tmp_path / part)
    assert isinstance(layout, NuScenes)
    assert [recording.name for recording in layout.recordings()] == ["scene-0061", "scene-0103"]
    assert layout.content(ReadOptions()).frames_per_second == 12.0
    episodes, problems = _read(tmp_path / part)
    assert not problems
    assert [numbers(episode.frames) for episode in episodes] == [list(range(12)), list(range(7))]
    for episode in episodes:
        expected = np.tile(motion_of_step(1 / 12), (len(episode.actions), 1))
        assert np.allclose(episode.actions, expected, atol=1e-4)


def test_key_frames_alone_are_two_a_second(tmp_path: Path) -> None:
    write_nuscenes(tmp_path, {"scene-0061": 25})
    (episode,), _ = _read(tmp_path, frames_per_second=2.0)
    assert numbers(episode.frames) == [0, 6, 12, 18]
    assert np.allclose(episode.actions, [motion_of_step(0.5)] * 4, atol=1e-4)


def test_a_rate_that_does_not_divide_takes_the_nearest_frames(tmp_path: Path) -> None:
    write_nuscenes(tmp_path, {"scene-0061": 37})
    (episode,), _ = _read(tmp_path, frames_per_second=5.0)
    kept = numbers(episode.frames)
    assert np.abs(np.array(kept) / 12 - np.arange(len(kept)) / 5).max() <= 0.5 / 12 + 1e-6
    # The motion is that between the frames that were taken.
    steps = np.diff([*kept, 36]) / 12
    assert np.allclose(episode.actions, [motion_of_step(step) for step in steps], atol=1e-4)


def test_a_broken_chain_a_missing_pose_and_a_missing_picture_end_episodes(tmp_path: Path) -> None:
    write_nuscenes(tmp_path, {"scene-0061": 30})
    _edit(tmp_path, "sample_data", lambda row: row["token"] != "scene-0061-front-5")
    _edit(tmp_path, "ego_pose", lambda row: row["token"] != "scene-0061-pose-12")
    (tmp_path / "sweeps/CAM_FRONT/scene-0061-20.jpg").unlink()
    episodes, problems = _read(tmp_path)
    assert [numbers(episode.frames) for episode in episodes] == [
        list(range(4)),
        list(range(6, 11)),
        list(range(13, 20)),
        list(range(21, 29)),
    ]
    assert all(problem.startswith("v1.0-mini/sample_data.json") for problem in problems)
    assert any("sweeps/CAM_FRONT/scene-0061-20.jpg" in problem for problem in problems)
    assert any("row 12: numbers are missing" in problem for problem in problems)


def test_a_circle_of_tokens_ends(tmp_path: Path) -> None:
    write_nuscenes(tmp_path, {"scene-0061": 8})

    def tie(row: dict[str, Any]) -> None:
        if row["token"] == "scene-0061-front-7":
            row["next"] = "scene-0061-front-3"

    _edit(tmp_path, "sample_data", tie)
    episodes, _ = _read(tmp_path)
    assert [numbers(episode.frames) for episode in episodes] == [list(range(7))]


def test_missing_tables_and_cameras_are_named(tmp_path: Path) -> None:
    write_nuscenes(tmp_path, {"scene-0061": 8})
    with pytest.raises(DataError, match="no camera 'CAM_BACK'; there are CAM_FRONT, LIDAR_TOP"):
        _read(tmp_path, camera="CAM_BACK")
    (tmp_path / "v1.0-mini/sample.json").write_text("[3]")
    with pytest.raises(DataError, match=r"sample\.json is no list of rows"):
        _read(tmp_path)
    (tmp_path / "v1.0-mini/sample.json").unlink()
    with pytest.raises(DataError, match=r"sample\.json is missing"):
        _read(tmp_path)


def test_poses_in_millimetres_are_named(tmp_path: Path) -> None:
    write_nuscenes(tmp_path, {"scene-0061": 12})

    def scale(row: dict[str, Any]) -> None:
        row["translation"] = [1000.0 * number for number in row["translation"]]

    _edit(tmp_path, "ego_pose", scale)
    with pytest.raises(DataError, match="millimetres"):
        _read(tmp_path)
    report = open_layout(tmp_path).inspect()
    assert "millimetres" in str(report.problems[0])
