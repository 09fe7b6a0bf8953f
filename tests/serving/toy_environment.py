"""A real environment for tests: the picture is a function of the seed and the actions so far."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, MultiDiscrete


class ToyEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    def __init__(self, fails_at: int = -1, ends_after: int = 1_000_000) -> None:
        self._ends_after = ends_after
        self._num_steps = 0
        self._fails_at = fails_at
        self.action_space = MultiDiscrete([3, 3])
        self.observation_space = Box(0, 255, (64, 64, 3), np.uint8)
        self._state = np.zeros(3, np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._num_steps = 0
        self._state = np.array([seed or 0, 0, 0], np.int64)
        return self._frame(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._fails_at -= 1
        if self._fails_at == -1:
            raise RuntimeError("the toy broke")
        self._state = (self._state * 3 + np.array([1, *action])) % 251
        self._num_steps += 1
        return self._frame(), 0.0, self._num_steps >= self._ends_after, False, {}

    def _frame(self) -> np.ndarray:
        return np.broadcast_to(self._state.astype(np.uint8), (64, 64, 3)).copy()


gymnasium.register("worldgen-tests/Toy-v0", entry_point=f"{__name__}:ToyEnvironment")
