"""Ctrl-C and NaN: the two ways in which a training stops early without losing its work."""

import signal
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Self

import torch
from torch import Tensor

from worldgen.errors import WorldgenError

__all__ = ["DivergedError", "Interruption", "refuse_non_finite"]


class DivergedError(WorldgenError, ArithmeticError):
    """A loss or a gradient is no longer a finite number; the last checkpoint is still good."""


class Interruption:
    """Turns Ctrl-C and SIGTERM into a flag, so that the step under way ends and is saved.

    A second Ctrl-C stops at once.

    Example:
        with Interruption() as interruption:
            for step in range(steps):
                ...
                if interruption.requested:
                    break
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in self._SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal itself returned

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def refuse_non_finite(figures: Mapping[str, Tensor], step: int) -> None:
    """Check that every scalar is finite.

    Raises:
        DivergedError: Naming the first that is not, and the step.
    """
    values = torch.stack([figure.detach().float() for figure in figures.values()])
    if bool(torch.isfinite(values).all()):
        return
    name, value = next(
        (name, float(figure.detach()))
        for name, figure in figures.items()
        if not bool(torch.isfinite(figure))
    )
    raise DivergedError(
        f"{name!r} is {value} at step {step}; the last checkpoint is kept. Lower the learning "
        f"rate, or look for broken frames in the recording, then start again"
    )
