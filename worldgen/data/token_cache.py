"""Recordings as tokens: memory maps that training reads, tied to the tokenizer that made them."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Int, UInt8
from numpy.typing import NDArray
from tqdm import tqdm

from worldgen.checkpoint import write_atomically
from worldgen.data.episodes import VISUAL_IDS, Dataset, EpisodeInfo, TokenGrid
from worldgen.errors import ConfigError, DataError
from worldgen.layout import SequenceLayout
from worldgen.records import to_float
from worldgen.tokenizers.action import ActionTokenizer
from worldgen.tokenizers.visual import VisualTokenizer

__all__ = ["TokenCache", "join_token_caches", "open_or_build_token_cache", "recorded_ids"]

_FORMAT = "worldgen-tokens"
_VERSION = 1
_META_FILE = "meta.json"
_FRAMES_AT_ONCE = 128
# Clips go through a tokenizer grid by grid: eight together took half the time of two.
_CLIP_FRAMES_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """All episodes of a split as tokens, step by step and one after the other.

    A step is a frame and the action taken in it. With a tokenizer of clips it is a grid that
    stands for several frames, with as many actions: see `SequenceLayout`. Such a tokenizer starts
    afresh several times in an episode, so that world models know how clips begin.

    Attributes:
        visual_ids: uint16 or uint32 `[step, cell]`, raster order.
        action_ids: uint16 `[step, slot]`; the actions taken in each step.
        episode_starts: int64 `[episode + 1]`, where the tokenizer started afresh; the last entry is
            the number of steps.
        metadata: Content of `meta.json`.
    """

    visual_ids: NDArray[Any]
    action_ids: NDArray[np.uint16]
    episode_starts: NDArray[np.int64]
    metadata: Mapping[str, Any]

    def clip_starts(self, length: int, *, from_pixels: bool = False) -> Bool[np.ndarray, " step"]:
        """Return where a clip of `length` steps may start without crossing an episode's end.

        Args:
            length: Steps.
            from_pixels: Only where the ids can be turned into frames again without those before:
                for single frames everywhere, for clips where the tokenizer started afresh.
        """
        allowed = np.zeros(len(self.visual_ids), dtype=bool)
        for start, stop in zip(self.episode_starts[:-1], self.episode_starts[1:], strict=True):
            allowed[start : max(start, stop - length + 1)] = True
        if from_pixels and "clip_steps" in self.metadata:
            fresh = np.zeros_like(allowed)
            fresh[self.episode_starts[:-1]] = True
            allowed &= fresh
        return allowed

    def clips(
        self, starts: Int[np.ndarray, " clip"], length: int
    ) -> tuple[Int[torch.Tensor, "clip step cell"], Int[torch.Tensor, "clip step slot"]]:
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
    clip_steps: int = 16,
) -> TokenCache:
    """Return the tokens of a split, encoding the frames first where that was not done yet.

    A recording that holds visual ids instead of frames is copied; the tokenizer only has to have
    its grid. A cache made by another tokenizer, or of fewer episodes than the recording has by now, is
    made anew.

    Args:
        dataset: Recording.
        split: "train", "validation" or "test".
        folder: Where caches of this recording are kept.
        visual_tokenizer: In evaluation mode.
        tokenizer_hash: `worldgen.checkpoint.file_hash` of the tokenizer's file.
        clip_steps: Grids that a tokenizer of clips makes before it starts afresh; tokenizers of
            single frames have no use for it.

    Raises:
        ConfigError: If `clip_steps` leaves no step to predict.
        DataError: If the split has no episodes, or frames or ids of another size.
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
    made_by = tokenizer_hash[:16]
    if not visual_tokenizer.single_frames:
        if clip_steps < 2:
            raise ConfigError(
                f"clips of {clip_steps} steps hold no next step to predict; encode 2 or more at once"
            )
        described |= {
            "frames_per_step": visual_tokenizer.frames_per_latent,
            "clip_steps": clip_steps,
        }
        made_by += f"-{clip_steps}"
    place = folder / made_by / split
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


def join_token_caches(caches: Sequence[TokenCache]) -> TokenCache:
    """Return the episodes of several caches, one cache after the other; of more than one in memory.

    Raises:
        DataError: If they were not made by one tokenizer, or have other actions or lengths of step.
    """
    first, *others = caches
    if not others:
        return first
    counts = ("frames", "episodes")
    alike = [
        {name: value for name, value in cache.metadata.items() if name not in counts}
        for cache in caches
    ]
    for described in alike[1:]:
        names = [name for name in described | alike[0] if described.get(name) != alike[0].get(name)]
        if names:
            raise DataError(
                f"recordings of different {', '.join(names)} cannot be trained on together; give "
                "recordings of one environment with the same actions"
            )
    begins = np.cumsum([0, *(cache.episode_starts[-1] for cache in caches)])
    starts = [
        cache.episode_starts[:-1] + begin for cache, begin in zip(caches, begins[:-1], strict=True)
    ]
    return TokenCache(
        visual_ids=np.concatenate([cache.visual_ids for cache in caches]),
        action_ids=np.concatenate([cache.action_ids for cache in caches]),
        episode_starts=np.concatenate((*starts, begins[-1:])).astype(np.int64),
        metadata=alike[0] | {name: sum(c.metadata[name] for c in caches) for name in counts},
    )


def recorded_ids(
    dataset: Dataset, info: EpisodeInfo, visual_tokenizer: VisualTokenizer
) -> Int[np.ndarray, "step cell"]:
    """Return the visual ids of an episode of a recording that holds them instead of frames.

    Raises:
        DataError: If they are not those that the tokenizer decodes, or the file is damaged.
    """
    tokens = dataset.metadata.tokens
    grid = TokenGrid(
        rows=visual_tokenizer.rows,
        columns=visual_tokenizer.columns,
        codebook_size=visual_tokenizer.codebook_size,
    )
    if tokens != grid or not visual_tokenizer.single_frames:
        raise DataError(
            f"{dataset.folder} holds visual ids of {tokens}, the tokenizer has {grid}"
            f"{'' if visual_tokenizer.single_frames else ' for several frames at once'}; give the "
            "tokenizer.safetensors in that folder, or the tokenizer that made the ids"
        )
    ids = dataset.load_columns(info).get(VISUAL_IDS)
    if ids is None or ids.shape != (info.length, grid.rows, grid.columns):
        raise DataError(f"{dataset.stem(info)}.npz is damaged: no {VISUAL_IDS} for each frame")
    if ids.min() < 0 or ids.max() >= grid.codebook_size:
        raise DataError(f"{dataset.stem(info)}.npz is damaged: ids beyond {grid.codebook_size - 1}")
    return rearrange(ids, "step row column -> step (row column)").astype(np.int64)


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
    has_frames = dataset.metadata.tokens is None
    size = (dataset.metadata.frame_height, dataset.metadata.frame_width)
    if has_frames and size != (visual_tokenizer.frame_height, visual_tokenizer.frame_width):
        raise DataError(
            f"{dataset.folder} has frames of {size[0]} x {size[1]} pixels, the tokenizer takes "
            f"{visual_tokenizer.frame_height} x {visual_tokenizer.frame_width}"
        )
    action_tokenizer = ActionTokenizer(dataset.metadata.schema)
    layout = SequenceLayout(
        rows=described["rows"],
        columns=described["columns"],
        num_action_tokens=action_tokenizer.num_slots * visual_tokenizer.frames_per_latent,
        frames_per_step=visual_tokenizer.frames_per_latent,
    )
    clip_steps = described.get("clip_steps")
    infos = dataset.episodes(split)
    lengths = [run.steps for info in infos for run in _runs(info.length, layout, clip_steps)]
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    num_steps = int(starts[-1])
    dtype = np.uint16 if described["codebook_size"] <= 2**16 else np.uint32
    visual = np.lib.format.open_memmap(
        folder / "visual_ids.npy", "w+", dtype=dtype, shape=(num_steps, layout.num_cells)
    )
    actions = np.empty((num_steps, layout.num_action_tokens), dtype=np.uint16)
    step = 0
    with closing(tqdm(total=described["frames"], desc=f"encode {split}", unit=" frames")) as bar:
        for info in infos:
            runs = _runs(info.length, layout, clip_steps)
            stop = step + sum(run.steps for run in runs)
            if has_frames:
                episode = dataset.load(info)
                taken = episode.actions
                encode = _encode_frames if clip_steps is None else _encode_runs
                encoded = encode(visual_tokenizer, episode.frames, runs)
            else:
                taken = dataset.load_columns(info)["action"]
                encoded = iter([recorded_ids(dataset, info, visual_tokenizer)])
            action_ids = torch.from_numpy(action_tokenizer.encode(taken))
            actions[step:stop] = torch.cat(
                [layout.actions_of_steps(action_ids[run.action_frames]) for run in runs]
            )
            for ids in encoded:
                visual[step : step + len(ids)] = ids
                step += len(ids)
            bar.update(info.length)
    visual.flush()
    np.save(folder / "action_ids.npy", actions)
    np.save(folder / "episode_starts.npy", starts)
    text = json.dumps(described, indent=2) + "\n"
    write_atomically(folder / _META_FILE, lambda path: _write_synced(path, text))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A part of an episode that the tokenizer takes as one clip."""

    first: int
    """Frame."""
    steps: int
    frames_per_step: int

    @property
    def frames(self) -> slice:
        """Frames that are encoded."""
        return slice(self.first, self.first + 1 + (self.steps - 1) * self.frames_per_step)

    @property
    def action_frames(self) -> slice:
        """Frames whose actions belong to the steps; they reach beyond the last frame encoded."""
        return slice(self.first, self.first + self.steps * self.frames_per_step)


def _runs(num_frames: int, layout: SequenceLayout, clip_steps: int | None) -> list[_Run]:
    """Return the runs of an episode; fewer frames than a step needs are left out at its end."""
    size = layout.frames_per_step
    if clip_steps is None:
        return [_Run(first=0, steps=num_frames, frames_per_step=size)]
    longest = 1 + (clip_steps - 1) * size
    return [
        _Run(
            first=first,
            steps=1 + (min(longest, num_frames - first) - 1) // size,
            frames_per_step=size,
        )
        for first in range(0, num_frames, longest)
    ]


def _encode_frames(
    tokenizer: VisualTokenizer, frames: NDArray[np.uint8], runs: Sequence[_Run]
) -> Iterator[Int[np.ndarray, "step cell"]]:
    """Yield the ids of all frames, each encoded alone."""
    del runs
    for first in range(0, len(frames), _FRAMES_AT_ONCE):
        yield _encode(tokenizer, frames[first : first + _FRAMES_AT_ONCE, None])


def _encode_runs(
    tokenizer: VisualTokenizer, frames: NDArray[np.uint8], runs: Sequence[_Run]
) -> Iterator[Int[np.ndarray, "step cell"]]:
    """Yield the ids of each run, runs of one length encoded together."""
    for steps, group in itertools.groupby(runs, key=lambda run: run.steps):
        alike = list(group)
        at_once = max(1, _CLIP_FRAMES_AT_ONCE // tokenizer.num_frames(steps))
        for first in range(0, len(alike), at_once):
            batch = alike[first : first + at_once]
            yield _encode(tokenizer, np.stack([frames[run.frames] for run in batch]))


@torch.no_grad()
def _encode(
    tokenizer: VisualTokenizer, clips: UInt8[np.ndarray, "clip time height width 3"]
) -> Int[np.ndarray, "step cell"]:
    """Return the ids of clips, one clip after the other."""
    pixels = to_float(torch.from_numpy(np.ascontiguousarray(clips)))
    ids = tokenizer.encode(pixels)
    return rearrange(ids, "clip step row column -> (clip step) (row column)").cpu().numpy()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
