"""What every world model offers to training, decoders and sessions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.layout import SequenceLayout
from worldgen.models.conditions import StepConditions
from worldgen.nn.cache import FrameCache, StepCache

__all__ = ["FrameDraft", "Policy", "TextModel", "WorldModel"]


@dataclass(kw_only=True)
class FrameDraft:
    """The next frame while it is being drawn; each model adds what it knows of it.

    Made by `WorldModel.observe`; a decoder asks `WorldModel.predict` for some cells, draws them,
    and tells the model by `WorldModel.reveal`.
    """

    previous_ids: Int[Tensor, "batch cell"]
    """Of the frame before: what a decoder may take for a first guess."""
    calls: int = 0
    """How often the model was asked for cells of the frame, by `predict` or `score`."""
    pending: tuple[Tensor, Tensor] | None = None
    """Cells and ids revealed since the last prediction, which the model has not read yet."""


@runtime_checkable
class WorldModel(Protocol):
    """Predicts the visual tokens of the next frame from all steps so far."""

    layout: SequenceLayout
    codebook_size: int

    @property
    def device(self) -> torch.device:
        """Where the model computes."""

    def new_cache(self, batch: int, *, spare: int = 0) -> FrameCache:
        """Return an empty cache for `batch` sequences that advance together."""

    def observe(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
        conditions: StepConditions | None = None,
    ) -> FrameDraft:
        """Commit one step (frame and action) to the cache; return the draft of the next frame.

        Args:
            cache: Of the steps before.
            visual_ids: Of the frame.
            action_ids: The action taken in it.
            conditions: What the step is told beside them; one step for each sequence.

        Raises:
            ConfigError: If the model does not take such conditions.
        """

    def predict(
        self, draft: FrameDraft, cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return logits of `cells`, to be drawn at once, given the cells revealed so far."""

    def reveal(
        self,
        draft: FrameDraft,
        cells: Int[Tensor, " group"],
        ids: Int[Tensor, "batch group"],
    ) -> None:
        """Tell the model the drawn ids of `cells`."""

    def score(
        self,
        draft: FrameDraft,
        ids: Int[Tensor, "batch cell"],
        group_of_cell: Int[Tensor, "batch cell"],
    ) -> Float[Tensor, "batch cell codebook"]:
        """Return logits of every cell given the ids of all cells of earlier groups, in one call.

        What `predict` would say if the groups were revealed in the order of their numbers; the
        draft stays as it is. This is what verifies a guess, and each row may have an order of its
        own.
        """


@runtime_checkable
class Policy(Protocol):
    """A world model that also says what the players of its recordings would do next."""

    def predict_action(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        slot_ids: Sequence[Int[Tensor, " option"]],
        choose: Callable[[int, Float[Tensor, "batch option"]], Int[Tensor, " batch"]],
    ) -> Int[Tensor, "batch slot"]:
        """Return the action that the model itself would take in a frame; the cache stays as it is.

        Args:
            cache: Of the steps before the frame.
            visual_ids: Of the frame.
            slot_ids: For each slot of an action the ids that it may take, in
                `[0, action_vocabulary_size)`.
            choose: Gets the number of a slot and logits of its ids; returns indices of them.
        """


@runtime_checkable
class TextModel(Protocol):
    """A world model whose sequences may begin with a text, from which it draws the first frame."""

    def observe_text(self, cache: StepCache, text_ids: Int[Tensor, "batch token"]) -> FrameDraft:
        """Commit the text that sequences begin with; return the draft of their first frame.

        Args:
            cache: Empty; counts the text as its frame 0.
            text_ids: As many ids as a step has tokens, padded with 0; all 0: the null prompt.

        Raises:
            ConfigError: If the world takes no text, the cache is not empty, or the ids do not fit.
        """
