"""Driving: the motion of a vehicle from frame to frame as an action of three axes.

Actions are rows (yaw in degrees, x and y in metres) of `worldgen.ego_motion`, so they hold for one
frame rate. The bins of "drivingworld" are those of DrivingWorld (arXiv:2412.19505).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from worldgen.ego_motion import has_ego_data
from worldgen.errors import ActionError
from worldgen.tokenizers.action.groups import Axis, Categorical, Setting
from worldgen.tokenizers.action.schema import ActionSchema

__all__ = [
    "AXES",
    "DRIVING_PRESETS",
    "Clipping",
    "clip_to_bins",
    "driving_schema",
    "fit_driving_schema",
    "is_driving_schema",
]

AXES = ("yaw", "x", "y")
"""Names of the groups, in the order of the columns of motion."""

DRIVING_PRESETS = ("drivingworld", "car_racing")

_KEYS: Mapping[str, str] = {
    "ArrowUp": "forward",
    "ArrowDown": "back",
    "ArrowLeft": "left",
    "ArrowRight": "right",
    "KeyW": "forward",
    "KeyS": "back",
    "KeyA": "left",
    "KeyD": "right",
}
_SHOWN_STEPS = 5
# Of `fit_driving_schema`; an odd number has rest in its middle.
_FITTED_BINS = {"yaw": 401, "x": 121, "y": 127}


def driving_schema(
    preset: str, *, yaw_bins: int = 512, x_bins: int = 128, y_bins: int = 128
) -> ActionSchema:
    """Return the schema of a preset: the axes yaw, x and y.

    - "drivingworld": metres and degrees in 0.2 s, with its very ids. Yaw reaches from -8 to 8
      degrees and y from -0.5 to 0.5 m, both shifted by half a bin so that zero is the centre of
      one; x reaches from 0 to 8 m, so standing still is the first bin, whose centre is half a bin
      ahead, and reversing cannot be said.
    - "car_racing": simulation units and degrees in 0.06 s, for the car of `envs/car_racing.py`,
      which drifts, spins and reverses. Bins of 0.2 degrees and 0.05 units, 401 x 121 x 127, with
      zero as the centre of one on every axis. Over 10 s of driving the integrated bins stay within
      0.4 % of the length of the way (median; 0.8 % in nine drives of ten).

    Keys are held: forward and back set x, left and right set yaw.

    Args:
        preset: One of `DRIVING_PRESETS`.
        yaw_bins: Of "drivingworld" alone, as the other two.
        x_bins: See there.
        y_bins: See there.

    Raises:
        ActionError: If there is no such preset, or bins are fewer than 1.
    """
    if preset == "drivingworld":
        for name, bins in zip(AXES, (yaw_bins, x_bins, y_bins), strict=True):
            if bins < 1:
                raise ActionError(f"driving axis {name!r} needs 1 bin or more, got {bins}")
        half = {"yaw": 8 / yaw_bins, "y": 0.5 / y_bins}
        return _schema(
            Axis("yaw", -8.0 + half["yaw"], 8.0 + half["yaw"], yaw_bins),
            Axis("x", 0.0, 8.0, x_bins),
            Axis("y", -0.5 + half["y"], 0.5 + half["y"], y_bins),
            named={
                "forward": {"x": 1.5},
                "left": {"yaw": 2.0},
                "right": {"yaw": -2.0},
            },
        )
    if preset == "car_racing":
        return _schema(
            _axis_around_zero("yaw", 200, 0.2, 200),
            _axis_around_zero("x", 20, 0.05, 100),
            _axis_around_zero("y", 63, 0.05, 63),
            named={
                "forward": {"x": 1.6},
                "back": {"x": -0.4},
                "left": {"yaw": 5.0},
                "right": {"yaw": -5.0},
            },
        )
    raise ActionError(
        f"there is no driving preset {preset!r}; there are {', '.join(DRIVING_PRESETS)}"
    )


def fit_driving_schema(motion: Float[np.ndarray, "step 3"]) -> ActionSchema:
    """Return a schema whose bins just hold some motion, with zero the centre of a bin on each axis.

    Yaw and y reach equally far to both sides; rows without ego data count for nothing.

    Raises:
        ActionError: If no row has ego data.
    """
    known = np.asarray(motion, np.float64)[has_ego_data(motion)]
    if not len(known):
        raise ActionError("bins can be fitted to motion only; no step has ego data")
    axes = {}
    for name, column in zip(AXES, known.T, strict=True):
        low, high = min(float(column.min()), 0.0), max(float(column.max()), 0.0)
        if name != "x":
            low, high = min(low, -high), max(high, -low)
        steps = _FITTED_BINS[name] - 1
        width = max((high - low) / steps, 1e-6)
        # One bin too many at most: zero must be a centre, so both sides are rounded up.
        below, above = (int(np.ceil(round(reach / width, 6))) for reach in (-low, high))
        axes[name] = _axis_around_zero(name, below, width, above)
    forward, turn = np.median(np.abs(known[:, 1])), np.percentile(np.abs(known[:, 0]), 75)
    named: dict[str, dict[str, Setting]] = {
        "forward": {"x": min(float(forward), axes["x"].high)},
        "back": {"x": max(-float(forward) / 4, axes["x"].low)},
        "left": {"yaw": float(turn)},
        "right": {"yaw": -float(turn)},
    }
    return _schema(axes["yaw"], axes["x"], axes["y"], named=named)


def is_driving_schema(schema: ActionSchema) -> bool:
    """Return whether the actions of a schema are ego motion: the axes yaw, x and y."""
    return tuple(group.name for group in schema.groups) == AXES and not any(
        isinstance(group, Categorical) for group in schema.groups
    )


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """Where motion did not fit the bins of one axis.

    Attributes:
        axis: Its name; "all" for steps without ego data.
        steps: Rows of the motion.
        worst: The number that was furthest outside; NaN for steps without ego data.
        low: Bound of the axis.
        high: Bound of the axis.
    """

    axis: str
    steps: Int[np.ndarray, " step"]
    worst: float
    low: float
    high: float

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.steps[:_SHOWN_STEPS].tolist()))
        more = len(self.steps) - _SHOWN_STEPS
        where = f"step{'s' if len(self.steps) > 1 else ''} {shown}"
        where += f" and {more} more" if more > 0 else ""
        if np.isnan(self.worst):
            return f"no ego data in {where}; taken as rest"
        unit = "degrees" if self.axis == "yaw" else "metres"
        return (
            f"{self.axis} reaches {self.worst:.4g} {unit} a step; the bins hold {self.low:.4g} to "
            f"{self.high:.4g}: clipped in {where}"
        )


def clip_to_bins(
    motion: Float[np.ndarray, "step 3"], schema: ActionSchema
) -> tuple[Float64[np.ndarray, "step 3"], tuple[Clipping, ...]]:
    """Return motion that the axes of a schema can hold, and where it was changed.

    Numbers beyond an axis become its bound, and infinite ones too, which gives them the id of the
    outermost bin; a row with a NaN becomes rest. Both are frames without ego data; where that
    matters, ask `worldgen.ego_motion.has_ego_data` before.

    Args:
        motion: Yaw in degrees, x and y in metres of each step.
        schema: One of this module.

    Returns:
        Motion as float64, and one entry for each axis with changes; none when all fitted.

    Raises:
        ActionError: If the schema is of something else than motion, or rows are not of 3 numbers.
    """
    if not is_driving_schema(schema):
        raise ActionError(
            f"ego motion needs a schema with the axes {', '.join(AXES)}; this one has "
            f"{', '.join(group.name for group in schema.groups)}"
        )
    motion = np.array(motion, np.float64)
    if motion.ndim != 2 or motion.shape[1] != len(AXES):
        raise ActionError(f"motion is rows of yaw, x and y, got shape {motion.shape}")
    report = []
    missing = np.isnan(motion).any(-1)
    if missing.any():
        steps = np.flatnonzero(missing)
        report.append(Clipping(axis="all", steps=steps, worst=np.nan, low=np.nan, high=np.nan))
        motion[missing] = schema.rest()
    for index, group in enumerate(schema.groups):
        if isinstance(group, Categorical):
            continue
        values = motion[:, index]
        beyond = np.maximum(group.low - values, values - group.high)
        if (beyond > 0).any():
            report.append(
                Clipping(
                    axis=group.name,
                    steps=np.flatnonzero(beyond > 0),
                    worst=float(values[beyond.argmax()]),
                    low=group.low,
                    high=group.high,
                )
            )
        motion[:, index] = np.clip(values, group.low, group.high)
    return motion, tuple(report)


def _schema(
    yaw: Axis, x: Axis, y: Axis, named: Mapping[str, Mapping[str, Setting]]
) -> ActionSchema:
    return ActionSchema(
        groups=(yaw, x, y),
        named={"nothing": {}, **named},
        keys={code: name for code, name in _KEYS.items() if name in named},
    )


def _axis_around_zero(name: str, below: int, width: float, above: int) -> Axis:
    """Return an axis with zero in the middle of a bin, and so many bins on each side of that."""
    return Axis(name, -(below + 0.5) * width, (above + 0.5) * width, below + 1 + above)
