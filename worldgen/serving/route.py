"""Routes: the way a vehicle has driven in a world, and actions that lead it along another.

Places are those of `worldgen.ego_motion`, with frame 0 of a drive at (0, 0), looking along x.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float64

from worldgen.data.trajectory import parse_trajectory
from worldgen.ego_motion import integrate
from worldgen.errors import DataError
from worldgen.pipeline import World
from worldgen.serving.player import Player, actions_from
from worldgen.tokenizers.action import Categorical, clip_to_bins, is_driving_schema

__all__ = [
    "MAX_ROUTE_STEPS",
    "MAX_TRAJECTORY_BYTES",
    "Route",
    "drawn_route",
    "ego_motion_facts",
    "recorded_route",
    "usual_step",
]

MAX_TRAJECTORY_BYTES: Final = 1024 * 1024
"""An hour of poses at 5 frames per second fits."""
MAX_ROUTE_STEPS: Final = 20_000
_MAX_POINTS: Final = 20_000
_FURTHEST: Final = 1e9
_STEPS_AHEAD: Final = 5
"""How far ahead the driver of a drawn way looks."""
_SAMPLES_A_STEP: Final = 4
_STANDING: Final = 0.2
"""Of the usual speed; below it a vehicle counts as standing."""
_SHARPEST: Final = 2.0
"""Times the turn of a key; bins reach much further, to spins that no way asks for."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """Steps that are to be taken.

    Attributes:
        actions: float64 [step, 3], exactly as the session will keep them.
        poses: float64 [step + 1, 3]; the first is that of the vehicle now.
        problems: What had to be changed or left out, one line each.
    """

    actions: Float64[np.ndarray, "step 3"]
    poses: Float64[np.ndarray, "frame 3"]
    problems: tuple[str, ...] = ()


def ego_motion_facts(world: World) -> dict[str, Any] | None:
    """Return what a page must know to draw the drives of a world; None if nothing drives in it.

    `length_unit` is what the card says under `data`, metres by default; `usual_speed` is in that
    unit a second.
    """
    if not is_driving_schema(world.action_tokenizer.schema):
        return None
    return {
        "length_unit": str(world.card.data.get("length_unit", "m")),
        "usual_speed": usual_step(world) * world.frames_per_second,
    }


def usual_step(world: World) -> float:
    """Return how far a key drives forward in a step; a quarter of the axis where there is none."""
    schema = world.action_tokenizer.schema
    x = schema.groups[1]
    assert not isinstance(x, Categorical)
    step = schema.named.get("forward", {}).get("x", 0.0)
    return float(step) if float(step) > 0 else float(x.high) / 4


def drawn_route(points: Any, start: Float64[np.ndarray, " 3"], player: Player) -> Route:
    """Return the steps that lead from a pose along a line, at the present speed or the usual one.

    The driver steers on a circle to the point of the line that is a few steps ahead (pure pursuit,
    Coulter, CMU-RI-TR-92-01), from where the bins of the actions have really led. So a line that
    bends too sharply, or does not begin where the vehicle looks, is met again.

    Args:
        points: Places `[point][x, y]`, as a page sends them.
        start: Pose at which the vehicle is.
        player: Who drives.

    Raises:
        DataError: If the points are no list of places, or the way is shorter than a step or too
            long.
    """
    world = player.world
    places = _places(points)
    length = _present_step(player)
    line = _sampled(np.concatenate([start[None, :2], places]), length / _SAMPLES_A_STEP)
    num_steps = (len(line) - 1) / _SAMPLES_A_STEP
    if num_steps < 1:
        raise DataError("the way is shorter than one step; draw a longer one")
    if num_steps > MAX_ROUTE_STEPS:
        raise DataError(f"the way takes more than {MAX_ROUTE_STEPS:,} steps; draw a shorter one")
    return _pursuit(line, start, length, world)


def recorded_route(
    name: str, content: str, start: Float64[np.ndarray, " 3"], player: Player
) -> Route:
    """Return the steps of the trajectory in a file, from a pose on.

    Args:
        name: Of the file; its ending tells the format.
        content: Its text.
        start: Pose at which the vehicle is.
        player: Who drives.

    Raises:
        DataError: If the file is too large, no trajectory, or drives too long.
    """
    if len(content) > MAX_TRAJECTORY_BYTES:
        raise DataError(
            f"{name} is larger than {MAX_TRAJECTORY_BYTES // 1024:,} KiB; shorten it, or use "
            "worldgen rollout --trajectory"
        )
    world, trajectory = player.world, parse_trajectory(content, name)
    values, problems = trajectory.actions(world.action_tokenizer.schema, world.frames_per_second)
    if len(values) > MAX_ROUTE_STEPS:
        raise DataError(
            f"{name} drives for {len(values):,} steps; {MAX_ROUTE_STEPS:,} are the most here. "
            "Shorten it, or use worldgen rollout --trajectory"
        )
    actions = actions_from(values.astype(np.float32), world)
    return Route(actions=actions, poses=integrate(actions, start), problems=problems)


def _places(points: Any) -> Float64[np.ndarray, "point 2"]:
    try:
        places = np.asarray(points, np.float64).reshape(len(points), 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError("a way is a list of places, each with x and y") from error
    # Also false for NaN.
    if not (0 < len(places) <= _MAX_POINTS and (np.abs(places) < _FURTHEST).all()):
        raise DataError(
            f"a way is a list of 1 to {_MAX_POINTS:,} places with x and y below {_FURTHEST:g}"
        )
    return places


def _present_step(player: Player) -> float:
    """Return how far the vehicle went in its last steps, the usual way if it stood."""
    usual, index = usual_step(player.world), player.frame_index
    session = player.current.session
    latest = [session.action_at(each)[1] for each in range(max(1, index - 7), index + 1)]
    present = float(np.mean(latest)) if latest else 0.0
    return present if present > _STANDING * usual else usual


def _sampled(
    line: Float64[np.ndarray, "corner 2"], spacing: float
) -> Float64[np.ndarray, "place 2"]:
    """Return places along a line at equal distances from its beginning on."""
    ends = np.concatenate([[0.0], np.linalg.norm(np.diff(line, axis=0), axis=-1).cumsum()])
    # Whatever is too long is refused by who asked; it need not be made first.
    count = min(math.floor(ends[-1] / spacing), _SAMPLES_A_STEP * (MAX_ROUTE_STEPS + 1))
    at = np.arange(count + 1) * spacing
    return np.stack([np.interp(at, ends, line[:, axis]) for axis in (0, 1)], -1)


def _pursuit(
    line: Float64[np.ndarray, "place 2"],
    start: Float64[np.ndarray, " 3"],
    length: float,
    world: World,
) -> Route:
    schema, ahead = world.action_tokenizer.schema, _STEPS_AHEAD * _SAMPLES_A_STEP
    # Beyond its end the line goes straight on, so that there is always something to look at.
    direction = line[-1] - line[-2]
    line = np.concatenate([line, line[-1] + direction * np.arange(1, ahead + 1)[:, None]])
    last, sharpest = len(line) - 1 - ahead, _sharpest_turn(world)
    pose, poses, actions, progress = start, [start], [], 0
    while progress < last - _SAMPLES_A_STEP // 2:
        target = line[min(progress + ahead, len(line) - 1)] - pose[:2]
        angle = math.atan2(target[1], target[0]) - pose[2]
        # Behind the vehicle the circle to a point would widen again.
        sine = math.sin(angle) if math.cos(angle) > 0 else math.copysign(1.0, math.sin(angle))
        turn = 2 * sine / max(float(np.linalg.norm(target)), length) * length
        turn = min(max(turn, -sharpest), sharpest)
        fitting, _ = clip_to_bins(_arc(turn, length), schema)
        action = actions_from(fitting.astype(np.float32), world)[0]
        pose = integrate(action[None], pose)[1]
        actions.append(action)
        poses.append(pose)
        # The nearest place soon after the last one: a line may cross itself. It moves on in any
        # case, by at least a quarter of a step, so the drive has an end.
        soon = line[progress + 1 : progress + 1 + 3 * _SAMPLES_A_STEP]
        progress += 1 + int(np.linalg.norm(soon - pose[:2], axis=-1).argmin())
    return Route(actions=np.stack(actions), poses=np.stack(poses))


def _arc(turn: float, length: float) -> Float64[np.ndarray, "1 3"]:
    """Return the motion along an arc that turns by so many radians."""
    half = turn / 2
    chord = length * (math.sin(half) / half if half else 1.0)
    return np.array([[math.degrees(turn), chord * math.cos(half), chord * math.sin(half)]])


def _sharpest_turn(world: World) -> float:
    """Return the largest turn of a step on a drawn way, in radians."""
    schema = world.action_tokenizer.schema
    yaw = schema.groups[0]
    assert not isinstance(yaw, Categorical)
    bound = min(abs(float(yaw.low)), abs(float(yaw.high)))
    turn = abs(float(schema.named.get("left", {}).get("yaw", bound)))
    return math.radians(min(bound, _SHARPEST * turn) if turn else bound)
