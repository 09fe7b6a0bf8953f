"""Reconstruction losses of the visual tokenizers."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError

__all__ = ["ReconstructionLossConfig", "choose_frames", "reconstruction_losses"]


@dataclass(frozen=True, kw_only=True)
class ReconstructionLossConfig:
    """Weights of the terms; a weight of 0 leaves its term out."""

    absolute: float = 1.0
    """Mean absolute error."""
    squared: float = 1.0
    """Mean squared error; what PSNR measures."""
    worst: float = 0.0
    """Mean absolute error of the worst pixels of each frame, which keeps small things alive."""
    worst_share: float = 0.03
    """Share of the pixels of a frame that counts as worst."""
    gradient: float = 0.0
    """Mean absolute error of the differences between neighbouring pixels; keeps edges."""

    def __post_init__(self) -> None:
        if min(self.absolute, self.squared, self.worst, self.gradient) < 0:
            raise ConfigError(f"loss weights must not be negative, got {self}")
        if not 0 < self.worst_share <= 1:
            raise ConfigError(f"worst_share must lie in (0, 1], got {self.worst_share}")


def reconstruction_losses(
    reconstruction: Float[Tensor, "batch time 3 height width"],
    frames: Float[Tensor, "batch time 3 height width"],
    config: ReconstructionLossConfig,
) -> dict[str, Float[Tensor, ""]]:
    """Return the weighted terms by name; their sum is the loss.

    Args:
        reconstruction: float, meant for [-1, 1].
        frames: float in [-1, 1].
        config: Weights.
    """
    difference = reconstruction - frames
    error = difference.abs()
    terms: dict[str, Tensor] = {}
    if config.absolute:
        terms["absolute"] = config.absolute * error.mean()
    if config.squared:
        terms["squared"] = config.squared * difference.square().mean()
    if config.worst:
        pixels = rearrange(error.mean(dim=2), "b t h w -> (b t) (h w)")
        count = max(1, round(config.worst_share * pixels.shape[1]))
        terms["worst"] = config.worst * pixels.topk(count, dim=1, sorted=False).values.mean()
    if config.gradient:
        down = difference.diff(dim=-2).abs().mean()
        across = difference.diff(dim=-1).abs().mean()
        terms["gradient"] = config.gradient * (down + across)
    return terms


def choose_frames(
    clips: Float[Tensor, "batch time 3 height width"], places: Int[Tensor, "batch chosen"]
) -> Float[Tensor, "batch chosen 3 height width"]:
    """Return some frames of each clip, for terms that look at single frames.

    Args:
        clips: Recorded or rebuilt frames; both sides of a term take the same places.
        places: int64 in [0, time), of each clip's own frames.
    """
    clip = torch.arange(clips.shape[0], device=clips.device)
    return clips[rearrange(clip, "b -> b 1"), places]
