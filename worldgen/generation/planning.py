"""A long video in two passes: key frames in jumps, then all gaps between them at once."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from worldgen.errors import ConfigError
from worldgen.generation.batch import draw_together
from worldgen.generation.pixels import SessionPixels
from worldgen.generation.session import Session
from worldgen.generation.turns import Turn, draw_grids
from worldgen.models.base import TextModel, WorldModel
from worldgen.models.conditions import StepConditions
from worldgen.models.next_frame import NextFrameTransformer
from worldgen.nn.cache import FrameCache
from worldgen.tokenizers.visual import VisualTokenizer

__all__ = ["Segment", "plan_then_fill", "reach"]

_SPARE_STEPS = 2
"""A batch that is not exact is taken back and drawn row by row."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive frames that were made."""

    first: int
    """Number of the first one, as a session counts: 0 is the last frame of its context."""
    ids: Int[Tensor, "frame cell"]
    """Visual tokens, on the CPU."""
    action_ids: Int[Tensor, "frame slot"]
    """Of the action that led to each frame."""
    calls: int
    """Calls of the model, `predict` and `score`, one after the other; those made at once count
    once."""
    key_ids: Int[Tensor, "key cell"] | None = None
    """Of the key frames, of which the last one may lie behind the frames; None if it was not
    planned."""

    def frames(
        self, tokenizer: VisualTokenizer
    ) -> Iterator[UInt8[NDArray[np.uint8], "height width 3"]]:
        """Yield the pixels of the frames, one at a time.

        Args:
            tokenizer: Of the world.
        """
        pixels = SessionPixels(tokenizer)
        for number in range(len(self.ids)):
            yield pixels.frame(number, 0, lambda grid: self.ids[grid])


def reach(model: WorldModel) -> tuple[int, int]:
    """Return how far a model can jump, 1 if it cannot, and how far its goals may be, 0 for none."""
    if not isinstance(model, NextFrameTransformer):
        return 1, 0
    return model.config.longest_jump, model.config.farthest_goal


def plan_then_fill(
    session: Session,
    actions: Iterable[NDArray[Any] | str],
    *,
    stride: int | None = None,
    segment: int = 8,
    devices: Sequence[torch.device | str] = (),
    known_key_frames: Int[Tensor, "key cell"] | None = None,
) -> Iterator[Segment]:
    """Go on from a session, segment by segment: key frames first, then the frames between.

    Each key frame is drawn by a jump from the one before, told the actions of all frames between.
    Then the gaps of the segment are filled, all at once, in steps that are told their own action,
    the key frame ahead and how far it is. A gap sees the key frames before it and what was drawn of
    itself, as in training: so it does not depend on the other gaps, nor on how many there are in a
    segment. On a CPU what is drawn is a function of the session, the stride and the actions alone,
    since a batch is used where it changes no bit, see `worldgen.generation.batch`. Elsewhere gaps
    are always filled in a batch, and how it is rounded can depend on how many they are.

    A segment of `n` gaps takes `n + stride - 1` frames' worth of calls one after the other instead
    of `n * stride`. Memory is that of a segment.

    A script that ends within a gap is planned to the end of the gap with its last action held; what
    is beyond it is thrown away. Nothing is recalled in jumps and gaps.

    Source: Macro-from-Micro Planning, arXiv:2508.03334, section 3: key frames of a segment first,
        segments chained by their key frames, contents filled in parallel. There the key frames of a
        segment are predicted at once, at fixed places; here they are one autoregression, so that
        every jump is told the actions that it skips.

    Args:
        session: At the frame to go on from; it stays as it is.
        actions: Taken one after the other, as `Session.step` takes them; asked for a segment at a
            time. With the last one the video ends.
        stride: Frames from one key frame to the next; by default as many as the model can jump,
            which is what it was trained for.
        segment: Gaps that are filled at once.
        devices: That fill gaps, each with a copy of the model, which is made first; by default the
            model's own one. Key frames are drawn on that one.
        known_key_frames: Visual tokens of the key frames of segments that were made before, in
            their order: `actions` are given from the beginning, and the first segment returned is
            the one behind them.

    Raises:
        ConfigError: If the model cannot jump that far or be told such goals, it draws several
            frames together, or a number is too small.
        ActionError: If an action does not fit the world's schema.
    """
    parts = session.parts
    longest_jump, _ = reach(parts.model)
    stride = longest_jump if stride is None else stride
    _check(parts.model, stride, segment, f"world {parts.world!r}")
    known = torch.empty(0, 0) if known_key_frames is None else known_key_frames
    return _segments(session.fork(), iter(actions), stride, segment, devices, known)


def _segments(
    session: Session,
    actions: Iterator[NDArray[Any] | str],
    stride: int,
    segment: int,
    devices: Sequence[torch.device | str],
    known_key_frames: Int[Tensor, "key cell"],
) -> Iterator[Segment]:
    plan = _Plan(session, stride, devices, num_known=len(known_key_frames))
    known = list(known_key_frames)
    while taken := list(itertools.islice(actions, stride * segment)):
        action_ids = torch.stack([session.action_ids(action) for action in taken])
        frames = len(action_ids)
        gaps = -(-frames // stride)
        held = action_ids[-1:].expand(gaps * stride - frames, -1)
        of_gaps = rearrange(
            torch.cat((action_ids, held)), "(gap frame) slot -> gap frame slot", frame=stride
        )
        if known:
            if len(known) < gaps:
                raise ConfigError(
                    f"known key frames are those of whole segments: {gaps} in the last one, got "
                    f"{len(known)}"
                )
            plan.skip(of_gaps, known[:gaps])
            known = known[gaps:]
            continue
        first = plan.number + 1
        ids, calls = plan.make(of_gaps)
        yield Segment(
            first=first,
            ids=ids[:frames],
            action_ids=action_ids,
            calls=calls,
            key_ids=ids[stride - 1 :: stride],
        )


class _Chain:
    """Key frames as one device remembers them."""

    def __init__(self, model: WorldModel, text_ids: Int[Tensor, " token"] | None) -> None:
        self.model = model
        self.cache = model.new_cache(1, spare=_SPARE_STEPS)
        if text_ids is not None:
            assert isinstance(model, TextModel)
            model.observe_text(self.cache, text_ids[None])
        self._num_steps = self.cache.num_frames

    def observe(self, turn: Turn, end: int) -> None:
        """Remember the step of a key frame, unless nobody sees it any more at step `end`."""
        cache, step = self.cache, self._num_steps
        self._num_steps += 1
        if cache.sink <= step < end - max(cache.receptive_field, 1):
            return
        if step > cache.num_frames:
            cache.skip_to(step)
        self.model.observe(cache, turn.visual_ids[None], turn.action_ids[None], turn.conditions)


class _Plan:
    """The state between two segments: the last key frame and what is remembered before it.

    Args:
        session: To go on from.
        stride: Frames from one key frame to the next.
        devices: As of `plan_then_fill`.
        num_known: Key frames after the session's current one that are known.
    """

    def __init__(
        self,
        session: Session,
        stride: int,
        devices: Sequence[torch.device | str],
        num_known: int,
    ) -> None:
        model = session.parts.model
        assert isinstance(model, NextFrameTransformer)
        self.stride = stride
        self.number = session.frame_index
        """Of the last key frame, as the session counts."""
        self._seed, self._decoder = session.seed, session.decoder
        self._longest_jump = model.config.longest_jump
        self._has_levels = model.config.noise_levels > 0
        text_ids = session.start.text_ids
        if text_ids is None and model.config.text_vocabulary_size:
            text_ids = torch.zeros(model.layout.tokens_per_step, dtype=torch.int64)
        own = _Chain(session.model, text_ids)
        copies = [_Chain(_copy(session.model, device), text_ids) for device in devices]
        self._fillers = copies or [own]
        self._chains = [own, *copies]
        history = session.context()
        last = len(history.visual_ids) - 1
        # Of the frames so far every stride-th one, back from the current one.
        keys = range(last % stride, last, stride)
        self._end = own.cache.num_frames + len(keys) + num_known
        # A frame is at the time at which a session has it, behind the text.
        self._texts = own.cache.num_frames
        self._given = len(session.start.visual_ids)
        self._first = last - session.frame_index
        """Frames before frame 0."""
        for index in keys:
            self.number, self.key_ids = index - self._first, history.visual_ids[index]
            self._observe(self._jump(history.action_ids[index : index + stride]), self._chains)
        self.number, self.key_ids = session.frame_index, history.visual_ids[-1]

    def skip(
        self,
        actions: Int[Tensor, "gap frame slot"],
        key_frames: Sequence[Int[Tensor, " cell"]],
    ) -> None:
        """Remember a segment that was made before."""
        for of_gap, ids in zip(actions, key_frames, strict=True):
            self._observe(self._jump(of_gap), self._chains)
            self._go_on(ids)

    def make(self, actions: Int[Tensor, "gap frame slot"]) -> tuple[Int[Tensor, "frame cell"], int]:
        """Return the frames of a segment and the calls that were made one after the other."""
        gaps: list[_Gap] = []
        calls = 0
        for index, of_gap in enumerate(actions):
            filler = self._fillers[index % len(self._fillers)]
            # The jump does not belong to what the gap sees: there its place is a single step's.
            before = filler.cache.fork()
            jump = self._jump(of_gap)
            drawn = draw_grids([jump])[0]
            self._observe(jump, self._chains[1:])
            calls += drawn.calls
            gaps.append(
                _Gap(
                    model=filler.model,
                    cache=before,
                    ids=[self.key_ids],
                    actions=of_gap,
                    number=self.number,
                    goal=drawn.ids,
                )
            )
            self._go_on(drawn.ids)
        calls += self._fill(gaps)
        return torch.cat([torch.stack([*gap.ids[1:], gap.goal]) for gap in gaps]), calls

    def _fill(self, gaps: Sequence["_Gap"]) -> int:
        size = len(self._fillers)
        groups = [gaps[index::size] for index in range(min(size, len(gaps)))]
        if len(groups) == 1:
            return self._fill_together(groups[0])
        with ThreadPoolExecutor(len(groups)) as pool:
            return max(pool.map(self._fill_together, groups))

    def _fill_together(self, gaps: Sequence["_Gap"]) -> int:
        """Fill gaps on one device; return the calls made there."""
        calls = 0.0
        # Elsewhere hardly a batch is rounded as its rows are, and one by one nothing is saved.
        exactly = gaps[0].model.device.type == "cpu"
        for frame in range(self.stride - 1):
            drawn = draw_together(
                [self._step(gap, frame) for gap in gaps], largest_batch=len(gaps), exactly=exactly
            )
            for gap, each in zip(gaps, drawn, strict=True):
                gap.ids.append(each.ids)
            # A row tells the calls of its whole batch.
            calls += sum(each.calls / each.rows for each in drawn)
        return round(calls)

    def _jump(self, actions: Int[Tensor, "frame slot"]) -> Turn:
        """Return the step from the last key frame to the next one."""
        later = torch.full((self._longest_jump - 1, actions.shape[-1]), -1)
        later[: len(actions) - 1] = actions[1:]
        chain = self._chains[0]
        return Turn(
            model=chain.model,
            decoder=self._decoder,
            cache=chain.cache,
            visual_ids=self.key_ids,
            action_ids=actions[0],
            seed=self._seed,
            number=self.number + self.stride,
            conditions=self._told(self.number, later_actions=later[None, None]),
        )

    def _step(self, gap: "_Gap", frame: int) -> Turn:
        """Return the step from a frame of a gap to the next one."""
        return Turn(
            model=gap.model,
            decoder=self._decoder,
            cache=gap.cache,
            visual_ids=gap.ids[-1],
            action_ids=gap.actions[frame],
            seed=self._seed,
            number=gap.number + frame + 1,
            conditions=self._told(
                gap.number + frame,
                goal_ids=gap.goal[None, None],
                goal_distance=torch.tensor([[self.stride - frame]]),
            ),
        )

    def _told(self, number: int, **parts: Tensor) -> StepConditions:
        """Return what a step is told in a frame, beside what is given."""
        place = number + self._first
        if self._has_levels:
            level = self._decoder.sampling.context_noise if place >= self._given else 0
            parts["noise_level"] = torch.tensor([[level]])
        return StepConditions(times=torch.tensor([[place + self._texts]]), **parts)

    def _observe(self, turn: Turn, chains: Sequence[_Chain]) -> None:
        for chain in chains:
            chain.observe(turn, self._end)

    def _go_on(self, ids: Int[Tensor, " cell"]) -> None:
        self.key_ids = ids
        self.number += self.stride


@dataclass(frozen=True, kw_only=True)
class _Gap:
    """Frames between two key frames while they are drawn."""

    model: WorldModel
    cache: FrameCache
    """Of the key frames before."""
    ids: list[Int[Tensor, " cell"]]
    """From the key frame before on."""
    actions: Int[Tensor, "frame slot"]
    number: int
    """Of the key frame before, as the session counts."""
    goal: Int[Tensor, " cell"]
    """The key frame ahead."""


def _copy(model: WorldModel, device: torch.device | str) -> WorldModel:
    """Return a copy of a model, with all that steers it, on a device."""
    copied = copy.deepcopy(model)
    inner: Any = copied
    while not isinstance(inner, nn.Module):
        inner = inner.inner
    inner.to(device)
    return copied


def _check(model: WorldModel, stride: int, segment: int, world: str) -> None:
    longest_jump, farthest_goal = reach(model)
    if longest_jump < 2 or farthest_goal < 1:
        raise ConfigError(
            f"{world} was not trained to plan and fill; train one of the next-frame family with "
            "model.longest_jump=4, model.farthest_goal=4 and shares of clips for tasks.plan and "
            "tasks.fill, as experiment=crafter_story is, or generate frame by frame"
        )
    if model.layout.frames_per_step > 1:
        raise ConfigError(
            f"{world} draws {model.layout.frames_per_step} frames together; plans are for worlds "
            "whose grids stand for one frame each"
        )
    if not 2 <= stride <= min(longest_jump, farthest_goal):
        raise ConfigError(
            f"stride must lie in 2 ... {min(longest_jump, farthest_goal)} in {world}, which jumps "
            f"{longest_jump} frames at most and has goals {farthest_goal} frames away at most; got "
            f"{stride}"
        )
    if segment < 1:
        raise ConfigError(f"a segment needs at least 1 gap, got {segment}")
