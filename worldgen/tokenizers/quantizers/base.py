"""What every quantizer does: vectors to ids, ids to vectors, and how much of a codebook is used."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["CodeUsage", "Quantizer", "QuantizerOutput", "code_usage"]


@dataclass(frozen=True, kw_only=True)
class QuantizerOutput:
    """Vectors after quantization, with what training needs."""

    quantized: Float[Tensor, "batch width row column"]
    """Code vectors; gradients pass straight through to the input."""
    ids: Int[Tensor, "batch row column"]
    """int64 in [0, codebook_size)."""
    loss: Float[Tensor, ""]
    """Term that the scheme adds to the training loss; 0 where it needs none."""


class Quantizer(nn.Module, ABC):
    """Maps vectors of `width` channels to `codebook_size` ids and back.

    `forward` quantizes whatever an encoder gives; `ids_to_vectors` and `vectors_to_ids` are exact
    inverses of each other between ids and the vectors that stand for them (codes).
    """

    width: int
    """Channels of the vectors, before and after quantization."""
    codebook_size: int
    """Number of ids."""

    @abstractmethod
    def forward(self, vectors: Float[Tensor, "batch width row column"]) -> QuantizerOutput:
        """Return code vectors, ids and loss; computed in float32 whatever the input's type."""

    @abstractmethod
    def ids_to_vectors(
        self, ids: Int[Tensor, "batch row column"]
    ) -> Float[Tensor, "batch width row column"]:
        """Return the float32 codes of ids in [0, codebook_size)."""

    @abstractmethod
    def vectors_to_ids(
        self, codes: Float[Tensor, "batch width row column"]
    ) -> Int[Tensor, "batch row column"]:
        """Return the int64 ids of codes, as `ids_to_vectors` or `forward` gave them."""


@dataclass(frozen=True, kw_only=True)
class CodeUsage:
    """How much of a codebook a set of ids uses."""

    used: int
    """Codes that occur at least once."""
    perplexity: float
    """exp(entropy) of the codes in nats: the size of an evenly used codebook as informative."""


def code_usage(ids: Int[Tensor, "*any"], codebook_size: int) -> CodeUsage:
    """Count the codes used and the perplexity of their distribution.

    Args:
        ids: Any shape, values in [0, codebook_size); at least one.
        codebook_size: Number of codes.
    """
    counts = torch.bincount(ids.flatten(), minlength=codebook_size).double()
    shares = counts[counts > 0] / counts.sum()
    entropy = -(shares * shares.log()).sum()
    return CodeUsage(used=shares.numel(), perplexity=float(entropy.exp()))
