"""Ctrl-C and numbers that are no longer finite."""

import os
import signal

import pytest
import torch

from worldgen.training import DivergedError, Interruption, refuse_non_finite


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_flag_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interruption() as interruption:
        requested = [interruption.requested]
        os.kill(os.getpid(), number)
        requested.append(interruption.requested)
    assert requested == [False, True]
    assert signal.getsignal(number) is before


def test_a_second_signal_stops_at_once() -> None:
    with Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_first_figure_that_is_not_finite_is_named() -> None:
    figures = {"absolute": torch.tensor(1.0), "worst": torch.tensor(float("nan"))}
    with pytest.raises(DivergedError, match="'worst' is nan at step 12; the last checkpoint"):
        refuse_non_finite(figures, step=12)


def test_finite_figures_pass() -> None:
    refuse_non_finite({"absolute": torch.tensor(1.0)}, step=0)
