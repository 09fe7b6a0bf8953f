"""Batches as a pure function of seed and step."""

import numpy as np

from worldgen.training import DataOrder


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first = DataOrder(np.ones(1000), batch_size=16, seed=3)
    second = DataOrder(np.ones(1000), batch_size=16, seed=3)
    later = first.indices(7)
    for step in range(7):
        second.indices(step)
    assert np.array_equal(second.indices(7), later)
    assert not np.array_equal(first.indices(8), later)
    assert not np.array_equal(DataOrder(np.ones(1000), batch_size=16, seed=4).indices(7), later)


def test_samples_come_up_in_proportion_to_their_weights() -> None:
    order = DataOrder(np.array([1.0, 0.0, 3.0]), batch_size=4000, seed=0)
    counts = np.bincount(order.indices(0), minlength=3)
    assert counts[1] == 0
    assert 2850 < counts[2] < 3150
