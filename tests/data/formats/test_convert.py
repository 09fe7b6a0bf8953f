"""Conversion to native episodes: splits, stopping and going on, and that training can read it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.formats.synthetic import (
    line,
    numbers,
    write_frames,
    write_lerobot,
    write_lines,
    write_vpt,
)
from tests.factories import tiny_tokenizer_config
from train.package_world import StartsConfig, make_starts
from worldgen.cli import main
from worldgen.data.episodes import SPLITS, Dataset, EpisodeWriter
from worldgen.data.formats import ReadOptions, open_layout
from worldgen.data.formats.convert import STATE_FILE, Conversion, convert, split_behind
from worldgen.data.token_cache import open_or_build_token_cache
from worldgen.errors import DataError
from worldgen.tokenizers.action import ActionTokenizer
from worldgen.tokenizers.visual import build_visual_tokenizer


def _recordings(folder: Path, *lengths: int) -> Path:
    """Write recordings whose camera tells recording and line."""
    for number, length in enumerate(lengths):
        lines = [line(keys=["w"], dx=step, dy=-number) for step in range(length)]
        write_vpt(folder / f"player-{number}", lines)
    return folder


def _convert(source: Path, out: Path, limit: int | None = None, **options: Any) -> Conversion:
    return convert(open_layout(source), out, ReadOptions(**options), limit=limit)


def _content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_recordings_become_episodes_that_the_library_reads(tmp_path: Path) -> None:
    source = _recordings(tmp_path / "source", 25, 10, 12)
    conversion = _convert(source, tmp_path / "out", episode_frames=10)
    dataset = Dataset(tmp_path / "out")
    assert dataset.metadata.environment is None
    assert dataset.metadata.frames_per_second == 20.0
    assert (dataset.metadata.frame_height, dataset.metadata.frame_width) == (36, 64)
    lengths = {split: [info.length for info in dataset.episodes(split)] for split in SPLITS}
    assert lengths == {"train": [10, 10, 5], "validation": [10], "test": [10, 2]}
    assert conversion.episodes == {"train": 3, "validation": 1, "test": 2}
    assert conversion.decoded == 47
    for split in SPLITS:
        first = 0
        for info in dataset.episodes(split):
            episode = dataset.load(info)
            expected = list(range(first, first + info.length))
            assert numbers(episode.frames) == expected
            assert np.allclose(episode.actions[:, 1], 0.15 * np.array(expected))
            assert np.allclose(episode.actions[:, 0], -0.15 * SPLITS.index(split))
            assert set(episode.columns) == set(dataset.metadata.columns)
            first += info.length
        assert dataset.num_incomplete(split) == 0


def test_splits_get_their_shares_and_the_first_three_one_each() -> None:
    counts = dict.fromkeys(SPLITS, 0)
    order = []
    for _ in range(1000):
        order.append(split_behind(counts))
        counts[order[-1]] += 1
    assert order[:3] == list(SPLITS)
    assert counts == {"train": 940, "validation": 30, "test": 30}


def test_no_recording_stands_in_two_splits(tmp_path: Path) -> None:
    source = _recordings(tmp_path / "source", *[4] * 6)
    _convert(source, tmp_path / "out", episode_frames=2)
    dataset = Dataset(tmp_path / "out")
    pitches = {
        split: {
            round(float(dataset.load_columns(info)["action"][0, 0]), 4)
            for info in dataset.episodes(split)
        }
        for split in SPLITS
    }
    assert {split: len(found) for split, found in pitches.items()} == {
        "train": 4,
        "validation": 1,
        "test": 1,
    }
    assert sum(map(len, pitches.values())) == len(set().union(*pitches.values())) == 6


def test_of_one_recording_the_episodes_are_dealt_out(tmp_path: Path) -> None:
    source = _recordings(tmp_path / "source", 50)
    conversion = _convert(source, tmp_path / "out", episode_frames=10)
    assert conversion.episodes == {"train": 3, "validation": 1, "test": 1}


def test_splits_that_recordings_name_are_kept(tmp_path: Path) -> None:
    actions = [np.zeros((3, 2)), np.ones((3, 2)), np.ones((3, 2))]
    write_lerobot(tmp_path / "source", actions, splits={"train": "0:1", "test": "1:3"})
    conversion = _convert(tmp_path / "source", tmp_path / "out")
    assert conversion.episodes == {"train": 1, "validation": 0, "test": 2}


@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_what_is_stopped_are_whole_episodes_and_going_on_makes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    source = _recordings(tmp_path / "source", 20, 9, 14, 11)
    _convert(source, tmp_path / "whole", episode_frames=5)
    written = 0
    write = EpisodeWriter.write

    def interrupted(self: EpisodeWriter, episode: Any) -> None:
        nonlocal written
        if written == stop_after:
            raise KeyboardInterrupt
        write(self, episode)
        written += 1

    arguments = ["data", "convert", str(source), "--out", str(tmp_path / "out")]
    arguments += ["--episode-frames", "5"]
    with monkeypatch.context() as patch:
        patch.setattr(EpisodeWriter, "write", interrupted)
        assert main(arguments) == 130
    dataset = Dataset(tmp_path / "out")
    there = [info for split in SPLITS for info in dataset.episodes(split)]
    assert len(there) == stop_after
    for info in there:
        assert len(dataset.load(info).frames) == info.length
    assert main(arguments) == 0
    assert _content(tmp_path / "out") == _content(tmp_path / "whole")


def test_a_larger_limit_goes_on_and_converts_nothing_again(tmp_path: Path) -> None:
    source = _recordings(tmp_path / "source", 6, 6, 6, 6)
    first = _convert(source, tmp_path / "out", limit=3)
    assert (first.recordings, first.decoded) == (3, 18)
    before = _content(tmp_path / "out")
    second = _convert(source, tmp_path / "out")
    assert (second.recordings, second.skipped, second.decoded) == (1, 3, 6)
    after = _content(tmp_path / "out")
    assert all(after[name] == before[name] for name in before if name != STATE_FILE)
    third = _convert(source, tmp_path / "out")
    assert (third.recordings, third.skipped, third.decoded) == (0, 4, 0)
    assert third.episodes == {"train": 2, "validation": 1, "test": 1}


def test_a_folder_begun_otherwise_is_not_continued(tmp_path: Path) -> None:
    source = _recordings(tmp_path / "source", 6)
    _convert(source, tmp_path / "out")
    with pytest.raises(DataError, match=r"was begun with options .*; use the same, or choose"):
        _convert(source, tmp_path / "out", gui="keep")
    other = _recordings(tmp_path / "other", 6)
    with pytest.raises(DataError, match="was begun with source"):
        _convert(other, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/diary.txt").write_text("dear diary")
    with pytest.raises(DataError, match="is not empty and no conversion"):
        _convert(source, tmp_path / "mine")
    (tmp_path / "out" / STATE_FILE).write_text('{"format": 1}')
    with pytest.raises(DataError, match=r"conversion\.json is damaged"):
        _convert(source, tmp_path / "out")


def test_only_drives_can_be_thinned_out(tmp_path: Path) -> None:
    source = _recordings(tmp_path / "source", 6)
    with pytest.raises(DataError, match="layout vpt keep their frame rate; leave 5 frames"):
        _convert(source, tmp_path / "out", frames_per_second=5.0)
    assert not (tmp_path / "out").exists()


def test_a_conversion_begun_before_an_option_was_there_goes_on(tmp_path: Path) -> None:
    source = _recordings(tmp_path / "source", 6, 6, 6)
    _convert(source, tmp_path / "out", limit=2)
    path = tmp_path / "out" / STATE_FILE
    state = json.loads(path.read_text())
    del state["options"]["crop"], state["options"]["frames_per_second"]
    path.write_text(json.dumps(state))
    assert _convert(source, tmp_path / "out").recordings == 1


def test_broken_recordings_cost_only_themselves(tmp_path: Path) -> None:
    source = _recordings(tmp_path / "source", 6, 6, 6)
    (source / "player-1.mp4").write_bytes(b"no video")
    write_lines(source / "player-9.jsonl", [line()])
    conversion = _convert(source, tmp_path / "out")
    assert sum(conversion.episodes.values()) == 2
    assert [problem.path for problem in conversion.problems] == ["player-1.mp4"]


@pytest.mark.parametrize("preset", ["minecraft", "mineworld", "vpt_camera"])
def test_training_reads_the_tokens_of_a_conversion(tmp_path: Path, preset: str) -> None:
    source = _recordings(tmp_path / "source", 8, 8, 8)
    _convert(source, tmp_path / "out", size=(64, 64), schema=preset)
    dataset = Dataset(tmp_path / "out")
    torch.manual_seed(0)
    tokenizer = build_visual_tokenizer(tiny_tokenizer_config()).eval()
    cache = open_or_build_token_cache(dataset, "train", tmp_path / "tokens", tokenizer, "0" * 64)
    actions = dataset.load(dataset.episodes("train")[0]).actions
    expected = ActionTokenizer(dataset.metadata.schema).encode(actions)
    assert np.array_equal(cache.action_ids, expected)
    assert cache.visual_ids.shape == (8, 64)


def test_a_start_of_a_conversion_promises_no_environment(tmp_path: Path) -> None:
    source = _recordings(tmp_path / "source", 8, 8, 8)
    _convert(source, tmp_path / "out", size=(64, 64), schema="mineworld")
    tokenizer = build_visual_tokenizer(tiny_tokenizer_config()).eval()
    config = StartsConfig(count=2, context=3, earliest=2, latest=7)
    first, second = make_starts(Dataset(tmp_path / "out"), tokenizer, config)
    assert first.environment_seed is None
    assert second.environment_actions is None
    assert first.visual_ids.shape == (3, 64)
    # Eleven slots, of which the first and the last are constants.
    assert first.action_ids.shape == (2, 11)


def test_the_command_says_what_it_did_and_how_fast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _recordings(tmp_path / "source", 30, 30, 30)
    out = tmp_path / "out"
    arguments = ["data", "convert", str(source), "--out", str(out)]
    assert main([*arguments, "--height", "18", "--width", "32", "--schema", "mineworld"]) == 0
    printed = capsys.readouterr().out
    for what in ("decoding", "resizing", "writing"):
        assert f"{what}: " in printed
        assert "frames/s (90 frames)" in printed
    assert "train: 1 episodes, 30 frames" in printed
    assert "problems: none" in printed
    assert Dataset(out).metadata.frame_height == 18
    assert main([*arguments, "--height", "18"]) == 2
    assert "need --height and --width" in capsys.readouterr().err


def test_the_command_reports_what_is_there_for_people_and_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _recordings(tmp_path / "source", 30)
    write_lines(source / "7.2/other.jsonl", [line(), "nonsense", line()])
    write_frames(source / "7.2/other.mp4", 3)
    assert main(["data", "inspect", str(source)]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "layout: vpt",
        "version: 7.2 (1 recordings), unknown (1 recordings)",
        "frames per second: 20",
        "frame size: 36 x 64",
        "action: Minecraft",
        "recordings: 2, 33 frames with an action (1.65 s)",
        "  7.2/other: 3 frames, 3 actions, version 7.2",
        "7.2/other.jsonl:2: not JSON",
    ):
        assert expected in printed
    assert main(["data", "inspect", str(source), "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"] == {"7.2": 1, "unknown": 1}
    assert report["problems"][0]["lines"] == [2]
    assert main(["data", "inspect", str(source), "--json", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert main(["data", "inspect", str(tmp_path / "missing")]) == 2
    assert "nothing at" in capsys.readouterr().err
