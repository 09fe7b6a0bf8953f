"""What every world model offers to training, decoders and sessions."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from worldgen.layout import SequenceLayout
from worldgen.nn.cache import FrameCache

__all__ = ["FrameDraft", "WorldModel"]


@dataclass(kw_only=True)
class FrameDraft:
    """The next frame while it is being drawn, as the model sees it.

    Made by `WorldModel.observe`; a decoder asks `WorldModel.predict` for some cells, draws them,
    and tells the model by `WorldModel.reveal`.
    """

    hidden: Float[Tensor, "batch cell width"]
    """What the pass over the last step says about each cell of the next frame."""
    logits: Float[Tensor, "batch cell codebook"]
    """Prediction of every cell before any cell of the frame is known."""
    revealed: list[Tensor] = field(default_factory=list)
    """Cells revealed so far, group by group, each `[cell]`."""
    pending: tuple[Tensor, Tensor] | None = None
    """Cells and ids revealed since the last prediction, not yet in `keys_values`."""
    keys_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values of the revealed cells, a pair per layer of the within-frame stack."""


@runtime_checkable
class WorldModel(Protocol):
    """Predicts the visual tokens of the next frame from all steps so far."""

    layout: SequenceLayout
    codebook_size: int

    def new_cache(self, batch: int, *, spare: int = 0) -> FrameCache:
        """Return an empty cache for `batch` sequences that advance together."""

    def observe(
        self,
        cache: FrameCache,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
    ) -> FrameDraft:
        """Commit one step (frame and action) to the cache; return the draft of the next frame."""

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
