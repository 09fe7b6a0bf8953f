"""Steps that wait together are drawn together, ahead of time if there is some, and never otherwise."""

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.client import PATIENCE, Client
from worldgen.models.next_frame import NextFrameTransformer
from worldgen.pipeline import World
from worldgen.serving import running_server
from worldgen.serving.engine import Engine
from worldgen.serving.foresight import Foresight
from worldgen.serving.player import Player, Wish

LEFT, RIGHT = np.array([1, 0]), np.array([2, 0])


@pytest.fixture
def engine(world_folder: Path) -> Engine:
    return Engine([str(world_folder)], max_sessions=8)


@pytest.fixture
def world(engine: Engine) -> World:
    return engine.worlds["tiny"]


def players(world: World, count: int, decoder: str | None = None) -> list[Player]:
    return [Player.open(world, seed=n, start=n, decoder=decoder) for n in range(count)]


def play_at_once(engine: Engine, who: list[Player], actions: list[np.ndarray]) -> list[object]:
    """Let all of them ask for a step while the model thread is busy; return what each got."""
    busy, go = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert go.wait(PATIENCE)

    async def everybody() -> list[object]:
        holding = asyncio.create_task(engine.run(hold))
        while not busy.is_set():
            await asyncio.sleep(0.001)
        steps = [asyncio.create_task(engine.step(*each)) for each in zip(who, actions, strict=True)]
        await asyncio.sleep(0.01)
        go.set()
        await holding
        return list(await asyncio.gather(*steps, return_exceptions=True))

    return asyncio.run(everybody())


def test_steps_that_wait_go_in_one_batch_and_replay_alone(engine: Engine, world: World) -> None:
    who = players(world, 3) + players(world, 2, "strided:4")
    for number in range(6):
        play_at_once(engine, who, [(LEFT, RIGHT)[(number + k) % 2] for k in range(5)])
    assert engine.info()["batches"] == {"2": 12, "3": 18}
    for player in who:
        log = player.log()
        assert len(log.digests) == 6
        assert all(world.replay_session(log).replay(log))


def test_a_step_that_fails_in_a_batch_fails_alone(
    engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = players(world, 3)
    observe = NextFrameTransformer.observe
    marked = who[1].current.session.ids

    def breaks(model: NextFrameTransformer, *step: Any) -> object:
        if (np.asarray(step[1]) == marked).all(axis=1).any():
            raise ZeroDivisionError
        return observe(model, *step)

    with monkeypatch.context() as broken:
        broken.setattr(NextFrameTransformer, "observe", breaks)
        results = play_at_once(engine, who, [LEFT] * 3)
    assert isinstance(results[1], ZeroDivisionError)
    assert [player.frame_index for player in who] == [1, 0, 1]
    play_at_once(engine, who, [RIGHT] * 3)
    assert [player.frame_index for player in who] == [2, 1, 2]
    assert all(all(world.replay_session(p.log()).replay(p.log())) for p in who)


def test_a_visitor_who_left_before_the_batch_is_not_drawn(engine: Engine, world: World) -> None:
    one, other = players(world, 2)
    busy, go = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert go.wait(PATIENCE)

    async def leaving() -> None:
        holding = asyncio.create_task(engine.run(hold))
        while not busy.is_set():
            await asyncio.sleep(0.001)
        stays, leaves = (asyncio.create_task(engine.step(p, LEFT)) for p in (one, other))
        await asyncio.sleep(0.01)
        leaves.cancel()
        await asyncio.sleep(0.01)
        go.set()
        await asyncio.gather(holding, stays)

    asyncio.run(leaving())
    assert (one.frame_index, other.frame_index) == (1, 0)


def test_the_frame_of_an_idle_player_is_there_when_his_key_arrives(
    engine: Engine, world: World
) -> None:
    player = players(world, 1)[0]
    gave_up = time.monotonic() + PATIENCE
    while not engine.info()["foresight"]["ready"] and time.monotonic() < gave_up:
        asyncio.run(engine.step(player, LEFT))
        time.sleep(0.1)
    figures = engine.info()["foresight"]
    assert figures["ready"] == figures["hits"] == figures["tested"] > 0
    asyncio.run(engine.step(player, RIGHT))
    assert engine.info()["foresight"]["hits"] == figures["hits"]
    log = player.log()
    assert all(world.replay_session(log).replay(log))


def test_nobody_is_looked_ahead_of_who_leaves_no_time(world: World) -> None:
    foresight, player = Foresight(), players(world, 1)[0]

    def step(arrived: float, answered: float) -> None:
        there = foresight.judge(Wish(player=player, action=LEFT), arrived)
        player.step(LEFT)
        foresight.answered(player, answered, None if there else answered - arrived)

    step(0.0, 1.0)
    step(1.5, 2.5)
    candidates = [foresight.candidate]
    step(4.0, 5.0)
    candidates.append(foresight.candidate)
    foresight.look()
    candidates.append(foresight.candidate)
    assert candidates == [None, player, None]
    step(1e9, 1e9)
    figures = foresight.info()
    assert (figures["guesses"], figures["hits"], figures["ready"]) == (1, 1, 1)
    assert (figures["hit_rate"], figures["ready_rate"]) == (1.0, 0.25)


def test_a_guess_for_a_branch_that_was_left_is_no_hit(world: World) -> None:
    foresight, player = Foresight(), players(world, 1)[0]
    for arrived in (0.0, 5.0, 10.0):
        foresight.judge(Wish(player=player, action=LEFT), arrived)
        player.step(LEFT)
        foresight.answered(player, arrived + 1.0, 1.0)
    foresight.look()
    player.rewind(2)
    assert not foresight.judge(Wish(player=player, action=LEFT), 20.0)
    assert foresight.info()["tested"] == 0


def test_the_warm_up_is_reported(world_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "worldgen.serving"):
        engine = Engine([str(world_folder)], max_sessions=2)
        engine.report_warm_up()
    info = engine.info()
    assert info["warm_up"]["worlds"]["tiny"]["decoder"] == "whole_frame"
    assert info["warm_up"]["threads"] >= 1
    assert any("tiny is warm" in record.getMessage() for record in caplog.records)


def test_visitors_who_play_at_the_same_time_save_logs_that_replay(
    world_folder: Path, world: World
) -> None:
    logs = []

    def visit(url: str, seed: int) -> None:
        with Client(url) as client:
            client.open(seed=seed)
            for number in range(10):
                client.step((number + seed) % 3, 0, stamp=number + 1.0)
                if number == 4:
                    client.command("rewind", frame=2)
                    client.notice("drive")
            client.command("save")
            logs.append(client.notice("log")["log"])

    with running_server([str(world_folder)]) as url:
        threads = [threading.Thread(target=visit, args=(url, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        with Client(url) as client:
            for log in logs:
                client.command("load", log=log)
                assert client.notice("verified")["first_difference"] is None
    assert len(logs) == 4


def test_only_the_steps_of_others_are_overtaken(engine: Engine, world: World) -> None:
    one, two = players(world, 2)
    order: list[str] = []
    busy, go = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert go.wait(PATIENCE)

    async def waiting() -> None:
        holding = asyncio.create_task(engine.run(hold))
        while not busy.is_set():
            await asyncio.sleep(0.001)

        async def named(name: str, waits: object) -> None:
            await waits  # type: ignore[misc]
            order.append(name)

        jobs = [
            asyncio.create_task(named("first", engine.step(one, LEFT))),
            asyncio.create_task(named("call", engine.run(lambda: None))),
            asyncio.create_task(named("second", engine.step(two, LEFT))),
        ]
        await asyncio.sleep(0.01)
        go.set()
        await asyncio.gather(holding, *jobs)

    asyncio.run(waiting())
    assert order == ["first", "second", "call"]
