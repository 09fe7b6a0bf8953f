"""The scripted player of Minecraft: it walks, looks, jumps and hits with a smooth camera."""

import math
from collections import deque
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.minerl import MineRL
from worldgen.errors import ConfigError
from worldgen.tokenizers.action.minecraft import to_schema_action

__all__ = ["MinecraftWalker"]

# How often a walking player does nothing else, sprints, goes to the left or right, or sneaks.
_WALK_SHARES = (0.45, 0.25, 0.11, 0.11, 0.08)


class MinecraftWalker:
    """Walks through Minecraft, looks around, jumps and hits what stands in its way.

    It cannot see, so it leads its life by chance: stretches of walking (sprinting, sneaking,
    sideways, jumping up what it meets), of looking around, of hitting, of standing still, and of
    holding any keys for 3 to 15 frames. The camera has a speed that follows a wanted one, so it
    turns as smoothly as a hand does, and it tends back to the horizon. Where the task observes its
    position, walking on the spot makes it jump and turn away. It never presses what opens a menu,
    throws things away or ends the episode.

    Raises:
        ConfigError: If the environment is not MineRL.
    """

    name = "walker"

    _MODES: ClassVar[dict[str, float]] = {
        "walk": 0.5,
        "look": 0.17,
        "hit": 0.15,
        "hold": 0.13,
        "rest": 0.05,
    }
    _HELD = ("forward", "back", "left", "right", "jump", "sneak", "sprint", "attack", "use")

    def __init__(self, environment: gymnasium.Env[Any, Any], generator: np.random.Generator):
        simulator = environment.unwrapped
        if not isinstance(simulator, MineRL):
            raise ConfigError(
                f"driver 'walker' plays Minecraft, not {simulator}; record with env.driver=random"
            )
        self._schema = simulator.action_schema
        self._playable = set(simulator.keys)
        self._hotbar = [key for key in simulator.keys if key.startswith("hotbar.")]
        self._generator = generator
        # How fast this player turns, degrees a frame: people differ by more than that.
        self._vigour = generator.uniform(1.5, 5.0)
        self._camera = np.zeros(2)
        self._wanted = np.zeros(2)
        self._pitch = 0.0
        self._keys: tuple[str, ...] = ()
        self._still_share = 1.0
        self._is_holding = False
        self._held_left = 0
        self._left = 0
        self._jump_left = 0
        self._turn_left = 0
        self._places: deque[tuple[float, float]] = deque(maxlen=12)

    def act(self, info: dict[str, Any]) -> NDArray[Any]:
        """Return keys and the turn of the camera."""
        generator = self._generator
        if self._left == 0:
            self._next_mode()
        self._left -= 1
        if self._is_holding:
            self._hold_keys()
        keys = set(self._keys)
        if "forward" in keys and self._is_stuck(info):
            self._jump_left = max(self._jump_left, 8)
            self._wanted[1] = generator.choice((-1.0, 1.0)) * self._vigour
            self._turn_left = int(generator.integers(8, 20))
        if "forward" in keys and generator.random() < 0.04:
            self._jump_left = int(generator.integers(1, 12))
        if self._jump_left > 0:
            self._jump_left -= 1
            keys.add("jump")
        if self._hotbar and generator.random() < 0.004:
            keys.add(str(generator.choice(self._hotbar)))
        pressed = dict.fromkeys(keys & self._playable, 1)
        return to_schema_action({**pressed, "camera": self._turn(info)}, self._schema)

    def _next_mode(self) -> None:
        generator = self._generator
        mode = str(generator.choice([*self._MODES], p=[*self._MODES.values()]))
        self._left = int(generator.integers(20, 90))
        self._keys = ()
        self._turn_left = 0
        self._places.clear()
        if mode == "walk":
            extra = generator.choice(("", "sprint", "left", "right", "sneak"), p=_WALK_SHARES)
            self._keys = ("forward", str(extra)) if extra else ("forward",)
        elif mode == "hit":
            self._keys = ("attack", "forward") if generator.random() < 0.4 else ("attack",)
        elif mode == "rest":
            self._left = int(generator.integers(5, 40))
        self._is_holding = mode == "hold"
        self._held_left = 0
        # While looking the camera is hardly ever still, otherwise it mostly is.
        self._still_share = 0.15 if mode == "look" else 1.0 if mode == "rest" else 0.7

    def _hold_keys(self) -> None:
        if self._held_left == 0:
            count = int(self._generator.integers(1, 4))
            self._keys = tuple(map(str, self._generator.choice(self._HELD, count, replace=False)))
            self._held_left = int(self._generator.integers(3, 16))
        self._held_left -= 1

    def _turn(self, info: dict[str, Any]) -> NDArray[np.float64]:
        """Return the turn of this frame: pitch, then yaw, degrees."""
        generator = self._generator
        pitch = float(info.get("pitch", self._pitch))
        if self._turn_left <= 0:
            self._turn_left = int(generator.integers(5, 35))
            self._wanted = np.zeros(2)
            if generator.random() >= self._still_share:
                self._wanted = generator.normal(0.0, (0.35, 1.0)) * self._vigour
            # Back to a little below the horizon, from afar more than from near it.
            self._wanted[0] -= 0.04 * (pitch - 8.0) * generator.random()
        self._turn_left -= 1
        self._camera += 0.3 * (np.clip(self._wanted, -9.0, 9.0) - self._camera)
        tremor = generator.normal(0.0, 0.05, 2) * (np.abs(self._camera) > 0.1)
        # Below one pixel of a mouse nothing turns.
        turn = np.where(np.abs(self._camera) < 0.08, 0.0, self._camera + tremor)
        turn[0] = np.clip(turn[0], -70.0 - pitch, 70.0 - pitch)
        turn = np.clip(turn, -9.5, 9.5)
        self._pitch = pitch + float(turn[0])
        return turn

    def _is_stuck(self, info: dict[str, Any]) -> bool:
        """Return whether half a second of walking led nowhere; without a position never."""
        if "x" not in info:
            return False
        here = (float(info["x"]), float(info["z"]))
        self._places.append(here)
        if len(self._places) < 12 or math.dist(here, self._places[0]) > 0.5:
            return False
        self._places.clear()
        return True
