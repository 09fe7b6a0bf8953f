"""Does a generated drive lead where it was told to: the trajectory read from frames, and the given one.

There are two judges. An inverse dynamics model trained on a recording of ego motion
(`python -m train.inverse_dynamics experiment=drivingworld_car_racing`) reads yaw, x and y between
any two frames. The motion probe of a world reads turn and speed, which lacks the drift to a side.
What a judge reads off real frames bounds what can be asked of generated ones, so figures of
generated frames stand beside those of real ones: the probe of car racing follows 10 s of real
frames within 2.8 % of the way on average, and 5.3 % at their end (medians of 16 drives).
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Float64, UInt8

from worldgen.ego_motion import has_ego_data, integrate, path_length
from worldgen.errors import CheckpointError, DataError
from worldgen.evaluation.judges.inverse_dynamics import InverseDynamicsModel
from worldgen.evaluation.judges.probes import MotionProbe
from worldgen.evaluation.measures import correlation
from worldgen.tokenizers.action import is_driving_schema
from worldgen.tokenizers.action.driving import AXES

__all__ = ["compare_drives", "probe_motion", "read_motion"]

# Below this share of the longest way a clip's vehicle parks, and a share of its way says nothing.
_PARKED = 0.05


def read_motion(
    judge: InverseDynamicsModel, frames: UInt8[np.ndarray, "clip time height width 3"]
) -> Float64[np.ndarray, "clip step 3"]:
    """Return the motion between frames: yaw in degrees, x and y in metres, in the recording's step.

    Args:
        judge: Trained on ego motion.
        frames: uint8 in [0, 255], consecutive along time, two or more of them.

    Raises:
        CheckpointError: If the judge reads something else than motion.
        ConfigError: If there are fewer than two frames.
    """
    if not is_driving_schema(judge.schema):
        names = ", ".join(group.name for group in judge.schema.groups)
        raise CheckpointError(
            f"the judge reads {names} and no ego motion; train one on a recording whose actions are"
        )
    return judge.expect(frames)


def probe_motion(
    probe: MotionProbe,
    frames: UInt8[np.ndarray, "clip time height width 3"],
    frames_per_second: float,
) -> Float64[np.ndarray, "clip step 3"]:
    """Return the motion that a probe of turn and speed reads, as if nothing drifted to a side.

    Args:
        probe: Of `yaw_change` (radians) and `speed` (units of length a second).
        frames: uint8 in [0, 255], consecutive along time.
        frames_per_second: Of the frames.

    Shapes:
        `step` is `time - probe.config.num_frames + 1`: the last steps, as the probe needs so many
        frames to read what led to the last of them.

    Raises:
        CheckpointError: If the probe reads something else.
    """
    if not {"yaw_change", "speed"} <= set(probe.config.quantities):
        raise CheckpointError(
            f"motion needs a probe of yaw_change and speed, this one reads "
            f"{', '.join(probe.config.quantities)}"
        )
    read = probe.read(frames)
    turned, moved = np.degrees(read["yaw_change"]), read["speed"] / frames_per_second
    return np.stack([turned, moved, np.zeros_like(moved)], -1).astype(np.float64)


def compare_drives(
    given: Float[np.ndarray, "clip step 3"], seen: Float[np.ndarray, "clip step 3"]
) -> dict[str, Any]:
    """Return how far drives that are seen lead away from the given ones.

    Both begin at one pose. A deviation is the distance between the two places at the same time,
    over the length of the given way up to the end of the clip.

    Args:
        given: Yaw in degrees, x and y in metres.
        seen: As read from frames.

    Returns:
        `clips`, those compared, and `parked`, those left out because they go nowhere; the medians
        over clips of the deviation at the end, `deviation_end`, and of its mean over time,
        `deviation_mean`; the median of `heading_end`, the difference in degrees; for each axis
        `correlation` and `root_mean_square_error` of single steps. None where nothing moves.

    Raises:
        DataError: If the two are of different shape, or a step is without ego data.
    """
    given, seen = np.asarray(given, np.float64), np.asarray(seen, np.float64)
    if given.shape != seen.shape or given.ndim != 3 or given.shape[-1] != len(AXES):
        raise DataError(
            f"drives to compare are both [clip, step, 3], got {given.shape} and {seen.shape}"
        )
    if not (has_ego_data(given).all() and has_ego_data(seen).all()):
        raise DataError("drives to compare have steps without ego data; leave those clips out")
    told, read = integrate(given), integrate(seen)
    lengths = path_length(told)
    moving = lengths > _PARKED * lengths.max(initial=0.0)
    apart = np.linalg.norm((told - read)[moving, 1:, :2], axis=-1) / lengths[moving, None]
    turned = np.degrees(np.abs((told - read)[moving, -1, 2]))
    return {
        "clips": int(moving.sum()),
        "parked": int((~moving).sum()),
        "deviation_end": _median(apart[:, -1]),
        "deviation_mean": _median(apart.mean(axis=1)),
        "heading_end": _median(turned),
        "axes": {
            name: {
                "correlation": correlation(given[..., axis].ravel(), seen[..., axis].ravel()),
                "root_mean_square_error": float(
                    np.sqrt(np.mean((given[..., axis] - seen[..., axis]) ** 2))
                ),
            }
            for axis, name in enumerate(AXES)
        },
    }


def _median(values: Float64[np.ndarray, " clip"]) -> float | None:
    return float(np.median(values)) if len(values) else None
