"""Quantizers: one file for each scheme, all behind one interface."""

from worldgen.tokenizers.quantizers.base import (
    CodeUsage,
    Quantizer,
    QuantizerOutput,
    code_usage,
)
from worldgen.tokenizers.quantizers.fsq import FiniteScalarQuantizer, FSQConfig
from worldgen.tokenizers.quantizers.vq import VectorQuantizer, VQConfig

__all__ = [
    "CodeUsage",
    "FSQConfig",
    "FiniteScalarQuantizer",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerOutput",
    "VQConfig",
    "VectorQuantizer",
    "build_quantizer",
    "code_usage",
]

QuantizerConfig = FSQConfig | VQConfig


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """Return the quantizer that a configuration describes."""
    match config:
        case FSQConfig():
            return FiniteScalarQuantizer(config)
        case VQConfig():
            return VectorQuantizer(config)
