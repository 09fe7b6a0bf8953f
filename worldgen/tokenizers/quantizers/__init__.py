"""Quantizers: one file for each scheme, all behind one interface."""

from worldgen.tokenizers.quantizers.base import (
    CodeUsage,
    Quantizer,
    QuantizerOutput,
    code_usage,
)
from worldgen.tokenizers.quantizers.fsq import FiniteScalarQuantizer, FSQConfig
from worldgen.tokenizers.quantizers.simvq import SimVectorQuantizer, SimVQConfig
from worldgen.tokenizers.quantizers.vq import VectorQuantizer, VQConfig
from worldgen.tokenizers.quantizers.vq_gradient import GradientVectorQuantizer, GradientVQConfig

__all__ = [
    "CodeUsage",
    "FSQConfig",
    "FiniteScalarQuantizer",
    "GradientVQConfig",
    "GradientVectorQuantizer",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerOutput",
    "SimVQConfig",
    "SimVectorQuantizer",
    "VQConfig",
    "VectorQuantizer",
    "build_quantizer",
    "code_usage",
]

QuantizerConfig = FSQConfig | VQConfig | GradientVQConfig | SimVQConfig


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """Return the quantizer that a configuration describes."""
    match config:
        case FSQConfig():
            return FiniteScalarQuantizer(config)
        case VQConfig():
            return VectorQuantizer(config)
        case GradientVQConfig():
            return GradientVectorQuantizer(config)
        case SimVQConfig():
            return SimVectorQuantizer(config)
