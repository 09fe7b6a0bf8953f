"""The running average of weights."""

import torch
from torch import nn

from worldgen.training import WeightAverage


def test_average_follows_the_growing_decay() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 0.0)
    average = WeightAverage(module, decay=0.9)
    nn.init.constant_(module.weight, 1.0)
    # Step 0 keeps 1/10 of the old average, step 1 keeps 2/11.
    average.update(module, step=0)
    torch.testing.assert_close(average.module.weight.detach(), torch.full((1, 1), 0.9))
    average.update(module, step=1)
    expected = torch.full((1, 1), 0.9 * 2 / 11 + 9 / 11)
    torch.testing.assert_close(average.module.weight.detach(), expected)


def test_buffers_are_copied_as_they_are() -> None:
    module = nn.BatchNorm1d(2)
    average = WeightAverage(module, decay=0.99)
    module(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    average.update(module, step=0)
    assert torch.equal(average.module.running_mean, module.running_mean)  # type: ignore[arg-type]
    assert int(average.module.num_batches_tracked) == 1  # type: ignore[arg-type]


def test_average_is_in_evaluation_mode_and_frozen() -> None:
    average = WeightAverage(nn.Linear(2, 2).train(), decay=0.9)
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
