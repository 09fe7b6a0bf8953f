"""What quantizers with a table of codes share: the nearest code, and the way there and back."""

from abc import abstractmethod
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from worldgen.tokenizers.quantizers.base import Quantizer, QuantizerOutput
from worldgen.tokenizers.quantizers.lookup import nearest_codes, nearest_neighbours

__all__ = ["CodebookQuantizer", "Normalise"]

Normalise = Literal["none", "vectors", "both"]
"""What is scaled to length 1 before the look-up: nothing, the encoder's vectors, or codes too.

With `both` the nearest code is the one of the largest cosine similarity."""


class CodebookQuantizer(Quantizer):
    """Takes the nearest code of a table; what the table is and how it learns, subclasses say."""

    normalise: Normalise = "none"

    @abstractmethod
    def codes(self) -> Float[Tensor, "code width"]:
        """Return the float32 codes of all ids, with gradients where the codes are learned so."""

    def choosable(self) -> Bool[Tensor, " code"] | None:
        """Return which codes may be chosen; None for all."""
        return None

    @abstractmethod
    def forward(self, vectors: Float[Tensor, "batch width row column"]) -> QuantizerOutput:
        """Return nearest codes, ids and loss."""

    def ids_to_vectors(
        self, ids: Int[Tensor, "batch row column"]
    ) -> Float[Tensor, "batch width row column"]:
        """Return the codes of ids."""
        with torch.autocast(ids.device.type, enabled=False):
            return rearrange(F.embedding(ids, self.codes()), "b r c width -> b width r c")

    def vectors_to_ids(
        self, codes: Float[Tensor, "batch width row column"]
    ) -> Int[Tensor, "batch row column"]:
        """Return the ids of the codes nearest to the given vectors."""
        rows, columns = codes.shape[-2:]
        with torch.autocast(codes.device.type, enabled=False):
            flat = rearrange(codes.float(), "b width r c -> (b r c) width")
            ids = nearest_codes(flat, self.codes(), allowed=self.choosable())
        return rearrange(ids, "(b r c) -> b r c", r=rows, c=columns)

    @property
    def num_neighbours(self) -> int:
        """16, or all other codes where these are fewer."""
        return min(16, self.codebook_size - 1)

    @torch.no_grad()
    def neighbours(self, ids: Int[Tensor, "*any"], count: int) -> Int[Tensor, "*any count"]:
        """Return the `count` nearest other codes, nearest first.

        Where fewer can be chosen, the list begins again.
        """
        self._check_neighbours(count, self.codebook_size - 1)
        allowed = self.choosable()
        codes = self.codes()
        # Equal ids have equal neighbours, and only a few ids occur in a batch.
        asked, place = ids.flatten().unique(return_inverse=True)
        # One more than asked for, since a code is its own nearest.
        near = nearest_neighbours(codes[asked], codes, count + 1, allowed=allowed)
        others = near != asked.unsqueeze(1)
        if allowed is not None:
            others &= allowed[near]
        # What is a neighbour moves to the front, in order; then it is repeated as far as needed.
        order = (~others).long().argsort(dim=1, stable=True)
        num_others = others.sum(1, keepdim=True).clamp(min=1)
        wanted = torch.arange(count, device=ids.device).unsqueeze(0) % num_others
        near = near.gather(1, order).gather(1, wanted)
        return near[place].reshape(*ids.shape, count)

    def _flat(self, vectors: Tensor) -> Tensor:
        flat = rearrange(vectors.float(), "b width r c -> (b r c) width")
        return flat if self.normalise == "none" else F.normalize(flat, dim=-1)

    def _nearest(self, flat: Tensor) -> Tensor:
        return nearest_codes(flat, self.codes(), allowed=self.choosable())

    @staticmethod
    def _output(
        vectors: Tensor, flat: Tensor, codes: Tensor, ids: Tensor, loss: Tensor
    ) -> QuantizerOutput:
        rows, columns = vectors.shape[-2:]
        # The value of the code, exactly, with the gradient of the encoder's vector.
        quantized = codes.detach() + (flat - flat.detach())
        return QuantizerOutput(
            quantized=rearrange(quantized, "(b r c) width -> b width r c", r=rows, c=columns),
            ids=rearrange(ids, "(b r c) -> b r c", r=rows, c=columns),
            loss=loss,
        )
