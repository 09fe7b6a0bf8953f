"""Scripted players that make recordings worth learning from: sensible, noisy, and often random."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.car_racing import CarRacing
from envs.crafter import (
    ACTIONS,
    FACINGS,
    ITEMS,
    PLAYER_COLUMN,
    PLAYER_ROW,
    TILE_CLASSES,
    Crafter,
)
from envs.minecraft_walker import MinecraftWalker
from worldgen.errors import ConfigError
from worldgen.tokenizers.action.spaces import from_space_action

__all__ = [
    "DRIVERS",
    "CarDriver",
    "CrafterExplorer",
    "CrafterReturner",
    "Driver",
    "MinecraftWalker",
    "RandomDriver",
    "make_driver",
]

_PATIENCE = 8
"""Frames that a returning player waits for a cow in its way."""


class Driver(Protocol):
    """Chooses actions for one episode; all its randomness comes from the generator it got."""

    name: str

    def act(self, info: dict[str, Any]) -> NDArray[Any]:
        """Return the action for the current frame, [groups], given the frame's info."""
        ...


class RandomDriver:
    """Draws any action of the space and holds it for 3 to 15 frames; plays any environment."""

    name = "random"

    def __init__(self, environment: gymnasium.Env[Any, Any], generator: np.random.Generator):
        self._space = environment.action_space
        self._space.seed(int(generator.integers(2**31)))
        self._generator = generator
        self._held: NDArray[Any] = np.zeros(0)
        self._left = 0

    def act(self, info: dict[str, Any]) -> NDArray[Any]:
        """Return the held action, or a new one when its time is over."""
        if self._left == 0:
            self._held = from_space_action(self._space.sample(), self._space)
            self._left = int(self._generator.integers(3, 16))
        self._left -= 1
        return self._held


class CarDriver:
    """Follows the road at its own pace, leaves it now and then, and at times only holds keys.

    About 60 % of the frames are driving and excursions; in the others a random combination of
    keys is held for 3 to 15 frames, from whatever state the car is in, sometimes after braking
    to a standstill.

    Raises:
        ConfigError: If the environment is not car racing with `actions="keys"`.
    """

    name = "car"

    def __init__(self, environment: gymnasium.Env[Any, Any], generator: np.random.Generator):
        simulator = environment.unwrapped
        if not isinstance(simulator, CarRacing) or simulator.actions != "keys":
            raise ConfigError(
                f"driver 'car' presses keys, and {simulator} has none; record with "
                "env=car_racing env.options.actions=keys, or with env.driver=random"
            )
        self._track = simulator.track
        self._generator = generator
        # Faster than about 70 the bends throw the car off too often to be called driving.
        self._target_speed = generator.uniform(15.0, 70.0)
        self._dead_zone = generator.uniform(0.03, 0.12)
        self._slip = generator.uniform(0.0, 0.12)
        self._mode = "drive"
        self._left = int(generator.integers(20, 80))
        self._offset = 0.0
        self._held = np.zeros(2, np.int64)
        self._held_left = 0

    def act(self, info: dict[str, Any]) -> NDArray[np.int64]:
        """Return steering and pedals."""
        if self._left <= 0:
            self._next_mode()
        self._left -= 1
        if self._mode == "hold":
            return self._hold_keys()
        if self._mode == "stop":
            if info["speed"] < 0.5:
                # Everything that keys can do from a standstill must be seen as well.
                self._mode, self._held_left = "hold", 0
            return np.array([self._generator.choice(3, p=(0.8, 0.1, 0.1)), 2])
        action = self._follow(info)
        if self._generator.random() < self._slip:
            action[int(self._generator.integers(2))] = self._generator.integers(3)
        return action

    def _next_mode(self) -> None:
        generator = self._generator
        self._mode = str(
            generator.choice(("drive", "excursion", "hold", "stop"), p=(0.42, 0.11, 0.39, 0.08))
        )
        if self._mode == "drive":
            self._left = int(generator.integers(25, 90))
            self._offset = generator.normal(0.0, 1.5)
            if generator.random() < 0.3:
                self._target_speed = generator.uniform(15.0, 70.0)
        elif self._mode == "excursion":
            self._left = int(generator.integers(15, 50))
            self._offset = generator.choice((-1.0, 1.0)) * generator.uniform(6.0, 20.0)
        else:
            self._left = int(generator.integers(15, 55))
            self._held_left = 0

    def _hold_keys(self) -> NDArray[np.int64]:
        if self._held_left == 0:
            steering = self._generator.choice(3, p=(0.4, 0.3, 0.3))
            pedals = self._generator.choice(3, p=(0.36, 0.42, 0.22))
            self._held = np.array([steering, pedals])
            self._held_left = int(self._generator.integers(3, 16))
        self._held_left -= 1
        return self._held.copy()

    def _follow(self, info: dict[str, Any]) -> NDArray[np.int64]:
        track = self._track
        x, y, yaw, speed = info["x"], info["y"], info["yaw"], info["speed"]
        nearest = int(np.argmin((track[:, 0] - x) ** 2 + (track[:, 1] - y) ** 2))
        ahead = (nearest + 2 + int(speed / 9.0)) % len(track)
        target_x = track[ahead, 0] + self._offset * math.cos(track[ahead, 2])
        target_y = track[ahead, 1] + self._offset * math.sin(track[ahead, 2])
        # Yaw 0 looks along +y, so the bearing is measured from there, counterclockwise.
        error = _wrap(math.atan2(-(target_x - x), target_y - y) - yaw)
        wanted_angle = np.clip(1.2 * error, -0.4, 0.4)
        miss = wanted_angle - info["steering_angle"]
        if abs(error) < self._dead_zone:
            steering = 0
        elif abs(wanted_angle) > 0.3 or miss * wanted_angle > 0:
            steering = 1 if error > 0 else 2
        else:
            steering = 0
        reach = np.arange(nearest, nearest + 4 + int(speed / 4.0)) % len(track)
        bend = abs(_wrap(track[reach[-1], 2] - track[reach[0], 2]))
        limit = min(self._target_speed, 75.0 - 38.0 * min(bend, 1.4), 70.0 - 35.0 * abs(error))
        limit = max(limit, 12.0)
        pedals = 1 if speed < limit - 1.0 else 2 if speed > limit + 8.0 else 0
        if steering and speed > 35.0 and pedals == 1:
            # Gas in a fast bend spins a rear-wheel drive.
            pedals = 0
        return np.array([steering, pedals])


def _require_crafter(environment: gymnasium.Env[Any, Any], driver: str) -> None:
    if not isinstance(environment.unwrapped, Crafter):
        raise ConfigError(
            f"driver {driver!r} plays crafter, not {environment.unwrapped}; "
            "record with env.driver=random"
        )


class CrafterExplorer:
    """Walks long straight stretches to new places, gathers, digs, builds and crafts on the way.

    It looks at the tiles in view like a player at the picture. Some of its moves run into walls
    on purpose, and some phases only repeat random actions.

    Raises:
        ConfigError: If the environment is not crafter.
    """

    name = "explorer"

    def __init__(self, environment: gymnasium.Env[Any, Any], generator: np.random.Generator):
        _require_crafter(environment, self.name)
        self._generator = generator
        self._random_share = generator.uniform(0.02, 0.2)
        self._diligence = generator.uniform(0.2, 0.95)
        self._heading = int(generator.integers(4))
        self._stretch = 0
        self._visits: Counter[tuple[int, int]] = Counter()
        self._held = 0
        self._held_left = 0

    def act(self, info: dict[str, Any]) -> NDArray[np.int64]:
        """Return one action."""
        generator = self._generator
        self._visits[(info["x"], info["y"])] += 1
        if self._held_left > 0:
            self._held_left -= 1
            return np.array([self._held])
        if generator.random() < self._random_share / 3:
            self._held = int(generator.integers(len(ACTIONS)))
            # Places and tools are drawn less often than moves: repeating them changes nothing.
            self._held_left = int(generator.integers(0, 6 if self._held < 6 else 2))
            return np.array([self._held])
        if generator.random() < 0.025:
            # People let go of the keys: the world must be seen living on by itself.
            self._held, self._held_left = 0, int(generator.integers(0, 8))
            return np.array([0])
        useful = self._work(info)
        if useful is not None:
            return np.array([ACTIONS.index(useful)])
        return np.array([1 + self._walk(info)])

    def _work(self, info: dict[str, Any]) -> str | None:
        """Return what the tile in front, the bag and a table invite to, or None."""
        bag = dict(zip(ITEMS, info["inventory"].tolist(), strict=True))
        step_x, step_y = FACINGS[info["facing"]]
        front = _tile(info, step_x, step_y)
        rows = slice(PLAYER_ROW - 1, PLAYER_ROW + 2)
        columns = slice(PLAYER_COLUMN - 1, PLAYER_COLUMN + 2)
        table_near = TILE_CLASSES.index("table") in info["tiles"][rows, columns]
        draw = self._generator.random()
        if table_near and draw < 0.7:
            if not bag["wood_pickaxe"] and bag["wood"]:
                return "make_wood_pickaxe"
            if not bag["stone_pickaxe"] and bag["wood"] and bag["stone"]:
                return "make_stone_pickaxe"
        wants_table = not bag["wood_pickaxe"] or (not bag["stone_pickaxe"] and bag["stone"])
        ground = front in ("grass", "sand", "path")
        if not table_near and ground and wants_table and bag["wood"] >= 4 and draw < 0.5:
            return "place_table"
        chance = {
            "tree": 0.9 if bag["wood"] < 9 else 0.3,
            "stone": 0.8 if bag["wood_pickaxe"] else 0.04,
            "coal": 0.9 if bag["wood_pickaxe"] else 0.04,
            "iron": 0.9 if bag["stone_pickaxe"] else 0.04,
            "diamond": 0.03,
            "table": 0.03,
            "cow": 0.6,
            "zombie": 0.7,
            "skeleton": 0.7,
            "water": 0.06,
            "grass": 0.015,
            "sand": 0.01,
            "path": 0.01,
        }.get(front, 0.0)
        if draw < chance * self._diligence:
            return "do"
        placeable = ground or front in ("water", "lava")
        if bag["stone"] and placeable and self._generator.random() < (0.04 if ground else 0.3):
            return "place_stone"
        return None

    def _walk(self, info: dict[str, Any]) -> int:
        """Return the direction of the next move, 0 to 3 as in `FACINGS`."""
        generator = self._generator
        blocked = not _is_free(info, *FACINGS[self._heading])
        if blocked and generator.random() < 0.15:
            return self._heading
        wanted = self._wanted(info)
        if wanted is not None and generator.random() < self._diligence:
            self._heading = wanted
            return wanted
        self._stretch -= 1
        if blocked or self._stretch <= 0:
            self._heading = self._new_heading(info)
            self._stretch = int(generator.integers(4, 26))
        return self._heading

    def _new_heading(self, info: dict[str, Any]) -> int:
        """Prefer free directions that lead to where it has been least."""
        scores = []
        for step_x, step_y in FACINGS:
            seen = sum(
                self._visits[(info["x"] + step_x * reach, info["y"] + step_y * reach)]
                for reach in range(1, 9)
            )
            edge = min(
                63 - info["x"] if step_x > 0 else info["x"] if step_x < 0 else 63,
                63 - info["y"] if step_y > 0 else info["y"] if step_y < 0 else 63,
            )
            free = _is_free(info, step_x, step_y)
            noise = self._generator.gumbel() * 2.0
            scores.append((0.0 if free else -100.0) - seen + min(edge, 8) + noise)
        return int(np.argmax(scores))

    def _wanted(self, info: dict[str, Any]) -> int | None:
        """Return the direction to a near tile worth having, if its first step or turn helps."""
        bag = dict(zip(ITEMS, info["inventory"].tolist(), strict=True))
        names = []
        if bag["wood"] < 6:
            names.append("tree")
        if bag["wood_pickaxe"] and bag["stone"] < 6:
            names += ["stone", "coal"]
        if bag["stone_pickaxe"]:
            names.append("iron")
        classes = [TILE_CLASSES.index(name) for name in names]
        places = np.argwhere(np.isin(info["tiles"], classes))
        if len(places) == 0:
            return None
        offsets = places - np.array([PLAYER_ROW, PLAYER_COLUMN])
        distances = np.abs(offsets).sum(axis=1)
        best = int(np.argmin(distances))
        if distances[best] > 5:
            return None
        row, column = offsets[best]
        sideways = (1 if column > 0 else 0) if column else None
        upright = (3 if row > 0 else 2) if row else None
        order = [sideways, upright] if abs(column) >= abs(row) else [upright, sideways]
        for direction in order:
            if direction is None:
                continue
            # Facing the thing itself is a turn; anything else in the way is an obstacle.
            if distances[best] == 1 or _is_free(info, *FACINGS[direction]):
                return direction
        return None


class CrafterReturner:
    """Walks out over free ground and comes back the same way, again and again.

    A world that is to remember must see places again: a walk leads 6 to 20 steps away, straight on or
    with turns, sometimes pauses or turns to what stands beside the way, and then takes the same
    steps backwards. Between two walks it is an explorer for a while.

    Raises:
        ConfigError: If the environment is not crafter.
    """

    name = "returning"

    def __init__(self, environment: gymnasium.Env[Any, Any], generator: np.random.Generator):
        _require_crafter(environment, self.name)
        self._explorer = CrafterExplorer(environment, generator)
        self._generator = generator
        self._mode = "explore"
        self._left = int(generator.integers(0, 15))
        self._path: list[tuple[int, int]] = []
        self._length = 0
        self._turning = 0.0
        self._heading = 0
        self._pause = 0

    def act(self, info: dict[str, Any]) -> NDArray[np.int64]:
        """Return one action."""
        here = (info["x"], info["y"])
        if self._mode == "out" and here != self._path[-1]:
            self._path.append(here)
        if self._mode == "explore" and self._left <= 0:
            self._set_out(here)
        if self._mode == "out" and len(self._path) > self._length:
            self._turn_back()
        if self._mode == "out":
            option = self._go_out(info)
            if option is not None:
                return np.array([option])
            self._turn_back()
        if self._mode == "back":
            option = self._go_back(here)
            if option is not None:
                return np.array([option])
            self._mode, self._left = "explore", int(self._generator.integers(3, 25))
        self._left -= 1
        return self._explorer.act(info)

    def _set_out(self, here: tuple[int, int]) -> None:
        generator = self._generator
        self._mode, self._path = "out", [here]
        self._length = int(generator.integers(6, 21))
        # Straight lines see the most, walks with turns come by the same place from several sides.
        self._turning = float(generator.choice((0.0, 0.1, 0.35)))
        self._heading = int(generator.integers(4))
        self._pause = 0

    def _turn_back(self) -> None:
        self._mode, self._left = "back", _PATIENCE
        self._pause = int(self._generator.integers(0, 4)) if self._generator.random() < 0.5 else 0

    def _go_out(self, info: dict[str, Any]) -> int | None:
        """Return the next action of the way out, None where no way leads on."""
        generator = self._generator
        if self._pause > 0:
            self._pause -= 1
            return ACTIONS.index("noop")
        free = [way for way, step in enumerate(FACINGS) if _is_free(info, *step)]
        if not free:
            return None
        if generator.random() < 0.06:
            blocked = [way for way in range(len(FACINGS)) if way not in free]
            self._pause = int(generator.integers(0, 3))
            # A move against something only turns to it.
            return 1 + int(generator.choice(blocked)) if blocked else ACTIONS.index("noop")
        # FACINGS holds opposites in pairs; the way back is left for later where another leads on.
        onward = [way for way in free if way != self._heading ^ 1] or free
        if self._heading not in free or generator.random() < self._turning:
            self._heading = int(generator.choice(onward))
        return 1 + self._heading

    def _go_back(self, here: tuple[int, int]) -> int | None:
        """Return the next action of the way back, None at its end or if something stays in it."""
        if self._pause > 0:
            self._pause -= 1
            return ACTIONS.index("noop")
        if here == self._path[-1]:
            self._path.pop()
            self._left = _PATIENCE
        if not self._path or self._left == 0:
            return None
        self._left -= 1
        if self._generator.random() < 0.03:
            return ACTIONS.index("noop")
        goal_x, goal_y = self._path[-1]
        return 1 + FACINGS.index((goal_x - here[0], goal_y - here[1]))


DRIVERS: dict[str, Callable[[gymnasium.Env[Any, Any], np.random.Generator], Driver]] = {
    "car": CarDriver,
    "explorer": CrafterExplorer,
    "random": RandomDriver,
    "returning": CrafterReturner,
    "walker": MinecraftWalker,
}


def make_driver(
    name: str, environment: gymnasium.Env[Any, Any], generator: np.random.Generator
) -> Driver:
    """Return a driver for the episode to which `environment` was just reset.

    Raises:
        ConfigError: If there is no such driver.
    """
    if name not in DRIVERS:
        raise ConfigError(f"no driver {name!r}; there are {', '.join(DRIVERS)}")
    return DRIVERS[name](environment, generator)


def _wrap(angle: float) -> float:
    """Return the same angle in [-pi, pi]."""
    return math.remainder(angle, 2.0 * math.pi)


def _tile(info: dict[str, Any], step_x: int, step_y: int) -> str:
    return str(TILE_CLASSES[int(info["tiles"][PLAYER_ROW + step_y, PLAYER_COLUMN + step_x])])


def _is_free(info: dict[str, Any], step_x: int, step_y: int) -> bool:
    return _tile(info, step_x, step_y) in ("grass", "sand", "path")
