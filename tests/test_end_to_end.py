"""From nothing to a played world by the commands of the README, at a size of seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worldgen.checkpoint import load_tensors

REPOSITORY = Path(__file__).resolve().parents[1]


def command(folder: Path, *words: str) -> str:
    """Run a command of the README in a clone; return what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2400)  # Six programs in turn, on a machine that may be slow.
@pytest.mark.parametrize("name", ["car_racing", "crafter"])
def test_record_train_resume_and_play(tmp_path: Path, name: str) -> None:
    recording, tokenizer, world = (tmp_path / part for part in ("recording", "tokenizer", "world"))
    command(
        tmp_path, "envs.record", f"env={name}", f"out={recording}", "frames=240",
        "episode_length=40", "workers=1",
    )  # fmt: skip
    common = [f"experiment={name}", f"data.folder={recording}", "training.length.max_minutes=null"]
    command(
        tmp_path, "train.visual_tokenizer", *common, f"run_folder={tokenizer}",
        "training.length.steps=3", "training.batch_size=2",
    )  # fmt: skip
    learn = [
        "train.world_model", *common, f"run_folder={world}", "model=tiny", "model.windows=[2,3]",
        f"tokenizer_file={tokenizer / 'tokenizer.safetensors'}", "training.batch_size=2",
        "training.validation_frames=2", "data.clip_frames=4", "validation.steps=4",
    ]  # fmt: skip
    command(tmp_path, *learn, "training.length.steps=2")
    command(tmp_path, *learn, "training.length.steps=4")
    assert load_tensors(world / "checkpoint.safetensors")[1]["step"] == 4
    action = "left*3,gas*5" if name == "car_racing" else "left*3,do*5"
    log = tmp_path / "rollout.json"
    command(
        tmp_path, "worldgen", "rollout", "--world", str(world), "--actions", action,
        "--seed", "0", "--out", str(tmp_path / "rollout.mp4"), "--log", str(log),
    )  # fmt: skip
    assert (tmp_path / "rollout.mp4").stat().st_size > 500
    command(tmp_path, "worldgen", "replay", str(log), "--verify", "--world", str(world))
