"""Sessions fork, rewind and replay bit for bit, and equal generation without any cache."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import tiny_world
from worldgen.errors import ActionError, LogError, SessionLimitError, WorldgenError
from worldgen.generation import RolloutLog, SamplingConfig, Session
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import draw
from worldgen.models.next_frame import group_masks
from worldgen.pipeline import World, load
from worldgen.schedule import make_schedule

pytestmark = pytest.mark.filterwarnings("ignore:.*was not trained for decoder")
ACTIONS = ["left", "gas", "nothing", "left+gas", "brake", "right"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(tiny_world(tmp_path_factory.mktemp("world")))


def play(session: Session, count: int, offset: int = 0) -> Session:
    for number in range(offset, offset + count):
        session.step(ACTIONS[number % len(ACTIONS)])
    return session


@torch.no_grad()
def generate_without_cache(session: Session, order: str) -> Iterator[np.ndarray]:
    """Yield the ids of every frame of a session, each from a fresh pass over the whole clip."""
    model, log = session.parts.model, session.log()
    schedule = make_schedule(order, 8, 8)
    masks = group_masks(schedule.group_of_cell[None])
    frames, actions = list(log.context_ids), [*log.context_actions]
    for number, action in enumerate(log.actions, start=1):
        actions.append(action)
        clip = torch.tensor(frames)[None], torch.tensor(actions)[None]
        hidden = model.encode_steps(*clip)[:, -1]  # type: ignore[attr-defined]
        uniforms = frame_uniforms([session.seed], [number], 64)
        ids = torch.zeros(1, 64, dtype=torch.int64)
        for group_number, group in enumerate(schedule.groups):
            logits = model.read(hidden)  # type: ignore[attr-defined]
            if group_number:
                logits = model.refine(hidden, ids, *masks)  # type: ignore[attr-defined]
            cells = list(group)
            ids[:, cells] = draw(logits[:, cells], uniforms[:, cells], log.sampling)
        frames.append(tuple(ids[0].tolist()))
        yield ids[0].numpy()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "order", ["raster", "diagonal", "diagonal:2", "rows", "blocks:4", "strided:4", "whole_frame"]
)
def test_every_order_equals_recomputation_without_a_cache(
    world: World, order: str, temperature: float
) -> None:
    # Enough frames for the window of four frames to slide.
    sampling = SamplingConfig(temperature=temperature)
    session = play(world.session(seed=5, decoder=order, sampling=sampling), 6)
    for number, ids in enumerate(generate_without_cache(session, order), start=1):
        assert np.array_equal(session.ids_at(number), ids)


def test_diagonal_with_full_lag_equals_raster(world: World) -> None:
    first = play(world.session(seed=2, decoder="raster"), 4)
    second = play(world.session(seed=2, decoder="diagonal:8"), 4)
    assert np.array_equal(first.ids, second.ids)


def test_seed_and_actions_decide_the_frames(world: World) -> None:
    ids = play(world.session(seed=3), 5).ids
    assert np.array_equal(ids, play(world.session(seed=3), 5).ids)
    assert not np.array_equal(ids, play(world.session(seed=4), 5).ids)
    assert not np.array_equal(ids, play(world.session(seed=3), 5, offset=1).ids)


def test_a_fork_goes_its_own_way_and_leaves_the_original_alone(world: World) -> None:
    original = play(world.session(seed=1), 9)
    fork = original.fork()
    play(fork, 5, offset=4)
    play(original, 5, offset=9)
    assert original.log() == play(world.session(seed=1), 14).log()
    assert fork.frame_index == 14
    assert not np.array_equal(fork.ids, original.ids)


@pytest.mark.parametrize("count", [0, 1, 5, 20, 90, 100])
def test_rewinding_and_playing_on_gives_the_same_frames(world: World, count: int) -> None:
    session = play(world.session(seed=8), 100)
    expected = session.log()
    frame = session.rewind(count)
    assert session.frame_index == 100 - count
    assert np.array_equal(frame, session.frame)
    assert play(session, count, offset=100 - count).log() == expected


def test_rewinding_before_the_start_is_refused(world: World) -> None:
    session = play(world.session(), 3)
    with pytest.raises(SessionLimitError, match="frames 0 to 3"):
        session.rewind(4)
    assert session.frame_index == 3


def test_replay_is_identical_after_forks_and_rewinds(world: World, tmp_path: Path) -> None:
    session = play(world.session(seed=11, start=1, decoder="strided:4"), 30)
    session.rewind(7)
    session = play(session.fork(), 12, offset=2)
    session.save(tmp_path / "log.json")
    loaded = world.load_session(tmp_path / "log.json")
    assert loaded.log() == session.log()
    assert np.array_equal(loaded.frame, session.frame)


def test_replay_reports_the_first_frame_that_differs(world: World) -> None:
    log = play(world.session(seed=11), 6).log()
    digests = [*log.digests[:3], "0" * 16, *log.digests[4:]]
    assert log.first_difference(digests) == 4
    assert log.first_difference(log.digests) is None
    changed = RolloutLog(**{**log.__dict__, "digests": tuple(digests)})
    session = world.replay_session(changed)
    assert list(session.replay(changed)) == [True, True, True, False, True, True]


def test_actions_come_back_as_they_were_taken(world: World) -> None:
    session = play(world.session(), 4)
    assert session.actions.tolist() == [[1, 0], [0, 1], [0, 0], [1, 1]]


def test_an_action_that_does_not_exist_changes_nothing(world: World) -> None:
    session = play(world.session(), 2)
    before = session.log()
    with pytest.raises(ActionError, match="fly"):
        session.step("fly")
    with pytest.raises(ActionError):
        session.step(np.array([0, 7]))
    assert session.log() == before


def test_old_frames_stay_within_reach(world: World) -> None:
    session = world.session()
    frames = [session.step(ACTIONS[number]) for number in range(4)]
    assert np.array_equal(session.frame_at(2), frames[1])
    with pytest.raises(SessionLimitError, match="does not exist"):
        session.frame_at(5)


def test_memory_of_the_cache_does_not_grow(world: World) -> None:
    session = world.session()
    before = session._cache.num_bytes
    play(session, 120)
    assert session._cache.num_bytes == before


def test_a_log_of_before_there_were_texts_replays(world: World, tmp_path: Path) -> None:
    session = play(world.session(seed=6), 3)
    data = session.log().to_json()
    assert "text_ids" not in data
    del data["sampling"]["text_guidance"], data["sampling"]["context_noise"]
    (tmp_path / "log.json").write_text(json.dumps(data))
    assert world.load_session(tmp_path / "log.json").log() == session.log()


def test_a_log_of_another_world_is_refused(world: World, tmp_path: Path) -> None:
    other = load(tiny_world(tmp_path / "other", seed=1))
    play(world.session(), 2).save(tmp_path / "log.json")
    with pytest.raises(LogError, match="made by world 'tiny'"):
        other.load_session(tmp_path / "log.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: "text", "not a rollout log"),
        (lambda data: data | {"format": "other"}, "not a rollout log"),
        (lambda data: data | {"version": 99}, "version 99"),
        (lambda data: data | {"extra": 1}, "extra"),
        (lambda data: {k: v for k, v in data.items() if k != "seed"}, "seed"),
        (lambda data: data | {"seed": "abc"}, "seed"),
        (lambda data: data | {"digests": data["digests"][:-1]}, "digests"),
        (lambda data: data | {"context_ids": []}, "context frames"),
        (lambda data: data | {"total_hash": "0"}, "changed or cut"),
        (lambda data: data | {"actions": [[0, 9]] * 3}, "ids"),
        (lambda data: data | {"actions": [[3, 0]] * 3}, "actions"),
        (lambda data: data | {"context_ids": [[0] * 63] * 4}, "needs 64 ids"),
    ],
)
def test_a_malformed_log_is_named(world: World, tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    data = play(world.session(), 3).log().to_json()
    path = tmp_path / "log.json"
    path.write_text(json.dumps(change(data)))
    with pytest.raises(LogError, match=message):
        world.load_session(path)


@pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b'{"format": '])
def test_an_unreadable_log_is_named(world: World, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "log.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LogError, match=r"log\.json"):
        world.load_session(path)


def test_wrong_starts_seeds_and_decoders_are_refused(world: World) -> None:
    with pytest.raises(WorldgenError, match="starts 0 to 1"):
        world.session(start=2)
    with pytest.raises(WorldgenError, match="seed"):
        world.session(seed=-1)
    with pytest.raises(WorldgenError, match="spiral"):
        world.session(decoder="spiral")
