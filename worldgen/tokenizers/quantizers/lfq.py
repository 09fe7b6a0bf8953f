"""Lookup-free quantization: the sign of each channel is one bit of the id."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from worldgen.tokenizers.quantizers.binary import BinaryQuantizer, check_bits

__all__ = ["LFQConfig", "LookupFreeQuantizer"]


@dataclass(frozen=True, kw_only=True)
class LFQConfig:
    """Bits of a lookup-free quantizer and its losses."""

    kind: Literal["lfq"] = "lfq"
    bits: int
    """Channels; there are 2^bits codes, for example 18 bits for 262144."""
    commitment_weight: float = 0.25
    """Pull of the encoder's vectors towards their codes."""
    sample_entropy_weight: float = 0.1
    """Pull towards vectors that lie clearly on one side in each channel."""
    batch_entropy_weight: float = 0.1
    """Pull towards an even use of all codes."""
    inverse_temperature: float = 100.0
    """Sharpness of the probabilities inside the entropies."""
    group_bits: int = 9
    """Bits whose joint distribution over a batch is worked out; the groups' entropies add up."""

    def __post_init__(self) -> None:
        weights = (
            self.commitment_weight,
            self.sample_entropy_weight,
            self.batch_entropy_weight,
        )
        check_bits("lfq", self.bits, self.group_bits, self.inverse_temperature, weights)


class LookupFreeQuantizer(BinaryQuantizer):
    """Codes are -1 and 1 in each channel.

    Source: Yu et al. 2023, Language Model Beats Diffusion (arXiv:2310.05737), section 3.1; Luo et
        al. 2024, Open-MAGVIT2 (arXiv:2409.04410), for 2^18 codes and more in groups of bits.
    """

    def __init__(self, config: LFQConfig) -> None:
        super().__init__(
            bits=config.bits,
            magnitude=1.0,
            commitment_weight=config.commitment_weight,
            sample_entropy_weight=config.sample_entropy_weight,
            batch_entropy_weight=config.batch_entropy_weight,
            inverse_temperature=config.inverse_temperature,
            group_bits=config.group_bits,
        )
        self.config = config

    def prepare(self, flat: Float[Tensor, "vector width"]) -> Float[Tensor, "vector width"]:
        """Return the vectors as they are."""
        return flat
