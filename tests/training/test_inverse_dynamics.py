"""The script for judges of actions: it learns what shows, resumes bit for bit, and reports errors."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation import toy_clicks
from train.inverse_dynamics import RunConfig, run
from worldgen.checkpoint import load_tensors
from worldgen.config import build, config_dir, load_config
from worldgen.data.episodes import Dataset
from worldgen.errors import ConfigError, DataError
from worldgen.evaluation.judges.inverse_dynamics import INVERSE_DYNAMICS_FILE, load_inverse_dynamics
from worldgen.evaluation.judges.inverse_dynamics_data import load_labelled_clips
from worldgen.evaluation.judges.inverse_dynamics_following import follow_actions, judge_actions
from worldgen.training import DivergedError, RunFolder, learning_rate

STEPS = 300


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_clicks.record(tmp_path_factory.mktemp("recording") / "clicks", episodes=8)


def train(recording: Path, folder: Path, *changes: str) -> RunFolder:
    """Run the script at a size that takes a second or two."""
    overrides = [
        "experiment=crafter",
        f"run_folder={folder}",
        f"data.folder={recording}",
        "data.clip_frames=8",
        "model.frame_height=16",
        "model.frame_width=16",
        "model.window_frames=4",
        "model.channels=[12,16]",
        "model.width=32",
        "training.batch_size=8",
        "training.average_decay=0.9",
        "training.optimiser.learning_rate=0.005",
        "training.mixed_precision=false",
        f"training.length.steps={STEPS}",
        "training.log_steps=10",
        *changes,
    ]
    return run(load_config("inverse_dynamics", overrides))


@pytest.fixture(scope="module")
def finished(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(recording, tmp_path_factory.mktemp("run"))


def test_actions_that_show_are_read_without_a_mistake(recording: Path, finished: RunFolder) -> None:
    judge, held_out = load_inverse_dynamics(finished.path / INVERSE_DYNAMICS_FILE)
    assert held_out["tasks"]["move"]["f1_macro"] == 1.0
    assert held_out["axes"]["turn"]["mean_absolute_difference"] == 0.0
    assert held_out["alignment"]["best_shift"] == 0
    assert held_out["alignment"]["aligned"] is True
    clips = load_labelled_clips(Dataset(recording), "test", (16, 16), 4000, clip_frames=8)
    again = judge_actions(judge, *clips)
    assert again == {key: held_out[key] for key in again}
    summary = json.loads((finished.path / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert summary["held_out"] == held_out
    assert (finished.path / "curves.png").exists()
    logged = finished.read_metrics()
    assert {"loss_move", "loss_turn", "learning_rate"} <= logged[0].keys()
    assert logged[-1]["validation_f1_macro_move"] == 1.0


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_recordings_with_shifted_actions_are_found_out(
    finished: RunFolder, tmp_path: Path, shift: int
) -> None:
    judge, _ = load_inverse_dynamics(finished.path / INVERSE_DYNAMICS_FILE)
    folder = toy_clicks.record(tmp_path / "shifted", shift=shift, seed=5)
    clips = load_labelled_clips(Dataset(folder), "test", (16, 16), 4000, clip_frames=40)
    figures = judge_actions(judge, *clips)
    assert figures["alignment"]["best_shift"] == shift
    assert figures["alignment"]["aligned"] is False


def test_generated_clips_that_answer_a_step_late_are_found_out(finished: RunFolder) -> None:
    judge, _ = load_inverse_dynamics(finished.path / INVERSE_DYNAMICS_FILE)
    random = np.random.default_rng(7)
    actions = np.stack([toy_clicks.random_actions(random, 30) for _ in range(4)])
    real = np.stack([toy_clicks.show(each) for each in actions])
    # A world that draws the effect of each action one frame too late.
    late = np.stack([toy_clicks.show(np.roll(each, 1, axis=0)) for each in actions])
    clips = {"generated": late, "real_frames": real, "tokenizer_reconstruction": real}
    judged = follow_actions(judge, clips, actions, context=3)
    frames = judged["frames"]
    assert frames["real_frames"]["steps"] == 4 * 28
    assert frames["real_frames"]["mean_over_tasks"]["f1_macro"] == 1.0
    assert frames["generated"]["mean_over_tasks"]["f1_macro"] < 0.7
    assert frames["real_frames"]["alignment"]["best_shift"] == 0
    # What shows at step t was ordered at step t - 1.
    assert frames["generated"]["alignment"]["best_shift"] == -1
    assert list(frames["generated"]["windows"]) == ["1-16", "17-28"]
    (problem,) = judged["misaligned"]
    assert "actions of the dream lie 1 step too early" in problem
    assert judged["frames"] == json.loads(json.dumps(judged["frames"]))


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    recording: Path, tmp_path: Path
) -> None:
    # At one rate, for a rate that falls until the end would know of the longer training.
    changes = [
        "training.optimiser.warmup_share=0.0",
        "training.optimiser.final_share=1.0",
        "training.log_steps=1",
    ]
    whole = train(recording, tmp_path / "whole", *changes, "training.length.steps=6")
    train(recording, tmp_path / "parts", *changes, "training.length.steps=2")
    parts = train(recording, tmp_path / "parts", *changes, "training.length.steps=6")
    for name in ("checkpoint.safetensors", INVERSE_DYNAMICS_FILE):
        expected, _ = load_tensors(whole.path / name)
        got, _ = load_tensors(parts.path / name)
        assert expected.keys() == got.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, got[key]), key
    losses = [
        [line["loss_move"] for line in folder.read_metrics() if "loss_move" in line]
        for folder in (whole, parts)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_ctrl_c_leaves_a_checkpoint_from_which_the_same_command_goes_on(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupt_at_the_third_step(*arguments: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return learning_rate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("train.inverse_dynamics.learning_rate", interrupt_at_the_third_step)
    stopped = train(recording, tmp_path / "run", "training.length.steps=5")
    assert load_tensors(stopped.checkpoint)[1]["step"] == 3
    assert not (stopped.path / INVERSE_DYNAMICS_FILE).exists()
    ended = train(recording, tmp_path / "run", "training.length.steps=5")
    assert load_tensors(ended.checkpoint)[1]["step"] == 5
    assert (ended.path / INVERSE_DYNAMICS_FILE).exists()


def test_a_run_is_not_resumed_with_other_settings(recording: Path, tmp_path: Path) -> None:
    train(recording, tmp_path / "run", "training.length.steps=1")
    with pytest.raises(ConfigError, match="other settings of data"):
        train(recording, tmp_path / "run", "training.length.steps=2", "data.noise=0.1")
    anew = train(
        recording, tmp_path / "run", "training.length.steps=1", "model.width=8", "resume=false"
    )
    assert load_inverse_dynamics(anew.path / INVERSE_DYNAMICS_FILE)[0].config.width == 8


def test_a_training_that_diverges_says_so(recording: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="at step"):
        train(
            recording,
            tmp_path / "run",
            "training.optimiser.learning_rate=1e30",
            "training.optimiser.warmup_share=0.0",
            "training.length.steps=20",
        )


def test_what_cannot_be_trained_on_is_refused(recording: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="as long as a clip of 41 frames"):
        train(recording, tmp_path / "long", "data.clip_frames=41")
    with pytest.raises(DataError, match="is not a recording"):
        train(tmp_path / "nothing", tmp_path / "run")
    with pytest.raises(ConfigError, match="clip_frames must be at least 6"):
        train(recording, tmp_path / "run", "data.clip_frames=5")


def test_every_shipped_experiment_is_complete() -> None:
    folder = config_dir() / "experiment" / "inverse_dynamics"
    # The first of the family is a part of the others, no experiment of its own.
    names = sorted({path.stem for path in folder.glob("*.yaml")} - {"mineworld"})
    assert {"car_racing", "crafter"} <= set(names)
    for name in names:
        config = build(RunConfig, load_config("inverse_dynamics", [f"experiment={name}"]))
        assert config.name == name
