"""The kernels that attention may run on, what each can serve, and who is asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

import torch
from einops import rearrange
from torch import Tensor

from worldgen.errors import ConfigError

__all__ = [
    "AttentionBackend",
    "FrameMask",
    "flex_attend",
    "flex_attend_frames",
    "pick_attention_backend",
    "use_attention_backend",
    "xformers_attend",
]

AttentionBackend = Literal["sdpa", "flex", "xformers", "auto"]
"""PyTorch's `scaled_dot_product_attention`; PyTorch's `flex_attention`; the package xformers; or,
with `auto`, flex for clips if it can serve them on a GPU, and sdpa for everything else."""

_chosen: AttentionBackend = "sdpa"


@contextmanager
def use_attention_backend(name: AttentionBackend) -> Iterator[None]:
    """Let all attention of this process run on a backend, until the end of the `with`.

    What the backend cannot serve raises a ConfigError that says why, when it is asked for.

    Args:
        name: See `AttentionBackend`; without this function it is `sdpa`.

    Raises:
        ConfigError: If there is no such backend.
    """
    global _chosen
    before = _chosen
    _chosen = _known(name)
    try:
        yield
    finally:
        _chosen = before


def pick_attention_backend(
    name: AttentionBackend | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    clip: bool,
) -> Literal["sdpa", "flex", "xformers"]:
    """Return the backend that will serve a request.

    Args:
        name: Asked for; None means that of `use_attention_backend`.
        query: Of the request.
        key: Of the request.
        value: Of the request.
        clip: Whether frames of a whole clip see each other by `FrameMask`.

    Raises:
        ConfigError: If there is no such backend, or it cannot serve the request; says why.
    """
    name = _chosen if name is None else name
    if name == "sdpa":
        return "sdpa"
    if _known(name) == "auto":
        # Flex beats a dense mask and is no faster than the plain kernels; only clips need a mask.
        # On CPU it is a reference to check against.
        usable = clip and query.is_cuda and not _obstacle_to_flex(query, key, value)
        return "flex" if usable else "sdpa"
    check = _obstacle_to_flex if name == "flex" else _obstacle_to_xformers
    if obstacle := check(query, key, value):
        raise ConfigError(
            f"attention backend {name!r} cannot be used here: {obstacle}; choose 'sdpa', which "
            f"serves everything, or 'auto', which takes what it can"
        )
    return "flex" if name == "flex" else "xformers"


def _known(name: AttentionBackend) -> AttentionBackend:
    if name not in get_args(AttentionBackend):
        raise ConfigError(
            f"unknown attention backend {name!r}; there are {', '.join(get_args(AttentionBackend))}"
        )
    return name


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameMask:
    """Which tokens of a clip see which: frames of a window, the first ones for ever, far ones.

    Queries are the tokens of the clip. Keys are the far tokens of all frames, then the tokens of
    the clip.
    """

    num_frames: int
    tokens: int
    """Of a frame."""
    window: int
    """Frames seen, the own one included."""
    sink: int = 0
    """Frames at the beginning that are always seen."""
    far_frames: int = 0
    """Frames behind the window that are seen as few tokens."""
    far_tokens: int = 0
    """Of a frame that is far."""
    time_decay: float = 0.0
    """By how much a score falls for each frame that a key lies back; not in the sink."""
    own: Tensor | None = None
    """Bool `[token, token]`: which tokens (last axis) of its own frame a token sees; None: all."""
    remembered: Tensor | None = None
    """Bool `[token]`: which tokens of a frame later frames see; None for all."""

    @property
    def num_far(self) -> int:
        """Keys in front of those of the clip."""
        return self.num_frames * self.far_tokens

    def frame_of(self, key: Tensor) -> Tensor:
        """Return the numbers of the frames of keys, given as int64 places."""
        frame = (key - self.num_far) // self.tokens
        if self.far_tokens:
            frame = torch.where(key < self.num_far, key // self.far_tokens, frame)
        return frame

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """Return whether queries see keys, both given as int64 places."""
        frame = self.frame_of(key)
        age, place = query // self.tokens - frame, (key - self.num_far) % self.tokens
        near = age < self.window
        if self.sink:
            near = near | (frame < self.sink)
        earlier, same = (age > 0) & near, age == 0
        if self.remembered is not None:
            earlier = earlier & self.remembered[place]
        if self.own is not None:
            same = same & self.own[query % self.tokens, place]
        if not self.far_tokens:
            return earlier | same
        behind = age - self.window
        far = (behind >= 0) & (behind < self.far_frames) & (frame >= self.sink)
        return torch.where(key < self.num_far, far, earlier | same)

    def decayed(self, score: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Return scores that have fallen with the age of the keys."""
        frame = self.frame_of(key)
        age = query // self.tokens - frame
        return score - self.time_decay * torch.where(frame < self.sink, 0, age)


# PyTorch's flex_attention


def _obstacle_to_flex(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"flex computes in float32, bfloat16 and float16, not {query.dtype}"
    if query.is_cuda:
        if find_spec("triton") is None:
            return "flex compiles its kernels for GPUs with the package triton, which is missing"
        if query.shape[-1] < 16:
            return f"flex needs at least 16 channels in a head, got {query.shape[-1]}"
        return None
    if query.device.type != "cpu":
        return f"flex runs on CUDA and CPU, not on {query.device.type}"
    if torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value)):
        return "flex has no backward pass on CPU"
    return None


def flex_attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    """Return attention by flex.

    Args:
        query: `[batch, head, query, width]`.
        key: `[batch, kv_head, key, width]`.
        value: Shaped like the keys.
        mask: Bool `[batch, query, key]` or `[query, key]` or None.
        bias: `[key]`, added to the scores of each key; or None.
    """
    if mask is None and bias is None:
        return _flex(query)(query, key, value, enable_gqa=True)
    seen = None if mask is None else mask.expand(query.shape[0], *mask.shape[-2:])

    def change(score: Tensor, row: Tensor, head: Tensor, to: Tensor, of: Tensor) -> Tensor:
        if bias is not None:
            score = score + bias[of]
        return score if seen is None else torch.where(seen[row, to, of], score, -float("inf"))

    return _flex(query)(query, key, value, score_mod=change, enable_gqa=True)


def flex_attend_frames(query: Tensor, key: Tensor, value: Tensor, mask: FrameMask) -> Tensor:
    """Return attention over a clip by flex, which passes over blocks that nobody sees.

    Keys and values are those that `FrameMask` tells of.
    """
    blocks = _block_mask(mask, query.device)
    if not mask.time_decay:
        return _flex(query)(query, key, value, block_mask=blocks, enable_gqa=True)

    def decay(score: Tensor, row: Tensor, head: Tensor, to: Tensor, of: Tensor) -> Tensor:
        return mask.decayed(score, to, of)

    return _flex(query)(query, key, value, score_mod=decay, block_mask=blocks, enable_gqa=True)


def _flex(query: Tensor) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # Compiling takes half a minute on CPU, where nothing is gained: there it is a reference.
    return _compiled_flex() if query.is_cuda else cast(Callable[..., Tensor], flex_attention)


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled


_block_masks: dict[tuple[Any, ...], tuple[FrameMask, Any]] = {}
_MOST_BLOCK_MASKS = 16


def _block_mask(mask: FrameMask, device: torch.device) -> Any:
    # All layers of a model ask with the same tensors in one pass. They are known by their identity,
    # which holds because the mask is kept along with the blocks.
    sizes = (mask.num_frames, mask.tokens, mask.window, mask.sink)
    far = (mask.far_frames, mask.far_tokens)
    name = (*sizes, *far, id(mask.own), id(mask.remembered), device)
    if name not in _block_masks:
        from torch.nn.attention.flex_attention import create_block_mask

        while len(_block_masks) >= _MOST_BLOCK_MASKS:
            del _block_masks[next(iter(_block_masks))]
        length = mask.num_frames * mask.tokens

        def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return mask.visible(query, key)

        keys = mask.num_far + length
        blocks = create_block_mask(visible, None, None, length, keys, device=device)
        _block_masks[name] = (mask, blocks)
    return _block_masks[name][1]


# xformers


def _obstacle_to_xformers(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    if find_spec("xformers") is None:
        return "the package xformers is not installed (install the release made for this torch)"
    if not query.is_cuda:
        return f"xformers attends on CUDA alone, the tensors are on {query.device.type}"
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"xformers computes in float32, bfloat16 and float16, not {query.dtype}"
    return None


def xformers_attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    """Return attention by xformers; as many heads of queries as of keys.

    Args:
        query: `[batch, head, query, width]`.
        key: `[batch, head, key, width]`.
        value: Shaped like the keys.
        mask: Bool `[batch, 1, query, key]` or None.
        bias: `[key]`, added to the scores of each key; or None.

    Raises:
        ConfigError: If xformers has no kernel for it; says what it says.
    """
    import xformers.ops

    added = None
    if mask is not None or bias is not None:
        # The kernel wants rows that begin at multiples of eight numbers.
        keys = key.shape[2]
        added = query.new_zeros(*query.shape[:3], (keys + 7) // 8 * 8)[..., :keys]
        if bias is not None:
            added += bias
        if mask is not None:
            added.masked_fill_(~mask, float("-inf"))
    parts = (
        rearrange(part, "b head token width -> b token head width") for part in (query, key, value)
    )
    try:
        mixed: Tensor = xformers.ops.memory_efficient_attention(*parts, attn_bias=added)
    except NotImplementedError as error:
        reasons = " ".join(str(error).split())
        raise ConfigError(
            f"attention backend 'xformers' cannot be used here: {reasons}; choose 'sdpa'"
        ) from error
    return rearrange(mixed, "b token head width -> b head token width")
