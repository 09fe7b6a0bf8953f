"""Foreign checkpoint files: their tensors by name, and a full account of names that do not fit."""

import argparse
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worldgen.errors import CheckpointError

__all__ = ["ForeignCheckpoint", "ForeignState", "read_checkpoint"]

# Where trainers put the state when they save more than the state.
_STATE_NAMES = ("state_dict", "model_state_dict", "model")

# What a pickle may hold beside tensors and plain containers: it keeps hyper-parameters, runs nothing.
_ALLOWED_TYPES: list[Any] = [argparse.Namespace]

_NAMES_IN_A_MESSAGE = 20

# The only types that are worth keeping; others are stored as float32.
_STORED_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class ForeignCheckpoint:
    """What a checkpoint file of another project holds, on the CPU."""

    path: Path
    tensors: Mapping[str, Tensor]
    """The state by the names and in the types of the file."""
    extras: Mapping[str, Any]
    """Everything beside the state: hyper-parameters, counters, states of optimisers."""

    def stored_type(self, counts: Callable[[str], bool] = lambda name: True) -> torch.dtype:
        """Return the type that keeps all weights without loss, float32 where types are mixed.

        Args:
            counts: Says by the name which weights count.
        """
        types = {tensor.dtype for name, tensor in self.tensors.items() if counts(name)}
        only = types.pop() if len(types) == 1 else torch.float32
        return only if only in _STORED_TYPES else torch.float32


def read_checkpoint(path: Path) -> ForeignCheckpoint:
    """Read `*.safetensors`, or any other suffix as a torch pickle, without running code of it.

    A pickle may be the state alone, or hold it as `state_dict` (Lightning), `model_state_dict`
    or `model`. Only tensors, plain containers and `argparse.Namespace` are accepted in it.

    Raises:
        CheckpointError: If the file is missing, damaged, holds no tensors, or needs other types.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; check the path")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state: Mapping[str, Any] = content
    extras: dict[str, Any] = {}
    for name in _STATE_NAMES:
        if isinstance(content.get(name), Mapping):
            state = content[name]
            extras = {key: value for key, value in content.items() if key != name}
            break
    tensors = {key: value.detach() for key, value in state.items() if isinstance(value, Tensor)}
    extras |= {key: value for key, value in state.items() if key not in tensors}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors, neither at its top nor under {', '.join(_STATE_NAMES)}; "
            f"it holds {_list(list(map(str, content)))}; give the file with the weights"
        )
    return ForeignCheckpoint(path=path, tensors=tensors, extras=extras)


class ForeignState:
    """Hands out the tensors of a foreign checkpoint, and tells all that is amiss at once.

    An importer takes each tensor it needs by the foreign name, leaves what it knows to be of no
    use, and ends with `finish`. Until then nothing raises; stand-ins of zeros take the place of
    what is missing.

    Example:
        >>> state = ForeignState({"w": torch.ones(2), "loss.w": torch.ones(1)}, Path("a.ckpt"))
        >>> state.take("w", (2,))
        tensor([1., 1.])
        >>> state.leave("loss.")
        >>> state.finish()
        ('loss.w',)
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        self._tensors = tensors
        self._path = path
        self._taken: set[str] = set()
        self._left: tuple[str, ...] = ()
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return the tensor of a foreign name, float32 where it is of a floating-point type.

        Axes of one at the end of the shape may differ: a linear layer may be stored as a
        convolution of one pixel, and the other way round.
        """
        self._taken.add(name)
        if name not in self._tensors:
            self._missing.append(name)
            return torch.zeros(tuple(shape))
        tensor = self._tensors[name]
        if _without_ones(tensor.shape) != _without_ones(shape):
            self._misshapen.append(f"{name} {tuple(tensor.shape)} instead of {tuple(shape)}")
            return torch.zeros(tuple(shape))
        tensor = tensor.reshape(tuple(shape))
        return tensor.float() if tensor.is_floating_point() else tensor

    def leave(self, *prefixes: str) -> None:
        """Say which names are known to be of no use here, by how they begin."""
        self._left += prefixes

    def finish(self) -> tuple[str, ...]:
        """Return the names that were left, sorted, after checking that everything else was taken.

        Raises:
            CheckpointError: With the names missing, unexpected and of a wrong shape.
        """
        rest = sorted(self._tensors.keys() - self._taken)
        left = tuple(name for name in rest if name.startswith(self._left))
        unexpected = [name for name in rest if name not in set(left)]
        if self._missing or unexpected or self._misshapen:
            raise CheckpointError(
                f"{self._path} does not fit the configuration given with it: "
                f"missing {_list(self._missing)}, unexpected {_list(unexpected)}, "
                f"wrong shape {_list(self._misshapen)}; use the configuration it was trained with"
            )
        return left


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); copy or download it again"
        ) from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(_ALLOWED_TYPES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can fail anywhere in torch's readers, so this names no narrower type.
    except Exception as error:
        # One wording for what is not on torch's list, another for modules that it never allows.
        refused = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
        if refused and isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{path} needs {refused[1]}, and loading that could run code hidden in the file; "
                f"only tensors, plain containers and argparse.Namespace are read: save the "
                f"weights alone, best as safetensors, where the file can be trusted"
            ) from error
        raise CheckpointError(
            f"{path} is damaged or not a torch checkpoint ({type(error).__name__}); copy or "
            f"download it again"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not weights by name; give a checkpoint"
        )
    return content


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    axes = list(shape)
    while axes and axes[-1] == 1:
        axes.pop()
    return tuple(axes)


def _list(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    more = len(names) - _NAMES_IN_A_MESSAGE
    return ", ".join(names[:_NAMES_IN_A_MESSAGE]) + (f" and {more} more" if more > 0 else "")
