"""Whether actions lie beside the frames that they led to, or a step or two too early or late."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from worldgen.errors import DataError
from worldgen.evaluation.judges.inverse_dynamics import group_ids
from worldgen.tokenizers.action import ActionSchema, Categorical

__all__ = ["REACH", "alignment", "describe_misalignment", "require_alignment"]

REACH = 2
"""Steps by which actions are shifted either way."""

_SURE = 3.0
"""Another shift than 0 is believed when it agrees better by so many standard errors."""


def alignment(
    schema: ActionSchema,
    actions: Num[np.ndarray, "clip step group"],
    read: Int[np.ndarray, "clip step group"],
) -> dict[str, Any]:
    """Return by how many steps the actions lie beside the frames that they led to.

    What was read at step t is held against what was taken at t - 2 to t + 2. Only cases count in
    which these five differ, for nothing can be told where a key is held. An option agrees or
    does not; on an axis agreement falls from 1 to 0 over its length.

    `best_shift` is the shift that agrees best, the smallest on a tie; 1 says that the action of
    step t + 1 led from frame t to t + 1, so that actions lie one step too late. `aligned` is false
    if that shift is not 0 and agrees better than 0 by 3 standard errors, true if it is 0, and None
    where the cases do not suffice to tell.

    Args:
        schema: Of both.
        actions: Those taken, as recorded.
        read: Options and bins read from the frames by an inverse dynamics model that was trained
            on actions known to be aligned.
    """
    true = group_ids(schema, actions)
    length = max(0, true.shape[1] - 2 * REACH)
    shifts = sorted(range(-REACH, REACH + 1), key=lambda shift: (abs(shift), shift))
    taken = np.stack([true[:, REACH + shift : REACH + shift + length] for shift in shifts])
    told = (taken != taken[0]).any(axis=0)
    difference = np.abs(taken - read[:, REACH : REACH + length]).astype(np.float64)
    for index, group in enumerate(schema.groups):
        if isinstance(group, Categorical):
            difference[..., index] = difference[..., index] > 0
        else:
            difference[..., index] /= max(group.size - 1, 1)
    agreement: Float[np.ndarray, "shift case"] = 1.0 - difference[:, told]
    cases = agreement.shape[1]
    if cases == 0:
        return {"cases": 0, "agreement": {}, "best_shift": None, "aligned": None}
    means = agreement.mean(axis=1)
    best = int(means.argmax())
    gain = agreement[best] - agreement[0]
    error = float(gain.std() / np.sqrt(cases))
    aligned: bool | None = True
    if shifts[best] != 0:
        aligned = False if float(gain.mean()) > _SURE * error and cases > 1 else None
    return {
        "cases": cases,
        "agreement": {
            f"{shift:+d}": float(mean) for shift, mean in sorted(zip(shifts, means, strict=True))
        },
        "best_shift": shifts[best],
        "aligned": aligned,
    }


def describe_misalignment(found: Mapping[str, Any], what: str) -> str | None:
    """Return one sentence about actions that are shifted for sure, None where they are not.

    Args:
        found: From `alignment`.
        what: Whose actions, for the message.
    """
    if found["aligned"] is not False:
        return None
    shift = found["best_shift"]
    where = (
        f"{abs(shift)} step{'s' if abs(shift) > 1 else ''} too {'late' if shift > 0 else 'early'}"
    )
    at_best, at_zero = (found["agreement"][f"{each:+d}"] for each in (shift, 0))
    return (
        f"the actions of {what} lie {where}: the frames agree with actions shifted by {shift:+d} in "
        f"{at_best:.1%} of {found['cases']} cases, unshifted in {at_zero:.1%}; actions[t] must "
        f"lead from frame t to frame t + 1"
    )


def require_alignment(found: Mapping[str, Any], what: str) -> None:
    """Check that actions lie beside the frames that they led to.

    Args:
        found: From `alignment`.
        what: Whose actions, for the message.

    Raises:
        DataError: If they are shifted, with the shift, or if too few cases tell.
    """
    message = describe_misalignment(found, what)
    if message is None and found["aligned"] is None:
        message = (
            f"the actions of {what} cannot be checked: {found['cases']} cases do not tell one shift "
            f"from another; give more or longer clips with changing actions"
        )
    if message is not None:
        raise DataError(message)
