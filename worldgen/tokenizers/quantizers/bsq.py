"""Binary spherical quantization: signs of vectors on the unit sphere."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from worldgen.tokenizers.quantizers.binary import BinaryQuantizer, check_bits

__all__ = ["BSQConfig", "BinarySphericalQuantizer"]


@dataclass(frozen=True, kw_only=True)
class BSQConfig:
    """Bits of a binary spherical quantizer and its losses."""

    kind: Literal["bsq"] = "bsq"
    bits: int
    """Channels; there are 2^bits codes, for example 18 bits for 262144."""
    commitment_weight: float = 0.0
    """Pull of the vectors towards their codes; on the sphere neither can run away."""
    sample_entropy_weight: float = 0.1
    """Pull towards vectors that lie clearly on one side in each channel."""
    batch_entropy_weight: float = 0.1
    """Pull towards each bit being 1 half of the time."""
    inverse_temperature: float = 100.0
    """Sharpness of the probabilities inside the entropies."""

    def __post_init__(self) -> None:
        weights = (
            self.commitment_weight,
            self.sample_entropy_weight,
            self.batch_entropy_weight,
        )
        check_bits("bsq", self.bits, 1, self.inverse_temperature, weights)


class BinarySphericalQuantizer(BinaryQuantizer):
    """Scales vectors to length 1; codes are plus and minus 1 / sqrt(bits) in each channel.

    The entropy of the mean distribution is taken bit by bit, so its cost grows with the bits alone.

    Source: Zhao et al. 2024, Image and Video Tokenization with Binary Spherical Quantization
        (arXiv:2406.07548), section 4.
    """

    def __init__(self, config: BSQConfig) -> None:
        super().__init__(
            bits=config.bits,
            magnitude=config.bits**-0.5,
            commitment_weight=config.commitment_weight,
            sample_entropy_weight=config.sample_entropy_weight,
            batch_entropy_weight=config.batch_entropy_weight,
            inverse_temperature=config.inverse_temperature,
            group_bits=1,
        )
        self.config = config

    def prepare(self, flat: Float[Tensor, "vector width"]) -> Float[Tensor, "vector width"]:
        """Return the vectors scaled to length 1."""
        return F.normalize(flat, dim=-1)
