"""Mu-law axes against the formula written out, VPT's table of it, and bad input."""

import math

import numpy as np
import pytest

from worldgen.errors import ActionError
from worldgen.tokenizers.action import ActionSchema, ActionTokenizer, Categorical, MuLawAxis

VPT = MuLawAxis("look", limit=10.0, bins=11, mu=10.0)
AXES = [
    VPT,
    MuLawAxis("look", limit=90.0, bins=21, mu=11.4887),
    MuLawAxis("look", limit=90.0, bins=61, mu=100.0),
    MuLawAxis("look", limit=0.5, bins=3, mu=0.25),
    MuLawAxis("look", limit=180.0, bins=41, mu=0.0),
]


def bin_of(number: float, axis: MuLawAxis) -> int:
    """Return the bin of one number, by the formula written out."""
    clipped = min(max(number, -axis.limit), axis.limit)
    place = clipped
    if axis.mu:
        loudness = math.log(1 + axis.mu * abs(clipped) / axis.limit) / math.log(1 + axis.mu)
        place = math.copysign(loudness * axis.limit, clipped)
    return round((place + axis.limit) / (2 * axis.limit / (axis.bins - 1)))


@pytest.mark.parametrize("axis", AXES)
def test_bins_are_those_of_the_formula(axis: MuLawAxis) -> None:
    # Also beyond the limits; the grid is odd so that it meets no edge of a bin.
    numbers = np.linspace(-1.3, 1.3, 4999) * axis.limit
    assert axis.to_ids(numbers).tolist() == [bin_of(number, axis) for number in numbers.tolist()]


@pytest.mark.parametrize("axis", AXES)
def test_centres_of_bins_survive_and_rise_from_limit_to_limit(axis: MuLawAxis) -> None:
    ids = np.arange(axis.bins)
    centres = axis.from_ids(ids)
    np.testing.assert_array_equal(axis.to_ids(centres), ids)
    np.testing.assert_allclose(centres[[0, -1]], [-axis.limit, axis.limit], rtol=1e-12)
    assert centres[axis.bins // 2] == 0.0
    np.testing.assert_allclose(centres, -centres[::-1], rtol=1e-12)
    widths = np.diff(centres[axis.bins // 2 :])
    assert (widths > 0).all()
    assert (np.diff(widths) > -1e-9).all()


@pytest.mark.parametrize("axis", AXES)
def test_a_number_falls_to_the_nearer_centre_after_companding(axis: MuLawAxis) -> None:
    numbers = np.linspace(-axis.limit, axis.limit, 997)
    centres = axis.from_ids(axis.to_ids(numbers))
    neighbours = axis.from_ids(np.clip(axis.to_ids(numbers)[:, None] + [-1, 1], 0, axis.bins - 1))
    assert (centres >= neighbours[:, 0]).all()
    assert (numbers >= neighbours[:, 0] - 1e-9).all()
    assert (numbers <= neighbours[:, 1] + 1e-9).all()


def test_the_camera_of_vpt_has_the_centres_of_its_paper() -> None:
    expected = [-10.0, -5.81, -3.22, -1.61, -0.62, 0.0, 0.62, 1.61, 3.22, 5.81, 10.0]
    assert VPT.from_ids(np.arange(11)).round(2).tolist() == expected


def test_without_mu_bins_are_equal_and_halves_go_to_the_even_one() -> None:
    axis = MuLawAxis("look", limit=4.0, bins=5, mu=0.0)
    assert axis.from_ids(np.arange(5)).tolist() == [-4.0, -2.0, 0.0, 2.0, 4.0]
    assert axis.to_ids(np.array([-3.0, -1.0, 1.0, 3.0])).tolist() == [0, 2, 2, 4]


def test_single_precision_and_whole_numbers_are_taken() -> None:
    assert VPT.to_ids(np.array([1.61, -99.0], dtype=np.float32)).tolist() == [7, 0]
    assert VPT.to_ids(np.array([3, 0, -3])).tolist() == [8, 5, 2]
    assert VPT.to_ids(np.array(0.0)) == 5


def test_a_setting_is_a_number_within_the_limits() -> None:
    assert VPT.value("-2.5") == -2.5
    assert VPT.value(10) == 10.0
    for wrong in (10.01, -11, "nan", "inf", "up", None):
        with pytest.raises(ActionError, match="'look' takes a number from -10 to 10"):
            VPT.value(wrong)


def test_numbers_that_are_not_finite_are_refused() -> None:
    tokenizer = ActionTokenizer(ActionSchema(groups=(VPT,)))
    for wrong in (np.nan, np.inf):
        with pytest.raises(ActionError, match="'look' takes finite numbers, got"):
            tokenizer.encode(np.array([[0.0], [wrong]]))


@pytest.mark.parametrize(
    ("limit", "bins", "mu", "message"),
    [
        (0.0, 11, 10.0, "finite limit above 0, got 0"),
        (math.inf, 11, 10.0, "finite limit above 0, got inf"),
        (10.0, 10, 10.0, "odd number of bins, 3 at least.*got 10"),
        (10.0, 1, 10.0, "odd number of bins, 3 at least.*got 1"),
        (10.0, 11, -1.0, "finite mu of 0 or more, got -1"),
        (10.0, 11, math.nan, "finite mu of 0 or more, got nan"),
    ],
)
def test_axes_that_contradict_themselves_are_refused(
    limit: float, bins: int, mu: float, message: str
) -> None:
    with pytest.raises(ActionError, match=message):
        MuLawAxis("look", limit=limit, bins=bins, mu=mu)


def test_a_message_names_only_some_of_very_many_options() -> None:
    group = Categorical("slot", tuple(f"place{number}" for number in range(500)))
    with pytest.raises(ActionError, match=r"place0, place1, .*place19 and 480 more$"):
        group.value("place500")
