"""From logits and uniform numbers to ids."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError

__all__ = ["SamplingConfig", "distribution", "draw"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How ids are drawn from logits."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely id."""
    top_p: float = 1.0
    """Keep the smallest set of ids whose probability, after the temperature, reaches this."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise ConfigError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")


def draw(
    logits: Float[Tensor, "*leading codebook"],
    uniforms: Float[Tensor, "*leading"],
    config: SamplingConfig,
) -> Int[Tensor, "*leading"]:
    """Return one id per position by inversion of the cumulative distribution.

    Args:
        logits: Unnormalised log probabilities.
        uniforms: Numbers in [0, 1), one per position; unused at temperature 0.
        config: Temperature and nucleus.
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
    """Return float64 probabilities up to a factor; zero outside the nucleus.

    Args:
        logits: Unnormalised log probabilities.
        config: Temperature, above 0, and nucleus.
    """
    probabilities = (logits.double() / config.temperature).softmax(dim=-1)
    return _nucleus(probabilities, config.top_p) if config.top_p < 1.0 else probabilities


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero what lies outside the nucleus; source: Holtzman et al., arXiv:1904.09751, section 3.1."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probabilities).scatter(
        -1, order, torch.where(before < top_p, ordered, 0.0)
    )
