"""From logits and uniform numbers to ids."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError

__all__ = ["SamplingConfig", "distribution", "draw", "keep_largest"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How ids are drawn from logits."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely id."""
    top_k: int | None = None
    """Keep this many of the most likely ids, and those as likely as the last of them; none keeps
    all."""
    top_p: float = 1.0
    """Keep the smallest set of ids whose probability, after the temperature and among those that
    `top_k` leaves, reaches this; where `min_p` is given too, both must keep an id."""
    min_p: float = 0.0
    """Keep ids that are at least this times as likely as the most likely one, after the
    temperature."""
    guidance: float = 0.0
    """How far logits are led away from those under no action; 0 asks the model once, anything else
    asks it about both in one batch."""
    text_guidance: float = 0.0
    """How far logits are led away from those under no text; 0 asks the model once, anything else
    asks it about both in one batch. Only where the world's model reads text."""
    context_noise: int = 0
    """How spoilt a model with noise levels is told that frames are which it drew itself; 0: clean,
    as given ones are."""
    last_temperature: float | None = None
    """Temperature of the last cell in raster numbering; those before go there evenly from
    `temperature`. None: all cells have the same."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature must be 0 or more and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1 or none, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise ConfigError(f"min_p must be 0 to 1, got {self.min_p}")
        if not 0.0 <= self.guidance < math.inf:
            raise ConfigError(f"guidance must be 0 or more and finite, got {self.guidance}")
        if not 0.0 <= self.text_guidance < math.inf:
            raise ConfigError(
                f"text_guidance must be 0 or more and finite, got {self.text_guidance}"
            )
        if self.context_noise < 0:
            raise ConfigError(
                f"context_noise must be 0 or a higher noise level, got {self.context_noise}"
            )
        last = self.last_temperature
        if last is not None and not (0.0 < last < math.inf and self.temperature > 0.0):
            raise ConfigError(
                f"last_temperature needs it and temperature above 0 and finite, got {last} and "
                f"{self.temperature}"
            )


def draw(
    logits: Float[Tensor, "*leading codebook"],
    uniforms: Float[Tensor, "*leading"],
    config: SamplingConfig,
) -> Int[Tensor, "*leading"]:
    """Return one id per position by inversion of the cumulative distribution.

    Args:
        logits: Unnormalised log probabilities.
        uniforms: Numbers in [0, 1), one per position; unused at temperature 0.
        config: What is kept, and how sharply it is told apart.
    """
    if config.temperature == 0.0:
        return logits.argmax(dim=-1)
    cumulative = distribution(logits, config).cumsum(dim=-1)
    # The last sum may fall short of one by rounding or by the nucleus; scaling keeps every draw
    # inside.
    targets = uniforms.to(cumulative)[..., None] * cumulative[..., -1:]
    ids = torch.searchsorted(cumulative, targets, right=True)[..., 0]
    return ids.clamp(max=logits.shape[-1] - 1)


def distribution(
    logits: Float[Tensor, "*leading codebook"], config: SamplingConfig
) -> Float[Tensor, "*leading codebook"]:
    """Return float64 probabilities up to a factor; zero for ids that are not kept.

    Args:
        logits: Unnormalised log probabilities; those of minus infinity are never kept.
        config: Temperature, above 0, and what is kept.
    """
    # The temperature changes no order, so the largest are found before rounding could merge them.
    if config.top_k is not None:
        logits = keep_largest(logits, config.top_k)
    # Differences to the largest stay in range at every temperature; the logits might not.
    below = logits.double() - logits.amax(dim=-1, keepdim=True).double()
    probabilities = (below / config.temperature).softmax(dim=-1)
    if config.min_p > 0.0:
        # Source: arXiv:2407.01082, section 3.
        least = config.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.where(probabilities >= least, 0.0)
    return _nucleus(probabilities, config.top_p) if config.top_p < 1.0 else probabilities


def keep_largest(
    logits: Float[Tensor, "*leading codebook"], top_k: int
) -> Float[Tensor, "*leading codebook"]:
    """Return logits with all but the `top_k` largest at minus infinity; those equal stay too.

    Source: Fan et al., arXiv:1805.04833, section 5.4.
    """
    if top_k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero what lies outside the nucleus; source: Holtzman et al., arXiv:1904.09751, section 3.1."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probabilities).scatter(
        -1, order, torch.where(before < top_p, ordered, 0.0)
    )
