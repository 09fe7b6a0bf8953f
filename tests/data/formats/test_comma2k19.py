"""comma2k19: raw HEVC and poses on the globe become steps of ego motion."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats.synthetic import numbers
from tests.data.formats.synthetic_drives import motion_of_step, write_comma2k19
from worldgen.data.episodes import Episode
from worldgen.data.formats import Comma2k19, Reading, ReadOptions, open_layout

ROUTE = "b0c9d2329ad1606b|2018-08-02--08-34-47"


def _read(folder: Path, **options: Any) -> tuple[list[Episode], list[str]]:
    reading = Reading(options=ReadOptions(**options))
    episodes = list(open_layout(folder).episodes(reading))
    return episodes, [str(problem) for problem in reading.problems]


@pytest.mark.parametrize("suffix", ["", ".npy"])
def test_segments_become_frames_with_the_motion_to_the_next(tmp_path: Path, suffix: str) -> None:
    write_comma2k19(tmp_path / f"Chunk_1/{ROUTE}/40", 24, suffix=suffix)
    write_comma2k19(tmp_path / f"Chunk_1/{ROUTE}/9", 8, suffix=suffix)
    layout = open_layout(tmp_path)
    assert isinstance(layout, Comma2k19)
    # By number, not by letter.
    assert [recording.name for recording in layout.recordings()] == [
        f"Chunk_1/{ROUTE}/9",
        f"Chunk_1/{ROUTE}/40",
    ]
    episodes, problems = _read(tmp_path)
    assert not problems
    assert [numbers(episode.frames) for episode in episodes] == [list(range(7)), list(range(23))]
    for episode in episodes:
        expected = np.tile(motion_of_step(0.05), (len(episode.actions), 1))
        assert np.allclose(episode.actions, expected, atol=1e-4)
    assert layout.content(ReadOptions()).frames_per_second == 20.0


def test_five_frames_a_second_are_every_fourth(tmp_path: Path) -> None:
    write_comma2k19(tmp_path / "40", 24)
    (episode,), _ = _read(tmp_path / "40", frames_per_second=5.0)
    assert numbers(episode.frames) == [0, 4, 8, 12, 16]
    assert np.allclose(episode.actions, [motion_of_step(0.2)] * 5, atol=1e-4)


def test_frames_and_poses_of_different_number_are_used_as_far_as_both_reach(
    tmp_path: Path,
) -> None:
    write_comma2k19(tmp_path / "1", 12, frames=9)
    write_comma2k19(tmp_path / "2", 9, frames=12)
    episodes, problems = _read(tmp_path)
    assert [len(episode.frames) for episode in episodes] == [8, 8]
    assert problems[0].startswith("1/global_pose: 9 in video.hevc, 12 in frame_times")
    assert "the first 9 of each are used" in problems[1]


def test_wrong_units_gaps_and_missing_files_cost_only_themselves(tmp_path: Path) -> None:
    for number in range(4):
        write_comma2k19(tmp_path / str(number), 12)
    times = np.load(tmp_path / "0/global_pose/frame_times")
    with (tmp_path / "0/global_pose/frame_times").open("wb") as file:
        np.save(file, np.where(np.arange(12) >= 6, times + 3.0, times))
    places = np.load(tmp_path / "1/global_pose/frame_positions")
    with (tmp_path / "1/global_pose/frame_positions").open("wb") as file:
        np.save(file, 1000.0 * places)
    (tmp_path / "2/video.hevc").unlink()
    episodes, problems = _read(tmp_path)
    assert [numbers(episode.frames) for episode in episodes] == [
        list(range(5)),
        list(range(6, 11)),
        list(range(11)),
    ]
    assert problems[0] == (
        "0/global_pose: row 7: more than 0.0875 s after the row before; a new episode begins there"
    )
    assert problems[1].startswith("1/global_pose: ")
    assert "millimetres" in problems[1]
    assert problems[2].startswith("2/video.hevc: missing beside global_pose")
    report = open_layout(tmp_path).inspect()
    assert [one.frames for one in report.recordings] == [12, 12, None, 12]
    assert {str(problem) for problem in report.problems} == set(problems)


def test_arrays_that_could_run_code_are_refused(tmp_path: Path) -> None:
    for number in range(2):
        write_comma2k19(tmp_path / str(number), 8)
    with (tmp_path / "0/global_pose/frame_times").open("wb") as file:
        np.save(file, np.array([{"a": 1}] * 8, dtype=object), allow_pickle=True)
    episodes, problems = _read(tmp_path)
    assert len(episodes) == 1
    assert "0/global_pose/frame_times is damaged" in problems[0]
