"""How close generated clips come to the truth, picture by picture and token by token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from worldgen.evaluation.measures import best_shift, scrolled_in, shifted, token_accuracy
from worldgen.nn.image_quality import psnr, ssim
from worldgen.records import to_float

__all__ = ["FrameQuality", "changed_tokens", "frame_quality", "rollout_quality"]

STEPS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class FrameQuality:
    """Likeness of each frame of each clip to the truth."""

    psnr: Float[np.ndarray, "clip step"]
    """In dB, at most 100."""
    ssim: Float[np.ndarray, "clip step"]


def frame_quality(
    frames: UInt8[np.ndarray, "clip step height width 3"],
    truth: UInt8[np.ndarray, "clip step height width 3"],
) -> FrameQuality:
    """Return PSNR and SSIM of every frame.

    Args:
        frames: uint8 in [0, 255].
        truth: Same shape.
    """
    quality, similarity = [], []
    for clip, true_clip in zip(frames, truth, strict=True):
        pictures, true = (
            to_float(torch.from_numpy(np.ascontiguousarray(each))) for each in (clip, true_clip)
        )
        quality.append(psnr(pictures, true).numpy())
        similarity.append(ssim(pictures, true).numpy())
    return FrameQuality(psnr=np.stack(quality), ssim=np.stack(similarity))


def rollout_quality(
    qualities: Mapping[str, FrameQuality], changed: Bool[np.ndarray, "clip step"]
) -> dict[str, Any]:
    """Return the means over clips of every step, and the gain over repeating, as JSON holds them.

    Args:
        qualities: `generated`, `repeat_last_frame` and `tokenizer_reconstruction`.
        changed: Where the true frame differs from the last frame of the context at all.
    """
    horizon = qualities["generated"].psnr.shape[1]
    steps = [step for step in STEPS if step <= horizon]
    means = {
        measure: {
            name: getattr(quality, measure).mean(axis=0) for name, quality in qualities.items()
        }
        for measure in ("psnr", "ssim")
    }
    gain = qualities["generated"].psnr - qualities["repeat_last_frame"].psnr
    error = {
        name: (10.0 ** (-qualities[name].psnr / 10.0)).mean(axis=0)
        for name in ("generated", "repeat_last_frame")
    }
    pooled = 10.0 * np.log10(error["repeat_last_frame"] / error["generated"])
    return {
        "steps": steps,
        **{
            measure: {name: [float(values[s - 1]) for s in steps] for name, values in rows.items()}
            for measure, rows in means.items()
        },
        "gain_db": [float(gain[:, step - 1].mean()) for step in steps],
        "psnr_on_changed_frames": {
            name: [_mean(quality.psnr[:, s - 1][changed[:, s - 1]]) for s in steps]
            for name, quality in qualities.items()
        },
        "gain_db_on_changed_frames": [_mean(gain[:, s - 1][changed[:, s - 1]]) for s in steps],
        "changed_frames": [int(changed[:, step - 1].sum()) for step in steps],
        # Where the truth stands still, repeating is perfect and counts 100 dB; the mean error of
        # all clips does not let a few such clips decide.
        "gain_db_of_mean_error": [float(pooled[step - 1]) for step in steps],
        "clips_better_than_repeating": [float((gain[:, step - 1] > 0).mean()) for step in steps],
        "every_step": {
            measure: {name: [round(float(v), 4) for v in values] for name, values in rows.items()}
            for measure, rows in means.items()
        },
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def changed_tokens(
    predicted: Int[np.ndarray, "clip step row column"],
    true: Int[np.ndarray, "clip time row column"],
    *,
    static_rows: int,
) -> dict[str, Any]:
    """Return one-step accuracy on tokens that change, beside copying and the best shift.

    Frame t of `predicted` was drawn after the true frames up to t of the last `step + 1` frames.
    Cells that scroll in from outside, as the best whole-frame shift of the truth tells, count
    apart: no model can know what was never in view.

    Args:
        predicted: Tokens drawn one step ahead.
        true: Tokens of the true frames; the last `step` of them are predicted.
        static_rows: Rows at the bottom (dashboard, inventory) that never scroll.
    """
    steps = predicted.shape[1]
    before, after = true[:, -steps - 1 : -1], true[:, -steps:]
    changed = before != after
    entered = np.zeros_like(changed)
    by_shift = before.copy()
    for place in np.ndindex(before.shape[:2]):
        shift = best_shift(before[place], after[place], static_rows=static_rows)
        if shift == (0, 0):
            continue
        entered[place] = scrolled_in(before.shape[2:], shift, static_rows=static_rows)
        scrolling = slice(0, before.shape[2] - static_rows)
        moved = shifted(before[place][scrolling], *shift)
        by_shift[place][scrolling] = np.where(moved >= 0, moved, before[place][scrolling])
    return {
        "frames": int(np.prod(before.shape[:2])),
        "changed": _row(predicted, by_shift, before, after, changed & ~entered),
        "scrolled_in": _row(predicted, by_shift, before, after, changed & entered),
        "unchanged": _row(predicted, by_shift, before, after, ~changed),
        "all": _row(predicted, by_shift, before, after, np.ones_like(changed)),
    }


def _row(
    predicted: Int[np.ndarray, "clip step row column"],
    by_shift: Int[np.ndarray, "clip step row column"],
    before: Int[np.ndarray, "clip step row column"],
    after: Int[np.ndarray, "clip step row column"],
    where: Bool[np.ndarray, "clip step row column"],
) -> dict[str, Any]:
    return {
        "tokens": int(where.sum()),
        "generated": token_accuracy(predicted, after, where),
        "copying": token_accuracy(before, after, where),
        "best_shift": token_accuracy(by_shift, after, where),
    }
