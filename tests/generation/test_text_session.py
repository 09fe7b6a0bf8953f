"""Sessions that begin with a text, recall earlier frames and tell how spoilt a frame may be.

Each is held against whole passes over the clip, and against a session played afresh.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import tiny_world
from worldgen.errors import ActionError, ConfigError, LogError, SessionLimitError
from worldgen.generation import SamplingConfig, Session, Start, WithDraftModel
from worldgen.generation.batch import advance_together
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import draw
from worldgen.generation.told import Told
from worldgen.models.conditions import StepConditions
from worldgen.models.next_frame import NextFrameTransformer
from worldgen.models.recall import find_recalled
from worldgen.pipeline import World, load

pytestmark = pytest.mark.filterwarnings("ignore:.*was not trained for decoder")
ACTIONS = ["left", "gas", "nothing", "left+gas", "brake", "right"]
NOTHING = Start(
    visual_ids=torch.zeros(0, 64, dtype=torch.int64),
    action_ids=torch.zeros(0, 2, dtype=torch.int64),
)
GREEDY = SamplingConfig(temperature=0.0, context_noise=2)
"""With few codes to choose from, greedy frames soon look like each other: some are recalled."""


def told_world(folder: Path) -> World:
    return load(tiny_world(folder, text_vocabulary_size=20, sink=2, recall_after=2, noise_levels=4))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = told_world(tmp_path_factory.mktemp("world"))
    with torch.no_grad():
        world.model.readout.weight[3:] = 0.0
    return world


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(tiny_world(tmp_path_factory.mktemp("plain")))


def sentence(seed: int) -> torch.Tensor:
    ids = torch.zeros(66, dtype=torch.int64)
    ids[:5] = torch.randint(1, 20, (5,), generator=torch.Generator().manual_seed(seed))
    return ids


def start_of(world: World, frames: int, text: int | None) -> Start:
    given = world.starts[0]
    return Start(
        visual_ids=given.visual_ids[:frames],
        action_ids=given.action_ids[: max(frames - 1, 0)],
        text_ids=None if text is None else sentence(text),
    )


def play(session: Session, count: int, offset: int = 0) -> Session:
    for number in range(offset, offset + count):
        session.step(ACTIONS[number % len(ACTIONS)])
    return session


@torch.no_grad()
def generate_without_cache(session: Session) -> Iterator[np.ndarray]:
    """Yield the ids of every drawn frame, each from a fresh pass over text and whole clip."""
    model, log = session.parts.model, session.log()
    assert isinstance(model, NextFrameTransformer)
    text = torch.tensor(log.text_ids or (0,) * 66)[None]
    frames, actions = list(log.context_ids), [*log.context_actions, *log.actions]
    num_given, sampling = len(frames), log.sampling
    for number in range(1 if frames else 0, len(log.actions) + 1):
        seen = len(frames)
        ids = np.array(frames, dtype=np.uint16).reshape(seen, 64)
        recalled = [find_recalled(ids[:stop], after=2) for stop in range(1, seen + 1)]
        noise = [0 if frame < num_given else sampling.context_noise for frame in range(seen)]
        conditions = StepConditions(
            recalled_ids=torch.from_numpy(np.array(recalled).reshape(1, seen, 3, 64)).long(),
            noise_level=torch.tensor(noise, dtype=torch.int64)[None],
        )
        hidden = model.encode_steps(
            torch.tensor(frames, dtype=torch.int64).reshape(1, seen, 64),
            torch.tensor(actions[:seen], dtype=torch.int64).reshape(1, seen, 2),
            conditions,
            text,
        )[:, -1]
        uniforms = frame_uniforms([session.seed], [number], 64)
        drawn = draw(model.read(hidden), uniforms, sampling)[0]
        frames.append(tuple(drawn.tolist()))
        yield drawn.numpy()


@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(context_noise=3)])
@pytest.mark.parametrize(("frames", "text"), [(0, 7), (0, None), (1, 7), (4, 7), (4, None)])
def test_frames_equal_recomputation_without_a_cache(
    world: World, frames: int, text: int | None, sampling: SamplingConfig
) -> None:
    start = start_of(world, frames, text)
    session = play(world.session(seed=5, start=start, sampling=sampling), 8)
    first = 1 if frames else 0
    for number, ids in enumerate(generate_without_cache(session), start=first):
        assert np.array_equal(session.ids_at(number), ids)


@pytest.mark.parametrize(("frames", "text"), [(0, 7), (4, None)])
def test_frames_that_were_drawn_are_recalled(world: World, frames: int, text: int | None) -> None:
    session = world.session(seed=5, start=start_of(world, frames, text), sampling=GREEDY)
    recalled = 0
    for number in range(8):
        turn = session.turn(torch.tensor([[0, 3]]))
        assert turn is not None
        assert turn.conditions is not None
        assert turn.conditions.recalled_ids is not None
        recalled += bool((turn.conditions.recalled_ids >= 0).all())
        play(session, 1, number)
    assert recalled > 2


def test_texts_and_noise_levels_change_what_is_drawn(tmp_path: Path) -> None:
    world = told_world(tmp_path / "world")

    def digests(text: int | None, noise: int = 0) -> tuple[str, ...]:
        sampling = SamplingConfig(temperature=0.0, context_noise=noise)
        session = world.session(start=start_of(world, 0, text), sampling=sampling)
        return play(session, 3).log().digests

    assert len({digests(7), digests(8), digests(None), digests(7, noise=2)}) == 4


def test_the_frame_seen_before_is_recalled_between_its_neighbours(world: World) -> None:
    given = start_of(world, 4, 7)
    again = torch.cat((given.visual_ids[:1], given.visual_ids[1:3], given.visual_ids[:1]))
    repeated = replace(given, visual_ids=again)
    session = world.session(start=repeated, sampling=GREEDY)
    told = session.turn(torch.tensor([[0, 3]])).conditions  # type: ignore[union-attr]
    assert told is not None
    assert told.recalled_ids is not None
    assert torch.equal(told.recalled_ids[0, 0], again[[0, 0, 1]])


def test_the_first_frame_is_drawn_from_the_text_and_is_frame_0(world: World) -> None:
    session = world.session(seed=3, start=start_of(world, 0, 7))
    assert session.frame_index == 0
    assert session.frame.shape == (64, 64, 3)
    assert session.calls == 1
    first = session.ids
    play(session, 90)
    session.rewind(90)
    assert np.array_equal(session.ids, first)
    with pytest.raises(SessionLimitError, match="frames 1 to 0"):
        session.action_at(0)
    assert not np.array_equal(world.session(seed=4, start=start_of(world, 0, 7)).ids, first)


@pytest.mark.parametrize("frames", [0, 4])
def test_forks_and_rewinds_of_any_length_go_on_as_if_played_afresh(
    world: World, frames: int
) -> None:
    start = start_of(world, frames, 7)
    session = play(world.session(seed=8, start=start, sampling=GREEDY), 90)
    expected = session.log()
    for count in (20, 90):
        fork = session.fork()
        fork.rewind(count)
        assert play(fork, count, offset=90 - count).log() == expected
    assert session.log() == expected


def test_logs_hold_the_text_and_replay(world: World, tmp_path: Path) -> None:
    for frames, text in ((0, 7), (0, None), (3, 7)):
        start = start_of(world, frames, text)
        session = play(world.session(seed=2, start=start, sampling=GREEDY), 5)
        session.save(tmp_path / "log.json")
        written = json.loads((tmp_path / "log.json").read_text())
        assert ("text_ids" in written) == (text is not None)
        loaded = world.load_session(tmp_path / "log.json")
        assert loaded.log() == session.log()
        assert np.array_equal(loaded.frame_at(0), session.frame_at(0))


def test_a_session_that_looked_ahead_shows_the_same(world: World) -> None:
    start = start_of(world, 0, 7)
    expected = play(world.session(start=start, sampling=GREEDY), 12).log()
    session = world.session(start=start, sampling=GREEDY)
    for number in range(12):
        session.look_ahead(ACTIONS[(number + number % 2) % 6])
        session.step(ACTIONS[number % 6])
    assert session.log() == expected


def test_sessions_with_different_texts_advance_together(world: World) -> None:
    starts = [start_of(world, frames, text) for frames, text in ((0, 1), (0, 2), (3, 3), (1, 4))]
    together = [world.session(seed=n, start=start) for n, start in enumerate(starts)]
    alone = [session.fork() for session in together]
    tokenizer = world.action_tokenizer
    for number in range(10):
        action = tokenizer.schema.action({"steering": ("left", "right")[number % 2]})
        known = torch.from_numpy(tokenizer.encode(action))[None]
        advance_together(together, [known] * len(starts))
        for session in alone:
            session.advance(known[0])
    assert [a.log() for a in together] == [b.log() for b in alone]


def test_sessions_led_by_text_replay(world: World, tmp_path: Path) -> None:
    sampling = SamplingConfig(text_guidance=2.0, guidance=1.0)
    start = start_of(world, 0, 7)
    session = play(world.session(seed=4, start=start, sampling=sampling), 12)
    expected = session.log()
    session.rewind(7)
    assert play(session, 7, offset=5).log() == expected
    session.save(tmp_path / "log.json")
    assert world.load_session(tmp_path / "log.json").log() == expected
    unled = play(world.session(seed=4, start=start), 12)
    assert unled.log().digests != expected.digests
    # The null prompt is led away from itself: nothing changes.
    without = play(world.session(seed=4, start=NOTHING), 3).log().digests
    led = SamplingConfig(text_guidance=2.0)
    assert play(world.session(seed=4, start=NOTHING, sampling=led), 3).log().digests == without


def test_draft_models_read_the_text_too(world: World) -> None:
    parts = replace(world.parts, model=WithDraftModel(world.model, world.model))
    paired = replace(world, parts=parts)
    start = start_of(world, 0, 7)
    for decoder in ("speculative:whole_frame", "raster"):
        session = play(paired.session(start=start, decoder=decoder), 3)
        assert session.log().digests == (
            play(world.session(start=start, decoder="raster"), 3).log().digests
        )
    session = play(paired.session(start=start), 75)
    expected = session.log()
    session.rewind(73)
    assert play(session, 73, offset=2).log() == expected


def test_a_draft_model_must_be_told_the_same(world: World, plain: World) -> None:
    with pytest.raises(ConfigError, match="text vocabulary size 20 against 0"):
        WithDraftModel(world.model, plain.model)


def test_what_a_world_does_not_read_is_refused(world: World, plain: World) -> None:
    given = plain.starts[0]
    with pytest.raises(ConfigError, match="reads no text"):
        plain.session(start=replace(given, text_ids=sentence(1)))
    with pytest.raises(ConfigError, match="at least 1 frame"):
        plain.session(start=NOTHING)
    with pytest.raises(ConfigError, match=r"text_guidance is 1\.0"):
        plain.session(sampling=SamplingConfig(text_guidance=1.0))
    with pytest.raises(ConfigError, match="no noise levels"):
        plain.session(sampling=SamplingConfig(context_noise=1))
    with pytest.raises(ConfigError, match="levels 0 to 3"):
        world.session(sampling=SamplingConfig(context_noise=4))
    with pytest.raises(ConfigError, match="66 ids"):
        world.session(start=replace(NOTHING, text_ids=torch.zeros(5, dtype=torch.int64)))
    with pytest.raises(ConfigError, match=r"0 \.\.\. 19 in this world, got 0 to 20"):
        world.session(
            start=replace(NOTHING, text_ids=sentence(1).clamp(max=0) + 20 * (sentence(1) > 0))
        )
    with pytest.raises(ActionError, match="actions of one step"):
        replace(NOTHING, action_ids=torch.zeros(1, 2, dtype=torch.int64))


def test_a_log_whose_text_does_not_fit_is_named(world: World, plain: World, tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    log = play(world.session(start=start_of(world, 2, 7)), 2).log()
    for text in ((1,) * 5, (99,) * 66):
        replace(log, text_ids=text).write(path)
        with pytest.raises(LogError, match="log's text does not fit"):
            world.load_session(path)
    log = play(plain.session(), 2).log()
    replace(log, text_ids=tuple(sentence(1).tolist())).write(path)
    with pytest.raises(LogError, match="reads no text"):
        plain.load_session(path)
    replace(log, context_ids=(), context_actions=()).write(path)
    with pytest.raises(LogError, match="reads no text"):
        plain.load_session(path)


def test_other_families_are_told_nothing(plain: World) -> None:
    assert Told.of(plain.model) == Told()
    assert Told().conditions(np.zeros((3, 64), np.uint16)) is None
