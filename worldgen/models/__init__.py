"""World models, and how they are stored."""

from pathlib import Path
from typing import Any

from worldgen.checkpoint import load_state, load_tensors, save_tensors
from worldgen.config import build, to_mapping
from worldgen.errors import CheckpointError
from worldgen.models.base import FrameDraft, WorldModel
from worldgen.models.interleaved import InterleavedConfig, InterleavedTransformer

__all__ = [
    "FrameDraft",
    "InterleavedConfig",
    "InterleavedTransformer",
    "WorldModel",
    "load_world_model",
    "save_world_model",
]

_ARTIFACT = "world_model"
_FAMILY = "interleaved"


def save_world_model(path: Path, model: InterleavedTransformer, **metadata: Any) -> None:
    """Write weights, configuration and anything else worth keeping to one safetensors file."""
    header = {
        "artifact": _ARTIFACT,
        "family": _FAMILY,
        "config": to_mapping(model.config),
    }
    save_tensors(path, model.state_dict(), header | metadata)


def load_world_model(path: Path) -> tuple[InterleavedTransformer, dict[str, Any]]:
    """Return the model of a file and its metadata; weights are converted to float32.

    Raises:
        CheckpointError: If the file is missing, damaged, or not a world model of a known family.
        ConfigError: If its configuration is malformed.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("artifact") != _ARTIFACT or metadata.get("family") != _FAMILY:
        raise CheckpointError(
            f"{path} holds a {metadata.get('artifact')!r} of family {metadata.get('family')!r}; "
            f"give the model.safetensors of a world or a run, a {_ARTIFACT!r} of family "
            f"{_FAMILY!r}"
        )
    model = InterleavedTransformer(build(InterleavedConfig, metadata["config"]))
    load_state(model, {name: tensor.float() for name, tensor in tensors.items()}, path)
    return model.eval(), metadata
