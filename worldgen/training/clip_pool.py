"""Frames of one or several recordings in memory, in runs long enough to cut clips out of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from worldgen.data.episodes import Dataset, EpisodeInfo
from worldgen.errors import ConfigError, DataError
from worldgen.records import to_float, to_uint8

__all__ = ["ClipPool", "ClipPoolConfig", "Loader", "rarity_weights", "resize"]

_LARGEST_STRIDE = 4
# Of a run of four clips, three quarters of the frames can begin a clip.
_CLIPS_PER_RUN = 4


@dataclass(frozen=True, kw_only=True)
class ClipPoolConfig:
    """Which frames to train and to validate on."""

    folder: str | None = None
    """A recording, see docs/data-format.md."""
    folders: tuple[str, ...] = ()
    """Several recordings to train on together; stands above `folder` where it is given."""
    shares: tuple[float, ...] = ()
    """How often each folder is drawn from, on any scale; empty: all equally often."""
    training_frames: int
    """Most frames kept in memory, of all folders; 64 x 64 frames take 12 kB each."""
    evaluation_frames: int
    """Most frames of each folder's validation, and of its test, measured at the end."""
    rarity_power: float = 0.0
    """0 draws frames evenly; higher values favour frames with rare squares, see rarity_weights."""
    rarity_square: int = 8
    """Pixels on a side of the squares that are counted."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError(
                "no recording to train on; give data.folder=recordings/car_racing, or several as "
                "data.folders=[recordings/car_racing,recordings/crafter]"
            )
        if self.shares and (len(self.shares) != len(self.paths) or min(self.shares) <= 0):
            raise ConfigError(
                f"data.shares needs one positive number for each of {len(self.paths)} folders, "
                f"got {list(self.shares)}; leave it empty to draw from all equally often"
            )
        if self.training_frames < 1 or self.evaluation_frames < 1:
            raise ConfigError(
                f"training_frames and evaluation_frames must be at least 1, got "
                f"{self.training_frames} and {self.evaluation_frames}"
            )

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folders."""
        given = self.folders or ((self.folder,) if self.folder else ())
        return tuple(Path(folder) for folder in given)

    @property
    def normal_shares(self) -> tuple[float, ...]:
        """How often each folder is drawn from; the sum is 1."""
        shares = self.shares or (1.0,) * len(self.paths)
        return tuple(share / sum(shares) for share in shares)

    @property
    def names(self) -> tuple[str, ...]:
        """What to call each folder in figures: its last part, or all of it where two agree."""
        last = [path.resolve().name for path in self.paths]
        return tuple(
            name if last.count(name) == 1 else str(path)
            for name, path in zip(last, self.paths, strict=True)
        )


class ClipPool:
    """Frames one after the other, and where a clip may begin among them."""

    frames: UInt8[np.ndarray, "frame height width 3"]
    is_last: Bool[np.ndarray, " frame"]

    def __init__(
        self,
        frames: UInt8[np.ndarray, "frame height width 3"],
        is_last: Bool[np.ndarray, " frame"],
    ) -> None:
        """Take frames in.

        Args:
            frames: All of one size.
            is_last: Where what follows is another scene, or another episode; true at the end.
        """
        self.frames = frames
        self.is_last = is_last
        ends = np.flatnonzero(is_last)
        places = np.arange(len(frames))
        self._followers = ends[np.searchsorted(ends, places)] - places

    @classmethod
    def joined(cls, pools: Sequence["ClipPool"]) -> "ClipPool":
        """Return one pool of the frames of several, which are of one size."""
        frames = np.concatenate([pool.frames for pool in pools])
        return cls(frames, np.concatenate([pool.is_last for pool in pools]))

    def __len__(self) -> int:
        return len(self.frames)

    def begins_clip(self, clip_frames: int) -> Bool[np.ndarray, " frame"]:
        """Return of each frame whether a clip of so many frames can begin with it."""
        begins: Bool[np.ndarray, " frame"] = self._followers >= clip_frames - 1
        return begins

    def separate_clips(self, clip_frames: int) -> Int[np.ndarray, " clip"]:
        """Return the first frames of clips that share none, as many as there are."""
        starts: list[int] = []
        for place in np.flatnonzero(self.begins_clip(clip_frames)):
            if not starts or place >= starts[-1] + clip_frames:
                starts.append(int(place))
        return np.array(starts, dtype=np.int64)

    def clips(
        self, starts: Int[np.ndarray, " clip"], clip_frames: int
    ) -> UInt8[Tensor, "clip time height width 3"]:
        """Return the clips that begin with the given frames."""
        return torch.from_numpy(self.frames[starts[:, None] + np.arange(clip_frames)])


class Loader:
    """Reads frames of folders into pools; what cannot be read is left out and remembered."""

    skipped: dict[str, str]
    """What could not be read, and why."""

    def __init__(self, frame_size: tuple[int, int], clip_frames: int, seed: int) -> None:
        """Prepare to read.

        Args:
            frame_size: Height and width in pixels that all frames are brought to.
            clip_frames: Frames of the longest clip that will be wanted.
            seed: Of the random choices.
        """
        self.skipped = {}
        self._frame_size = frame_size
        self._clip_frames = clip_frames
        self._seed = seed

    def training_pool(
        self, config: ClipPoolConfig
    ) -> tuple[ClipPool, Callable[[int], Float[np.ndarray, " frame"]]]:
        """Return the train frames of all folders, and how often each begins a clip of a length.

        Raises:
            DataError: If a folder is not a recording, or has no train episode that can be read.
        """
        run = 1 if self._clip_frames == 1 else _CLIPS_PER_RUN * self._clip_frames
        parts = [
            self._load(path, "train", max(1, round(share * config.training_frames)), run)
            for path, share in zip(config.paths, config.normal_shares, strict=True)
        ]
        weights = [
            rarity_weights(part.frames, config.rarity_square, config.rarity_power) for part in parts
        ]
        pool = parts[0] if len(parts) == 1 else ClipPool.joined(parts)
        ends = np.cumsum([len(weight) for weight in weights])

        def clip_weights(clip_frames: int) -> Float[np.ndarray, " frame"]:
            begins = np.split(pool.begins_clip(clip_frames), ends[:-1])
            shares: list[Float[np.ndarray, " frame"]] = []
            for weight, allowed, share in zip(weights, begins, config.normal_shares, strict=True):
                # A clip is as rare as its frames are together.
                sums = np.concatenate(([0.0], np.cumsum(weight)))
                last = np.minimum(np.arange(len(weight)) + clip_frames, len(weight))
                of_clips = (sums[last] - sums[:-1]) * allowed
                shares.append(of_clips * share / max(of_clips.sum(), np.finfo(float).tiny))
            together = np.concatenate(shares)
            if not together.any():
                raise DataError(
                    f"no train episode in {', '.join(map(str, config.paths))} holds a clip of "
                    f"{clip_frames} frames; lower clip_frames, or record longer episodes"
                )
            return together

        return pool, clip_weights

    def evaluation_pools(
        self, config: ClipPoolConfig, split: str, max_frames: int
    ) -> Mapping[str, ClipPool]:
        """Return the frames of a split by name of the folder, at most `max_frames` of each.

        Raises:
            DataError: As `training_pool`.
        """
        return {
            name: self._load(path, split, max(max_frames, self._clip_frames), self._clip_frames)
            for name, path in zip(config.names, config.paths, strict=True)
        }

    def _load(self, folder: Path, split: str, max_frames: int, run: int) -> ClipPool:
        """Return runs of `run` frames spread over the episodes of a split.

        Every k-th run of an episode is taken, from a random one of its first k on. Where k would
        exceed 4, a random choice of episodes is read instead of all: decoding video is what takes
        time, and frames further apart differ hardly more.
        """
        dataset = Dataset(folder)
        episodes = dataset.episodes(split)
        if not episodes:
            raise DataError(f"no complete {split} episode in {folder}; record some, then retry")
        random = np.random.default_rng(self._seed)
        total = sum(info.length for info in episodes)
        stride = min(_LARGEST_STRIDE, max(1, -(-total // max_frames)))
        frames: list[UInt8[np.ndarray, "frame height width 3"]] = []
        is_last: list[Bool[np.ndarray, " frame"]] = []
        missing = max_frames
        for place in random.permutation(len(episodes)):
            info = episodes[place]
            first = run * int(random.integers(min(stride, -(-info.length // run))))
            kept = (np.arange(info.length) >= first) & (
                (np.arange(info.length) - first) % (stride * run) < run
            )
            try:
                loaded, cut = _episode(dataset, info)
            except DataError as error:
                self.skipped[f"{folder / split} episode {info.index}"] = str(error)
                continue
            breaks = cut | ~np.append(kept[1:], False)
            frames.append(_fit(loaded[kept][:missing], self._frame_size))
            is_last.append(breaks[kept][:missing])
            is_last[-1][-1] = True
            missing -= len(frames[-1])
            if missing == 0:
                break
        if not frames:
            raise DataError(
                f"none of the {len(episodes)} {split} episodes in {folder} can be read; "
                f"the first says: {next(iter(self.skipped.values()))}"
            )
        return ClipPool(np.concatenate(frames), np.concatenate(is_last))


def resize(
    frames: Float[Tensor, "batch time 3 height width"], size: Sequence[int]
) -> Float[Tensor, "batch time 3 new_height new_width"]:
    """Return frames at another size, bilinear, and without aliasing where they shrink."""
    if frames.shape[-2:] == tuple(size):
        return frames
    flat = rearrange(frames, "b t rgb h w -> (b t) rgb h w")
    flat = F.interpolate(flat, tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return rearrange(flat, "(b t) rgb h w -> b t rgb h w", b=frames.shape[0])


def rarity_weights(
    frames: UInt8[np.ndarray, "frame height width 3"], square: int, power: float
) -> Float[np.ndarray, " frame"]:
    """Return a sampling weight for each frame: the mean of count**-power over its squares.

    `count` is how often exactly the same square of pixels occurs anywhere in `frames`, so frames
    with seldom seen content come up more often. A power of 0 gives equal weights.

    Args:
        frames: Height and width must divide into squares.
        square: Pixels on a side.
        power: 0 or more; 0.5 is a good start for pictures made of tiles.
    """
    if power == 0:
        return np.ones(len(frames))
    count, height, width, colours = frames.shape
    rows, columns = height // square, width // square
    shape = (count, rows, square, columns, square, colours)
    # Hash a square to 64 bits: a sum of its bytes times random odd numbers, modulo 2**64.
    random = np.random.default_rng(0)
    factors = random.integers(0, 2**63, (square, square, colours), dtype=np.uint64) * 2 + 1
    hashes = np.empty((count, rows, columns), dtype=np.uint64)
    for start in range(0, count, 4096):
        part = frames[start : start + 4096].reshape(-1, *shape[1:]).astype(np.uint64)
        hashes[start : start + 4096] = np.einsum("nrscdk,sdk->nrc", part, factors)
    _, place, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    weights = counts[place.reshape(hashes.shape)].astype(np.float64) ** -power
    frame_weights: Float[np.ndarray, " frame"] = weights.mean(axis=(1, 2))
    return frame_weights


def _episode(
    dataset: Dataset, info: EpisodeInfo
) -> tuple[UInt8[np.ndarray, "time height width 3"], Bool[np.ndarray, " time"]]:
    episode = dataset.load(info)
    cut = np.zeros(info.length, dtype=bool)
    if "cut" in episode.columns:
        cut |= episode.columns["cut"].astype(bool)
    return episode.frames, cut


def _fit(
    frames: UInt8[np.ndarray, "frame height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "frame new_height new_width 3"]:
    """Return frames at another size; what does not fit its shape is cut off on both sides."""
    height, width = frames.shape[1:3]
    if (height, width) == size:
        return frames
    # The largest part in the middle with the proportions of `size`.
    scale = min(height / size[0], width / size[1])
    inner = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    middle = frames[:, top : top + inner[0], left : left + inner[1]]
    fitted: list[np.ndarray] = []
    for start in range(0, len(middle), 64):
        part = to_float(torch.from_numpy(middle[start : start + 64]))
        fitted.append(to_uint8(resize(part.unsqueeze(0), size)).squeeze(0).numpy())
    return np.concatenate(fitted)
