"""A world of ego motion behind the server: where the vehicle is, routes, and a model that drives."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories import tiny_driven_world, tiny_world
from tests.serving.client import Client
from worldgen.ego_motion import integrate
from worldgen.pipeline import World, load
from worldgen.serving import running_server

FORWARD, LEFT = (0.0, 1.6, 0.0), (5.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(tiny_driven_world(tmp_path_factory.mktemp("driven")))


@pytest.fixture(scope="module")
def address(driven: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    other = tiny_world(tmp_path_factory.mktemp("other"))
    with running_server([str(driven.folder), str(other)]) as url:
        yield url


def drive(client: Client, *steps: tuple[float, ...]) -> list[dict[str, Any]]:
    """Take steps; return what the server said that it has done."""
    said = []
    for values in steps:
        client.send_step(*values)
        said.append(client.notice("taken"))
    return said


def path_of(actions: object) -> np.ndarray:
    return integrate(np.asarray(actions, np.float64).reshape(-1, 3))


def test_hello_says_who_drives_and_in_what(address: str) -> None:
    with Client(address) as client:
        worlds = client.notice("hello")["worlds"]
    assert [world["policy"] for world in worlds] == [True, False]
    assert worlds[0]["ego_motion"] == {"length_unit": "m", "usual_speed": 1.6 * 16}
    assert worlds[1]["ego_motion"] is None


def test_poses_agree_with_the_actions_of_the_session_whatever_happens(address: str) -> None:
    with Client(address) as client:
        assert client.open("tiny_driven")["path"] == [[0, 0, 0]]
        said = drive(client, FORWARD, (5.03, 1.6, 0.0), FORWARD, LEFT)
        poses = path_of([each["action"] for each in said])
        assert [each["frame"] for each in said] == [1, 2, 3, 4]
        np.testing.assert_allclose([each["pose"] for each in said], poses[1:], atol=1e-4)
        for command, length in (("rewind", 3), ("fork", 1)):
            client.command(command, frame=length)
            notice = client.notice("drive")
            assert len(notice["path"]) == length + 1
            np.testing.assert_allclose(notice["path"], path_of(notice["actions"]), atol=1e-4)
        [after] = drive(client, LEFT)
        notice["actions"].append(after["action"])
        np.testing.assert_allclose(after["pose"], path_of(notice["actions"])[-1], atol=1e-4)
        client.command("switch", branch=0)
        assert len(client.notice("drive")["path"]) == 4
        client.command("save")
        log = client.notice("log")["log"]
        client.command("load", log=log)
        np.testing.assert_allclose(client.notice("drive")["path"], poses[:4], atol=1e-4)


def test_a_drawn_line_becomes_steps_that_lead_along_it(address: str) -> None:
    with Client(address) as client:
        client.open("tiny_driven")
        drive(client, FORWARD, LEFT)
        client.command("trace", points=[[10.0, 0.5], [20.0, 3.0]])
        route = client.notice("route")
        assert route["frame"] == 2
        said = drive(client, *route["actions"])
        np.testing.assert_allclose([each["pose"] for each in said], route["path"][1:], atol=2e-4)
        assert np.hypot(*np.subtract(said[-1]["pose"][:2], [20.0, 3.0])) < 2.0


def test_a_trajectory_file_becomes_steps_and_what_is_wrong_is_said(address: str) -> None:
    with Client(address) as client:
        client.open("tiny_driven")
        content = "# steps_per_second: 8\nyaw_deg,x_m,y_m\n2,3.2,0\n0,40,0\n"
        client.command("trajectory", name="road.csv", content=content)
        route = client.notice("route")
        assert len(route["actions"]) == 4
        assert "road.csv: x reaches" in route["problems"][0]
        client.command("trajectory", name="road.csv", content="time_s\n1\n")
        assert "road.csv" in client.notice("error")["message"]
        client.command("trace", points={"x": 1})
        assert "list of places" in client.notice("error")["message"]
        # The visit goes on.
        assert drive(client, FORWARD)[0]["frame"] == 1


def test_a_step_without_settings_is_the_model_s_own(address: str, driven: World) -> None:
    session = driven.session(seed=3)
    with Client(address) as client:
        client.open("tiny_driven", seed=3)
        for said in drive(client, (), (), ()):
            expected = session.predict_action()
            assert said["action"] == expected.tolist()
            session.step(expected)


def test_nothing_drives_in_a_world_of_keys(address: str) -> None:
    with Client(address) as client:
        assert client.open("tiny")["path"] is None
        client.command("trace", points=[[10, 0]])
        assert "nothing drives in tiny" in client.notice("error")["message"]
        client.send_step()
        assert client.close_code() == 1003


def test_settings_of_the_steps_after_may_come_along(tmp_path: Path) -> None:
    world = load(tiny_world(tmp_path, frames_per_step=4))
    actions = [np.array(each) for each in ([1, 0], [0, 1], [2, 2], [0, 0])]
    session = world.session(seed=5)
    session.step(actions[0], actions[1:])
    with running_server([str(tmp_path)]) as url, Client(url) as client:
        client.open(seed=5)
        picture = client.step(*np.concatenate(actions))
        assert np.array_equal(picture.frame, session.frame)
        for action in actions[1:]:
            client.step(*action)
        client.command("rewind", frame=4)
        assert client.notice("drive")["actions"] == [each.tolist() for each in actions]
        client.send_step(1, 0, 1)
        assert client.close_code() == 1003
