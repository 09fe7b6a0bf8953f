"""Every way of attending equals the dense masked softmax written out."""

import pytest
import torch
from torch import Tensor

from worldgen.nn.attention import attend, frame_causal_attention


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
    if mask is not None:
        allowed = mask if mask.ndim == 2 else mask[:, None]
        scores = scores.masked_fill(~allowed, float("-inf"))
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), value)


def parts(heads: int, kv_heads: int, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    query, key, value = (torch.randn(2, h, n, 8, generator=generator) for h, n in sizes)
    return query, key, value


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("masked", ["no", "shared", "per row"])
def test_grouped_attention_equals_dense(heads: int, kv_heads: int, masked: str) -> None:
    query, key, value = parts(heads, kv_heads, 5, 7)
    mask = None
    if masked != "no":
        mask = torch.rand(*(() if masked == "shared" else (2,)), 5, 7) > 0.4
        mask[..., 0] = True
    expected = dense(query, key, value, mask)
    assert torch.allclose(attend(query, key, value, mask), expected, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_on_cpu_equals_dense_to_its_precision(masked: bool) -> None:
    query, key, value = parts(4, 2, 5, 7)
    mask = torch.ones(5, 7, dtype=torch.bool).tril(2) if masked else None
    result = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    assert torch.allclose(result.float(), dense(query, key, value, mask), atol=0.05)


@pytest.mark.parametrize("window", [1, 2, 3, 9])
def test_frame_causal_attention_equals_a_dense_block_mask(window: int) -> None:
    frames, tokens = 5, 3
    query, key, value = parts(4, 2, frames * tokens, frames * tokens)
    frame = torch.arange(frames * tokens) // tokens
    age = frame[:, None] - frame[None, :]
    mask = (age >= 0) & (age < window)
    result = frame_causal_attention(query, key, value, frames, window)
    assert torch.allclose(result, dense(query, key, value, mask), atol=1e-6)
