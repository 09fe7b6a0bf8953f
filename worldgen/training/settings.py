"""Settings that every training has, and the check that a resumed run keeps them."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from worldgen.errors import ConfigError
from worldgen.training.optimiser import OptimiserConfig
from worldgen.training.progress import LengthConfig

__all__ = ["TrainingConfig", "bfloat16_gains", "refuse_other_settings"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train, whatever is trained."""

    length: LengthConfig
    optimiser: OptimiserConfig
    batch_size: int
    average_decay: float
    device: str
    threads: int
    """CPU threads; one is the best use of a core when other work runs beside."""
    mixed_precision: bool | None
    """bfloat16 autocast; None: where the device gains by it."""
    log_steps: int
    validation_minutes: float
    validation_frames: int
    checkpoint_minutes: float

    @property
    def autocast(self) -> torch.autocast:
        """Return the context in which the networks run; may be entered again and again."""
        device = torch.device(self.device)
        wanted = self.mixed_precision
        return torch.autocast(
            device.type,
            torch.bfloat16,
            enabled=bfloat16_gains(device) if wanted is None else wanted,
        )


def bfloat16_gains(device: torch.device) -> bool:
    """Return whether matrix products run faster in bfloat16 than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and _processor_gains()


@cache
def _processor_gains() -> bool:
    # Without instructions for it, bfloat16 is emulated, several times slower than float32.
    ask: Callable[[], Mapping[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    if not any(ask().get(name) is True for name in ("avx512_bf16", "amx_bf16")):
        return False
    # With them, a product took 0.4 times as long on one server processor and 1.6 times as long
    # on another; so it is tried. Either is far enough from the bound for the answer to stay.
    single, half = (_shortest_product(dtype) for dtype in (torch.float32, torch.bfloat16))
    return half < 0.8 * single


def _shortest_product(dtype: torch.dtype) -> float:
    left, right = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def refuse_other_settings(before: dict[str, Any], now: dict[str, Any], checkpoint: Path) -> None:
    """Check that a run is resumed with the settings it was begun with.

    Raises:
        ConfigError: Naming the settings that differ.
    """
    # Through JSON, since that is how the settings before have come: tuples are lists there.
    plain = json.loads(json.dumps(now))
    names = [*plain, *(name for name in before if name not in plain)]
    different = [name for name in names if before.get(name) != plain.get(name)]
    if different:
        raise ConfigError(
            f"{checkpoint} was made with other settings of {', '.join(different)}; "
            f"resume=false starts anew in this folder, run_folder=... elsewhere"
        )
