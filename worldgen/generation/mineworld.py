"""MineWorld's own decoding, id by id: a flat cache whose empty slots are seen, and its session."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.generation.mineworld_calls import Call, context_call, live_frame_calls
from worldgen.generation.pixels import SessionPixels
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import SamplingConfig, draw
from worldgen.generation.session import SessionParts, Start
from worldgen.models.next_token import NextTokenTransformer
from worldgen.nn.attention import attend
from worldgen.tokenizers.action import parse_action

__all__ = ["MineWorldMemory", "MineWorldSession", "draw_frames", "mineworld_sampling"]


def mineworld_sampling(sampling: SamplingConfig) -> SamplingConfig:
    """Return the sampling that keeps what MineWorld's keeps.

    It keeps an id when the probability of those before it is `top_p` exactly, which ours does not:
    the ids before reach `top_p` already. It has `top_k` or `top_p`, not both.
    """
    return dataclasses.replace(sampling, top_p=math.nextafter(sampling.top_p, 1.0))


class MineWorldMemory:
    """The ids of a sequence, and the keys and values of those that were fed.

    A query sees every slot up to its own position. Slots that nothing was written to hold zeros,
    which take their share of the softmax and add nothing; a stand-in's slot keeps what the
    stand-in wrote. Windows of layers are not heeded: MineWorld's layers see everything.

    Source: the released code of MineWorld (arXiv:2504.08388).

    Args:
        model: Shared, never changed.
        visual_ids: Of every frame; anything for those to be drawn.
        action_ids: Taken in every frame; anything where not known yet.
    """

    def __init__(
        self,
        model: NextTokenTransformer,
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch frame slot"],
    ) -> None:
        self._model = model
        self.ids: Int[Tensor, "batch position"] = rearrange(
            model.step_ids(visual_ids, action_ids), "b frame token -> b (frame token)"
        )
        batch, length = self.ids.shape
        attention = model.block_config.attention
        shape = (len(model.windows), batch, attention.num_key_value_heads, length)
        dtype = model.readout.weight.dtype
        self._keys = torch.zeros((*shape, attention.head_width), dtype=dtype, device=model.device)
        self._values = torch.zeros_like(self._keys)
        self._cosine, self._sine = model.rotary(torch.arange(length))

    @torch.no_grad()
    def run(
        self, calls: Iterable[Call], uniforms: Float[Tensor, "batch position"], how: SamplingConfig
    ) -> Iterator[Float[Tensor, "batch drawn codebook"]]:
        """Make the passes one after the other; yield the logits that each draws its cells from.

        The drawn ids are in `ids` when the logits are yielded. Nothing happens unless the iterator
        is gone through.

        Args:
            calls: In their order.
            uniforms: One number in [0, 1) for each position; those of drawn cells are used.
            how: Cells are drawn from the codebook alone, never from the ids of actions.
        """
        how = mineworld_sampling(how)
        uniforms = uniforms.to(self._model.device)
        for call in calls:
            drawn = torch.tensor(call.drawn, dtype=torch.int64, device=self._model.device)
            logits = self._model.read(self._feed(call)[:, list(call.asked_by)])
            logits = logits[..., : self._model.codebook_size]
            self.ids[:, drawn] = draw(logits, uniforms[:, drawn], how)
            yield logits

    def _feed(self, call: Call) -> Float[Tensor, "batch token width"]:
        positions = torch.tensor(call.positions, device=self._model.device)
        # Slots behind the last query are seen by none.
        stop = max(call.positions) + 1
        mask = torch.arange(stop, device=positions.device)[None] <= positions[:, None]

        def see(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self._keys[layer], self._values[layer]
            keys[:, :, positions] = key
            values[:, :, positions] = value
            return attend(query, keys[:, :, :stop], values[:, :, :stop], mask)

        rotary = self._cosine[positions], self._sine[positions]
        tokens = self._model.embedding(self.ids[:, list(call.sources)])
        return self._model.run_blocks(tokens, rotary, see)


def draw_frames(
    model: NextTokenTransformer,
    calls: Iterable[Call],
    visual_ids: Int[Tensor, "batch context cell"],
    action_ids: Int[Tensor, "batch action slot"],
    uniforms: Float[Tensor, "batch frame cell"],
    sampling: SamplingConfig,
) -> Int[Tensor, "batch frame cell"]:
    """Return the frames after some given ones, as MineWorld draws them.

    Args:
        model: With the ids of actions behind the codebook.
        calls: Of `clip_calls`, `video_calls` or `live_calls` for these numbers of frames.
        visual_ids: Of the given frames; exactly one for `clip_calls` and `video_calls`.
        action_ids: In [0, action_vocabulary_size), of every frame but the last one drawn.
        uniforms: One number in [0, 1) for each cell to draw, as `frame_uniforms` gives them.
        sampling: How ids are drawn.

    Raises:
        ConfigError: If the numbers of frames and actions contradict each other.
    """
    context, frames = visual_ids.shape[1], uniforms.shape[1]
    if action_ids.shape[1] != context + frames - 1:
        raise ConfigError(
            f"{context} given frames and {frames} to draw need {context + frames - 1} actions, one "
            f"for each frame but the last, got {action_ids.shape[1]}"
        )
    layout = model.layout
    memory = MineWorldMemory(
        model, F.pad(visual_ids, (0, 0, 0, frames)), F.pad(action_ids, (0, 0, 0, 1))
    )
    numbers = F.pad(uniforms, (0, layout.num_action_tokens, context, 0))
    for _ in memory.run(calls, rearrange(numbers, "b f token -> b (f token)"), sampling):
        pass
    steps = rearrange(memory.ids, "b (frame token) -> b frame token", token=layout.tokens_per_step)
    return steps[:, context:, layout.visual_slice]


class MineWorldSession:
    """One player's world, played as MineWorld's own program plays it.

    When the context is full, its oldest frames are dropped until it is as long as at the start, and
    the rest is read again from position 0, with the ids as they were drawn: stand-ins vanish there.
    So the context grows and falls by turns, and a step after a fall takes longer. `Session` has
    none of this; it is the one to play with.

    Frames are rounded to 8 bits; MineWorld cuts the fraction off, one level less at most.

    Args:
        parts: Networks of the world; shared between sessions, never changed by them.
        start: Context frames and actions.
        seed: Non-negative; the same seed and actions give the same frames.
        sampling: How ids are drawn; MineWorld's program has a `top_p` of 0.8.
        window: Of the diagonal, as for `clip_calls`; none for raster order.
        context_frames: Frames that the context can hold, the one drawn included; by default those
            that the model's longest window holds.

    Raises:
        ConfigError: If the model is of another kind, its grids stand for several frames, the window
            does not fit, or the start leaves no room to draw a frame.
    """

    def __init__(
        self,
        parts: SessionParts,
        start: Start,
        *,
        seed: int,
        sampling: SamplingConfig,
        window: int | None = 4,
        context_frames: int | None = None,
    ) -> None:
        model = parts.model
        if not isinstance(model, NextTokenTransformer):
            raise ConfigError(
                f"MineWorld's decoding needs a next-token transformer, world {parts.world!r} has a "
                f"{type(model).__name__}; use Session"
            )
        if model.layout.frames_per_step != 1 or not parts.visual_tokenizer.single_frames:
            raise ConfigError(
                f"MineWorld's decoding needs a grid of tokens for every frame alone, world "
                f"{parts.world!r} has others; use Session"
            )
        if model.far_frames or model.time_decay:
            raise ConfigError(
                f"MineWorld's decoding sees all frames of its context alike, world "
                f"{parts.world!r} has far_frames {model.far_frames} and "
                f"time_decay {model.time_decay}; use Session"
            )
        self.parts, self.seed, self.sampling, self.window = parts, seed, sampling, window
        self.capacity = max(model.windows) if context_frames is None else context_frames
        self.kept = len(start.visual_ids)
        if self.kept >= self.capacity:
            raise ConfigError(
                f"a start of {self.kept} frames leaves no room in a context of {self.capacity}; it "
                f"may have at most {self.capacity - 1}"
            )
        self.frame_index = 0
        """Number of the current frame; 0 is the last frame of the context."""
        self.slid = False
        """Whether the last step began with dropping frames."""
        self._model = model
        self._pixels = SessionPixels(parts.visual_tokenizer)
        self._read(list(start.visual_ids), list(start.action_ids))

    @property
    def num_frames(self) -> int:
        """Frames in the context, the current one included."""
        return len(self._frames)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Visual tokens of the current frame, raster order, int64 `[cell]`."""
        return self._frames[-1].cpu().numpy()

    @property
    def frame(self) -> NDArray[np.uint8]:
        """The current frame, uint8 `[height, width, 3]`."""
        return self._pixels.frame(self.frame_index, -1, lambda _: self._frames[-1])

    def step(self, action: NDArray[Any] | str) -> NDArray[np.uint8]:
        """Take an action in the current frame; return the next one, uint8 `[height, width, 3]`.

        Args:
            action: Values of the schema's groups, or a name such as `"forward+jump"`.

        Raises:
            ActionError: If the action does not fit the world's schema.
        """
        tokenizer = self.parts.action_tokenizer
        if isinstance(action, str):
            action = parse_action(action, tokenizer.schema)
        self.advance(torch.from_numpy(tokenizer.encode(np.asarray(action))))
        return self.frame

    def advance(self, action_ids: Int[Tensor, " slot"]) -> None:
        """Take a step given as action tokens, without decoding pixels."""
        layout = self._model.layout
        self.slid = len(self._actions) >= self.capacity - 1
        if self.slid:
            dropped = self.capacity - self.kept
            self._read(self._frames[dropped:], self._actions[dropped:])
        number = self.num_frames
        cells, actions = self._places(number)[0], self._places(number - 1)[1]
        self._memory.ids[:, actions] = action_ids.to(self._model.device) + self._model.codebook_size
        uniforms = torch.zeros(self._memory.ids.shape, dtype=torch.float64)
        uniforms[:, cells] = frame_uniforms([self.seed], [self.frame_index + 1], layout.num_cells)
        calls = live_frame_calls(layout, number, self.window)
        for _ in self._memory.run(calls, uniforms, self.sampling):
            pass
        self._actions.append(action_ids)
        self._frames.append(self._memory.ids[0, cells].clone())
        self.frame_index += 1

    def _places(self, frame: int) -> tuple[slice, slice]:
        """Return where the cells and the actions of a frame stand."""
        layout = self._model.layout
        first = frame * layout.tokens_per_step
        actions = first + layout.num_cells
        return slice(first, actions), slice(actions, first + layout.tokens_per_step)

    def _read(self, frames: list[Tensor], actions: list[Tensor]) -> None:
        """Begin a context."""
        self._frames, self._actions = frames, actions
        layout, room = self._model.layout, self.capacity - len(frames)
        visual_ids = F.pad(torch.stack(frames), (0, 0, 0, room))
        action_ids = torch.zeros(self.capacity, layout.num_action_tokens, dtype=torch.int64)
        for number, each in enumerate(actions):
            action_ids[number] = each
        self._memory = MineWorldMemory(self._model, visual_ids[None].cpu(), action_ids[None])
        unused = torch.zeros(self._memory.ids.shape)
        for _ in self._memory.run([context_call(layout, len(frames))], unused, self.sampling):
            pass
