"""The real environment of a world, found through Gymnasium by the id that its card names."""

import importlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8

from worldgen.errors import EnvironmentMissingError
from worldgen.tokenizers.action import to_space_action

__all__ = ["RealEnvironment"]


class RealEnvironment:
    """A Gymnasium environment that speaks frames and action groups, as recordings do.

    The library never imports its environments by name; a world's card says `module:Name-v0` and
    Gymnasium imports the module. Stepping on after the end of an episode is allowed, because a
    dream that runs beside the environment does not end either.

    Args:
        identifier: Gymnasium id, with the module to import before a colon.
        options: Keyword arguments of the environment.

    Raises:
        EnvironmentMissingError: If Gymnasium, the module or what it needs is not installed.

    Example:
        >>> with RealEnvironment("envs.car_racing:worldgen/CarRacing-v0", {}) as environment:
        ...     frame = environment.reset(seed=7)
        ...     frame = environment.step(np.array([1, 0]))
    """

    info: dict[str, Any]
    """What the environment said beside the last frame, for example position and speed."""
    ended: bool
    """Whether the environment reported an end of its episode since the last reset."""

    def __init__(self, identifier: str, options: Mapping[str, Any]) -> None:
        try:
            # By name: type checkers and users without the environments never need Gymnasium.
            gymnasium = importlib.import_module("gymnasium")
        except ImportError as error:
            raise EnvironmentMissingError(
                f"the real environment {identifier!r} needs Gymnasium, which is not installed; "
                "run from a clone of the repository after `make setup`"
            ) from error
        try:
            self._environment = gymnasium.make(identifier, disable_env_checker=True, **options)
        except (ImportError, gymnasium.error.Error) as error:
            raise EnvironmentMissingError(
                f"the real environment {identifier!r} cannot be made here ({error}); it comes "
                "with a clone of the repository, not with the installed package"
            ) from error
        self.info = {}
        self.ended = False

    def reset(self, *, seed: int) -> UInt8[np.ndarray, "height width 3"]:
        """Start the episode of that seed and return its first frame."""
        frame, self.info = self._environment.reset(seed=seed)
        self.ended = False
        return np.asarray(frame, np.uint8)

    def step(self, action: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        """Take one action, given as the settings of its groups [group], and return the frame."""
        taken = to_space_action(np.asarray(action), self._environment.action_space)
        frame, _, terminated, truncated, self.info = self._environment.step(taken)
        self.ended = self.ended or bool(terminated or truncated)
        return np.asarray(frame, np.uint8)

    def close(self) -> None:
        """Free the environment's memory and windows."""
        self._environment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
