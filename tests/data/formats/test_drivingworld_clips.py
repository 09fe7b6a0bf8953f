"""DrivingWorld's clips: the motion to a frame is the action of the frame before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats.synthetic import numbers
from tests.data.formats.synthetic_drives import motion_of_step, write_drivingworld
from worldgen.data.episodes import Episode
from worldgen.data.formats import DrivingWorldClips, Reading, ReadOptions, open_layout
from worldgen.errors import DataError
from worldgen.tokenizers.action.driving import driving_schema


def _read(folder: Path, **options: Any) -> tuple[list[Episode], list[str]]:
    reading = Reading(options=ReadOptions(**options))
    episodes = list(open_layout(folder).episodes(reading))
    return episodes, [str(problem) for problem in reading.problems]


def test_motion_moves_to_the_frame_in_which_it_begins(tmp_path: Path) -> None:
    write_drivingworld(tmp_path / "video-1", 16)
    write_drivingworld(tmp_path / "video-2", 16, rows=40)
    motion = np.load(tmp_path / "video-1/yaw.npy")
    motion[0, 5] = 3.0
    np.save(tmp_path / "video-1/yaw.npy", motion)
    layout = open_layout(tmp_path)
    assert isinstance(layout, DrivingWorldClips)
    assert layout.content(ReadOptions()).schema == driving_schema("drivingworld")
    (first, second), problems = _read(tmp_path)
    assert not problems
    assert numbers(first.frames) == numbers(second.frames) == list(range(15))
    assert np.allclose(second.actions, [motion_of_step(0.2)] * 15)
    # Row 5 leads from frame 4 to frame 5.
    assert np.allclose(first.actions[:, 0], [2, 2, 2, 2, 3, *[2] * 10])
    assert np.allclose(first.actions[:, 1:], second.actions[:, 1:])


def test_steps_without_ego_data_end_an_episode(tmp_path: Path) -> None:
    write_drivingworld(tmp_path / "clip", 16)
    motion = np.load(tmp_path / "clip/pose.npy")
    motion[0, [6, 7, 13]] = np.inf
    np.save(tmp_path / "clip/pose.npy", motion)
    episodes, problems = _read(tmp_path / "clip")
    assert [numbers(episode.frames) for episode in episodes] == [
        [0, 1, 2, 3, 4],
        [8, 9, 10, 11],
    ]
    assert all(np.allclose(one.actions, motion_of_step(0.2)) for one in episodes)
    assert problems[0] == "pose.npy: rows 7, 8, 14: numbers are missing or not finite; left out"
    np.save(tmp_path / "clip/pose.npy", np.full((1, 16, 2), np.inf))
    with pytest.raises(DataError, match="1 of 16 rows can be used"):
        _read(tmp_path)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_drivingworld(tmp_path / name, 16, rows=12 if name == "a" else None)
    np.save(tmp_path / "b/pose.npy", np.zeros((2, 16, 2)))
    (tmp_path / "c/000003.png").write_bytes(b"nothing")
    episodes, problems = _read(tmp_path)
    assert [len(episode.frames) for episode in episodes] == [11, 3, 11]
    assert problems[0] == "a/pose.npy: 16 pictures, 12 rows, 12 in yaw.npy; the first 12 are used"
    assert problems[1].startswith("b: b/pose.npy has the shape (2, 16, 2)")
    assert problems[2].startswith("c/000003.png: ")
    with pytest.raises(DataError, match="has one camera"):
        open_layout(tmp_path).content(ReadOptions(camera="left"))
