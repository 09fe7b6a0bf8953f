"""MineWorld's files (YAML, checkpoints, recordings), read into what a world of ours is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from einops import rearrange
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from worldgen.checkpoint import file_hash
from worldgen.data.formats import MineWorldValidation
from worldgen.data.media import IMAGE_SUFFIXES
from worldgen.data.video import iterate_video
from worldgen.errors import ActionError, CheckpointError, ConfigError, DataError
from worldgen.interop.convolutional import diffusers_config, import_diffusers_tokenizer
from worldgen.interop.files import ForeignCheckpoint, read_checkpoint
from worldgen.interop.mineworld import (
    WORLD_TARGET,
    import_mineworld_transformer,
    mineworld_config,
    parameters_of,
)
from worldgen.models.next_token import NextTokenConfig, NextTokenTransformer
from worldgen.records import to_float
from worldgen.tokenizers.action import ActionSchema, ActionTokenizer
from worldgen.tokenizers.action.minecraft import (
    mineworld_schema,
    mineworld_vocabulary,
    to_schema_action,
)
from worldgen.tokenizers.visual import ConvolutionalTokenizer

__all__ = ["FRAME_SIZE", "ImportedMineWorld", "MineWorldStart", "import_mineworld"]

FRAME_SIZE = (224, 384)
"""Height and width, in pixels, of the frames that upstream's code is made for."""

START_FRAMES = 8
"""Frames from which upstream's page begins to play."""

_TOKENIZER = "vae.VAE"
_CODEBOOK = "quantize.embedding.weight"
_CAMERA_BINS = 21


@dataclass(frozen=True, kw_only=True)
class MineWorldStart:
    """Where a world begins."""

    visual_ids: Int[Tensor, "frame cell"]
    action_ids: Int[Tensor, "action slot"]
    """Of all frames but the last."""
    description: str
    """What it is, in words."""


@dataclass(frozen=True, kw_only=True)
class ImportedMineWorld:
    """A tokenizer and a transformer that belong together, in float32, ready for inference."""

    tokenizer: ConvolutionalTokenizer
    transformer: NextTokenTransformer
    schema: ActionSchema
    """Upstream's slots and ids, in a vocabulary as large as the transformer's."""
    types: tuple[torch.dtype, torch.dtype]
    """In which the weights of tokenizer and transformer were given, and are stored losslessly."""
    record: Mapping[str, Any]
    """The files, their SHA-256 and the precision, as JSON can hold it."""

    def plain_start(self) -> MineWorldStart:
        """Return the start from one frame of plain grey."""
        size = (self.tokenizer.frame_height, self.tokenizer.frame_width, 3)
        return self._start(np.full((1, *size), 128, np.uint8), [], "one frame of plain grey")

    def start(self, source: Path, actions: Path | None = None) -> MineWorldStart:
        """Return the start from an image, or from the first frames of a recording.

        Without actions that is one frame. With them it is as many as upstream's page takes, 8, or
        fewer where the model remembers fewer or there are no more. Frames are stretched to the
        size of the tokenizer's.

        Args:
            source: Image or video.
            actions: JSON lines with a dictionary of the environment for each frame, the action
                taken in it: keys with 0 or 1, and `camera`, pitch and yaw in degrees.

        Raises:
            DataError: If a file cannot be read; with file and line where a line is wrong.
        """
        longest = 1 if actions is None else min(START_FRAMES, *self.transformer.windows)
        frames = self._frames(source, longest)
        taken = [] if actions is None else self._actions(actions, len(frames) - 1)
        frames = frames[: len(taken) + 1]
        plural = "" if len(frames) == 1 else f"s, with the actions of {actions and actions.name}"
        return self._start(
            np.stack(frames), taken, f"{source.name}, the first {len(frames)} frame{plural}"
        )

    def _start(
        self, frames: UInt8[np.ndarray, "frame h w 3"], actions: list[Any], description: str
    ) -> MineWorldStart:
        ids = self.tokenizer.encode(to_float(torch.from_numpy(frames))[:, None])
        chosen = np.array(actions).reshape(len(actions), self.schema.num_groups)
        return MineWorldStart(
            visual_ids=rearrange(ids, "frame 1 row column -> frame (row column)"),
            action_ids=torch.from_numpy(ActionTokenizer(self.schema).encode(chosen)),
            description=description,
        )

    def _frames(self, source: Path, longest: int) -> list[UInt8[np.ndarray, "height width 3"]]:
        size = (self.tokenizer.frame_width, self.tokenizer.frame_height)
        if source.suffix.lower() in IMAGE_SUFFIXES:
            try:
                with Image.open(source) as image:
                    pictures = [image.convert("RGB")]
            except (OSError, ValueError) as error:
                raise DataError(f"cannot read the image {source} ({error})") from error
        else:
            pictures = [Image.fromarray(frame) for frame in islice(iterate_video(source), longest)]
        return [
            np.array(
                picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
            )
            for picture in pictures
        ]

    def _actions(self, path: Path, longest: int) -> list[Any]:
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise DataError(f"cannot read the actions in {path} ({error})") from error
        # As in upstream's validation clips: JSON, or a dictionary as Python prints it.
        read_line = MineWorldValidation(path).read_line
        actions = []
        for number, line in enumerate(lines[:longest], start=1):
            try:
                written = read_line(line)
                if not isinstance(written, dict):
                    raise DataError(f"an action is an object, got {type(written).__name__}")
                actions.append(to_schema_action(written, self.schema))
            except (ActionError, DataError) as error:
                raise DataError(f"{path}, line {number}: {error}") from error
        return actions


def import_mineworld(
    config: Path,
    checkpoint: Path,
    *,
    tokenizer: Path | None = None,
    tokenizer_config: Path | None = None,
    frame_height: int | None = None,
    frame_width: int | None = None,
) -> ImportedMineWorld:
    """Return the world of a MineWorld checkpoint, its files read as data alone.

    Paths in the YAML are followed where no argument says otherwise: as they are, or from the folder
    of the YAML or the one above it.

    Args:
        config: Upstream's YAML.
        checkpoint: `*.ckpt` or `*.bin` (pickles of tensors) or `*.safetensors`, with `transformer.*`
            and perhaps `tokenizer.model.*`.
        tokenizer: The tokenizer's checkpoint, if it is not in `checkpoint`.
        tokenizer_config: The `config.json` of the tokenizer, a `VQModel` of diffusers.
        frame_height: Pixels; by default those of `grid` in the YAML, or 224.
        frame_width: Pixels; by default those of `grid` in the YAML, or 384.

    Raises:
        ConfigError: If a configuration is missing or malformed, or names other classes or sizes
            that do not go together.
        CheckpointError: If weights are missing, or others than the configurations say.
    """
    tree = _read_tree(config)
    try:
        named = _named_files(config, tree)
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from error
    settings_path, settings = _settings(config, tree, tokenizer_config or named("config_path"))
    height, width = _frame_size(tree, settings, frame_height, frame_width)
    try:
        sizes = diffusers_config(settings, frame_height=height, frame_width=width)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{settings_path}: {error}") from error
    reduction = sizes.decoder.reduction
    try:
        model_config = mineworld_config(
            tree["model"],
            rows=height // reduction,
            columns=width // reduction,
            codebook_size=settings.get("num_vq_embeddings", 256),
        )
        schema = _schema(model_config)
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from error
    whole = read_checkpoint(checkpoint)
    transformer = import_mineworld_transformer(whole.tensors, model_config, path=checkpoint)
    part = whole
    if tokenizer is not None or not _has_tokenizer(whole):
        path = tokenizer or named("ckpt_path")
        if path is None:
            raise CheckpointError(
                f"{checkpoint} holds no visual tokenizer, a name that ends with {_CODEBOOK}; give "
                "upstream's vae.ckpt with --tokenizer"
            )
        part = read_checkpoint(path)
    imported = import_diffusers_tokenizer(part, settings, frame_height=height, frame_width=width)
    types = (
        part.stored_type(lambda name: name not in imported.left_out),
        whole.stored_type(lambda name: name.startswith("transformer.")),
    )
    files = {"config": config, "checkpoint": checkpoint, "tokenizer_config": settings_path}
    if part is not whole:
        files["tokenizer"] = part.path
    record: dict[str, Any] = {"origin": "MineWorld"}
    for name, path in files.items():
        record |= {name: path.name, f"{name}_sha256": file_hash(path)}
    record["stored_as"] = {
        name: str(kind).removeprefix("torch.")
        for name, kind in zip(("tokenizer", "transformer"), types, strict=True)
    }
    return ImportedMineWorld(
        tokenizer=imported.tokenizer,
        transformer=transformer,
        schema=schema,
        types=types,
        record=record,
    )


def _read_tree(path: Path) -> Mapping[str, Any]:
    """Return the mapping that a YAML or JSON file holds; tags that name code are refused."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration at {path}; check the path") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        # The reader's messages have several lines.
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is no YAML of plain values ({reason})") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path} holds no mapping; give one of MineWorld's configurations")
    return tree


def _named_files(config: Path, tree: Mapping[str, Any]) -> Callable[[str], Path | None]:
    """Return what finds a file that the tokenizer's part of the YAML names."""
    params = parameters_of(tree.get("model"), "model", WORLD_TARGET)
    node = params.get("tokenizer_config")
    where = "model.params.tokenizer_config"
    given = {} if node is None else parameters_of(node, where, _TOKENIZER)

    def find(key: str) -> Path | None:
        name = given.get(key)
        if not isinstance(name, str):
            return None
        folders = (Path(), config.parent, config.parent.parent)
        return next((folder / name for folder in folders if (folder / name).is_file()), None)

    return find


def _settings(
    config: Path, tree: Mapping[str, Any], path: Path | None
) -> tuple[Path, Mapping[str, Any]]:
    """Return the settings of the tokenizer, and the file that holds them."""
    if path is not None:
        return path, _read_tree(path)
    settings = tree.get("vae_config")
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"{config} does not say how the visual tokenizer is built, and names no file here that "
            "does; give upstream's checkpoints/vae/config.json with --tokenizer-config"
        )
    return config, settings


def _frame_size(
    tree: Mapping[str, Any], settings: Mapping[str, Any], height: int | None, width: int | None
) -> tuple[int, int]:
    grid = tree.get("grid")
    named = [
        grid.get(key) if isinstance(grid, Mapping) else None for key in ("rownum", "columnnum")
    ]
    levels = settings.get("block_out_channels")
    reduction = 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else 1
    sides = [
        side * reduction if type(side) is int else usual
        for side, usual in zip(named, FRAME_SIZE, strict=True)
    ]
    return height or sides[0], width or sides[1]


def _schema(config: NextTokenConfig) -> ActionSchema:
    used = len(mineworld_vocabulary(_CAMERA_BINS))
    if config.action_vocabulary_size < used:
        raise ConfigError(
            f"vocab_size must be at least {config.codebook_size + used}: {config.codebook_size} "
            f"visual ids and {used} of actions, got "
            f"{config.codebook_size + config.action_vocabulary_size}"
        )
    return mineworld_schema(vocabulary_size=config.action_vocabulary_size)


def _has_tokenizer(checkpoint: ForeignCheckpoint) -> bool:
    return any(name.endswith(_CODEBOOK) for name in checkpoint.tensors)
