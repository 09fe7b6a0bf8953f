"""The real environment runs after the dream and says why when it cannot."""

import queue
from pathlib import Path

import numpy as np
import pytest

from tests.factories import tiny_world
from tests.serving.client import PATIENCE
from worldgen.pipeline import EnvironmentCard, load
from worldgen.real_environment import RealEnvironment
from worldgen.serving.player import Player
from worldgen.serving.reality import (
    Reality,
    RealityDifferences,
    RealityEvent,
    RealityFrame,
    RealityState,
    frame_difference,
)

TOY = EnvironmentCard(id="tests.serving.toy_environment:worldgen-tests/Toy-v0")
ACTIONS = [np.array(action) for action in ([1, 0], [0, 1], [2, 2], [0, 0])]


class Watched:
    """A reality whose events a test can wait for."""

    def __init__(self, player: Player) -> None:
        self.player = player
        self.events: queue.Queue[RealityEvent] = queue.Queue()
        self.reality = Reality(player.world, self.events.put)
        self.restart()

    def restart(self) -> None:
        window = self.player.current.window
        self.reality.restart(self.player.start or 0, list(self.player.actions), window)

    def step(self, action: np.ndarray) -> None:
        frame = self.player.step(action)
        self.reality.step(action, self.player.frame_index, frame)

    def frame(self, index: int) -> RealityFrame:
        while True:
            event = self.events.get(timeout=PATIENCE)
            current = event.version == self.reality.version
            if current and isinstance(event, RealityFrame) and event.index == index:
                return event


def expected_frame(player: Player) -> np.ndarray:
    start, card = player.world.starts[player.start or 0], player.world.card.environment
    assert card is not None
    assert start.environment_seed is not None
    assert start.environment_actions is not None
    with RealEnvironment(card.id, card.options) as environment:
        frame = environment.reset(seed=start.environment_seed)
        for action in (*start.environment_actions, *player.actions):
            frame = environment.step(action)
    return frame


@pytest.fixture
def watched(world_folder: Path) -> Watched:
    return Watched(Player.open(load(world_folder), seed=0, start=1, decoder=None))


def test_reality_begins_where_the_start_of_the_world_ends(watched: Watched) -> None:
    assert np.array_equal(watched.frame(0).frame, expected_frame(watched.player))


def test_reality_takes_every_action_of_the_dream(watched: Watched) -> None:
    for action in ACTIONS:
        watched.step(action)
    event = watched.frame(4)
    assert np.array_equal(event.frame, expected_frame(watched.player))
    assert event.difference == pytest.approx(frame_difference(watched.player.frame, event.frame))


def test_after_a_rewind_reality_runs_again_from_its_seed(watched: Watched) -> None:
    for action in ACTIONS:
        watched.step(action)
    watched.player.rewind(2)
    watched.restart()
    watched.step(ACTIONS[0])
    assert np.array_equal(watched.frame(3).frame, expected_frame(watched.player))
    frames = watched.reality.frames(0, 3)
    assert frames is not None
    assert len(frames) == 4


def test_catching_up_tells_the_difference_of_every_frame_at_hand(watched: Watched) -> None:
    watched.frame(0)
    for action in ACTIONS:
        watched.step(action)
    watched.frame(4)
    watched.restart()
    while not isinstance(event := watched.events.get(timeout=PATIENCE), RealityDifferences):
        pass
    assert event.first == 0
    assert len(event.values) == 5


def test_frames_of_a_history_that_was_left_are_not_at_hand(watched: Watched) -> None:
    watched.frame(0)
    watched.reality.stop()
    assert watched.reality.frames(0, 0) is None


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (EnvironmentCard(id="no_such_module:Missing-v0"), "no_such_module"),
        (None, "names no real environment"),
    ],
)
def test_a_missing_environment_is_said_with_its_reason(
    tmp_path: Path, card: EnvironmentCard | None, reason: str
) -> None:
    world = load(tiny_world(tmp_path / "world", environment=card))
    watched = Watched(Player.open(world, seed=0, start=0, decoder=None))
    event = watched.events.get(timeout=PATIENCE)
    assert isinstance(event, RealityState)
    assert event.state == "missing"
    assert reason in event.reason


def test_after_the_end_of_its_episode_reality_stands_still_and_is_not_compared(
    tmp_path: Path,
) -> None:
    # Three actions lead to the start, so the first step of the drive is the last of the episode.
    card = EnvironmentCard(id=TOY.id, options={"ends_after": 4})
    world = load(tiny_world(tmp_path / "world", environment=card))
    watched = Watched(Player.open(world, seed=0, start=0, decoder=None))
    watched.frame(0)
    for action in ACTIONS:
        watched.step(action)
    last = watched.frame(1)
    assert np.isfinite(last.difference)
    after = watched.frame(4)
    assert np.array_equal(after.frame, last.frame)
    assert np.isnan(after.difference)
    watched.restart()
    while not isinstance(event := watched.events.get(timeout=PATIENCE), RealityDifferences):
        pass
    assert np.isfinite(event.values).tolist() == [True, True, False, False, False]


def test_an_environment_that_fails_ends_reality_until_the_next_restart(tmp_path: Path) -> None:
    # Three actions lead to the start, so the second step of the drive fails.
    card = EnvironmentCard(id=TOY.id, options={"fails_at": 4})
    world = load(tiny_world(tmp_path / "world", environment=card))
    watched = Watched(Player.open(world, seed=0, start=0, decoder=None))
    watched.frame(0)
    watched.step(ACTIONS[0])
    watched.frame(1)
    watched.step(ACTIONS[1])
    while not (
        isinstance(event := watched.events.get(timeout=PATIENCE), RealityState) and event.reason
    ):
        pass
    assert event.reason == "the real environment failed (RuntimeError: the toy broke)"
    watched.step(ACTIONS[2])
    watched.player.rewind(0)
    watched.restart()
    watched.frame(0)


def test_equal_frames_are_as_alike_as_the_meter_goes() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    assert frame_difference(frame, frame) == 99.0
    assert frame_difference(frame, frame + 255) == pytest.approx(0.0)
    assert np.isnan(frame_difference(frame, np.zeros((2, 2, 3), np.uint8)))
