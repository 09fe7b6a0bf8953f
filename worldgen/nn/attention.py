"""Grouped-query attention over whole frames, in training and on a cache."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.nn.attention_backends import (
    AttentionBackend,
    FrameMask,
    flex_attend,
    flex_attend_frames,
    pick_attention_backend,
    xformers_attend,
)
from worldgen.nn.rotary import RotaryTable, apply_rotary

__all__ = ["Attention", "AttentionConfig", "attend", "frame_causal_attention"]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Sizes of an attention layer."""

    width: int
    num_heads: int
    num_key_value_heads: int
    """Heads of keys and values; each serves `num_heads / num_key_value_heads` query heads."""
    bias: bool = False
    """Whether the four projections add a learned vector."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.num_heads % self.num_key_value_heads:
            raise ConfigError(
                f"attention needs num_heads that divides width and num_key_value_heads that "
                f"divides num_heads, got width {self.width}, num_heads {self.num_heads}, "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads


def attend(
    query: Float[Tensor, "batch head query width"],
    key: Float[Tensor, "batch kv_head key width"],
    value: Float[Tensor, "batch kv_head key width"],
    mask: Bool[Tensor, "*batch query key"] | None = None,
    backend: AttentionBackend | None = None,
) -> Float[Tensor, "batch head query width"]:
    """Return softmax attention; keys and values are never repeated for their group of queries.

    Query heads `j * g ... j * g + g - 1` read key-value head `j`.

    Args:
        query: Queries of all heads.
        key: Keys; the number of their heads divides that of the queries.
        value: Values, shaped like the keys.
        mask: True where a query may look; None lets every query see every key.
        backend: What computes it; None for the one of `use_attention_backend`.

    Raises:
        ConfigError: If the backend cannot serve the request; says why.
    """
    chosen = pick_attention_backend(backend, query, key, value, clip=False)
    if chosen == "flex":
        return flex_attend(query, key, value, mask)
    kv_heads, length = key.shape[1], query.shape[2]
    if mask is not None:
        mask = mask.expand(query.shape[0], 1, *mask.shape[-2:]) if mask.ndim == 2 else mask[:, None]
        mask = mask.repeat(1, 1, query.shape[1] // kv_heads, 1)
    folded = rearrange(query, "b (kv group) query width -> b kv (group query) width", kv=kv_heads)
    if chosen == "xformers":
        mixed = xformers_attend(folded, key, value, mask)
    elif folded.dtype == torch.bfloat16 and folded.device.type == "cpu":
        mixed = _attend_by_products(folded, key, value, mask)
    else:
        mixed = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
    return rearrange(mixed, "b kv (group query) width -> b (kv group) query width", query=length)


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    # On CPU the fused kernel does not use the bfloat16 units: forward and backward of 16
    # windows of 8 frames of 66 tokens took 47 ms fused and 18 ms as two plain products.
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    mixed: Tensor = scores.softmax(dim=-1) @ value
    return mixed


def frame_causal_attention(
    query: Float[Tensor, "batch head sequence width"],
    key: Float[Tensor, "batch kv_head sequence width"],
    value: Float[Tensor, "batch kv_head sequence width"],
    num_frames: int,
    window: int,
    own: Bool[Tensor, "token token"] | None = None,
    remembered: Bool[Tensor, " token"] | None = None,
    sink: int = 0,
    backend: AttentionBackend | None = None,
) -> Float[Tensor, "batch head sequence width"]:
    """Return attention in which a frame sees itself and the `window - 1` frames before.

    But for flex, which knows which blocks nobody sees, each frame's queries meet a slice of the
    keys: half the work of a masked product over the clip, and where frames see each other whole no
    mask is needed, so the fast kernels stay usable.

    Args:
        query: Tokens frame by frame, as many in each.
        key: Of the same tokens.
        value: Of the same tokens.
        num_frames: Frames of the sequence.
        window: Frames seen, the own one included.
        own: Which tokens (last axis) of its own frame a token sees; None for all.
        remembered: Which tokens of a frame later frames see; None for all.
        sink: Frames at the beginning that every later frame sees beside its window.
        backend: What computes it; None for the one of `use_attention_backend`.

    Raises:
        ConfigError: If the backend cannot serve the request; says why.
    """
    tokens = query.shape[2] // num_frames
    if window == 1 and not sink:
        fold = "b head (frame token) width -> (b frame) head token width"
        unfold = "(b frame) head token width -> b head (frame token) width"
        query, key, value = (
            rearrange(part, fold, frame=num_frames) for part in (query, key, value)
        )
        return rearrange(attend(query, key, value, own, backend), unfold, frame=num_frames)
    if pick_attention_backend(backend, query, key, value, clip=True) == "flex":
        mask = FrameMask(
            num_frames=num_frames,
            tokens=tokens,
            window=window,
            sink=sink,
            own=own,
            remembered=remembered,
        )
        return flex_attend_frames(query, key, value, mask)
    mixed = []
    for frame in range(num_frames):
        first = max(0, frame + 1 - window)
        kept = min(sink, first)
        here = slice(frame * tokens, (frame + 1) * tokens)
        keys, values = (
            _seen(part, kept * tokens, first * tokens, here.stop) for part in (key, value)
        )
        near = _frame_mask(tokens, kept + frame - first, own, remembered, query.device)
        mixed.append(attend(query[:, :, here], keys, values, near, backend))
    return torch.cat(mixed, dim=2)


def _seen(part: Tensor, kept: int, first: int, stop: int) -> Tensor:
    """Return the first `kept` tokens, and those from `first` to `stop - 1`."""
    if kept == first:
        return part[:, :, :stop]
    window = part[:, :, first:stop]
    return torch.cat((part[:, :, :kept], window), dim=2) if kept else window


def _frame_mask(
    tokens: int,
    num_earlier: int,
    own: Tensor | None,
    remembered: Tensor | None,
    device: torch.device,
) -> Tensor | None:
    if own is None and remembered is None:
        return None
    everything = torch.ones(tokens, tokens, dtype=torch.bool, device=device)
    past = everything if remembered is None else remembered.expand(tokens, tokens)
    return torch.cat((past.repeat(1, num_earlier), everything if own is None else own), dim=1)


class Attention(nn.Module):
    """Projections around attention; who sees whom is the caller's business.

    Source: grouped queries, arXiv:2305.13245.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        key_value_width = config.num_key_value_heads * config.head_width
        self.query_key_value = nn.Linear(
            config.width, config.width + 2 * key_value_width, bias=config.bias
        )
        self.output = nn.Linear(config.width, config.width, bias=config.bias)

    def project(
        self, hidden: Float[Tensor, "batch token width"], rotary: RotaryTable
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys (both turned by their positions) and values, heads in front."""
        kv_heads = self.config.num_key_value_heads
        projected = rearrange(
            self.query_key_value(hidden),
            "b token (head width) -> b head token width",
            width=self.config.head_width,
        )
        query, key, value = projected.split((self.config.num_heads, kv_heads, kv_heads), dim=1)
        return apply_rotary(query, rotary), apply_rotary(key, rotary), value

    def merge(
        self, mixed: Float[Tensor, "batch head token head_width"]
    ) -> Float[Tensor, "batch token width"]:
        """Return the heads' results as one vector per token."""
        merged: Tensor = self.output(rearrange(mixed, "b head token width -> b token (head width)"))
        return merged
