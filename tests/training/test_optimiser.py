"""Parameter groups and the learning rate over the course of a training."""

import pytest
import torch
from torch import nn

from worldgen.errors import ConfigError
from worldgen.training import OptimiserConfig, build_optimiser, learning_rate, set_learning_rate


def test_vectors_are_exempt_from_weight_decay() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(4))
    optimiser = build_optimiser(module, OptimiserConfig(learning_rate=0.1, weight_decay=0.5))
    decayed, exempt = optimiser.param_groups
    assert decayed["weight_decay"] == 0.5
    assert [parameter.ndim for parameter in decayed["params"]] == [4]
    assert exempt["weight_decay"] == 0.0
    assert [parameter.ndim for parameter in exempt["params"]] == [1, 1, 1]


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    optimiser = build_optimiser(module, OptimiserConfig(learning_rate=0.1))
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 1


def test_learning_rate_rises_to_its_peak_then_falls_to_its_final_share() -> None:
    config = OptimiserConfig(learning_rate=2.0, warmup_share=0.1, final_share=0.05)
    assert learning_rate(config, 0.0) == 0.0
    assert learning_rate(config, 0.05) == pytest.approx(1.0)
    assert learning_rate(config, 0.1) == pytest.approx(2.0)
    assert learning_rate(config, 0.55) == pytest.approx(2.0 * (0.05 + 0.95 / 2))
    assert learning_rate(config, 1.0) == pytest.approx(0.1)
    assert learning_rate(config, 1.5) == pytest.approx(0.1)


def test_learning_rate_reaches_every_group() -> None:
    optimiser = build_optimiser(nn.Linear(2, 2), OptimiserConfig(learning_rate=0.1))
    set_learning_rate(optimiser, 0.03)
    assert [group["lr"] for group in optimiser.param_groups] == [0.03, 0.03]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "must be positive"),
        ({"learning_rate": 0.1, "warmup_share": 1.0}, r"warmup_share must lie in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimiserConfig(**settings)  # type: ignore[arg-type]


def test_one_step_moves_the_weights_by_about_the_rate() -> None:
    module = nn.Linear(1, 1, bias=False)
    before = module.weight.detach().clone()
    config = OptimiserConfig(learning_rate=0.01, weight_decay=0.0)
    optimiser = build_optimiser(module, config)
    module(torch.ones(1, 1)).sum().backward()
    optimiser.step()
    torch.testing.assert_close(before - module.weight.detach(), torch.full((1, 1), 0.01))
