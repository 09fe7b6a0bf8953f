"""Actions that lie a step or two beside their frames are found, and nothing else is accused."""

import numpy as np
import pytest

from tests.evaluation import toy_clicks
from worldgen.errors import DataError
from worldgen.evaluation.judges.inverse_dynamics import group_ids
from worldgen.evaluation.judges.inverse_dynamics_alignment import (
    REACH,
    alignment,
    describe_misalignment,
    require_alignment,
)

SCHEMA = toy_clicks.clicks_schema()


def clips(count: int = 4, length: int = 40, *, hold: int = 1) -> np.ndarray:
    """Return actions, each held for some steps."""
    random = np.random.default_rng(0)
    return np.stack(
        [
            np.repeat(toy_clicks.random_actions(random, length), hold, axis=0)[:length]
            for _ in range(count)
        ]
    )


def shifted(actions: np.ndarray, shift: int) -> np.ndarray:
    """Return the actions as a recorder stores them that is `shift` steps late."""
    return np.roll(actions, shift, axis=1)


def blurred(ids: np.ndarray, share: float) -> np.ndarray:
    """Return readings of which a share is wrong."""
    random = np.random.default_rng(1)
    wrong = random.random(ids.shape) < share
    return np.where(wrong, random.integers(0, [3, 5], ids.shape), ids)


@pytest.mark.parametrize("hold", [1, 4])
@pytest.mark.parametrize("shift", range(-REACH, REACH + 1))
def test_the_shift_is_found_in_both_directions_by_a_judge_that_errs(shift: int, hold: int) -> None:
    actions = clips(hold=hold)
    read = blurred(group_ids(SCHEMA, actions), 0.4)
    found = alignment(SCHEMA, shifted(actions, shift), read)
    assert found["best_shift"] == shift
    assert found["aligned"] is (shift == 0)
    assert list(found["agreement"]) == ["-2", "-1", "+0", "+1", "+2"]
    if shift == 0:
        require_alignment(found, "the recording")
        assert describe_misalignment(found, "the recording") is None
    else:
        side = "late" if shift > 0 else "early"
        wanted = rf"actions of the recording lie {abs(shift)} steps? too {side}"
        with pytest.raises(DataError, match=wanted):
            require_alignment(found, "the recording")


def test_agreement_is_counted_where_shifts_make_a_difference() -> None:
    # One key, pressed at step 4 of ten: only steps 2 to 6 tell anything, and 7, whose five
    # neighbours are all rest, does not.
    actions = np.zeros((1, 10, 2))
    actions[0, 4, 0] = 2
    read = group_ids(SCHEMA, actions)
    found = alignment(SCHEMA, actions, read)
    assert found["cases"] == 5
    assert found["agreement"] == {"-2": 0.6, "-1": 0.6, "+0": 1.0, "+1": 0.6, "+2": 0.6}


def test_on_an_axis_near_is_better_than_far() -> None:
    actions = np.zeros((1, 9, 2))
    actions[0, :, 1] = np.linspace(-1.0, 1.0, 9)
    read = group_ids(SCHEMA, actions)
    agreement = alignment(SCHEMA, actions, read)["agreement"]
    assert agreement["+0"] == 1.0
    assert agreement["+1"] > agreement["+2"]
    bins = read[0, :, 1]
    off = np.abs(bins[3:8] - bins[2:7]) / 4
    assert agreement["+1"] == pytest.approx(1.0 - off.mean())


def test_a_key_that_is_always_held_tells_nothing() -> None:
    actions = np.zeros((2, 20, 2))
    found = alignment(SCHEMA, actions, group_ids(SCHEMA, actions))
    assert found == {"cases": 0, "agreement": {}, "best_shift": None, "aligned": None}
    assert describe_misalignment(found, "it") is None
    with pytest.raises(DataError, match="cannot be checked: 0 cases"):
        require_alignment(found, "it")


def test_clips_too_short_to_be_shifted_tell_nothing() -> None:
    actions = clips(2, 4)
    assert alignment(SCHEMA, actions, group_ids(SCHEMA, actions))["best_shift"] is None


def test_a_judge_that_guesses_accuses_nobody() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        actions = clips(2, 30)
        read = random.integers(0, [3, 5], actions.shape)
        assert alignment(SCHEMA, actions, read)["aligned"] is not False
