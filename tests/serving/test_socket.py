"""The server as a visitor in Python sees it: playing, misuse, and who is let in."""

import contextlib
import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import av
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.serving.client import PATIENCE, Client
from worldgen.errors import WorldgenError
from worldgen.pipeline import load
from worldgen.serving import Limits, running_server
from worldgen.serving.commands import MAX_COMMAND_BYTES
from worldgen.serving.protocol import Kind


def still_plays(url: str) -> bool:
    with Client(url) as client:
        client.open()
        return client.step(1, 0).frame_index == 1


def test_hello_offers_the_worlds_with_their_cards(url: str) -> None:
    with Client(url) as client:
        worlds = client.notice("hello")["worlds"]
    assert [world["key"] for world in worlds] == ["tiny", "other"]
    assert worlds[0]["card"]["title"] == "A tiny world"
    assert worlds[0]["num_starts"] == 2


def test_a_step_is_answered_with_its_stamp_and_the_frame_of_the_session(
    url: str, world_folder: Path
) -> None:
    session = load(world_folder).session(seed=5, start=1)
    with Client(url) as client:
        client.open(seed=5, start=1)
        assert np.array_equal(client.picture(Kind.DREAM).frame, session.frame)
        for number, values in enumerate(([1, 0], [0, 1], [2, 2]), start=1):
            picture = client.step(*values, stamp=100.0 + number)
            assert picture.stamp == 100.0 + number
            assert picture.frame_index == number
            assert picture.model_milliseconds > 0
            assert np.array_equal(picture.frame, session.step(np.array(values)))


def test_two_visitors_have_a_world_each(url: str) -> None:
    with Client(url) as one, Client(url) as two:
        one.open(seed=1)
        two.open(seed=1)
        one.picture(Kind.DREAM)
        two.picture(Kind.DREAM)
        first = one.step(1, 0)
        assert two.step(2, 1).frame_index == 1
        two.command("rewind", frame=0)
        two.notice("drive")
        two.picture(Kind.DREAM)
        assert np.array_equal(two.step(1, 0).frame, first.frame)
        assert one.step(1, 0).frame_index == 2


def test_rewind_fork_switch_and_close_tell_the_page_where_it_is(url: str) -> None:
    with Client(url) as client:
        client.open()
        for _ in range(5):
            client.step(1, 0)
        client.command("rewind", frame=3)
        assert len(client.notice("drive")["actions"]) == 3
        client.command("fork", frame=1)
        drive = client.notice("drive")
        assert (drive["branch"], drive["actions"]) == (1, [[1, 0]])
        assert drive["branches"][1] == {"id": 1, "last": 1, "parent": 0, "forked_at": 1}
        client.command("switch", branch=0)
        assert len(client.notice("drive")["actions"]) == 3
        client.command("close", branch=1)
        assert len(client.notice("drive")["branches"]) == 1


def test_a_past_frame_can_be_looked_at_with_its_reality(url: str) -> None:
    with Client(url) as client:
        client.open()
        frames = [client.picture(Kind.DREAM).frame, *(client.step(1, 0).frame for _ in range(3))]
        while client.picture(Kind.REALITY).frame_index < 3:
            pass
        client.command("preview", frame=1)
        preview = client.picture(Kind.DREAM_PREVIEW)
        assert preview.frame_index == 1
        assert np.array_equal(preview.frame, frames[1])
        assert client.picture(Kind.REALITY_PREVIEW).frame_index == 1


def test_a_saved_log_loads_and_is_verified(url: str) -> None:
    with Client(url) as client:
        client.open(seed=9, decoder="diagonal")
        for _ in range(4):
            client.step(0, 1)
        client.command("save")
        log = client.notice("log")["log"]
    with Client(url) as client:
        client.command("load", log=log)
        assert len(client.notice("drive")["actions"]) == 4
        verified = client.notice("verified")
    assert (verified["frames"], verified["first_difference"]) == (4, None)
    assert verified["hash"] == log["total_hash"]


def test_a_log_whose_frames_come_out_differently_says_where(url: str) -> None:
    with Client(url) as client:
        client.open(seed=9)
        for _ in range(3):
            client.step(0, 1)
        client.command("save")
        log = client.notice("log")["log"]
        # Another seed draws other frames; digests and their hash still fit each other.
        client.command("load", log=log | {"seed": 10})
        assert client.notice("verified")["first_difference"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "recipe"}, "not a rollout log"),
        ({"world_hash": "0" * 64}, "this server plays tiny"),
        ({"actions": []}, "malformed rollout log"),
        ({"decoder": "backwards"}, "backwards"),
    ],
)
def test_a_log_that_does_not_fit_is_refused_and_play_goes_on(
    url: str, change: dict[str, object], message: str
) -> None:
    with Client(url) as client:
        client.open()
        client.step(1, 0)
        client.command("save")
        client.command("load", log=client.notice("log")["log"] | change)
        assert message in client.notice("error")["message"]
        assert client.step(1, 0).frame_index == 2


def test_a_drive_that_the_page_remembers_is_restored(url: str) -> None:
    actions = [[1, 0], [1, 1], [0, 2]]
    with Client(url) as client:
        client.open(seed=2)
        client.picture(Kind.DREAM)
        last = [client.step(*values) for values in actions][-1]
    with Client(url) as client:
        fields = {"world": "tiny", "seed": 2, "start": 0, "decoder": None, "actions": actions}
        client.command("restore", **fields, digest=last.digest)
        assert client.notice("drive")["actions"] == actions
        assert np.array_equal(client.picture(Kind.DREAM).frame, last.frame)
        assert client.notice("restored") == {"say": "restored", "frames": 3, "same": True}
        client.command("restore", **fields, digest=last.digest ^ 1)
        assert client.notice("restored")["same"] is False
        client.command("restore", **(fields | {"actions": [[1], [2, 3]]}))
        assert "do not fit" in client.notice("error")["message"]


def test_a_long_replay_can_be_stopped(url: str) -> None:
    with Client(url) as client:
        client.open()
        actions = [[0, 0]] * 50_000
        fields = {"world": "tiny", "seed": 0, "start": 0, "decoder": None, "actions": actions}
        client.command("restore", **fields)
        assert client.notice("progress")["total"] == 50_000
        client.command("cancel")
        client.notice("cancelled")
        assert client.step(0, 0).frame_index == 1


def test_the_last_minute_comes_as_a_video_with_reality_beside(url: str, tmp_path: Path) -> None:
    with Client(url) as client:
        client.open()
        for _ in range(6):
            client.step(1, 0)
        while client.picture(Kind.REALITY).frame_index < 6:
            pass
        client.command("video")
        path = tmp_path / "last_minute.mp4"
        path.write_bytes(client.binary(Kind.VIDEO)[4:])
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 7
    assert frames[0].width == frames[0].height * 130 // 64


def test_a_world_without_its_environment_says_so_and_plays_on(url: str) -> None:
    with Client(url) as client:
        client.open("other")
        notice = client.notice("reality")
        assert notice["state"] == "missing"
        assert "no_such_module" in notice["reason"]
        assert client.step(1, 0).frame_index == 1


def test_reality_can_be_switched_off_and_on(url: str) -> None:
    with Client(url) as client:
        client.open()
        client.command("reality", on=False)
        while client.notice("reality")["state"] != "off":
            pass
        client.step(1, 0)
        client.command("reality", on=True)
        assert client.picture(Kind.REALITY).frame_index == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ({"do": "open", "world": "atlantis"}, "no world 'atlantis'; it has tiny, other"),
        ({"do": "open", "world": "tiny", "seed": -1}, "seed"),
        ({"do": "open", "world": "tiny", "decoder": "backwards"}, "backwards"),
        ({"do": "save"}, "open one first"),
        ({"do": "video"}, "open one first"),
    ],
)
def test_a_command_that_cannot_be_done_is_answered_in_words(
    url: str, command: dict[str, object], message: str
) -> None:
    with Client(url) as client:
        client.socket.send(json.dumps(command))
        assert message in client.notice("error")["message"]


@pytest.mark.parametrize(
    "garbage",
    ["hello", '{"do": "explode"}', '{"do": "rewind", "frame": []}', b"\x00" * 3, b"\xff" * 200],
)
def test_garbage_closes_the_socket_with_a_line_in_the_log(
    url: str, garbage: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "worldgen.serving"), Client(url) as client:
        client.socket.send(garbage)
        assert client.close_code() == 1003
    lines = [record for record in caplog.records if "garbage" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].exc_info is None
    assert still_plays(url)


def test_settings_outside_the_schema_are_garbage(url: str) -> None:
    with Client(url) as client:
        client.open()
        client.send_step(7, 0)
        assert client.close_code() == 1003


def test_a_message_over_the_limit_closes_the_socket(url: str) -> None:
    with Client(url) as client:
        with contextlib.suppress(ConnectionClosed):
            client.socket.send("x" * (MAX_COMMAND_BYTES + 1))
        # While much of the message is still under way the reset may overtake the close frame.
        assert client.close_code() in {1009, None}
    assert still_plays(url)


def test_a_flood_closes_the_socket_and_leaves_others_alone(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "worldgen.serving"), Client(url) as other:
        other.open()
        with Client(url) as client:
            # While a long replay runs nothing is answered, so what is sent piles up.
            actions = [[0, 0]] * 50_000
            fields = {"world": "tiny", "seed": 0, "start": 0, "decoder": None, "actions": actions}
            client.command("restore", **fields)
            client.notice("progress")
            with contextlib.suppress(ConnectionClosed):
                for _ in range(100):
                    client.send_step(1, 0)
            assert client.close_code() == 1008
        assert other.step(1, 0).frame_index == 1
    assert any("flood" in record.getMessage() for record in caplog.records)


def test_messages_faster_than_allowed_are_a_flood(world_folder: Path) -> None:
    limits = Limits(messages_per_second=2.0, max_waiting=1_000_000)
    with running_server([str(world_folder)], limits=limits) as url, Client(url) as client:
        client.open()
        with contextlib.suppress(ConnectionClosed):
            for _ in range(1000):
                client.send_step(1, 0)
        assert client.close_code() == 1008


def test_an_idle_visitor_gives_its_place_away(world_folder: Path) -> None:
    limits = Limits(idle_seconds=0.5)
    with (
        running_server([str(world_folder)], max_sessions=1, limits=limits) as url,
        Client(url) as client,
    ):
        # On a slow machine its time may be over before its world is open.
        with contextlib.suppress(ConnectionClosed):
            client.open()
        assert client.close_code() == 4001
        with Client(url) as next_visitor:
            assert next_visitor.notice("hello")


def test_one_visitor_too_many_is_refused_politely_until_a_place_is_free(
    world_folder: Path,
) -> None:
    with running_server([str(world_folder)], max_sessions=2) as url:
        with Client(url) as one, Client(url) as two:
            one.open()
            two.open()
            with Client(url) as three:
                assert "places in this server are taken" in three.notice("refused")["message"]
                assert three.close_code() == 4003
            assert one.step(1, 0).frame_index == 1
        wait_for_place(url)


def test_visitors_that_vanish_free_their_places(world_folder: Path) -> None:
    with running_server([str(world_folder)], max_sessions=1) as url:
        for _ in range(3):
            wait_for_place(url, vanish=True)


def wait_for_place(url: str, *, vanish: bool = False) -> None:
    """Play one step as soon as there is a place; leave without a goodbye if asked."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        client = Client(url)
        try:
            client.open()
            client.send_step(1, 0)
        except ConnectionClosed:
            time.sleep(0.02)
            continue
        if vanish:
            client.socket.socket.shutdown(socket.SHUT_RDWR)
        client.socket.close()
        return
    raise AssertionError("no place became free")


def test_a_foreign_origin_is_refused(url: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        Client(url, origin="https://example.org")
    assert caught.value.response.status_code == 403
    with Client(url, origin=url.rstrip("/")) as client:
        client.notice("hello")


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example.org", 403), ("127.0.0.1:80", 200), ("localhost", 200), ("[::1]:9", 200)],
)
def test_only_hosts_that_are_this_server_are_answered(url: str, host: str, status: int) -> None:
    request = urllib.request.Request(url, headers={"Host": host})
    try:
        with urllib.request.urlopen(request) as response:
            got = response.status
    except urllib.error.HTTPError as error:
        got = error.code
    assert got == status


def test_the_page_names_nothing_outside_itself(url: str) -> None:
    with urllib.request.urlopen(url) as response:
        page = response.read().decode()
        policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http://" not in page
    assert "https://" not in page


def test_a_taken_port_is_one_clear_message(world_folder: Path) -> None:
    with running_server([str(world_folder)]) as url:
        port = int(url.rstrip("/").rsplit(":", 1)[1])
        with (
            pytest.raises(WorldgenError, match=f"port {port}: Address already in use"),
            running_server([str(world_folder)], port=port),
        ):
            pass


def test_worlds_that_cannot_be_had_stop_the_start() -> None:
    with pytest.raises(WorldgenError, match="no world 'atlantis'"), running_server(["atlantis"]):
        pass
    with pytest.raises(WorldgenError, match="no world to play"), running_server([]):
        pass


def test_a_stopped_server_says_goodbye_and_leaves_no_thread(world_folder: Path) -> None:
    with running_server([str(world_folder)]) as url:
        client = Client(url)
        client.open()
    assert client.close_code() in {1001, 1012}
    assert not [t for t in threading.enumerate() if t.name == "worldgen-server"]
