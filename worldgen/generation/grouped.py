"""Jacobi decoding that lets an interchangeable id pass: approximate, with fewer calls."""

from dataclasses import dataclass, field
from typing import Self

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.generation.jacobi import settle
from worldgen.generation.sampling import SamplingConfig
from worldgen.models.base import FrameDraft, WorldModel
from worldgen.tokenizers.quantizers import Quantizer
from worldgen.tokenizers.visual import VisualTokenizer

__all__ = ["GroupedJacobiDecoder", "code_vectors", "group_codes"]

_ITERATIONS = 20


def code_vectors(tokenizer: VisualTokenizer) -> Float[Tensor, "codebook width"]:
    """Return the vectors that the decoder of a tokenizer gets for its ids.

    Raises:
        ConfigError: If the tokenizer has no quantizer.
    """
    quantizer = getattr(tokenizer, "quantizer", None)
    if not isinstance(quantizer, Quantizer):
        raise ConfigError(
            f"codes can be grouped where a tokenizer has a quantizer, {type(tokenizer).__name__} "
            "has none"
        )
    ids = torch.arange(quantizer.codebook_size, device=tokenizer.device)
    with torch.no_grad():
        vectors = quantizer.ids_to_vectors(rearrange(ids, "code -> 1 1 code"))
    return rearrange(vectors, "1 width 1 code -> code width").cpu()


def group_codes(vectors: Float[Tensor, "codebook width"], count: int) -> Int[Tensor, " codebook"]:
    """Return for each code the number of its cluster, in [0, count).

    Source: Lloyd's algorithm, "Least squares quantization in PCM" (1982), from centres that lie
        far from each other (Gonzalez 1985); no random numbers.

    Args:
        vectors: Of the codes.
        count: Clusters.

    Raises:
        ConfigError: If there are not so many codes.
    """
    if not 1 <= count <= len(vectors):
        raise ConfigError(
            f"{len(vectors)} codes can be put into 1 to {len(vectors)} groups, got {count}"
        )
    vectors = vectors.double()
    chosen = [int((vectors - vectors.mean(dim=0)).norm(dim=1).argmin())]
    nearest = (vectors - vectors[chosen[0]]).norm(dim=1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (vectors - vectors[chosen[-1]]).norm(dim=1))
    centres = vectors[chosen]
    group = torch.cdist(vectors, centres).argmin(dim=1)
    for _ in range(_ITERATIONS):
        sizes = torch.bincount(group, minlength=count).clamp(min=1)[:, None]
        # A centre that lost its last code stays where it is.
        means = torch.zeros_like(centres).index_add(0, group, vectors) / sizes
        empty = torch.bincount(group, minlength=count) == 0
        centres = torch.where(empty[:, None], centres, means)
        group = torch.cdist(vectors, centres).argmin(dim=1)
    return group


@dataclass(frozen=True, kw_only=True)
class GroupedJacobiDecoder:
    """Jacobi decoding that asks again only where an id of another group came out.

    Approximate: a cell may have been drawn under a guess of earlier cells whose ids were then
    replaced by others of their groups. Every id is one that the model drew; a frame is never left
    as it was because the next one is similar.

    Source: GSD (arXiv:2508.07747), with groups made once, from distances of codes. GSD forms them
        anew for each cell, from near probabilities.
    """

    group_of_code: Int[Tensor, " codebook"] = field(repr=False)
    """As made by `group_codes`."""
    count: int
    """Groups asked for."""
    sampling: SamplingConfig

    @classmethod
    def of(
        cls, vectors: Float[Tensor, "codebook width"], count: int, sampling: SamplingConfig
    ) -> Self:
        """Return the decoder on so many groups of codes.

        Raises:
            ConfigError: If there are not so many codes.
        """
        return cls(group_of_code=group_codes(vectors, count), count=count, sampling=sampling)

    @property
    def name(self) -> str:
        """`grouped:` and the number of groups."""
        return f"grouped:{self.count}"

    @property
    def order(self) -> str:
        """Near raster's."""
        return "raster"

    def draw_frame(
        self,
        model: WorldModel,
        draft: FrameDraft,
        uniforms: Float[Tensor, "batch cell"],
    ) -> Int[Tensor, "batch cell"]:
        """Return the ids of the frame; see `settle`."""
        kinds = self.group_of_code.to(model.device)
        return settle(model, draft, draft.previous_ids, uniforms, self.sampling, kind_of_code=kinds)
