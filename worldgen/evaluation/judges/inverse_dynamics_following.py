"""Does a world do what the actions say, as an inverse dynamics model reads them from its frames."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

from worldgen.evaluation.judges.action_following import WINDOWS
from worldgen.evaluation.judges.inverse_dynamics import InverseDynamicsModel
from worldgen.evaluation.judges.inverse_dynamics_alignment import alignment, describe_misalignment
from worldgen.evaluation.judges.inverse_dynamics_measures import measure_actions

__all__ = ["follow_actions", "judge_actions"]


def judge_actions(
    model: InverseDynamicsModel,
    frames: UInt8[np.ndarray, "clip time height width 3"],
    actions: Num[np.ndarray, "clip step group"],
    *,
    first_step: int = 0,
) -> dict[str, Any]:
    """Return the agreement of actions with those read from frames, and their alignment.

    Beside the figures of `measure_actions` and `alignment` stand those of the windows of steps in
    which a world's motion is judged, without their confusion matrices.

    Args:
        model: Judge of these actions.
        frames: Recorded or generated.
        actions: Those taken in each frame but the last.
        first_step: Steps before it are seen by the judge, but not counted.
    """
    taken, read = actions[:, first_step:], model.label(frames)[:, first_step:]
    steps = taken.shape[1]
    windows = {}
    for start, end in WINDOWS:
        if start <= steps:
            part = slice(start - 1, min(end, steps))
            figures = measure_actions(model.schema, taken[:, part], read[:, part])
            del figures["tasks"]
            windows[f"{start}-{part.stop}"] = figures
    return {
        **measure_actions(model.schema, taken, read),
        "windows": windows,
        "alignment": alignment(model.schema, taken, read),
    }


def follow_actions(
    model: InverseDynamicsModel,
    clips: Mapping[str, UInt8[np.ndarray, "clip time height width 3"]],
    actions: Num[np.ndarray, "clip step group"],
    *,
    context: int,
) -> dict[str, Any]:
    """Return what the judge reads from each kind of frames against the actions that were taken.

    Args:
        model: Judge of these actions.
        clips: Name -> frames, `context` of them and then those that followed; among them
            "generated" and "real_frames".
        actions: Those taken in each frame but the last, the same for all.
        context: The step from the last of these frames on is the first that counts.
    """
    frames = {
        name: judge_actions(model, each, actions, first_step=context - 1)
        for name, each in clips.items()
    }
    names = {"generated": "the dream", "real_frames": "the real clips"}
    problems = [
        describe_misalignment(frames[name]["alignment"], what) for name, what in names.items()
    ]
    return {
        "frames": frames,
        "misaligned": [problem for problem in problems if problem is not None],
    }
