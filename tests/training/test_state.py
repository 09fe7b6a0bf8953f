"""The file from which a training goes on."""

from pathlib import Path

import pytest
import torch
from torch import nn

from worldgen.checkpoint import save_tensors
from worldgen.errors import CheckpointError
from worldgen.training import (
    OptimiserConfig,
    Position,
    WeightAverage,
    build_optimiser,
    load_training_state,
    save_training_state,
)


class Training:
    """A network, its average and its optimiser, trained on noise."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))
        self.average = WeightAverage(self.module, decay=0.9)
        self.optimiser = build_optimiser(self.module, OptimiserConfig(learning_rate=0.01))

    def train(self, steps: range) -> None:
        for step in steps:
            batch = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            self.optimiser.zero_grad()
            self.module(batch).square().mean().backward()
            self.optimiser.step()
            self.average.update(self.module, step)

    def save(self, path: Path, step: int) -> None:
        position = Position(step=step, elapsed_seconds=12.5, settings={"seed": 1})
        save_training_state(path, self.module, self.average.module, self.optimiser, position)

    def load(self, path: Path) -> Position:
        return load_training_state(path, self.module, self.average.module, self.optimiser)


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = Training(), Training(), Training()
    whole.train(range(8))
    first.train(range(4))
    first.save(tmp_path / "state.safetensors", step=4)
    position = second.load(tmp_path / "state.safetensors")
    assert position == Position(step=4, elapsed_seconds=12.5, settings={"seed": 1})
    second.train(range(position.step, 8))
    for expected, got in (
        (whole.module, second.module),
        (whole.average.module, second.average.module),
    ):
        for name, tensor in expected.state_dict().items():
            assert torch.equal(tensor, got.state_dict()[name]), name


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "other.safetensors", {"weight": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="is not the state of a training"):
        Training().load(tmp_path / "other.safetensors")


def test_the_state_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    module, average = nn.Linear(3, 3), nn.Linear(3, 3)
    optimiser = build_optimiser(module, OptimiserConfig(learning_rate=0.01))
    position = Position(step=0, elapsed_seconds=0.0, settings={})
    save_training_state(path, module, average, optimiser, position)
    with pytest.raises(CheckpointError, match="missing"):
        Training().load(path)
