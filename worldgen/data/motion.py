"""Recordings with poses to recordings whose actions are ego motion; frames are not touched."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from worldgen.checkpoint import check_new_folder, write_atomically, write_folder
from worldgen.data.captions import load_captions
from worldgen.data.episodes import SPLITS, Column, Dataset, EpisodeInfo
from worldgen.data.formats.report import Problem
from worldgen.ego_motion import MAX_SPEED, check_poses, relative_motion
from worldgen.errors import DataError
from worldgen.tokenizers.action import (
    ActionSchema,
    Categorical,
    clip_to_bins,
    driving_schema,
    fit_driving_schema,
)
from worldgen.tokenizers.action.driving import DRIVING_PRESETS

__all__ = [
    "MOTION_SCHEMAS",
    "POSE_COLUMNS",
    "MotionConversion",
    "convert_to_motion",
    "format_motion_conversion",
    "motion_actions",
]

MOTION_SCHEMAS = ("auto", *DRIVING_PRESETS)
"""Names that `convert_to_motion` takes; "auto" fits bins to the recording."""

POSE_COLUMNS = ("x", "y", "yaw")
"""Where poses are looked for."""

# Below this share of the way a vehicle does not drive where it heads.
_LEAST_AGREEMENT = 0.7
_MOST_ASKEW = np.radians(20)


@dataclass(frozen=True, kw_only=True)
class MotionConversion:
    """What `convert_to_motion` did.

    Attributes:
        schema: Of the new actions.
        episodes: Written, by split.
        frames: Written, by split.
        clipped: Steps that did not fit the bins.
        heading_zero: Radians; where the recording's heading 0 points, counterclockwise from +x.
        problems: Episodes that were left out or clipped, and why.
    """

    schema: ActionSchema
    episodes: Mapping[str, int]
    frames: Mapping[str, int]
    clipped: int
    heading_zero: float
    problems: tuple[Problem, ...]


def convert_to_motion(
    folder: Path,
    out: Path,
    *,
    schema: str = "auto",
    columns: Sequence[str] = POSE_COLUMNS,
    progress: Callable[[int, int], None] | None = None,
) -> MotionConversion:
    """Write a recording again with the motion from frame to frame as its actions.

    The action of frame t is the motion from frame t to frame t + 1; the last frame of an episode,
    after which nobody looked, has that of the one before. Videos are linked, or copied where the
    file system cannot link, and all columns are kept. What the driver did becomes columns
    `action_<group>`. The new recording has no environment, as none takes these actions.

    Where heading 0 points is read off the recording itself, in quarter turns: the direction in
    which the vehicle drives.

    Args:
        folder: Recording with `dataset.json`.
        out: Folder to make; it appears when all is written.
        schema: One of `MOTION_SCHEMAS`.
        columns: Of the poses: x, y and heading (counterclockwise; in degrees where the column's
            unit says so, else in radians), or x, y, z, qx, qy, qz and qw.
        progress: Told how many episodes are done of how many.

    Raises:
        DataError: If the folder is no recording, has no such columns, or no episode can be used;
            or if `out` is not empty.
        ActionError: If there is no such schema.
    """
    check_new_folder(out)
    dataset = Dataset(folder)
    _check_columns(dataset, columns)
    infos = [info for split in SPLITS for info in dataset.episodes(split)]
    problems: list[Problem] = []
    poses: dict[tuple[str, int], Float64[np.ndarray, "frame pose"]] = {}
    for info in infos:
        try:
            poses[info.split, info.index] = _poses(dataset, info, columns)
        except DataError as error:
            problems.append(Problem(path=str(folder), message=f"{error}; left out"))
    if not poses:
        first = f"\n  {problems[0]}" if problems else ""
        raise DataError(f"{folder} has no episode with usable poses{first}")
    zero = _heading_zero(folder, list(poses.values()))
    if zero:
        poses = {key: rows + np.array([0.0, 0.0, zero]) for key, rows in poses.items()}
    motions = {key: motion_actions(rows) for key, rows in poses.items()}
    if schema == "auto":
        chosen = fit_driving_schema(np.concatenate(list(motions.values())))
    else:
        chosen = driving_schema(schema)

    episodes, frames = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    clipped = 0

    def write(new: Path) -> None:
        nonlocal clipped
        old_groups = dataset.metadata.schema.groups
        taken = {f"action_{group.name}": _column(group) for group in old_groups}
        dataclasses.replace(
            dataset.metadata,
            environment=None,
            action_schema=chosen.to_json(),
            columns={**dataset.metadata.columns, **taken},
        ).write(new)
        if (table := load_captions(dataset)) is not None:
            table.write(new)
        for split in SPLITS:
            (new / split).mkdir()
        for number, info in enumerate(infos, start=1):
            motion = motions.get((info.split, info.index))
            if motion is not None:
                actions, report = clip_to_bins(motion, chosen)
                if report:
                    clipped += len(np.unique(np.concatenate([each.steps for each in report])))
                    name = dataset.stem(info).with_suffix(".npz")
                    problems.extend(Problem(path=str(name), message=str(each)) for each in report)
                _write_episode(dataset, info, new / info.split, actions, tuple(taken))
                episodes[info.split] += 1
                frames[info.split] += info.length
            if progress is not None:
                progress(number, len(infos))

    write_folder(out, write)
    return MotionConversion(
        schema=chosen,
        episodes=episodes,
        frames=frames,
        clipped=clipped,
        heading_zero=zero,
        problems=tuple(problems),
    )


def motion_actions(
    poses: Float64[np.ndarray, "frame pose"],
) -> Float64[np.ndarray, "frame 3"]:
    """Return the action of every frame: the motion to the next, and once more for the last."""
    motion = relative_motion(poses)
    return np.concatenate([motion, motion[-1:]])


def format_motion_conversion(conversion: MotionConversion) -> list[str]:
    """Return what was done as lines for a person."""
    lines = [
        f"{split}: {conversion.episodes[split]:,} episodes, {conversion.frames[split]:,} frames"
        for split in SPLITS
    ]
    axes = [
        f"{group.name} {group.low:.4g} to {group.high:.4g} in {group.size} bins"
        for group in conversion.schema.groups
        if not isinstance(group, Categorical)
    ]
    lines.append(f"actions: {', '.join(axes)}; {conversion.clipped:,} steps clipped")
    lines.append(f"heading 0 points {np.degrees(conversion.heading_zero):.0f} degrees from +x")
    return lines


def _check_columns(dataset: Dataset, names: Sequence[str]) -> None:
    if len(names) not in (3, 7):
        raise DataError(
            f"poses are 3 columns (x, y, heading) or 7 (x, y, z, qx, qy, qz, qw), got "
            f"{', '.join(names) or 'none'}"
        )
    missing = [name for name in names if name not in dataset.metadata.columns]
    if missing:
        raise DataError(
            f"{dataset.folder} has no column {', '.join(missing)} to take poses from; it has "
            f"{', '.join(dataset.metadata.columns)}"
        )


def _poses(
    dataset: Dataset, info: EpisodeInfo, names: Sequence[str]
) -> Float64[np.ndarray, "frame pose"]:
    """Return the poses of an episode; raises DataError where one is missing or doubtful."""
    path = dataset.stem(info).with_suffix(".npz")
    arrays = dataset.load_columns(info)
    try:
        poses = np.stack([arrays[name].astype(np.float64) for name in names], -1)
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} has no usable poses ({error})") from error
    described = dataset.metadata.columns
    if len(names) == 3 and described[names[2]].unit.startswith("deg"):
        poses[:, 2] = np.radians(poses[:, 2])
    # Simulators have units of their own, in which any speed may be right.
    in_metres = described[names[0]].unit in {"m", "metre", "metres", "meter", "meters"}
    check = check_poses(
        np.arange(len(poses)) / dataset.metadata.frames_per_second,
        poses,
        source=str(path),
        max_speed=MAX_SPEED if in_metres else np.inf,
    )
    if not check.follows[1:].all():
        raise DataError("; ".join(check.problems))
    return poses


def _heading_zero(folder: Path, poses: Sequence[Float64[np.ndarray, "frame pose"]]) -> float:
    """Return where heading 0 points, in quarter turns, by where vehicles drive most of their way."""
    if poses[0].shape[-1] != 3:
        return 0.0
    total, length = 0j, 0.0
    for rows in poses:
        offset = np.diff(rows[:, 0]) + 1j * np.diff(rows[:, 1])
        total += complex(np.sum(offset * np.exp(-0.5j * (rows[1:, 2] + rows[:-1, 2]))))
        length += float(np.abs(offset).sum())
    if length == 0:
        return 0.0
    angle = float(np.angle(total))
    zero = round(angle / (np.pi / 2)) * np.pi / 2
    if abs(total) < _LEAST_AGREEMENT * length or abs(angle - zero) > _MOST_ASKEW:
        raise DataError(
            f"{folder}: vehicles do not drive where they head: the heading explains "
            f"{abs(total) / length:.0%} of the way, at {np.degrees(angle):.0f} degrees to it. It "
            "must count counterclockwise, in radians or in degrees as its column's unit says"
        )
    return zero


def _column(group: Any) -> Column:
    """Describe a group of the old actions as a column."""
    if isinstance(group, Categorical):
        return Column(dtype="int64", meaning=f"what the driver did: {group.options_text}")
    return Column(dtype="float64", meaning=f"what the driver did, {group.low:g} to {group.high:g}")


def _write_episode(
    dataset: Dataset,
    info: EpisodeInfo,
    folder: Path,
    actions: NDArray[np.float64],
    taken: Sequence[str],
) -> None:
    arrays: dict[str, Any] = {**dataset.load_columns(info)}
    old = arrays.pop("action")
    arrays |= {name: old[:, index] for index, name in enumerate(taken)}
    stem = dataset.stem(info)
    write_atomically(
        folder / f"{stem.name}.npz",
        lambda temporary: np.savez_compressed(temporary, action=actions, **arrays),
    )
    for path in (stem.with_suffix(".mp4"), stem.with_suffix(".json")):
        if path.exists():
            _link(path, folder / path.name)


def _link(path: Path, new: Path) -> None:
    """Make a file appear at another place too, without copying it where that is possible."""
    try:
        # Nobody changes these files in place: writers replace them, which leaves the other alone.
        os.link(path, new)
    except OSError:
        shutil.copy2(path, new)
