"""Frames at the edge (uint8, channels last) and inside the networks (float, channels first)."""

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["to_float", "to_uint8"]


def to_float(frames: UInt8[Tensor, "*leading height width 3"]) -> Float[Tensor, "*leading 3 h w"]:
    """Return frames as float32 in [-1, 1], channels first.

    Args:
        frames: uint8 in [0, 255], channels last, any number of leading axes.
    """
    return rearrange(frames, "... height width rgb -> ... rgb height width").float() / 127.5 - 1.0


def to_uint8(frames: Float[Tensor, "*leading 3 h w"]) -> UInt8[Tensor, "*leading height width 3"]:
    """Return frames as uint8 in [0, 255], channels last; the inverse of `to_float`.

    Args:
        frames: float in [-1, 1], channels first; values outside are clamped.
    """
    levels = ((frames.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round()
    return rearrange(levels.to(torch.uint8), "... rgb height width -> ... height width rgb")
