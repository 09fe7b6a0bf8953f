"""Drawing follows the distribution, and random numbers depend on seed, frame and cell alone."""

from typing import Any

import numpy as np
import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import SamplingConfig, distribution, draw, keep_largest


def test_a_cell_gets_the_same_number_whatever_the_batch() -> None:
    alone = frame_uniforms([7], [3], 16)
    among = frame_uniforms([1, 7, 9], [3, 3, 4], 16)
    assert torch.equal(alone[0], among[1])


def test_seeds_and_frames_give_different_numbers() -> None:
    rows = frame_uniforms([0, 0, 1], [0, 1, 0], 64)
    assert len({tuple(row) for row in rows.tolist()}) == 3
    assert len(torch.unique(rows)) == rows.numel()


def test_numbers_are_uniform() -> None:
    numbers = frame_uniforms([5] * 200, list(range(200)), 64).flatten().numpy()
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert abs(counts - 1280).max() < 5 * 1280**0.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_distribution(temperature: float) -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    uniforms = frame_uniforms([3] * 500, list(range(500)), 40)
    ids = draw(logits.expand(500, 40, 4), uniforms, SamplingConfig(temperature=temperature))
    shares = torch.bincount(ids.flatten(), minlength=4) / ids.numel()
    # Four standard errors of a share of 20,000 draws.
    assert (shares - (logits / temperature).softmax(-1)).abs().max() < 4 * (0.25 / 20_000) ** 0.5


def test_temperature_zero_takes_the_most_likely() -> None:
    logits = torch.randn(3, 5, 11)
    ids = draw(logits, torch.rand(3, 5), SamplingConfig(temperature=0.0))
    assert torch.equal(ids, logits.argmax(-1))


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    uniforms = torch.linspace(0, 0.999, 1000)
    for top_p, kept in ((0.4, {0}), (0.6, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        ids = draw(logits.expand(1000, 4), uniforms, SamplingConfig(top_p=top_p))
        assert set(ids.tolist()) == kept


def test_the_largest_logits_are_kept_and_their_ties() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0], [1.0, 5.0, 1.0, 0.0]])
    kept = keep_largest(logits, 2).isfinite()
    assert kept.tolist() == [[False, True, False, True], [True, True, True, False]]
    assert torch.equal(keep_largest(logits, 4), logits)
    assert torch.equal(keep_largest(logits, 9), logits)


def test_the_nucleus_applies_to_what_the_largest_leave_after_the_temperature() -> None:
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0, 1.0])
    config = SamplingConfig(temperature=2.0, top_k=3, top_p=0.7)
    # Of e^2, e^1.5 and e^1 the first has 0.51 and the first two 0.81; of all five the first two
    # have 0.66, and without the temperature the first has 0.64 of all and 0.67 of the three.
    expected = torch.tensor([2.0, 1.5], dtype=torch.float64).exp()
    expected /= torch.tensor([2.0, 1.5, 1.0], dtype=torch.float64).exp().sum()
    probabilities = distribution(logits, config)
    torch.testing.assert_close(probabilities[:2], expected)
    assert not probabilities[2:].any()
    rest = distribution(logits, SamplingConfig(temperature=2.0, top_p=0.7))
    assert rest.count_nonzero() == 3


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-30, 1.0, 1e30, 1e300])
def test_the_most_likely_of_one_is_greedy_at_every_temperature(temperature: float) -> None:
    logits = torch.randn(64, 11, generator=torch.Generator().manual_seed(0))
    uniforms = frame_uniforms([1], [0], 64)[0]
    ids = draw(logits, uniforms, SamplingConfig(temperature=temperature, top_k=1))
    assert torch.equal(ids, logits.argmax(-1))


def test_forbidden_ids_are_drawn_at_no_temperature() -> None:
    logits = torch.tensor([0.0, float("-inf"), -1.0, float("-inf")])
    uniforms = torch.linspace(0, 0.999, 1000)
    for temperature in (1e-320, 1.0, 1e300):
        for top_k in (None, 3):
            config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=0.999)
            assert set(draw(logits.expand(1000, 4), uniforms, config).tolist()) <= {0, 2}


def test_the_largest_uniform_number_stays_inside_the_codebook() -> None:
    logits = torch.zeros(1, 1000)
    uniforms = torch.tensor([np.nextafter(1.0, 0.0)])
    assert draw(logits, uniforms, SamplingConfig()).item() == 999


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**settings)
