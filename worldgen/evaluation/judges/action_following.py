"""Does the world do what the player says: turning and speed, read by judges from generated frames."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from worldgen.evaluation.clips import ClipSpec
from worldgen.evaluation.judges.probe_data import motion_columns
from worldgen.evaluation.judges.probes import MotionProbe
from worldgen.evaluation.measures import correlation, fraction
from worldgen.real_environment import RealEnvironment

__all__ = [
    "HELD_ACTIONS",
    "HeldMotion",
    "compare_held_actions",
    "judge_held_actions",
    "simulate_held_actions",
    "track_motion",
]

HELD_ACTIONS = ("left", "right", "nothing", "gas", "brake")
WINDOWS = ((1, 16), (17, 64))

_Difference = Callable[[Mapping[str, "HeldMotion"]], np.ndarray]

# Where the simulator itself hardly reacts (a standing car does not turn), no sign is asked for.
_LEAST_TURN = 0.02
_LEAST_SPEED_DIFFERENCE = 1.0


def track_motion(
    probe: MotionProbe,
    clips: Mapping[str, UInt8[np.ndarray, "clip time height width 3"]],
    columns: Mapping[str, np.ndarray],
    *,
    context: int,
) -> dict[str, Any]:
    """Return how well the motion in clips follows the true motion, by quantity and window of steps.

    Args:
        probe: Judge of yaw_change and speed.
        clips: Clips to read by name, among them the real frames; all with the context in front.
        columns: Of the recording, [clip, time].
        context: Frames of context; step 1 is the first frame after it.
    """
    true = motion_columns(columns)
    span = probe.config.num_frames
    horizon = next(iter(clips.values())).shape[1] - context
    readings = {name: probe.read(frames[:, context + 1 - span :]) for name, frames in clips.items()}
    result: dict[str, Any] = {}
    for quantity in probe.config.quantities:
        truth = true[quantity][:, context:]
        kept = np.repeat(true[quantity][:, context - 1 : context], horizon, axis=1)
        rows = {name: reading[quantity] for name, reading in readings.items()}
        rows["last_true_value_kept"] = kept
        result[quantity] = {
            f"{first}-{min(last, horizon)}": {
                name: {
                    "correlation": correlation(
                        values[:, first - 1 : last], truth[:, first - 1 : last]
                    ),
                    "mean_absolute_error": float(
                        np.abs(values[:, first - 1 : last] - truth[:, first - 1 : last]).mean()
                    ),
                }
                for name, values in rows.items()
            }
            for first, last in WINDOWS
            if first <= horizon
        }
    return result


@dataclass(frozen=True, kw_only=True)
class HeldMotion:
    """What happened while one action was held, for each state."""

    turned: np.ndarray
    """[state], radian over all steps, positive to the left."""
    speed: np.ndarray
    """[state], at the last step."""
    gained: np.ndarray
    """[state], speed at the last step minus speed before the first."""


def judge_held_actions(
    probe: MotionProbe,
    frames: Mapping[str, UInt8[np.ndarray, "state time height width 3"]],
    *,
    steps: int,
) -> dict[str, HeldMotion]:
    """Return the motion that the judge reads while each action is held.

    Args:
        probe: Judge of yaw_change and speed.
        frames: Action -> context frames and then `steps` frames under the held action.
        steps: Frames under the held action.
    """
    span = probe.config.num_frames
    held = {}
    for action, clip in frames.items():
        # One reading more than steps: the first belongs to the last frame of the context.
        readings = probe.read(clip[:, -(steps + span) :])
        held[action] = HeldMotion(
            turned=readings["yaw_change"][:, 1:].sum(axis=1),
            speed=readings["speed"][:, -1],
            gained=readings["speed"][:, -1] - readings["speed"][:, 0],
        )
    return held


def simulate_held_actions(
    environment: RealEnvironment,
    specs: Sequence[ClipSpec],
    actions: Mapping[str, np.ndarray],
    *,
    steps: int,
    progress: Callable[[str], None] | None = None,
) -> dict[str, HeldMotion]:
    """Return the motion of the real environment while each action is held.

    Args:
        environment: Says yaw and speed in its info.
        specs: Each state is where a clip's context ends.
        actions: Action -> settings of the groups, [group].
        steps: Steps to hold.
        progress: Told about every state.
    """
    tables = {action: np.zeros((3, len(specs))) for action in actions}
    for number, spec in enumerate(specs):
        if progress is not None:
            progress(f"state {number + 1} of {len(specs)}")
        for action, settings in actions.items():
            spec.lead(environment)
            yaw, speed = float(environment.info["yaw"]), float(environment.info["speed"])
            for _ in range(steps):
                environment.step(settings)
            tables[action][:, number] = (
                float(environment.info["yaw"]) - yaw,
                float(environment.info["speed"]),
                float(environment.info["speed"]) - speed,
            )
    return {
        action: HeldMotion(turned=table[0], speed=table[1], gained=table[2])
        for action, table in tables.items()
    }


def compare_held_actions(
    generated: Mapping[str, HeldMotion],
    simulated: Mapping[str, HeldMotion] | None,
) -> dict[str, Any]:
    """Return the shares of states that react the right way, and mean gains beside the simulator's.

    A state counts where the simulator itself reacts by more than 0.02 rad or 1 unit of speed;
    without a simulator every state counts.

    Args:
        generated: Motion read from generated frames, all of `HELD_ACTIONS`.
        simulated: The same states in the real environment, None where it is missing.
    """
    differences: dict[str, tuple[_Difference, float]] = {
        "left_turns_left": (lambda held: held["left"].turned, _LEAST_TURN),
        "right_turns_right": (lambda held: -held["right"].turned, _LEAST_TURN),
        "gas_faster_than_nothing": (
            lambda held: held["gas"].speed - held["nothing"].speed,
            _LEAST_SPEED_DIFFERENCE,
        ),
        "brake_slower_than_nothing": (
            lambda held: held["nothing"].speed - held["brake"].speed,
            _LEAST_SPEED_DIFFERENCE,
        ),
    }
    shares: dict[str, Any] = {}
    for name, (difference, least) in differences.items():
        reacts = difference(generated) > 0
        counted = np.ones_like(reacts) if simulated is None else difference(simulated) > least
        shares[name] = {
            "share": fraction(reacts[counted]),
            "states": int(counted.sum()),
            "share_of_all_states": fraction(reacts),
        }
    return {
        "states": len(generated["nothing"].speed),
        "simulator": simulated is not None,
        "shares": shares,
        "means": {
            action: {
                "generated": _means(generated[action]),
                "simulator": None if simulated is None else _means(simulated[action]),
            }
            for action in generated
        },
        "speed_gained_by_gas": _ratio(generated, simulated, "gas"),
        "speed_lost_by_brake": _ratio(generated, simulated, "brake"),
    }


def _means(held: HeldMotion) -> dict[str, float]:
    return {
        "turned": float(held.turned.mean()),
        "speed": float(held.speed.mean()),
        "speed_gained": float(held.gained.mean()),
    }


def _ratio(
    generated: Mapping[str, HeldMotion], simulated: Mapping[str, HeldMotion] | None, action: str
) -> dict[str, float | None]:
    sign = -1.0 if action == "brake" else 1.0
    own = sign * float(generated[action].gained.mean())
    true = None if simulated is None else sign * float(simulated[action].gained.mean())
    return {
        "generated": own,
        "simulator": true,
        "ratio": own / true if true is not None and abs(true) > 1e-9 else None,
    }
