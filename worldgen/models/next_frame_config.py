"""Sizes of a next-frame transformer."""

from dataclasses import dataclass
from typing import ClassVar

from worldgen.errors import ConfigError
from worldgen.models.interleaved import InterleavedConfig

__all__ = ["NextFrameConfig"]


@dataclass(frozen=True, kw_only=True)
class NextFrameConfig(InterleavedConfig):
    """Sizes of a next-frame transformer."""

    actions_first: ClassVar[bool] = True

    within_frame_depth: int = 2
    """Layers of the stack that ties the cells of the frame being drawn to each other."""
    token_embedding_width: int = 64
    """Width of a visual token's embedding before its 3 x 3 neighbourhood is read."""
    rotary_base: float = 100.0
    text_vocabulary_size: int = 0
    """Ids of the text that every sequence begins with, 0 being the padding; 0: no text."""
    longest_jump: int = 1
    """Frames that a step may look ahead when it is told the actions of those between; 1: none."""
    farthest_goal: int = 0
    """Frames to the farthest goal that a step may be told; 0: no goals."""
    recall_after: int = 0
    """Frames that pass until a frame may be recalled; 0: nothing is recalled."""
    noise_levels: int = 0
    """Levels of how spoilt a frame may be, the clean one included; 0: no levels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within_frame_depth < 1:
            raise ConfigError(
                f"within_frame_depth must be at least 1, got {self.within_frame_depth}"
            )
        if self.text_vocabulary_size < 0 or self.farthest_goal < 0 or self.recall_after < 0:
            raise ConfigError(
                f"text_vocabulary_size, farthest_goal and recall_after must be 0 or more, got "
                f"{self.text_vocabulary_size}, {self.farthest_goal} and {self.recall_after}"
            )
        if self.text_vocabulary_size and self.sink < 1:
            raise ConfigError(
                f"a world with text needs sink of at least 1, or layers with short windows lose "
                f"the text, which stands in front of the first frame; got {self.sink}"
            )
        if self.longest_jump < 1 or (self.longest_jump > 1 and not self.num_action_tokens):
            raise ConfigError(
                f"longest_jump must be 1 (no jumps) or, in worlds with actions, more: a jump is "
                f"told by the actions of the frames that it skips; got {self.longest_jump} and "
                f"{self.num_action_tokens} action tokens"
            )
        if self.noise_levels < 0 or self.noise_levels == 1:
            raise ConfigError(
                f"noise_levels must be 0 (none are told) or at least 2, clean and spoilt; got "
                f"{self.noise_levels}"
            )
