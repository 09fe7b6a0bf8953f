"""VPT's recordings: frames and actions meet exactly, and every trap is undone or reported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats.synthetic import (
    HEIGHT,
    WIDTH,
    cut_in_the_middle,
    line,
    numbers,
    picture,
    write_frames,
    write_lines,
    write_vpt,
)
from worldgen.data.episodes import Episode
from worldgen.data.formats import Reading, ReadOptions, VptRecordings, open_layout
from worldgen.errors import ActionError, DataError
from worldgen.tokenizers.action.minecraft import minecraft_schema, to_environment_action


def _read(path: Path, **options: Any) -> tuple[list[Episode], Reading]:
    reading = Reading(options=ReadOptions(**options))
    return list(open_layout(path).episodes(reading)), reading


def _actions(episode: Episode, preset: str = "minecraft") -> list[tuple[set[str], list[float]]]:
    """Return the keys that are down and the camera, frame by frame."""
    schema = minecraft_schema(preset)
    actions = [to_environment_action(action, schema) for action in episode.actions]
    return [
        ({key for key, value in each.items() if key != "camera" and value}, each["camera"].tolist())
        for each in actions
    ]


def _walk(count: int, **more: Any) -> list[dict[str, Any]]:
    """Return lines whose camera tells their number: that many mouse units to the right."""
    return [line(keys=["w"], dx=number, **more) for number in range(count)]


def _turned(episode: Episode) -> list[int]:
    """Return the numbers that `_walk` wrote into the camera."""
    return [round(yaw / 0.15) for _, (_, yaw) in _actions(episode)]


def test_action_t_is_that_of_line_t_and_frame_t(tmp_path: Path) -> None:
    write_vpt(tmp_path / "one", _walk(40))
    (episode,), reading = _read(tmp_path)
    assert numbers(episode.frames) == list(range(40))
    assert _turned(episode) == list(range(40))
    assert all(keys == {"forward"} for keys, _ in _actions(episode))
    assert episode.columns["cut"].tolist() == [False] * 39 + [True]
    assert not reading.problems
    assert episode.info.length == 40


def test_turns_below_a_degree_are_kept_and_clipped_only_at_the_limit(tmp_path: Path) -> None:
    write_vpt(tmp_path / "one", [line(dx=1, dy=-2), line(dx=3000, dy=0.5), line()])
    (episode,), _ = _read(tmp_path)
    cameras = np.array([camera for _, camera in _actions(episode)])
    assert np.allclose(cameras, [[-0.3, 0.15], [0.075, 90.0], [0.0, 0.0]], atol=1e-12)


def test_frames_in_which_nothing_happens_are_kept(tmp_path: Path) -> None:
    write_vpt(tmp_path / "one", [line(), line(keys=["w"]), line(), line()])
    (episode,), _ = _read(tmp_path)
    assert numbers(episode.frames) == [0, 1, 2, 3]
    assert [keys for keys, _ in _actions(episode)] == [set(), {"forward"}, set(), set()]


def test_stuck_attack_and_the_mouse_wheel_are_undone_over_a_whole_recording(
    tmp_path: Path,
) -> None:
    lines = [
        line(buttons=[0], new_buttons=[0], hotbar=1),
        line(buttons=[0], hotbar=1),
        line(buttons=[0], hotbar=3),
        line(buttons=[0], new_buttons=[0], hotbar=3),
        line(buttons=[0], hotbar=3),
    ]
    write_vpt(tmp_path / "one", lines)
    (episode,), _ = _read(tmp_path)
    pressed = [keys for keys, _ in _actions(episode)]
    assert pressed == [set(), set(), {"hotbar.4"}, {"attack"}, {"attack"}]
    assert episode.columns["hotbar"].tolist() == [1, 1, 3, 3, 3]


def test_frames_with_an_open_window_are_cut_out_and_nothing_is_joined_over_them(
    tmp_path: Path,
) -> None:
    lines = _walk(12)
    for number in (4, 5, 6):
        lines[number]["isGuiOpen"] = True
    write_vpt(tmp_path / "one", lines)
    episodes, _ = _read(tmp_path)
    assert [numbers(episode.frames) for episode in episodes] == [[0, 1, 2, 3], [7, 8, 9, 10, 11]]
    assert [_turned(episode) for episode in episodes] == [[0, 1, 2, 3], [7, 8, 9, 10, 11]]
    assert [episode.columns["cut"].sum() for episode in episodes] == [1, 1]


def test_the_slot_selected_in_a_window_that_was_left_out_is_not_forgotten(tmp_path: Path) -> None:
    lines = [
        line(),
        line(),
        line(gui=True),
        line(gui=True, hotbar=4),
        line(hotbar=4),
        line(hotbar=4),
    ]
    write_vpt(tmp_path / "one", lines)
    episodes, _ = _read(tmp_path)
    assert [[keys for keys, _ in _actions(episode)] for episode in episodes] == [[set()] * 2] * 2


def test_kept_windows_have_a_cursor_where_the_recorder_saw_it(tmp_path: Path) -> None:
    # A window 720 high, shown 36 high: twenty units are one pixel.
    lines = [line(), line(gui=True, cursor=(405.0, 219.0)), line()]
    write_vpt(tmp_path / "one", lines)
    (episode,), _ = _read(tmp_path, gui="keep")
    changed = np.argwhere((episode.frames[1] != picture(1)).any(axis=-1))
    assert changed.min(axis=0).tolist() == [10, 20]
    assert episode.frames[1, 10, 20].tolist() == [0, 0, 0]
    assert episode.frames[1, 12, 21].tolist() == [255, 255, 255]
    assert (episode.frames[0] == picture(0)).all()
    assert (episode.frames[2] == picture(2)).all()
    assert episode.columns["gui"].tolist() == [False, True, False]


@pytest.mark.parametrize("cursor", [(-400.0, -400.0), (1279.0, 719.0), (1e300, -1e300)])
def test_a_cursor_at_the_edge_is_cut_off(tmp_path: Path, cursor: tuple[float, float]) -> None:
    write_vpt(tmp_path / "one", [line(gui=True, cursor=cursor)] * 2)
    (episode,), reading = _read(tmp_path, gui="keep")
    assert (episode.frames[0] != picture(0)).any(axis=-1).sum() <= 1
    assert not reading.problems


@pytest.mark.parametrize(
    ("place", "factor"),
    [("6.9/one", 2.0), ("5.7/one", 0.5), ("6.13/one", 1.0), ("one", 1.0)],
)
def test_the_folder_names_the_version_that_scales_the_camera_in_windows(
    tmp_path: Path, place: str, factor: float
) -> None:
    write_vpt(tmp_path / place, [line(dx=10), line(dx=10, gui=True)])
    (episode,), _ = _read(tmp_path, gui="keep")
    assert [camera[1] for _, camera in _actions(episode)] == pytest.approx([1.5, 1.5 * factor])


def test_an_index_and_the_options_name_the_version_too(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_vpt(tmp_path / name, [line(dx=10, gui=True)] * 2)
    index = {
        "basedir": "https://example.org/",
        "relpaths": ["data/6.8/one.mp4", "data/6.8/two.mp4"],
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "two-options.json").write_text(json.dumps({"fov": 70, "recorderVersion": "5.8"}))
    episodes, _ = _read(tmp_path, gui="keep")
    cameras = [_actions(episode)[0][1][1] for episode in episodes]
    assert cameras == pytest.approx([3.0, 0.75])
    assert open_layout(tmp_path).inspect().versions == {"5.8": 1, "6.8": 1}


@pytest.mark.parametrize(("lines", "frames"), [(10, 7), (7, 10)])
def test_lines_and_frames_are_used_as_far_as_both_reach(
    tmp_path: Path, lines: int, frames: int
) -> None:
    write_vpt(tmp_path / "one", _walk(lines), frames)
    (episode,), reading = _read(tmp_path)
    assert numbers(episode.frames) == _turned(episode) == list(range(7))
    message = f"one.jsonl: {lines} lines for {frames} frames; the first 7 of both are used"
    assert [str(problem) for problem in reading.problems] == [message]
    assert [str(problem) for problem in open_layout(tmp_path).inspect().problems] == [message]


def test_lines_that_say_nothing_are_left_out_with_their_frames_and_reported(
    tmp_path: Path,
) -> None:
    lines: list[Any] = _walk(10)
    lines[4] = '{"mouse": {"dx": 1'
    lines[7] = "__import__('os').system('touch executed')"
    write_vpt(tmp_path / "one", lines)
    write_vpt(tmp_path / "two", _walk(3))
    episodes, reading = _read(tmp_path)
    kept = [numbers(episode.frames) for episode in episodes]
    # Frames 8 and 9 follow each other; nothing is joined over a gap.
    assert kept == [[0, 1, 2, 3], [5, 6], [8, 9], [0, 1, 2]]
    assert [_turned(episode) for episode in episodes] == kept
    places = [(problem.path, problem.lines) for problem in reading.problems]
    assert places == [("one.jsonl", (5,)), ("one.jsonl", (8,))]
    assert "not JSON" in reading.problems[0].message
    assert not Path("executed").exists()


def test_lines_of_strange_bytes_and_absurd_length_are_reported(tmp_path: Path) -> None:
    write_vpt(tmp_path / "one", _walk(6))
    good = (tmp_path / "one.jsonl").read_bytes().splitlines()
    good[1] = b"\xff\xfe\x00"
    good[2] = b"[" * 100_000
    good[3] = b'"' + b"x" * (1 << 20) + b'"'
    (tmp_path / "one.jsonl").write_bytes(b"\n".join(good) + b"\n\n \n")
    episodes, reading = _read(tmp_path)
    assert [numbers(episode.frames) for episode in episodes] == [[4, 5]]
    assert [problem.lines for problem in reading.problems] == [(2,), (3,), (4,)]
    assert "longer than" in reading.problems[2].message


def test_unknown_keys_are_reported_once_for_each_file_with_their_first_line(
    tmp_path: Path,
) -> None:
    write_vpt(tmp_path / "one", [line(), line(gravity=1), line(gravity=2), line(gravity=3)])
    (episode,), reading = _read(tmp_path)
    assert len(episode.frames) == 4
    assert [str(problem) for problem in reading.problems] == [
        "one.jsonl:2: unknown key 'gravity', ignored (also lines 3, 4)"
    ]


def test_of_a_video_cut_in_the_middle_what_decodes_is_used(tmp_path: Path) -> None:
    write_vpt(tmp_path / "one", _walk(120))
    write_vpt(tmp_path / "two", _walk(5))
    cut_in_the_middle(tmp_path / "one.mp4")
    (first, second), reading = _read(tmp_path)
    assert 10 < len(first.frames) < 110
    assert numbers(first.frames) == _turned(first) == list(range(len(first.frames)))
    assert numbers(second.frames) == list(range(5))
    problems = [str(problem) for problem in reading.problems]
    assert problems[0].startswith("one.mp4: ")
    assert "the frames before are used" in problems[0]
    assert problems[1] == (
        f"one.jsonl: 120 lines for {len(first.frames)} frames; the first {len(first.frames)} of "
        "both are used"
    )


def test_a_video_without_its_table_of_contents_costs_only_itself(tmp_path: Path) -> None:
    write_vpt(tmp_path / "a", _walk(30))
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) // 2])
    write_vpt(tmp_path / "b", _walk(4))
    (episode,), reading = _read(tmp_path)
    assert numbers(episode.frames) == [0, 1, 2, 3]
    (problem,) = reading.problems
    assert problem.path == "a.mp4"
    assert "damaged or not a video" in problem.message
    report = open_layout(tmp_path).inspect()
    assert [(one.name, one.frames, one.actions) for one in report.recordings] == [
        ("a", None, 30),
        ("b", 4, 4),
    ]


def test_where_no_video_can_be_read_nothing_is_promised(tmp_path: Path) -> None:
    write_lines(tmp_path / "one.jsonl", _walk(3))
    (tmp_path / "one.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"none of the videos in .* can be read"):
        _read(tmp_path)


def test_files_that_are_missing_are_reported(tmp_path: Path) -> None:
    write_vpt(tmp_path / "data/10.0/one", _walk(3))
    write_lines(tmp_path / "data/10.0/two.jsonl", _walk(3))
    write_frames(tmp_path / "data/10.0/three.mp4", 3)
    names = ["one", "two", "three", "four", "five", "six", "seven"]
    index = {
        "basedir": "https://example.org/",
        "relpaths": [f"data/10.0/{name}.mp4" for name in names] + ["../../etc/passwd"],
    }
    (tmp_path / "all_10xx.json").write_text(json.dumps(index))
    report = open_layout(tmp_path).inspect()
    assert [str(problem) for problem in report.problems] == [
        "all_10xx.json: lists data/10.0/two.mp4, data/10.0/four.mp4, data/10.0/five.mp4 and 3 "
        "more, not in this folder",
        "data/10.0/three.jsonl: missing beside three.mp4; left out",
        "data/10.0/two.mp4: missing beside two.jsonl; left out",
    ]
    episodes, _ = _read(tmp_path)
    assert len(episodes) == 1


def test_an_index_or_one_video_can_be_given_instead_of_a_folder(tmp_path: Path) -> None:
    for name, count in (("one", 3), ("two", 4), ("three", 5)):
        write_vpt(tmp_path / name, _walk(count))
    (tmp_path / "some.json").write_text(json.dumps({"relpaths": ["data/7.0/one.mp4", "x/two.mp4"]}))
    lengths = {
        path: [episode.info.length for episode in _read(tmp_path / path)[0]]
        for path in ("some.json", "three.mp4", "two.jsonl")
    }
    assert lengths == {"some.json": [3, 4], "three.mp4": [5], "two.jsonl": [4]}


def test_recordings_of_another_rate_are_left_out_and_reported(tmp_path: Path) -> None:
    write_vpt(tmp_path / "one", _walk(4))
    write_lines(tmp_path / "two.jsonl", _walk(4))
    write_frames(tmp_path / "two.mp4", 4, rate=30.0)
    episodes, reading = _read(tmp_path)
    assert len(episodes) == 1
    assert [str(problem) for problem in reading.problems] == [
        "two.mp4: has 30 frames per second, the others 20; left out"
    ]


def test_episodes_stream_out_while_the_recording_is_decoded_once(tmp_path: Path) -> None:
    write_vpt(tmp_path / "one", _walk(90))
    layout, reading = VptRecordings(tmp_path), Reading(options=ReadOptions(episode_frames=20))
    episodes = layout.episodes(reading)
    first = next(episodes)
    assert numbers(first.frames) == list(range(20))
    assert reading.frames <= 21
    rest = list(episodes)
    assert [episode.info.length for episode in rest] == [20, 20, 20, 10]
    assert [number for episode in rest for number in _turned(episode)] == list(range(20, 90))
    assert reading.frames == 90


def test_frames_are_stretched_to_the_size_asked_for(tmp_path: Path) -> None:
    write_vpt(tmp_path / "one", _walk(3))
    (episode,), reading = _read(tmp_path, size=(14, 24))
    assert episode.frames.shape == (3, 14, 24, 3)
    assert numbers(episode.frames) == [0, 1, 2]
    assert reading.resize_seconds > 0


@pytest.mark.parametrize("preset", ["mineworld", "vpt_camera", "minecraft"])
def test_actions_come_in_any_of_minecrafts_schemas(tmp_path: Path, preset: str) -> None:
    write_vpt(tmp_path / "one", [line(keys=["w", "s", "space"], buttons=[1], dx=8), line()])
    (episode,), _ = _read(tmp_path, schema=preset)
    keys, camera = _actions(episode, preset)[0]
    both = {"forward", "back"} if preset == "minecraft" else set()
    assert keys == {"jump", "use"} | both
    assert camera == pytest.approx([0.0, 1.2])
    with pytest.raises(ActionError, match="no Minecraft preset"):
        _read(tmp_path, schema="checkers")


def test_the_report_names_what_is_there(tmp_path: Path) -> None:
    lines = _walk(30)
    lines[3]["isGuiOpen"] = True
    write_vpt(tmp_path / "7.1/one", lines)
    write_vpt(tmp_path / "6.9/two", _walk(10))
    told: list[int] = []
    report = open_layout(tmp_path).inspect(progress=told.append)
    assert report.layout == "vpt"
    assert report.versions == {"6.9": 1, "7.1": 1}
    assert report.frames_per_second == {"20": 2}
    assert report.frame_sizes == {f"{HEIGHT} x {WIDTH}": 2}
    assert [(one.name, one.frames, one.actions) for one in report.recordings] == [
        ("6.9/two", 10, 10),
        ("7.1/one", 30, 30),
    ]
    assert report.usable_frames == 40
    assert any("open in 1 frames" in note for note in report.notes)
    assert not report.problems
    assert told == [1, 1]
    assert json.loads(json.dumps(report.to_json()))["usable_frames"] == 40
    assert len(open_layout(tmp_path).inspect(limit=1).recordings) == 1
