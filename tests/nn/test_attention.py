"""Every way of attending equals the dense masked softmax written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.nn.dense_attention import clip_mask, decay_bias, dense, far_mask, masks, parts
from worldgen.nn.attention import attend, frame_causal_attention
from worldgen.nn.far import FarTokens


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
@pytest.mark.parametrize("sink", [0, 1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_frame_causal_attention_equals_a_dense_block_mask(
    window: int, sink: int, masked: bool
) -> None:
    frames, tokens = 5, 3
    query, key, value = parts(4, 2, frames * tokens, frames * tokens)
    own, remembered = masks(tokens) if masked else (None, None)
    mask = clip_mask(frames, tokens, window, sink, own, remembered)
    result = frame_causal_attention(query, key, value, frames, window, own, remembered, sink)
    assert torch.allclose(result, dense(query, key, value, mask), atol=1e-6)


@pytest.mark.parametrize("masked", ["no", "shared", "per row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_is_added_to_the_scores_of_a_key(masked: str, dtype: torch.dtype) -> None:
    query, key, value = parts(4, 2, 5, 7)
    mask = None
    if masked != "no":
        mask = torch.rand(*(() if masked == "shared" else (2,)), 5, 7) > 0.4
        mask[..., 0] = True
    bias = torch.linspace(-3, 1, 7)
    result = attend(query.to(dtype), key.to(dtype), value.to(dtype), mask, bias=bias)
    expected = dense(query, key, value, mask, bias.expand(5, 7))
    assert torch.allclose(result.float(), expected, atol=1e-6 if dtype == torch.float32 else 0.05)
    assert not torch.allclose(expected, dense(query, key, value, mask), atol=0.1)


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("sink", [0, 1, 3])
@pytest.mark.parametrize("far_frames", [0, 1, 3, 9])
@pytest.mark.parametrize(("masked", "decay"), [(False, 0.0), (True, 0.0), (True, 0.3)])
def test_far_frames_and_decay_equal_a_dense_mask(
    window: int, sink: int, far_frames: int, masked: bool, decay: float
) -> None:
    frames, tokens, few = 8, 3, 2
    query, key, value = parts(4, 2, frames * tokens, frames * tokens)
    _, *far = parts(4, 2, 1, frames * few)
    own, remembered = masks(tokens) if masked else (None, None)
    result = frame_causal_attention(
        query,
        key,
        value,
        frames,
        window,
        own,
        remembered,
        sink,
        far=FarTokens(*far) if far_frames else None,
        far_frames=far_frames,
        time_decay=decay,
    )
    mask = torch.cat(
        (
            far_mask(frames, tokens, window, sink, far_frames, few),
            clip_mask(frames, tokens, window, sink, own, remembered),
        ),
        dim=1,
    )
    bias = torch.cat(
        (decay_bias(frames, tokens, sink, decay, few), decay_bias(frames, tokens, sink, decay)),
        dim=1,
    )
    keys, values = (torch.cat(pair, dim=2) for pair in zip(far, (key, value), strict=True))
    assert torch.allclose(result, dense(query, keys, values, mask, bias), atol=1e-6)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, Tensor):
                self.size = max(self.size, made.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.slow
def test_keys_and_values_are_not_repeated_for_their_group_of_queries() -> None:
    # No tensor that is ever made is larger than the keys of their own two heads.
    query, key, value = parts(16, 2, 3, 100, width=64)
    mask = torch.rand(2, 3, 100) > 0.4

    for each in (None, mask):
        with Largest() as largest:
            attend(query, key, value, each)
        assert 0 < largest.size <= key.numel()
    with Largest() as largest:
        dense(query, key, value, None)
    assert largest.size == 16 // 2 * key.numel()
