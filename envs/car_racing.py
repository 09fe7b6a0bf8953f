"""CarRacing with unchanged physics, keyboard actions and 64x64 frames."""

from typing import Any, Literal

import Box2D
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.box2d.car_racing import FPS
from gymnasium.envs.box2d.car_racing import CarRacing as StockCarRacing
from numpy.typing import NDArray
from PIL import Image

from envs.car_renderer import FRAME_SIZE, TrackMap, draw_dashboard, draw_view
from worldgen.data.episodes import Column
from worldgen.errors import ConfigError
from worldgen.tokenizers.action.schema import ActionSchema, Axis, Categorical

__all__ = ["CarRacing"]

_KEY_STEERING = 0.6
_KEY_GAS = 0.4
_KEY_BRAKE = 0.8
# The stock camera zooms in during the first second; frames begin after it.
_SETTLING_STEPS = FPS

_BROWSER_KEYS = {
    "ArrowLeft": "left",
    "ArrowRight": "right",
    "ArrowUp": "gas",
    "ArrowDown": "brake",
    "KeyA": "left",
    "KeyD": "right",
    "KeyW": "gas",
    "KeyS": "brake",
}
_ACTION_SCHEMAS = {
    "keys": ActionSchema(
        groups=(
            Categorical(name="steering", options=("none", "left", "right")),
            Categorical(name="pedals", options=("none", "gas", "brake")),
        ),
        named={
            "nothing": {},
            "left": {"steering": "left"},
            "right": {"steering": "right"},
            "gas": {"pedals": "gas"},
            "brake": {"pedals": "brake"},
        },
        keys=_BROWSER_KEYS,
    ),
    "discrete": ActionSchema(
        groups=(Categorical(name="action", options=("nothing", "right", "left", "gas", "brake")),),
        named={
            "nothing": {},
            "left": {"action": "left"},
            "right": {"action": "right"},
            "gas": {"action": "gas"},
            "brake": {"action": "brake"},
        },
        keys=_BROWSER_KEYS,
    ),
    "continuous": ActionSchema(
        groups=(
            Axis(name="steering", low=-1.0, high=1.0, bins=11),
            Axis(name="gas", low=0.0, high=1.0, bins=6),
            Axis(name="brake", low=0.0, high=1.0, bins=6),
        ),
        named={
            "nothing": {},
            "left": {"steering": -_KEY_STEERING},
            "right": {"steering": _KEY_STEERING},
            "gas": {"gas": _KEY_GAS},
            "brake": {"brake": _KEY_BRAKE},
        },
        keys=_BROWSER_KEYS,
    ),
}


class _Simulation(StockCarRacing):
    """The stock environment, whose every physics step would also draw a picture."""

    drawing = False

    def _render(self, mode: str) -> Any:
        return super()._render(mode) if self.drawing else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        # A used Box2D world keeps the order of its contact lists, and with it rounding, from
        # the episode before; a new one makes an episode a function of its seed alone.
        self.world = Box2D.b2World((0, 0))
        self.road = None
        return super().reset(seed=seed, options=options)


class CarRacing(gymnasium.Env[NDArray[np.uint8], Any]):
    """Drive a car on a random track, seen from above; 50 / `frame_skip` frames a second.

    Frames are uint8 [64, 64, 3]: the stock camera (car at column 32, row 48, looking up), and in
    the last 8 rows a dashboard (see `draw_dashboard`). Info holds the entries of `COLUMNS`, also
    on reset. An episode ends when a lap is complete or the car leaves the playfield; driving on
    the grass is allowed. Equal seeds and actions give equal frames, whatever ran before.

    Args:
        actions: "keys", MultiDiscrete [3, 3]: steering (none, left, right) and pedals (none, gas,
            brake), held for one frame. "discrete", Discrete 5 in the stock order: nothing, right,
            left, gas, brake. "continuous", stock Box: steering in [-1, 1] with right positive,
            gas and brake in [0, 1].
        renderer: "fast", or "stock" for the stock 96x96 picture resized to 64x64.
        frame_skip: Physics steps of 0.02 s per frame.
        render_mode: Only "rgb_array", which returns the current frame.

    Raises:
        ConfigError: If an option is not one of those named above.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS / 3}  # noqa: RUF012
    COLUMNS = {  # noqa: RUF012
        "x": Column(dtype="float64", unit="simulation unit", meaning="car position, x"),
        "y": Column(dtype="float64", unit="simulation unit", meaning="car position, y"),
        "yaw": Column(
            dtype="float64",
            unit="radian",
            meaning="heading, counterclockwise, not wrapped; 0 looks along +y",
        ),
        "speed": Column(dtype="float64", unit="simulation unit / second", meaning="true speed"),
        "yaw_rate": Column(
            dtype="float64", unit="radian / second", meaning="turning, positive to the left"
        ),
        "steering_angle": Column(
            dtype="float64", unit="radian", meaning="left front wheel, positive to the left"
        ),
        "wheels_on_road": Column(dtype="int64", meaning="number of wheels that touch the road"),
    }

    def __init__(
        self,
        *,
        actions: Literal["keys", "discrete", "continuous"] = "keys",
        renderer: Literal["fast", "stock"] = "fast",
        frame_skip: int = 3,
        render_mode: str | None = None,
    ) -> None:
        if actions not in _ACTION_SCHEMAS:
            raise ConfigError(f"car racing: actions={actions!r}; use one of {[*_ACTION_SCHEMAS]}")
        if renderer not in ("fast", "stock"):
            raise ConfigError(f"car racing: renderer={renderer!r}; use 'fast' or 'stock'")
        if frame_skip < 1:
            raise ConfigError(f"car racing: frame_skip={frame_skip}; use 1 or more")
        self.render_mode = render_mode
        self.frame_skip = frame_skip
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": FPS / frame_skip}
        self.action_schema = _ACTION_SCHEMAS[actions]
        self.observation_space = spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        self._simulation = _Simulation(continuous=True)
        self.action_space = {
            "keys": spaces.MultiDiscrete([3, 3]),
            "discrete": spaces.Discrete(5),
            "continuous": self._simulation.action_space,
        }[actions]
        self.actions = actions
        self._renderer = renderer
        self._map: TrackMap | None = None
        self._frame = np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8)

    @property
    def track(self) -> NDArray[np.float64]:
        """Centre line of the road, [N, 3]: x, y and heading of each tile, as in `COLUMNS`."""
        line = np.asarray(self._simulation.track)
        return np.stack([line[:, 2], line[:, 3], line[:, 1]], axis=1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Make a new track and put the car on it, at rest."""
        super().reset(seed=seed, options=options)
        track_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._simulation.reset(seed=track_seed)
        for _ in range(_SETTLING_STEPS - 1):
            self._simulation.step(None)  # type: ignore[arg-type]
        simulation = self._simulation
        self._map = TrackMap(
            simulation.road_poly,
            simulation.road_color.tolist(),
            simulation.bg_color.tolist(),
            simulation.grass_color.tolist(),
        )
        return self._observe()

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Hold `action` for `frame_skip` physics steps."""
        controls = self._controls(action)
        reward, terminated, truncated = 0.0, False, False
        for _ in range(self.frame_skip):
            _, step_reward, terminated, truncated, _ = self._simulation.step(controls)
            reward += float(step_reward)
            if terminated or truncated:
                break
        frame, info = self._observe()
        return frame, reward, terminated, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """Return the current frame, uint8 [64, 64, 3], in mode "rgb_array"."""
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Release what the stock renderer holds."""
        self._simulation.close()  # type: ignore[no-untyped-call]

    def _controls(self, action: Any) -> NDArray[np.float64]:
        if self.actions == "continuous":
            return np.asarray(action, np.float64)
        if self.actions == "discrete":
            option = int(action)
            steering, pedals = {0: (0, 0), 1: (2, 0), 2: (1, 0), 3: (0, 1), 4: (0, 2)}[option]
        else:
            steering, pedals = (int(part) for part in action)
        return np.array(
            [
                (0.0, -_KEY_STEERING, _KEY_STEERING)[steering],
                _KEY_GAS * (pedals == 1),
                _KEY_BRAKE * (pedals == 2),
            ]
        )

    def _observe(self) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        car = self._simulation.car
        assert car is not None
        assert self._map is not None
        hull, wheels = car.hull, car.wheels
        x, y = hull.position
        info = {
            "x": float(x),
            "y": float(y),
            "yaw": float(hull.angle),
            "speed": float(hull.linearVelocity.length),
            "yaw_rate": float(hull.angularVelocity),
            "steering_angle": float(wheels[0].joint.angle),
            "wheels_on_road": sum(bool(wheel.tiles) for wheel in wheels),
        }
        if self._renderer == "fast":
            angles = (wheels[0].joint.angle, wheels[1].joint.angle)
            self._frame = draw_view(self._map, x, y, hull.angle, angles)
            draw_dashboard(self._frame, info["speed"], info["steering_angle"], info["yaw_rate"])
        else:
            self._frame = self._draw_stock()
        return self._frame.copy(), info

    def _draw_stock(self) -> NDArray[np.uint8]:
        self._simulation.drawing = True
        picture = self._simulation._render("state_pixels")
        self._simulation.drawing = False
        size = (FRAME_SIZE, FRAME_SIZE)
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


gymnasium.register("worldgen/CarRacing-v0", "envs.car_racing:CarRacing")
