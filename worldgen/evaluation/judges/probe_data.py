"""What probes learn from: short clips with their motion, or tiles with their class, of a recording."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from worldgen.data.episodes import Dataset, EpisodeInfo
from worldgen.errors import DataError
from worldgen.evaluation.judges.probes import MotionProbeConfig, TileProbeConfig

__all__ = [
    "MotionData",
    "TileData",
    "load_motion_data",
    "load_tile_data",
    "motion_columns",
    "spread_episodes",
    "tile_classes",
]


@dataclass(frozen=True, kw_only=True)
class MotionData:
    """Frames of whole episodes and what moved in them."""

    frames: UInt8[np.ndarray, "frame height width 3"]
    last_frames: Int[np.ndarray, " sample"]
    """Index of the last frame of each sample; the frames before it are of the same episode."""
    targets: np.ndarray
    """[sample, quantity], in the units of the recording."""

    def clips(
        self, samples: Int[np.ndarray, " batch"], num_frames: int
    ) -> UInt8[np.ndarray, "batch time height width 3"]:
        """Return the consecutive frames of some samples."""
        offsets = np.arange(1 - num_frames, 1)
        clips: np.ndarray = self.frames[self.last_frames[samples][:, None] + offsets]
        return clips


@dataclass(frozen=True, kw_only=True)
class TileData:
    """Frames and the class of each of their tiles."""

    frames: UInt8[np.ndarray, "frame height width 3"]
    classes: Int[np.ndarray, "frame row column"]


def motion_columns(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns, each with time on its last axis, and `yaw_change` derived from `yaw`.

    `yaw_change` is the turn since the frame before in radian, positive to the left; the first
    frame of a clip has no frame before it and gets 0.
    """
    derived = dict(columns)
    if "yaw" in columns:
        yaw = columns["yaw"]
        # Wrapped to half a turn either way, should a recording keep its heading in a circle.
        change = (np.diff(yaw, axis=-1, prepend=yaw[..., :1]) + np.pi) % (2 * np.pi) - np.pi
        derived["yaw_change"] = change
    return derived


def load_motion_data(
    dataset: Dataset, split: str, config: MotionProbeConfig, max_frames: int
) -> MotionData:
    """Return samples from episodes spread over a split, about `max_frames` frames in all.

    Args:
        dataset: Recording with a column for each quantity (`yaw_change` comes from `yaw`).
        split: Split of the recording.
        config: Says what is read, and from how many frames.
        max_frames: Bound on the memory; whole episodes are taken while they fit.

    Raises:
        DataError: If the split is empty or a quantity was not recorded.
    """
    frames, last_frames, targets = [], [], []
    loaded = 0
    for info in spread_episodes(dataset, split, max_frames):
        episode = dataset.load(info)
        columns = motion_columns(episode.columns)
        missing = [name for name in config.quantities if name not in columns]
        if missing:
            raise DataError(
                f"the recording has no column {', '.join(missing)}; it has "
                f"{', '.join(sorted(columns))}"
            )
        steps = np.arange(max(config.num_frames - 1, 1), len(episode.frames))
        frames.append(episode.frames)
        last_frames.append(loaded + steps)
        targets.append(np.stack([columns[name][steps] for name in config.quantities], axis=-1))
        loaded += len(episode.frames)
    return MotionData(
        frames=np.concatenate(frames),
        last_frames=np.concatenate(last_frames),
        targets=np.concatenate(targets).astype(np.float32),
    )


def tile_classes(
    columns: Mapping[str, np.ndarray], config: TileProbeConfig, *, leading_axes: int
) -> Int[np.ndarray, "*leading row column"]:
    """Return the true class of each tile, numbered as the probe numbers them.

    Args:
        columns: Of the recording, each with the leading axes of the frames.
        config: Names the columns and their classes.
        leading_axes: 1 for [time, ...], 2 for [clip, time, ...].

    Raises:
        DataError: If a column is missing or holds a class without a name.
    """
    grids = []
    offset = 0
    for column in config.columns:
        if column.name not in columns:
            raise DataError(
                f"the recording has no column {column.name!r}; it has {', '.join(sorted(columns))}"
            )
        values = columns[column.name].astype(np.int64)
        if values.size and values.max() >= len(column.classes):
            raise DataError(
                f"column {column.name!r} holds class {values.max()}, but only "
                f"{len(column.classes)} are named"
            )
        grids.append(values.reshape(*values.shape[:leading_axes], column.rows, -1) + offset)
        offset += len(column.classes)
    return np.concatenate(grids, axis=-2)


def load_tile_data(
    dataset: Dataset, split: str, config: TileProbeConfig, max_frames: int
) -> TileData:
    """Return frames spread over a split with the classes of their tiles.

    Args:
        dataset: Recording with the columns that `config` names.
        split: Split of the recording.
        config: Names the columns and the classes.
        max_frames: Bound on the memory.

    Raises:
        DataError: If the split is empty, or a column is missing or holds unknown classes.
    """
    episodes = spread_episodes(dataset, split, None)
    stride = max(1, -(-sum(info.length for info in episodes) // max_frames))
    frames, classes = [], []
    for number, info in enumerate(episodes):
        episode = dataset.load(info)
        picked = slice(number % min(stride, info.length), None, stride)
        columns = {name: column[picked] for name, column in episode.columns.items()}
        frames.append(episode.frames[picked])
        classes.append(tile_classes(columns, config, leading_axes=1))
    return TileData(frames=np.concatenate(frames), classes=np.concatenate(classes))


def spread_episodes(dataset: Dataset, split: str, max_frames: int | None) -> list[EpisodeInfo]:
    """Return episodes spread over a split, so many that they have about `max_frames` frames.

    Raises:
        DataError: If the split is empty.
    """
    episodes = dataset.episodes(split)
    if not episodes:
        raise DataError(f"no complete {split} episode in {dataset.folder}; record some, then retry")
    total = sum(info.length for info in episodes)
    if max_frames is None or total <= max_frames:
        return episodes
    count = max(1, len(episodes) * max_frames // total)
    return [episodes[number * len(episodes) // count] for number in range(count)]
