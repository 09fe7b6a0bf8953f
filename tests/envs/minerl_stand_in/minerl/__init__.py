"""A stand-in for MineRL that believes nothing: it checks every action, and how it is used.

The environment variable MINERL_STAND_IN says which dialect it speaks, "0.4" or "1.0". The tasks
have the spaces of the real ones; their worlds are coloured noise that scrolls as the player turns
and walks, and their episodes are short.
"""

import importlib
import math
import multiprocessing
import os
from typing import Any

import numpy as np

# By name, so that type checkers do not ask which gym is installed.
gym: Any = importlib.import_module("gym")

DIALECT = os.environ["MINERL_STAND_IN"]

# As the real one does while it is imported and at every reset, with NumPy's names of long ago.
_INTEGER, _FLOAT = getattr(np, "int"), getattr(np, "float")  # noqa: B009

_KEYS = {
    "0.4": ["attack", "back", "forward", "jump", "left", "right", "sneak", "sprint"],
    "1.0": [
        *("ESC", "attack", "back", "drop", "forward"),
        *(f"hotbar.{number}" for number in range(1, 10)),
        *("inventory", "jump", "left", "pickItem", "right", "sneak", "sprint"),
        *("swapHands", "use"),
    ],
}
_LOCATION = ("xpos", "ypos", "zpos", "yaw", "pitch", "light_level")


class Game:
    """One task in the old interface of gym; `received` keeps the actions of the episode."""

    def __init__(
        self,
        *,
        picture: tuple[int, int],
        more_actions: dict[str, Any] | None = None,
        items: tuple[str, ...] = (),
        location: bool = False,
        ends_on_escape: bool = False,
        camera_limit: float = 180.0,
    ) -> None:
        camera = gym.Box(-camera_limit, camera_limit, (2,), np.float32)
        self.action_space = gym.Dict(
            {
                **{key: gym.Discrete(2) for key in _KEYS[DIALECT]},
                "camera": camera,
                **(more_actions or {}),
            }
        )
        observed = {"pov": gym.Box(0, 255, (*picture, 3), np.uint8)}
        if items:
            amounts = {item: gym.Box(0, 2304, (), np.int32) for item in items}
            observed["inventory"] = gym.Dict(amounts)
        if location:
            places = {name: gym.Box(-640000.0, 640000.0, (), _FLOAT) for name in _LOCATION}
            observed["location_stats"] = gym.Dict(places)
        self.observation_space = gym.Dict(observed)
        self.received: list[dict[str, Any]] = []
        self.fails_to_start = False
        self.loses_connection = False
        self.closed = False
        self._picture = picture
        self._ends_on_escape = ends_on_escape
        self._seed: int | None = None
        self._running = False

    @property
    def unwrapped(self) -> "Game":
        return self

    def seed(self, seed: int | None = None) -> None:
        if type(seed) is not int:
            raise AssertionError(f"Seed must be an int, got {type(seed)}")
        self._seed = seed

    def reset(self) -> dict[str, Any]:
        if self.closed:
            raise AssertionError("reset after close")
        if self.fails_to_start:
            raise EOFError("Minecraft process finished unexpectedly.")
        if self._seed is None:
            raise AssertionError("no seed since the last reset")
        if multiprocessing.current_process().daemon:
            # It starts a process that ends Minecraft with its parent.
            raise AssertionError("daemonic processes are not allowed to have children")
        if _INTEGER is not getattr(np, "int"):  # noqa: B009
            raise AssertionError("NumPy changed")
        generator = np.random.default_rng(self._seed)
        # Coarse noise, so that scaling it down and up again keeps what is to be seen.
        height, width = self._picture
        coarse = generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        self._world = coarse.repeat(8, 0).repeat(8, 1)
        self._seed = None
        self._running = True
        self._steps = 0
        self._place = dict.fromkeys(_LOCATION, 0.0)
        self.received = []
        return self._observe()

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        if not self._running:
            raise RuntimeError("Expected `reset` after episode terminated, not `step`.")
        self.action_space.check(action)
        for key, space in self.action_space.spaces.items():
            if isinstance(space, gym.Enum) and action[key] != "none":
                raise AssertionError(f"{key} is nothing that a key presses, got {action[key]!r}")
        self.received.append(action)
        self._steps += 1
        if self.loses_connection:
            self._running = False
            noise = np.random.default_rng(0).integers(0, 256, (*self._picture, 3), np.uint8)
            return {"pov": noise}, 0.0, True, {"error": "Connection timed out!"}
        place = self._place
        place["pitch"] = float(np.clip(place["pitch"] + action["camera"][0], -90, 90))
        place["yaw"] = (place["yaw"] + float(action["camera"][1]) + 180) % 360 - 180
        ahead = 0.2 * (action["forward"] - action["back"])
        aside = 0.2 * (action["left"] - action["right"])
        angle = math.radians(place["yaw"])
        place["xpos"] += aside * math.cos(angle) - ahead * math.sin(angle)
        place["zpos"] += aside * math.sin(angle) + ahead * math.cos(angle)
        place["ypos"] = 1.0 * action["jump"]
        done = self._ends_on_escape and bool(action["ESC"])
        self._running = not done
        return self._observe(), float(action["attack"]), done, {"isGuiOpen": False}

    def close(self) -> None:
        self.closed = True

    def _observe(self) -> dict[str, Any]:
        place = self._place
        shift = (round(2 * place["pitch"] + 8 * place["zpos"]), round(-2 * place["yaw"]))
        observation: dict[str, Any] = {"pov": np.roll(self._world, shift, (0, 1))}
        spaces = self.observation_space.spaces
        if "inventory" in spaces:
            items = spaces["inventory"].spaces
            observation["inventory"] = {
                item: np.array(index + self._steps, np.int32) for index, item in enumerate(items)
            }
        if "location_stats" in spaces:
            observation["location_stats"] = {name: np.array(value) for name, value in place.items()}
        return observation


class ObfuscatedGame:
    """A task of the competition of 2020, whose actions are a vector without names."""

    action_space = gym.Dict({"vector": gym.Box(-1.05, 1.05, (64,), np.float32)})
    observation_space = gym.Dict({"pov": gym.Box(0, 255, (64, 64, 3), np.uint8)})


def _basalt() -> Game:
    if DIALECT == "1.0":
        return Game(picture=(360, 640), ends_on_escape=True)
    items = ("bucket", "snowball")
    more = {"use": gym.Discrete(2), "equip": gym.Enum("none", "air", *items, "other")}
    return Game(picture=(64, 64), more_actions=more, items=items)


gym.register("MineRLBasaltFindCave-v0", _basalt)
if DIALECT == "1.0":
    gym.register(
        "MineRLHumanSurvival-v0",
        lambda: Game(picture=(360, 640), items=("acacia_boat", "dirt", "torch"), location=True),
    )
    gym.register("MineRLNarrowCamera-v0", lambda: Game(picture=(360, 640), camera_limit=3.0))
else:
    place = gym.Enum("none", "dirt", "other")
    gym.register(
        "MineRLNavigate-v0",
        lambda: Game(picture=(64, 64), more_actions={"place": place}, items=("dirt",)),
        30,
    )
    gym.register(
        "MineRLObtainDiamond-v0",
        lambda: Game(
            picture=(64, 64),
            more_actions={
                "place": place,
                "equip": gym.Enum("none", "air", "wooden_axe", "other"),
                "craft": gym.Enum("none", "torch", "stick", "planks"),
                "nearbyCraft": gym.Enum("none", "wooden_axe", "furnace"),
                "nearbySmelt": gym.Enum("none", "iron_ingot", "coal"),
            },
            items=("dirt", "log"),
        ),
    )
    gym.register("MineRLObtainDiamondVectorObf-v0", ObfuscatedGame)
