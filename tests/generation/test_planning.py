"""A plan and its gaps are what each key frame and each gap gives alone, one step after the other."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import tiny_model_config, tiny_world
from worldgen.errors import ActionError, ConfigError
from worldgen.generation import SamplingConfig, Session, Start
from worldgen.generation import planning as planning_module
from worldgen.generation.decoding import make_decoder
from worldgen.generation.planning import Segment, plan_then_fill
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import draw
from worldgen.generation.session import SessionParts
from worldgen.models.conditions import StepConditions
from worldgen.models.next_frame import NextFrameTransformer
from worldgen.pipeline import World, load

STRIDE = 4
ACTIONS = ["left", "gas", "right", "nothing", "brake", "left", "gas"]
TEXT_TOKENS = 2 + 64


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(tiny_world(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def parts(world: World) -> SessionParts:
    return told_parts(world)


def told_parts(world: World, **changes: int | tuple[int, ...]) -> SessionParts:
    """Return the world with a model that jumps and has goals, none of whose weights is zero."""
    sizes = {"longest_jump": STRIDE, "farthest_goal": 6} | changes
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = NextFrameTransformer(tiny_model_config(**sizes))
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
    return dataclasses.replace(world.parts, model=model)


def new_session(
    parts: SessionParts,
    start: Start,
    *,
    seed: int = 3,
    decoder: str = "whole_frame",
    guidance: float = 0.0,
    text_guidance: float = 0.0,
) -> Session:
    sampling = SamplingConfig(guidance=guidance, text_guidance=text_guidance)
    made = make_decoder(decoder, parts.model.layout, sampling)
    return Session(parts, start, seed=seed, decoder=made)


def script(count: int, shift: int = 0) -> list[str]:
    return [ACTIONS[(number + shift) % len(ACTIONS)] for number in range(count)]


def made(segments: Sequence[Segment]) -> torch.Tensor:
    return torch.cat([segment.ids for segment in segments])


def planned(session: Session, actions: Sequence[str], **options: object) -> torch.Tensor:
    return made(list(plan_then_fill(session, actions, **options)))  # type: ignore[arg-type]


def drawn_alone(
    session: Session,
    frames: Sequence[torch.Tensor],
    actions: Sequence[torch.Tensor],
    conditions: StepConditions,
    number: int,
) -> torch.Tensor:
    """Draw one frame from a pass over a whole sequence, without any cache."""
    model = session.parts.model
    assert isinstance(model, NextFrameTransformer)
    text_ids = session.start.text_ids
    with torch.no_grad():
        logits = model(
            torch.stack(list(frames))[None],
            torch.stack(list(actions))[None],
            conditions,
            None if text_ids is None else text_ids[None],
        )[:, -1]
    uniforms = frame_uniforms([session.seed], [number], 64)
    return draw(logits, uniforms, session.decoder.sampling)[0]


def oracle(session: Session, names: Sequence[str], count: int) -> torch.Tensor:
    """Plan and fill by hand: every frame from the whole sequence that it is to see."""
    actions = torch.stack([session.action_ids(name) for name in names])
    filled = torch.cat((actions, actions[-1:].expand(-len(actions) % STRIDE, -1)))
    start = session.start
    texts = int(start.text_ids is not None)
    context = [*start.visual_ids] or [torch.from_numpy(session.ids)]
    last = len(context) - 1
    taken = torch.cat((start.action_ids, filled))
    key_places = [*range(last % STRIDE, last + 1, STRIDE)]
    keys = [context[place] for place in key_places]
    frames: list[torch.Tensor] = []
    for number in range(0, len(filled), STRIDE):
        later = torch.stack([taken[place + 1 : place + STRIDE] for place in key_places])
        times = torch.tensor([key_places]) + texts
        own = [taken[place] for place in key_places]
        jumps = StepConditions(times=times, later_actions=later[None])
        goal = drawn_alone(session, keys, own, jumps, number + STRIDE)
        gap = [keys[-1]]
        for frame in range(STRIDE - 1):
            places = torch.tensor([[key_places[-1] + each for each in range(frame + 1)]])
            before = len(keys) - 1
            distance = torch.tensor([[0] * before + [STRIDE - each for each in range(frame + 1)]])
            none = torch.full((frame + 1, STRIDE - 1, 2), -1)
            told = StepConditions(
                times=torch.cat((times[:, :-1], places + texts), dim=1),
                later_actions=torch.cat((later[:-1], none))[None],
                goal_ids=goal.expand(1, before + frame + 1, -1),
                goal_distance=distance,
            )
            steps = [*own[:-1], *(taken[place] for place in places[0].tolist())]
            gap.append(drawn_alone(session, [*keys[:-1], *gap], steps, told, number + frame + 1))
        frames += [*gap[1:], goal]
        keys.append(goal)
        key_places.append(key_places[-1] + STRIDE)
    return torch.stack(frames[:count])


@pytest.mark.parametrize("context", [1, 4])
def test_a_plan_is_what_every_frame_gives_alone(
    world: World, parts: SessionParts, context: int
) -> None:
    start = world.starts[0]
    cut = Start(visual_ids=start.visual_ids[-context:], action_ids=start.action_ids[4 - context :])
    session = new_session(parts, cut)
    names = script(22)
    assert torch.equal(planned(session, names, segment=3), oracle(session, names, 22))


def test_a_plan_behind_a_text_is_what_every_frame_gives_alone(world: World) -> None:
    parts = told_parts(world, text_vocabulary_size=9, sink=1)
    text_ids = torch.arange(TEXT_TOKENS) % 9
    empty = Start(
        visual_ids=torch.empty((0, 64), dtype=torch.int64),
        action_ids=torch.empty((0, 2), dtype=torch.int64),
        text_ids=text_ids,
    )
    names = script(9)
    for start in (empty, dataclasses.replace(world.starts[1], text_ids=text_ids)):
        session = new_session(parts, start)
        assert torch.equal(planned(session, names), oracle(session, names, 9))


@pytest.mark.parametrize("decoder", ["whole_frame", "strided:4"])
def test_segments_and_devices_change_nothing(
    world: World, parts: SessionParts, decoder: str
) -> None:
    session = new_session(parts, world.starts[0], decoder=decoder)
    names = script(22)
    expected = planned(session, names, segment=1)
    for segment in (2, 8):
        assert torch.equal(planned(session, names, segment=segment), expected)
    devices = ["cpu", "cpu"]
    assert torch.equal(planned(session, names, segment=5, devices=devices), expected)
    assert session.frame_index == 0


def test_guided_gaps_are_filled_at_once_too(world: World) -> None:
    """Each remembered in several branches: with and without its actions, with and without text."""
    parts = told_parts(world, text_vocabulary_size=9, sink=1)
    start = dataclasses.replace(world.starts[0], text_ids=torch.arange(TEXT_TOKENS) % 9)
    session = new_session(parts, start, guidance=1.5, text_guidance=0.5)
    names = script(16)
    alone = planned(session, names, segment=1, devices=["cpu", "cpu"])
    assert torch.equal(planned(session, names), alone)
    for less in (
        new_session(parts, start, guidance=1.5),
        new_session(parts, start, text_guidance=0.5),
    ):
        assert not torch.equal(planned(less, names[:8]), alone[:8])


def test_a_plan_goes_on_from_any_frame_of_a_session(world: World, parts: SessionParts) -> None:
    session = new_session(parts, world.starts[0])
    list(session.play(script(5)))
    segments = list(plan_then_fill(session, script(8, 5), segment=1))
    assert [segment.first for segment in segments] == [6, 10]
    # All frames so far are its context, and random numbers are those of the frames' own numbers.
    assert not torch.equal(made(segments), planned(session, script(8, 5), stride=2))
    session.step("brake")
    assert torch.equal(segments[0].ids, oracle_from(world, parts))


def oracle_from(world: World, parts: SessionParts) -> torch.Tensor:
    session = new_session(parts, world.starts[0])
    list(session.play(script(5)))
    return next(plan_then_fill(session, script(4, 5))).ids


def test_segments_tell_frames_actions_and_calls(world: World, parts: SessionParts) -> None:
    session = new_session(parts, world.starts[0])
    names = script(30)
    segments = list(plan_then_fill(session, names, segment=5))
    assert [len(segment.ids) for segment in segments] == [20, 10]
    assert [segment.first for segment in segments] == [1, 21]
    tokens = torch.stack([session.action_ids(name) for name in names])
    assert torch.equal(torch.cat([segment.action_ids for segment in segments]), tokens)
    assert segments[0].key_ids is not None
    assert torch.equal(segments[0].key_ids, segments[0].ids[STRIDE - 1 :: STRIDE])
    frames = list(segments[1].frames(parts.visual_tokenizer))
    assert len(frames) == 10
    assert frames[0].shape == (64, 64, 3)
    # Shown by a session, a frame of the same ids looks the same.
    shown = new_session(parts, Start(visual_ids=segments[1].ids[:1], action_ids=tokens[:0]))
    assert np.array_equal(frames[0], shown.frame)


def test_gaps_of_a_segment_take_the_calls_of_one(world: World, parts: SessionParts) -> None:
    """Where a batch changes no bit; and once as many key frames are there as layers see."""
    session = new_session(parts, world.starts[0])
    seen = 5
    segments = list(plan_then_fill(session, script(STRIDE * (seen + 8)), segment=seen + 8))
    alone = list(plan_then_fill(session, script(STRIDE * 4), segment=4, devices=["cpu"] * 4))
    # Every gap on a device of its own: the four jumps, and the frames of one gap.
    assert alone[0].calls == 4 + STRIDE - 1
    jumps = seen + 8
    most = jumps + jumps * (STRIDE - 1)
    assert jumps + STRIDE - 1 <= segments[0].calls <= most


def test_actions_change_nothing_before_their_gap_and_something_behind(
    world: World, parts: SessionParts
) -> None:
    session = new_session(parts, world.starts[0])
    names = script(24)
    changed = list(names)
    changed[14] = "right" if names[14] != "right" else "left"
    before, after = planned(session, names), planned(session, changed)
    same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    # Frame 15 is the first one that the action leads to, the third of its gap.
    assert all(same[:12])
    assert not same[14]
    assert not same[15]
    rest = planned(session, names[:12])
    assert torch.equal(rest, before[:12])


def test_segments_that_were_made_are_gone_on_from(world: World, parts: SessionParts) -> None:
    """Exactly, however much of what was made nobody sees any more."""
    names = script(40)
    for changes in ({}, {"sink": 2}):
        told = told_parts(world, **changes) if changes else parts
        session = new_session(told, world.starts[0])
        segments = list(plan_then_fill(session, names, segment=3))
        keys = [segment.key_ids for segment in segments if segment.key_ids is not None]
        for done in (1, 3):
            rest = plan_then_fill(
                session, names, segment=3, known_key_frames=torch.cat(keys[:done])
            )
            again = list(rest)
            assert again[0].first == segments[done].first
            assert torch.equal(made(again), made(segments[done:]))
    with pytest.raises(ConfigError, match="of whole segments: 3 in the last one, got 1"):
        list(plan_then_fill(session, names, segment=3, known_key_frames=keys[0][:1]))


def test_actions_are_asked_for_a_segment_at_a_time(world: World, parts: SessionParts) -> None:
    asked = 0

    def counted() -> Iterator[str]:
        nonlocal asked
        while True:
            asked += 1
            yield "gas"

    session = new_session(parts, world.starts[0])
    segments = plan_then_fill(session, counted(), segment=2)
    next(segments)
    assert asked == 8
    next(segments)
    assert asked == 16


def test_what_a_model_cannot_do_is_said(world: World, parts: SessionParts, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not trained to plan and fill; train one"):
        plan_then_fill(world.session(), script(4))
    session = new_session(parts, world.starts[0])
    for stride in (1, 5):
        with pytest.raises(ConfigError, match=r"stride must lie in 2 \.\.\. 4"):
            plan_then_fill(session, script(4), stride=stride)
    with pytest.raises(ConfigError, match="at least 1 gap, got 0"):
        plan_then_fill(session, script(4), segment=0)
    with pytest.raises(ActionError, match="there is no action 'fly'"):
        list(plan_then_fill(session, ["left", "fly"]))
    clips = load(tiny_world(tmp_path / "clips", frames_per_step=4))
    together = told_parts(clips, frames_per_step=4, num_action_tokens=8)
    with pytest.raises(ConfigError, match="draws 4 frames together"):
        plan_then_fill(new_session(together, clips.starts[0]), script(4))


def test_rows_that_a_batch_would_change_are_drawn_one_by_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = told_parts(world)
    session = new_session(parts, world.starts[0])
    names = script(32)
    expected = planned(session, names, segment=1)
    calls = next(plan_then_fill(session, names)).calls
    read = NextFrameTransformer.read

    def rounded(model: NextFrameTransformer, hidden: torch.Tensor) -> torch.Tensor:
        # As a kernel for many rows may do.
        return read(model, hidden) + (torch.rand(64) if len(hidden) > 1 else 0.0)

    monkeypatch.setattr(NextFrameTransformer, "read", rounded)
    other = told_parts(world)
    segments = list(plan_then_fill(new_session(other, world.starts[0]), names))
    assert torch.equal(made(segments), expected)
    assert segments[0].calls == 8 + 8 * (STRIDE - 1) >= calls


def test_a_copy_of_a_model_is_made_for_each_device(world: World, parts: SessionParts) -> None:
    copied = planning_module._copy(new_session(parts, world.starts[0], guidance=1.0).model, "cpu")
    names = {name for name, _ in parts.model.named_parameters()}  # type: ignore[attr-defined]
    inner = copied.inner  # type: ignore[attr-defined]
    assert {name for name, _ in inner.named_parameters()} == names
    assert inner is not parts.model
