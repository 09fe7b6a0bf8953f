"""Decoders come by their names, say what is wrong with one, and play in sessions as logs name them."""

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch

from tests.factories import tiny_world
from worldgen.errors import ConfigError
from worldgen.generation import (
    SamplingConfig,
    Session,
    WithDraftModel,
    decoder_names,
    make_decoder,
)
from worldgen.generation.grouped import code_vectors, group_codes
from worldgen.generation.jacobi import JacobiDecoder
from worldgen.models.base import Policy
from worldgen.pipeline import World, load

NAMES = ["outward", "refine:3", "refine:3:0.5", "jacobi", "jacobi:9", "grouped:16"]
EXACT_ERRORS = [
    ("spiral", "choose one of raster, .*outward.*refine, jacobi, speculative, grouped"),
    ("raster:2", "takes no number"),
    ("strided:0", "positive integer"),
    ("jacobi:0", "'jacobi:0' needs a positive integer"),
    ("jacobi:x", "positive integer"),
    ("speculative:spiral", "spiral"),
    ("grouped:x", "positive integer"),
    ("grouped:65", "64 codes can be put into 1 to 64 groups, got 65"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(tiny_world(tmp_path_factory.mktemp("world")))


def quiet_session(world: World, decoder: str) -> Session:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return world.session(seed=4, decoder=decoder, sampling=SamplingConfig())


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_is_called_what_it_was_asked_for(world: World, name: str) -> None:
    layout = world.model.layout
    assert make_decoder(name, layout, SamplingConfig(), world.tokenizer).name == name


def test_every_name_makes_a_decoder_that_its_own_name_makes_again(world: World) -> None:
    for name in decoder_names():
        made = make_decoder(name, world.model.layout, SamplingConfig(), world.tokenizer)
        again = make_decoder(made.name, world.model.layout, SamplingConfig(), world.tokenizer)
        assert again.name == made.name
        assert made.name.split(":")[0] == name


@pytest.mark.parametrize(("name", "message"), EXACT_ERRORS)
def test_a_wrong_name_says_what_is_allowed(world: World, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_decoder(name, world.model.layout, SamplingConfig(), world.tokenizer)


def test_grouped_without_a_tokenizer_says_what_is_missing(world: World) -> None:
    with pytest.raises(ConfigError, match="give make_decoder the tokenizer"):
        make_decoder("grouped", world.model.layout, SamplingConfig())


def test_a_window_without_cells_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 cell, got 0"):
        JacobiDecoder(sampling=SamplingConfig(), window=0)


@pytest.mark.parametrize("name", NAMES)
def test_sessions_of_every_decoder_come_back_from_their_log(
    world: World, name: str, tmp_path: Path
) -> None:
    session = quiet_session(world, name)
    for action in ("left", "gas", "nothing"):
        session.step(action)
    session.save(tmp_path / "log.json")
    assert world.load_session(tmp_path / "log.json").ids.tolist() == session.ids.tolist()
    ahead = session.fork()
    ahead.step("gas")
    session.step("brake")
    session.rewind(1)
    session.step("gas")
    assert ahead.ids.tolist() == session.ids.tolist()


@pytest.mark.parametrize(
    ("name", "calls"),
    [("raster", {64}), ("outward", {9}), ("refine:3", {3}), ("jacobi", set(range(1, 65)))],
)
def test_a_session_says_how_many_calls_its_last_frame_took(
    world: World, name: str, calls: set[int]
) -> None:
    session = quiet_session(world, name)
    assert session.calls == 0
    for _ in range(2):
        session.step("left")
        assert session.calls in calls


def test_a_decoder_that_the_world_was_not_trained_for_warns_once(world: World) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            world.session(decoder="rows").step("gas")
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "not trained for decoder 'rows'" in message
    assert "whole_frame, strided:4, diagonal, raster" in message
    assert caught[0].filename == __file__


def test_decoders_with_rasters_ids_are_trained_where_raster_is(world: World) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("raster", "jacobi:3", "grouped", "strided:4"):
            world.session(decoder=name)
        with pytest.raises(UserWarning, match="refine:4"):
            world.session(decoder="refine:4")


def test_near_codes_are_grouped_and_every_code_has_a_group(world: World) -> None:
    vectors = code_vectors(world.tokenizer)
    assert torch.equal(group_codes(vectors, 64).sort().values, torch.arange(64))
    assert group_codes(vectors, 1).tolist() == [0] * 64
    group = group_codes(vectors, 8)
    assert sorted(group.unique().tolist()) == list(range(8))
    between = torch.cdist(vectors, vectors)
    same = group[:, None] == group[None]
    apart = ~torch.eye(64, dtype=torch.bool)
    assert float(between[same & apart].mean()) < 0.6 * float(between[~same].mean())
    # Two far heaps are told apart, whatever the number of codes in each.
    heaps = torch.cat((torch.randn(30, 3), torch.randn(3, 3) + 50))
    assert len(group_codes(heaps, 2)[:30].unique()) == 1


def test_groups_of_one_code_give_rasters_ids_and_one_group_takes_one_call(world: World) -> None:
    exact, single, all_alike = (
        quiet_session(world, name) for name in ("raster", "grouped:64", "grouped:1")
    )
    for action in ("left", "gas", "nothing"):
        for session in (exact, single, all_alike):
            session.step(action)
        assert single.ids.tolist() == exact.ids.tolist()
        assert all_alike.calls == 1


def test_a_world_with_a_draft_model_plays_forks_rewinds_and_replays_rasters_frames(
    world: World, tmp_path: Path
) -> None:
    small = load(tiny_world(tmp_path / "small", seed=1)).model
    parts = dataclasses.replace(world.parts, model=WithDraftModel(world.model, small))
    pair = dataclasses.replace(world, parts=parts)
    exact, session = quiet_session(world, "raster"), quiet_session(pair, "speculative")
    for action in ("left", "gas", "nothing"):
        exact.step(action)
        session.step(action)
    session.rewind(2)
    ahead = session.fork()
    for action in ("gas", "nothing"):
        session.step(action)
        ahead.step(action)
    assert exact.ids.tolist() == session.ids.tolist() == ahead.ids.tolist()
    session.save(tmp_path / "log.json")
    assert pair.load_session(tmp_path / "log.json").ids.tolist() == exact.ids.tolist()
    assert not isinstance(parts.model, Policy)
