"""Ego motion: poses of a vehicle to its motion from frame to frame, and back.

A pose is a row of one of two kinds:

- in the plane, SE(2): x and y in metres and the heading in radians, counterclockwise, 0 along x;
- in space, SE(3): x, y and z in metres and the unit quaternion (x, y, z, w) that turns vehicle axes
  (x forward, y left, z up) into those of the world.

Motion is a row (yaw in degrees, positive to the left; x in metres, forward; y in metres, to the
left) from one frame to the next, in the axes of the vehicle at the former. It holds for one frame
rate, as the step is its unit of time. Data in another unit of length, as a simulator's, stay in it.

**A row with a number that is infinite or NaN is a frame without ego data**, in poses as in motion:
such a pose makes the motion to it and from it NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from worldgen.errors import DataError

__all__ = [
    "MAX_SPEED",
    "PoseCheck",
    "check_poses",
    "has_ego_data",
    "headings_along",
    "integrate",
    "interpolate_poses",
    "path_length",
    "relative_motion",
    "resample_motion",
]

MAX_SPEED = 100.0
"""Metres a second; no vehicle on a road is faster."""
_MAX_TURN = 3.0  # radians a second
_MOVING = 0.5  # metres a second
_MAX_STEP_SECONDS = 10.0
_MIN_STEP_SECONDS = 1e-4
_CREEP = 0.05  # metres a second
_LENGTH_UNITS = {"centimetres": 0.01, "millimetres": 0.001, "feet": 0.3048}
_TIME_UNITS = {"milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9}
_USUAL_SPEED = 40.0  # metres a second, on a motorway
_USUAL_STEP_SECONDS = (0.005, 2.0)
_SHOWN_ROWS = 5


def relative_motion(poses: Float[np.ndarray, "*leading frame pose"]) -> Float64[np.ndarray, "..."]:
    """Return the motion from each frame to the next, float64 [*leading, frame - 1, 3].

    Of the transform inverse(former) * latter with rotation R and translation t it is
    (atan2(-R01, R00) in degrees, t0, t1). In the plane that yaw is the change of heading, in
    (-180, 180]; in space it differs slightly from atan2(R10, R00) where pitch or roll change.

    Args:
        poses: [*leading, frame, 3] in the plane or [*leading, frame, 7] in space.

    Raises:
        DataError: If rows have neither 3 nor 7 numbers.
    """
    poses = np.asarray(poses, np.float64)
    before, after = poses[..., :-1, :], poses[..., 1:, :]
    with np.errstate(invalid="ignore"):
        if _is_planar(poses):
            heading = before[..., 2]
            offset = after[..., :2] - before[..., :2]
            cosine, sine = np.cos(heading), np.sin(heading)
            forward = cosine * offset[..., 0] + sine * offset[..., 1]
            left = cosine * offset[..., 1] - sine * offset[..., 0]
            yaw = _wrap(after[..., 2] - heading)
        else:
            rotation = _rotation(before[..., 3:])
            inverse = np.swapaxes(rotation, -1, -2)
            offset = np.einsum("...ij,...j->...i", inverse, after[..., :3] - before[..., :3])
            turn = inverse @ _rotation(after[..., 3:])
            forward, left = offset[..., 0], offset[..., 1]
            yaw = np.arctan2(-turn[..., 0, 1], turn[..., 0, 0])
    motion = np.stack([np.degrees(yaw), forward, left], -1)
    return np.where(np.isfinite(motion).all(-1, keepdims=True), motion, np.nan)


def integrate(
    motion: Float[np.ndarray, "*leading step 3"],
    start: Sequence[float] | Float[np.ndarray, "*leading 3"] = (0.0, 0.0, 0.0),
) -> Float64[np.ndarray, "*leading frame 3"]:
    """Return the poses in the plane that motion leads through; the inverse of `relative_motion`.

    Args:
        motion: Yaw in degrees, x and y in metres of each step; from the first row without ego data
            on, poses are NaN.
        start: First pose; [*leading, 3] or one for all.

    Returns:
        float64 [*leading, step + 1, 3]; the first is `start`, headings are not wrapped.
    """
    motion = np.asarray(motion, np.float64)
    first = np.broadcast_to(np.asarray(start, np.float64), (*motion.shape[:-2], 3))[..., None, :]
    steps = np.where(has_ego_data(motion)[..., None], motion, np.nan)
    turned = np.cumsum(np.radians(steps[..., 0]), -1)
    heading = np.concatenate([first[..., 2], first[..., 2] + turned], -1)
    cosine, sine = np.cos(heading[..., :-1]), np.sin(heading[..., :-1])
    x, y = steps[..., 1], steps[..., 2]
    offset = np.stack([cosine * x - sine * y, sine * x + cosine * y], -1)
    place = np.concatenate([first[..., :2], first[..., :2] + np.cumsum(offset, -2)], -2)
    return np.concatenate([place, heading[..., None]], -1)


def interpolate_poses(
    times: Float[np.ndarray, " frame"],
    poses: Float[np.ndarray, "frame pose"],
    at: Float[np.ndarray, " instant"],
) -> Float64[np.ndarray, "instant pose"]:
    """Return the poses at other times.

    In the plane a vehicle drives from one pose to the next at a constant speed and rate of turning
    (along an arc, by the shorter turn), so that parts of a step are alike. In space places are
    interpolated linearly and rotations spherically (Shoemake, "Animating rotation with quaternion
    curves", SIGGRAPH 1985).

    Args:
        times: Seconds, each later than the one before.
        poses: [frame, 3] in the plane or [frame, 7] in space.
        at: Seconds.

    Returns:
        float64, of the kind that was given; NaN beside a pose without ego data. Before the first
        pose and after the last these are repeated.

    Raises:
        DataError: If times and poses differ in number, or times do not increase.
    """
    times, poses = np.asarray(times, np.float64), np.asarray(poses, np.float64)
    planar = _is_planar(poses)
    if times.shape != poses.shape[:1] or not len(times):
        raise DataError(
            f"{len(poses)} poses and times of shape {times.shape}; each pose needs one time"
        )
    if not (np.diff(times) > 0).all():
        raise DataError("times of poses do not increase; see check_poses")
    if len(times) == 1:
        return np.repeat(poses, len(at), 0)
    at = np.clip(np.asarray(at, np.float64), times[0], times[-1])
    left = np.clip(np.searchsorted(times, at, "right") - 1, 0, len(times) - 2)
    before, after = poses[left], poses[left + 1]
    part = (at - times[left]) / (times[left + 1] - times[left])
    # A pose that is met exactly shall not suffer from a neighbour without ego data.
    after = np.where((part == 0)[:, None], before, after)
    before = np.where((part == 1)[:, None], after, before)
    return _along_arc(before, after, part) if planar else _along_line(before, after, part)


def resample_motion(
    motion: Float[np.ndarray, "step 3"], from_rate: float, to_rate: float
) -> Float64[np.ndarray, "new_step 3"]:
    """Return the same drive in steps of another length.

    Steps of a whole ratio are composed, or cut into equal parts, without loss; others are read off
    the drive along arcs. What is left over at the end and fills no step is dropped.

    Args:
        motion: Yaw in degrees, x and y in metres of each step.
        from_rate: Steps a second of `motion`.
        to_rate: Steps a second wanted.

    Raises:
        DataError: If a rate is not a finite number above 0.
    """
    for rate in (from_rate, to_rate):
        if not (math.isfinite(rate) and rate > 0):
            raise DataError(f"motion of {rate} steps a second; a rate is a number above 0")
    motion = np.asarray(motion, np.float64)
    ratio = _whole(from_rate / to_rate)
    if ratio == 1:
        return motion
    steps = math.floor(len(motion) / ratio + 1e-6)
    at = np.arange(steps + 1) * ratio
    if not has_ego_data(motion).all():
        # One row without ego data must not take the rest of the drive along.
        return _resample_around_gaps(motion, at)
    poses = integrate(motion)
    return relative_motion(interpolate_poses(np.arange(len(poses)) * 1.0, poses, at))


def has_ego_data(rows: Float[np.ndarray, "*leading number"]) -> Bool[np.ndarray, "*leading"]:
    """Return which rows of poses or motion are known: those whose numbers are all finite."""
    return np.asarray(np.isfinite(rows).all(-1))


def headings_along(places: Float[np.ndarray, "frame 2"]) -> Float64[np.ndarray, " frame"]:
    """Return headings of a vehicle that looks where it goes, in radians, not wrapped.

    At each place it looks along the line from the one before to the one after; while it stands, as
    before.
    """
    places = np.asarray(places, np.float64)
    if len(places) < 2:
        return np.zeros(len(places))
    ahead = np.concatenate([places[1:], places[-1:]]) - np.concatenate([places[:1], places[:-1]])
    moving = np.linalg.norm(ahead, axis=-1) > 1e-9
    if not moving.any():
        return np.zeros(len(places))
    latest = np.maximum.accumulate(np.where(moving, np.arange(len(places)), -1))
    headings = np.arctan2(ahead[:, 1], ahead[:, 0])
    return np.unwrap(headings[np.where(latest < 0, moving.argmax(), latest)])


def path_length(poses: Float[np.ndarray, "*leading frame pose"]) -> Float64[np.ndarray, "*leading"]:
    """Return the length of the way through poses, in metres, by straight lines between them."""
    width = 2 if _is_planar(poses) else 3
    return np.asarray(np.linalg.norm(np.diff(poses[..., :width], axis=-2), axis=-1).sum(-1))


@dataclass(frozen=True, kw_only=True)
class PoseCheck:
    """What is usable of a file of poses.

    Attributes:
        kept: bool [row]; the rest is without ego data, late, or doubtful.
        follows: bool [row]; the kept row follows from the kept one before without a gap. Never the
            first.
        problems: What was wrong, one line for each kind, with its rows.
    """

    kept: Bool[np.ndarray, " row"]
    follows: Bool[np.ndarray, " row"]
    problems: tuple[str, ...]


def check_poses(
    times: Float[np.ndarray, " row"],
    poses: Float[np.ndarray, "row pose"],
    *,
    source: str,
    row_numbers: Sequence[int] | None = None,
    max_gap: float | None = None,
    max_speed: float = MAX_SPEED,
) -> PoseCheck:
    """Judge rows of poses before they are used: what to leave out, and where the drive breaks off.

    Single rows can be left out; where most of a file makes no sense, its units are wrong.

    Args:
        times: Seconds.
        poses: [row, 3] in the plane or [row, 7] in space, in metres.
        source: File name, for messages.
        row_numbers: What messages call the rows; none is from 1 on.
        max_gap: Most seconds between two rows; none is 2.5 times the usual distance.
        max_speed: Metres a second; between two rows that are further apart the drive breaks off.

    Raises:
        DataError: If no two rows are left, or times or places are in another unit; the message
            says what speed results, and which unit would make sense.
    """
    times, poses = np.asarray(times, np.float64), np.asarray(poses, np.float64)
    planar = _is_planar(poses)
    if times.shape != poses.shape[:1]:
        raise DataError(f"{source}: {len(poses)} poses and {len(times)} times; give one time each")
    problems: list[str] = []
    numbers = np.arange(1, len(times) + 1) if row_numbers is None else np.array(row_numbers)

    def drop(wrong: Bool[np.ndarray, " row"], reason: str) -> None:
        if wrong.any():
            problems.append(f"{source}: {_name_rows(numbers[wrong])}: {reason}; left out")
            kept[wrong] = False

    kept = np.ones(len(times), bool)
    drop(~(np.isfinite(times) & has_ego_data(poses)), "numbers are missing or not finite")
    if not planar:
        length = np.linalg.norm(np.where(kept[:, None], poses[:, 3:], 0.5), axis=-1)
        drop(np.abs(length - 1) > 0.01, "the quaternion is not of length 1")
    latest = np.maximum.accumulate(np.where(kept, times, -np.inf))
    late = kept.copy()
    late[1:] &= times[1:] <= latest[:-1]
    late[:1] = False
    drop(late, "the time is not later than that of the row before")
    rows = np.flatnonzero(kept)
    if len(rows) < 2:
        raise DataError(
            f"{source}: {len(rows)} of {len(kept)} rows can be used, 2 are needed"
            + "".join(f"\n  {problem}" for problem in problems)
        )

    seconds = np.diff(times[rows])
    _check_time_unit(float(np.median(seconds)), source)
    places = poses[rows, : 2 if planar else 3]
    speeds = np.linalg.norm(np.diff(places, axis=0), axis=-1) / seconds
    _check_length_unit(speeds, max_speed, source, problems)
    if planar:
        _check_angle_unit(poses[rows, 2], speeds, seconds, source)

    follows = np.zeros(len(kept), bool)
    gap = max_gap if max_gap is not None else 2.5 * float(np.median(seconds))
    for broken, reason in (
        (seconds > gap * (1 + 1e-9), f"more than {gap:.3g} s after the row before"),
        (speeds > max_speed, f"a jump: reached at more than {max_speed:g} m/s"),
    ):
        if broken.any():
            marked = np.zeros(len(kept), bool)
            marked[rows[1:][broken]] = True
            problems.append(f"{source}: {_name_rows(numbers[marked])}: {reason}")
    follows[rows[1:]] = (seconds <= gap * (1 + 1e-9)) & (speeds <= max_speed)
    return PoseCheck(kept=kept, follows=follows, problems=tuple(problems))


def _check_time_unit(step: float, source: str) -> None:
    if _MIN_STEP_SECONDS <= step <= _MAX_STEP_SECONDS:
        return
    low, high = _USUAL_STEP_SECONDS
    sense = [
        f"{unit} (then {step * factor:.3g} s)"
        for unit, factor in _TIME_UNITS.items()
        if low <= step * factor <= high
    ]
    raise DataError(
        f"{source}: rows are {step:.3g} s apart; times must be in seconds, and these are "
        + (f"likely {' or '.join(sense)}" if sense else "of no unit that makes sense")
    )


def _check_length_unit(
    speeds: Float64[np.ndarray, " step"], max_speed: float, source: str, problems: list[str]
) -> None:
    moving = speeds[speeds > _MOVING]
    typical = float(np.median(moving)) if len(moving) else 0.0
    if typical > max_speed:
        sense = [
            f"{unit} (then {typical * factor:.3g} m/s)"
            for unit, factor in _LENGTH_UNITS.items()
            if _MOVING <= typical * factor <= _USUAL_SPEED
        ]
        raise DataError(
            f"{source}: half of the steps are faster than {typical:.4g} m/s ({typical * 3.6:.4g} "
            f"km/h); allowed is {max_speed:g} m/s. Places must be in metres and times in seconds; "
            + (f"places are likely in {' or '.join(sense)}" if sense else "check both units")
        )
    fastest = float(speeds.max())
    if 0 < fastest < _CREEP and np.median(speeds) > 0:
        problems.append(
            f"{source}: never faster than {fastest:.3g} m/s; if the vehicle drove, places are in "
            "kilometres or degrees and not in metres"
        )


def _check_angle_unit(
    headings: Float64[np.ndarray, " row"],
    speeds: Float64[np.ndarray, " step"],
    seconds: Float64[np.ndarray, " step"],
    source: str,
) -> None:
    moving = speeds > _MOVING
    turning = (np.abs(np.diff(headings)) / seconds)[moving & (np.abs(np.diff(headings)) > 0)]
    # Beyond a few turns a heading that is not wrapped is one in degrees, too.
    if len(turning) < 10 or np.ptp(headings) <= 2 * np.pi + 0.1:
        return
    typical = float(np.median(turning))
    if typical > _MAX_TURN:
        raise DataError(
            f"{source}: half of the steps turn faster than {typical:.3g} rad/s; headings must be in "
            f"radians, and these are likely degrees (then {math.radians(typical):.3g} rad/s)"
        )


def _is_planar(poses: np.ndarray) -> bool:
    width = np.shape(poses)[-1] if np.ndim(poses) >= 2 else None
    if width not in (3, 7):
        raise DataError(
            f"poses are rows of 3 numbers (x, y, heading) or 7 (x, y, z, qx, qy, qz, qw), "
            f"got shape {np.shape(poses)}"
        )
    return bool(width == 3)


def _wrap(angle: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Return angles in (-pi, pi]."""
    return np.asarray(np.pi - np.mod(np.pi - angle, 2 * np.pi))


def _rotation(quaternion: Float64[np.ndarray, "*leading 4"]) -> Float64[np.ndarray, "..."]:
    """Return rotation matrices [*leading, 3, 3] of quaternions x, y, z, w."""
    unit = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    x, y, z, w = np.moveaxis(unit, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _along_arc(
    before: Float64[np.ndarray, "instant 3"],
    after: Float64[np.ndarray, "instant 3"],
    part: Float64[np.ndarray, " instant"],
) -> Float64[np.ndarray, "instant 3"]:
    """Return the pose after a part of the way: exp(part * log(inverse(before) * after)) in SE(2)."""
    heading, turn = before[:, 2], _wrap(after[:, 2] - before[:, 2])
    # With V(a) = [[sin a, cos a - 1], [1 - cos a, sin a]] / a the whole offset is V(turn) v, that
    # of a part is part * V(part * turn) v; as complex numbers V(a) is (exp(ia) - 1) / ia, which is
    # sinc(a / 2) exp(ia / 2).
    offset = (after[:, 0] - before[:, 0]) + 1j * (after[:, 1] - before[:, 1])
    partial = part * turn
    ratio = part * np.sinc(partial / (2 * np.pi)) / np.sinc(turn / (2 * np.pi))
    moved = offset * ratio * np.exp(0.5j * (partial - turn))
    return np.stack(
        [before[:, 0] + moved.real, before[:, 1] + moved.imag, heading + partial], axis=-1
    )


def _along_line(
    before: Float64[np.ndarray, "instant 7"],
    after: Float64[np.ndarray, "instant 7"],
    part: Float64[np.ndarray, " instant"],
) -> Float64[np.ndarray, "instant 7"]:
    """Return the pose after a part of the way, by lines of places and great arcs of rotations."""
    first = before[:, 3:] / np.linalg.norm(before[:, 3:], axis=-1, keepdims=True)
    second = after[:, 3:] / np.linalg.norm(after[:, 3:], axis=-1, keepdims=True)
    # A quaternion and its negative are the same rotation; the nearer one is the shorter way.
    cosine = np.sum(first * second, -1)
    second = np.where((cosine < 0)[:, None], -second, second)
    angle = np.arccos(np.clip(np.abs(cosine), 0.0, 1.0))
    small = angle < 1e-6
    sine = np.where(small, 1.0, np.sin(angle))
    weights = [np.where(small, share, np.sin(share * angle) / sine) for share in (1 - part, part)]
    rotation = weights[0][:, None] * first + weights[1][:, None] * second
    rotation /= np.linalg.norm(rotation, axis=-1, keepdims=True)
    place = before[:, :3] + part[:, None] * (after[:, :3] - before[:, :3])
    return np.concatenate([place, rotation], -1)


def _resample_around_gaps(
    motion: Float64[np.ndarray, "step 3"], at: Float64[np.ndarray, " instant"]
) -> Float64[np.ndarray, "new_step 3"]:
    """Return resampled motion, NaN in the new steps that touch a row without ego data."""
    known = has_ego_data(motion)
    poses = integrate(np.where(known[:, None], motion, 0.0))
    new = relative_motion(interpolate_poses(np.arange(len(poses)) * 1.0, poses, at))
    unknown = np.concatenate([[0], np.cumsum(~known)])
    first = np.floor(at[:-1] + 1e-6).astype(int)
    last = np.minimum(np.ceil(at[1:] - 1e-6).astype(int), len(motion))
    return np.where((unknown[last] > unknown[first])[:, None], np.nan, new)


def _whole(ratio: float) -> float:
    """Return a ratio of rates without what was rounded in them: 2.00003 is 2."""
    for number, back in ((ratio, False), (1 / ratio, True)):
        nearest = round(number)
        if nearest >= 1 and abs(number - nearest) < 1e-4 * nearest:
            return 1 / nearest if back else float(nearest)
    return ratio


def _name_rows(rows: Int[np.ndarray, " row"]) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN_ROWS])
    more = f" and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
