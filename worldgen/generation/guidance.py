"""Models that are steered while they are asked: towards an action, and by a temperature per cell."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.generation.sampling import SamplingConfig
from worldgen.generation.wrapped import WrappedModel
from worldgen.models.base import FrameDraft, WorldModel
from worldgen.nn.cache import FrameCache, StepCache

__all__ = ["GuidedModel", "TemperedModel", "steer"]


def steer(
    model: WorldModel, sampling: SamplingConfig, rest_ids: Int[Tensor, " token"]
) -> WorldModel:
    """Return the model as a session with this sampling asks it.

    Args:
        model: Of the world; returned as it is where the sampling steers nothing.
        sampling: `guidance` and `last_temperature` steer.
        rest_ids: Action tokens of a step in which nothing is done.
    """
    if sampling.guidance:
        model = GuidedModel(model, rest_ids, sampling.guidance)
    if sampling.last_temperature is not None and sampling.temperature > 0.0:
        model = TemperedModel(model, sampling.temperature, sampling.last_temperature)
    return model


@dataclass(kw_only=True)
class GuidedDraft(FrameDraft):
    """The next frame as the model knows it in both branches."""

    both: FrameDraft


class GuidedModel(WrappedModel):
    """Leads predictions away from those under no action, in one batch with them.

    Every sequence is remembered twice, once with its actions and once with rest instead; both have
    the same frames. Logits are `given + guidance * (given - rest)`.

    Source: classifier-free guidance, arXiv:2207.12598, equation 6, with rest in the place of a
        trained null condition: a world knows rest from its recordings, so nothing is trained.

    Args:
        inner: The world model.
        rest_ids: Action tokens of a step in which nothing is done.
        guidance: At least 0; 0 changes nothing, at twice the cost.

    Raises:
        ConfigError: If the guidance is negative, or the tokens are not those of one step.
    """

    def __init__(self, inner: WorldModel, rest_ids: Int[Tensor, " token"], guidance: float) -> None:
        super().__init__(inner)
        if not guidance >= 0.0:
            raise ConfigError(f"guidance must be 0 or more, got {guidance}")
        if rest_ids.shape != (inner.layout.num_action_tokens,):
            raise ConfigError(
                f"a step has {inner.layout.num_action_tokens} action tokens, rest has the shape "
                f"{list(rest_ids.shape)}"
            )
        self.rest_ids = rest_ids
        self.guidance = guidance

    def new_cache(self, batch: int, *, spare: int = 0) -> FrameCache:
        """Return an empty cache of both branches."""
        return self.inner.new_cache(2 * batch, spare=spare)

    def observe(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
    ) -> FrameDraft:
        """Commit one step to both branches; return the draft of the next frame."""
        rest = self.rest_ids.to(action_ids).expand_as(action_ids)
        both = torch.cat((action_ids, rest))
        draft = self.inner.observe(cache, visual_ids.repeat(2, 1), both)
        return GuidedDraft(previous_ids=draft.previous_ids[: len(visual_ids)], both=draft)

    def predict(
        self, draft: FrameDraft, cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return guided logits of `cells`; see `WorldModel.predict`."""
        return super().predict(self._asked(draft), cells)

    def reveal(
        self, draft: FrameDraft, cells: Int[Tensor, " group"], ids: Int[Tensor, "batch group"]
    ) -> None:
        """Tell both branches the drawn ids of `cells`."""
        assert isinstance(draft, GuidedDraft)
        super().reveal(draft.both, cells, ids.repeat(2, 1))

    def score(
        self,
        draft: FrameDraft,
        ids: Int[Tensor, "batch cell"],
        group_of_cell: Int[Tensor, "batch cell"],
    ) -> Float[Tensor, "batch cell codebook"]:
        """Return guided logits of every cell; see `WorldModel.score`."""
        return super().score(self._asked(draft), ids.repeat(2, 1), group_of_cell.repeat(2, 1))

    def answer(
        self, logits: Float[Tensor, "both group codebook"], cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return the logits of both branches as one."""
        given, rest = logits.chunk(2)
        return given + self.guidance * (given - rest)

    def _asked(self, draft: FrameDraft) -> FrameDraft:
        assert isinstance(draft, GuidedDraft)
        draft.calls += 1
        return draft.both


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
