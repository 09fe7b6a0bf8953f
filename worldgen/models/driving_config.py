"""Sizes of a driving transformer."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from worldgen.errors import ConfigError
from worldgen.layout import SequenceLayout
from worldgen.nn.cache_storage import CacheStorage

__all__ = ["DrivingConfig"]

CellPositions = Literal["grid", "folded"]
TimePositions = Literal["rotary", "window"]


@dataclass(frozen=True, kw_only=True)
class DrivingConfig:
    """Sizes of a driving transformer."""

    rows: int
    columns: int
    codebook_size: int
    num_action_tokens: int
    """Slots of an action, ego motion for example: yaw, forward, left."""
    action_vocabulary_size: int
    """Ids of all slots together."""
    slot_options: tuple[int, ...]
    """How many values each slot has; their ids follow on each other, slot by slot."""
    frames_per_step: int = 1
    """Only grids that stand for one frame are known."""
    first_action: tuple[int, ...] = ()
    """Ids of the action that is taken to have led to a sequence's first frame. Empty: it is not
    known, and the model has learned vectors for that."""
    width: int = 1536
    num_heads: int = 16
    context_depth: int = 12
    """Pairs of layers over the frames so far, one over time and one over space each."""
    within_frame_depth: int = 6
    """Layers over the frame being drawn."""
    window: int = 15
    """Frames that a layer over time sees, its own included."""
    code_width: int = 32
    """Width of a visual token's vector, before it is projected."""
    motion_width: int = 512
    """Sines and cosines by which a slot's value is told."""
    cell_positions: CellPositions = "grid"
    """Coordinates of cell `t`: its column and row; or `folded`, `t` divided by the number of *rows*,
    remainder first, which DrivingWorld's released weights were trained with."""
    time_positions: TimePositions = "rotary"
    """By rotation, with the frame's number; or `window`, a learned vector for each of the first
    `window` frames, where all later ones have that of the last."""
    rotary_base: float = 1000.0
    cache_storage: CacheStorage = "exact"
    """How sessions keep keys and values; of the model, so that its logs replay."""

    def __post_init__(self) -> None:
        for name in ("context_depth", "within_frame_depth", "window", "code_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.frames_per_step != 1:
            raise ConfigError(
                f"a driving transformer draws one frame for each grid of tokens, got "
                f"frames_per_step {self.frames_per_step}; choose a tokenizer of single frames, or "
                "another family"
            )
        # It checks itself.
        _ = self.layout
        if (
            len(self.slot_options) != self.num_action_tokens
            or min(self.slot_options, default=1) < 1
        ):
            raise ConfigError(
                f"slot_options needs a number of at least 1 for each of the "
                f"{self.num_action_tokens} action tokens, got {self.slot_options}"
            )
        if sum(self.slot_options) != self.action_vocabulary_size:
            raise ConfigError(
                f"slot_options {self.slot_options} have {sum(self.slot_options)} ids together, the "
                f"action vocabulary has {self.action_vocabulary_size}; every slot has ids of its own"
            )
        ranges = zip(self.first_action, self.first_ids, self.slot_options, strict=False)
        if len(self.first_action) not in (0, self.num_action_tokens) or any(
            not first <= given < first + options for given, first, options in ranges
        ):
            raise ConfigError(
                f"first_action must be empty or one id of each slot, which begin at "
                f"{self.first_ids}, got {self.first_action}"
            )
        if self.width % self.num_heads or self.width // self.num_heads % 4 or self.width % 2:
            raise ConfigError(
                f"num_heads must divide width into heads of a multiple of 4 channels, got width "
                f"{self.width} and num_heads {self.num_heads}"
            )
        if self.motion_width < 2 or self.motion_width % 2:
            raise ConfigError(f"motion_width must be even and at least 2, got {self.motion_width}")
        for name, kinds in (("cell_positions", CellPositions), ("time_positions", TimePositions)):
            if getattr(self, name) not in get_args(kinds):
                raise ConfigError(
                    f"{name} must be {' or '.join(map(repr, get_args(kinds)))}, got "
                    f"{getattr(self, name)!r}"
                )

    @property
    def layout(self) -> SequenceLayout:
        """Where the tokens of a step are."""
        return SequenceLayout(
            rows=self.rows,
            columns=self.columns,
            num_action_tokens=self.num_action_tokens,
            frames_per_step=self.frames_per_step,
            actions_first=True,
        )

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads

    @property
    def first_ids(self) -> tuple[int, ...]:
        """The first id of each slot."""
        return tuple(accumulate(self.slot_options, initial=0))[:-1]
