"""Episodes on disk: lossless video, columns as npz, and a JSON file that makes them exist."""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldgen.checkpoint import write_atomically, write_text
from worldgen.config import build
from worldgen.data.video import read_video, write_video
from worldgen.errors import ConfigError, DataError
from worldgen.tokenizers.action.schema import ActionSchema

__all__ = [
    "SPLITS",
    "VISUAL_IDS",
    "Column",
    "Dataset",
    "DatasetMetadata",
    "Episode",
    "EpisodeInfo",
    "EpisodeWriter",
    "TokenGrid",
]

SPLITS = ("train", "validation", "test")
VISUAL_IDS = "visual_ids"
"""Column of recordings that hold the ids of frames instead of frames: int [time, row, column]."""
_FORMAT = "worldgen-episodes"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one array beside the frames holds; its first axis is always time.

    Attributes:
        dtype: NumPy name.
        shape: Of one row; () for a number.
        unit: Empty for counts, ids and truth values.
        meaning: One line for a person.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    unit: str = ""
    meaning: str = ""


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """What the visual ids of a recording without frames are: a grid for each frame.

    Attributes:
        rows: Height of the grid.
        columns: Width of the grid.
        codebook_size: Number of different ids.
    """

    rows: int
    columns: int
    codebook_size: int


@dataclass(frozen=True, kw_only=True)
class EpisodeInfo:
    """One episode: where it came from and what it is.

    Attributes:
        index: Number in its split, and in the file names.
        seed: Given to `env.reset`; with the actions it makes the episode again.
        length: Number of frames, and of actions.
        driver: Who chose the actions.
        ended: "terminated" or "truncated" by the environment after the last action, or "length".
        complete: Always true on disk; readers refuse anything else.
        split: Folder that holds it; not in the file.
    """

    index: int
    seed: int
    length: int
    driver: str
    ended: str = "length"
    complete: bool = True
    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Frames and what was done in them.

    Attributes:
        frames: uint8 [time, height, width, 3]; of no pixels, [time, 0, 0, 3], where the column
            `VISUAL_IDS` stands for them.
        actions: int64 or float [time, groups]; `actions[t]` leads from frame t to frame t + 1.
        columns: Name to array [time, ...], among them `reward` (of the step from t) and `cut`
            (frame t + 1 does not follow from action t: true in the last row).
        info: Seed, length, driver.
    """

    frames: NDArray[np.uint8]
    actions: NDArray[Any]
    columns: Mapping[str, NDArray[Any]]
    info: EpisodeInfo


@dataclass(frozen=True, kw_only=True)
class DatasetMetadata:
    """The content of `dataset.json`.

    Attributes:
        environment: Gymnasium "id" and the "options" given to `gymnasium.make`; None for a
            recording of what cannot be played here.
        frames_per_second: Of the environment.
        frame_height: Pixels; 0 in a recording without frames.
        frame_width: Pixels; 0 in a recording without frames.
        action_schema: `ActionSchema` as JSON; see `schema`.
        columns: What the npz files hold besides `action`.
        seeds: First environment seed of each split; no split reaches into the next.
        tokens: What the column `VISUAL_IDS` holds in a recording without frames; None where there
            are frames.
    """

    environment: dict[str, Any] | None
    frames_per_second: float
    frame_height: int
    frame_width: int
    action_schema: dict[str, Any]
    columns: dict[str, Column]
    seeds: dict[str, int] = field(default_factory=dict)
    tokens: TokenGrid | None = None
    format: str = _FORMAT
    version: int = _VERSION

    @property
    def schema(self) -> ActionSchema:
        """The actions of the environment."""
        return ActionSchema.from_json(self.action_schema)

    def write(self, folder: Path) -> None:
        """Write `dataset.json` into `folder`."""
        content = asdict(self)
        if self.tokens is None:
            del content["tokens"]
        _write_json(folder / "dataset.json", content)


class EpisodeWriter:
    """Write episodes into one split folder; several processes may write different indices.

    Args:
        folder: For example `recordings/car_racing/train`; made when missing.
        frames_per_second: Written into the videos.
    """

    def __init__(self, folder: Path, frames_per_second: float) -> None:
        self._folder = folder
        self._frames_per_second = frames_per_second

    def write(self, episode: Episode) -> None:
        """Write video, columns and, last of all, the JSON file that makes the episode exist.

        Raises:
            DataError: If frames, actions and columns differ in length.
        """
        length = episode.info.length
        arrays: dict[str, Any] = {"action": episode.actions, **episode.columns}
        lengths = {name: len(array) for name, array in arrays.items()}
        if {len(episode.frames), *lengths.values()} != {length}:
            raise DataError(
                f"episode {episode.info.index} says {length} rows, has {len(episode.frames)} "
                f"frames and {lengths}; every array needs one row per frame"
            )
        stem = _stem(self._folder, episode.info.index)
        stem.with_suffix(".json").unlink(missing_ok=True)
        if VISUAL_IDS not in arrays:
            write_video(
                stem.with_suffix(".mp4"), episode.frames, self._frames_per_second, lossless=True
            )
        write_atomically(
            stem.with_suffix(".npz"),
            lambda temporary: np.savez_compressed(temporary, **arrays),
        )
        described = asdict(episode.info)
        del described["split"]
        _write_json(stem.with_suffix(".json"), described)


class Dataset:
    """A folder of episodes.

    Args:
        folder: Holds `dataset.json` and the split folders.

    Raises:
        DataError: If the folder is missing, not ours, or of another version.

    Example:
        >>> dataset = Dataset(Path("recordings/car_racing"))
        >>> episode = dataset.load(dataset.episodes("train")[0])
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata = _read_metadata(folder)

    def episodes(self, split: str) -> list[EpisodeInfo]:
        """Return the complete episodes of a split, by index.

        Raises:
            DataError: If there is no such split, or a JSON file is damaged.
        """
        folder = self._split_folder(split)
        infos = []
        for path in sorted(folder.glob("episode_*.json")):
            described = _read_json(path)
            try:
                info = build(EpisodeInfo, {**described, "split": split})
            except ConfigError as error:
                raise DataError(f"{path} is not an episode: {error}") from error
            if info.complete and all(path.with_suffix(end).exists() for end in self._suffixes):
                infos.append(info)
        return infos

    def num_incomplete(self, split: str) -> int:
        """Return how many episodes of a split were begun but not finished, and are left out."""
        folder = self._split_folder(split)
        begun = {path.stem for end in ("mp4", "npz", "json") for path in folder.glob(f"ep*.{end}")}
        return len(begun) - len(self.episodes(split))

    def load(self, info: EpisodeInfo) -> Episode:
        """Return an episode with all its frames.

        Raises:
            DataError: If a file is damaged, or the lengths differ, or the recording has no frames.
        """
        frames = read_video(self.video_path(info))
        columns = self.load_columns(info)
        actions = columns.pop("action")
        if not len(frames) == len(actions) == info.length:
            raise DataError(
                f"episode {info.index} of {self.folder / info.split} says {info.length} rows, has "
                f"{len(frames)} frames and {len(actions)} actions; delete its three files"
            )
        return Episode(frames=frames, actions=actions, columns=columns, info=info)

    def video_path(self, info: EpisodeInfo) -> Path:
        """Return where the frames of an episode are.

        Raises:
            DataError: If the recording has no frames.
        """
        if self.metadata.tokens is not None:
            raise DataError(
                f"{self.folder} holds visual ids and no frames; world models can be trained on it, "
                "and nothing that looks at pixels"
            )
        return self.stem(info).with_suffix(".mp4")

    def stem(self, info: EpisodeInfo) -> Path:
        """Return what the paths of an episode's files have in common, without their endings."""
        return _stem(self._split_folder(info.split), info.index)

    def load_columns(self, info: EpisodeInfo) -> dict[str, NDArray[Any]]:
        """Return the arrays of an episode, `action` among them, without decoding its video.

        Raises:
            DataError: If the file is damaged.
        """
        path = self.stem(info).with_suffix(".npz")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path} is damaged ({error}); delete the episode") from error

    @property
    def _suffixes(self) -> tuple[str, ...]:
        """Endings of an episode's files beside the JSON file."""
        return (".mp4", ".npz") if self.metadata.tokens is None else (".npz",)

    def _split_folder(self, split: str) -> Path:
        if split not in SPLITS:
            raise DataError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        return self.folder / split


def _stem(folder: Path, index: int) -> Path:
    return folder / f"episode_{index:06d}"


def _read_metadata(folder: Path) -> DatasetMetadata:
    path = folder / "dataset.json"
    if not path.is_file():
        raise DataError(
            f"{folder} is not a recording: it has no dataset.json; make one with "
            f"python -m envs.record env=car_racing out={folder}"
        )
    content = _read_json(path)
    kind = (content.get("format"), content.get("version"))
    if kind != (_FORMAT, _VERSION):
        raise DataError(f"{path} is of format {kind}; this version reads {(_FORMAT, _VERSION)}")
    try:
        return build(DatasetMetadata, content)
    except ConfigError as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it or record again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__} instead of an object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_text(path, text)
