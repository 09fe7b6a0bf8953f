"""AdamW with parameter groups, and the learning rate as a function of progress."""

from dataclasses import dataclass
from math import cos, pi

import torch
from torch import nn

from worldgen.errors import ConfigError

__all__ = ["OptimiserConfig", "build_optimiser", "learning_rate", "set_learning_rate"]


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW, linear warm-up, cosine decay."""

    learning_rate: float
    """Highest rate, reached at the end of the warm-up."""
    final_share: float = 0.02
    """Rate at the end of training as a share of the highest."""
    warmup_share: float = 0.02
    """Share of the training spent warming up."""
    weight_decay: float = 0.01
    """Applied to matrices and kernels, not to biases, gains and other vectors."""
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 1.0
    """Largest norm of the gradient of all parameters together."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.gradient_clip <= 0:
            raise ConfigError(
                f"learning_rate and gradient_clip must be positive, got {self.learning_rate} "
                f"and {self.gradient_clip}"
            )
        if not 0 <= self.warmup_share < 1 or not 0 <= self.final_share <= 1:
            raise ConfigError(
                f"warmup_share must lie in [0, 1) and final_share in [0, 1], got "
                f"{self.warmup_share} and {self.final_share}"
            )


def build_optimiser(module: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; vectors are exempt from weight decay.

    Source: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization (arXiv:1711.05101).
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim > 1]
    exempt = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
    )


def learning_rate(config: OptimiserConfig, progress: float) -> float:
    """Return the rate at a share of the training in [0, 1]: linear warm-up, then half a cosine."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup_share:
        return config.learning_rate * progress / config.warmup_share
    decayed = (progress - config.warmup_share) / (1.0 - config.warmup_share)
    share = config.final_share + (1.0 - config.final_share) * 0.5 * (1.0 + cos(pi * decayed))
    return config.learning_rate * share


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group."""
    for group in optimiser.param_groups:
        group["lr"] = rate
