"""Crafter with one 8x8 tile per token: constant daylight and pinned vitals unless asked otherwise."""

from collections.abc import Iterable
from typing import Any

import crafter
import gymnasium
import numpy as np
from crafter import constants, objects
from crafter.worldgen import generate_world
from gymnasium import spaces
from numpy.typing import NDArray

from envs.crafter_renderer import TILE, draw_inventory, draw_map
from worldgen.data.episodes import Column
from worldgen.tokenizers.action.schema import ActionSchema, Categorical

__all__ = ["ACTIONS", "ITEMS", "TILE_CLASSES", "Crafter"]

FRAME_SIZE = 64
VIEW_COLUMNS = 8
VIEW_ROWS = 6
PLAYER_COLUMN = VIEW_COLUMNS // 2
PLAYER_ROW = VIEW_ROWS // 2

ACTIONS = (
    "noop",
    "left",
    "right",
    "up",
    "down",
    "do",
    "place_stone",
    "place_table",
    "make_wood_pickaxe",
    "make_stone_pickaxe",
)
ITEMS = tuple(constants.items)
FACINGS = ((-1, 0), (1, 0), (0, -1), (0, 1))
TILE_CLASSES = (
    "outside",
    *constants.materials,
    "player-left",
    "player-right",
    "player-up",
    "player-down",
    "cow",
    "zombie",
    "skeleton",
    "arrow-left",
    "arrow-right",
    "arrow-up",
    "arrow-down",
    "plant",
    "plant-ripe",
)
WALKABLE_CLASSES = tuple(TILE_CLASSES.index(name) for name in constants.walkable)

_SIMULATOR_ACTIONS = tuple(
    constants.actions.index(f"move_{name}" if name in ("left", "right", "up", "down") else name)
    for name in ACTIONS
)
_SCHEMA = ActionSchema(
    groups=(Categorical(name="action", options=ACTIONS),),
    named={name: ({} if name == "noop" else {"action": name}) for name in ACTIONS},
    keys={
        "ArrowLeft": "left",
        "ArrowRight": "right",
        "ArrowUp": "up",
        "ArrowDown": "down",
        "KeyA": "left",
        "KeyD": "right",
        "KeyW": "up",
        "KeyS": "down",
        "Space": "do",
        "Digit1": "place_stone",
        "Digit2": "place_table",
        "Digit3": "make_wood_pickaxe",
        "Digit4": "make_stone_pickaxe",
    },
)


class _PinnedPlayer(objects.Player):  # type: ignore[misc]
    """A player whom nothing hurts, and who therefore may not walk into lava."""

    @property
    def health(self) -> int:
        return int(constants.items["health"]["max"])

    @health.setter
    def health(self, value: int) -> None:
        """Ignore damage."""

    @property
    def walkable(self) -> list[str]:
        return list(constants.walkable)

    def _update_life_stats(self) -> None:
        """Stay fed, watered and rested."""

    def _degen_or_regen_health(self) -> None:
        """Stay healthy."""


class _Simulation(crafter.Env):  # type: ignore[misc]
    """The stock environment with our switches, and with every choice a function of the seed."""

    def __init__(self, *, daylight_cycle: bool, vitals: bool, mobs: bool) -> None:
        super().__init__(
            view=(VIEW_COLUMNS, FRAME_SIZE // TILE),
            size=(FRAME_SIZE, FRAME_SIZE),
            length=None,
            seed=0,
        )
        self._daylight_cycle = daylight_cycle
        self._player_class = objects.Player if vitals else _PinnedPlayer
        self._mobs = mobs
        # The stock step draws a map of the whole world into its info, which nobody reads.
        self._sem_view = lambda: None

    def begin(self, seed: int) -> None:
        """Make the world of a seed."""
        self._step = 0
        self._world.reset(seed=seed)
        self._update_time()
        self._player = self._player_class(self._world, [side // 2 for side in self._area])
        self._last_health = self._player.health
        self._unlocked: set[str] = set()
        self._world.add(self._player)
        generate_world(self._world, self._player)
        if not self._mobs:
            for thing in self._world.objects:
                if thing is not self._player:
                    self._world.remove(thing)

    def view(self) -> tuple[NDArray[np.uint8], list[tuple[int, int, str]]]:
        """Return material numbers [6, 8], 0 outside, and row, column, texture of each object."""
        materials = np.zeros((VIEW_ROWS, VIEW_COLUMNS), np.uint8)
        left = int(self._player.pos[0]) - PLAYER_COLUMN
        top = int(self._player.pos[1]) - PLAYER_ROW
        width, height = self._area
        x = slice(max(left, 0), min(left + VIEW_COLUMNS, width))
        y = slice(max(top, 0), min(top + VIEW_ROWS, height))
        inside = (slice(y.start - top, y.stop - top), slice(x.start - left, x.stop - left))
        materials[inside] = self._world._mat_map[x, y].T
        numbers = np.zeros((VIEW_ROWS, VIEW_COLUMNS), np.int64)
        numbers[inside] = self._world._obj_map[x, y].T
        objects_in_view = [
            (int(row), int(column), self._world._objects[numbers[row, column]].texture)
            for row, column in np.argwhere(numbers)
        ]
        return materials, objects_in_view

    def render(self, size: Any = None) -> None:
        """Draw nothing: the stock step would draw a picture that we draw faster."""

    def shade(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the map part of a frame in the light of the hour."""
        if self._world.daylight == 1.0:
            return picture
        # Stock works with the column before the row.
        lit = self._local_view._light(picture.swapaxes(0, 1), self._world.daylight)
        return np.asarray(lit).astype(np.uint8).swapaxes(0, 1)

    def _update_time(self) -> None:
        if self._daylight_cycle:
            super()._update_time()
        else:
            self._world.daylight = 1.0

    def _balance_chunk(self, chunk: Any, things: Iterable[Any]) -> None:
        # Stock passes a set of objects, whose order is that of their addresses in memory.
        if self._mobs:
            super()._balance_chunk(chunk, sorted(things, key=lambda thing: tuple(thing.pos)))


class Crafter(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """Walk, collect, build and craft in a world of 64x64 tiles, of which 8x6 are in view.

    Frames are uint8 [64, 64, 3], 8x8 tiles of 8x8 pixels: six rows of map with the player in
    row 3, column 4, then two rows of inventory. Actions are Discrete 10, named in `ACTIONS`. Info
    holds the entries of `COLUMNS`, also on reset. Equal seeds and actions give equal frames, in
    any process and whatever ran before.

    Args:
        daylight_cycle: Let night fall; else it is always noon.
        vitals: Let hunger, thirst, fatigue and wounds count and the player die; else all four
            stay at 9, nothing hurts, and lava blocks the way instead of killing.
        mobs: Have cows, zombies and skeletons.
        render_mode: Only "rgb_array", which returns the current frame.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    COLUMNS = {  # noqa: RUF012
        "x": Column(dtype="int64", unit="tile", meaning="player column in the world, 0 to 63"),
        "y": Column(dtype="int64", unit="tile", meaning="player row in the world, down, 0 to 63"),
        "facing": Column(dtype="int64", meaning="0 left, 1 right, 2 up, 3 down"),
        "tiles": Column(
            dtype="uint8",
            shape=(VIEW_ROWS, VIEW_COLUMNS),
            meaning=f"class of each tile in view, object before ground: {', '.join(TILE_CLASSES)}",
        ),
        "inventory": Column(
            dtype="uint8", shape=(len(ITEMS),), meaning=f"how many of: {', '.join(ITEMS)}"
        ),
    }

    def __init__(
        self,
        *,
        daylight_cycle: bool = False,
        vitals: bool = False,
        mobs: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        self.action_schema = _SCHEMA
        self.observation_space = spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        self.action_space = spaces.Discrete(len(ACTIONS))
        self._simulation = _Simulation(daylight_cycle=daylight_cycle, vitals=vitals, mobs=mobs)
        self._frame = np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Make a new world and put the player in its middle."""
        super().reset(seed=seed, options=options)
        world_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._simulation.begin(world_seed)
        return self._observe()

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Take one action; the reward counts achievements and, with vitals, health."""
        option = _SIMULATOR_ACTIONS[int(action)]
        _, reward, terminated, _ = self._simulation.step(option)
        frame, info = self._observe()
        return frame, float(reward), bool(terminated), False, info

    def render(self) -> NDArray[np.uint8] | None:
        """Return the current frame, uint8 [64, 64, 3], in mode "rgb_array"."""
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def _observe(self) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        player = self._simulation._player
        materials, objects_in_view = self._simulation.view()
        amounts = tuple(int(player.inventory[item]) for item in ITEMS)
        # The simulator numbers materials as TILE_CLASSES does: nothing first, then its list.
        tiles = materials.copy()
        for row, column, texture in objects_in_view:
            tiles[row, column] = TILE_CLASSES.index(texture)
        picture = self._simulation.shade(draw_map(materials, objects_in_view))
        self._frame = np.concatenate([picture, draw_inventory(amounts, VIEW_COLUMNS)])
        return self._frame.copy(), {
            "x": int(player.pos[0]),
            "y": int(player.pos[1]),
            "facing": FACINGS.index(tuple(player.facing)),
            "tiles": tiles,
            "inventory": np.array(amounts, np.uint8),
        }


gymnasium.register("worldgen/Crafter-v0", "envs.crafter:Crafter")
