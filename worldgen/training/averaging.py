"""A running average of a network's weights, which is what gets evaluated and shipped."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]

_Module = TypeVar("_Module", bound=nn.Module)


class WeightAverage(Generic[_Module]):
    """Exponential moving average of parameters; buffers are copied as they are.

    The decay grows as (1 + step) / (10 + step) up to its final value, so that the average does
    not remember the random start.

    Source: Polyak and Juditsky 1992, Acceleration of Stochastic Approximation by Averaging; the
        growing decay follows TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
    """

    module: _Module
    """The averaged network, in evaluation mode."""

    def __init__(self, module: _Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: _Module, step: int) -> None:
        """Take in the weights after `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(module.parameters())
        if averages:
            torch._foreach_lerp_(averages, current, 1.0 - decay)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)
