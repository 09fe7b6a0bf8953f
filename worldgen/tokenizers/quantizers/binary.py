"""What quantizers of one bit for each channel share: bits to ids, and entropies by factor."""

from abc import abstractmethod

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers.base import Quantizer, QuantizerOutput

__all__ = ["BinaryQuantizer", "check_bits", "factorised_entropies"]

# The sign of an int64 is no bit of an id; two's complement leaves 62 that can be counted.
_MOST_BITS = 62

# 2^12 probabilities for each vector are still cheap; 2^18 would be what factors are to avoid.
_MOST_GROUP_BITS = 12


def factorised_entropies(
    logits: Float[Tensor, "vector bit"], group_bits: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the mean entropy of each vector's distribution of codes, and that of their mean.

    The bits of one vector are independent, so the entropy of its distribution over all 2^bit codes
    is the sum over bits, exactly. The mean distribution over vectors does not factorise: its
    entropy is taken for `group_bits` bits at a time and added up, which is exact where one group
    holds all bits and an upper bound elsewhere.

    Args:
        logits: Log odds of each bit being 1.
        group_bits: Bits whose joint distribution is worked out, at a cost of `vector * 2^group_bits`.

    Returns:
        Both in nats, with gradients.
    """
    ones, zeros = logits.sigmoid(), (-logits).sigmoid()
    per_vector = -(ones * F.logsigmoid(logits) + zeros * F.logsigmoid(-logits)).sum(1).mean()
    of_mean = logits.new_zeros(())
    for first in range(0, logits.shape[1], group_bits):
        joint = torch.ones_like(logits[:, :1])
        for bit in range(first, min(first + group_bits, logits.shape[1])):
            joint = torch.cat([joint * zeros[:, bit, None], joint * ones[:, bit, None]], dim=1)
        # Zero shares add nothing; their logarithm must not give NaN gradients.
        shares = joint.mean(0).clamp(min=torch.finfo(joint.dtype).tiny)
        of_mean = of_mean - (shares * shares.log()).sum()
    return per_vector, of_mean


def check_bits(
    kind: str,
    bits: int,
    group_bits: int,
    inverse_temperature: float,
    weights: tuple[float, ...],
) -> None:
    """Check the settings that configurations of binary quantizers have in common.

    Raises:
        ConfigError: If one of them is out of range.
    """
    if not 1 <= bits <= _MOST_BITS:
        raise ConfigError(f"{kind} bits must lie in [1, {_MOST_BITS}], got {bits}")
    if not 1 <= group_bits <= _MOST_GROUP_BITS:
        raise ConfigError(
            f"{kind} group_bits must lie in [1, {_MOST_GROUP_BITS}], got {group_bits}; the cost "
            "doubles with each"
        )
    if inverse_temperature <= 0:
        raise ConfigError(f"{kind} inverse_temperature must be above 0, got {inverse_temperature}")
    if min(weights) < 0:
        raise ConfigError(
            f"{kind} weights of commitment and entropies must not be negative, got {weights}"
        )


class BinaryQuantizer(Quantizer):
    """Keeps the sign of each channel: codes are the corners of a cube, ids their bits.

    Bit i of an id, worth 2^i, is 1 where channel i is positive. No codebook is ever written out.
    """

    places: Tensor
    magnitude: float
    """Distance of the codes from 0 in each channel."""

    def __init__(
        self,
        *,
        bits: int,
        magnitude: float,
        commitment_weight: float,
        sample_entropy_weight: float,
        batch_entropy_weight: float,
        inverse_temperature: float,
        group_bits: int,
    ) -> None:
        super().__init__()
        self.width = bits
        self.codebook_size = 2**bits
        self.magnitude = magnitude
        self.commitment_weight = commitment_weight
        self.sample_entropy_weight = sample_entropy_weight
        self.batch_entropy_weight = batch_entropy_weight
        self.inverse_temperature = inverse_temperature
        self.group_bits = group_bits
        self.register_buffer("places", 2 ** torch.arange(bits), persistent=False)

    @abstractmethod
    def prepare(self, flat: Float[Tensor, "vector width"]) -> Float[Tensor, "vector width"]:
        """Return the vectors that are compared with the codes."""

    def forward(self, vectors: Float[Tensor, "batch width row column"]) -> QuantizerOutput:
        """Return codes, ids, and the weighted sum of commitment and entropy terms.

        The entropy of single vectors is made small, so that each decides for a code; that of their
        mean is made large, so that all codes are used. Probabilities are a softmax over minus the
        squared distances to all codes, times the inverse temperature.
        """
        rows, columns = vectors.shape[-2:]
        with torch.autocast(vectors.device.type, enabled=False):
            flat = self.prepare(rearrange(vectors.float(), "b width r c -> (b r c) width"))
            positive = flat > 0
            codes = self._codes(positive)
            loss = self.commitment_weight * F.mse_loss(flat, codes)
            if self.sample_entropy_weight or self.batch_entropy_weight:
                # |z - m|^2 and |z + m|^2 differ by 4 z m in each channel.
                logits = 4 * self.magnitude * self.inverse_temperature * flat
                per_vector, of_mean = factorised_entropies(logits, self.group_bits)
                loss = loss + self.sample_entropy_weight * per_vector
                loss = loss - self.batch_entropy_weight * of_mean
        # The value of the code, exactly, with the gradient of the encoder's vector.
        quantized = codes + (flat - flat.detach())
        ids = (positive * self.places).sum(-1)
        return QuantizerOutput(
            quantized=rearrange(quantized, "(b r c) width -> b width r c", r=rows, c=columns),
            ids=rearrange(ids, "(b r c) -> b r c", r=rows, c=columns),
            loss=loss,
        )

    def ids_to_vectors(
        self, ids: Int[Tensor, "batch row column"]
    ) -> Float[Tensor, "batch width row column"]:
        """Return the corners that the bits of the ids name."""
        bits = (ids.unsqueeze(-1) & self.places) > 0
        return rearrange(self._codes(bits), "b r c width -> b width r c")

    def vectors_to_ids(
        self, codes: Float[Tensor, "batch width row column"]
    ) -> Int[Tensor, "batch row column"]:
        """Return the ids whose bits are the signs of the channels."""
        bits = rearrange(codes > 0, "b width r c -> b r c width")
        return (bits * self.places).sum(-1)

    @property
    def num_neighbours(self) -> int:
        """One for each bit."""
        return self.width

    def neighbours(self, ids: Int[Tensor, "*any"], count: int) -> Int[Tensor, "*any count"]:
        """Return the ids with one of the first `count` bits flipped; all are equally near."""
        self._check_neighbours(count, self.width)
        return ids.unsqueeze(-1) ^ self.places[:count]

    def _codes(self, positive: Tensor) -> Tensor:
        return torch.where(positive, self.magnitude, -self.magnitude)
