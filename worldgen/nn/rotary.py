"""Rotary positions over several axes (frame, row, column)."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError

__all__ = ["RotaryTable", "apply_rotary", "rotary_table"]

RotaryTable = tuple[Tensor, Tensor]
"""Cosines and sines, each `[token, head_width / 2]`, or `[batch, token, head_width / 2]` where the
rows of a batch are at different places; float32."""


def rotary_table(
    positions: Int[Tensor, "*batch token coordinate"], axis_widths: Sequence[int], base: float
) -> RotaryTable:
    """Return cosines and sines of the angles by which each token's query and key are turned.

    Each axis owns `axis_widths[axis]` channels of the head, in pairs; pair `i` of an axis turns
    by `position * base ** (-2 i / width)`. Angles are formed in float64, so that frame one
    million is as exact as frame one.

    Source: RoPE, arXiv:2104.09864, equation 15; one set of frequencies per axis as in
        Heo et al., arXiv:2403.13298, section 3.

    Args:
        positions: Integer place of each token on each axis; may be negative.
        axis_widths: Even number of channels of each axis; their sum is the head width.
        base: Ratio that sets the slowest frequency.

    Raises:
        ConfigError: If a width is odd or their number is not that of the axes.
    """
    if len(axis_widths) != positions.shape[-1] or any(width % 2 for width in axis_widths):
        raise ConfigError(
            f"rotary positions with {positions.shape[-1]} axes need as many even widths, "
            f"got {tuple(axis_widths)}"
        )
    angles = [
        positions[..., axis, None].double()
        * base ** (-_evens(width, positions.device) / max(width, 1))
        for axis, width in enumerate(axis_widths)
    ]
    angle = torch.cat(angles, dim=-1)
    return angle.cos().float(), angle.sin().float()


def _evens(width: int, device: torch.device) -> Tensor:
    return torch.arange(0, width, 2, dtype=torch.float64, device=device)


def apply_rotary(
    vectors: Float[Tensor, "*leading token width"], table: RotaryTable
) -> Float[Tensor, "*leading token width"]:
    """Return vectors turned by the table; channel `i` is paired with channel `i + width / 2`.

    Args:
        vectors: Queries or keys with the token axis before the last; `[batch, head, token, width]`
            for a table with a batch.
        table: As made by `rotary_table` for the same tokens.
    """
    cosine, sine = (part.to(vectors.dtype) for part in table)
    if cosine.ndim == 3:
        cosine, sine = (
            rearrange(part, "b token half -> b 1 token half") for part in (cosine, sine)
        )
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
