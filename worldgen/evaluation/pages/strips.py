"""Film strips of the best, the median and the worst clip, and of a few spread between."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from worldgen.evaluation.pages.film_strip import draw_film_strip
from worldgen.evaluation.prediction import frame_quality

__all__ = ["Strip", "rollout_strips"]

_RANKED_STEPS = 16
_SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One film strip of a report."""

    title: str
    picture: Image.Image

    def to_json(self) -> dict[str, Any]:
        """Return title and PNG in base64."""
        buffer = io.BytesIO()
        self.picture.save(buffer, "PNG", optimize=True)
        return {"title": self.title, "png": base64.b64encode(buffer.getvalue()).decode("ascii")}


def rollout_strips(
    *,
    truth: UInt8[np.ndarray, "clip step height width 3"],
    generated: UInt8[np.ndarray, "clip step height width 3"],
    reconstruction: UInt8[np.ndarray, "clip step height width 3"],
) -> list[Strip]:
    """Return strips of the best, the median and the worst clip by mean PSNR over 16 steps.

    Args:
        truth: Real frames after the context.
        generated: Frames dreamt under the same actions.
        reconstruction: The tokenizer's reconstruction of the truth.
    """
    steps = min(_RANKED_STEPS, truth.shape[1])
    quality = frame_quality(generated[:, :steps], truth[:, :steps]).psnr.mean(axis=1)
    order = np.argsort(-quality, kind="stable")
    shown = [step for step in _SHOWN if step <= truth.shape[1]]
    frames = np.array(shown) - 1
    picks = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return [
        Strip(
            title=f"{name} clip (number {clip}, {quality[clip]:.1f} dB over {steps} steps)",
            picture=draw_film_strip(
                {
                    "truth": truth[clip][frames],
                    "tokenizer": reconstruction[clip][frames],
                    "dream": generated[clip][frames],
                },
                labels=[str(step) for step in shown],
                scale=max(1, 96 // truth.shape[2]),
            ),
        )
        for name, clip in picks.items()
    ]
