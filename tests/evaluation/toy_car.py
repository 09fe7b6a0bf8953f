"""A car on stripes: 64 x 64 frames whose pattern moves down with speed and sideways with turning."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from tests.factories import car_schema
from worldgen.data.episodes import (
    Column,
    DatasetMetadata,
    Episode,
    EpisodeInfo,
    EpisodeWriter,
)

ENVIRONMENT = "tests.evaluation.toy_car:worldgen-tests/ToyCar-v0"


class ToyCar(gymnasium.Env[NDArray[np.uint8], Any]):
    """Steering turns, gas and brake change the speed; everything follows from seed and actions."""

    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = spaces.MultiDiscrete([3, 3])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        self.yaw = 0.0
        self.position = float(self.np_random.uniform(0, 16))
        self.speed = float(self.np_random.uniform(1.0, 4.0))
        return self._frame(), self._info()

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        steering, pedals = (int(part) for part in action)
        self.yaw += (0.0, 0.1, -0.1)[steering]
        self.speed = float(np.clip(self.speed + (0.0, 0.4, -0.8)[pedals], 0.0, 7.0))
        self.position += self.speed
        return self._frame(), 0.0, False, False, self._info()

    def _info(self) -> dict[str, Any]:
        return {"yaw": self.yaw, "speed": self.speed}

    def _frame(self) -> NDArray[np.uint8]:
        rows, columns = np.mgrid[0:64, 0:64]
        frame = np.zeros((64, 64, 3))
        frame[..., 0] = np.sin((rows - self.position) * 2 * np.pi / 16)
        frame[..., 1] = np.sin((columns + 40 * self.yaw) * 2 * np.pi / 32)
        frame = 127.5 * (frame + 1)
        frame[56:] = 0.0
        frame[58:62, : int(8 * self.speed)] = 255.0
        return frame.astype(np.uint8)


gymnasium.register("worldgen-tests/ToyCar-v0", "tests.evaluation.toy_car:ToyCar")


def record(folder: Any, *, episodes: dict[str, int], length: int = 80) -> None:
    """Write a recording of random driving."""
    environment = ToyCar()
    metadata = DatasetMetadata(
        environment={"id": ENVIRONMENT, "options": {}},
        frames_per_second=16.0,
        frame_height=64,
        frame_width=64,
        action_schema=car_schema().to_json(),
        columns={name: Column(dtype="float64") for name in ("yaw", "speed")},
    )
    folder.mkdir(parents=True, exist_ok=True)
    metadata.write(folder)
    seed = 0
    for split, count in episodes.items():
        writer = EpisodeWriter(folder / split, 16.0)
        for index in range(count):
            random = np.random.default_rng(seed)
            actions = np.repeat(random.integers(0, 3, (length // 5 + 1, 2)), 5, axis=0)[:length]
            frame, info = environment.reset(seed=seed)
            frames, rows = [], []
            for action in actions:
                frames.append(frame)
                rows.append(info)
                frame, _, _, _, info = environment.step(action)
            columns = {
                "yaw": np.array([row["yaw"] for row in rows]),
                "speed": np.array([row["speed"] for row in rows]),
                "reward": np.zeros(length, np.float32),
                "cut": np.arange(length) == length - 1,
            }
            info_row = EpisodeInfo(
                index=index, seed=seed, length=length, driver="random", split=split
            )
            writer.write(
                Episode(frames=np.stack(frames), actions=actions, columns=columns, info=info_row)
            )
            seed += 1
