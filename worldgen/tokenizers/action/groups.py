"""The groups of an action: choices and axes, their values and their token indices."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from worldgen.errors import ActionError
from worldgen.tokenizers.action.checks import check_name, first_wrong, json_fields

__all__ = ["Axis", "Categorical", "Group", "MuLawAxis", "Setting", "group_from_json"]

Setting = str | float
"""What a named action says about one group: an option's name, or a number on an axis."""

# With more options than this a message names only the first half as many.
_MAX_SHOWN = 40


@dataclass(frozen=True)
class Categorical:
    """One of several options; in an action array the value is the option's index."""

    name: str
    options: tuple[str, ...]
    """Names of the options; the first is the one at rest."""

    def __post_init__(self) -> None:
        check_name("group", self.name)
        if not self.options:
            raise ActionError(f"action group {self.name!r} has no options; it needs at least one")
        for option in self.options:
            check_name(f"option of group {self.name!r}", option)
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
    def options_text(self) -> str:
        """The options for a message or a page, the first of them if there are very many."""
        shown = self.options if self.size <= _MAX_SHOWN else self.options[: _MAX_SHOWN // 2]
        more = f" and {self.size - len(shown)} more" if len(shown) < self.size else ""
        return ", ".join(shown) + more

    @property
    def rest(self) -> float:
        """Value when nothing is done: the first option."""
        return 0.0

    def value(self, setting: object) -> float:
        """Return the index of a named option."""
        if isinstance(setting, str) and setting in self.options:
            return float(self.options.index(setting))
        raise ActionError(
            f"action group {self.name!r} has no option {setting!r}; it has {self.options_text}"
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
                f"got {first_wrong(values, broken)}"
            )
        outside = (values < 0) | (values >= self.size)
        if np.any(outside):
            raise ActionError(
                f"action group {self.name!r} got {first_wrong(values, outside)}; allowed are 0 to "
                f"{self.size - 1} ({self.options_text})"
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
        check_name("group", self.name)
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
        return _number(setting, self)

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
                f"action axis {self.name!r} got {first_wrong(values, outside)}; allowed is "
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


@dataclass(frozen=True)
class MuLawAxis:
    """A number from `-limit` to `limit`, in bins that are fine near zero and coarse far from it.

    The mu-law of telephony (ITU-T G.711): with b = 2 limit / (bins - 1) the width of a bin after
    companding,

        y = sign(x) * limit * ln(1 + mu |x| / limit) / ln(1 + mu)
        bin = round((y + limit) / b), halves to the even bin

    and back with x = sign(y) * limit * ((1 + mu)^(|y| / limit) - 1) / mu at y = bin * b - limit.
    Zero and both limits are centres of bins. Numbers beyond a limit are taken as that limit.
    """

    name: str
    limit: float
    bins: int
    """An odd number, 3 at least."""
    mu: float
    """How much finer the bins near zero are; with 0 all are equal."""

    def __post_init__(self) -> None:
        check_name("group", self.name)
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ActionError(
                f"action axis {self.name!r} needs a finite limit above 0, got {self.limit}"
            )
        if self.bins < 3 or self.bins % 2 == 0:
            raise ActionError(
                f"action axis {self.name!r} needs an odd number of bins, 3 at least, so that one of "
                f"them is rest, got {self.bins}"
            )
        if not (math.isfinite(self.mu) and self.mu >= 0):
            raise ActionError(
                f"action axis {self.name!r} needs a finite mu of 0 or more, got {self.mu}"
            )

    @property
    def low(self) -> float:
        """The lower limit."""
        return -self.limit

    @property
    def high(self) -> float:
        """The upper limit."""
        return self.limit

    @property
    def size(self) -> int:
        """Number of tokens that the group can take."""
        return self.bins

    @property
    def rest(self) -> float:
        """Value when nothing is done: zero."""
        return 0.0

    def value(self, setting: object) -> float:
        """Return a number given as such or as text, after checking the limits."""
        return _number(setting, self)

    def setting(self, value: float) -> Setting:
        """Return the number itself; the inverse of `value`."""
        return float(value)

    def to_ids(self, values: Num[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Return the bin of each value, int64 in [0, bins); values are clipped to the limits."""
        values = np.asarray(values, np.float64)
        broken = ~np.isfinite(values)
        if np.any(broken):
            raise ActionError(
                f"action axis {self.name!r} takes finite numbers, got {first_wrong(values, broken)}"
            )
        # The order of the operations decides on which side of an edge a number falls.
        part = np.clip(values, -self.limit, self.limit) / self.limit
        if self.mu:
            part = np.sign(part) * (np.log(1.0 + self.mu * np.abs(part)) / np.log(1.0 + self.mu))
        return np.asarray(np.round((part * self.limit + self.limit) / self._bin_width), np.int64)

    def from_ids(self, ids: Int[np.ndarray, "..."]) -> Num[np.ndarray, "..."]:
        """Return the centres of bins, float64."""
        part = (np.asarray(ids) * self._bin_width - self.limit) / self.limit
        if self.mu:
            part = np.sign(part) * (((1.0 + self.mu) ** np.abs(part) - 1.0) / self.mu)
        return np.asarray(part * self.limit)

    def to_json(self) -> dict[str, Any]:
        """Return the group as plain JSON values."""
        return {
            "kind": "mu_law_axis",
            "name": self.name,
            "limit": self.limit,
            "bins": self.bins,
            "mu": self.mu,
        }

    @property
    def _bin_width(self) -> float:
        return 2 * self.limit / (self.bins - 1)


Group = Categorical | Axis | MuLawAxis


def group_from_json(value: object) -> Group:
    """Return the group that `to_json` described; raises ActionError if it is none."""
    kind = value.get("kind") if isinstance(value, dict) else None
    number = (int, float)
    what = "action group"
    if kind == "categorical":
        fields = json_fields(value, what, {"kind": str, "name": str, "options": list})
        if not all(isinstance(option, str) for option in fields["options"]):
            raise ActionError(f"options of group {fields['name']!r} must be names")
        return Categorical(fields["name"], tuple(fields["options"]))
    if kind == "axis":
        fields = json_fields(
            value, what, {"kind": str, "name": str, "low": number, "high": number, "bins": int}
        )
        return Axis(fields["name"], float(fields["low"]), float(fields["high"]), fields["bins"])
    if kind == "mu_law_axis":
        fields = json_fields(
            value, what, {"kind": str, "name": str, "limit": number, "bins": int, "mu": number}
        )
        return MuLawAxis(
            fields["name"], float(fields["limit"]), fields["bins"], float(fields["mu"])
        )
    raise ActionError(
        f"an action group must have kind 'categorical', 'axis' or 'mu_law_axis', got {value!r}"
    )


def _number(setting: object, axis: Axis | MuLawAxis) -> float:
    """Return a number given as such or as text, after checking the bounds of its axis."""
    try:
        number = float(setting) if isinstance(setting, str | int | float) else math.nan
    except ValueError:
        number = math.nan
    if not axis.low <= number <= axis.high:
        raise ActionError(
            f"action axis {axis.name!r} takes a number from {axis.low:g} to {axis.high:g}, "
            f"got {setting!r}"
        )
    return number
