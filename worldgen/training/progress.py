"""How far a training is: its length in steps or minutes, and a bar that says so."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from tqdm import tqdm

from worldgen.errors import ConfigError

__all__ = ["Clock", "LengthConfig", "ProgressBar"]


@dataclass(frozen=True, kw_only=True)
class LengthConfig:
    """How long to train.

    Bound by steps, a run is repeatable bit for bit. Bound by minutes too, it ends when either
    is reached, and the learning rate follows whichever is nearer its end, so a slow or busy
    machine still finishes its cosine.
    """

    steps: int
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.max_minutes is not None and self.max_minutes <= 0):
            raise ConfigError(
                f"a training needs steps >= 1 and max_minutes > 0 or none, got {self.steps} "
                f"and {self.max_minutes}"
            )

    def progress(self, step: int, elapsed_seconds: float) -> float:
        """Return the share of the training that is done, in [0, 1]."""
        share = step / self.steps
        if self.max_minutes is not None:
            share = max(share, elapsed_seconds / (60.0 * self.max_minutes))
        return min(share, 1.0)


class Clock:
    """Seconds spent training, across resumed runs."""

    def __init__(self, elapsed_seconds: float = 0.0) -> None:
        self._start = time.monotonic() - elapsed_seconds

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the first start, pauses left out."""
        return time.monotonic() - self._start


class ProgressBar:
    """A bar in per cent with time spent and time left, and the figures of the moment."""

    def __init__(self, description: str, progress: float = 0.0) -> None:
        self._bar = tqdm(
            total=100.0,
            initial=100.0 * progress,
            desc=description,
            mininterval=1.0,
            bar_format="{desc} {percentage:5.1f}% |{bar:24}| {elapsed}<{remaining} {postfix}",
        )

    def show(self, progress: float, figures: Mapping[str, str]) -> None:
        """Move the bar to a share in [0, 1]."""
        self._bar.set_postfix_str("  ".join(f"{name} {text}" for name, text in figures.items()))
        self._bar.update(100.0 * progress - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is and end its line."""
        self._bar.close()
