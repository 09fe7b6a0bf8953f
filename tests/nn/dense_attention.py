"""Attention as it is written in books: the oracle of every other way."""

import torch
from torch import Tensor


def dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    """Return masked softmax attention, keys and values repeated for their group of queries.

    A bias `[query, key]` is added to the scores.
    """
    group = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        allowed = mask if mask.ndim == 2 else mask[:, None]
        scores = scores.masked_fill(~allowed, float("-inf"))
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), value)


def clip_mask(
    frames: int,
    tokens: int,
    window: int,
    sink: int = 0,
    own: Tensor | None = None,
    remembered: Tensor | None = None,
) -> Tensor:
    """Return which tokens of a clip see which, `[query, key]`, pair by pair."""
    length = frames * tokens
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            (to, place), (of, other) = divmod(query, tokens), divmod(key, tokens)
            if of == to:
                mask[query, key] = own is None or own[place, other]
            elif of < to and (to - of < window or of < sink):
                mask[query, key] = remembered is None or remembered[other]
    return mask


def far_mask(
    frames: int, tokens: int, window: int, sink: int, far_frames: int, far_tokens: int
) -> Tensor:
    """Return which tokens of a clip see which far tokens of its frames, pair by pair."""
    mask = torch.zeros(frames * tokens, frames * far_tokens, dtype=torch.bool)
    for query in range(frames * tokens):
        for key in range(frames * far_tokens):
            age, of = query // tokens - key // far_tokens, key // far_tokens
            mask[query, key] = of >= sink and window <= age < window + far_frames
    return mask


def decay_bias(
    frames: int, tokens: int, sink: int, decay: float, tokens_of_key: int | None = None
) -> Tensor:
    """Return what age adds to the score of each pair, `[query, key]`."""
    each = tokens_of_key or tokens
    bias = torch.zeros(frames * tokens, frames * each)
    for query in range(frames * tokens):
        for key in range(frames * each):
            of = key // each
            bias[query, key] = 0.0 if of < sink else -decay * (query // tokens - of)
    return bias


def masks(tokens: int) -> tuple[Tensor, Tensor]:
    """Return `own` and `remembered` of a frame: causal, the last token forgotten."""
    own = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return own, torch.arange(tokens) < tokens - 1


def parts(
    heads: int, kv_heads: int, queries: int, keys: int, width: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random queries, keys and values of two rows."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    query, key, value = (torch.randn(2, h, n, width, generator=generator) for h, n in sizes)
    return query, key, value
