"""World models, and how they are stored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldgen.checkpoint import load_state, load_tensors, save_tensors
from worldgen.config import build, to_mapping
from worldgen.errors import CheckpointError, ConfigError
from worldgen.models.base import FrameDraft, Policy, TextModel, WorldModel
from worldgen.models.conditions import StepConditions, stack_conditions
from worldgen.models.driving import DrivingConfig, DrivingTransformer
from worldgen.models.interleaved import InterleavedConfig, InterleavedTransformer
from worldgen.models.next_frame import NextFrameTransformer
from worldgen.models.next_frame_config import NextFrameConfig
from worldgen.models.next_token import NextTokenConfig, NextTokenTransformer
from worldgen.models.recall import find_recalled, frames_around, recalled_of_episode

__all__ = [
    "DrivingConfig",
    "DrivingTransformer",
    "FrameDraft",
    "InterleavedConfig",
    "InterleavedTransformer",
    "NextFrameConfig",
    "NextFrameTransformer",
    "NextTokenConfig",
    "NextTokenTransformer",
    "Policy",
    "StepConditions",
    "TextModel",
    "Transformer",
    "TransformerConfig",
    "WorldModel",
    "build_world_model",
    "find_recalled",
    "frames_around",
    "load_world_model",
    "recalled_of_episode",
    "save_world_model",
    "stack_conditions",
    "world_model_config",
]

TransformerConfig = NextFrameConfig | NextTokenConfig | DrivingConfig
"""Sizes of a world model of any family."""

Transformer = NextFrameTransformer | NextTokenTransformer | DrivingTransformer
"""A world model of any family."""

_ARTIFACT = "world_model"
# Files of before there were two families call the first one "interleaved".
_CONFIGS: dict[str, type[TransformerConfig]] = {
    "interleaved": NextFrameConfig,
    "interleaved_next_token": NextTokenConfig,
    "driving": DrivingConfig,
}


def world_model_config(family: str, sizes: Mapping[str, Any]) -> TransformerConfig:
    """Return the configuration of a family from plain values.

    Args:
        family: `"interleaved"` (next frame), `"interleaved_next_token"` or `"driving"`.
        sizes: Fields of the family's configuration.

    Raises:
        ConfigError: If the family is unknown, or a field is unknown, missing or mistyped.
    """
    if family not in _CONFIGS:
        raise ConfigError(
            f"there is no family of world models {family!r}; there are {', '.join(_CONFIGS)}"
        )
    return build(_CONFIGS[family], sizes)


def build_world_model(config: TransformerConfig) -> Transformer:
    """Return a model with random weights."""
    if isinstance(config, DrivingConfig):
        return DrivingTransformer(config)
    if isinstance(config, NextTokenConfig):
        return NextTokenTransformer(config)
    return NextFrameTransformer(config)


def save_world_model(path: Path, model: Transformer, **metadata: Any) -> None:
    """Write weights, configuration and anything else worth keeping to one safetensors file."""
    families = {config: family for family, config in _CONFIGS.items()}
    header = {
        "artifact": _ARTIFACT,
        "family": families[type(model.config)],
        "config": to_mapping(model.config),
    }
    save_tensors(path, model.state_dict(), header | metadata)


def load_world_model(path: Path) -> tuple[Transformer, dict[str, Any]]:
    """Return the model of a file and its metadata; weights are converted to float32.

    Raises:
        CheckpointError: If the file is missing, damaged, or not a world model of a known family.
        ConfigError: If its configuration is malformed.
    """
    tensors, metadata = load_tensors(path)
    family = metadata.get("family")
    if metadata.get("artifact") != _ARTIFACT or family not in _CONFIGS:
        raise CheckpointError(
            f"{path} holds a {metadata.get('artifact')!r} of family {family!r}; give the "
            f"model.safetensors of a world or a run, a {_ARTIFACT!r} of family "
            f"{' or '.join(map(repr, _CONFIGS))}"
        )
    model = build_world_model(world_model_config(family, metadata["config"]))
    load_state(model, {name: tensor.float() for name, tensor in tensors.items()}, path)
    return model.eval(), metadata
