"""A stand-in for the little of gym 0.19 to 0.23 that MineRL's users touch: the old interface."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np


class Env:
    """What crafter derives from where gym is installed."""


class Discrete:
    def __init__(self, n: int) -> None:
        self.n = n

    def contains(self, value: Any) -> bool:
        whole = type(value) is int or (isinstance(value, np.integer) and value.shape == ())
        return whole and 0 <= value < self.n

    def no_op(self) -> Any:
        return 0


class Enum(Discrete):
    """MineRL's own: one of some words."""

    def __init__(self, *values: str) -> None:
        super().__init__(len(values))
        self.values = values

    def contains(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.values

    def no_op(self) -> Any:
        return self.values[0]


class Box:
    def __init__(self, low: float, high: float, shape: tuple[int, ...], dtype: Any) -> None:
        self.low = np.full(shape, low, dtype)
        self.high = np.full(shape, high, dtype)
        self.shape = shape
        self.dtype = np.dtype(dtype)

    def contains(self, value: Any) -> bool:
        return (
            isinstance(value, np.ndarray)
            and value.dtype == self.dtype
            and value.shape == self.shape
            and bool(np.all((value >= self.low) & (value <= self.high)))
        )

    def no_op(self) -> np.ndarray:
        return np.zeros(self.shape, self.dtype)


class Dict:
    def __init__(self, spaces: Mapping[str, Any]) -> None:
        self.spaces = OrderedDict(spaces)

    def check(self, value: Any) -> None:
        """Raise on any key too many or too few, and on any value outside its space."""
        if not isinstance(value, dict):
            raise AssertionError(f"an action must be a dict, got {type(value)}")
        if set(value) != set(self.spaces):
            raise AssertionError(f"wrong keys: {sorted(set(value) ^ set(self.spaces))}")
        for key, space in self.spaces.items():
            if not space.contains(value[key]):
                raise AssertionError(f"{key} got {value[key]!r} ({type(value[key])})")

    def no_op(self) -> OrderedDict[str, Any]:
        return OrderedDict((key, space.no_op()) for key, space in self.spaces.items())


class Error(Exception):
    pass


error = SimpleNamespace(Error=Error)
spaces = SimpleNamespace(Box=Box, Dict=Dict, Discrete=Discrete, Enum=Enum)

_registered: dict[str, tuple[Callable[[], Any], int | None]] = {}


def register(
    id: str,
    entry_point: Any,
    max_episode_steps: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> None:
    _registered[id] = (entry_point, max_episode_steps)


def make(identifier: str) -> Any:
    if identifier not in _registered:
        raise Error(f"No registered env with id: {identifier}")
    entry_point, max_episode_steps = _registered[identifier]
    game = entry_point()
    return game if max_episode_steps is None else TimeLimit(game, max_episode_steps)


class TimeLimit:
    """As gym's: ends an episode, and says in the info that it was the clock."""

    def __init__(self, env: Any, max_episode_steps: int) -> None:
        self.env = env
        self._max_episode_steps = max_episode_steps
        self._elapsed_steps = 0

    @property
    def unwrapped(self) -> Any:
        return self.env

    @property
    def action_space(self) -> Any:
        return self.env.action_space

    @property
    def observation_space(self) -> Any:
        return self.env.observation_space

    def seed(self, seed: int | None = None) -> None:
        self.env.seed(seed)

    def reset(self) -> Any:
        self._elapsed_steps = 0
        return self.env.reset()

    def step(self, action: Any) -> Any:
        observation, reward, done, info = self.env.step(action)
        self._elapsed_steps += 1
        if self._elapsed_steps >= self._max_episode_steps:
            info["TimeLimit.truncated"] = not done
            done = True
        return observation, reward, done, info

    def close(self) -> None:
        self.env.close()
