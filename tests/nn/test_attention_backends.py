"""Every backend computes the same, or says why it cannot."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.nn.dense_attention import clip_mask, decay_bias, dense, far_mask, masks, parts
from worldgen.errors import ConfigError
from worldgen.nn.attention import attend, frame_causal_attention
from worldgen.nn.attention_backends import (
    AttentionBackend,
    FrameMask,
    pick_attention_backend,
    use_attention_backend,
    xformers_attend,
)
from worldgen.nn.far import FarTokens

# Tracing flex takes seconds for each kind of mask.
slow_flex = pytest.param("flex", marks=pytest.mark.slow)
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def dense_mask(kind: str, queries: int, keys: int) -> Tensor | None:
    if kind == "no":
        return None
    generator = torch.Generator().manual_seed(2)
    shape = (queries, keys) if kind == "shared" else (2, queries, keys)
    mask = torch.rand(shape, generator=generator) > 0.4
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("backend", ["sdpa", "auto", slow_flex])
@pytest.mark.parametrize("kind", ["no", "shared", "per row"])
def test_attention_equals_dense(backend: AttentionBackend, kind: str) -> None:
    query, key, value = parts(4, 2, 5, 7)
    mask = dense_mask(kind, 5, 7)
    result = attend(query, key, value, mask, backend)
    assert torch.allclose(result, dense(query, key, value, mask), atol=1e-6)


@pytest.mark.parametrize("backend", ["sdpa", "auto", slow_flex])
@pytest.mark.parametrize(("window", "sink", "masked"), [(1, 0, True), (2, 1, True), (3, 0, False)])
def test_a_clip_equals_a_dense_mask(
    backend: AttentionBackend, window: int, sink: int, masked: bool
) -> None:
    frames, tokens = 5, 4
    query, key, value = parts(4, 2, frames * tokens, frames * tokens)
    own, remembered = masks(tokens) if masked else (None, None)
    mask = clip_mask(frames, tokens, window, sink, own, remembered)
    result = frame_causal_attention(
        query, key, value, frames, window, own, remembered, sink, backend
    )
    assert torch.allclose(result, dense(query, key, value, mask), atol=1e-6)


@pytest.mark.parametrize(("window", "sink"), [(1, 0), (2, 0), (2, 2), (9, 1)])
def test_the_mask_by_places_is_the_mask_by_pairs(window: int, sink: int) -> None:
    own, remembered = masks(3)
    mask = FrameMask(
        num_frames=5, tokens=3, window=window, sink=sink, own=own, remembered=remembered
    )
    places = torch.arange(15)
    seen = mask.visible(places[:, None], places[None])
    assert torch.equal(seen, clip_mask(5, 3, window, sink, own, remembered))


FAR = ((2, 0, 3, 0.0), (1, 2, 2, 0.2), (3, 1, 9, 0.2), (2, 1, 0, 0.5))
"""Window, sink, far frames and decay of clips."""


def far_oracle(
    frames: int, tokens: int, few: int, case: tuple[int, int, int, float]
) -> tuple[Tensor, Tensor]:
    """Return mask and bias over far tokens and, behind them, those of the clip."""
    window, sink, far_frames, decay = case
    own, remembered = masks(tokens)
    mask = (
        far_mask(frames, tokens, window, sink, far_frames, few),
        clip_mask(frames, tokens, window, sink, own, remembered),
    )
    bias = decay_bias(frames, tokens, sink, decay, few), decay_bias(frames, tokens, sink, decay)
    return torch.cat(mask, dim=1), torch.cat(bias, dim=1)


@pytest.mark.parametrize("case", FAR)
def test_the_mask_of_far_frames_by_places_is_that_by_pairs(
    case: tuple[int, int, int, float],
) -> None:
    frames, tokens, few = 7, 3, 2
    window, sink, far_frames, decay = case
    own, remembered = masks(tokens)
    frame_mask = FrameMask(
        num_frames=frames,
        tokens=tokens,
        window=window,
        sink=sink,
        far_frames=far_frames,
        far_tokens=few,
        time_decay=decay,
        own=own,
        remembered=remembered,
    )
    query = torch.arange(frames * tokens)[:, None]
    key = torch.arange(frames * (few + tokens))[None]
    mask, bias = far_oracle(frames, tokens, few, case)
    assert torch.equal(frame_mask.visible(query, key), mask)
    zeros = torch.zeros(len(query), key.shape[1])
    assert torch.allclose(frame_mask.decayed(zeros, query, key), bias)


@pytest.mark.slow
@pytest.mark.parametrize("case", FAR)
def test_flex_serves_far_frames_and_decay(case: tuple[int, int, int, float]) -> None:
    frames, tokens, few = 6, 4, 2
    window, sink, far_frames, decay = case
    query, key, value = parts(4, 2, frames * tokens, frames * tokens)
    _, *far = parts(4, 2, 1, frames * few)
    result = frame_causal_attention(
        query,
        key,
        value,
        frames,
        window,
        *masks(tokens),
        sink,
        "flex",
        FarTokens(*far),
        far_frames,
        decay,
    )
    keys, values = (torch.cat(pair, dim=2) for pair in zip(far, (key, value), strict=True))
    expected = dense(query, keys, values, *far_oracle(frames, tokens, few, case))
    assert torch.allclose(result, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["no", "per row"])
def test_flex_adds_a_bias(kind: str) -> None:
    query, key, value = parts(4, 2, 5, 7)
    mask, bias = dense_mask(kind, 5, 7), torch.linspace(-3, 1, 7)
    result = attend(query, key, value, mask, "flex", bias)
    assert torch.allclose(result, dense(query, key, value, mask, bias.expand(5, 7)), atol=1e-6)


@pytest.mark.slow
def test_flex_passes_over_blocks_that_nobody_sees_and_keeps_masks_apart() -> None:
    from worldgen.nn.attention_backends import _block_mask

    cpu = torch.device("cpu")
    own = torch.eye(128, dtype=torch.bool)
    mask = FrameMask(num_frames=6, tokens=128, window=2, sink=1, own=own)
    blocks = _block_mask(mask, cpu)
    # A frame is a block: frames 0 and 1 see 1 and 2 of them, the others 3 with the first.
    assert int(blocks.kv_num_blocks.sum() + blocks.full_kv_num_blocks.sum()) == 1 + 2 + 4 * 3
    same = FrameMask(num_frames=6, tokens=128, window=2, sink=1, own=own)
    assert _block_mask(same, cpu) is blocks
    other = FrameMask(num_frames=6, tokens=128, window=2, sink=1, own=own.clone())
    assert _block_mask(other, cpu) is not blocks


# Who is asked


def test_the_backend_of_the_process_is_used_and_put_back() -> None:
    query, key, value = parts(2, 2, 3, 3)
    with use_attention_backend("auto"):
        assert torch.equal(attend(query, key, value), attend(query, key, value, backend="sdpa"))
        with use_attention_backend("xformers"), pytest.raises(ConfigError, match="'xformers'"):
            attend(query, key, value)
        attend(query, key, value)
        with use_attention_backend("xformers"):
            attend(query, key, value, backend="sdpa")
            with pytest.raises(ConfigError, match="'xformers'"):
                frame_causal_attention(query, key, value, 3, 2)
    attend(query, key, value)


def test_an_unknown_backend_is_refused() -> None:
    query, key, value = parts(2, 2, 3, 3)
    message = "'math'; there are sdpa, flex, xformers, auto"
    with pytest.raises(ConfigError, match=message):
        attend(query, key, value, backend="math")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message), use_attention_backend("math"):  # type: ignore[arg-type]
        pass


def test_flex_says_that_it_cannot_train_on_a_cpu() -> None:
    query, key, value = parts(2, 2, 6, 6)
    query.requires_grad_()
    with pytest.raises(ConfigError, match="no backward pass on CPU; choose 'sdpa'"):
        frame_causal_attention(query, key, value, 3, 2, backend="flex")
    with torch.no_grad():
        assert pick_attention_backend("flex", query, key, value, clip=True) == "flex"
    # What is left to choose trains.
    frame_causal_attention(query, key, value, 3, 2, backend="auto").sum().backward()
    assert query.grad is not None


def test_flex_says_that_it_cannot_compute_in_double_precision() -> None:
    query, key, value = (part.double() for part in parts(2, 2, 6, 6))
    with pytest.raises(ConfigError, match=r"not torch\.float64"):
        attend(query, key, value, backend="flex")


@pytest.mark.parametrize("clip", [False, True])
def test_auto_takes_sdpa_where_there_is_no_gpu(clip: bool) -> None:
    assert pick_attention_backend("auto", *parts(2, 2, 6, 6), clip=clip) == "sdpa"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldgen.nn.attention_backends.find_spec", lambda name: None)
    query, key, value = parts(2, 2, 3, 3)
    with pytest.raises(ConfigError, match=r"xformers is not installed .*made for this torch"):
        attend(query, key, value, backend="xformers")


def test_xformers_is_not_imported_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "xformers", raising=False)
    query, key, value = parts(2, 2, 3, 3)
    attend(query, key, value, backend="auto")
    assert "xformers" not in sys.modules


class Xformers(ModuleType):
    """The interface of `xformers.ops` as its documentation has it: heads behind tokens."""

    def __init__(self) -> None:
        super().__init__("xformers.ops")

    @staticmethod
    def memory_efficient_attention(
        query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None = None
    ) -> Tensor:
        if query.dtype == torch.float16:
            raise NotImplementedError("No operator found\n  with inputs of\n  half precision")
        batch, queries, heads, _ = query.shape
        keys = key.shape[1]
        assert key.shape == value.shape
        assert key.shape[2] == heads
        if attn_bias is not None:
            assert attn_bias.shape == (batch, heads, queries, keys)
            assert attn_bias.dtype == query.dtype
            assert attn_bias.stride(-2) % 8 == 0
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_bias)
        return mixed.transpose(1, 2)


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("xformers")
    package.__spec__ = ModuleSpec("xformers", None)
    package.ops = Xformers()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", package.ops)


@pytest.mark.usefixtures("xformers")
@pytest.mark.parametrize("kind", ["no", "per row"])
def test_xformers_gets_its_own_layout_and_mask(kind: str) -> None:
    query, key, value = parts(2, 2, 5, 7)
    mask = dense_mask(kind, 5, 7)
    given = None if mask is None else mask[:, None]
    result = xformers_attend(query, key, value, given)
    assert torch.allclose(result, dense(query, key, value, mask), atol=1e-6)
    bias = torch.linspace(-3, 1, 7)
    result = xformers_attend(query, key, value, given, bias)
    assert torch.allclose(result, dense(query, key, value, mask, bias.expand(5, 7)), atol=1e-6)


@pytest.mark.usefixtures("xformers")
def test_xformers_says_that_it_needs_a_gpu() -> None:
    query, key, value = parts(2, 2, 5, 7)
    with pytest.raises(ConfigError, match="CUDA alone, the tensors are on cpu"):
        attend(query, key, value, backend="xformers")


@pytest.mark.usefixtures("xformers")
def test_what_xformers_itself_refuses_is_passed_on() -> None:
    query, key, value = (part.half() for part in parts(2, 2, 5, 7))
    with pytest.raises(ConfigError, match="No operator found with inputs of half precision"):
        xformers_attend(query, key, value, None)


# On a GPU


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=gpu) for name in ("sdpa", "flex", "xformers", "auto")]
)
@pytest.mark.parametrize(("window", "sink", "masked"), [(2, 1, True), (3, 0, False)])
def test_on_a_gpu_a_clip_and_its_gradient_equal_a_dense_mask(
    backend: AttentionBackend, window: int, sink: int, masked: bool
) -> None:
    if backend == "xformers":
        pytest.importorskip("xformers")
    frames, tokens = 5, 24
    own, remembered = masks(tokens) if masked else (None, None)
    mask = clip_mask(frames, tokens, window, sink, own, remembered)
    given = parts(4, 2, frames * tokens, frames * tokens, width=32)
    query, key, value = ours = [part.cuda().requires_grad_() for part in given]
    theirs = [part.double().requires_grad_() for part in given]
    if own is not None and remembered is not None:
        own, remembered = own.cuda(), remembered.cuda()
    result = frame_causal_attention(
        query, key, value, frames, window, own, remembered, sink, backend
    )
    expected = dense(theirs[0], theirs[1], theirs[2], mask)
    assert torch.allclose(result.cpu().double(), expected, atol=5e-3)
    result.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad.cpu().double(), other.grad, atol=2e-2)


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=gpu) for name in ("sdpa", "flex", "xformers", "auto")]
)
@pytest.mark.parametrize("case", FAR)
def test_on_a_gpu_far_frames_and_decay_equal_a_dense_mask(
    backend: AttentionBackend, case: tuple[int, int, int, float]
) -> None:
    if backend == "xformers":
        pytest.importorskip("xformers")
    frames, tokens, few = 6, 24, 5
    window, sink, far_frames, decay = case
    clip = parts(4, 2, frames * tokens, frames * tokens, width=32)
    given = [*clip, *parts(4, 2, 1, frames * few, width=32)[1:]]
    ours = [part.cuda().requires_grad_() for part in given]
    theirs = [part.double().requires_grad_() for part in given]
    own, remembered = (part.cuda() for part in masks(tokens))
    query, key, value, *_ = ours
    result = frame_causal_attention(
        query,
        key,
        value,
        frames,
        window,
        own,
        remembered,
        sink,
        backend,
        FarTokens(*ours[3:]),
        far_frames,
        decay,
    )
    keys, values = (torch.cat((theirs[far], theirs[own]), dim=2) for far, own in ((3, 1), (4, 2)))
    expected = dense(theirs[0], keys, values, *far_oracle(frames, tokens, few, case))
    assert torch.allclose(result.cpu().double(), expected, atol=5e-3)
    result.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad.cpu().double(), other.grad, atol=2e-2)
