"""Reads recordings, and folders of images and videos, into memory for training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from worldgen.data.episodes import SPLITS, Dataset
from worldgen.data.media import MediaFolder, fit
from worldgen.errors import ConfigError, DataError
from worldgen.training.clip_pool import ClipPool, rarity_weights

__all__ = ["ClipPoolConfig", "Loader"]

_Frames = UInt8[np.ndarray, "frame height width 3"]
_IsLast = Bool[np.ndarray, " frame"]

_LARGEST_STRIDE = 4
# Of a run of four clips, three quarters of the frames can begin a clip.
_CLIPS_PER_RUN = 4
# Of so many files of a plain folder one is kept for validation and one for the test.
_FILES_PER_HELD_OUT = 10


@dataclass(frozen=True, kw_only=True)
class ClipPoolConfig:
    """Which frames to train and to validate on."""

    folder: str | None = None
    """A recording, see docs/data-format.md, or a folder of images and videos."""
    folders: tuple[str, ...] = ()
    """Several of them to train on together; stands above `folder` where it is given."""
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
                "no folder to train on; give data.folder=recordings/car_racing, or several as "
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
            DataError: If a folder is missing, or nothing for training in it can be read.
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
                    f"nothing in {', '.join(map(str, config.paths))} is as long as a clip of "
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
        # What is not there at all was most likely meant to be a recording, so that error is right.
        is_recording = not folder.is_dir() or (folder / "dataset.json").is_file()
        read = self._read_recording if is_recording else self._read_media
        frames, is_last = read(folder, split, max_frames, run)
        if not frames:
            reasons = [text for path, text in self.skipped.items() if str(folder) in path]
            raise DataError(
                f"nothing of split {split!r} in {folder} can be read; of {len(reasons)} files "
                f"the first says: {next(iter(reasons), 'nothing')}"
            )
        return ClipPool(np.concatenate(frames), np.concatenate(is_last))

    def _read_recording(
        self, folder: Path, split: str, max_frames: int, run: int
    ) -> tuple[list[_Frames], list[_IsLast]]:
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
        frames: list[_Frames] = []
        is_last: list[_IsLast] = []
        missing = max_frames
        for place in random.permutation(len(episodes)):
            info = episodes[place]
            first = run * int(random.integers(min(stride, -(-info.length // run))))
            kept = (np.arange(info.length) >= first) & (
                (np.arange(info.length) - first) % (stride * run) < run
            )
            try:
                episode = dataset.load(info)
            except DataError as error:
                self.skipped[str(dataset.video_path(info))] = str(error)
                continue
            breaks = ~np.append(kept[1:], False)
            if "cut" in episode.columns:
                breaks |= episode.columns["cut"].astype(bool)
            frames.append(_fit_all(episode.frames[kept][:missing], self._frame_size))
            is_last.append(breaks[kept][:missing])
            is_last[-1][-1] = True
            missing -= len(frames[-1])
            if missing == 0:
                break
        return frames, is_last

    def _read_media(
        self, folder: Path, split: str, max_frames: int, run: int
    ) -> tuple[list[_Frames], list[_IsLast]]:
        """Return images, and from each video as many runs as its share of `max_frames` allows."""
        media = MediaFolder(folder, split)
        if media.recordings:
            raise DataError(
                f"{folder} holds recordings, among them {media.recordings[0]}; name each of them "
                f"in data.folders"
            )
        has_splits = any((folder / name).is_dir() for name in SPLITS)
        if has_splits and not (folder / split).is_dir():
            raise DataError(
                f"{folder} has folders for {', '.join(SPLITS)} in part, but none for {split}; "
                f"make it, or put all files side by side to have some held out"
            )
        images, videos = (
            files if has_splits else _of_split(files, split)
            for files in (media.images, media.videos)
        )
        random = np.random.default_rng(self._seed)
        frames: list[_Frames] = []
        for place in random.permutation(len(images))[:max_frames]:
            picture = media.try_image(images[place], self._frame_size)
            if picture is not None:
                frames.append(picture[None])
        runs = max(1, (max_frames - len(frames)) // (run * max(1, len(videos))))
        for place in random.permutation(len(videos)):
            if sum(map(len, frames)) + run > max_frames and frames:
                break
            frames += _random_runs(media, videos[place], self._frame_size, run, runs, random)
        self.skipped |= {str(entry.path): entry.reason for entry in media.skipped}
        return frames, [np.arange(len(part)) == len(part) - 1 for part in frames]


def _of_split(files: Sequence[Path], split: str) -> Sequence[Path]:
    """Return the files of a split; too few to hold any out are in every split."""
    if len(files) < _FILES_PER_HELD_OUT:
        return files
    places = {"validation": (0,), "test": (1,)}.get(split, range(2, _FILES_PER_HELD_OUT))
    return [file for place, file in enumerate(files) if place % _FILES_PER_HELD_OUT in places]


def _random_runs(
    media: MediaFolder,
    path: Path,
    size: tuple[int, int],
    run: int,
    most: int,
    random: np.random.Generator,
) -> list[_Frames]:
    """Return at most so many runs of a video, in order, all equally likely; decoded once.

    Source: reservoir sampling, Vitter 1985, Random Sampling with a Reservoir, algorithm R.
    """
    kept: dict[int, list[UInt8[np.ndarray, "height width 3"]]] = {}
    place = 0
    try:
        for number, frame in enumerate(media.read_frames(path, size)):
            place = number // run
            if number % run == 0:
                if len(kept) < most:
                    kept[place] = []
                elif random.random() < most / (place + 1):
                    del kept[list(kept)[int(random.integers(most))]]
                    kept[place] = []
            if place in kept:
                kept[place].append(frame)
    except DataError:
        # What came before the damage is as good as any; the folder has noted the file.
        pass
    return [np.stack(frames) for frames in kept.values() if frames]


def _fit_all(frames: _Frames, size: tuple[int, int]) -> _Frames:
    return frames if frames.shape[1:3] == size else np.stack([fit(f, size) for f in frames])
