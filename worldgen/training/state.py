"""Everything that a training needs to go on as if it had never stopped, in one file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldgen.checkpoint import load_state, load_tensors, save_tensors
from worldgen.errors import CheckpointError

__all__ = ["Position", "load_training_state", "save_training_state"]

_ARTIFACT = "training_state"


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a training stands."""

    step: int
    """Steps finished."""
    elapsed_seconds: float
    """Time spent training, without the pauses between runs."""
    settings: dict[str, Any]
    """What must not differ when the training is resumed; JSON."""


def save_training_state(
    path: Path,
    module: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    position: Position,
) -> None:
    """Write weights, averaged weights, optimiser and position; the old file stays until then."""
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, entries in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in entries.items()}
    metadata = {
        "artifact": _ARTIFACT,
        "step": position.step,
        "elapsed_seconds": position.elapsed_seconds,
        "settings": position.settings,
    }
    save_tensors(path, tensors, metadata)


def load_training_state(
    path: Path,
    module: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> Position:
    """Fill module, average and optimiser from a file; return where that training stood.

    Raises:
        CheckpointError: If the file is damaged, of another kind, or of another network.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("artifact") != _ARTIFACT:
        raise CheckpointError(f"{path} is not the state of a training; remove it or resume=false")
    load_state(module, _under("module.", tensors), path)
    load_state(average, _under("average.", tensors), path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimiser.", tensors).items():
        index, _, entry = name.partition(".")
        state.setdefault(int(index), {})[entry] = tensor
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    return Position(
        step=metadata["step"],
        elapsed_seconds=metadata["elapsed_seconds"],
        settings=metadata["settings"],
    )


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
