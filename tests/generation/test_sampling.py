"""Drawing follows the distribution, and random numbers depend on seed, frame and cell alone."""

import numpy as np
import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import SamplingConfig, draw


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


def test_the_largest_uniform_number_stays_inside_the_codebook() -> None:
    logits = torch.zeros(1, 1000)
    uniforms = torch.tensor([np.nextafter(1.0, 0.0)])
    assert draw(logits, uniforms, SamplingConfig()).item() == 999


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**settings)
