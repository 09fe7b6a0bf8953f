"""MineWorld's validation clips: ready-made actions, read without running them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats.synthetic import line, numbers, write_frames, write_lines, write_vpt
from worldgen.data.formats import (
    MineWorldValidation,
    Reading,
    ReadOptions,
    VptRecordings,
    open_layout,
)
from worldgen.tokenizers.action.minecraft import (
    ENVIRONMENT_KEYS,
    minecraft_schema,
    to_environment_action,
)


def _action(camera: Any = (0.0, 0.0), **pressed: Any) -> dict[str, Any]:
    return {**dict.fromkeys(ENVIRONMENT_KEYS, 0), **pressed, "camera": list(camera)}


def _write(stem: Path, lines: list[Any], frames: int | None = None) -> None:
    write_lines(stem.with_name(stem.name + ".jsonl"), lines)
    write_frames(stem.with_name(stem.name + ".mp4"), len(lines) if frames is None else frames)


def test_clips_are_told_from_recordings_by_their_lines(tmp_path: Path) -> None:
    _write(tmp_path / "clips/scene_0001", [_action()] * 3)
    write_vpt(tmp_path / "recordings/player_0001", [line()] * 3)
    assert isinstance(open_layout(tmp_path / "clips"), MineWorldValidation)
    assert isinstance(open_layout(tmp_path / "clips/scene_0001.mp4"), MineWorldValidation)
    assert isinstance(open_layout(tmp_path / "recordings"), VptRecordings)


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["json", "python"])
def test_actions_keep_their_fractions_in_either_spelling(tmp_path: Path, write: Any) -> None:
    actions = [
        _action((0.45, -1.2), forward=1, jump=1),
        _action((-0.15, 0.3), attack=1, **{"hotbar.2": 1}),
        {"camera": [0.0, 12.75]},
    ]
    _write(tmp_path / "scene_7", [write(action) for action in actions])
    reading = Reading(options=ReadOptions(schema="mineworld"))
    (episode,) = open_layout(tmp_path).episodes(reading)
    schema = minecraft_schema("mineworld")
    taken = [to_environment_action(action, schema) for action in episode.actions]
    assert np.allclose([each["camera"] for each in taken], [each["camera"] for each in actions])
    pressed = [{key for key in ENVIRONMENT_KEYS if each[key]} for each in taken]
    assert pressed == [{"forward", "jump"}, {"attack", "hotbar.2"}, set()]
    assert numbers(episode.frames) == [0, 1, 2]
    assert not reading.problems


def test_lines_that_are_no_actions_are_reported_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = [
        "__import__('pathlib').Path('executed').touch()",
        "[1, 2]",
        json.dumps(_action(camera=[1.0])),
        json.dumps(_action(forward=2)),
        json.dumps(_action(camera=["a", "b"])),
        "(" * 20_000,
        '{"camera": [NaN, 0.0]}',
    ]
    good = json.dumps(_action(gravity=1))
    _write(tmp_path / "clips/scene_1", [good, good, *bad, good, good])
    reading = Reading()
    episodes = list(open_layout(tmp_path / "clips").episodes(reading))
    assert [numbers(episode.frames) for episode in episodes] == [[0, 1], [9, 10]]
    unknown, *refused = reading.problems
    assert (unknown.lines, unknown.count) == ((1, 2, 10, 11), 4)
    assert "unknown key 'gravity'" in unknown.message
    assert sorted(line for problem in refused for line in problem.lines) == list(range(3, 10))
    assert not (tmp_path / "executed").exists()


def test_counts_that_differ_and_missing_files_are_reported(tmp_path: Path) -> None:
    _write(tmp_path / "scene_1", [_action()] * 6, frames=4)
    write_lines(tmp_path / "scene_2.jsonl", [_action()])
    report = open_layout(tmp_path).inspect()
    assert [str(problem) for problem in report.problems] == [
        "scene_1.jsonl: 6 lines for 4 frames; the first 4 of both are used",
        "scene_2.mp4: missing beside scene_2.jsonl; left out",
    ]
    assert report.layout == "mineworld_validation"
    assert report.versions == {}
    (episode,) = open_layout(tmp_path).episodes()
    assert episode.info.length == 4
