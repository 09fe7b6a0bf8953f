"""What an action of a world is made of: named groups, named actions and the keys that play them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from worldgen.errors import ActionError

__all__ = ["ActionSchema", "Axis", "Categorical", "Group", "Setting"]

Setting = str | float
"""What a named action says about one group: an option's name, or a number on an axis."""

# A name is written in action strings such as "left+gas*4", so it holds none of their marks.
_NAME = re.compile(r"[^\s,+*=]+")


@dataclass(frozen=True)
class Categorical:
    """One of several options; in an action array the value is the option's index."""

    name: str
    options: tuple[str, ...]
    """Names of the options; the first is the one at rest."""

    def __post_init__(self) -> None:
        _check_name("group", self.name)
        if not self.options:
            raise ActionError(f"action group {self.name!r} has no options; it needs at least one")
        for option in self.options:
            _check_name(f"option of group {self.name!r}", option)
        if len(set(self.options)) != len(self.options):
            raise ActionError(
                f"action group {self.name!r} repeats an option: {', '.join(self.options)}; "
                "names of options must differ"
            )

    @property
    def size(self) -> int:
        """Number of tokens that the group can take."""
        return len(self.options)

    @property
    def rest(self) -> float:
        """Value when nothing is done: the first option."""
        return 0.0

    def value(self, setting: object) -> float:
        """Return the index of a named option."""
        if isinstance(setting, str) and setting in self.options:
            return float(self.options.index(setting))
        raise ActionError(
            f"action group {self.name!r} has no option {setting!r}; "
            f"it has {', '.join(self.options)}"
        )

    def setting(self, value: float) -> Setting:
        """Return the name of the option at an index; the inverse of `value`."""
        return self.options[int(value)]

    def to_ids(self, values: Num[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Return option indices, int64, after checking them."""
        broken = ~(np.isfinite(values) & (values == np.floor(values)))
        if np.any(broken):
            raise ActionError(
                f"action group {self.name!r} takes whole numbers, the indices of its options, "
                f"got {_first(values, broken)}"
            )
        outside = (values < 0) | (values >= self.size)
        if np.any(outside):
            raise ActionError(
                f"action group {self.name!r} got {_first(values, outside)}; allowed are 0 to "
                f"{self.size - 1} ({', '.join(self.options)})"
            )
        return np.asarray(values, np.int64)

    def from_ids(self, ids: Int[np.ndarray, "..."]) -> Num[np.ndarray, "..."]:
        """Return option indices; the inverse of `to_ids`."""
        return ids

    def to_json(self) -> dict[str, Any]:
        """Return the group as plain JSON values."""
        return {"kind": "categorical", "name": self.name, "options": list(self.options)}


@dataclass(frozen=True)
class Axis:
    """A number between `low` and `high`, written as the centre of one of `bins` equal bins.

    With an odd number of bins the middle of the axis is a centre, so zero survives on an axis that
    is symmetric around it.
    """

    name: str
    low: float
    high: float
    bins: int

    def __post_init__(self) -> None:
        _check_name("group", self.name)
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ActionError(
                f"action axis {self.name!r} needs finite bounds with low below high, "
                f"got {self.low} to {self.high}"
            )
        if self.bins < 1:
            raise ActionError(f"action axis {self.name!r} needs at least 1 bin, got {self.bins}")

    @property
    def size(self) -> int:
        """Number of tokens that the group can take."""
        return self.bins

    @property
    def rest(self) -> float:
        """Value when nothing is done: zero, or the bound nearest to it."""
        return min(max(0.0, self.low), self.high)

    def value(self, setting: object) -> float:
        """Return a number given as such or as text, after checking the bounds."""
        try:
            number = float(setting) if isinstance(setting, str | int | float) else math.nan
        except ValueError:
            number = math.nan
        if not self.low <= number <= self.high:
            raise ActionError(
                f"action axis {self.name!r} takes a number from {self.low:g} to {self.high:g}, "
                f"got {setting!r}"
            )
        return number

    def setting(self, value: float) -> Setting:
        """Return the number itself; the inverse of `value`."""
        return float(value)

    def to_ids(self, values: Num[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Return the bin that holds each value, int64 in [0, bins)."""
        # Bounds that went through float32 may be off by a rounding; anything more is a mistake.
        slack = 1e-6 * (self.high - self.low)
        outside = ~((values >= self.low - slack) & (values <= self.high + slack))
        if np.any(outside):
            raise ActionError(
                f"action axis {self.name!r} got {_first(values, outside)}; allowed is "
                f"{self.low:g} to {self.high:g}; clip the value or widen the axis"
            )
        places = (values - self.low) / (self.high - self.low) * self.bins
        return np.asarray(np.clip(np.floor(places), 0, self.bins - 1), np.int64)

    def from_ids(self, ids: Int[np.ndarray, "..."]) -> Num[np.ndarray, "..."]:
        """Return the centres of bins, float64; at most half a bin from what was encoded."""
        return np.asarray(self.low + (ids + 0.5) / self.bins * (self.high - self.low))

    def to_json(self) -> dict[str, Any]:
        """Return the group as plain JSON values."""
        return {
            "kind": "axis",
            "name": self.name,
            "low": self.low,
            "high": self.high,
            "bins": self.bins,
        }


Group = Categorical | Axis


@dataclass(frozen=True, kw_only=True)
class ActionSchema:
    """The groups of an action, the actions that people name, and the keys they press for them.

    An action is an array `[..., num_groups]`: an option's index for a `Categorical`, a number for
    an `Axis`; int64 when every group is categorical, else float64.

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
    """Browser `KeyboardEvent.code` -> name of the action that is on while the key is down."""

    def __post_init__(self) -> None:
        if not self.groups:
            raise ActionError("an action schema needs at least one group, got none")
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ActionError(
                f"an action schema repeats a group: {', '.join(names)}; names of groups must differ"
            )
        for name, settings in self.named.items():
            _check_name("action", name)
            for group_name, setting in settings.items():
                self.group(group_name).value(setting)
        for code, name in self.keys.items():
            if name not in self.named:
                raise ActionError(
                    f"key {code!r} plays {name!r}, which is no named action; "
                    f"named are {', '.join(self.named) or 'none'}"
                )

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
        return {
            "groups": [group.to_json() for group in self.groups],
            "named": {name: dict(settings) for name, settings in self.named.items()},
            "keys": dict(self.keys),
        }

    @classmethod
    def from_json(cls, value: object) -> "ActionSchema":
        """Return the schema that `to_json` described.

        Raises:
            ActionError: If a key is missing or unknown, a value has the wrong type, or the schema
                contradicts itself.
        """
        fields = _fields(value, "action schema", {"groups": list, "named": dict, "keys": dict})
        groups = tuple(_group_from_json(group) for group in fields["groups"])
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
        return cls(groups=groups, named=named, keys=fields["keys"])


def _group_from_json(value: object) -> Group:
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == "categorical":
        fields = _fields(value, "action group", {"kind": str, "name": str, "options": list})
        if not all(isinstance(option, str) for option in fields["options"]):
            raise ActionError(f"options of group {fields['name']!r} must be names")
        return Categorical(fields["name"], tuple(fields["options"]))
    if kind == "axis":
        number = (int, float)
        fields = _fields(
            value,
            "action group",
            {"kind": str, "name": str, "low": number, "high": number, "bins": int},
        )
        return Axis(fields["name"], float(fields["low"]), float(fields["high"]), fields["bins"])
    raise ActionError(f"an action group must have kind 'categorical' or 'axis', got {value!r}")


def _fields(
    value: object, what: str, kinds: Mapping[str, type | tuple[type, ...]]
) -> dict[str, Any]:
    """Return a JSON object whose keys and types are exactly those of `kinds`."""
    if not isinstance(value, dict):
        raise ActionError(f"{what} must be a JSON object, got {type(value).__name__}")
    if set(value) != set(kinds):
        missing, unknown = (
            sorted(set(kinds) - set(value)),
            sorted(map(str, set(value) - set(kinds))),
        )
        raise ActionError(
            f"{what} must have exactly the keys {', '.join(kinds)}; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    for key, kind in kinds.items():
        if not isinstance(value[key], kind) or isinstance(value[key], bool):
            raise ActionError(f"{what}: {key!r} has the wrong type, got {value[key]!r}")
    return value


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ActionError(
            f"name of {what} must not be empty nor hold spaces or any of , + * = , got {name!r}"
        )


def _first(values: np.ndarray, wrong: Any) -> str:
    """Return the first wrong value as text, for a message."""
    return f"{np.atleast_1d(values)[np.atleast_1d(wrong)][0]:g}"
