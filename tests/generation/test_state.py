"""A saved session goes on as if it had never stopped, having observed only what is still seen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.factories import tiny_driven_world, tiny_world
from tests.generation.test_text_session import sentence
from worldgen.checkpoint import load_tensors, save_tensors
from worldgen.errors import LogError
from worldgen.generation import SamplingConfig, Session, Start, WithDraftModel
from worldgen.generation.state import SessionState
from worldgen.models import NextTokenConfig, NextTokenTransformer, save_world_model
from worldgen.pipeline import World, load

pytestmark = pytest.mark.filterwarnings("ignore:.*was not trained for decoder")
ACTIONS = ["left", "gas", "nothing", "left+gas", "brake", "right"]


def next_token_world(folder: Path) -> Path:
    tiny_world(folder)
    torch.manual_seed(0)
    config = NextTokenConfig(
        rows=8,
        columns=8,
        codebook_size=64,
        num_action_tokens=2,
        action_vocabulary_size=6,
        width=16,
        num_heads=2,
        num_key_value_heads=1,
        feed_forward_width=24,
        windows=(2, 3),
    )
    save_world_model(folder / "model.safetensors", NextTokenTransformer(config))
    return folder


WORLDS: dict[str, Callable[[Path], Path]] = {
    "next_frame": tiny_world,
    "next_token": next_token_world,
    "driving": tiny_driven_world,
    "clips": lambda folder: tiny_world(folder, frames_per_step=4),
    "sink": lambda folder: tiny_world(folder, sink=2),
    "int8": lambda folder: tiny_world(folder, cache_storage="int8"),
    "far": lambda folder: tiny_world(folder, far_frames=6),
    "text": lambda folder: tiny_world(
        folder, text_vocabulary_size=20, sink=1, recall_after=2, noise_levels=3
    ),
}


LONG = 80
"""Frames: more than a cache keeps."""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    folder = tmp_path_factory.mktemp("worlds")

    def get(name: str) -> World:
        if not (folder / name).exists():
            WORLDS[name](folder / name)
        return load(folder / name)

    return get


def play(session: Session, count: int) -> Session:
    for _ in range(count):
        number = session.frame_index
        if session.parts.world == "tiny_driven":
            groups = session.parts.action_tokenizer.schema.rest()
            session.step(groups + np.float64(0.01) * (number % 3))
        else:
            session.step(ACTIONS[number % len(ACTIONS)])
    return session


def begin(world: World, name: str) -> Session:
    if name != "text":
        return world.session(seed=4)
    start = Start(
        visual_ids=torch.zeros(0, 64, dtype=torch.int64),
        action_ids=torch.zeros(0, 2, dtype=torch.int64),
        text_ids=sentence(7),
    )
    sampling = SamplingConfig(temperature=0.0, context_noise=1, text_guidance=1.0)
    return world.session(seed=4, start=start, sampling=sampling)


@pytest.fixture(scope="module")
def played(worlds: Callable[[str], World]) -> Callable[[str], Session]:
    """Return a long session of a world, to be played on."""
    sessions: dict[str, Session] = {}

    def get(name: str) -> Session:
        if name not in sessions:
            sessions[name] = play(begin(worlds(name), name), LONG)
        return sessions[name].fork()

    return get


def remembered(session: Session) -> list[torch.Tensor]:
    cache = session._cache
    return [part for layer in range(len(cache.windows)) for part in cache.read_before(layer)]


@pytest.mark.parametrize("name", WORLDS)
def test_a_saved_session_goes_on_identically(
    worlds: Callable[[str], World],
    played: Callable[[str], Session],
    name: str,
    tmp_path: Path,
) -> None:
    world, session = worlds(name), played(name)
    path = tmp_path / "session.safetensors"
    session.save_state(path)
    loaded = world.load_session(path)
    assert loaded.log() == session.log()
    assert np.array_equal(loaded.frame, session.frame)
    # All that the model will see, to the last bit, and not the ids alone.
    assert all(map(torch.equal, remembered(loaded), remembered(session)))
    assert play(loaded, 6).log() == play(session, 6).log()
    assert all(map(torch.equal, remembered(loaded), remembered(session)))
    assert np.array_equal(loaded.frame, session.frame)
    assert np.array_equal(loaded.frame_at(50), session.frame_at(50))


@pytest.mark.parametrize("name", ["next_frame", "text", "far"])
def test_a_loaded_session_can_be_rewound_as_far(
    worlds: Callable[[str], World],
    played: Callable[[str], Session],
    name: str,
    tmp_path: Path,
) -> None:
    session = played(name)
    session.save_state(tmp_path / "session.safetensors")
    loaded = worlds(name).load_session(tmp_path / "session.safetensors")
    for count in (1, 3, LONG):
        fork = loaded.fork()
        fork.rewind(count)
        assert play(fork, count).log() == session.log()
    assert loaded.log() == session.log()


def test_what_nobody_sees_is_not_observed(
    worlds: Callable[[str], World],
    played: Callable[[str], Session],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, session = worlds("next_frame"), played("next_frame")
    observe, counted = type(world.model).observe, []

    def count(*arguments: Any) -> Any:
        counted.append(1)
        return observe(*arguments)

    monkeypatch.setattr(type(world.model), "observe", count)
    session.rewind(LONG // 2)
    assert not counted
    session.rewind(LONG // 2 - 4)
    # Four context frames less one, and those drawn.
    assert len(counted) == 3 + 4
    counted.clear()
    session = played("next_frame")
    session._cache = world.model.new_cache(1)
    session.rewind(1)
    assert len(counted) == 4 + 16


@pytest.mark.parametrize("played", [0, 1, 2, 5])
@pytest.mark.parametrize("name", ["next_frame", "clips", "text"])
def test_short_sessions_are_saved_as_well(
    worlds: Callable[[str], World], name: str, played: int, tmp_path: Path
) -> None:
    world = worlds(name)
    session = play(begin(world, name), played)
    session.save_state(tmp_path / "session.safetensors")
    loaded = world.load_session(tmp_path / "session.safetensors")
    assert loaded.frames_left == session.frames_left
    assert play(loaded, 5).log() == play(session, 5).log()


def test_a_pair_of_models_goes_on_identically(
    worlds: Callable[[str], World], tmp_path: Path
) -> None:
    world, small = worlds("next_frame"), worlds("sink")
    parts = replace(world.parts, model=WithDraftModel(world.model, small.model))
    paired = replace(world, parts=parts)
    session = play(paired.session(decoder="speculative:whole_frame"), LONG)
    session.save_state(tmp_path / "session.safetensors")
    loaded = paired.load_session(tmp_path / "session.safetensors")
    play(loaded, 4), play(session, 4)
    assert loaded.log() == session.log()
    assert loaded.calls == session.calls


def test_the_state_of_another_world_is_refused(
    worlds: Callable[[str], World], tmp_path: Path
) -> None:
    path = tmp_path / "session.safetensors"
    play(worlds("next_frame").session(), 3).save_state(path)
    with pytest.raises(LogError, match="made by world 'tiny'"):
        worlds("sink").load_session(path)


@pytest.fixture
def saved(worlds: Callable[[str], World], tmp_path: Path) -> Path:
    path = tmp_path / "session.safetensors"
    play(worlds("next_frame").session(), 9).save_state(path)
    return path


def test_damaged_states_are_named(worlds: Callable[[str], World], saved: Path) -> None:
    world, content = worlds("next_frame"), saved.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], content[:20], content[:9]):
        saved.write_bytes(damaged)
        with pytest.raises(LogError, match=r"session\.safetensors"):
            world.load_session(saved)
    flipped = bytearray(content)
    flipped[-1] ^= 1
    saved.write_bytes(bytes(flipped))
    with pytest.raises(LogError, match="the file is damaged"):
        world.load_session(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"artifact": "starts"}, "holds a 'starts'"),
        ({"version": 2}, "has version 2"),
        ({"seed": "one"}, "malformed session"),
        ({"frame_index": 8}, "do not make a session"),
        ({"num_context": 40}, "do not make a session"),
    ],
)
def test_states_that_were_changed_are_named(
    worlds: Callable[[str], World], saved: Path, changes: dict[str, Any], message: str
) -> None:
    tensors, metadata = load_tensors(saved)
    save_tensors(saved, tensors, metadata | changes)
    with pytest.raises(LogError, match=message):
        worlds("next_frame").load_session(saved)


def test_ids_that_a_world_does_not_have_are_named(
    worlds: Callable[[str], World], saved: Path
) -> None:
    state = SessionState.read(saved)
    wrong = state.visual_ids.copy()
    wrong[5, 3] = 64
    replace(state, visual_ids=wrong).write(saved)
    with pytest.raises(LogError, match=r"row 5 of the log's tokens needs 64 ids in 0 \.\.\. 63"):
        worlds("next_frame").load_session(saved)
    wrong = state.action_ids.copy()
    wrong[5] = 3
    replace(state, action_ids=wrong).write(saved)
    with pytest.raises(LogError, match="log's actions do not fit"):
        worlds("next_frame").load_session(saved)
    replace(state, text_ids=np.zeros(66, np.int64)).write(saved)
    with pytest.raises(LogError, match="log's text does not fit"):
        worlds("next_frame").load_session(saved)


def test_an_hour_of_ids_is_small(worlds: Callable[[str], World], saved: Path) -> None:
    state = SessionState.read(saved)
    assert state.visual_ids.dtype == np.uint16
    session = worlds("next_frame").load_session(saved)
    session.save_state(saved)
    assert np.array_equal(SessionState.read(saved).visual_ids, state.visual_ids)
