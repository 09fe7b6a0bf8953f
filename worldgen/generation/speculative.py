"""A small world model guesses the frame, the large one checks the guess."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.generation.jacobi import settle
from worldgen.generation.sampling import SamplingConfig
from worldgen.generation.scheduled import Decoder
from worldgen.layout import SequenceLayout
from worldgen.models.base import FrameDraft, Policy, TextModel, WorldModel
from worldgen.models.conditions import StepConditions
from worldgen.nn.cache import FrameCache, StepCache

__all__ = ["PairedDraft", "SpeculativeDecoder", "WithDraftModel"]

_TOLD = ("text_vocabulary_size", "recall_after", "noise_levels")
"""Fields of a model's configuration that decide what sessions tell it."""


class PairedCache(FrameCache):
    """The caches of a large model and of a small one, as one.

    Models write to the two; to all others it is a cache that forks and rewinds.

    Args:
        large: Of the large model.
        small: As long as the large one.
    """

    def __init__(self, large: FrameCache, small: FrameCache) -> None:
        self.large = large
        self.small = small
        self.config = large.config
        self.batch = large.batch
        self.device = large.device
        self.num_frames = large.num_frames

    @property
    def num_bytes(self) -> int:
        """Memory of both."""
        return self.large.num_bytes + self.small.num_bytes

    @property
    def sink(self) -> int:
        """Of the one that keeps more."""
        return max(self.large.sink, self.small.sink)

    @property
    def receptive_field(self) -> int:
        """Of the one that sees further."""
        return max(self.large.receptive_field, self.small.receptive_field)

    def skip_to(self, num_frames: int) -> None:
        """Leave frames out of both; see `FrameCache.skip_to`."""
        self.large.skip_to(num_frames)
        self.small.skip_to(num_frames)
        self.num_frames = num_frames

    def can_rewind_to(self, num_frames: int) -> bool:
        """Whether both can."""
        return self.large.can_rewind_to(num_frames) and self.small.can_rewind_to(num_frames)

    def rewind_to(self, num_frames: int) -> None:
        """Forget every frame from number `num_frames` on.

        Raises:
            SessionLimitError: If one of them has overwritten a frame that would be needed again.
        """
        # One that cannot refuses before the other has moved.
        for cache in sorted((self.large, self.small), key=lambda c: c.can_rewind_to(num_frames)):
            cache.rewind_to(num_frames)
        self.num_frames = num_frames

    def fork(self) -> "PairedCache":
        """Return an independent pair."""
        return PairedCache(self.large.fork(), self.small.fork())


@dataclass(kw_only=True)
class PairedDraft(FrameDraft):
    """The next frame as each of the two models knows it."""

    large: FrameDraft
    small: FrameDraft
    """Its `calls` are those of the small model."""
    guess: Int[Tensor, "batch cell"] | None = None
    """What the small model drew; the share of it that is right is the rate of acceptance."""


class WithDraftModel:
    """A world model with a smaller one beside it, which sees the same steps.

    It predicts what the large one predicts. Every decoder takes it; `SpeculativeDecoder` asks the
    small one as well.

    Args:
        large: The one that counts.
        small: Of the same tokenizers.

    Raises:
        ConfigError: If the two do not speak of the same tokens, or are not told the same.
    """

    def __init__(self, large: WorldModel, small: WorldModel) -> None:
        facts = {
            "codebook size": (large.codebook_size, small.codebook_size),
            **{
                name.replace("_", " "): (getattr(large.layout, name), getattr(small.layout, name))
                for name in ("rows", "columns", "num_action_tokens", "frames_per_step")
            },
            **{
                name.replace("_", " "): tuple(
                    getattr(getattr(model, "config", None), name, 0) for model in (large, small)
                )
                for name in _TOLD
            },
        }
        wrong = [f"{name} {a} against {b}" for name, (a, b) in facts.items() if a != b]
        if wrong:
            raise ConfigError(
                f"a draft model needs the tokenizers of its model and is told the same, got "
                f"{', '.join(wrong)}"
            )
        self.large, self.small = large, small
        self.layout: SequenceLayout = large.layout
        self.codebook_size = large.codebook_size
        if isinstance(large, Policy):
            self.predict_action = self._predict_action

    @property
    def device(self) -> torch.device:
        """Where the large model computes."""
        return self.large.device

    def new_cache(self, batch: int, *, spare: int = 0) -> PairedCache:
        """Return empty caches for `batch` sequences that advance together."""
        return PairedCache(
            self.large.new_cache(batch, spare=spare), self.small.new_cache(batch, spare=spare)
        )

    def observe(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
        conditions: StepConditions | None = None,
    ) -> PairedDraft:
        """Commit one step to both caches; return the draft of the next frame."""
        assert isinstance(cache, PairedCache)
        large = self.large.observe(cache.large, visual_ids, action_ids, conditions)
        small = self.small.observe(cache.small, visual_ids, action_ids, conditions)
        return self._paired(cache, large, small)

    def observe_text(self, cache: StepCache, text_ids: Int[Tensor, "batch token"]) -> PairedDraft:
        """Commit the text in front to both caches; return the draft of the first frame."""
        assert isinstance(cache, PairedCache)
        if not (isinstance(self.large, TextModel) and isinstance(self.small, TextModel)):
            raise ConfigError("a model and its draft model must both read text, or be given none")
        large = self.large.observe_text(cache.large, text_ids)
        small = self.small.observe_text(cache.small, text_ids)
        return self._paired(cache, large, small)

    def _paired(self, cache: PairedCache, large: FrameDraft, small: FrameDraft) -> PairedDraft:
        cache.num_frames = cache.large.num_frames
        return PairedDraft(previous_ids=large.previous_ids, large=large, small=small)

    def predict(
        self, draft: FrameDraft, cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return the large model's logits; see `WorldModel.predict`."""
        assert isinstance(draft, PairedDraft)
        draft.calls += 1
        return self.large.predict(draft.large, cells)

    def reveal(
        self, draft: FrameDraft, cells: Int[Tensor, " group"], ids: Int[Tensor, "batch group"]
    ) -> None:
        """Tell the large model the drawn ids of `cells`."""
        assert isinstance(draft, PairedDraft)
        self.large.reveal(draft.large, cells, ids)

    def score(
        self,
        draft: FrameDraft,
        ids: Int[Tensor, "batch cell"],
        group_of_cell: Int[Tensor, "batch cell"],
    ) -> Float[Tensor, "batch cell codebook"]:
        """Return the large model's logits of every cell; see `WorldModel.score`."""
        assert isinstance(draft, PairedDraft)
        draft.calls += 1
        return self.large.score(draft.large, ids, group_of_cell)

    def _predict_action(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        slot_ids: Sequence[Int[Tensor, " option"]],
        choose: Callable[[int, Float[Tensor, "batch option"]], Int[Tensor, " batch"]],
    ) -> Int[Tensor, "batch slot"]:
        """Return the action that the large model would take in a frame; see `Policy`."""
        assert isinstance(cache, PairedCache)
        assert isinstance(self.large, Policy)
        return self.large.predict_action(cache.large, visual_ids, slot_ids, choose)


@dataclass(frozen=True, kw_only=True)
class SpeculativeDecoder:
    """Raster's ids of the large model: the guess is a frame that the small model drew.

    Both draw with the same random numbers, so they agree wherever their distributions nearly do.

    Source: speculative decoding (arXiv:2211.17192), with the random numbers held instead of the
        distribution, see `settle`.
    """

    drafter: Decoder
    """Draws the guess from the small model, by any order."""
    sampling: SamplingConfig

    @property
    def name(self) -> str:
        """`speculative:` and the name of the drafter."""
        return f"speculative:{self.drafter.name}"

    @property
    def order(self) -> str:
        """That of the ids."""
        return "raster"

    def draw_frame(
        self,
        model: WorldModel,
        draft: FrameDraft,
        uniforms: Float[Tensor, "batch cell"],
    ) -> Int[Tensor, "batch cell"]:
        """Return the ids of the frame; see `settle`.

        Raises:
            ConfigError: If the model has no draft model.
        """
        if not (isinstance(model, WithDraftModel) and isinstance(draft, PairedDraft)):
            raise ConfigError(
                f"decoder {self.name!r} needs a draft model beside the world's; make the model "
                "WithDraftModel(large, small), or take 'jacobi', whose draft is the frame before"
            )
        draft.guess = self.drafter.draw_frame(model.small, draft.small, uniforms)
        return settle(model, draft, draft.guess, uniforms, self.sampling)
