"""Measures give what can be worked out by hand."""

import numpy as np
import pytest

from worldgen.evaluation.measures import (
    best_shift,
    correlation,
    fraction,
    scrolled_in,
    shift_agreement,
    shifted,
    token_accuracy,
)


def test_correlation_knows_equal_opposite_and_constant() -> None:
    values = np.random.default_rng(0).normal(size=(3, 7))
    assert correlation(2 * values + 5, values) == pytest.approx(1.0)
    assert correlation(-values, values) == pytest.approx(-1.0)
    assert correlation(np.full(7, 0.1), values[0]) is None


def test_correlation_of_signal_and_equally_strong_noise_is_one_over_root_two() -> None:
    random = np.random.default_rng(0)
    signal, noise = random.normal(size=(2, 100_000))
    assert correlation(signal + noise, signal) == pytest.approx(0.5**0.5, abs=0.01)


def test_fraction_of_nothing_is_unknown() -> None:
    assert fraction([]) is None
    assert fraction([True, False, True, True]) == 0.75


@pytest.mark.parametrize("planted", [(0, 0), (1, 0), (0, -1), (-1, 1)])
def test_best_shift_finds_a_planted_shift_and_ignores_static_rows(
    planted: tuple[int, int],
) -> None:
    random = np.random.default_rng(1)
    before = random.integers(0, 9, (8, 8))
    after = random.integers(0, 9, (8, 8))
    moved = shifted(before[:6], *planted)
    after[:6] = np.where(moved >= 0, moved, after[:6])
    assert best_shift(before, after, static_rows=2) == planted
    assert shift_agreement(before, after, static_rows=2)[planted] == 1.0


def test_best_shift_stays_where_every_shift_explains_as_much() -> None:
    plain = np.ones((6, 8), int)
    assert best_shift(plain, plain) == (0, 0)


def test_unknown_cells_are_not_compared() -> None:
    before = np.arange(12).reshape(3, 4)
    after = before.copy()
    after[1, 1], before[2, 2] = -1, -1
    assert shift_agreement(before, after)[0, 0] == 1.0


def test_scrolled_in_cells_are_those_that_nothing_moved_into() -> None:
    entered = scrolled_in((4, 3), (1, 0), static_rows=1)
    expected = np.zeros((4, 3), bool)
    expected[0] = True
    assert np.array_equal(entered, expected)
    entered = scrolled_in((4, 3), (0, -1), static_rows=1)
    assert entered.sum() == 3
    assert entered[:3, 2].all()


def test_token_accuracy_counts_only_the_picked_cells() -> None:
    true = np.arange(8).reshape(2, 2, 2)
    predicted = true.copy()
    predicted[0, 0, 0] = 99
    where = np.zeros_like(true, bool)
    where[0] = True
    assert token_accuracy(predicted, true, where) == 0.75
    assert token_accuracy(predicted, true, np.zeros_like(where)) is None
