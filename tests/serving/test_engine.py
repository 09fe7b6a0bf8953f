"""One thread for all models: fair, counted, and out of the event loop's way."""

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from tests.serving.client import PATIENCE, Client
from worldgen.errors import SessionLimitError, WorldgenError
from worldgen.generation.session import Session
from worldgen.serving import running_server
from worldgen.serving.engine import Engine


@pytest.fixture
def engine(world_folder: Path) -> Engine:
    return Engine([str(world_folder)], max_sessions=1)


def test_jobs_run_in_turn_in_one_thread_while_the_loop_stays_alive(engine: Engine) -> None:
    order: list[str] = []
    threads: set[str] = set()
    turns = threading.Semaphore(0)

    def job(name: str) -> bool:
        threads.add(threading.current_thread().name)
        order.append(name)
        # Turns from before this job do not count.
        while turns.acquire(blocking=False):
            pass
        return turns.acquire(timeout=PATIENCE)

    async def visitor(name: str) -> list[bool]:
        return [await engine.run(lambda: job(name)) for _ in range(3)]

    async def both() -> list[list[bool]]:
        tasks = asyncio.gather(visitor("a"), visitor("b"))
        while not tasks.done():
            await asyncio.sleep(0.001)
            turns.release()
        return list(await tasks)

    # Every job saw the loop go round while it ran.
    assert asyncio.run(both()) == [[True] * 3] * 2
    assert order == ["a", "b"] * 3
    assert len(threads) == 1


def test_a_place_is_held_until_it_is_given_back(engine: Engine) -> None:
    with engine.seat():
        assert engine.open_sessions == 1
        with pytest.raises(SessionLimitError, match="All 1 places"), engine.seat():
            pass
    assert engine.open_sessions == 0


def test_two_worlds_of_one_name_are_told_apart(world_folder: Path) -> None:
    engine = Engine([str(world_folder), str(world_folder)], max_sessions=1)
    assert list(engine.worlds) == ["tiny", str(world_folder)]


def test_a_server_without_places_is_refused(world_folder: Path) -> None:
    with pytest.raises(WorldgenError, match="max_sessions is 0"):
        Engine([str(world_folder)], max_sessions=0)


def test_a_model_that_fails_ends_one_visit_with_one_line(
    world_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running_server([str(world_folder)]) as url, Client(url) as client, Client(url) as other:
        client.open()
        other.open()
        with monkeypatch.context() as broken, caplog.at_level(logging.INFO, "worldgen.serving"):
            broken.setattr(Session, "advance", lambda *_: 1 / 0)
            client.send_step(1, 0)
            assert client.close_code() == 1011
        assert other.step(1, 0).frame_index == 1
    lines = [record for record in caplog.records if "ZeroDivisionError" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].exc_info is None
