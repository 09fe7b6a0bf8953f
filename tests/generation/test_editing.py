"""Videos that are led to a frame, begun earlier, played otherwise from a moment on, or repeated."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import tiny_world
from worldgen.errors import ActionError, ConfigError, LogError, SessionLimitError, WorldgenError
from worldgen.generation import Session, Start
from worldgen.generation.editing import (
    edit,
    extend_backwards,
    first_frame_from,
    interpolate,
    likelihood,
    loop,
)
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import draw
from worldgen.models.conditions import StepConditions
from worldgen.pipeline import World, load

FARTHEST = 6
TEXT_IDS = torch.arange(66) % 9


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    return load(tiny_world(folder, farthest_goal=FARTHEST, text_vocabulary_size=9, sink=1))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(tiny_world(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def goal(world: World) -> torch.Tensor:
    return world.starts[1].visual_ids[0]


def script(count: int) -> list[str]:
    names = ["left", "gas", "right", "nothing", "brake"]
    return [names[number % len(names)] for number in range(count)]


def tokens(session: Session, names: Sequence[str]) -> torch.Tensor:
    return torch.stack([session.action_ids(name) for name in names])


def played(session: Session, names: Sequence[str]) -> list[np.ndarray]:
    frames = []
    for name in names:
        session.step(name)
        frames.append(session.ids)
    return frames


@pytest.mark.parametrize("frames", [1, 4, 9])
def test_frames_between_are_drawn_under_their_goal_once_it_can_be_told(
    world: World, goal: torch.Tensor, frames: int
) -> None:
    session = world.session(seed=4)
    names = script(frames + 1)
    between = interpolate(session, goal, frames, names)
    ids, actions = [*session.start.visual_ids], [*session.start.action_ids]
    distances = [0] * len(actions)
    for number, action in enumerate(tokens(session, names)[:-1]):
        left = frames + 1 - number
        actions.append(action)
        distances.append(left if left <= FARTHEST else 0)
        told = StepConditions(
            goal_ids=goal.expand(1, len(actions), -1), goal_distance=torch.tensor([distances])
        )
        with torch.no_grad():
            null = torch.zeros(1, 66, dtype=torch.int64)
            logits = world.model(torch.stack(ids)[None], torch.stack(actions)[None], told, null)
        uniforms = frame_uniforms([4], [number + 1], 64)
        ids.append(draw(logits[:, -1], uniforms, session.decoder.sampling)[0])
    assert torch.equal(between.ids, torch.stack(ids[4:]))
    assert torch.equal(between.action_ids, tokens(session, names)[:-1])
    assert between.first == 1
    assert between.calls == frames
    assert session.frame_index == 0


def test_what_is_far_from_the_goal_does_not_know_of_it(world: World, goal: torch.Tensor) -> None:
    session = world.session(seed=4)
    other = world.starts[0].visual_ids[0]
    one, two = (interpolate(session, ids, 9, script(10)).ids for ids in (goal, other))
    same = [torch.equal(*pair) for pair in zip(one, two, strict=True)]
    # Frame 4 is 6 before the goal, and the first one that is told; frame 5 is drawn from it.
    assert same == [True] * 4 + [False] * 5


def test_missing_actions_are_rest(world: World, goal: torch.Tensor) -> None:
    session = world.session(seed=4)
    short = interpolate(session, goal, 4, ["left"])
    whole = interpolate(session, goal, 4, ["left", *["nothing"] * 4])
    assert torch.equal(short.ids, whole.ids)


def test_a_loop_begins_with_the_frame_that_it_leads_to(world: World) -> None:
    session = world.session(seed=2)
    session.step("gas")
    names = script(5)
    looped = loop(session, 5, names)
    current = torch.from_numpy(session.ids)
    assert torch.equal(looped.ids[0], current)
    assert torch.equal(looped.ids[1:], interpolate(session, current, 4, names).ids)
    assert torch.equal(looped.action_ids, tokens(session, [names[-1], *names[:-1]]))
    assert looped.first == 1
    assert len(list(looped.frames(world.tokenizer))) == 5


def test_frames_before_a_clip_lead_to_it(world: World) -> None:
    clip = world.starts[1]
    session = world.session(seed=7)
    text = Start(visual_ids=clip.visual_ids[:0], action_ids=clip.action_ids[:0], text_ids=TEXT_IDS)
    candidates = [world.starts[0], text]
    names = script(5)
    longer = extend_backwards(
        world.parts, clip, 5, names, candidates=candidates, seed=7, decoder=session.decoder
    )
    assert torch.equal(longer.visual_ids[5:], clip.visual_ids)
    assert torch.equal(longer.action_ids[5:], clip.action_ids)
    assert torch.equal(longer.action_ids[:5], tokens(session, names))
    # The likeliest way of all, among them that from the clip's own first frame.
    own = Start(visual_ids=clip.visual_ids[:1], action_ids=clip.action_ids[:0])
    ways = []
    for start in (own, *candidates):
        begun = world.session(seed=7, start=start)
        between = interpolate(begun, clip.visual_ids[0], 4, names)
        context = begun.context()
        frames = torch.cat((context.visual_ids, between.ids, clip.visual_ids[:1]))
        actions = torch.cat((context.action_ids, tokens(begun, names)))
        score = by_hand(world, frames, actions, len(context.visual_ids), context.text_ids)
        said = likelihood(
            world.model,
            frames,
            actions,
            context=len(context.visual_ids),
            text_ids=context.text_ids,
        )
        assert said == pytest.approx(score, abs=1e-4)
        ways.append((score, torch.cat((context.visual_ids[-1:], between.ids))))
    best = max(ways, key=lambda way: way[0])[1]
    assert torch.equal(longer.visual_ids[:5], best)


def by_hand(
    world: World,
    frames: torch.Tensor,
    actions: torch.Tensor,
    context: int,
    text_ids: torch.Tensor | None,
) -> float:
    text = torch.zeros(66, dtype=torch.int64) if text_ids is None else text_ids
    with torch.no_grad():
        logits = world.model(frames[None, :-1], actions[None], None, text[None])[0, 1:]
    judged = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), frames[1:].flatten(), reduction="none"
    ).reshape(len(actions), -1)
    return -float(judged[context - 1 :].mean())


@pytest.mark.parametrize("kind", ["session", "log"])
def test_every_frame_before_an_edit_is_identical(plain: World, kind: str) -> None:
    session = plain.session(seed=3)
    before = played(session, script(12))
    source = session if kind == "session" else session.log()
    other = edit(source, 7, plain.parts)
    assert other.frame_index == 7
    assert all(np.array_equal(other.ids_at(number), before[number - 1]) for number in range(1, 8))
    after = played(other, ["right"] * 5)
    anew = plain.session(seed=3)
    assert all(
        map(np.array_equal, played(anew, [*script(12)[:7], *["right"] * 5]), before[:7] + after)
    )
    assert not all(map(np.array_equal, after, before[7:]))
    # The one that it came from goes on as it would have.
    assert session.frame_index == 12
    assert np.array_equal(session.ids, before[-1])


def test_frames_drawn_together_stay_up_to_the_edit(tmp_path: Path) -> None:
    clips = load(tiny_world(tmp_path / "clips", frames_per_step=4))
    session = clips.session(seed=3)
    frames = list(session.play(script(10)))
    other = edit(session, 6)
    for number in range(1, 7):
        assert np.array_equal(other.frame_at(number), frames[number - 1])


def test_seconds_are_frames_that_are_not_before_them() -> None:
    assert first_frame_from(0.0, 20.0) == 0
    assert first_frame_from(1.0, 20.0) == 20
    assert first_frame_from(1.01, 20.0) == 21
    # 0.1 * 3 is a little above 0.3.
    assert first_frame_from(0.1 * 3, 10.0) == 3
    for second in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="0 or more"):
            first_frame_from(second, 20.0)


def test_edits_of_what_is_not_there_are_refused(plain: World, world: World) -> None:
    session = plain.session(seed=3)
    played(session, script(3))
    with pytest.raises(SessionLimitError, match="frame 4 does not exist"):
        edit(session, 4)
    log = session.log()
    with pytest.raises(LogError, match="frames 0 to 3, there is no frame 4"):
        edit(log, 4, plain.parts)
    with pytest.raises(LogError, match="give the world that made it"):
        edit(log, 2, world.parts)
    with pytest.raises(ConfigError, match="parts of its world"):
        edit(log, 2)
    changed = dataclasses.replace(log, digests=(log.digests[0], "0" * 16, log.digests[2]))
    assert edit(changed, 1, plain.parts).frame_index == 1
    with pytest.raises(LogError, match="frame 2 of the log came out different"):
        edit(changed, 2, plain.parts)


def test_what_cannot_be_led_to_a_frame_is_said(
    world: World, plain: World, goal: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="not trained to reach goals; train one"):
        interpolate(plain.session(), goal, 3, [])
    session = world.session()
    with pytest.raises(ActionError, match="at least 1 is made, got 0"):
        interpolate(session, goal, 0, [])
    with pytest.raises(ActionError, match="there are 4 steps to take"):
        interpolate(session, goal, 3, script(5))
    with pytest.raises(ActionError, match="there is no action 'fly'"):
        interpolate(session, goal, 3, ["fly"])
    with pytest.raises(ActionError, match="at least 2 frames, got 1"):
        loop(session, 1, [])
    with pytest.raises(WorldgenError, match="64 tokens"):
        interpolate(session, goal[:63], 3, [])
    empty = Start(visual_ids=goal[None][:0], action_ids=torch.empty((0, 2), dtype=torch.int64))
    for clip, frames, message in ((empty, 3, "clip has none"), (world.starts[0], 1, "at least 2")):
        with pytest.raises(WorldgenError, match=message):
            extend_backwards(world.parts, clip, frames, [], seed=0, decoder=session.decoder)
    clips = load(tiny_world(tmp_path / "clips", frames_per_step=4, farthest_goal=2))
    with pytest.raises(ConfigError, match="draws 4 frames together"):
        interpolate(clips.session(), goal, 3, [])
