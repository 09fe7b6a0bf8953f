"""Visual tokenizers: one file for each family, built, saved and loaded here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from worldgen.checkpoint import load_state, load_tensors, save_tensors
from worldgen.config import build, to_mapping
from worldgen.errors import CheckpointError, ConfigError
from worldgen.tokenizers.visual.base import (
    DecoderStream,
    EncoderStream,
    Perturbation,
    TokenizerOutput,
    VisualTokenizer,
)
from worldgen.tokenizers.visual.convolutional import (
    ConvolutionalTokenizer,
    ConvolutionalTokenizerConfig,
)
from worldgen.tokenizers.visual.false_colour import (
    FalseColourTokenizer,
    FalseColourTokenizerConfig,
)
from worldgen.tokenizers.visual.omnitokenizer import (
    OmniAutoencoder,
    OmniAutoencoderConfig,
    OmniTokenizer,
    OmniTokenizerConfig,
)
from worldgen.tokenizers.visual.temporal import TemporalTokenizer, TemporalTokenizerConfig

__all__ = [
    "ConvolutionalTokenizer",
    "ConvolutionalTokenizerConfig",
    "DecoderStream",
    "EncoderStream",
    "FalseColourTokenizer",
    "FalseColourTokenizerConfig",
    "OmniAutoencoder",
    "OmniAutoencoderConfig",
    "OmniTokenizer",
    "OmniTokenizerConfig",
    "Perturbation",
    "TemporalTokenizer",
    "TemporalTokenizerConfig",
    "TokenizerOutput",
    "VisualTokenizer",
    "VisualTokenizerConfig",
    "build_visual_tokenizer",
    "load_autoencoder",
    "load_visual_tokenizer",
    "save_autoencoder",
    "save_visual_tokenizer",
]

VisualTokenizerConfig = (
    ConvolutionalTokenizerConfig
    | OmniTokenizerConfig
    | FalseColourTokenizerConfig
    | TemporalTokenizerConfig
)

_ARTIFACT = "visual_tokenizer"
_AUTOENCODER_ARTIFACT = "autoencoder"


@dataclass(frozen=True, kw_only=True)
class _Stored:
    tokenizer: VisualTokenizerConfig


def build_visual_tokenizer(config: VisualTokenizerConfig) -> VisualTokenizer:
    """Return a freshly initialised tokenizer."""
    match config:
        case ConvolutionalTokenizerConfig():
            return ConvolutionalTokenizer(config)
        case OmniTokenizerConfig():
            return OmniTokenizer(config)
        case FalseColourTokenizerConfig():
            return FalseColourTokenizer(config)
        case TemporalTokenizerConfig():
            return TemporalTokenizer(config)


def save_visual_tokenizer(
    path: Path, tokenizer: VisualTokenizer, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write weights, codebook and its usage, configuration and metadata to one safetensors file.

    Args:
        path: Destination, by convention `tokenizer.safetensors`.
        tokenizer: Any tokenizer that `build_visual_tokenizer` makes.
        metadata: Anything JSON can hold; readable later with `worldgen.checkpoint.load_tensors`.
    """
    header = {
        **(metadata or {}),
        "artifact": _ARTIFACT,
        "config": to_mapping(tokenizer.config),
    }
    save_tensors(path, tokenizer.state_dict(), header)


def load_visual_tokenizer(path: Path) -> VisualTokenizer:
    """Return a tokenizer from a file that `save_visual_tokenizer` wrote, ready for inference.

    Raises:
        CheckpointError: If the file is missing, truncated, of another kind, or does not fit its
            own configuration.
    """
    tensors, config = _read(
        path, _ARTIFACT, "a visual tokenizer; give the tokenizer.safetensors of a world or a run"
    )
    try:
        stored = build(_Stored, {"tokenizer": config}).tokenizer
    except ConfigError as error:
        raise CheckpointError(f"{path} names no configuration known here: {error}") from error
    tokenizer = build_visual_tokenizer(stored)
    load_state(tokenizer, tensors, path)
    return tokenizer.eval().requires_grad_(False)


def save_autoencoder(
    path: Path, autoencoder: OmniAutoencoder, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write weights, configuration and metadata to one file, by convention `autoencoder.safetensors`."""
    config = to_mapping(autoencoder.config)
    header = {**(metadata or {}), "artifact": _AUTOENCODER_ARTIFACT, "config": config}
    save_tensors(path, autoencoder.state_dict(), header)


def load_autoencoder(path: Path) -> OmniAutoencoder:
    """Return an autoencoder from a file that `save_autoencoder` wrote, ready for inference.

    Raises:
        CheckpointError: If the file is missing, truncated, of another kind, or does not fit its
            own configuration.
    """
    tensors, config = _read(
        path, _AUTOENCODER_ARTIFACT, "an autoencoder; give an autoencoder.safetensors"
    )
    try:
        autoencoder = OmniAutoencoder(build(OmniAutoencoderConfig, config))
    except ConfigError as error:
        raise CheckpointError(f"{path} names no configuration known here: {error}") from error
    load_state(autoencoder, tensors, path)
    return autoencoder.eval().requires_grad_(False)


def _read(path: Path, artifact: str, wanted: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = load_tensors(path)
    if metadata.get("artifact") != artifact:
        raise CheckpointError(
            f"{path} holds {metadata.get('artifact', 'something unnamed')!r}, not {wanted}"
        )
    if not isinstance(metadata.get("config"), dict):
        raise CheckpointError(f"{path} names no configuration; write it again with worldgen")
    return tensors, metadata["config"]
