"""Everything that a training needs to go on as if it had never stopped, in one file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from worldgen.checkpoint import load_state, load_tensors, save_tensors
from worldgen.errors import CheckpointError

__all__ = ["Position", "load_training_state", "save_training_state"]

_ARTIFACT = "training_state"
_NONE: Mapping[str, tuple[nn.Module, torch.optim.Optimizer]] = MappingProxyType({})


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
    *,
    others: Mapping[str, tuple[nn.Module, torch.optim.Optimizer]] = _NONE,
) -> None:
    """Write weights, averaged weights, optimiser and position; the old file stays until then.

    Args:
        path: Destination.
        module: The network that is trained.
        average: Its average.
        optimiser: Its optimiser.
        position: Where the training stands.
        others: Networks trained beside it, with their optimisers, by name.
    """
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    tensors |= _optimiser_tensors("optimiser.", optimiser)
    for name, (other, its_optimiser) in others.items():
        state = other.state_dict()
        tensors |= {f"{name}.module.{entry}": tensor for entry, tensor in state.items()}
        tensors |= _optimiser_tensors(f"{name}.optimiser.", its_optimiser)
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
    *,
    others: Mapping[str, tuple[nn.Module, torch.optim.Optimizer]] = _NONE,
) -> Position:
    """Fill all that `save_training_state` wrote; return where that training stood.

    Raises:
        CheckpointError: If the file is damaged, of another kind, or of another network.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("artifact") != _ARTIFACT:
        raise CheckpointError(f"{path} is not the state of a training; remove it or resume=false")
    load_state(module, _under("module.", tensors), path)
    load_state(average, _under("average.", tensors), path)
    _fill_optimiser(optimiser, _under("optimiser.", tensors))
    for name, (other, its_optimiser) in others.items():
        load_state(other, _under(f"{name}.module.", tensors), path)
        _fill_optimiser(its_optimiser, _under(f"{name}.optimiser.", tensors))
    return Position(
        step=metadata["step"],
        elapsed_seconds=metadata["elapsed_seconds"],
        settings=metadata["settings"],
    )


def _optimiser_tensors(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{prefix}{index}.{name}": tensor
        for index, entries in optimiser.state_dict()["state"].items()
        for name, tensor in entries.items()
    }


def _fill_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, entry = name.partition(".")
        state.setdefault(int(index), {})[entry] = tensor
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
