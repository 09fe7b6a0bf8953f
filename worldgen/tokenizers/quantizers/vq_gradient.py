"""Vector quantization whose codebook is learned by gradient, as a weight like any other."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers.base import QuantizerOutput
from worldgen.tokenizers.quantizers.codebook import CodebookQuantizer, Normalise

__all__ = ["GradientVQConfig", "GradientVectorQuantizer"]


@dataclass(frozen=True, kw_only=True)
class GradientVQConfig:
    """Codebook of a vector quantizer that the optimiser learns."""

    kind: Literal["vq_gradient"] = "vq_gradient"
    codebook_size: int
    width: int
    """Channels of a code."""
    normalise: Normalise = "none"
    """What is scaled to length 1: nothing, the encoder's vectors, or codes too (`both`)."""
    commitment_weight: float = 0.25
    """Pull of the encoder's vectors towards their codes."""
    codebook_weight: float = 1.0
    """Pull of the codes towards the vectors that chose them."""
    seed: int = 0
    """Seed of the first codebook."""

    def __post_init__(self) -> None:
        if self.codebook_size < 2 or self.width < 1:
            raise ConfigError(
                "vq_gradient needs codebook_size >= 2 and width >= 1, got "
                f"{self.codebook_size} and {self.width}"
            )
        if self.commitment_weight < 0 or self.codebook_weight <= 0:
            raise ConfigError(
                "vq_gradient needs commitment_weight >= 0 and codebook_weight > 0, got "
                f"{self.commitment_weight} and {self.codebook_weight}"
            )


class GradientVectorQuantizer(CodebookQuantizer):
    """Takes the nearest code; a second squared error pulls the codes to the encoder's vectors.

    Source: van den Oord et al. 2017, Neural Discrete Representation Learning (arXiv:1711.00937),
        equation 3; Yu et al. 2021, Vector-quantized Image Modeling with Improved VQGAN
        (arXiv:2110.04627), section 3.2 (vectors and codes of length 1: `normalise="both"`).
    """

    def __init__(self, config: GradientVQConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.codebook_size = config.codebook_size
        self.normalise = config.normalise
        generator = torch.Generator().manual_seed(config.seed)
        codebook = torch.rand(config.codebook_size, config.width, generator=generator)
        self.codebook = nn.Parameter((2 * codebook - 1) / config.codebook_size)

    def forward(self, vectors: Float[Tensor, "batch width row column"]) -> QuantizerOutput:
        """Return nearest codes; the loss is the sum of codebook loss and commitment loss."""
        # Distances in bfloat16 would choose wrong codes, so mixed precision ends here.
        with torch.autocast(vectors.device.type, enabled=False):
            flat = self._flat(vectors)
            ids = self._nearest(flat)
            codes = F.embedding(ids, self.codes())
            commitment = F.mse_loss(flat, codes.detach())
            approach = F.mse_loss(codes, flat.detach())
            loss = (
                self.config.commitment_weight * commitment + self.config.codebook_weight * approach
            )
        return self._output(vectors, flat, codes, ids, loss)

    def codes(self) -> Float[Tensor, "code width"]:
        """Return the codebook, in float32, of length 1 where so configured."""
        codebook = self.codebook.float()
        return F.normalize(codebook, dim=-1) if self.normalise == "both" else codebook
