"""A session on disk as it is: every id so far, to go on from the end without drawing it again."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Num
from numpy.typing import NDArray
from torch import Tensor

from worldgen.checkpoint import load_tensors, save_tensors
from worldgen.config import build, to_mapping
from worldgen.errors import CheckpointError, ConfigError, LogError
from worldgen.generation.sampling import SamplingConfig

__all__ = ["SessionState", "is_state"]

_ARTIFACT = "session_state"
_VERSION = 1
_LENGTH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What stands in the metadata."""

    artifact: str
    version: int
    digest: str
    """Of all arrays."""
    world: str
    world_hash: str
    seed: int
    decoder: str
    sampling: SamplingConfig
    start: int | None
    num_context: int
    frame_index: int
    frames_per_step: int


@dataclass(frozen=True, kw_only=True)
class SessionState:
    """All that is needed to go on with a session; see `worldgen.generation.log` for its log."""

    world: str
    world_hash: str
    seed: int
    decoder: str
    sampling: SamplingConfig
    start: int | None
    """Index among the world's shipped starts, None for a start of the user's own."""
    num_context: int
    """Grids that were given; the others were drawn."""
    frame_index: int
    """Of the current frame."""
    frames_per_step: int
    visual_ids: Num[NDArray[np.integer], "grid cell"]
    """Of the context and of all that was drawn."""
    action_ids: Num[NDArray[np.integer], "grid slot"]
    """Of all steps but the last."""
    text_ids: Num[NDArray[np.integer], " token"] | None = None

    def write(self, path: Path) -> None:
        """Write the state as one safetensors file, aside first."""
        arrays = {"visual_ids": self.visual_ids, "action_ids": self.action_ids}
        if self.text_ids is not None:
            arrays["text_ids"] = self.text_ids
        header = _Header(
            artifact=_ARTIFACT,
            version=_VERSION,
            digest=_digest(arrays),
            **{name: getattr(self, name) for name in _SHARED},
        )
        tensors = {name: _as_tensor(array) for name, array in arrays.items()}
        save_tensors(path, tensors, to_mapping(header))

    @classmethod
    def read(cls, path: Path) -> "SessionState":
        """Return the state in a file.

        Raises:
            LogError: If the file is missing, damaged, or no state of a session.
        """
        try:
            tensors, metadata = load_tensors(path)
        except CheckpointError as error:
            raise LogError(f"cannot read the session {path}: {error}") from error
        header = _header(path, metadata)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        axes = {name: array.ndim for name, array in arrays.items()}
        whole = all(np.issubdtype(array.dtype, np.integer) for array in arrays.values())
        if axes not in (_AXES, _AXES | {"text_ids": 1}) or not whole:
            raise LogError(f"{path} does not hold the ids of a session; the file is damaged")
        if _digest(arrays) != header.digest:
            raise LogError(f"{path}: the ids are not those that were written; the file is damaged")
        state = cls(
            visual_ids=arrays["visual_ids"],
            action_ids=arrays["action_ids"],
            text_ids=arrays.get("text_ids"),
            **{name: getattr(header, name) for name in _SHARED},
        )
        drawn = len(state.action_ids) - max(state.num_context - 1, 0)
        size = state.frames_per_step
        fits = (
            len(state.visual_ids) == len(state.action_ids) + 1
            and 0 <= state.num_context <= len(state.visual_ids)
            and size >= 1
            and (drawn - 1) * size < state.frame_index <= drawn * size
        )
        if not (fits or (drawn == state.frame_index == 0 and len(state.visual_ids))):
            raise LogError(
                f"{path}: {len(state.visual_ids)} grids, {len(state.action_ids)} actions and "
                f"frame {state.frame_index} do not make a session; the file is damaged"
            )
        return state


_AXES = {"visual_ids": 2, "action_ids": 2}
_SHARED = tuple(
    name for name in _Header.__dataclass_fields__ if name not in {"artifact", "version", "digest"}
)


def is_state(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of the header, then the header."""
    try:
        with path.open("rb") as file:
            length, first = file.read(_LENGTH_BYTES), file.read(1)
        # A log is JSON: its first eight letters would be a length beyond any file's.
        return first == b"{" and int.from_bytes(length, "little") <= path.stat().st_size
    except OSError:
        return False


def _header(path: Path, metadata: Mapping[str, Any]) -> _Header:
    if metadata.get("artifact") != _ARTIFACT:
        raise LogError(
            f"{path} holds a {metadata.get('artifact')!r} and not a session; give a file that a "
            "session was saved to"
        )
    if metadata.get("version") != _VERSION:
        raise LogError(
            f"{path} has version {metadata.get('version')!r}; this worldgen reads version "
            f"{_VERSION}"
        )
    try:
        return build(_Header, metadata)
    except ConfigError as error:
        raise LogError(f"{path}: malformed session: {error}") from error


def _as_tensor(array: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).copy())


def _digest(arrays: Mapping[str, NDArray[np.integer]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
