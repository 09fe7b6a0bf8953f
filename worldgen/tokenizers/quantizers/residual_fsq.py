"""Residual finite scalar quantization: each channel's level, then where inside that level."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers.base import Quantizer, QuantizerOutput
from worldgen.tokenizers.quantizers.fsq import FiniteScalarQuantizer, FSQConfig
from worldgen.tokenizers.quantizers.levels import join_levels, split_levels

__all__ = ["ResidualFSQConfig", "ResidualFiniteScalarQuantizer"]

# The bound of FSQ ends 0.1 % short of the outermost value; beyond this none would be rounded to it.
_MOST_VALUES = 1000


@dataclass(frozen=True, kw_only=True)
class ResidualFSQConfig:
    """Levels of a finite scalar quantizer that is applied several times over."""

    kind: Literal["residual_fsq"] = "residual_fsq"
    levels: tuple[int, ...]
    """Values of each channel at each level, for example (8, 5, 5, 5) for 1000 codes a level."""
    depth: int
    """Number of levels of refinement."""

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2 or self.depth < 1:
            raise ConfigError(
                f"residual_fsq needs levels of 2 or more and depth >= 1, got {self.levels} and "
                f"{self.depth}"
            )
        if max(self.levels) ** self.depth > _MOST_VALUES or prod(self.levels) ** self.depth > 2**62:
            raise ConfigError(
                f"residual_fsq has at most {_MOST_VALUES} values in a channel and 2^62 joint ids, "
                f"got levels {self.levels} with depth {self.depth}; take fewer of either"
            )


class ResidualFiniteScalarQuantizer(Quantizer):
    """Each level splits the steps of the level before into `levels` finer ones.

    Codes of a level that are 1 / levels the size of those before fill the gaps between these
    evenly, so the sums of all levels are the codes of one FSQ with `levels ** depth` values, and
    rounding to that FSQ is the best choice at all levels at once. What is left to this class is how
    the id is dealt out: the first level has the coarsest digit of every channel, the next the
    second. The joint id is a mixed-radix number of the levels, the first level fastest.

    Source: Mentzer et al. 2023, Finite Scalar Quantization (arXiv:2309.15505), section 3, for one
        level; the levels as digits are ours.
    """

    def __init__(self, config: ResidualFSQConfig) -> None:
        super().__init__()
        self.config = config
        self.width = len(config.levels)
        self._fine_values = tuple(values**config.depth for values in config.levels)
        self.fine = FiniteScalarQuantizer(FSQConfig(levels=self._fine_values))
        self.level_sizes = (prod(config.levels),) * config.depth
        self.codebook_size = prod(self.level_sizes)

    def forward(self, vectors: Float[Tensor, "batch width row column"]) -> QuantizerOutput:
        """Return codes in [-1, 1] with straight-through gradients; the loss is 0."""
        output = self.fine(vectors)
        return QuantizerOutput(
            quantized=output.quantized, ids=self._from_fine(output.ids), loss=output.loss
        )

    def ids_to_vectors(
        self, ids: Int[Tensor, "batch row column"]
    ) -> Float[Tensor, "batch width row column"]:
        """Return the codes of ids, channels in [-1, 1]."""
        return self.fine.ids_to_vectors(self._to_fine(ids))

    def vectors_to_ids(
        self, codes: Float[Tensor, "batch width row column"]
    ) -> Int[Tensor, "batch row column"]:
        """Return the ids of codes with channels in [-1, 1]."""
        return self._from_fine(self.fine.vectors_to_ids(codes))

    @property
    def num_neighbours(self) -> int:
        """Two for each channel."""
        return self.fine.num_neighbours

    def neighbours(self, ids: Int[Tensor, "*any"], count: int) -> Int[Tensor, "*any count"]:
        """Return the ids one step of the last level up or down in one channel."""
        return self._from_fine(self.fine.neighbours(self._to_fine(ids), count))

    def split_levels(self, ids: Int[Tensor, "*any"]) -> Int[Tensor, "*any level"]:
        """Return the id of each level out of joint ids."""
        return split_levels(ids, self.level_sizes)

    def join_levels(self, levels: Int[Tensor, "*any level"]) -> Int[Tensor, "*any"]:
        """Return joint ids from the id of each level."""
        return join_levels(levels, self.level_sizes)

    def _from_fine(self, ids: Tensor) -> Tensor:
        values = split_levels(ids, self._fine_values)
        digits = []
        for channel, count in enumerate(self.config.levels):
            # From the coarsest digit to the finest.
            finest_first = split_levels(values[..., channel], (count,) * self.config.depth)
            digits.append(finest_first.flip(-1))
        return self.join_levels(join_levels(torch.stack(digits, dim=-1), self.config.levels))

    def _to_fine(self, ids: Tensor) -> Tensor:
        by_level = split_levels(self.split_levels(ids), self.config.levels)
        values = [
            join_levels(by_level[..., channel].flip(-1), (count,) * self.config.depth)
            for channel, count in enumerate(self.config.levels)
        ]
        return join_levels(torch.stack(values, dim=-1), self._fine_values)
