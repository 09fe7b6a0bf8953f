"""The recorder: whole data sets, continued and interrupted, and one message for each mistake."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from envs.record import RecordConfig, record
from worldgen.config import build, load_config
from worldgen.data.episodes import SPLITS, Dataset
from worldgen.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


def _config(out: Path, *overrides: str) -> RecordConfig:
    settings = [f"out={out}", "frames=100", "episode_length=20", *overrides]
    return build(RecordConfig, load_config("record", settings))


def _command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "envs.record", *overrides]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return record(_config(tmp_path_factory.mktemp("recording") / "car", "workers=2"))


def test_a_recording_has_the_frames_asked_for_in_three_splits(recording: Dataset) -> None:
    lengths = {split: sum(info.length for info in recording.episodes(split)) for split in SPLITS}
    assert lengths == {"train": 60, "validation": 20, "test": 20}
    assert recording.metadata.frames_per_second == pytest.approx(50 / 3)
    assert all(recording.num_incomplete(split) == 0 for split in SPLITS)


def test_splits_share_no_environment_seed(recording: Dataset) -> None:
    seeds = {split: {info.seed for info in recording.episodes(split)} for split in SPLITS}
    assert seeds == {"train": {0, 1, 2}, "validation": {1_000_000}, "test": {2_000_000}}


def test_seed_and_actions_make_each_episode_again(recording: Dataset) -> None:
    described = recording.metadata.environment
    assert described is not None
    environment: gymnasium.Env[Any, Any] = gymnasium.make(described["id"], **described["options"])
    for split in SPLITS:
        episode = recording.load(recording.episodes(split)[0])
        frame, info = environment.reset(seed=episode.info.seed)
        for step in range(episode.info.length):
            assert np.array_equal(frame, episode.frames[step])
            assert info["yaw"] == episode.columns["yaw"][step]
            frame, reward, _, _, info = environment.step(episode.actions[step])
            assert reward == episode.columns["reward"][step]
        assert episode.columns["cut"].tolist() == [False] * 19 + [True]


def test_columns_are_as_described(recording: Dataset) -> None:
    episode = recording.load(recording.episodes("train")[0])
    assert episode.columns.keys() == recording.metadata.columns.keys()
    for name, column in recording.metadata.columns.items():
        assert episode.columns[name].dtype == column.dtype
        assert episode.columns[name].shape == (20, *column.shape)
    assert episode.actions.shape == (20, recording.metadata.schema.num_groups)


def test_recording_again_continues_with_new_seeds(
    recording: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (recording.folder / "train" / "episode_000002.mp4").read_bytes()
    record(_config(recording.folder, "frames=140"))
    assert "100 frames are there, 40 to go" in capsys.readouterr().err
    assert [info.seed for info in recording.episodes("train")] == [0, 1, 2, 3, 4]
    assert (recording.folder / "train" / "episode_000002.mp4").read_bytes() == before


def test_another_environment_seed_or_folder_is_refused(recording: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds recordings of .*environment differs.*another out="):
        record(_config(recording.folder, "env.options.frame_skip=2"))
    with pytest.raises(DataError, match="begun with seed=0, asked for seed=9"):
        record(_config(recording.folder, "seed=9"))
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="is not empty and not a recording"):
        record(_config(tmp_path))


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with pytest.raises(ConfigError, match="frames=0; use 1 or more"):
        replace(config, frames=0)
    with pytest.raises(ConfigError, match="seed=-1; use 0 to"):
        replace(config, seed=-1)
    with pytest.raises(ConfigError, match="driver 'bus'; use one of"):
        _config(tmp_path, "env.driver=bus")
    with pytest.raises(ConfigError, match=r"cannot make envs\.car_racing"):
        record(_config(tmp_path, "+env.options.wings=2"))


@pytest.mark.parametrize(
    "ending", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interruption_leaves_whole_episodes_and_says_so(
    tmp_path: Path, ending: signal.Signals
) -> None:
    folder = tmp_path / "car"
    # As a shell starts a background job: with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(
        _command("frames=100000", "episode_length=30", f"out={folder}", "workers=2"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 300
        while len(list(folder.glob("train/*.json"))) < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        # To the whole group, as a terminal does.
        os.killpg(process.pid, ending)
        _, messages = process.communicate(timeout=250)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "run again to continue" in messages
    assert "Traceback" not in messages
    dataset = Dataset(folder)
    infos = dataset.episodes("train")
    assert len(infos) >= 1
    assert all(dataset.load(info).info.length == 30 for info in infos)
    assert dataset.num_incomplete("train") == 0
    assert not list(folder.glob("*/.*"))


def test_the_command_says_what_was_wrong_without_a_traceback(tmp_path: Path) -> None:
    unknown = subprocess.run(
        _command("env=nonsense"), cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert unknown.returncode != 0
    assert "Could not find 'env/nonsense'" in unknown.stderr
    assert "car_racing" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    (tmp_path / "letter.txt").write_text("dear")
    foreign = subprocess.run(
        _command(f"out={tmp_path}"), cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert foreign.returncode == 2
    assert foreign.stderr.startswith("error: ")
    assert "Traceback" not in foreign.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
