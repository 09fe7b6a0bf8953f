"""Several ids as one: mixed-radix numbers, the first digit fastest."""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["join_levels", "split_levels"]


def split_levels(ids: Int[Tensor, "*any"], sizes: Sequence[int]) -> Int[Tensor, "*any level"]:
    """Return the digits of joint ids.

    Args:
        ids: int64 in [0, product of sizes).
        sizes: Number of values of each digit, the fastest first; their product at most 2^62.
    """
    return torch.stack(
        [(ids // prod(sizes[:level])) % size for level, size in enumerate(sizes)], dim=-1
    )


def join_levels(levels: Int[Tensor, "*any level"], sizes: Sequence[int]) -> Int[Tensor, "*any"]:
    """Return the int64 joint ids of digits; the inverse of `split_levels`."""
    places = [prod(sizes[:level]) for level in range(len(sizes))]
    return (levels * torch.tensor(places, device=levels.device)).sum(-1)
