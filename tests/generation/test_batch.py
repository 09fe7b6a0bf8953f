"""Sessions that advance in any company draw the very ids that they draw alone."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import tiny_world
from worldgen.generation import SamplingConfig, Session
from worldgen.generation.batch import advance_together, batches_exactly, draw_together
from worldgen.generation.scheduled import ScheduleDecoder
from worldgen.generation.turns import CacheRows, draw_grids
from worldgen.models.next_frame import NextFrameTransformer
from worldgen.pipeline import World, load, shipped_worlds


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(tiny_world(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that draws four frames at a time."""
    return load(tiny_world(tmp_path_factory.mktemp("world"), frames_per_step=4))


def action(number: int) -> torch.Tensor:
    return torch.tensor([[number % 3, 3 + number // 3 % 3]])


def replays(session: Session, world: World) -> bool:
    """Whether the log of a session, played alone, gives its frames."""
    log = session.log()
    again = world.replay_session(log)
    return all(again.replay(log)) and np.array_equal(again.frame, session.frame)


def test_random_companies_give_what_each_session_gives_alone(world: World) -> None:
    """They join and leave, fork, rewind and look ahead between the frames."""
    choices = random.Random(0)
    decoders = ["whole_frame", "whole_frame", "strided:4", "diagonal"]
    sessions: list[Session] = []
    gone: list[Session] = []
    for _ in range(60):
        what = choices.choice(["join", "leave", "fork", "rewind", "ahead"] + 6 * ["step"])
        session = choices.choice(sessions) if sessions else None
        if session is None or (what == "join" and len(sessions) < 10):
            name, seed = choices.choice(decoders), choices.randrange(100)
            sessions.append(world.session(seed=seed, start=seed % 2, decoder=name))
        elif what == "leave" and len(sessions) > 3:
            sessions.remove(session)
            gone.append(session)
        elif what == "fork" and len(sessions) < 10:
            sessions.append(session.fork())
        elif what == "rewind":
            session.rewind(choices.randint(0, min(3, session.frame_index)))
        elif what == "ahead":
            session.look_ahead(np.array([choices.randrange(2), 0]))
        elif what == "step":
            company = choices.sample(sessions, choices.randint(1, len(sessions)))
            advance_together(company, [action(choices.randrange(2)) for _ in company])
    played = [session for session in sessions + gone if session.frame_index]
    assert len(played) > 5
    assert all(replays(session, world) for session in played)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_worlds())
def test_shipped_worlds_replay_alone_what_was_played_in_company(name: str) -> None:
    world, choices = load(name), random.Random(3)
    known = [ids[None] for start in world.starts for ids in start.action_ids]
    sessions = [world.session(seed=seed, start=seed % len(world.starts)) for seed in range(5)]
    for _ in range(16):
        company = choices.sample(sessions, choices.randint(1, 5))
        advance_together(company, [choices.choice(known) for _ in company])
    assert all(replays(session, world) for session in sessions)


def test_grids_of_several_frames_are_drawn_together_too(clips: World) -> None:
    choices = random.Random(1)
    sessions = [clips.session(seed=seed, start=seed % 2) for seed in range(4)]
    for frame in range(14):
        company = choices.sample(sessions, 3)
        if frame == 6:
            company[0].look_ahead("left")
        advance_together(company, [action(choices.randrange(9)) for _ in company])
        if frame == 8:
            company[1].rewind(company[1].frame_index // 2)
    assert all(replays(session, clips) for session in sessions)


def test_guided_sequences_are_rows_of_a_batch_with_all_their_branches(world: World) -> None:
    session = world.session(seed=3, sampling=SamplingConfig(guidance=2.0))
    forks = [session.fork() for _ in range(3)]
    for number, fork in enumerate(forks):
        for step in range(4):
            fork.advance(action(number + step)[0])
    turns = [fork.turn(action(number)) for number, fork in enumerate(forks)]
    given = [turn for turn in turns if turn is not None]
    assert len({turn.company for turn in given}) == 1
    assert given[0].company is not None
    together = draw_grids(given)
    for fork, turn, drawn in zip(forks, given, together, strict=True):
        fork.take(turn, drawn)
    anew = [session.fork() for _ in range(3)]
    for number, (fork, other) in enumerate(zip(forks, anew, strict=True)):
        for step in range(4):
            other.advance(action(number + step)[0])
        other.advance(action(number)[0])
        assert np.array_equal(fork.ids, other.ids)
        # What is remembered of it, too.
        fork.step("left")
        other.step("left")
        assert np.array_equal(fork.ids, other.ids)


def test_batches_are_used_where_they_change_no_bit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [world.session(seed=seed) for seed in range(3)]
    known = [action(seed) for seed in range(3)]
    exact = batches_exactly(sessions, known)
    assert [session.frame_index for session in sessions] == [0, 0, 0]
    sizes = rows_of_each_call(monkeypatch)
    advance_together(sessions, known)
    assert sizes == ([3] if exact else [1, 1, 1])


def test_rows_that_come_out_otherwise_in_a_batch_are_drawn_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = load(tiny_world(tmp_path / "other", seed=3))
    read = NextFrameTransformer.read

    def rounded(model: NextFrameTransformer, hidden: torch.Tensor) -> torch.Tensor:
        # As a kernel for many rows may do.
        return read(model, hidden) + (1e-6 if len(hidden) > 1 else 0.0)

    monkeypatch.setattr(NextFrameTransformer, "read", rounded)
    sessions = [world.session(seed=seed) for seed in range(2)]
    assert not batches_exactly(sessions, [action(0)] * 2)
    sizes = rows_of_each_call(monkeypatch)
    advance_together(sessions, [action(0)] * 2)
    assert sizes == [1, 1]
    assert all(replays(session, world) for session in sessions)


def test_decoders_whose_questions_depend_on_what_they_drew_stay_alone(world: World) -> None:
    sessions = [world.session(seed=seed, decoder="jacobi") for seed in range(2)]
    assert not batches_exactly(sessions, [action(0)] * 2)


@pytest.mark.parametrize("at", ["observe", "draw"])
def test_a_batch_that_fails_leaves_everybody_where_he_was(
    world: World, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [world.session(seed=seed) for seed in range(3)]
    advance_together(sessions, [action(seed) for seed in range(3)])
    known = [action(seed) for seed in range(3)]
    with monkeypatch.context() as broken:
        if at == "observe":
            broken.setattr(NextFrameTransformer, "read", lambda *_: 1 / 0)
        else:
            broken.setattr(ScheduleDecoder, "draw_frame", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            advance_together(sessions, known)
    assert [session.frame_index for session in sessions] == [1, 1, 1]
    advance_together(sessions[:2], [action(4)] * 2)
    assert all(replays(session, world) for session in sessions)


def test_play_with_and_without_looking_ahead_is_the_same(world: World, clips: World) -> None:
    for of in (world, clips):
        choices = random.Random(2)
        plain, guessing = of.session(seed=4), of.session(seed=4)
        others: list[tuple[Session, Session]] = []
        for _ in range(60):
            what = choices.choice(["fork", "switch", "rewind", "policy"] + 6 * ["step"])
            if choices.random() < 0.7:
                guessing.look_ahead(np.array([choices.randrange(2), 0]))
            if what == "fork" and len(others) < 4:
                others.append((plain.fork(), guessing.fork()))
            elif what == "switch" and others:
                others.append((plain, guessing))
                plain, guessing = others.pop(choices.randrange(len(others) - 1))
            elif what == "rewind":
                count = choices.randint(0, min(5, plain.frame_index))
                assert np.array_equal(plain.rewind(count), guessing.rewind(count))
            else:
                taken = np.array([choices.randrange(2), 0])
                assert np.array_equal(plain.step(taken), guessing.step(taken))
            assert np.array_equal(plain.frame, guessing.frame)
            past = choices.randint(0, plain.frame_index)
            assert np.array_equal(plain.frame_at(past), guessing.frame_at(past))
        for one, other in [*others, (plain, guessing)]:
            assert one.log() == other.log()


def test_a_frame_that_was_foreseen_is_not_drawn_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = world.session(seed=1)
    sizes = rows_of_each_call(monkeypatch)
    assert session.look_ahead("left")
    assert not session.look_ahead("left")
    assert (sizes, session.frame_index) == ([1], 0)
    fork = session.fork()
    session.step("left")
    fork.step("left")
    assert sizes == [1]
    session.look_ahead("left")
    session.step("right")
    assert sizes == [1, 1, 1]
    fork.step("right")
    assert session.log() == fork.log()


def test_rows_of_caches_show_each_its_own_time(world: World) -> None:
    sessions = [world.session(), world.session(start=1)]
    sessions[1].step("left")
    caches = [session.turn(action(0)).cache for session in sessions]  # type: ignore[union-attr]
    assert CacheRows(caches).frame_numbers.tolist() == [3, 4]


def test_who_does_not_mind_how_a_batch_is_rounded_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = load(tiny_world(tmp_path / "other", seed=4))
    read = NextFrameTransformer.read

    def rounded(model: NextFrameTransformer, hidden: torch.Tensor) -> torch.Tensor:
        return read(model, hidden) + (1e-6 if len(hidden) > 1 else 0.0)

    monkeypatch.setattr(NextFrameTransformer, "read", rounded)
    turns = [world.session(seed=seed).turn(action(seed)) for seed in range(3)]
    sizes = rows_of_each_call(monkeypatch)
    drawn = draw_together([turn for turn in turns if turn is not None], exactly=False)
    assert sizes == [3]
    assert [each.rows for each in drawn] == [3, 3, 3]


def rows_of_each_call(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the rows of each call of `observe`."""
    sizes: list[int] = []
    observe: Callable[..., object] = NextFrameTransformer.observe

    def counted(model: NextFrameTransformer, cache: object, *rows: torch.Tensor) -> object:
        sizes.append(len(rows[0]))
        return observe(model, cache, *rows)

    monkeypatch.setattr(NextFrameTransformer, "observe", counted)
    return sizes
