"""What every quantizer does: vectors to ids, ids to vectors, and how much of a codebook is used."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from worldgen.errors import ConfigError

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

    @property
    def num_neighbours(self) -> int:
        """Codes that count as near neighbours of a code where nobody says how many."""
        raise ConfigError(self._no_neighbours())

    def neighbours(self, ids: Int[Tensor, "*any"], count: int) -> Int[Tensor, "*any count"]:
        """Return ids of codes that lie near those of the given ids, none of them itself.

        Args:
            ids: int64 in [0, codebook_size), any shape.
            count: Neighbours of each; what may be asked for depends on the scheme.

        Raises:
            ConfigError: If the scheme has not that many, or does not say which codes are near.
        """
        raise ConfigError(self._no_neighbours())

    def _no_neighbours(self) -> str:
        return (
            f"{type(self).__name__} does not say which codes are near; codes can be perturbed where "
            "num_neighbours and neighbours are defined, as in every quantizer of worldgen"
        )

    @staticmethod
    def _check_neighbours(count: int, available: int) -> None:
        if not 1 <= count <= available:
            raise ConfigError(
                f"codes of this quantizer have 1 to {available} neighbours to ask for, got {count}"
            )


@dataclass(frozen=True, kw_only=True)
class CodeUsage:
    """How much of a codebook a set of ids uses."""

    used: int
    """Codes that occur at least once."""
    perplexity: float
    """exp(entropy) of the codes in nats: the size of an evenly used codebook as informative."""
    share: float
    """Codes used, as a share of the codebook, in (0, 1]."""


def code_usage(ids: Int[Tensor, "*any"], codebook_size: int) -> CodeUsage:
    """Count the codes used and the perplexity of their distribution.

    Args:
        ids: Any shape, values in [0, codebook_size); at least one.
        codebook_size: Number of codes; may be too large to count each.
    """
    counts = ids.unique(return_counts=True)[1].double()
    shares = counts / counts.sum()
    entropy = -(shares * shares.log()).sum()
    used = shares.numel()
    return CodeUsage(used=used, perplexity=float(entropy.exp()), share=used / codebook_size)
