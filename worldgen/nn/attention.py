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
from worldgen.nn.far import FarTokens, VisibleFrames, visible_frames
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
    bias: Float[Tensor, " key"] | None = None,
) -> Float[Tensor, "batch head query width"]:
    """Return softmax attention; keys and values are never repeated for their group of queries.

    Query heads `j * g ... j * g + g - 1` read key-value head `j`.

    Args:
        query: Queries of all heads.
        key: Keys; the number of their heads divides that of the queries.
        value: Values, shaped like the keys.
        mask: True where a query may look; None lets every query see every key.
        backend: What computes it; None for the one of `use_attention_backend`.
        bias: Added to the scores of each key, in natural logarithms of its weight.

    Raises:
        ConfigError: If the backend cannot serve the request; says why.
    """
    chosen = pick_attention_backend(backend, query, key, value, clip=False)
    if chosen == "flex":
        return flex_attend(query, key, value, mask, bias)
    kv_heads, length = key.shape[1], query.shape[2]
    if mask is not None:
        mask = mask.expand(query.shape[0], 1, *mask.shape[-2:]) if mask.ndim == 2 else mask[:, None]
        mask = mask.repeat(1, 1, query.shape[1] // kv_heads, 1)
    folded = rearrange(query, "b (kv group) query width -> b kv (group query) width", kv=kv_heads)
    if chosen == "xformers":
        mixed = xformers_attend(folded, key, value, mask, bias)
    elif folded.dtype == torch.bfloat16 and folded.device.type == "cpu":
        mixed = _attend_by_products(folded, key, value, mask, bias)
    else:
        if bias is not None:
            added = bias.to(folded).expand(1, 1, folded.shape[2], -1)
            mask = added if mask is None else added.masked_fill(~mask, float("-inf"))
        mixed = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
    return rearrange(mixed, "b kv (group query) width -> b (kv group) query width", query=length)


def _attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    # On CPU the fused kernel does not use the bfloat16 units: forward and backward of 16
    # windows of 8 frames of 66 tokens took 47 ms fused and 18 ms as two plain products.
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores)
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
    far: FarTokens | None = None,
    far_frames: int = 0,
    time_decay: float = 0.0,
) -> Float[Tensor, "batch head sequence width"]:
    """Return attention in which a frame sees itself and the `window - 1` frames before.

    Beside these it may see the first frames of all, and as few tokens those behind the window.

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
        far: All frames as few tokens.
        far_frames: Frames behind the window, those of the sink left out, that are seen so.
        time_decay: A frame that is `n` frames back weighs `exp(-time_decay * n)` times what it
            would; those of the sink weigh in full.

    Source: attention falling linearly with distance, ALiBi (arXiv:2108.12409), section 3, counted
        in frames, one slope for all heads. That such a decay in time beside rotary positions lets
        a model see further than it was trained to is what FlexRoPE found (arXiv:2503.19325v1);
        its later versions do without, so the formula is ours.

    Raises:
        ConfigError: If the backend cannot serve the request; says why.
    """
    tokens = query.shape[2] // num_frames
    if window == 1 and not sink and not far_frames:
        fold = "b head (frame token) width -> (b frame) head token width"
        unfold = "(b frame) head token width -> b head (frame token) width"
        query, key, value = (
            rearrange(part, fold, frame=num_frames) for part in (query, key, value)
        )
        return rearrange(attend(query, key, value, own, backend), unfold, frame=num_frames)
    far_tokens = far.keys.shape[2] // num_frames if far is not None else 0
    if pick_attention_backend(backend, query, key, value, clip=True) == "flex":
        mask = FrameMask(
            num_frames=num_frames,
            tokens=tokens,
            window=window,
            sink=sink,
            far_frames=far_frames,
            far_tokens=far_tokens,
            time_decay=time_decay,
            own=own,
            remembered=remembered,
        )
        if far is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(far, (key, value), strict=True))
        return flex_attend_frames(query, key, value, mask)
    mixed = []
    for frame in range(num_frames):
        seen = visible_frames(frame, window, sink, far_frames)
        here = slice(frame * tokens, (frame + 1) * tokens)
        keys, values = (
            _tokens_of(seen, whole, few, num_frames)
            for whole, few in zip((key, value), far or (None, None), strict=True)
        )
        num_earlier = len(seen.kept) + len(seen.near) - 1
        near = _frame_mask(tokens, num_earlier, own, remembered, query.device)
        if near is not None and seen.far:
            behind = len(seen.kept) * tokens
            all_far = near.new_ones(tokens, len(seen.far) * far_tokens)
            near = torch.cat((near[:, :behind], all_far, near[:, behind:]), dim=1)
        bias = None
        if time_decay and (window > 1 or far_frames):
            bias = -time_decay * seen.ages(sink, tokens, far_tokens).to(query.device)
        mixed.append(attend(query[:, :, here], keys, values, near, backend, bias))
    return torch.cat(mixed, dim=2)


def _tokens_of(seen: VisibleFrames, whole: Tensor, few: Tensor | None, num_frames: int) -> Tensor:
    """Return the tokens of the frames that are seen, of a clip's whole frames and of its far ones."""
    tokens = whole.shape[2] // num_frames
    stop = seen.near.stop * tokens
    if len(seen.kept) == seen.near.start:
        return whole[:, :, :stop]
    parts = [whole[:, :, seen.near.start * tokens : stop]]
    if few is not None and seen.far:
        each = few.shape[2] // num_frames
        parts.insert(0, few[:, :, seen.far.start * each : seen.far.stop * each])
    if seen.kept:
        parts.insert(0, whole[:, :, : len(seen.kept) * tokens])
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


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
