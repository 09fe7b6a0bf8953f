"""What the steps of a sequence may be told beside frame and action."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Int
from torch import Tensor

from worldgen.errors import ConfigError

__all__ = ["StepConditions", "refuse_conditions", "stack_conditions"]

_AXES = {
    "times": 2,
    "later_actions": 4,
    "goal_ids": 3,
    "goal_distance": 2,
    "recalled_ids": 4,
    "noise_level": 2,
}
_NOTHING = {
    "later_actions": -1,
    "goal_ids": 0,
    "goal_distance": 0,
    "recalled_ids": -1,
    "noise_level": 0,
}
"""What says that a step is told nothing: the same as leaving the part out."""


@dataclass(frozen=True, kw_only=True)
class StepConditions:
    """What consecutive steps are told; None: nothing of the kind. Integer tensors, on one device.

    A part says something about its own step, and thereby about what follows; what earlier steps
    say never changes. Which parts a world takes, and within which limits, is in its
    `NextFrameConfig`.

    Raises:
        ConfigError: If a part is not of integers, has the wrong number of axes, or is for other
            sequences or steps than the other parts.
    """

    times: Int[Tensor, "batch frame"] | None = None
    """When each frame is, in frames; None: its number in the sequence."""
    later_actions: Int[Tensor, "batch frame later slot"] | None = None
    """Actions of the frames that a jump skips, in their order: a step with them predicts the frame
    that follows the last of them. -1: not skipped."""
    goal_ids: Int[Tensor, "batch frame cell"] | None = None
    """A later frame that is to be reached."""
    goal_distance: Int[Tensor, "batch frame"] | None = None
    """How many frames after the step's own one the goal is; 0: there is none."""
    recalled_ids: Int[Tensor, "batch frame 3 cell"] | None = None
    """An earlier frame like this one, in the middle of those just before and after it; -1: nothing
    is recalled."""
    noise_level: Int[Tensor, "batch frame"] | None = None
    """How spoilt the frame may be; 0: clean."""

    def __post_init__(self) -> None:
        leading = None
        for name, part in self._parts():
            if part.ndim != _AXES[name] or part.is_floating_point() or part.dtype == torch.bool:
                raise ConfigError(
                    f"{name} must be whole numbers on {_AXES[name]} axes, beginning with "
                    f"[batch, frame]; got {part.dtype} of shape {list(part.shape)}"
                )
            leading = part.shape[:2] if leading is None else leading
            if part.shape[:2] != leading:
                raise ConfigError(
                    f"conditions must all be of the same sequences and steps, [batch, frame] = "
                    f"{list(leading)}; {name} has {list(part.shape[:2])}"
                )
        if (self.goal_ids is None) != (self.goal_distance is None):
            raise ConfigError(
                "a goal needs both goal_ids and goal_distance; give the other one as well, or none"
            )

    @property
    def shape(self) -> tuple[int, int] | None:
        """How many sequences and steps are told something; None if nothing is said at all."""
        for _, part in self._parts():
            return part.shape[0], part.shape[1]
        return None

    @property
    def kinds(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Which parts are told, and the shape of what one step is told of each."""
        return tuple((name, tuple(part.shape[2:])) for name, part in self._parts())

    def to(self, device: torch.device | str) -> "StepConditions":
        """Return the conditions on a device."""
        return self._map(lambda part: part.to(device))

    def rows(self, index: slice | Int[Tensor, " row"]) -> "StepConditions":
        """Return the conditions of some sequences of the batch."""
        return self._map(lambda part: part[index])

    def frames(self, index: slice) -> "StepConditions":
        """Return the conditions of some steps."""
        return self._map(lambda part: part[:, index])

    def repeat(self, times: int) -> "StepConditions":
        """Return the conditions of the whole batch, that many times one after the other."""
        return self._map(lambda part: part.repeat(times, *[1] * (part.ndim - 1)))

    def _parts(self) -> list[tuple[str, Tensor]]:
        given = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, part) for name, part in given if part is not None]

    def _map(self, change: Callable[[Tensor], Tensor]) -> "StepConditions":
        return StepConditions(**{name: change(part) for name, part in self._parts()})


def stack_conditions(rows: Sequence[StepConditions | None]) -> StepConditions | None:
    """Return the conditions of several batches as those of one, in their order.

    Where one is told what another is not, the other is told that there is nothing of the kind,
    which says the same.

    Args:
        rows: Of as many steps in each; None: told nothing, of one sequence.

    Raises:
        ConfigError: If the shapes differ, or some have `times` and some have not: those without
            have the numbers of their caches, which are not known here.
    """
    parts: dict[str, Tensor] = {}
    told = [row if row is not None else StepConditions() for row in rows]
    for name in _AXES:
        given = [getattr(row, name) for row in told]
        known = next((part for part in given if part is not None), None)
        if known is None:
            continue
        if name == "times" and any(part is None for part in given):
            raise ConfigError(
                "either all sequences of a batch have times or none; draw the others apart"
            )
        filled = [
            part
            if part is not None
            else known.new_full(((row.shape or (1,))[0], *known.shape[1:]), _NOTHING[name])
            for row, part in zip(told, given, strict=True)
        ]
        if len({part.shape[1:] for part in filled}) > 1:
            raise ConfigError(
                f"the sequences of a batch need {name} of one shape, got "
                f"{[list(part.shape) for part in filled]}"
            )
        parts[name] = torch.cat(filled)
    return StepConditions(**parts) if parts else None


def refuse_conditions(conditions: StepConditions | None, family: str) -> None:
    """Do nothing if a model of a family that takes no conditions is given none.

    Raises:
        ConfigError: If it is given some.
    """
    if conditions is not None:
        raise ConfigError(
            f"a world of the family {family} takes no conditions (goals, jumps, recalled frames); "
            f"use one of the next-frame family, or give none"
        )
