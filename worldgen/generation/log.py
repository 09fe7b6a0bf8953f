"""The log of a rollout: all that is needed to generate it again, and to know that it is the same."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldgen.checkpoint import write_text
from worldgen.config import build, to_mapping
from worldgen.errors import ConfigError, LogError
from worldgen.generation.sampling import SamplingConfig

__all__ = ["RolloutLog", "frame_digest"]

_FORMAT = "worldgen-log"
_VERSION = 1


def frame_digest(ids: NDArray[np.int64]) -> str:
    """Return 16 hexadecimal digits that identify the ids of a frame."""
    return hashlib.blake2b(ids.astype("<i4").tobytes(), digest_size=8).hexdigest()


@dataclass(frozen=True, kw_only=True)
class RolloutLog:
    """Start, seed and actions of a rollout, and digests of the frames that came of them."""

    world: str
    world_hash: str
    seed: int
    decoder: str
    sampling: SamplingConfig
    start: int | None
    """Index among the world's shipped starts, None for a start of the user's own."""
    context_ids: tuple[tuple[int, ...], ...]
    """Visual tokens of the context, whose last frame is frame 0 of the rollout; where there is
    none, frame 0 was drawn from the text."""
    context_actions: tuple[tuple[int, ...], ...]
    """Action tokens of the steps of the context, one tuple fewer than grids."""
    actions: tuple[tuple[int, ...], ...]
    """Action tokens of every frame drawn, as it was drawn; where several frames are drawn
    together, those that were not shown yet are among them."""
    digests: tuple[str, ...]
    """For every frame shown the `frame_digest` of its grid."""
    frames_per_step: int = 1
    """Frames that are drawn together; not written where it is 1."""
    text_ids: tuple[int, ...] | None = None
    """Text in front of the context, padded with 0; None, and not written: none, or the null
    prompt."""

    @property
    def total_hash(self) -> str:
        """Return 32 hexadecimal digits that identify all generated frames in their order."""
        return hashlib.blake2b("".join(self.digests).encode(), digest_size=16).hexdigest()

    def first_difference(self, digests: Iterable[str]) -> int | None:
        """Return the first frame (counted from 1) whose digest differs, None when all agree."""
        for number, (mine, other) in enumerate(zip(self.digests, digests, strict=False), start=1):
            if mine != other:
                return number
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the log as JSON can hold it."""
        header = {"format": _FORMAT, "version": _VERSION, "total_hash": self.total_hash}
        content = to_mapping(self)
        if self.frames_per_step == 1:
            del content["frames_per_step"]
        if self.text_ids is None:
            del content["text_ids"]
        return header | content

    @classmethod
    def from_json(cls, data: Any) -> "RolloutLog":
        """Return the log of a parsed JSON document.

        Raises:
            LogError: If the document is not a log, of another version, or inconsistent.
        """
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise LogError(f'not a rollout log: a JSON object with "format": "{_FORMAT}" is needed')
        if data.get("version") != _VERSION:
            raise LogError(
                f"the log has version {data.get('version')!r}; this worldgen reads version "
                f"{_VERSION}"
            )
        fields = {field.name for field in dataclasses.fields(cls)}
        rest = {key: value for key, value in data.items() if key not in {"format", "version"}}
        total_hash = rest.pop("total_hash", None)
        try:
            log = build(cls, _tuples(rest, fields))
        except ConfigError as error:
            raise LogError(f"malformed rollout log: {error}") from error
        size = log.frames_per_step
        if size < 1 or len(log.actions) != -(-len(log.digests) // size) * size:
            raise LogError(
                f"malformed rollout log: {len(log.actions)} actions but {len(log.digests)} digests"
                + (f" of frames drawn {size} at a time" if size != 1 else "")
            )
        if len(log.context_actions) != max(len(log.context_ids) - 1, 0):
            raise LogError(
                f"malformed rollout log: {len(log.context_ids)} context frames or grids need the "
                f"actions of one fewer, got {len(log.context_actions)}"
            )
        if total_hash != log.total_hash:
            raise LogError(
                f"the log's total hash is {total_hash}, its frames give {log.total_hash}: "
                f"the file was changed or cut"
            )
        return log

    def write(self, path: Path) -> None:
        """Write the log as one JSON file, aside first."""
        text = json.dumps(self.to_json(), separators=(",", ":"))
        write_text(path, text)

    @classmethod
    def read(cls, path: Path) -> "RolloutLog":
        """Return the log in a file.

        Raises:
            LogError: If the file is missing, not JSON, or not a log.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise LogError(f"cannot read the log {path}: {error.strerror}") from error
        # Deeply nested lists are valid, and more than Python reads.
        except (ValueError, RecursionError) as error:
            raise LogError(f"{path} is not JSON: {error}") from error
        try:
            return cls.from_json(data)
        except LogError as error:
            raise LogError(f"{path}: {error}") from error


def _tuples(rest: dict[str, Any], fields: set[str]) -> dict[str, Any]:
    nested = {"context_ids", "context_actions", "actions", "text_ids"} & fields
    return {
        key: [tuple(row) if isinstance(row, list) else row for row in value]
        if key in nested and isinstance(value, list)
        else value
        for key, value in rest.items()
    }
