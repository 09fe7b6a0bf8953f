"""LeRobot data sets: versions, time slices, cameras, robots, and Minecraft by the names alone."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats.synthetic import HEIGHT, WIDTH, numbers, write_lerobot
from worldgen.data.episodes import Episode
from worldgen.data.formats import LeRobotDataset, Reading, ReadOptions, open_layout
from worldgen.errors import DataError
from worldgen.tokenizers.action import ActionTokenizer, Axis
from worldgen.tokenizers.action.minecraft import minecraft_schema, to_environment_action

PACKED = [
    *("forward", "back", "left", "right", "jump", "sneak", "sprint"),
    *("attack", "use", "drop", "inventory"),
    *(f"hotbar_{number}" for number in range(1, 10)),
    *("camera_pitch", "camera_yaw"),
]
"""Names of 22 entries, as Minecraft is packed."""


def _robot(*lengths: int, size: int = 2) -> list[np.ndarray]:
    """Return actions whose first entry counts over all episodes."""
    rows = np.arange(sum(lengths) * size, dtype=np.float64).reshape(-1, size) / size
    return np.split(rows, np.cumsum(lengths)[:-1])


def _read(path: Path, **options: Any) -> tuple[list[Episode], Reading]:
    reading = Reading(options=ReadOptions(**options))
    return list(open_layout(path).episodes(reading)), reading


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
@pytest.mark.parametrize("images", [False, True], ids=["video", "images"])
def test_action_t_acts_after_frame_t_in_every_version(
    tmp_path: Path, version: str, images: bool
) -> None:
    write_lerobot(tmp_path, _robot(7, 45, 3), version=version, images=images)
    episodes, reading = _read(tmp_path)
    assert [episode.info.length for episode in episodes] == [7, 45, 3]
    first = 0
    for episode in episodes:
        # Frames count over all episodes, and the actions with them.
        expected = list(range(first, first + episode.info.length))
        assert numbers(episode.frames) == expected
        assert episode.actions[:, 0].tolist() == expected
        assert np.allclose(episode.columns["timestamp"], np.arange(episode.info.length) / 20)
        first += episode.info.length
    assert not reading.problems


def test_an_episode_of_version_3_is_a_slice_of_a_video_by_time(tmp_path: Path) -> None:
    write_lerobot(tmp_path, _robot(40, 40, 40), version="v3.0")
    layout, reading = LeRobotDataset(tmp_path), Reading()
    (episode,) = layout.read(layout.recordings()[1], layout.content(ReadOptions()), reading)
    assert numbers(episode.frames) == list(range(40, 80))
    # Decoding begins at the key frame before, and ends one frame after.
    assert reading.frames <= 40 + 30 + 1


def test_times_decide_and_not_the_count_of_frames(tmp_path: Path) -> None:
    # Rows at half the rate of the video: every second frame.
    write_lerobot(tmp_path, _robot(30), version="v3.0", rate=20.0)
    write_lerobot(tmp_path / "slow", _robot(15), version="v3.0", rate=10.0)
    video = "videos/observation.images.front/chunk-000/file-000.mp4"
    (tmp_path / "slow" / video).write_bytes((tmp_path / video).read_bytes())
    (episode,), _ = _read(tmp_path / "slow")
    assert numbers(episode.frames) == list(range(0, 30, 2))


def test_a_video_that_ends_before_its_episode_gives_what_is_there(tmp_path: Path) -> None:
    write_lerobot(tmp_path, _robot(30, 10))
    write_lerobot(tmp_path / "short", _robot(20))
    video = "videos/chunk-000/observation.images.front/episode_000000.mp4"
    (tmp_path / video).write_bytes((tmp_path / "short" / video).read_bytes())
    episodes, reading = _read(tmp_path)
    assert [episode.info.length for episode in episodes] == [20, 10]
    message = "30 actions for 20 frames; the first 20 are used"
    assert [str(problem) for problem in reading.problems] == [f"episode_000000: {message}"]
    (problem,) = open_layout(tmp_path).inspect().problems
    assert str(problem) == f"{video}: has 20 of the 30 frames of episode_000000"


def test_a_missing_table_or_video_costs_only_its_episode(tmp_path: Path) -> None:
    write_lerobot(tmp_path, _robot(5, 6, 7))
    (tmp_path / "data/chunk-000/episode_000000.parquet").unlink()
    (tmp_path / "videos/chunk-000/observation.images.front/episode_000001.mp4").unlink()
    episodes, reading = _read(tmp_path)
    assert [episode.info.length for episode in episodes] == [7]
    assert [problem.path for problem in reading.problems] == ["episode_000000", "episode_000001"]
    assert len(open_layout(tmp_path).inspect().problems) == 2


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_the_axes_of_a_robot_reach_as_far_as_its_statistics(tmp_path: Path, version: str) -> None:
    actions = [np.array([[-1.5, 2.0, 7.0], [0.5, 3.0, 7.0]]), np.array([[0.0, 4.0, 7.0]] * 2)]
    names = {"motors": ["shoulder", "grip per", "grip per"]}
    write_lerobot(tmp_path, actions, version=version, names=names)
    episodes, _ = _read(tmp_path)
    schema = open_layout(tmp_path).content(ReadOptions()).schema
    shoulder, first, second = schema.groups
    assert isinstance(shoulder, Axis)
    assert isinstance(first, Axis)
    assert isinstance(second, Axis)
    assert [group.name for group in schema.groups] == ["shoulder", "grip_per.1", "grip_per.2"]
    assert (shoulder.low, shoulder.high, first.low, first.high) == (-1.5, 0.5, 2.0, 4.0)
    # An entry that never moves still has a bin, and it is where the robot is.
    assert second.low < 7.0 < second.high
    tokenizer = ActionTokenizer(schema)
    for episode, action in zip(episodes, actions, strict=True):
        assert np.allclose(episode.actions, action)
        back = tokenizer.decode(tokenizer.encode(episode.actions))
        assert np.abs(back - action).max() <= 2.0 / 255


def test_actions_beyond_the_statistics_are_clipped_and_nameless_entries_numbered(
    tmp_path: Path,
) -> None:
    write_lerobot(tmp_path, [np.array([[0.0, -1.0], [1.0, 1.0], [9.0, 0.0]])])
    statistics = {"episode_index": 0, "stats": {"action": {"min": [0.0, -1.0], "max": [1.0, 1.0]}}}
    (tmp_path / "meta/episodes_stats.jsonl").write_text(json.dumps(statistics) + "\n")
    (episode,), _ = _read(tmp_path)
    assert episode.actions.tolist() == [[0.0, -1.0], [1.0, 1.0], [1.0, 0.0]]
    report = open_layout(tmp_path).inspect()
    assert report.action_schema == ("action.0 (0 to 1)", "action.1 (-1 to 1)")
    assert "no names of their own" in " ".join(report.notes)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("prefix", ["", "action."])
def test_packed_minecraft_is_known_by_the_names_of_its_entries(
    tmp_path: Path, version: str, prefix: str
) -> None:
    names = [prefix + name for name in PACKED]
    assert len(names) == 22
    actions = np.zeros((4, 22))
    actions[0, PACKED.index("forward")] = 1
    actions[1, PACKED.index("hotbar_3")] = 1
    actions[2, [PACKED.index("attack"), PACKED.index("jump")]] = 1
    actions[:, PACKED.index("camera_yaw")] = [0.0, 1.5, -2.25, 0.15]
    actions[:, PACKED.index("camera_pitch")] = [-0.3, 0.0, 4.5, 0.0]
    write_lerobot(tmp_path, [actions], version=version, names=names)
    (episode,), reading = _read(tmp_path, schema="mineworld")
    schema = minecraft_schema("mineworld")
    taken = [to_environment_action(action, schema) for action in episode.actions]
    pressed = [{key for key, value in each.items() if key != "camera" and value} for each in taken]
    assert pressed == [{"forward"}, {"hotbar.3"}, {"attack", "jump"}, set()]
    cameras = [each["camera"].tolist() for each in taken]
    assert np.allclose(cameras, [[-0.3, 0.0], [0.0, 1.5], [4.5, -2.25], [0.0, 0.15]], atol=1e-6)
    assert not reading.problems
    notes = " ".join(open_layout(tmp_path).inspect().notes)
    assert "never pressed: ESC, pickItem, swapHands" in notes


def test_a_camera_that_may_not_be_in_degrees_is_pointed_out(tmp_path: Path) -> None:
    write_lerobot(tmp_path, [np.full((3, 22), 0.5)], names=PACKED)
    assert "may be wrong" in " ".join(open_layout(tmp_path).inspect().notes)


def test_a_robot_has_no_schema_of_minecraft(tmp_path: Path) -> None:
    write_lerobot(tmp_path, _robot(3), names=["forward", "wheel"])
    with pytest.raises(DataError, match=r"not Minecraft's \(forward, wheel\); leave --schema"):
        _read(tmp_path, schema="mineworld")


def test_one_of_several_cameras_is_read(tmp_path: Path) -> None:
    write_lerobot(tmp_path, _robot(5), cameras=["front", "wrist"])
    other = tmp_path / "videos/chunk-000/front/episode_000000.mp4"
    other.write_bytes(b"no video")
    (episode,), _ = _read(tmp_path, camera="wrist")
    assert numbers(episode.frames) == list(range(5))
    episodes, reading = _read(tmp_path)
    assert not episodes
    assert len(reading.problems) == 1
    with pytest.raises(DataError, match="no camera 'rear'; it has front, wrist"):
        _read(tmp_path, camera="rear")


def test_actions_that_are_not_finite_are_left_out_and_reported(tmp_path: Path) -> None:
    actions = np.arange(12.0).reshape(6, 2)
    actions[3, 1] = np.nan
    write_lerobot(tmp_path, [actions], statistics=False)
    episodes, reading = _read(tmp_path)
    assert [numbers(episode.frames) for episode in episodes] == [[0, 1, 2], [4, 5]]
    assert "action 3 is not finite" in reading.problems[0].message


def test_splits_are_those_of_the_data_set_if_it_has_several(tmp_path: Path) -> None:
    write_lerobot(tmp_path, _robot(3, 3, 3), splits={"train": "0:2", "val": "2:3"})
    splits = [recording.split for recording in open_layout(tmp_path).recordings()]
    assert splits == ["train", "train", "validation"]
    write_lerobot(tmp_path, _robot(3, 3, 3))
    assert {recording.split for recording in open_layout(tmp_path).recordings()} == {None}


@pytest.mark.parametrize(
    "template",
    ["../outside-{episode_index:06d}.mp4", "/etc/{episode_index}.mp4", "{video_key}/../../x.mp4"],
)
def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path: Path, template: str) -> None:
    write_lerobot(tmp_path / "set", _robot(3), video_path=template)
    episodes, reading = _read(tmp_path / "set")
    assert not episodes
    assert "outside of" in reading.problems[0].message


def test_templates_reach_nothing_but_what_they_are_given(tmp_path: Path) -> None:
    write_lerobot(tmp_path, _robot(3), video_path="{home}/{episode_index.__class__}.mp4")
    episodes, reading = _read(tmp_path)
    assert not episodes
    assert "asks for 'home'; unknown here" in reading.problems[0].message


def test_versions_that_are_not_known_are_named(tmp_path: Path) -> None:
    write_lerobot(tmp_path, _robot(3))
    info = json.loads((tmp_path / "meta/info.json").read_text())
    (tmp_path / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v1.6"}))
    with pytest.raises(DataError, match=r"version v1\.6; this reads v2\.0, v2\.1, v3\.0"):
        open_layout(tmp_path)


def test_the_report_names_version_rate_size_and_lengths(tmp_path: Path) -> None:
    write_lerobot(tmp_path, _robot(7, 8), version="v3.0", cameras=["front", "wrist"])
    report = open_layout(tmp_path).inspect()
    assert report.layout == "lerobot v3.0"
    assert report.frames_per_second == {"20": 2}
    assert report.frame_sizes == {f"{HEIGHT} x {WIDTH}": 2}
    assert [(one.frames, one.actions) for one in report.recordings] == [(7, 7), (8, 8)]
    assert "cameras: front, wrist; front is read unless" in " ".join(report.notes)
    assert not report.problems


def test_without_pyarrow_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lerobot(tmp_path, _robot(3), version="v3.0")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    layout = open_layout(tmp_path)
    with pytest.raises(DataError, match="need pyarrow: pip install pyarrow"):
        layout.recordings()


def test_tables_that_are_damaged_are_named(tmp_path: Path) -> None:
    write_lerobot(tmp_path, _robot(3, 3))
    table = tmp_path / "data/chunk-000/episode_000000.parquet"
    table.write_bytes(table.read_bytes()[:100])
    episodes, reading = _read(tmp_path)
    assert len(episodes) == 1
    assert f"{table} is damaged" in reading.problems[0].message
    (tmp_path / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 3}\nnonsense\n')
    with pytest.raises(DataError, match=r"episodes\.jsonl:2 is not JSON"):
        open_layout(tmp_path).recordings()
