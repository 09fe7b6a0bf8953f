"""Time and memory that encoding and decoding take."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldgen.tokenizers.visual import VisualTokenizer

__all__ = ["coding_speed"]

_WARM_UP, _REPEATS, _LEAST_REPEATS = 1, 7, 3
_SECONDS = 20.0


def coding_speed(
    tokenizer: VisualTokenizer, frames: Float[Tensor, "1 time 3 height width"]
) -> dict[str, Any]:
    """Return milliseconds a frame of encoding and of decoding one clip: medians, warmed up.

    Args:
        tokenizer: On its device.
        frames: In [-1, 1], on the same device.
    """
    ids = tokenizer.encode(frames)
    count = frames.shape[1]
    return {
        "frames": count,
        "encode_ms_per_frame": _median_ms(lambda: tokenizer.encode(frames)) / count,
        "decode_ms_per_frame": _median_ms(lambda: tokenizer.decode(ids)) / count,
    }


def _median_ms(run: Callable[[], Tensor]) -> float:
    """Repeat a few times, fewer where that would take long."""
    times: list[float] = []
    for number in range(_WARM_UP + _REPEATS):
        if len(times) >= _LEAST_REPEATS and sum(times) > 1000.0 * _SECONDS:
            break
        begin = time.perf_counter()
        made = run()
        if made.is_cuda:
            torch.cuda.synchronize(made.device)
        if number >= _WARM_UP:
            times.append(1000.0 * (time.perf_counter() - begin))
    return statistics.median(times)
