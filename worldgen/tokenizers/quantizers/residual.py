"""Residual quantization: each level quantizes what the levels before it left over."""

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers.base import Quantizer, QuantizerOutput
from worldgen.tokenizers.quantizers.levels import join_levels, split_levels
from worldgen.tokenizers.quantizers.lfq import LFQConfig, LookupFreeQuantizer
from worldgen.tokenizers.quantizers.simvq import SimVectorQuantizer, SimVQConfig
from worldgen.tokenizers.quantizers.vq import VectorQuantizer, VQConfig
from worldgen.tokenizers.quantizers.vq_gradient import GradientVectorQuantizer, GradientVQConfig

__all__ = ["ResidualConfig", "ResidualQuantizer"]

# Sums of codes kept at each level while ids of a given sum are sought.
_BEAM = 8


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """A scheme that is applied several times over.

    For FSQ there is `residual_fsq`. BSQ and vectors scaled to length 1 leave no residual that means
    anything, and are refused.
    """

    kind: Literal["residual"] = "residual"
    inner: VQConfig | GradientVQConfig | SimVQConfig | LFQConfig
    """What quantizes at each level; levels share no weights, and their seeds count up."""
    depth: int
    """Number of levels."""
    shrink: float = 1.0
    """Size of each level's codes relative to those of the level before; 0.5 for LFQ, whose codes
    are of one size, so that levels halve the interval."""

    def __post_init__(self) -> None:
        if self.depth < 1 or not 0 < self.shrink <= 1:
            raise ConfigError(
                "residual needs depth >= 1 and shrink in (0, 1], got "
                f"{self.depth} and {self.shrink}"
            )
        if getattr(self.inner, "normalise", "none") != "none":
            raise ConfigError(
                "residual needs an inner quantizer with normalise 'none': what is left over has "
                "no length to be divided out"
            )


class ResidualQuantizer(Quantizer):
    """The sum of one code of each level; the id is a mixed-radix number, the first level fastest.

    Loss and code usage: the mean of the levels' losses; `split_levels` of the ids gives each
    level's own ids, whose usage says more than that of the joint ids.

    Source: Lee et al. 2022, Autoregressive Image Generation using Residual Quantization
        (arXiv:2203.01941), section 3.1; Zeghidour et al. 2021, SoundStream (arXiv:2107.03312),
        section 3.3.
    """

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList(
            _build_inner(config.inner, level) for level in range(config.depth)
        )
        self.level_sizes = tuple(level.codebook_size for level in self._levels)
        self.width = self._levels[0].width
        self.codebook_size = prod(self.level_sizes)
        if self.codebook_size > 2**62:
            raise ConfigError(
                f"residual levels of {self.level_sizes} codes have more than 2^62 joint ids; "
                "take fewer or smaller levels"
            )

    def forward(self, vectors: Float[Tensor, "batch width row column"]) -> QuantizerOutput:
        """Return the sum of the levels' codes, joint ids, and the mean of the levels' losses."""
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            total = torch.zeros_like(vectors, requires_grad=False)
            loss = vectors.new_zeros(())
            ids = []
            for level, scale in zip(self._levels, self._scales, strict=True):
                output = level((vectors - total) / scale)
                total = total + output.quantized.detach() * scale
                loss = loss + output.loss
                ids.append(output.ids)
        return QuantizerOutput(
            # The value of the code, exactly, with the gradient of the encoder's vector.
            quantized=total + (vectors - vectors.detach()),
            ids=self.join_levels(torch.stack(ids, dim=-1)),
            loss=loss / len(ids),
        )

    def ids_to_vectors(
        self, ids: Int[Tensor, "batch row column"]
    ) -> Float[Tensor, "batch width row column"]:
        """Return the sums of the levels' codes."""
        return self.prefix_vectors(ids, len(self.level_sizes))

    def prefix_vectors(
        self, ids: Int[Tensor, "batch row column"], num_levels: int
    ) -> Float[Tensor, "batch width row column"]:
        """Return the sums of the codes of the first levels alone: a coarser picture of the same.

        Raises:
            ConfigError: If there are not so many levels.
        """
        if not 1 <= num_levels <= len(self.level_sizes):
            raise ConfigError(
                f"num_levels must lie in [1, {len(self.level_sizes)}], got {num_levels}"
            )
        parts = self.split_levels(ids).unbind(-1)[:num_levels]
        total = ids.new_zeros((), dtype=torch.float32)
        for part, level, scale in zip(parts, self._levels, self._scales, strict=False):
            total = total + level.ids_to_vectors(part) * scale
        return total

    @torch.no_grad()
    def vectors_to_ids(
        self, codes: Float[Tensor, "batch width row column"]
    ) -> Int[Tensor, "batch row column"]:
        """Return ids whose code lies nearest to the given vectors, as far as a search finds them.

        Different sums can meet in one place, and the first level of a sum need not be its nearest
        code. At each level the nearest code and its neighbours are tried, and the best 8 sums are
        followed on. Ids are exact inverses where levels are of clearly different size.
        """
        batch, _, rows, columns = codes.shape
        left = rearrange(codes.float(), "b width r c -> (b r c) 1 width")
        chosen = torch.zeros(len(left), 1, 0, dtype=torch.int64, device=codes.device)
        for level, scale in zip(self._levels, self._scales, strict=True):
            nearest = level.vectors_to_ids(
                rearrange(left / scale, "n beam width -> n width beam 1")
            )
            near = level.neighbours(nearest, min(_BEAM - 1, level.num_neighbours))
            tried = rearrange(
                torch.cat([nearest.unsqueeze(-1), near], dim=-1), "n beam 1 trial -> n beam trial"
            )
            parts = rearrange(
                level.ids_to_vectors(tried), "n width beam trial -> n beam trial width"
            )
            left = rearrange(
                left.unsqueeze(2) - parts * scale, "n beam trial width -> n (beam trial) width"
            )
            chosen = chosen.unsqueeze(2).expand(-1, -1, tried.shape[2], -1)
            chosen = rearrange(
                torch.cat([chosen, tried.unsqueeze(-1)], dim=-1),
                "n beam trial level -> n (beam trial) level",
            )
            errors = left.square().sum(-1)
            # Sorted stably, so that of two equal sums the one met first stays.
            best = errors.argsort(dim=1, stable=True)[:, :_BEAM].unsqueeze(-1)
            left = left.gather(1, best.expand(-1, -1, left.shape[-1]))
            chosen = chosen.gather(1, best.expand(-1, -1, chosen.shape[-1]))
        ids = self.join_levels(chosen[:, 0])
        return rearrange(ids, "(b r c) -> b r c", b=batch, r=rows, c=columns)

    @property
    def num_neighbours(self) -> int:
        """As many as the last level has."""
        return self._levels[-1].num_neighbours

    def neighbours(self, ids: Int[Tensor, "*any"], count: int) -> Int[Tensor, "*any count"]:
        """Return the ids with the last level's id replaced by one of its neighbours."""
        *before, last = self.split_levels(ids).unbind(-1)
        near = self._levels[-1].neighbours(last, count)
        kept = [part.unsqueeze(-1).expand_as(near) for part in before]
        return self.join_levels(torch.stack([*kept, near], dim=-1))

    def split_levels(self, ids: Int[Tensor, "*any"]) -> Int[Tensor, "*any level"]:
        """Return the id of each level out of joint ids."""
        return split_levels(ids, self.level_sizes)

    def join_levels(self, levels: Int[Tensor, "*any level"]) -> Int[Tensor, "*any"]:
        """Return joint ids from the id of each level."""
        return join_levels(levels, self.level_sizes)

    @property
    def _levels(self) -> list[Quantizer]:
        return [level for level in self.levels if isinstance(level, Quantizer)]

    @property
    def _scales(self) -> list[float]:
        return [self.config.shrink**level for level in range(self.config.depth)]


def _build_inner(
    config: VQConfig | GradientVQConfig | SimVQConfig | LFQConfig, level: int
) -> Quantizer:
    match config:
        case VQConfig():
            return VectorQuantizer(replace(config, seed=config.seed + level))
        case GradientVQConfig():
            return GradientVectorQuantizer(replace(config, seed=config.seed + level))
        case SimVQConfig():
            return SimVectorQuantizer(replace(config, seed=config.seed + level))
        case LFQConfig():
            return LookupFreeQuantizer(config)
