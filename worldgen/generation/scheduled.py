"""What a decoder is, and the plain one: the groups of a schedule, one after the other."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.generation.sampling import SamplingConfig, draw
from worldgen.models.base import FrameDraft, WorldModel
from worldgen.schedule import DecodeSchedule

__all__ = ["Decoder", "ScheduleDecoder"]


@runtime_checkable
class Decoder(Protocol):
    """Draws one frame of ids from a model's draft of it.

    How often it asked the model is in `FrameDraft.calls` afterwards.
    """

    @property
    def name(self) -> str:
        """As written in logs and accepted by `make_decoder`."""

    @property
    def order(self) -> str:
        """Decoding order that a model must be trained for, as worlds list them on their card."""

    @property
    def sampling(self) -> SamplingConfig:
        """How ids are drawn from logits."""

    def draw_frame(
        self,
        model: WorldModel,
        draft: FrameDraft,
        uniforms: Float[Tensor, "batch cell"],
    ) -> Int[Tensor, "batch cell"]:
        """Return the ids of the frame; `uniforms` holds each cell's own random number."""


@dataclass(frozen=True, kw_only=True)
class ScheduleDecoder:
    """Draws the groups of a schedule one after the other, the cells of a group at once."""

    schedule: DecodeSchedule
    sampling: SamplingConfig

    @property
    def name(self) -> str:
        """Name of the schedule."""
        return self.schedule.name

    @property
    def order(self) -> str:
        """The schedule."""
        return self.schedule.name

    def draw_frame(
        self,
        model: WorldModel,
        draft: FrameDraft,
        uniforms: Float[Tensor, "batch cell"],
    ) -> Int[Tensor, "batch cell"]:
        """Return the ids of the frame.

        Args:
            model: Made the draft; is asked once per group.
            draft: Of the frame to draw; used up.
            uniforms: One number in [0, 1) per cell.
        """
        uniforms = uniforms.to(model.device)
        ids = torch.empty(uniforms.shape, dtype=torch.int64, device=uniforms.device)
        last = len(self.schedule.groups) - 1
        for number, group in enumerate(self.schedule.groups):
            cells = torch.tensor(group, device=ids.device)
            drawn = draw(model.predict(draft, cells), uniforms[:, cells], self.sampling)
            ids[:, cells] = drawn
            if number < last:
                model.reveal(draft, cells, drawn)
        return ids
