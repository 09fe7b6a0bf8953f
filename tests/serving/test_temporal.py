"""A world that draws four frames at a time behind the server: playing, logs, restoring, reality."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.factories import tiny_world
from tests.serving.client import Client
from tests.serving.conftest import TOY
from worldgen.generation import RolloutLog, Session
from worldgen.pipeline import World, load
from worldgen.serving import running_server
from worldgen.serving.player import Player
from worldgen.serving.protocol import Kind

LEFT, GAS, NOTHING = np.array([1, 0]), np.array([0, 1]), np.array([0, 0])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    return load(tiny_world(folder, environment=TOY, frames_per_step=4))


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    with running_server([str(world.folder)]) as url:
        yield url


def scripted(world: World) -> Session:
    """Return a session at frame 7 whose actions change inside of what is drawn together."""
    session = world.session(seed=9)
    actions = [LEFT, GAS, GAS, NOTHING, LEFT, LEFT, GAS]
    list(session.play(actions))
    return session


def test_every_step_gives_one_frame_and_the_action_that_is_heeded(
    address: str, world: World
) -> None:
    session = world.session(seed=5)
    with Client(address) as client:
        assert client.open(seed=5)["together"] == 4
        for number, values in enumerate((LEFT, GAS, NOTHING, GAS, GAS, LEFT), start=1):
            picture = client.step(*values, stamp=float(number))
            assert picture.frame_index == number
            assert np.array_equal(picture.frame, session.step(values))
        client.command("rewind", frame=5)
        assert client.notice("drive")["actions"] == [[1, 0]] * 4 + [[0, 1]]
        client.command("fork", frame=2)
        assert client.notice("drive")["actions"] == [[1, 0]] * 2


def test_a_log_of_a_script_loads_frame_by_frame(address: str, world: World) -> None:
    session = scripted(world)
    log = session.log()
    with Client(address) as client:
        client.command("load", log=log.to_json())
        drive = client.notice("drive")
        assert drive["actions"] == session.actions.tolist()
        assert np.array_equal(client.picture(Kind.DREAM).frame, session.frame)
        verified = client.notice("verified")
        assert (verified["frames"], verified["first_difference"]) == (7, None)
        # The eighth frame is drawn already.
        assert np.array_equal(client.step(0, 0).frame, session.step(NOTHING))
        client.command("save")
        assert RolloutLog.from_json(client.notice("log")["log"]) == session.log()


def test_a_drive_is_restored_from_the_actions_that_were_heeded(address: str, world: World) -> None:
    session = scripted(world)
    session.step(NOTHING)
    digest = Player(world, session).digest
    with Client(address) as client:
        client.command(
            "restore",
            world="tiny",
            seed=9,
            start=0,
            decoder=None,
            actions=session.actions.tolist(),
            digest=digest,
        )
        restored = client.notice("restored")
        assert restored == {"say": "restored", "frames": 8, "same": True}


def test_reality_takes_the_actions_that_the_dream_heeds(address: str, world: World) -> None:
    pictures = {}
    for name, actions in {
        "pressed": (LEFT, GAS, NOTHING, GAS, GAS, LEFT),
        "heeded": (LEFT, LEFT, LEFT, LEFT, GAS, GAS),
    }.items():
        with Client(address) as client:
            client.open(seed=5)
            for number, values in enumerate(actions, start=1):
                client.step(*values, stamp=float(number))
            while (picture := client.picture(Kind.REALITY)).frame_index < 6:
                pass
            pictures[name] = picture
    assert np.array_equal(pictures["pressed"].frame, pictures["heeded"].frame)
    assert pictures["pressed"].difference == pictures["heeded"].difference


def test_the_window_goes_on_after_going_back(world: World) -> None:
    player = Player.open(world, seed=3, start=0, decoder=None)
    frames: list[np.ndarray] = [player.step(LEFT) for _ in range(6)]
    player.rewind(2)
    # Frames three and four were drawn with the second.
    again = [player.step(GAS) for _ in range(2)]
    assert np.array_equal(again, frames[2:4])
    assert player.last_action.tolist() == [1, 0]
    player.step(GAS)
    assert player.last_action.tolist() == [0, 1]


def test_a_temporal_world_fits_beside_one_of_single_frames(world: World, tmp_path: Path) -> None:
    other = str(tiny_world(tmp_path, name="single"))
    with running_server([str(world.folder), other]) as url, Client(url) as client:
        assert client.open("single")["together"] == 1
        assert client.step(1, 0).frame_index == 1
        assert client.open("tiny")["together"] == 4
        assert client.step(1, 0).frame_index == 1
