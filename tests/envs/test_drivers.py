"""Drivers: balanced actions, sensible play, and the same choices for the same seed."""

from itertools import groupby
from typing import Any

import gymnasium
import numpy as np
import pytest

from envs.crafter import ACTIONS, PLAYER_COLUMN, PLAYER_ROW
from envs.drivers import make_driver
from envs.record import play_episode
from worldgen.data.episodes import Episode, EpisodeInfo
from worldgen.errors import ConfigError


def _make(name: str, **options: Any) -> gymnasium.Env[Any, Any]:
    identifier = {
        "car": "car_racing:worldgen/CarRacing-v0",
        "crafter": "crafter:worldgen/Crafter-v0",
    }
    return gymnasium.make(f"envs.{identifier[name]}", disable_env_checker=True, **options)


def _play(environment: gymnasium.Env[Any, Any], driver: str, seed: int, length: int) -> Episode:
    info = EpisodeInfo(index=0, seed=seed, length=length, driver="")
    episode = play_episode(environment, driver, info)
    assert episode is not None
    return episode


@pytest.fixture(scope="module")
def drives() -> list[Episode]:
    environment = _make("car")
    return [_play(environment, "car", seed, 300) for seed in range(6)]


def test_the_car_driver_stays_near_the_road_at_many_speeds(drives: list[Episode]) -> None:
    on_road = np.concatenate([drive.columns["wheels_on_road"] > 0 for drive in drives])
    speed = np.concatenate([drive.columns["speed"] for drive in drives])
    assert 0.35 < on_road.mean() < 0.95
    assert speed.max() > 35
    assert np.percentile(speed, 5) < 6


def test_the_car_driver_uses_every_combination_of_keys(drives: list[Episode]) -> None:
    actions = np.concatenate([drive.actions for drive in drives])
    counts = np.bincount(actions[:, 0] * 3 + actions[:, 1], minlength=9)
    assert (counts > 0.01 * len(actions)).all()
    left, right = (actions[:, 0] == 1).mean(), (actions[:, 0] == 2).mean()
    assert 0.4 < left / right < 2.5


def test_the_explorer_walks_far_digs_and_rests() -> None:
    environment = _make("crafter")
    episode = _play(environment, "explorer", 3, 500)
    columns = episode.columns
    moved = (np.diff(columns["x"]) != 0) | (np.diff(columns["y"]) != 0)
    assert moved.mean() > 0.5
    assert len(set(zip(columns["x"].tolist(), columns["y"].tolist(), strict=True))) > 120
    taken = np.bincount(episode.actions[:, 0], minlength=len(ACTIONS))
    assert taken[ACTIONS.index("noop")] > 5
    assert taken[ACTIONS.index("do")] > 15
    assert (taken[1:5] > 20).all()


@pytest.fixture(scope="module")
def walk() -> Episode:
    return _play(_make("crafter"), "returning", 0, 400)


def test_the_returning_player_goes_back_the_way_it_came(walk: Episode) -> None:
    columns = walk.columns
    places = list(zip(columns["x"].tolist(), columns["y"].tolist(), strict=True))
    way = [place for place, _ in groupby(places)]
    turns = []
    for turn in range(1, len(way) - 1):
        reach = 0
        while (
            way[turn - reach - 1 : turn - reach] == way[turn + reach + 1 : turn + reach + 2] != []
        ):
            reach += 1
        turns.append(reach)
    assert sum(reach >= 6 for reach in turns) >= 5
    assert max(turns) <= 20
    # Most places of the map are not new: each walk sees everything twice.
    assert len(set(places)) < 0.6 * len(way)


def test_the_returning_player_sees_the_same_again(walk: Episode) -> None:
    columns = walk.columns
    ground = columns["tiles"].copy()
    ground[:, PLAYER_ROW, PLAYER_COLUMN] = 0
    seen: dict[tuple[int, int], int] = {}
    same = []
    for frame, place in enumerate(zip(columns["x"].tolist(), columns["y"].tolist(), strict=True)):
        if frame - seen.get(place, frame) >= 12:
            same.append((ground[frame] == ground[seen[place]]).mean())
        seen.setdefault(place, frame)
    assert len(same) > 100
    assert np.mean(same) > 0.9


def test_the_same_seed_and_the_same_view_make_the_same_walk(walk: Episode) -> None:
    # The world itself is left out: it takes seconds to make, and has tests of its own.
    driver = make_driver("returning", _make("crafter"), np.random.default_rng([0, 1]))
    for frame, action in enumerate(walk.actions):
        seen = {name: column[frame] for name, column in walk.columns.items()}
        assert np.array_equal(driver.act(seen), action), frame


def test_the_same_seed_makes_the_same_episode() -> None:
    first, second = (_play(_make("car"), "car", 11, 60) for _ in range(2))
    assert np.array_equal(first.actions, second.actions)
    assert np.array_equal(first.frames, second.frames)


def test_the_random_driver_plays_any_space() -> None:
    for actions, groups in (("keys", 2), ("discrete", 1), ("continuous", 3)):
        episode = _play(_make("car", actions=actions), "random", 0, 40)
        assert episode.actions.shape == (40, groups)
        assert len(np.unique(episode.actions, axis=0)) > 2


def test_a_driver_of_another_environment_is_refused() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"env\.options\.actions=keys"):
        make_driver("car", _make("car", actions="discrete"), generator)
    with pytest.raises(ConfigError, match="driver 'explorer' plays crafter"):
        make_driver("explorer", _make("car"), generator)
    with pytest.raises(ConfigError, match="driver 'returning' plays crafter"):
        make_driver("returning", _make("car"), generator)
    with pytest.raises(ConfigError, match="no driver 'bus'; there are car, explorer, random"):
        make_driver("bus", _make("car"), generator)
