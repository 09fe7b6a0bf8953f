"""commaVQ: ids without pictures become recordings that world models train on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats.synthetic_drives import (
    comma_ids,
    comma_velocities,
    minute,
    motion_of_step,
    npy,
    write_shard,
)
from worldgen.cli import main
from worldgen.data.episodes import SPLITS, VISUAL_IDS, Dataset, Episode, TokenGrid
from worldgen.data.formats import CommaVq, Reading, ReadOptions, open_layout
from worldgen.data.formats.convert import convert
from worldgen.data.token_cache import open_or_build_token_cache
from worldgen.errors import DataError
from worldgen.tokenizers.action import ActionTokenizer
from worldgen.tokenizers.visual import (
    FalseColourTokenizer,
    FalseColourTokenizerConfig,
    load_visual_tokenizer,
)


def _read(folder: Path, **options: Any) -> tuple[list[Episode], list[str]]:
    reading = Reading(options=ReadOptions(**options))
    episodes = list(open_layout(folder).episodes(reading))
    return episodes, [str(problem) for problem in reading.problems]


def _write(folder: Path, kind: str, count: int, minutes: int) -> None:
    """Write minutes in one of the ways in which they lie on disk."""
    samples = {f"m{number}": minute(count, number) for number in range(minutes)}
    if kind == "shard":
        write_shard(folder / "data-0000.tar.gz", samples)
        return
    for name, members in samples.items():
        for ending, content in members.items():
            path = folder / (f"{name}/{ending}" if kind == "folders" else f"{name}.{ending}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@pytest.mark.parametrize("kind", ["shard", "folders", "files"])
def test_ids_come_with_the_motion_to_the_next_frame(tmp_path: Path, kind: str) -> None:
    _write(tmp_path, kind, 20, 3)
    layout = open_layout(tmp_path)
    assert isinstance(layout, CommaVq)
    episodes, problems = _read(tmp_path)
    assert not problems
    assert len(episodes) == 3
    for number, episode in enumerate(episodes):
        assert episode.frames.shape == (19, 0, 0, 3)
        assert np.array_equal(episode.columns[VISUAL_IDS], comma_ids(20, number)[:19])
        assert np.allclose(episode.actions, [motion_of_step(0.05)] * 19, atol=1e-5)
    assert len({recording.name for recording in layout.recordings()}) == 3


def test_five_frames_a_second_join_four_motions(tmp_path: Path) -> None:
    _write(tmp_path, "files", 24, 1)
    (episode,), _ = _read(tmp_path, frames_per_second=5.0)
    assert np.array_equal(episode.columns[VISUAL_IDS], comma_ids(24)[:20:4])
    assert np.allclose(episode.actions, [motion_of_step(0.2)] * 5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int16, np.int64])
def test_flat_ids_of_any_type_and_without_poses_are_read(tmp_path: Path, dtype: type) -> None:
    ids = comma_ids(20)
    np.save(tmp_path / "tokens.npy", ids.reshape(20, 128).astype(dtype))
    (episode,), problems = _read(tmp_path)
    assert not problems
    assert np.array_equal(episode.columns[VISUAL_IDS], ids[:19])
    schema = open_layout(tmp_path).content(ReadOptions()).schema
    assert ActionTokenizer(schema).encode(episode.actions).tolist() == [[0]] * 19
    assert open_layout(tmp_path).inspect().action_schema == ("ego_motion (unknown)",)


def test_what_is_wrong_is_named_and_the_rest_is_used(tmp_path: Path) -> None:
    velocities = comma_velocities(20)
    velocities[6] = np.nan
    ids = comma_ids(20)
    ids[12, 0, 0] = 1024
    fast = comma_velocities(20)
    fast[:, 0] *= 1000
    write_shard(
        tmp_path / "data-0000.tar.gz",
        {
            "gaps": minute(20) | {"pose.npy": npy(velocities), "token.npy": npy(ids)},
            "units": minute(20) | {"pose.npy": npy(fast)},
            "no_poses": {"token.npy": npy(comma_ids(20))},
            "short": minute(20) | {"pose.npy": npy(comma_velocities(9))},
            "flat": minute(20) | {"token.npy": npy(np.zeros((20, 129), np.int16))},
            "damaged": minute(20) | {"token.npy": b"nothing"},
            "code": minute(20) | {"token.npy": npy(np.array([None]))},
        },
    )
    episodes, problems = _read(tmp_path)
    assert [episode.info.length for episode in episodes] == [5, 4, 6, 8]
    told = "\n".join(problems)
    for expected in (
        "data-0000/gaps: 1 frames have ids beyond 0 to 1023, the first is 13",
        "data-0000/gaps: rows 7, 13: numbers are missing",
        "data-0000/units: half of the steps are faster than 6000 m/s",
        "data-0000/no_poses: no poses, which the others have; left out",
        "data-0000/short: 20 frames and 9 poses; the first 9 are used",
        "data-0000/flat: ids of shape (20, 129)",
        "data-0000/damaged: damaged",
        "data-0000/code: damaged",
    ):
        assert expected in told
    assert {str(problem) for problem in open_layout(tmp_path).inspect().problems} == set(problems)


def test_a_shard_that_is_cut_off_gives_what_is_there(tmp_path: Path) -> None:
    _write(tmp_path, "shard", 400, 6)
    path = tmp_path / "data-0000.tar.gz"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    episodes, problems = _read(tmp_path)
    assert 1 <= len(episodes) <= 4
    assert problems == [
        problem for problem in problems if problem.startswith("data-0000.tar.gz: is damaged or cut")
    ]
    assert len(problems) == 1


def test_a_report_counts_minutes_without_pixels(tmp_path: Path) -> None:
    _write(tmp_path, "shard", 20, 2)
    report = open_layout(tmp_path).inspect()
    assert dict(report.frame_sizes) == {"8 x 16 visual ids, no pixels": 2}
    assert dict(report.frames_per_second) == {"20": 2}
    assert report.action_schema[1] == "x (0 to 2)"
    assert [(one.frames, one.actions) for one in report.recordings] == [(20, 20)] * 2


def test_conversion_writes_ids_and_a_tokenizer_and_no_videos(tmp_path: Path) -> None:
    _write(tmp_path / "source", "shard", 30, 4)
    out = tmp_path / "out"
    arguments = ["data", "convert", str(tmp_path / "source"), "--out", str(out)]
    assert main([*arguments, "--limit", "3", "--episode-frames", "10"]) == 0
    assert main([*arguments, "--episode-frames", "10"]) == 0
    dataset = Dataset(out)
    assert dataset.metadata.tokens == TokenGrid(rows=8, columns=16, codebook_size=1024)
    assert not list(out.rglob("*.mp4"))
    assert json.loads((out / "dataset.json").read_text())["tokens"]["rows"] == 8
    assert {split: len(dataset.episodes(split)) for split in SPLITS} == {
        "train": 6,
        "validation": 3,
        "test": 3,
    }
    assert all(dataset.num_incomplete(split) == 0 for split in SPLITS)
    tokenizer = load_visual_tokenizer(out / "tokenizer.safetensors")
    cache = open_or_build_token_cache(dataset, "test", out / "tokens", tokenizer, "0" * 64)
    assert np.array_equal(cache.visual_ids, comma_ids(30, 2)[:29].reshape(29, 128))
    assert cache.episode_starts.tolist() == [0, 10, 20, 29]
    # Somebody who put the true tokenizer there finds it again.
    (out / "tokenizer.safetensors").write_bytes(b"mine")
    assert main([*arguments, "--episode-frames", "10"]) == 0
    assert (out / "tokenizer.safetensors").read_bytes() == b"mine"


def test_a_recording_of_ids_says_that_it_has_no_frames(tmp_path: Path) -> None:
    _write(tmp_path / "source", "files", 20, 3)
    convert(open_layout(tmp_path / "source"), tmp_path / "out", ReadOptions())
    dataset = Dataset(tmp_path / "out")
    info = dataset.episodes("train")[0]
    with pytest.raises(DataError, match="holds visual ids and no frames"):
        dataset.load(info)
    with pytest.raises(DataError, match="nothing to scale"):
        open_layout(tmp_path / "out").content(ReadOptions())
    report = open_layout(tmp_path / "out").inspect()
    assert not report.problems
    assert [(one.frames, one.actions) for one in report.recordings] == [(19, 19)] * 3
    with pytest.raises(DataError, match="holds ids and no frames"):
        open_layout(tmp_path / "source").content(ReadOptions(size=(8, 16)))
    other = FalseColourTokenizer(FalseColourTokenizerConfig(rows=8, columns=8, codebook_size=1024))
    with pytest.raises(DataError, match=r"give the tokenizer\.safetensors in that folder"):
        open_or_build_token_cache(dataset, "train", tmp_path / "tokens", other, "0" * 64)
    assert not (tmp_path / "tokens" / ("0" * 16) / "train/meta.json").exists()
