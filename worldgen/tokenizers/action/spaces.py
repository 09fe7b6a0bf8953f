"""Action spaces of environments: the schema that fits one, and its own samples to and fro.

Spaces are known by what they have (`n`, `nvec`, `low` and `high`, `spaces`), as Gymnasium's do, so
this file does not import Gymnasium.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Num

from worldgen.errors import ActionError
from worldgen.tokenizers.action.schema import ActionSchema, Axis, Categorical, Group, Setting

__all__ = ["from_space_action", "schema_from_space", "to_space_action"]

# An integer box with no more values than this gets one bin for each of them.
_MAX_INTEGER_BINS = 1024


def schema_from_space(space: Any, *, bins: int = 21) -> ActionSchema:
    """Return a schema whose actions are exactly those of an action space.

    Discrete, MultiDiscrete and MultiBinary become categorical groups, Box becomes axes; Dict and
    Tuple are flattened in their order, with the path as the name ("arm.grip.0"). The options of a
    categorical group are its numbers. To give better names, write an `ActionSchema` with as many
    groups of the same sizes: `to_space_action` serves it as well.

    Args:
        space: A Gymnasium action space, or anything of the same shape.
        bins: Bins of each axis; an odd number keeps zero on a symmetric axis. An integer box has
            one bin for each of its values, if they are few.

    Raises:
        ActionError: If the space is of another kind, or a box without bounds.
    """
    groups = tuple(
        group
        for path, leaf in _leaves(space, ())
        for group in _leaf_groups(".".join(path) or "action", leaf, bins)
    )
    named: dict[str, dict[str, Setting]] = {}
    if len(groups) == 1 and isinstance(groups[0], Categorical):
        named = {option: {groups[0].name: option} for option in groups[0].options}
    return ActionSchema(groups=groups, named=named)


def to_space_action(action: Num[np.ndarray, " group"], space: Any) -> Any:
    """Return one action as a sample of `space`, for `env.step`.

    Args:
        action: Option indices and axis values of a schema that fits the space.
        space: The space that the sample is for.

    Raises:
        ActionError: If the number of groups is not that of the space.
    """
    values = np.asarray(action)
    expected = sum(_leaf_size(leaf) for _, leaf in _leaves(space, ()))
    if values.shape != (expected,):
        raise ActionError(
            f"the action space {space} takes {expected} values, got an action of shape "
            f"{values.shape}"
        )
    return _fill(space, iter(values))


def from_space_action(sample: Any, space: Any) -> Num[np.ndarray, " group"]:
    """Return a sample of `space` as one action; the exact inverse of `to_space_action`.

    The result is float64 if the space holds a box, else int64.
    """
    leaves = [leaf for _, leaf in _leaves(space, ())]
    dtype = np.float64 if any(_kind(leaf) == "box" for leaf in leaves) else np.int64
    return np.concatenate([values.astype(dtype) for values in _read(sample, space)])


def _kind(space: Any) -> str:
    if isinstance(getattr(space, "spaces", None), dict):
        return "dict"
    if hasattr(space, "spaces"):
        return "tuple"
    if hasattr(space, "nvec"):
        return "multi_discrete"
    if hasattr(space, "low") and hasattr(space, "high"):
        return "box"
    if hasattr(space, "n"):
        return "multi_binary" if getattr(space, "shape", ()) else "discrete"
    raise ActionError(
        f"action space {space} cannot be turned into tokens; known are Discrete, MultiDiscrete, "
        "MultiBinary, Box, and Dict or Tuple of these"
    )


def _leaves(space: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each simple space with its path, depth first."""
    kind = _kind(space)
    if kind == "dict":
        for name, inner in space.spaces.items():
            yield from _leaves(inner, (*path, str(name)))
    elif kind == "tuple":
        for index, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, str(index)))
    else:
        yield path, space


def _leaf_size(space: Any) -> int:
    return int(np.prod(space.shape, dtype=np.int64)) if _kind(space) != "discrete" else 1


def _starts(space: Any) -> np.ndarray:
    """Return the number of the first option of each value of a simple space."""
    start = getattr(space, "start", 0) if _kind(space) != "box" else 0
    return np.broadcast_to(np.asarray(start).ravel(), (_leaf_size(space),))


def _leaf_groups(name: str, space: Any, bins: int) -> list[Group]:
    kind = _kind(space)
    if kind == "discrete":
        return [_categorical(name, int(space.n), int(_starts(space)[0]))]
    # One value of a box or of several needs no index, unless there are others beside it.
    size = _leaf_size(space)
    names = [f"{name}.{index}" for index in range(size)] if size > 1 else [name]
    if kind == "multi_binary":
        return [_categorical(each, 2, 0) for each in names]
    if kind == "multi_discrete":
        sizes = np.asarray(space.nvec).ravel().tolist()
        starts = _starts(space).tolist()
        return [_categorical(*each) for each in zip(names, sizes, starts, strict=True)]
    lows, highs = (np.asarray(bound, dtype=np.float64).ravel() for bound in (space.low, space.high))
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        raise ActionError(
            f"action space {name!r}, {space}, has no bounds; wrap the environment so that its box "
            "is bounded"
        )
    integer = np.issubdtype(space.dtype, np.integer)
    return [
        _axis(each, low, high, bins, integer)
        for each, low, high in zip(names, lows.tolist(), highs.tolist(), strict=True)
    ]


def _categorical(name: str, size: int, start: int) -> Categorical:
    return Categorical(name, tuple(str(start + index) for index in range(size)))


def _axis(name: str, low: float, high: float, bins: int, integer: bool) -> Axis:
    if integer and high - low < _MAX_INTEGER_BINS:
        # Half a step more on each side puts every whole number in the centre of its bin.
        return Axis(name, low - 0.5, high + 0.5, int(high - low) + 1)
    return Axis(name, low, high, bins)


def _fill(space: Any, values: Iterator[Any]) -> Any:
    kind = _kind(space)
    if kind == "dict":
        return {name: _fill(inner, values) for name, inner in space.spaces.items()}
    if kind == "tuple":
        return tuple(_fill(inner, values) for inner in space.spaces)
    taken = np.array([next(values) for _ in range(_leaf_size(space))])
    dtype = np.dtype(space.dtype)
    if np.issubdtype(dtype, np.integer):
        taken = np.rint(taken).astype(np.int64) + _starts(space)
    taken = taken.astype(dtype)
    return taken[0] if kind == "discrete" else taken.reshape(space.shape)


def _read(sample: Any, space: Any) -> Iterator[np.ndarray]:
    kind = _kind(space)
    if kind == "dict":
        for name, inner in space.spaces.items():
            yield from _read(sample[name], inner)
    elif kind == "tuple":
        for value, inner in zip(sample, space.spaces, strict=True):
            yield from _read(value, inner)
    elif kind == "box":
        yield np.asarray(sample).ravel()
    else:
        yield np.asarray(sample).ravel().astype(np.int64) - _starts(space)
