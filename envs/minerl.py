"""MineRL, in its dialects 0.4 and 1.0, as an environment with frames and our Minecraft actions."""

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from worldgen.data.episodes import Column
from worldgen.errors import ActionError, ConfigError, DataError, EnvironmentMissingError
from worldgen.tokenizers.action import ActionSchema, Categorical
from worldgen.tokenizers.action.minecraft import (
    ENVIRONMENT_KEYS,
    minecraft_schema,
    to_environment_action,
)

__all__ = ["DIALECTS", "MineRL"]

DIALECTS = {
    "0.4": "pip install minerl==0.4.4",
    "1.0": "pip install git+https://github.com/minerllabs/minerl",
}
"""Dialect -> how to install the MineRL that speaks it."""

_TICKS_PER_SECOND = 20.0
# MineRL was written for NumPy before 1.24, which took these names away.
_REMOVED_FROM_NUMPY = {"bool": bool, "float": float, "int": int, "object": object}
_LOCATION = {
    "x": ("xpos", "block", "position of the player, east"),
    "y": ("ypos", "block", "position of the player, up"),
    "z": ("zpos", "block", "position of the player, south"),
    "yaw": ("yaw", "degree", "direction of view, 0 south, 90 west"),
    "pitch": ("pitch", "degree", "direction of view, -90 up, 90 down"),
}


class MineRL(gymnasium.Env[NDArray[np.uint8], Any]):
    """Play a task of MineRL with the actions of `minecraft_schema`, 20 frames a second.

    Frames are uint8 [height, width, 3]: the whole picture of the game, scaled (bicubic with
    antialiasing) without cutting. An action is an array of the schema's groups, or the same
    numbers as a sample of `action_space`. What the schema cannot say (crafting, placing and
    equipping by name in 0.4) stays at the task's no-op; keys that the task does not have (the
    hotbar and most others in 0.4) are dropped, which a warning says once, when it is made. The
    camera is clipped to the range of the task.

    Info holds the entries of `COLUMNS`, also on reset: position and view, and the inventory, each
    if the task observes it. Beside them it holds what MineRL itself said of the step. After the
    end of an episode (the task's own, its time limit, or ESC in BASALT) further steps return the
    last frame and do nothing. Should Minecraft break down in a step, MineRL would make up a random
    frame; the episode is truncated instead, with the frame before.

    `reset` starts Minecraft and may take minutes. A seed decides the world, but the game goes on
    in threads of its own: equal seeds and actions do not give equal frames. Neither gym nor
    minerl is imported before an environment is made.

    Args:
        dialect: "1.0" (Minecraft 1.16, all keys of VPT) or "0.4" (Minecraft 1.11, no inventory).
        task: Gym id of the task, for example MineRLBasaltFindCave-v0 or MineRLNavigate-v0.
        height: Of the frames, in pixels; the game draws 360x640 in 1.0 and mostly 64x64 in 0.4.
        width: Of the frames, in pixels.
        schema: Preset of `minecraft_schema`.
        render_mode: Only "rgb_array", which returns the current frame.

    Raises:
        ConfigError: If the task does not exist, speaks the other dialect, or takes no keys.
        EnvironmentMissingError: If MineRL is not installed, or Minecraft does not start.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": _TICKS_PER_SECOND}  # noqa: RUF012
    COLUMNS: dict[str, Column]

    def __init__(
        self,
        *,
        dialect: str = "1.0",
        task: str = "MineRLBasaltFindCave-v0",
        height: int = 224,
        width: int = 384,
        schema: str = "minecraft",
        render_mode: str | None = None,
    ) -> None:
        # A command line reads dialect=0.4 as a number.
        dialect = str(dialect)
        if dialect not in DIALECTS:
            raise ConfigError(f"minerl: dialect={dialect!r}; use one of {[*DIALECTS]}")
        if height < 1 or width < 1:
            raise ConfigError(f"minerl: height={height} width={width}; use 1 pixel or more")
        self.render_mode = render_mode
        self.task = task
        self.action_schema = minecraft_schema(schema)
        self.action_space = spaces.Tuple(
            spaces.Discrete(group.size)
            if isinstance(group, Categorical)
            else spaces.Box(group.low, group.high, (), np.float64)
            for group in self.action_schema.groups
        )
        self.observation_space = spaces.Box(0, 255, (height, width, 3), np.uint8)
        self._game = _make_game(dialect, task)
        self._no_op = dict(self._game.action_space.no_op())
        self._camera = self._game.action_space.spaces["camera"]
        expressible = _expressible_keys(self.action_schema)
        self.keys = tuple(key for key in expressible if key in self._no_op)
        """Keys that both the schema and the task have."""
        missing = [key for key in expressible if key not in self._no_op]
        if missing:
            warnings.warn(
                f"{task} has no {', '.join(missing)}; actions that press them do nothing there",
                stacklevel=2,
            )
        observed = self._game.observation_space.spaces
        self._items = tuple(observed["inventory"].spaces) if "inventory" in observed else ()
        self._has_location = "location_stats" in observed
        self.COLUMNS = self._columns()
        self._frame = np.zeros(self.observation_space.shape, np.uint8)
        self._state: dict[str, Any] = {}
        self._end: tuple[bool, bool] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start the world of a seed, and Minecraft itself the first time."""
        super().reset(seed=seed, options=options)
        world_seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        try:
            with _names_removed_from_numpy():
                # MineRL forgets its seed at every reset.
                self._game.seed(world_seed)
                observation = self._game.reset()
        # Whatever Java, its build or its display do wrong comes out as almost any exception.
        except Exception as error:
            raise EnvironmentMissingError(
                f"Minecraft did not start for {self.task} ({type(error).__name__}: {error}); it "
                "needs Java 8 as `java` (see `java -version`) and a display: on a server, run it "
                "with `xvfb-run -a`"
            ) from error
        self._end = None
        self._observe(observation)
        return self._frame.copy(), dict(self._state)

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Hold the keys and turn the camera for one tick of 1/20 s; the reward is the task's."""
        sent = self._sent(action)
        if self._end is not None:
            return self._frame.copy(), 0.0, *self._end, dict(self._state)
        with _names_removed_from_numpy():
            observation, reward, done, info = self._game.step(sent)
        broken = "error" in info
        truncated = broken or bool(info.get("TimeLimit.truncated", False))
        terminated = bool(done) and not truncated
        if not broken:
            self._observe(observation)
        if terminated or truncated:
            self._end = (terminated, truncated)
        return (
            self._frame.copy(),
            float(reward),
            terminated,
            truncated,
            {**info, **self._state},
        )

    def render(self) -> NDArray[np.uint8] | None:
        """Return the current frame, uint8 [height, width, 3], in mode "rgb_array"."""
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """End Minecraft."""
        self._game.close()

    def _sent(self, action: Any) -> dict[str, Any]:
        """Return the dictionary that the game takes: every key of the task, no other."""
        values = np.asarray(action, self.action_schema.dtype)
        if values.shape != (self.action_schema.num_groups,):
            raise ActionError(
                f"minerl takes actions of {self.action_schema.num_groups} groups, got an action "
                f"of shape {values.shape}"
            )
        pressed = to_environment_action(values, self.action_schema)
        if not np.isfinite(pressed["camera"]).all():
            raise ActionError(f"minerl takes finite turns of the camera, got {pressed['camera']}")
        camera = np.clip(pressed["camera"], self._camera.low, self._camera.high)
        return {
            **self._no_op,
            **{key: int(pressed[key]) for key in self.keys},
            "camera": camera.astype(self._camera.dtype),
        }

    def _columns(self) -> dict[str, Column]:
        columns = {}
        if self._has_location:
            for name, (_, unit, meaning) in _LOCATION.items():
                columns[name] = Column(dtype="float64", unit=unit, meaning=meaning)
        if self._items:
            columns["inventory"] = Column(
                dtype="int64",
                shape=(len(self._items),),
                meaning=f"how many of: {', '.join(self._items)}",
            )
        return columns

    def _observe(self, observation: Any) -> None:
        """Take over the frame and the columns of an observation."""
        self._frame = self._scaled(np.asarray(observation["pov"]))
        if self._has_location:
            location = observation["location_stats"]
            for name, (key, _, _) in _LOCATION.items():
                self._state[name] = float(location[key])
        if self._items:
            inventory = observation["inventory"]
            self._state["inventory"] = np.array([int(inventory[item]) for item in self._items])

    def _scaled(self, picture: NDArray[Any]) -> NDArray[np.uint8]:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise DataError(
                f"{self.task} gave a picture of {picture.dtype} {picture.shape}; expected uint8 "
                "[height, width, 3]"
            )
        height, width = self._frame.shape[:2]
        if picture.shape[:2] == (height, width):
            return picture.copy()
        image = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image)


def _make_game(dialect: str, task: str) -> Any:
    """Return the task as MineRL makes it, after checking that it can be played with our actions."""
    install = (
        f"install Java 8 and then MineRL {dialect} with `{DIALECTS[dialect]}`. It builds its own "
        "Minecraft, so worldgen cannot bring it along. worldgen needs Python 3.11 or newer and "
        "NumPy 1.26 or newer; should pip refuse these for MineRL's sake, add --no-deps, and "
        "install gym==0.23.1 and the rest of MineRL's requirements beside it"
    )
    with _names_removed_from_numpy():
        try:
            gym: Any = importlib.import_module("gym")
            # Imported for its tasks, which it registers with gym.
            importlib.import_module("minerl")
        except ModuleNotFoundError as error:
            raise EnvironmentMissingError(
                f"MineRL is not installed ({error}): {install}"
            ) from error
        # A build for other versions of Java, Python or NumPy fails in any way while it is imported.
        except Exception as error:
            raise EnvironmentMissingError(
                f"MineRL is installed but broken ({type(error).__name__}: {error}): {install}"
            ) from error
        try:
            game = gym.make(task)
        except gym.error.Error as error:
            raise ConfigError(
                f"MineRL has no task {task!r} ({error}); tasks are for example "
                "MineRLBasaltFindCave-v0 (both dialects), MineRLBasaltMakeWaterfall-v0 (both), "
                "MineRLHumanSurvival-v0 (1.0), MineRLNavigate-v0 and MineRLTreechop-v0 (0.4)"
            ) from error
    names = getattr(game.action_space, "spaces", {})
    if not {"camera", "forward", "attack"} <= set(names):
        raise ConfigError(
            f"{task} takes {game.action_space} instead of keys and a camera; choose a task whose "
            "actions are not obfuscated"
        )
    # Only 1.0 plays with the keyboard of a person, and so has this key.
    found = "1.0" if "ESC" in names else "0.4"
    if found != dialect:
        raise ConfigError(
            f"{task} speaks MineRL {found} here, asked for dialect {dialect}; use dialect={found}, "
            f"or install the other one: {DIALECTS[dialect]}"
        )
    return game


def _expressible_keys(schema: ActionSchema) -> tuple[str, ...]:
    """Return the keys that some action of a schema presses."""
    down = set()
    for index, group in enumerate(schema.groups):
        if isinstance(group, Categorical):
            actions = np.tile(schema.rest(), (group.size, 1))
            actions[:, index] = np.arange(group.size)
            pressed = to_environment_action(actions, schema)
            down |= {key for key in ENVIRONMENT_KEYS if pressed[key].any()}
    return tuple(key for key in ENVIRONMENT_KEYS if key in down)


@contextlib.contextmanager
def _names_removed_from_numpy() -> Iterator[None]:
    """Give NumPy its old names of Python's types back while code of MineRL runs."""
    # Not hasattr: NumPy answers for removed names with an error of its own, or a warning.
    missing = {name: kind for name, kind in _REMOVED_FROM_NUMPY.items() if name not in vars(np)}
    for name, kind in missing.items():
        setattr(np, name, kind)
    try:
        yield
    finally:
        for name in missing:
            delattr(np, name)


gymnasium.register("worldgen/MineRL-v0", "envs.minerl:MineRL")
