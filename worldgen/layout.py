"""Who sits where in the sequence: action tokens and visual tokens of each step, and their places."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from worldgen.errors import ConfigError

__all__ = ["SequenceLayout"]


@dataclass(frozen=True, kw_only=True)
class SequenceLayout:
    """One step of the sequence: the tokens of its action, then those of its frame in raster order.

    The action of a step is the one taken *in* its frame, so everything that the next frame
    depends on stands in one block, and one pass over the block predicts the next frame.
    """

    rows: int
    """Height of the grid of visual tokens."""
    columns: int
    """Width of the grid of visual tokens."""
    num_action_tokens: int
    """Action tokens of a step; 0 for a world without actions."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or self.num_action_tokens < 0:
            raise ConfigError(
                f"a layout needs rows and columns of at least 1 and no negative number of action "
                f"tokens, got {self.rows} x {self.columns} and {self.num_action_tokens}"
            )

    @property
    def num_cells(self) -> int:
        """Visual tokens of a frame."""
        return self.rows * self.columns

    @property
    def tokens_per_step(self) -> int:
        """Action tokens and visual tokens of a step together."""
        return self.num_action_tokens + self.num_cells

    @property
    def action_slice(self) -> slice:
        """Where the action tokens are inside a step."""
        return slice(0, self.num_action_tokens)

    @property
    def visual_slice(self) -> slice:
        """Where the visual tokens are inside a step."""
        return slice(self.num_action_tokens, self.tokens_per_step)

    @cached_property
    def cell_positions(self) -> Int[Tensor, "cell 2"]:
        """Row and column of each visual token."""
        cells = torch.arange(self.num_cells)
        return torch.stack((cells // self.columns, cells % self.columns), dim=-1)

    @cached_property
    def step_positions(self) -> Int[Tensor, "token 2"]:
        """Row and column of each token of a step; action tokens stand in a row above the grid."""
        slots = torch.arange(self.num_action_tokens)
        actions = torch.stack((torch.full_like(slots, -1), slots), dim=-1)
        return torch.cat((actions, self.cell_positions))
