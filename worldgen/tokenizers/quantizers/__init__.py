"""Quantizers: one file for each scheme, all behind one interface."""

from worldgen.tokenizers.quantizers.base import (
    CodeUsage,
    Quantizer,
    QuantizerOutput,
    code_usage,
)
from worldgen.tokenizers.quantizers.bsq import BinarySphericalQuantizer, BSQConfig
from worldgen.tokenizers.quantizers.fsq import FiniteScalarQuantizer, FSQConfig
from worldgen.tokenizers.quantizers.levels import join_levels, split_levels
from worldgen.tokenizers.quantizers.lfq import LFQConfig, LookupFreeQuantizer
from worldgen.tokenizers.quantizers.perturbation import perturb
from worldgen.tokenizers.quantizers.residual import ResidualConfig, ResidualQuantizer
from worldgen.tokenizers.quantizers.residual_fsq import (
    ResidualFiniteScalarQuantizer,
    ResidualFSQConfig,
)
from worldgen.tokenizers.quantizers.simvq import SimVectorQuantizer, SimVQConfig
from worldgen.tokenizers.quantizers.vq import VectorQuantizer, VQConfig
from worldgen.tokenizers.quantizers.vq_gradient import GradientVectorQuantizer, GradientVQConfig

__all__ = [
    "BSQConfig",
    "BinarySphericalQuantizer",
    "CodeUsage",
    "FSQConfig",
    "FiniteScalarQuantizer",
    "GradientVQConfig",
    "GradientVectorQuantizer",
    "LFQConfig",
    "LookupFreeQuantizer",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerOutput",
    "ResidualConfig",
    "ResidualFSQConfig",
    "ResidualFiniteScalarQuantizer",
    "ResidualQuantizer",
    "SimVQConfig",
    "SimVectorQuantizer",
    "VQConfig",
    "VectorQuantizer",
    "build_quantizer",
    "code_usage",
    "join_levels",
    "perturb",
    "split_levels",
]

QuantizerConfig = (
    FSQConfig
    | ResidualFSQConfig
    | VQConfig
    | GradientVQConfig
    | SimVQConfig
    | LFQConfig
    | BSQConfig
    | ResidualConfig
)


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """Return the quantizer that a configuration describes."""
    match config:
        case FSQConfig():
            return FiniteScalarQuantizer(config)
        case ResidualFSQConfig():
            return ResidualFiniteScalarQuantizer(config)
        case VQConfig():
            return VectorQuantizer(config)
        case GradientVQConfig():
            return GradientVectorQuantizer(config)
        case SimVQConfig():
            return SimVectorQuantizer(config)
        case LFQConfig():
            return LookupFreeQuantizer(config)
        case BSQConfig():
            return BinarySphericalQuantizer(config)
        case ResidualConfig():
            return ResidualQuantizer(config)
