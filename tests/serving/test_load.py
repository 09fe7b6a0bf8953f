"""Drives that open get the best decoding order that the machine keeps up with."""

import dataclasses
from pathlib import Path

import pytest

from tests.factories import tiny_world
from tests.serving.client import Client
from worldgen.pipeline import World, WorldCard, load
from worldgen.serving import running_server
from worldgen.serving.engine import Engine
from worldgen.serving.load import Load
from worldgen.serving.player import Player

LIKELIHOODS = {"raster": -0.1, "strided:4": -0.3, "whole_frame": -0.4}
COSTS = {"whole_frame": 0.01, "strided:4": 0.03, "raster": 0.2}


class Clock:
    """Stands still until it is told."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def world(world_folder: Path) -> World:
    """Ten frames a second; raster is best and whole frames are worst."""
    made = load(world_folder)
    card = dataclasses.replace(
        made.card,
        decoders=tuple(COSTS),
        decoder_likelihoods=LIKELIHOODS,
        frames_per_second=10.0,
    )
    return dataclasses.replace(made, card=card)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(world: World, clock: Clock) -> Load:
    return Load({"tiny": world}, {"tiny": COSTS}, clock=clock)


def opened(meter: Load, world: World, decoder: str | None = None) -> Player:
    name = decoder or meter.choose(world)
    player = Player.open(world, seed=0, start=0, decoder=name)
    meter.stepped(player)
    return player


def test_players_get_the_best_order_that_leaves_all_their_frames(meter: Load, world: World) -> None:
    # Raster takes two seconds a second of play, strided 0.3, whole frames 0.1.
    players = [opened(meter, world) for _ in range(4)]
    assert [player.decoder for player in players] == ["strided:4"] * 3 + ["whole_frame"]
    assert meter.info()["playing"] == 4
    assert meter.info()["chosen"] == {"tiny": {"strided:4": 3, "whole_frame": 1}}


def test_whoever_stops_counts_no_more(meter: Load, world: World, clock: Clock) -> None:
    players = [opened(meter, world) for _ in range(3)]
    assert meter.choose(world) == "whole_frame"
    assert meter.choose(world, leaving=players[0]) == "strided:4"
    clock.seconds = 60.0
    meter.stepped(players[1])
    meter.stepped(players[2])
    assert meter.choose(world) == "strided:4"
    meter.stepped(players[0])
    assert meter.choose(world) == "whole_frame"
    del players[0]
    assert meter.choose(world) == "strided:4"


def test_what_frames_cost_now_counts(meter: Load, world: World) -> None:
    player = opened(meter, world, "raster")
    assert meter.choose(world) == "whole_frame"
    for _ in range(32):
        meter.drew(player, 0.02)
    assert meter.choose(world) == "raster"
    assert meter.info()["milliseconds"]["tiny"] == {
        "whole_frame": 10.0,
        "strided:4": 30.0,
        "raster": 20.0,
    }


def test_an_order_that_was_asked_for_costs_and_is_not_offered(meter: Load, world: World) -> None:
    player = opened(meter, world, "jacobi")
    assert meter.choose(world) == "strided:4"
    meter.drew(player, 0.07)
    assert meter.choose(world) == "whole_frame"
    assert list(meter.info()["milliseconds"]["tiny"]) == list(COSTS)


def test_all_too_slow_is_the_cheapest(world: World) -> None:
    meter = Load({"tiny": world}, {"tiny": {"whole_frame": 3.0, "strided:4": 2.0}})
    assert meter.choose(world) == "strided:4"


def test_a_card_without_likelihoods_is_read_in_its_order(world: World) -> None:
    card: WorldCard = dataclasses.replace(world.card, decoder_likelihoods={})
    assert card.decoders_by_quality == tuple(COSTS)
    half = dataclasses.replace(card, decoder_likelihoods={"raster": -1.0})
    assert half.decoders_by_quality == ("raster", "whole_frame", "strided:4")


def test_the_page_is_told_and_a_log_holds_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_world(tmp_path / "tiny")
    calls: list[Player | None] = []

    def choose(self: Load, world: World, leaving: Player | None = None) -> str:
        calls.append(leaving)
        return "diagonal"

    monkeypatch.setattr(Load, "choose", choose)
    with running_server([str(folder)], adaptive=True) as url, Client(url) as client:
        assert client.notice("hello")["adaptive"] is True
        assert client.open()["decoder"] == "diagonal"
        client.step(1, 0)
        client.command("save")
        assert client.notice("log")["log"]["decoder"] == "diagonal"
        assert client.open(decoder="raster")["decoder"] == "raster"
        client.open()
    assert [leaving is not None and leaving.decoder for leaving in calls] == [False, "raster"]


def test_a_server_that_may_not_choose_plays_the_first_order(url: str) -> None:
    with Client(url) as client:
        assert client.notice("hello")["adaptive"] is False
        assert client.open()["decoder"] == "whole_frame"


def test_the_engine_times_every_order_of_a_world_that_keeps_up(
    world_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldgen.serving.engine._TRIAL_STEPS", 1)
    engine = Engine([str(world_folder)], max_sessions=1, adaptive=True)
    costs = engine.info()["load"]["milliseconds"]["tiny"]
    # In the order of their calls; on a slow machine the last ones are left out.
    assert list(costs) == ["whole_frame", "strided:4", "diagonal", "raster"][: len(costs)]
    assert min(costs.values()) > 0
    assert "load" not in Engine([str(world_folder)], max_sessions=1).info()
