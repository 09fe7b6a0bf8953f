"""Recordings as tokens: memory maps that training reads, tied to the tokenizer that made them."""

import json
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from tqdm import tqdm

from worldgen.checkpoint import write_atomically
from worldgen.data.episodes import Dataset
from worldgen.errors import DataError
from worldgen.records import to_float
from worldgen.tokenizers.action import ActionTokenizer
from worldgen.tokenizers.visual import VisualTokenizer

__all__ = ["TokenCache", "open_or_build_token_cache"]

_FORMAT = "worldgen-tokens"
_VERSION = 1
_META_FILE = "meta.json"
_FRAMES_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """All episodes of a split as tokens, one after the other.

    Attributes:
        visual_ids: uint16 or uint32 `[frame, cell]`, raster order.
        action_ids: uint16 `[frame, slot]`; the action taken in each frame.
        episode_starts: int64 `[episode + 1]`; the last entry is the number of frames.
        metadata: Content of `meta.json`.
    """

    visual_ids: NDArray[Any]
    action_ids: NDArray[np.uint16]
    episode_starts: NDArray[np.int64]
    metadata: Mapping[str, Any]

    def clip_starts(self, length: int) -> Bool[np.ndarray, " frame"]:
        """Return where a clip of `length` frames may start without crossing an episode's end."""
        allowed = np.zeros(len(self.visual_ids), dtype=bool)
        for start, stop in zip(self.episode_starts[:-1], self.episode_starts[1:], strict=True):
            allowed[start : max(start, stop - length + 1)] = True
        return allowed

    def clips(
        self, starts: Int[np.ndarray, " clip"], length: int
    ) -> tuple[Int[torch.Tensor, "clip frame cell"], Int[torch.Tensor, "clip frame slot"]]:
        """Return visual and action tokens of clips, int64."""
        rows = starts[:, None] + np.arange(length)
        visual = self.visual_ids[rows].astype(np.int64)
        actions = self.action_ids[rows].astype(np.int64)
        return torch.from_numpy(visual), torch.from_numpy(actions)


def open_or_build_token_cache(
    dataset: Dataset,
    split: str,
    folder: Path,
    visual_tokenizer: VisualTokenizer,
    tokenizer_hash: str,
) -> TokenCache:
    """Return the tokens of a split, encoding the frames first where that was not done yet.

    A cache made by another tokenizer, or of fewer episodes than the recording has by now, is
    made anew.

    Args:
        dataset: Recording.
        split: "train", "validation" or "test".
        folder: Where caches of this recording are kept.
        visual_tokenizer: In evaluation mode.
        tokenizer_hash: `worldgen.checkpoint.file_hash` of the tokenizer's file.

    Raises:
        DataError: If the split has no episodes, or frames of another size.
    """
    infos = dataset.episodes(split)
    if not infos:
        raise DataError(
            f"{dataset.folder} has no complete episodes in split {split!r}; record more frames"
        )
    described = {
        "format": _FORMAT,
        "version": _VERSION,
        "tokenizer_hash": tokenizer_hash,
        "action_schema": dataset.metadata.action_schema,
        "rows": visual_tokenizer.rows,
        "columns": visual_tokenizer.columns,
        "codebook_size": visual_tokenizer.codebook_size,
        "frames": sum(info.length for info in infos),
        "episodes": len(infos),
    }
    place = folder / tokenizer_hash[:16] / split
    if _read_meta(place) != described:
        _build(dataset, split, place, visual_tokenizer, described)
    return open_token_cache(place, tokenizer_hash)


def open_token_cache(folder: Path, tokenizer_hash: str) -> TokenCache:
    """Return the tokens in a folder.

    Raises:
        DataError: If the folder holds no tokens, or those of another tokenizer.
    """
    metadata = _read_meta(folder)
    if metadata is None or metadata.get("format") != _FORMAT:
        raise DataError(f"{folder} holds no tokens; remove it and run the training again")
    if metadata.get("tokenizer_hash") != tokenizer_hash:
        raise DataError(
            f"the tokens in {folder} were made by tokenizer "
            f"{str(metadata.get('tokenizer_hash'))[:12]}, not by {tokenizer_hash[:12]}; "
            f"encode the recording again"
        )
    return TokenCache(
        visual_ids=np.load(folder / "visual_ids.npy", mmap_mode="r"),
        action_ids=np.load(folder / "action_ids.npy", mmap_mode="r"),
        episode_starts=np.load(folder / "episode_starts.npy"),
        metadata=metadata,
    )


def _read_meta(folder: Path) -> dict[str, Any] | None:
    path = folder / _META_FILE
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _build(
    dataset: Dataset,
    split: str,
    folder: Path,
    visual_tokenizer: VisualTokenizer,
    described: dict[str, Any],
) -> None:
    # The JSON file makes the cache exist, so it goes first and comes back last.
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _META_FILE).unlink(missing_ok=True)
    size = (dataset.metadata.frame_height, dataset.metadata.frame_width)
    if size != (visual_tokenizer.frame_height, visual_tokenizer.frame_width):
        raise DataError(
            f"{dataset.folder} has frames of {size[0]} x {size[1]} pixels, the tokenizer takes "
            f"{visual_tokenizer.frame_height} x {visual_tokenizer.frame_width}"
        )
    action_tokenizer = ActionTokenizer(dataset.metadata.schema)
    num_frames, num_cells = described["frames"], described["rows"] * described["columns"]
    dtype = np.uint16 if described["codebook_size"] <= 2**16 else np.uint32
    visual = np.lib.format.open_memmap(
        folder / "visual_ids.npy", "w+", dtype=dtype, shape=(num_frames, num_cells)
    )
    actions = np.empty((num_frames, action_tokenizer.num_slots), dtype=np.uint16)
    starts = [0]
    with closing(tqdm(total=num_frames, desc=f"encode {split}", unit=" frames")) as bar:
        for info in dataset.episodes(split):
            episode = dataset.load(info)
            first = starts[-1]
            starts.append(first + info.length)
            actions[first : starts[-1]] = action_tokenizer.encode(episode.actions)
            for offset in range(0, info.length, _FRAMES_AT_ONCE):
                ids = _encode(visual_tokenizer, episode.frames[offset : offset + _FRAMES_AT_ONCE])
                visual[first + offset : first + offset + len(ids)] = ids
            bar.update(info.length)
    visual.flush()
    np.save(folder / "action_ids.npy", actions)
    np.save(folder / "episode_starts.npy", np.array(starts, dtype=np.int64))
    text = json.dumps(described, indent=2) + "\n"
    write_atomically(folder / _META_FILE, lambda path: _write_synced(path, text))


@torch.no_grad()
def _encode(tokenizer: VisualTokenizer, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    pixels = to_float(torch.from_numpy(np.ascontiguousarray(frames)))
    ids = tokenizer.encode(rearrange(pixels, "b rgb h w -> b 1 rgb h w"))
    return rearrange(ids, "b 1 row column -> b (row column)").cpu().numpy()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
