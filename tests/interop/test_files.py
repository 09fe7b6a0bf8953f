"""Foreign checkpoint files: what is read, what is refused, and what the messages say."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from worldgen.errors import CheckpointError
from worldgen.interop.files import ForeignState, read_checkpoint

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}
PATH = Path("of_others.ckpt")


class CodeInAFile:
    """Leaves a trace when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: str) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return self.call


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("name", ["a.ckpt", "a.bin", "a.pth"])
def test_a_pickle_gives_its_tensors_wherever_the_trainer_put_them(
    tmp_path: Path, name: str, wrapper: str | None
) -> None:
    torch.save({wrapper: WEIGHTS, "epoch": 3} if wrapper else WEIGHTS, tmp_path / name)
    checkpoint = read_checkpoint(tmp_path / name)
    assert checkpoint.tensors.keys() == WEIGHTS.keys()
    assert torch.equal(checkpoint.tensors["layer.weight"], WEIGHTS["layer.weight"])
    assert checkpoint.extras == ({"epoch": 3} if wrapper else {})


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(checkpoint.tensors["layer.bias"], WEIGHTS["layer.bias"])


def test_arguments_in_a_namespace_are_kept(tmp_path: Path) -> None:
    arguments = {"args": argparse.Namespace(width=3)}
    torch.save({"state_dict": WEIGHTS, "hyper_parameters": arguments}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt").extras["hyper_parameters"]["args"].width == 3


@pytest.mark.parametrize("code", [CodeInAFile(open, "ran", "w"), CodeInAFile(os.mkdir, "ran")])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: CodeInAFile
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": WEIGHTS, "extra": code}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"needs \S+, and loading that could run code"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_a_truncated_file_is_called_damaged(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".ckpt":
        torch.save(WEIGHTS, path)
    else:
        save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_other_files_are_not_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a torch checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_missing_file_and_a_file_without_tensors_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "a.ckpt")
    torch.save({"epoch": 3}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"holds no tensors.*it holds epoch"):
        read_checkpoint(tmp_path / "a.ckpt")
    torch.save([1, 2], tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_everything_that_does_not_fit_is_told_at_once() -> None:
    state = ForeignState(
        WEIGHTS | {"head.weight": torch.ones(1), "loss.weight": torch.ones(1)}, PATH
    )
    assert state.take("layer.weight", (3, 2)).shape == (3, 2)
    assert state.take("layer.scale", (4,)).shape == (4,)
    state.take("layer.bias", (2,))
    state.leave("loss.")
    with pytest.raises(CheckpointError) as caught:
        state.finish()
    message = str(caught.value)
    assert "of_others.ckpt" in message
    assert "missing layer.scale," in message
    assert "unexpected head.weight," in message
    assert "wrong shape layer.weight (2, 3) instead of (3, 2);" in message
    assert "loss.weight" not in message


def test_long_lists_of_names_are_cut_with_their_number() -> None:
    state = ForeignState({f"name{number:03}": torch.ones(1) for number in range(120)}, PATH)
    with pytest.raises(
        CheckpointError, match=r"name000, .*name019 and 100 more, wrong shape nothing"
    ):
        state.finish()


def test_halves_become_float32_and_linear_layers_convolutions() -> None:
    state = ForeignState({"weight": torch.ones(2, 3).half(), "ids": torch.ones(2).long()}, PATH)
    weight = state.take("weight", (2, 3, 1, 1))
    assert weight.shape == (2, 3, 1, 1)
    assert weight.dtype == torch.float32
    assert state.take("ids", (2,)).dtype == torch.int64
    assert state.finish() == ()
