"""How long a training is, in steps and in minutes."""

import time

import pytest

from worldgen.errors import ConfigError
from worldgen.training import Clock, LengthConfig


def test_progress_by_steps_does_not_look_at_the_clock() -> None:
    length = LengthConfig(steps=200)
    assert length.progress(50, elapsed_seconds=1e9) == 0.25
    assert length.progress(300, elapsed_seconds=0.0) == 1.0


def test_progress_by_minutes_is_whichever_is_nearer_the_end() -> None:
    length = LengthConfig(steps=200, max_minutes=2.0)
    assert length.progress(50, elapsed_seconds=90.0) == 0.75
    assert length.progress(180, elapsed_seconds=90.0) == 0.9
    assert length.progress(0, elapsed_seconds=600.0) == 1.0


def test_a_clock_goes_on_from_where_a_run_stopped() -> None:
    before = time.monotonic()
    clock = Clock(100.0)
    elapsed = clock.elapsed_seconds
    assert 100.0 <= elapsed <= 100.0 + (time.monotonic() - before) + 1e-6


def test_a_training_without_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs steps >= 1"):
        LengthConfig(steps=0)
