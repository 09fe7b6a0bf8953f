"""Car racing: the stock camera and physics, keys that do what they say, and exact repetition."""

import hashlib
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.car_renderer import draw_dashboard
from worldgen.errors import ConfigError
from worldgen.tokenizers.action import parse_actions

IDENTIFIER = "envs.car_racing:worldgen/CarRacing-v0"


def _make(**options: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(IDENTIFIER, disable_env_checker=True, **options)


def _play(environment: gymnasium.Env[Any, Any], seed: int, script: str) -> tuple[Any, Any]:
    """Return frames [T + 1, ...] and infos of a script such as "gas*5,left*3"."""
    frame, info = environment.reset(seed=seed)
    frames, infos = [frame], [info]
    for action in parse_actions(script, environment.unwrapped.action_schema):  # type: ignore[attr-defined]
        frame, _, _, _, info = environment.step(action)
        frames.append(frame)
        infos.append(info)
    return np.stack(frames), infos


def _digest(seed: int) -> str:
    frames, _ = _play(_make(), seed, "gas*10,left+gas*15,right*10,brake*5")
    return hashlib.sha256(frames.tobytes()).hexdigest()


def test_gymnasium_accepts_the_environment() -> None:
    for actions in ("keys", "discrete", "continuous"):
        check_env(_make(render_mode="rgb_array", actions=actions).unwrapped)


def test_seed_and_actions_give_the_same_frames_after_other_episodes() -> None:
    environment = _make()
    script = "gas*10,left+gas*15,right*10"
    first, infos = _play(environment, 7, script)
    _play(environment, 8, "gas*20,right+gas*20")
    again, infos_again = _play(environment, 7, script)
    assert np.array_equal(first, again)
    assert infos == infos_again
    assert not np.array_equal(first, _play(environment, 8, script)[0])


def test_seed_and_actions_give_the_same_frames_in_another_process() -> None:
    code = "from tests.envs.test_car_racing import _digest; print(_digest(3))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=500
    )
    assert result.stdout.strip() == _digest(3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_fast_picture_is_the_stock_picture(seed: int) -> None:
    script = "gas*12,left+gas*6,nothing*4,right*8"
    fast, fast_infos = _play(_make(renderer="fast"), seed, script)
    stock, stock_infos = _play(_make(renderer="stock"), seed, script)
    assert fast_infos == stock_infos
    above, stock_above = fast[:, :56].astype(float), stock[:, :56].astype(float)
    # Stock shades some road tiles by up to 5 levels, and paints each anew when it is touched.
    assert np.abs(above - stock_above).mean() < 4.0
    road, stock_road = (picture[..., 1] < 140 for picture in (above, stock_above))
    assert np.corrcoef(road.ravel(), stock_road.ravel())[0, 1] > 0.95


def test_kerbs_and_grass_squares_are_visible() -> None:
    frames, _ = _play(_make(), 0, "gas*30")
    red, green, blue = np.moveaxis(frames[:, :40].astype(int), -1, 0)
    assert ((red > 200) & (green < 120) & (blue < 120)).any()
    assert ((red > 220) & (green > 220) & (blue > 220)).any()
    greens = green[(red < 110) & (green > 190)]
    assert {204, 230} <= set(greens.tolist())


def test_episodes_begin_at_rest_with_the_camera_settled() -> None:
    _, info = _make().reset(seed=4)
    assert info["speed"] < 1e-3
    assert info["wheels_on_road"] == 4


def test_gas_and_brake_change_the_speed_and_steering_turns_the_car() -> None:
    environment = _make()
    gas = _play(environment, 0, "gas*20,gas*10")[1]
    nothing = _play(environment, 0, "gas*20,nothing*10")[1]
    brake = _play(environment, 0, "gas*20,brake*10")[1]
    assert gas[-1]["speed"] > gas[20]["speed"] + 8
    assert brake[-1]["speed"] < 1 < nothing[-1]["speed"] < gas[20]["speed"]
    left = _play(environment, 0, "gas*10,left*5")[1]
    right = _play(environment, 0, "gas*10,right*5")[1]
    assert left[-1]["yaw"] > left[10]["yaw"] + 0.2
    assert right[-1]["yaw"] < right[10]["yaw"] - 0.2


def test_discrete_and_continuous_actions_drive_like_keys() -> None:
    script = "gas*8,left*4,right*3,brake*3,nothing*2"
    keys, _ = _play(_make(), 5, script)
    assert np.array_equal(_play_discrete(script), keys)
    continuous, _ = _play(_make(actions="continuous"), 5, script)
    assert np.array_equal(continuous, keys)


def _play_discrete(script: str) -> np.ndarray:
    environment = _make(actions="discrete")
    frames = [environment.reset(seed=5)[0]]
    for action in parse_actions(script, environment.unwrapped.action_schema):  # type: ignore[attr-defined]
        frames.append(environment.step(int(action[0]))[0])
    return np.stack(frames)


def test_leaving_the_field_ends_the_episode() -> None:
    environment = _make()
    environment.reset(seed=0)
    environment.unwrapped._simulation.car.hull.position = (400.0, 0.0)  # type: ignore[attr-defined]
    _, reward, terminated, truncated, _ = environment.step(np.array([0, 0]))
    assert terminated
    assert not truncated
    assert float(reward) < -90


def test_the_dashboard_tells_speed_steering_and_turning_apart() -> None:
    def draw(speed: float, steering: float, yaw_rate: float) -> np.ndarray:
        frame = np.full((64, 64, 3), 77, np.uint8)
        draw_dashboard(frame, speed, steering, yaw_rate)
        assert (frame[:56] == 77).all()
        return frame[56:].astype(int)

    assert draw(0, 0, 0).sum() == 0
    fills = [draw(speed, 0, 0)[1:4].sum() for speed in np.arange(0, 90, 0.2)]
    assert (np.diff(fills) > 0).all()
    left, right = draw(0, 0.2, 1.0)[5:], draw(0, -0.2, -1.0)[5:]
    assert left[0, :16, 1].sum() > 0 == left[0, 16:32, 1].sum()
    assert right[0, 16:32, 1].sum() > 0 == right[0, :16, 1].sum()
    assert left[0, 32:48, 0].sum() > 0 == left[0, 48:, 0].sum()
    assert right[0, 48:, 0].sum() > 0 == right[0, 32:48, 0].sum()
    assert np.array_equal(draw(500, 9, 99), draw(90, 0.42, 5))


def test_wrong_options_say_which_are_allowed() -> None:
    with pytest.raises(ConfigError, match=r"actions='mouse'; use one of \['keys', 'discrete'"):
        _make(actions="mouse")
    with pytest.raises(ConfigError, match="renderer='gpu'; use 'fast' or 'stock'"):
        _make(renderer="gpu")
    with pytest.raises(ConfigError, match="frame_skip=0; use 1 or more"):
        _make(frame_skip=0)
