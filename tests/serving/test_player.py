"""Branches, rewinding and logs of one visitor's drive."""

from pathlib import Path

import numpy as np
import pytest

from worldgen.errors import ActionError, SessionLimitError
from worldgen.pipeline import World, load
from worldgen.serving.player import MAX_BRANCHES, Player, actions_from

LEFT, RIGHT = np.array([1, 0]), np.array([2, 0])


@pytest.fixture
def world(world_folder: Path) -> World:
    return load(world_folder)


@pytest.fixture
def player(world: World) -> Player:
    return Player.open(world, seed=3, start=0, decoder=None)


def test_starts_wrap_round(world: World) -> None:
    assert Player.open(world, seed=0, start=5, decoder=None).start == 1


def test_after_a_rewind_the_same_actions_give_the_same_frames(player: Player) -> None:
    first = [player.step(LEFT) for _ in range(4)]
    player.rewind(1)
    assert player.frame_index == 1
    assert np.array_equal(player.frame, first[0])
    again = [player.step(LEFT) for _ in range(3)]
    assert all(np.array_equal(a, b) for a, b in zip(first[1:], again, strict=True))


def test_a_fork_leaves_its_source_as_it_was(player: Player) -> None:
    frames = [player.step(LEFT) for _ in range(4)]
    player.fork(2)
    player.step(RIGHT)
    assert player.actions.tolist() == [LEFT.tolist()] * 2 + [RIGHT.tolist()]
    player.switch(0)
    assert player.frame_index == 4
    assert np.array_equal(player.frame, frames[-1])
    assert player.actions.tolist() == [LEFT.tolist()] * 4


def test_a_branch_can_be_forgotten_but_not_the_one_being_played(player: Player) -> None:
    player.step(LEFT)
    player.fork(1)
    with pytest.raises(SessionLimitError, match="switch first"):
        player.close(1)
    player.close(0)
    with pytest.raises(SessionLimitError, match="no branch 0; open are 1"):
        player.switch(0)


def test_the_number_of_branches_is_bounded(player: Player) -> None:
    for _ in range(MAX_BRANCHES - 1):
        player.fork(0)
    with pytest.raises(SessionLimitError, match="close one first"):
        player.fork(0)


def test_the_log_of_a_branch_holds_its_own_actions(player: Player) -> None:
    for _ in range(3):
        player.step(LEFT)
    player.fork(1)
    player.step(RIGHT)
    assert len(player.log().actions) == 2
    player.switch(0)
    assert len(player.log().actions) == 3


def test_the_digest_changes_with_the_frame_and_returns_with_it(player: Player) -> None:
    before = player.digest
    player.step(LEFT)
    assert player.digest != before
    player.rewind(0)
    assert player.digest == before


def test_settings_that_do_not_fit_the_schema_are_refused(world: World) -> None:
    assert actions_from(np.array([1, 2], np.float32), world).tolist() == [1, 2]
    for values in ([1], [1, 2, 0], [3, 0], [0.5, 0], [-1, 0]):
        with pytest.raises(ActionError):
            actions_from(np.array(values, np.float32), world)
