"""Real environments that go on from the contexts of test clips, under the actions of a dream."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from worldgen.errors import EnvironmentMissingError
from worldgen.evaluation.clips import ClipSpec
from worldgen.pipeline import World
from worldgen.real_environment import RealEnvironment

__all__ = ["Simulators"]


class Simulators:
    """One environment for each clip, brought to the last frame of its context.

    Args:
        world: Whose card names the environment.
        specs: Of the clips.

    Raises:
        EnvironmentMissingError: If the world has no environment, or it cannot be made here.
    """

    def __init__(self, world: World, specs: Sequence[ClipSpec]) -> None:
        card = world.card.environment
        if card is None:
            raise EnvironmentMissingError(f"world {world.name!r} names no real environment")
        self._environments = [RealEnvironment(card.id, card.options) for _ in specs]
        self._last = [
            spec.lead(environment)
            for environment, spec in zip(self._environments, specs, strict=True)
        ]

    @classmethod
    def of(cls, world: World, specs: Sequence[ClipSpec]) -> "Simulators | None":
        """Return the environments, or None where they cannot be made."""
        try:
            return cls(world, specs)
        except EnvironmentMissingError:
            return None

    def roll(self, actions: np.ndarray) -> UInt8[np.ndarray, "environment time height width 3"]:
        """Take actions in every environment; return the frames, the ones before in front.

        Args:
            actions: [environment, step, group].
        """
        rolled = []
        for row, environment in enumerate(self._environments):
            frames = [self._last[row], *(environment.step(action) for action in actions[row])]
            self._last[row] = frames[-1]
            rolled.append(np.stack(frames))
        return np.stack(rolled)

    def close(self) -> None:
        """Free what the environments hold."""
        for environment in self._environments:
            environment.close()
