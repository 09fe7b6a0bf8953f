"""Tensors on disk: safetensors with JSON metadata, written aside and renamed."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from worldgen.errors import CheckpointError, DataError

__all__ = [
    "check_new_folder",
    "file_hash",
    "load_state",
    "load_tensors",
    "save_tensors",
    "write_atomically",
    "write_folder",
    "write_text",
]

_METADATA_KEY = "worldgen"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it over `path`.

    A crash or a full disk leaves the old file as it was and no half-written new one.

    Args:
        path: Final place; its folder is made when missing.
        write: Called once with the temporary path, which has the suffix of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes private files; a shared data set must be readable like any other file.
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `folder`, then rename it to `folder`.

    Args:
        folder: Final place; must not hold anything yet. The folder that it is in is made when
            missing.
        write: Called once with the temporary folder.

    Raises:
        DataError: If the folder holds something, or is a file.
    """
    check_new_folder(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        filled = Path(name) / folder.name
        filled.mkdir()
        write(filled)
        if folder.exists():
            folder.rmdir()
        filled.rename(folder)


def check_new_folder(folder: Path) -> None:
    """Check that a folder is missing or empty.

    Raises:
        DataError: If it holds something, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there already and not empty; choose another folder")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, aside first."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata to one safetensors file.

    Args:
        path: Destination, by convention `*.safetensors`.
        tensors: Named tensors of any dtype; copied to contiguous CPU memory.
        metadata: Anything JSON can hold.

    Raises:
        DataError: If the file cannot be written, as on a full disk.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {_METADATA_KEY: json.dumps(metadata)}
    try:
        write_atomically(path, lambda temporary: save_file(contiguous, temporary, header))
    except SafetensorError as error:
        raise DataError(f"cannot write {path} ({error}); is the disk full?") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a file written by `save_tensors`.

    Raises:
        CheckpointError: If the file is missing, truncated, or was not written by worldgen.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; check the path, or train or reinstall them")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); copy or download it again"
        ) from error
    if _METADATA_KEY not in header:
        raise CheckpointError(
            f"{path} holds tensors but was not written by worldgen; convert it before loading"
        )
    return tensors, json.loads(header[_METADATA_KEY])


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill every parameter and buffer of `module`, refusing any mismatch.

    Args:
        module: Network of the configuration that the file names.
        tensors: State by name, as `load_tensors` returns it.
        path: Where the state came from, for the message.

    Raises:
        CheckpointError: If names or shapes differ; the message lists them.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if missing or unexpected or reshaped:
        raise CheckpointError(
            f"{path} does not fit its configuration: missing {missing or 'nothing'}, "
            f"unexpected {unexpected or 'nothing'}, wrong shape {reshaped or 'nothing'}"
        )
    module.load_state_dict(dict(tensors))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
