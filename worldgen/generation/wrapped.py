"""A world model around another one: passes every question on, and may change the answers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.layout import SequenceLayout
from worldgen.models.base import FrameDraft, TextModel, WorldModel
from worldgen.models.conditions import StepConditions
from worldgen.nn.cache import FrameCache, StepCache

__all__ = ["WrappedModel"]


class WrappedModel:
    """Asks the model inside and gives back what `answer` makes of its logits; drafts are its own."""

    def __init__(self, inner: WorldModel) -> None:
        self.inner = inner
        self.layout: SequenceLayout = inner.layout
        self.codebook_size = inner.codebook_size

    def answer(
        self,
        logits: Float[Tensor, "batch group codebook"],
        cells: Int[Tensor, " group"],
    ) -> Float[Tensor, "batch group codebook"]:
        """Return what is answered where the model inside says `logits` of `cells`."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.inner.device

    def new_cache(self, batch: int, *, spare: int = 0) -> FrameCache:
        """Return an empty cache; see `WorldModel.new_cache`."""
        return self.inner.new_cache(batch, spare=spare)

    def observe(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
        conditions: StepConditions | None = None,
    ) -> FrameDraft:
        """Commit one step to the cache; return the draft of the next frame."""
        return self.inner.observe(cache, visual_ids, action_ids, conditions)

    def observe_text(self, cache: StepCache, text_ids: Int[Tensor, "batch token"]) -> FrameDraft:
        """Commit the text that sequences begin with; see `TextModel.observe_text`."""
        if not isinstance(self.inner, TextModel):
            raise ConfigError(f"a {type(self.inner).__name__} takes no text; leave it out")
        return self.inner.observe_text(cache, text_ids)

    def predict(
        self, draft: FrameDraft, cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return the answer about `cells`; see `WorldModel.predict`."""
        return self.answer(self.inner.predict(draft, cells), cells)

    def reveal(
        self, draft: FrameDraft, cells: Int[Tensor, " group"], ids: Int[Tensor, "batch group"]
    ) -> None:
        """Tell the model the drawn ids of `cells`."""
        self.inner.reveal(draft, cells, ids)

    def score(
        self,
        draft: FrameDraft,
        ids: Int[Tensor, "batch cell"],
        group_of_cell: Int[Tensor, "batch cell"],
    ) -> Float[Tensor, "batch cell codebook"]:
        """Return the answer about every cell; see `WorldModel.score`."""
        logits = self.inner.score(draft, ids, group_of_cell)
        return self.answer(logits, torch.arange(logits.shape[1], device=logits.device))
