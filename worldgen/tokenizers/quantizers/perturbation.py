"""Codes replaced by near ones, as a world model that samples replaces them by mistake."""

import torch
from jaxtyping import Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers.base import Quantizer

__all__ = ["perturb"]


def perturb(
    ids: Int[Tensor, "*any"],
    quantizer: Quantizer,
    share: float,
    generator: torch.Generator,
    *,
    count: int | None = None,
) -> Int[Tensor, "*any"]:
    """Return ids of which a share is replaced, each by one of its near neighbours.

    Decoders trained on perturbed codes forgive errors of sampling; the loss of quality under them
    tells how well a tokenizer serves a world model.

    Args:
        ids: int64 in [0, codebook_size), any shape; stays as it is.
        quantizer: Says which codes are near.
        share: Part of the ids to replace, in [0, 1]; rounded to a whole number of them.
        generator: Where places and neighbours are drawn; its device may differ from that of ids.
        count: Neighbours of each code of which one is drawn, all alike; by default as many as the
            scheme calls near.

    Raises:
        ConfigError: If the share lies outside [0, 1] or the scheme has not so many neighbours.

    Source: Qiu et al. 2025, Image Tokenizer Needs Post-Training (arXiv:2509.12474), on RobusTok,
        its latent perturbation: `share` is the perturbation rate, `count` the strength.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share of perturbed codes must lie in [0, 1], got {share}")
    count = quantizer.num_neighbours if count is None else count
    flat = ids.flatten().clone()
    number = round(share * flat.numel())
    order = torch.randperm(flat.numel(), generator=generator, device=generator.device)
    places = order[:number].to(ids.device)
    near = quantizer.neighbours(flat[places], count)
    ranks = torch.randint(count, (number, 1), generator=generator, device=generator.device)
    flat[places] = near.gather(1, ranks.to(ids.device)).squeeze(1)
    return flat.reshape(ids.shape)
