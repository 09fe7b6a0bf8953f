"""Who sits where in the sequence: action tokens and visual tokens of each step, and their places."""

from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from worldgen.errors import ConfigError

__all__ = ["SequenceLayout"]


@dataclass(frozen=True, kw_only=True)
class SequenceLayout:
    """One step of the sequence: the tokens of its actions and those of its grid in raster order.

    The action of a step is the one taken *in* its frame, so everything that the next frame
    depends on stands in one block, and one pass over the block predicts the next frame.

    Where a grid stands for several frames, a step has as many actions: those that lead to the
    frames of the next grid, the first of them taken in the last frame of its own grid.
    """

    rows: int
    """Height of the grid of visual tokens."""
    columns: int
    """Width of the grid of visual tokens."""
    num_action_tokens: int
    """Action tokens of a step, of all its frames; 0 for a world without actions."""
    frames_per_step: int = 1
    """Frames that a grid stands for, the first grid of a clip excepted: that is one frame."""
    actions_first: bool = True
    """Whether the action tokens stand before or after the visual tokens of their step."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or self.num_action_tokens < 0:
            raise ConfigError(
                f"a layout needs rows and columns of at least 1 and no negative number of action "
                f"tokens, got {self.rows} x {self.columns} and {self.num_action_tokens}"
            )
        if self.frames_per_step < 1 or self.num_action_tokens % self.frames_per_step:
            raise ConfigError(
                f"{self.num_action_tokens} action tokens cannot be shared by "
                f"{self.frames_per_step} frames; a step needs as many for each of its frames"
            )

    @property
    def num_cells(self) -> int:
        """Visual tokens of a step."""
        return self.rows * self.columns

    @property
    def action_tokens_per_frame(self) -> int:
        """Tokens of one action."""
        return self.num_action_tokens // self.frames_per_step

    def num_steps(self, num_frames: int) -> int:
        """Return how many steps have as many actions as that many frames, the last one filled."""
        return -(-num_frames // self.frames_per_step)

    def actions_of_steps(
        self, action_ids: Int[Tensor, "*batch frame slot"]
    ) -> Int[Tensor, "*batch step token"]:
        """Return the action tokens of consecutive frames as those of steps.

        Where the last step has fewer frames than it needs, the last action is held.
        """
        missing = self.num_steps(action_ids.shape[-2]) * self.frames_per_step
        missing -= action_ids.shape[-2]
        if missing:
            held = action_ids[..., -1:, :].expand(*action_ids.shape[:-2], missing, -1)
            action_ids = torch.cat((action_ids, held), dim=-2)
        return rearrange(
            action_ids, "... (step q) slot -> ... step (q slot)", q=self.frames_per_step
        )

    @property
    def tokens_per_step(self) -> int:
        """Action tokens and visual tokens of a step together."""
        return self.num_action_tokens + self.num_cells

    @property
    def action_slice(self) -> slice:
        """Where the action tokens are inside a step."""
        first = 0 if self.actions_first else self.num_cells
        return slice(first, first + self.num_action_tokens)

    @property
    def visual_slice(self) -> slice:
        """Where the visual tokens are inside a step."""
        first = self.num_action_tokens if self.actions_first else 0
        return slice(first, first + self.num_cells)

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
        blocks = (actions, self.cell_positions)
        return torch.cat(blocks if self.actions_first else blocks[::-1])
