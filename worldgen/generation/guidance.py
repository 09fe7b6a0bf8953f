"""Models that are steered while they are asked: to an action or a text, by a temperature per cell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.generation.sampling import SamplingConfig
from worldgen.generation.wrapped import WrappedModel
from worldgen.models.base import FrameDraft, WorldModel
from worldgen.models.conditions import StepConditions
from worldgen.nn.cache import FrameCache, StepCache

__all__ = ["Branch", "GuidedModel", "TemperedModel", "steer"]


def steer(
    model: WorldModel, sampling: SamplingConfig, rest_ids: Int[Tensor, " token"]
) -> WorldModel:
    """Return the model as a session with this sampling asks it.

    Args:
        model: Of the world; returned as it is where the sampling steers nothing.
        sampling: `guidance`, `text_guidance` and `last_temperature` steer.
        rest_ids: Action tokens of a step in which nothing is done.
    """
    branches = []
    if sampling.guidance:
        branches.append(Branch(strength=sampling.guidance, action_ids=rest_ids))
    if sampling.text_guidance:
        branches.append(Branch(strength=sampling.text_guidance, has_text=False))
    if branches:
        model = GuidedModel(model, branches)
    if sampling.last_temperature is not None and sampling.temperature > 0.0:
        model = TemperedModel(model, sampling.temperature, sampling.last_temperature)
    return model


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A sequence with the same frames that was told less: what predictions are led away from."""

    strength: float
    """How far; at least 0."""
    action_ids: Int[Tensor, " token"] | None = None
    """Action tokens of every step instead of those taken; None: those taken."""
    has_text: bool = True
    """Whether it begins with the text, or with the null prompt instead."""


@dataclass(kw_only=True)
class GuidedDraft(FrameDraft):
    """The next frame as the model knows it in all branches."""

    all: FrameDraft


class GuidedModel(WrappedModel):
    """Leads predictions away from those under no action, or no text, in one batch with them.

    Every sequence is remembered as it is and once more for each branch; all have the same frames.
    Logits are `given + strength * (given - branch)`, with such a difference for each branch.

    Source: classifier-free guidance, arXiv:2207.12598, equation 6. For actions with rest in the
        place of a trained null condition: a world knows rest from its recordings, so nothing is
        trained. Conditions add up as in arXiv:2206.01714, equation 11.

    Args:
        inner: The world model.
        branches: At least one; a strength of 0 changes nothing, at its cost.

    Raises:
        ConfigError: If there is no branch, a strength is negative, or action tokens are not those
            of one step.
    """

    def __init__(self, inner: WorldModel, branches: Sequence[Branch]) -> None:
        super().__init__(inner)
        if not branches:
            raise ConfigError("guidance needs a branch to lead away from, got none")
        for branch in branches:
            if not branch.strength >= 0.0:
                raise ConfigError(f"guidance must be 0 or more, got {branch.strength}")
            rest = branch.action_ids
            if rest is not None and rest.shape != (inner.layout.num_action_tokens,):
                raise ConfigError(
                    f"a step has {inner.layout.num_action_tokens} action tokens, rest has the "
                    f"shape {list(rest.shape)}"
                )
        self.branches = tuple(branches)
        self._rows = 1 + len(self.branches)

    def new_cache(self, batch: int, *, spare: int = 0) -> FrameCache:
        """Return an empty cache of all branches."""
        return self.inner.new_cache(self._rows * batch, spare=spare)

    def observe(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
        conditions: StepConditions | None = None,
    ) -> FrameDraft:
        """Commit one step to all branches; return the draft of the next frame."""

        def taken(branch: Branch) -> Tensor:
            rest = branch.action_ids
            return action_ids if rest is None else rest.to(action_ids).expand_as(action_ids)

        draft = self.inner.observe(
            cache,
            visual_ids.repeat(self._rows, 1),
            self._told(action_ids, taken),
            None if conditions is None else conditions.repeat(self._rows),
        )
        return self._draft(draft, len(visual_ids))

    def observe_text(self, cache: StepCache, text_ids: Int[Tensor, "batch token"]) -> FrameDraft:
        """Commit the text, or the null prompt, to all branches; return the first frame's draft."""

        def text(branch: Branch) -> Tensor:
            return text_ids if branch.has_text else torch.zeros_like(text_ids)

        draft = super().observe_text(cache, self._told(text_ids, text))
        return self._draft(draft, len(text_ids))

    def _told(self, given: Tensor, instead: Callable[[Branch], Tensor]) -> Tensor:
        """Return the rows of all branches, the sequences themselves first."""
        return torch.cat((given, *map(instead, self.branches)))

    def _draft(self, draft: FrameDraft, batch: int) -> GuidedDraft:
        return GuidedDraft(previous_ids=draft.previous_ids[:batch], all=draft)

    def predict(
        self, draft: FrameDraft, cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return guided logits of `cells`; see `WorldModel.predict`."""
        return super().predict(self._asked(draft), cells)

    def reveal(
        self, draft: FrameDraft, cells: Int[Tensor, " group"], ids: Int[Tensor, "batch group"]
    ) -> None:
        """Tell all branches the drawn ids of `cells`."""
        assert isinstance(draft, GuidedDraft)
        super().reveal(draft.all, cells, ids.repeat(self._rows, 1))

    def score(
        self,
        draft: FrameDraft,
        ids: Int[Tensor, "batch cell"],
        group_of_cell: Int[Tensor, "batch cell"],
    ) -> Float[Tensor, "batch cell codebook"]:
        """Return guided logits of every cell; see `WorldModel.score`."""
        rows = self._rows
        return super().score(self._asked(draft), ids.repeat(rows, 1), group_of_cell.repeat(rows, 1))

    def answer(
        self, logits: Float[Tensor, "rows group codebook"], cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return the logits of all branches as one."""
        given, *others = logits.chunk(self._rows)
        led = given
        for branch, other in zip(self.branches, others, strict=True):
            led = led + branch.strength * (given - other)
        return led

    def _asked(self, draft: FrameDraft) -> FrameDraft:
        assert isinstance(draft, GuidedDraft)
        draft.calls += 1
        return draft.all


class TemperedModel(WrappedModel):
    """Gives each cell a temperature of its own: the first cell's, the last one's, and between.

    It depends on the place of a cell in raster numbering and not on when it is drawn, so decoders
    that draw raster's ids still do.

    Args:
        inner: The world model.
        first: Temperature of the first cell, above 0; that of the sampling.
        last: Temperature of the last cell, above 0.

    Raises:
        ConfigError: If a temperature is not above 0.
    """

    def __init__(self, inner: WorldModel, first: float, last: float) -> None:
        super().__init__(inner)
        if not min(first, last) > 0.0:
            raise ConfigError(f"temperatures of cells must be above 0, got {first} and {last}")
        cells = inner.layout.num_cells
        # The sampling divides by the first one anyway.
        self._factors = first / torch.linspace(first, last, cells, dtype=torch.float64)

    def answer(
        self, logits: Float[Tensor, "batch group codebook"], cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return the logits of `cells`, each at its temperature."""
        return logits * self._factors.to(logits)[cells.to(logits.device), None]
