"""DrivingWorld's files (checkpoints, settings, clips), read into what a world of ours is made of."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from einops import rearrange
from jaxtyping import Float64, Int, UInt8
from torch import Tensor

from worldgen.checkpoint import file_hash
from worldgen.data.media import read_image
from worldgen.ego_motion import has_ego_data
from worldgen.errors import ConfigError, DataError
from worldgen.interop.drivingworld import RELEASED, import_drivingworld_tokenizer
from worldgen.interop.drivingworld_weights import world_model_from_upstream
from worldgen.interop.files import read_checkpoint
from worldgen.models import DrivingTransformer
from worldgen.records import to_float
from worldgen.tokenizers.action import ActionSchema, ActionTokenizer
from worldgen.tokenizers.action.driving import clip_to_bins, driving_schema
from worldgen.tokenizers.visual import TemporalTokenizer

__all__ = [
    "FRAMES_PER_SECOND",
    "DrivingWorldStart",
    "ImportedDrivingWorld",
    "import_drivingworld",
    "read_demo_clip",
    "read_settings",
]

FRAMES_PER_SECOND = 5.0
"""For which the bins of ego motion are made: metres and degrees in 0.2 s."""

# As upstream's demonstration names them, and as an earlier version of it does.
_POSES = ("pose.npy", "pose_x_y.npy")
_YAWS = "yaw.npy"


@dataclass(frozen=True, kw_only=True)
class DrivingWorldStart:
    """Where a world begins."""

    visual_ids: Int[Tensor, "frame cell"]
    action_ids: Int[Tensor, "action slot"]
    """Of all frames but the last."""
    description: str
    """What it is, in words."""
    notes: tuple[str, ...] = ()
    """Motion that does not fit the bins, and what was done about it."""


@dataclass(frozen=True, kw_only=True)
class ImportedDrivingWorld:
    """A tokenizer and a transformer that belong together, in float32, ready for inference."""

    tokenizer: TemporalTokenizer
    transformer: DrivingTransformer
    schema: ActionSchema
    types: tuple[torch.dtype, torch.dtype]
    """In which the weights of tokenizer and transformer were given, and are stored losslessly."""
    record: Mapping[str, Any]
    """The files, their SHA-256 and the precision, as JSON can hold it."""

    def plain_start(self) -> DrivingWorldStart:
        """Return the start from one frame of plain grey."""
        size = (self.tokenizer.frame_height, self.tokenizer.frame_width, 3)
        frames, motion = np.full((1, *size), 128, np.uint8), np.zeros((0, 3))
        return self._start(frames, motion, "one frame of plain grey")

    def starts(self, folder: Path) -> tuple[DrivingWorldStart, ...]:
        """Return the starts from clips in the layout of upstream's demonstration.

        Each begins with as many frames of its clip as the model remembers, or all there are.

        Args:
            folder: One clip (see `read_demo_clip`), or a folder of clips.

        Raises:
            DataError: If there is no clip, or a file of one is missing, damaged or does not fit.
        """
        size = (self.tokenizer.frame_height, self.tokenizer.frame_width)
        starts = []
        for clip in _clip_folders(folder):
            frames, motion = read_demo_clip(clip, size, self.transformer.config.window)
            plural = "" if len(frames) == 1 else "s"
            description = f"{clip.name}, the first {len(frames)} frame{plural}"
            starts.append(self._start(frames, motion[: len(frames) - 1], description))
        return tuple(starts)

    def _start(
        self,
        frames: UInt8[np.ndarray, "frame h w 3"],
        motion: Float64[np.ndarray, "action 3"],
        description: str,
    ) -> DrivingWorldStart:
        ids = self.tokenizer.encode(to_float(torch.from_numpy(frames))[None])
        motion, changes = clip_to_bins(motion, self.schema)
        return DrivingWorldStart(
            visual_ids=rearrange(ids, "1 frame row column -> frame (row column)"),
            action_ids=torch.from_numpy(ActionTokenizer(self.schema).encode(motion)),
            description=description,
            notes=tuple(f"{description}: {change}" for change in changes),
        )


def import_drivingworld(
    tokenizer: Path, model: Path, *, settings: Path | None = None
) -> ImportedDrivingWorld:
    """Return the world of DrivingWorld's checkpoints, their files read as data alone.

    Args:
        tokenizer: `vqvae.pt` (a pickle of tensors) or `*.safetensors`.
        model: `world_model.pth` or `*.safetensors`.
        settings: JSON or YAML, see `read_settings`; None for those of the release.

    Raises:
        ConfigError: If the settings are malformed or do not go together.
        CheckpointError: If weights are missing, unexpected or of another shape, or a file needs
            more than tensors.
    """
    given = RELEASED if settings is None else read_settings(settings)
    codec = read_checkpoint(tokenizer)
    imported = import_drivingworld_tokenizer(codec, given)
    weights = read_checkpoint(model)
    transformer = world_model_from_upstream(
        weights.tensors,
        given,
        codebook=imported.tokenizer.get_parameter("quantizer.codebook"),
        path=model,
    )
    types = (
        codec.stored_type(lambda name: name not in imported.left_out),
        weights.stored_type(),
    )
    files = {"tokenizer": tokenizer, "model": model}
    if settings is not None:
        files["settings"] = settings
    record: dict[str, Any] = {"origin": "DrivingWorld"}
    for name, path in files.items():
        record |= {name: path.name, f"{name}_sha256": file_hash(path)}
    record["stored_as"] = {
        name: str(kind).removeprefix("torch.")
        for name, kind in zip(("tokenizer", "transformer"), types, strict=True)
    }
    return ImportedDrivingWorld(
        tokenizer=imported.tokenizer,
        transformer=transformer,
        schema=driving_schema(
            "drivingworld",
            yaw_bins=given["yaw_vocab_size"],
            x_bins=given["pose_x_vocab_size"],
            y_bins=given["pose_y_vocab_size"],
        ),
        types=types,
        record=record,
    )


def read_settings(path: Path) -> Mapping[str, Any]:
    """Return settings under upstream's names, completed by those of the release.

    Args:
        path: JSON or YAML with a mapping; upstream's own are Python files, which are not run, so
            what differs from the release is written down anew.

    Raises:
        ConfigError: If the file cannot be read, or holds something else.
    """
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no settings at {path}; check the path") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        # The reader's messages have several lines.
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is no JSON or YAML of plain values ({reason})") from error
    if not isinstance(written, Mapping):
        raise ConfigError(
            f"{path} holds no mapping; write upstream's settings as JSON or YAML, such as "
            "image_size: [256, 512]"
        )
    for name, usual in RELEASED.items():
        value = written.get(name, usual)
        wanted = f"a list of {len(usual)} whole numbers" if isinstance(usual, tuple) else "a number"
        fits = (
            isinstance(value, (list, tuple))
            and len(value) == len(usual)
            and all(type(each) is int and each > 0 for each in value)
            if isinstance(usual, tuple)
            else type(value) in (int, type(usual)) and value > 0
        )
        if not fits:
            raise ConfigError(f"{path}: {name} must be {wanted} above 0, got {value!r}")
    return {**RELEASED, **written}


def read_demo_clip(
    folder: Path, size: tuple[int, int], most_frames: int
) -> tuple[UInt8[np.ndarray, "frame height width 3"], Float64[np.ndarray, "motion 3"]]:
    """Return frames and ego motion of a clip in the layout of upstream's demonstration.

    A clip is a folder of PNG files, taken in the order of the numbers in their names, with
    `pose.npy` `[1, N, 2]` (x forward and y to the left, metres) and `yaw.npy` `[1, N, 1]` (degrees).
    Their row i is the motion from frame i - 1 to frame i; rows returned are motion from frame i to
    frame i + 1, so the first one of the file, which nothing came before, is left out.

    Args:
        folder: Of the clip.
        size: Height and width; larger pictures are scaled to fill it and cut at the middle.
        most_frames: Frames beyond these are not read; motion is returned whole.

    Returns:
        Frames, and rows of yaw, x and y.

    Raises:
        DataError: If a file is missing or damaged, motion is of another shape, too short, or not
            known.
    """
    names = sorted(
        (path for path in folder.glob("*.png") if not path.name.startswith(".")), key=_by_number
    )
    if not names:
        raise DataError(f"{folder} holds no PNG files; give the folder of a clip")
    pose_path = next((folder / name for name in _POSES if (folder / name).is_file()), None)
    if pose_path is None:
        raise DataError(f"{folder} holds no {_POSES[0]}; give the folder of a clip with its motion")
    pose = _rows(pose_path, 2)
    yaw = _rows(folder / _YAWS, 1)
    if len(pose) != len(yaw):
        raise DataError(
            f"{pose_path} has {len(pose)} rows and {folder / _YAWS} has {len(yaw)}; they need one "
            "for each frame"
        )
    names = names[:most_frames]
    if len(pose) < len(names):
        raise DataError(
            f"{pose_path} has {len(pose)} rows for {len(names)} frames; it needs one for each frame"
        )
    motion = np.concatenate((yaw, pose), axis=-1)[1:]
    unknown = np.flatnonzero(~has_ego_data(motion[: len(names) - 1]))
    if len(unknown):
        raise DataError(
            f"{folder} has no ego motion in row {unknown[0] + 1}; a world begins with motion that "
            "is known: give other clips"
        )
    return np.stack([read_image(path, size) for path in names]), motion


def _clip_folders(folder: Path) -> Sequence[Path]:
    def holds_clip(path: Path) -> bool:
        return any((path / name).is_file() for name in (*_POSES, _YAWS))

    if not folder.is_dir():
        raise DataError(f"no folder at {folder}; give a clip or a folder of clips")
    if holds_clip(folder):
        return [folder]
    found = sorted((path for path in folder.iterdir() if path.is_dir()), key=_by_number)
    clips = [path for path in found if holds_clip(path)]
    if not clips:
        raise DataError(
            f"{folder} holds no clips: neither it nor a folder in it has {_POSES[0]} and {_YAWS} "
            "beside PNG files"
        )
    return clips


def _rows(path: Path, columns: int) -> Float64[np.ndarray, "row column"]:
    try:
        rows = np.load(path, allow_pickle=False)
    # NumPy's reader raises several kinds on damaged files.
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"cannot read {path} ({error}); it is an array of numbers") from error
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiu":
        raise DataError(f"{path} holds no array of numbers")
    shape = rows.shape
    if rows.ndim == 3 and shape[0] == 1:
        rows = rows[0]
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise DataError(
            f"{path} must have the shape [1, frames, {columns}] or [frames, {columns}], got "
            f"{list(shape)}"
        )
    numbers: np.ndarray = rows.astype(np.float64)
    return numbers


def _by_number(path: Path) -> list[tuple[str, int]]:
    """Order names by the numbers in them: 2.png before 10.png."""
    pieces = re.findall(r"(\D*)(\d*)", path.name)
    return [(text, int(digits or -1)) for text, digits in pieces]
