"""Finite scalar quantization: each channel is rounded to a few levels, no codebook to learn."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers.base import Quantizer, QuantizerOutput

__all__ = ["FSQConfig", "FiniteScalarQuantizer"]


@dataclass(frozen=True, kw_only=True)
class FSQConfig:
    """Levels of a finite scalar quantizer."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...]
    """Values of each channel, for example (8, 5, 5, 5) for 1000 codes; the paper advises >= 5."""

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ConfigError(f"fsq levels must all be 2 or more, got {self.levels}")


class FiniteScalarQuantizer(Quantizer):
    """Bounds each channel with tanh, rounds it to one of its levels, passes gradients straight on.

    Ids are mixed-radix numbers, the first channel fastest. Codes lie in [-1, 1].

    Source: Mentzer et al. 2023, Finite Scalar Quantization (arXiv:2309.15505), section 3 and
        appendix A.1 (the half-step shift for even numbers of levels).
    """

    levels: Tensor
    radix: Tensor

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        self.config = config
        self.width = len(config.levels)
        self.codebook_size = prod(config.levels)
        radix = [prod(config.levels[:channel]) for channel in range(self.width)]
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("radix", torch.tensor(radix), persistent=False)

    def forward(self, vectors: Float[Tensor, "batch width row column"]) -> QuantizerOutput:
        """Return codes in [-1, 1] with straight-through gradients; the loss is 0."""
        bounded = self._bound(rearrange(vectors.float(), "b width r c -> b r c width"))
        rounded = bounded.round()
        ids = self._to_ids(rounded)
        # The value of the level, exactly, with the gradient of the bounded vector.
        codes = (rounded + (bounded - bounded.detach())) / self._half_width
        return QuantizerOutput(
            quantized=rearrange(codes, "b r c width -> b width r c"),
            ids=ids,
            loss=vectors.new_zeros((), dtype=torch.float32),
        )

    def ids_to_vectors(
        self, ids: Int[Tensor, "batch row column"]
    ) -> Float[Tensor, "batch width row column"]:
        """Return the codes of ids, channels in [-1, 1]."""
        digits = (ids.unsqueeze(-1) // self.radix) % self.levels
        codes = (digits - self._half_width) / self._half_width
        return rearrange(codes, "b r c width -> b width r c")

    def vectors_to_ids(
        self, codes: Float[Tensor, "batch width row column"]
    ) -> Int[Tensor, "batch row column"]:
        """Return the ids of codes with channels in [-1, 1]."""
        return self._to_ids(
            (rearrange(codes, "b width r c -> b r c width") * self._half_width).round()
        )

    @property
    def num_neighbours(self) -> int:
        """Two for each channel."""
        return 2 * self.width

    def neighbours(self, ids: Int[Tensor, "*any"], count: int) -> Int[Tensor, "*any count"]:
        """Return the ids one level up or down in one channel, the shortest steps first.

        At the end of a channel, where one of the two steps leads nowhere, the other stands twice.
        """
        self._check_neighbours(count, self.num_neighbours)
        # A step is as short as the channel has levels; of equal ones the first channel's first.
        channels = self.levels.argsort(descending=True, stable=True)
        digits = ((ids.unsqueeze(-1) // self.radix) % self.levels)[..., channels]
        top = self.levels[channels] - 1
        up = torch.where(digits < top, 1, -1)
        down = torch.where(digits > 0, -1, 1)
        steps = torch.stack([up, down], dim=-1) * self.radix[channels].unsqueeze(-1)
        return ids.unsqueeze(-1) + steps.flatten(-2)[..., :count]

    @property
    def _half_width(self) -> Tensor:
        return torch.div(self.levels, 2, rounding_mode="floor").float()

    def _bound(self, vectors: Tensor) -> Tensor:
        # Slightly under half the range, so that tanh near its ends still rounds to a level.
        half_range = (self.levels - 1) * (1 - 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = (offset / half_range).atanh()
        return (vectors + shift).tanh() * half_range - offset

    def _to_ids(self, rounded: Tensor) -> Tensor:
        digits = (rounded + self._half_width).long()
        return (digits * self.radix).sum(-1)
