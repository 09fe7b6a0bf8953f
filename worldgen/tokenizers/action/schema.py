"""What an action of a world is made of: named groups, named actions and the keys that play them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Num

from worldgen.errors import ActionError
from worldgen.tokenizers.action.checks import check_name, json_fields
from worldgen.tokenizers.action.groups import (
    Axis,
    Categorical,
    Group,
    MuLawAxis,
    Setting,
    group_from_json,
)
from worldgen.tokenizers.action.numbering import Numbering

__all__ = [
    "ActionSchema",
    "Axis",
    "Categorical",
    "Group",
    "MuLawAxis",
    "PointerAxis",
    "Setting",
]


@dataclass(frozen=True)
class PointerAxis:
    """An axis that the mouse moves: the movement since the last step, in pixels, sets its value."""

    group: str
    """Name of an `Axis` or `MuLawAxis`."""
    per_pixel: float
    """Value of one pixel, in units of the axis; negative turns the direction around."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.per_pixel) or self.per_pixel == 0:
            raise ActionError(
                f"the pointer needs a finite per_pixel other than 0 for the group {self.group!r}, "
                f"got {self.per_pixel}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the axis as plain JSON values; `from_json` is the inverse."""
        return {"group": self.group, "per_pixel": self.per_pixel}

    @classmethod
    def from_json(cls, value: object) -> "PointerAxis":
        """Return the axis that `to_json` described; raises ActionError if it is none."""
        fields = json_fields(value, "pointer axis", {"group": str, "per_pixel": (int, float)})
        return cls(fields["group"], float(fields["per_pixel"]))


@dataclass(frozen=True, kw_only=True)
class ActionSchema:
    """The groups of an action, the actions that people name, and the keys they press for them.

    An action is an array `[..., num_groups]`: an option's index for a `Categorical`, a number for
    an `Axis` or `MuLawAxis`; int64 when every group is categorical, else float64.

    Example:
        >>> schema = ActionSchema(
        ...     groups=(Categorical("steering", ("none", "left", "right")),),
        ...     named={"nothing": {}, "left": {"steering": "left"}},
        ...     keys={"ArrowLeft": "left"},
        ... )
        >>> schema.action({"steering": "left"}).tolist()
        [1]
    """

    groups: tuple[Group, ...]
    named: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    """Name of an action -> what it sets; groups that it leaves out stay at rest."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Browser `KeyboardEvent.code` -> name of the action that is on while the key is down. The
    buttons of a mouse are "Mouse0" (left), "Mouse1" (middle) and "Mouse2" (right)."""
    pointer: Mapping[str, PointerAxis] = field(default_factory=dict)
    """What moving the mouse sets: "x" (to the right) and "y" (downwards), either or both."""
    numbering: Numbering | None = None
    """The ids of each slot; none means one slot a group, ids counted on from slot to slot."""

    def __post_init__(self) -> None:
        if not self.groups:
            raise ActionError("an action schema needs at least one group, got none")
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ActionError(
                f"an action schema repeats a group: {', '.join(names)}; names of groups must differ"
            )
        for name, settings in self.named.items():
            check_name("action", name)
            for group_name, setting in settings.items():
                self.group(group_name).value(setting)
        for code, name in self.keys.items():
            if name not in self.named:
                raise ActionError(
                    f"key {code!r} plays {name!r}, which is no named action; "
                    f"named are {', '.join(self.named) or 'none'}"
                )

        for direction, axis in self.pointer.items():
            if direction not in ("x", "y"):
                raise ActionError(f"a pointer moves in 'x' and 'y', got {direction!r}")
            if isinstance(self.group(axis.group), Categorical):
                raise ActionError(
                    f"pointer {direction!r} moves the group {axis.group!r}, which is a choice; a "
                    "pointer moves an axis"
                )
        moved = [axis.group for axis in self.pointer.values()]
        if len(set(moved)) != len(moved):
            raise ActionError(f"pointer 'x' and 'y' both move the group {moved[0]!r}; choose one")
        if self.numbering is not None:
            self.numbering.check(self.groups)

    @property
    def num_groups(self) -> int:
        """Length of the last axis of an action array."""
        return len(self.groups)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of an action array: int64 when every group is categorical, else float64."""
        categorical = all(isinstance(group, Categorical) for group in self.groups)
        return np.dtype(np.int64 if categorical else np.float64)

    def group_index(self, name: str) -> int:
        """Return the place of a group in an action array.

        Raises:
            ActionError: If there is no such group.
        """
        for index, group in enumerate(self.groups):
            if group.name == name:
                return index
        raise ActionError(
            f"there is no action group {name!r}; "
            f"groups are {', '.join(group.name for group in self.groups)}"
        )

    def group(self, name: str) -> Group:
        """Return a group by its name; raises as `group_index`."""
        return self.groups[self.group_index(name)]

    def rest(self) -> Num[np.ndarray, " group"]:
        """Return the action that does nothing."""
        return np.array([group.rest for group in self.groups], dtype=self.dtype)

    def action(self, settings: Mapping[str, Setting]) -> Num[np.ndarray, " group"]:
        """Return the action that sets some groups and leaves the others at rest.

        Raises:
            ActionError: If a group or an option is unknown, or a number out of bounds.
        """
        action = self.rest()
        for name, setting in settings.items():
            index = self.group_index(name)
            action[index] = self.groups[index].value(setting)
        return action

    def to_json(self) -> dict[str, Any]:
        """Return the schema as plain JSON values; `from_json` is the inverse."""
        # Optional fields are left out while they say nothing, so files of earlier versions and
        # files without them are the same.
        optional: dict[str, Any] = {}
        if self.pointer:
            optional["pointer"] = {name: axis.to_json() for name, axis in self.pointer.items()}
        if self.numbering is not None:
            optional["numbering"] = self.numbering.to_json()
        return {
            "groups": [group.to_json() for group in self.groups],
            "named": {name: dict(settings) for name, settings in self.named.items()},
            "keys": dict(self.keys),
            **optional,
        }

    @classmethod
    def from_json(cls, value: object) -> "ActionSchema":
        """Return the schema that `to_json` described.

        Raises:
            ActionError: If a key is missing or unknown, a value has the wrong type, or the schema
                contradicts itself.
        """
        fields = json_fields(
            value,
            "action schema",
            {"groups": list, "named": dict, "keys": dict},
            optional={"pointer": dict, "numbering": dict},
        )
        groups = tuple(group_from_json(group) for group in fields["groups"])
        named = {}
        for name, settings in fields["named"].items():
            if not isinstance(settings, dict):
                raise ActionError(f"action {name!r} must map groups to settings, got {settings!r}")
            # JSON writes 1.0 as 1, depending on who wrote it.
            named[name] = {
                group: float(setting) if type(setting) is int else setting
                for group, setting in settings.items()
            }
        for code, name in fields["keys"].items():
            if not isinstance(name, str):
                raise ActionError(f"key {code!r} must name an action, got {name!r}")
        pointer = {
            direction: PointerAxis.from_json(axis)
            for direction, axis in fields.get("pointer", {}).items()
        }
        numbering = Numbering.from_json(fields["numbering"]) if "numbering" in fields else None
        return cls(
            groups=groups,
            named=named,
            keys=fields["keys"],
            pointer=pointer,
            numbering=numbering,
        )
