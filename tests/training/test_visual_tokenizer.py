"""The training script from recording to tokenizer: resuming, stopping, and what it leaves."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.training.recordings import write_recording
from train.visual_tokenizer import RunConfig, run
from worldgen.checkpoint import load_tensors
from worldgen.config import build, load_config
from worldgen.errors import ConfigError, DataError
from worldgen.tokenizers.visual import load_visual_tokenizer
from worldgen.training import DivergedError, RunFolder


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("recording"))


def train(
    recording: Path, folder: Path, *changes: str, experiment: str = "car_racing"
) -> RunFolder:
    """Run the script at a size that takes a second."""
    tiny = [
        f"experiment={experiment}",
        f"run_folder={folder}",
        f"data.folder={recording}",
        "tokenizer.frame_height=16",
        "tokenizer.frame_width=16",
        "training.batch_size=2",
        "training.length.max_minutes=null",
        "training.length.steps=4",
        "training.log_steps=1",
        "training.mixed_precision=false",
        # A constant rate, so that a longer training begins like a shorter one.
        "training.optimiser.warmup_share=0.0",
        "training.optimiser.final_share=1.0",
    ]
    if experiment == "car_racing":
        tiny += ["tokenizer.encoder.base_width=2", "tokenizer.decoder.base_width=2"]
    else:
        tiny += ["tokenizer.encoder.width=8", "tokenizer.decoder.width=8"]
    return run(load_config("visual_tokenizer", [*tiny, *changes]))


@pytest.mark.parametrize("experiment", ["car_racing", "crafter"])
def test_a_training_leaves_tokenizer_summary_curves_and_pictures(
    recording: Path, tmp_path: Path, experiment: str
) -> None:
    folder = train(recording, tmp_path / "run", experiment=experiment)
    tokenizer = load_visual_tokenizer(folder.path / "tokenizer.safetensors")
    assert (tokenizer.rows, tokenizer.columns) == (2, 2)
    figures = json.loads((folder.path / "summary.json").read_text())["figures"]
    for split in ("validation", "test"):
        assert {"psnr", "ssim", "codes_used", "perplexity"} <= figures[split].keys()
        assert figures[split]["frames"] == 24
    assert (folder.path / "curves.png").exists()
    assert (folder.path / "reconstructions_0000004.png").exists()
    assert [line["step"] for line in folder.read_metrics() if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize("experiment", ["car_racing", "crafter"])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    recording: Path, tmp_path: Path, experiment: str
) -> None:
    whole = train(recording, tmp_path / "whole", experiment=experiment)
    train(recording, tmp_path / "parts", "training.length.steps=2", experiment=experiment)
    parts = train(recording, tmp_path / "parts", experiment=experiment)
    expected, _ = load_tensors(whole.checkpoint)
    got, metadata = load_tensors(parts.checkpoint)
    assert metadata["step"] == 4
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name


def test_control_c_keeps_the_work_and_the_same_command_goes_on(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)

    def interrupt_after_two_lines() -> None:
        while len(folder.read_metrics()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    # Far too long to end by itself before the signal comes.
    thread = threading.Thread(target=interrupt_after_two_lines)
    thread.start()
    train(recording, tmp_path, "training.length.steps=10000000")
    thread.join()
    assert "the same command goes on from" in capsys.readouterr().out
    step = load_tensors(folder.checkpoint)[1]["step"]
    assert step >= 2
    train(recording, tmp_path, f"training.length.steps={step + 2}")
    assert load_tensors(folder.checkpoint)[1]["step"] == step + 2


def test_numbers_out_of_hand_stop_the_training_and_keep_the_last_checkpoint(
    recording: Path, tmp_path: Path
) -> None:
    folder = train(recording, tmp_path, "training.length.steps=2")
    before = folder.checkpoint.read_bytes()
    with pytest.raises(DivergedError, match=r"is (nan|inf) at step \d+; the last checkpoint"):
        train(recording, tmp_path, "training.optimiser.learning_rate=1e30")
    assert folder.checkpoint.read_bytes() == before


def test_other_settings_are_not_mixed_into_a_run(recording: Path, tmp_path: Path) -> None:
    train(recording, tmp_path)
    with pytest.raises(ConfigError, match="made with other settings of losses; resume=false"):
        train(recording, tmp_path, "losses.worst=0.0")
    folder = train(recording, tmp_path, "losses.worst=0.0", "resume=false")
    assert load_tensors(folder.checkpoint)[1]["step"] == 4


def test_a_missing_recording_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a recording"):
        train(tmp_path / "nowhere", tmp_path / "run")


@pytest.mark.parametrize("experiment", ["car_racing", "crafter"])
def test_shipped_experiments_compose_and_build(experiment: str) -> None:
    config = build(RunConfig, load_config("visual_tokenizer", [f"experiment={experiment}"]))
    assert config.name == experiment
    assert config.run_folder == f"runs/visual_tokenizer/{experiment}"


def test_a_misspelt_setting_is_refused() -> None:
    composed = load_config("visual_tokenizer", ["experiment=crafter", "+training.lenght=3"])
    with pytest.raises(ConfigError, match="lenght"):
        build(RunConfig, composed)
