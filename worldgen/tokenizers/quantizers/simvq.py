"""SimVQ: a frozen random codebook seen through one learned linear layer."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers.base import QuantizerOutput
from worldgen.tokenizers.quantizers.codebook import CodebookQuantizer
from worldgen.tokenizers.quantizers.lookup import nearest_codes

__all__ = ["SimVQConfig", "SimVectorQuantizer"]


@dataclass(frozen=True, kw_only=True)
class SimVQConfig:
    """Frozen codebook and what pulls vectors and codes together."""

    kind: Literal["simvq"] = "simvq"
    codebook_size: int
    width: int
    """Channels of a code."""
    commitment_weight: float = 0.25
    """Pull of the encoder's vectors towards their codes."""
    codebook_weight: float = 1.0
    """Pull of the codes, by way of the linear layer, towards the vectors that chose them."""
    seed: int = 0
    """Seed of the frozen codebook."""

    def __post_init__(self) -> None:
        if self.codebook_size < 2 or self.width < 1:
            raise ConfigError(
                "simvq needs codebook_size >= 2 and width >= 1, got "
                f"{self.codebook_size} and {self.width}"
            )
        if self.commitment_weight < 0 or self.codebook_weight <= 0:
            raise ConfigError(
                "simvq needs commitment_weight >= 0 and codebook_weight > 0, got "
                f"{self.commitment_weight} and {self.codebook_weight}"
            )


class SimVectorQuantizer(CodebookQuantizer):
    """Takes the nearest code of `linear(frozen codebook)`.

    Every step moves all codes together through the linear layer, so none is left behind and dies,
    however large the codebook.

    Source: Zhu et al. 2024, Addressing Representation Collapse in Vector Quantized Models with One
        Linear Layer (arXiv:2411.02038), section 4, algorithm 1.
    """

    frozen: Tensor

    def __init__(self, config: SimVQConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.codebook_size = config.codebook_size
        generator = torch.Generator().manual_seed(config.seed)
        frozen = torch.randn(config.codebook_size, config.width, generator=generator)
        # Codes of length 1 on average.
        self.register_buffer("frozen", frozen / config.width**0.5)
        self.linear = nn.Linear(config.width, config.width)

    def forward(self, vectors: Float[Tensor, "batch width row column"]) -> QuantizerOutput:
        """Return nearest codes; the loss is the sum of codebook loss and commitment loss."""
        # Distances in bfloat16 would choose wrong codes, so mixed precision ends here.
        with torch.autocast(vectors.device.type, enabled=False):
            flat = self._flat(vectors)
            with torch.no_grad():
                table = self.codes()
                ids = nearest_codes(flat, table)
            # Values from the table, as decoding has them; gradients through the chosen rows alone.
            rows = self._project(F.embedding(ids, self.frozen))
            codes = F.embedding(ids, table) + (rows - rows.detach())
            commitment = F.mse_loss(flat, codes.detach())
            approach = F.mse_loss(codes, flat.detach())
            loss = (
                self.config.commitment_weight * commitment + self.config.codebook_weight * approach
            )
        return self._output(vectors, flat, codes, ids, loss)

    def codes(self) -> Float[Tensor, "code width"]:
        """Return the frozen codebook after the linear layer, in float32."""
        return self._project(self.frozen)

    def _project(self, codes: Tensor) -> Tensor:
        return F.linear(codes.float(), self.linear.weight.float(), self.linear.bias.float())
