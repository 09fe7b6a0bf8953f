"""A world model learns from a recording of ids, without any tokenizer that was trained here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.formats.synthetic_drives import comma_ids, minute, write_shard
from train.world_model import run
from worldgen.config import load_config
from worldgen.data.episodes import Dataset
from worldgen.data.formats import ReadOptions, open_layout
from worldgen.data.formats.convert import convert
from worldgen.errors import DataError
from worldgen.pipeline import load
from worldgen.tokenizers.quantizers import FSQConfig
from worldgen.tokenizers.visual import (
    ConvolutionalTokenizerConfig,
    build_visual_tokenizer,
    save_visual_tokenizer,
)
from worldgen.tokenizers.visual.patch import PatchConfig

QUICK = [
    "experiment=commavq",
    "model=tiny",
    "data.clip_frames=4",
    "validation.context=4",
    "validation.steps=5",
    "validation.decoder=whole_frame",
    "training.validation_frames=2",
    "training.batch_size=2",
    "training.length.max_minutes=null",
    "training.length.steps=3",
    "training.log_steps=1",
    "starts.count=2",
    "starts.context=4",
    "starts.earliest=4",
    "starts.latest=9",
]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commavq")
    samples = {f"minute-{number}": minute(14, number) for number in range(3)}
    write_shard(folder / "source/data-0000.tar.gz", samples)
    convert(open_layout(folder / "source"), folder / "out", ReadOptions())
    return folder / "out"


def _train(recording: Path, folder: Path, *changes: str) -> Path:
    overrides = [*QUICK, f"data.folder={recording}", f"run_folder={folder}", *changes]
    return run(load_config("world_model", overrides)).path


@pytest.mark.slow
def test_a_world_learned_from_ids_plays_in_false_colours(recording: Path, tmp_path: Path) -> None:
    folder = _train(recording, tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["training_frames"] == 13
    assert "validation_accuracy" in summary["figures"]
    assert (folder / "rollouts_0000003.png").exists()
    world = load(folder)
    assert torch.equal(
        world.starts[0].visual_ids,
        torch.from_numpy(comma_ids(14, 2)[1:5].reshape(4, 128).astype(np.int64)),
    )
    session = world.session(seed=0)
    frame = session.step(np.array([-0.5, 0.3, 0.0]))
    assert frame.shape == (64, 128, 3)
    # Every cell is one square of one colour.
    squares = frame.reshape(8, 8, 16, 8, 3)
    assert (squares == squares[:, :1, :, :1]).all()


@pytest.mark.slow
def test_the_tokenizer_that_made_the_ids_takes_the_place_of_the_colours(
    recording: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    patch = PatchConfig(patch=4, width=4, blocks=1)
    config = ConvolutionalTokenizerConfig(
        frame_height=32,
        frame_width=64,
        encoder=patch,
        decoder=patch,
        quantizer=FSQConfig(levels=(8, 8, 4, 4)),
    )
    true = tmp_path / "true.safetensors"
    save_visual_tokenizer(true, build_visual_tokenizer(config))
    folder = _train(recording, tmp_path / "run", f"tokenizer_file={true}")
    assert load(folder).session(seed=0).step("forward").shape == (32, 64, 3)
    assert Dataset(recording).metadata.tokens is not None


def test_a_tokenizer_of_another_grid_is_refused(recording: Path, tmp_path: Path) -> None:
    patch = PatchConfig(patch=8, width=4, blocks=1)
    config = ConvolutionalTokenizerConfig(
        frame_height=64,
        frame_width=64,
        encoder=patch,
        decoder=patch,
        quantizer=FSQConfig(levels=(8, 8, 4, 4)),
    )
    other = tmp_path / "other.safetensors"
    save_visual_tokenizer(other, build_visual_tokenizer(config))
    with pytest.raises(DataError, match=r"the tokenizer has TokenGrid\(rows=8, columns=8"):
        _train(recording, tmp_path / "run", f"tokenizer_file={other}")
