"""Tensors survive the disk, damaged files are named, nothing is left half written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from worldgen.checkpoint import file_hash, load_state, load_tensors, save_tensors, write_atomically
from worldgen.errors import CheckpointError


def test_tensors_and_metadata_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).reshape(2, 3), "b": torch.rand(4).to(torch.bfloat16)}
    save_tensors(tmp_path / "x.safetensors", tensors, {"size": [1, 2], "name": "ä"})
    loaded, metadata = load_tensors(tmp_path / "x.safetensors")
    assert metadata == {"size": [1, 2], "name": "ä"}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights at"):
        load_tensors(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 60])
def test_a_truncated_file_is_called_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.rand(100)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.rand(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not written by worldgen"):
        load_tensors(tmp_path / "x.safetensors")


def test_a_mismatch_lists_missing_unexpected_and_reshaped(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    state = {"weight": torch.rand(3, 5), "scale": torch.rand(1)}
    with pytest.raises(CheckpointError) as caught:
        load_state(module, state, tmp_path / "x")
    message = str(caught.value)
    assert "missing ['bias']" in message
    assert "unexpected ['scale']" in message
    assert "weight (3, 5) instead of (3, 2)" in message


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_hash_changes_with_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    assert file_hash(tmp_path / "a") != file_hash(tmp_path / "b")
