"""MineWorld's decoding: the numbers of its own code, call by call; and what ours shares with it."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.factories import tiny_model_config
from tests.reference_cases import Case, reference_cases
from worldgen.errors import ActionError, ConfigError
from worldgen.generation import SamplingConfig, Session, Start, make_decoder
from worldgen.generation.mineworld import (
    MineWorldMemory,
    MineWorldSession,
    draw_frames,
    mineworld_sampling,
)
from worldgen.generation.mineworld_calls import (
    Call,
    clip_calls,
    context_call,
    live_calls,
    live_frame_calls,
    video_calls,
)
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import distribution
from worldgen.generation.session import SessionParts
from worldgen.interop.convolutional import import_diffusers_tokenizer
from worldgen.interop.files import read_checkpoint
from worldgen.interop.mineworld import import_mineworld_transformer, mineworld_config
from worldgen.layout import SequenceLayout
from worldgen.models import NextFrameTransformer, NextTokenConfig, NextTokenTransformer
from worldgen.tokenizers.action import ActionSchema, ActionTokenizer, Categorical
from worldgen.tokenizers.action.minecraft import mineworld_schema, to_schema_action
from worldgen.tokenizers.quantizers import GradientVQConfig
from worldgen.tokenizers.visual import (
    ConvolutionalTokenizerConfig,
    VisualTokenizer,
    build_visual_tokenizer,
)
from worldgen.tokenizers.visual.patch import PatchConfig

GREEDY = SamplingConfig(temperature=0.0)
TOP_ONE = SamplingConfig(top_k=1)
"""How the references were drawn."""


def of_kind(kind: str) -> list[Any]:
    return reference_cases("mineworld", lambda config: config["kind"] == kind)


def model_of(case: Case, *, frames: int | None = None) -> NextTokenTransformer:
    """Return the transformer of a case, with windows of so many frames if given."""
    grid = case.config["grid"]
    config = mineworld_config(
        case.config["model"],
        rows=grid["rownum"],
        columns=grid["columnnum"],
        codebook_size=grid["codebook_size"],
        num_action_tokens=grid["actnum"],
    )
    model = import_mineworld_transformer(case.weights, config)
    if frames is not None:
        model.windows = (frames,) * len(model.windows)
    return model


# The rollouts


def decodes(case: Case, layout: SequenceLayout) -> dict[str, list[Call]]:
    """Return the calls of every decode of a rollout case, by its name there."""
    config, frames = case.config, case.config["generated_frames"]
    context = config["live_context_frames"]
    return {
        "clip_raster": clip_calls(layout, frames),
        "live_raster": live_calls(layout, context, frames),
        **{f"clip_diag_w{w}": clip_calls(layout, frames, w) for w in config["clip_windowsizes"]},
        **{
            f"live_diag_w{w}": live_calls(layout, context, frames, w)
            for w in config["live_windowsizes"]
        },
        **{
            f"clip_video_diag_w{w}": video_calls(layout, frames, w)
            for w in config["video_windowsizes"]
        },
    }


def given(case: Case, name: str) -> tuple[Tensor, Tensor]:
    """Return the frames that a decode begins with, and all its actions, counted from 0."""
    path, inputs = name.partition("_")[0], case.inputs
    parts = [inputs[f"{path}_action_ids"]]
    if (before := inputs.get(f"{path}_context_action_ids")) is not None:
        parts.insert(0, before)
    offset = case.config["grid"]["action_vocab_offset"]
    return inputs[f"{path}_image_ids"][None], torch.cat(parts)[None] - offset


def assert_numbers(theirs: Mapping[str, Tensor], name: str, ours: Mapping[str, Tensor]) -> None:
    for key, value in ours.items():
        expected = theirs[f"{name}.{key}"]
        if value.is_floating_point():
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-3, msg=f"{name}.{key}")
        else:
            assert torch.equal(value.to(expected.dtype), expected), f"{name}.{key}"


@pytest.mark.parametrize("case", of_kind("rollout"))
def test_every_call_of_every_decode_is_upstreams(case: Case) -> None:
    model, outputs = model_of(case), case.outputs
    layout, frames = model.layout, case.config["generated_frames"]
    found = decodes(case, layout)
    assert {name.partition(".")[0] for name in outputs} == set(found)
    for name, calls in found.items():
        visual_ids, action_ids = given(case, name)
        length = visual_ids.shape[1] + frames
        all_ids = torch.zeros(1, length, layout.num_cells, dtype=torch.int64)
        all_ids[:, : visual_ids.shape[1]] = visual_ids
        all_actions = torch.zeros(1, length, layout.num_action_tokens, dtype=torch.int64)
        all_actions[:, :-1] = action_ids
        memory = MineWorldMemory(model, all_ids, all_actions)
        positions = length * layout.tokens_per_step
        call_of = torch.full((positions,), -1)
        logits = torch.zeros(positions, model.codebook_size)
        uniforms = torch.full((1, positions), 0.5)
        for number, drawn in enumerate(memory.run(calls, uniforms, TOP_ONE)):
            call_of[list(calls[number].drawn)] = number
            logits[list(calls[number].drawn)] = drawn[0]

        def frames_of(values: Tensor) -> Tensor:
            steps = rearrange(values, "(f token) ... -> f token ...", token=layout.tokens_per_step)
            return steps[-frames:, layout.visual_slice]

        sizes = [0, *(len(call.positions) for call in calls)]
        best = frames_of(logits).topk(2, dim=-1).values
        numbers = {
            "ids": frames_of(memory.ids[0]),
            "call": frames_of(call_of),
            "call_offsets": torch.tensor(sizes).cumsum(0),
            "call_position_ids": torch.tensor([p for call in calls for p in call.positions]),
            # Every id is final once it is drawn, and none is fed before.
            "call_input_ids": memory.ids[0, [s for call in calls for s in call.sources]],
            "chosen_logit": best[..., 0],
            "runner_up_logit": best[..., 1],
        }
        if f"{name}.logits" in outputs:
            numbers["logits"] = frames_of(logits)
        assert_numbers(outputs, name, numbers)


@pytest.mark.parametrize("case", of_kind("rollout"))
def test_frames_drawn_together_are_those_drawn_alone(case: Case) -> None:
    model, frames = model_of(case), case.config["generated_frames"]
    uniforms = frame_uniforms([0] * frames, list(range(frames)), model.layout.num_cells)[None]
    diagonal = {k: v for k, v in decodes(case, model.layout).items() if "diag" in k}
    for name, calls in diagonal.items():
        visual_ids, action_ids = given(case, name)
        other_ids = (visual_ids + 1) % model.codebook_size
        drawn = draw_frames(
            model,
            calls,
            torch.cat((other_ids, visual_ids)),
            torch.cat((action_ids, action_ids)),
            uniforms.expand(2, -1, -1),
            TOP_ONE,
        )
        assert torch.equal(drawn[1], case.outputs[f"{name}.ids"]), name


@pytest.mark.parametrize("case", of_kind("rollout"))
def test_exact_decoding_in_raster_order_is_upstreams(case: Case) -> None:
    frames = case.config["generated_frames"]
    for name in ("clip_raster", "live_raster"):
        visual_ids, action_ids = given(case, name)
        context = visual_ids.shape[1]
        # A cautious size of the windows: a case says nothing of those of other decoders.
        model = model_of(case, frames=context + frames)
        session = Session(
            parts_of(model, plain_tokenizer(model), vocabulary_size(case)),
            Start(visual_ids=visual_ids[0], action_ids=action_ids[0, : context - 1]),
            seed=0,
            decoder=make_decoder("raster", model.layout, GREEDY),
        )
        for number, action in enumerate(action_ids[0, context - 1 :]):
            session.advance(action)
            expected = case.outputs[f"{name}.ids"][number]
            assert session.ids.tolist() == expected.tolist(), (name, number)


# Sampling


@pytest.mark.parametrize("case", of_kind("sampling_filters"))
def test_probabilities_before_the_draw_are_upstreams(case: Case) -> None:
    logits, outputs = case.inputs["logits"][:, : case.config["codebook_size"]], case.outputs
    for temperature in case.config["temperature"]:
        filters = {f"top_k{k}": {"top_k": k} for k in case.config["top_k"]}
        filters |= {f"top_p{p}": {"top_p": p} for p in case.config["top_p"]}
        for name, settings in filters.items():
            how = SamplingConfig(temperature=temperature, **settings)
            kept = distribution(logits, mineworld_sampling(how))
            kept = kept / kept.sum(dim=-1, keepdim=True)
            expected = outputs[f"probs_{name}_t{temperature}"].double()
            torch.testing.assert_close(kept, expected, rtol=0, atol=1e-6, msg=name)


def test_upstream_keeps_one_more_where_the_mass_is_met_exactly() -> None:
    how = SamplingConfig(top_p=0.5)
    assert distribution(torch.zeros(4), how).count_nonzero() == 2
    assert distribution(torch.zeros(4), mineworld_sampling(how)).count_nonzero() == 3
    assert mineworld_sampling(SamplingConfig()) == SamplingConfig()


# Sessions


@pytest.fixture(scope="module", params=of_kind("session"))
def played(request: pytest.FixtureRequest) -> tuple[Case, SessionParts, Start]:
    """A session case, its networks, and its start, whose ids are held against the reference."""
    case: Case = request.param
    height, width = case.config["image_size"]
    tokenizer = import_diffusers_tokenizer(
        read_checkpoint(case.weights),
        case.config["vae_config"],
        frame_height=height,
        frame_width=width,
    ).tokenizer
    parts = parts_of(model_of(case), tokenizer, vocabulary_size(case))
    images = case.inputs["reference_images"][:, None]
    start_ids = rearrange(tokenizer.encode(images), "frame 1 row column -> frame (row column)")
    assert torch.equal(start_ids, case.outputs["reference_ids"])
    actions = story(case)["reference_actions"]
    encoded = [encode(parts, action) for action in actions]
    action_ids = torch.zeros(0, parts.model.layout.num_action_tokens, dtype=torch.int64)
    if encoded:
        action_ids = torch.from_numpy(np.stack(encoded))
        offset = case.config["grid"]["action_vocab_offset"]
        assert torch.equal(action_ids + offset, case.outputs["reference_action_ids"])
    return case, parts, Start(visual_ids=start_ids, action_ids=action_ids)


def story(case: Case) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((case.folder / "session.json").read_text())
    return read


def steps_of(case: Case, schema: ActionSchema) -> list[np.ndarray]:
    return [
        to_schema_action(
            {**dict.fromkeys(step["buttons"], 1), "camera": [step["camera_y"], step["camera_x"]]},
            schema,
        )
        for step in story(case)["steps"]
    ]


def encode(parts: SessionParts, action: Mapping[str, Any]) -> np.ndarray:
    tokenizer = parts.action_tokenizer
    return tokenizer.encode(to_schema_action(action, tokenizer.schema))


def windows_of(case: Case) -> dict[str, int | None]:
    window = case.config["diag_windowsize"]
    return {"raster": None, f"diag_w{window}": window}


def test_every_step_of_a_session_is_upstreams(
    played: tuple[Case, SessionParts, Start],
) -> None:
    case, parts, start = played
    outputs, grid = case.outputs, case.config["grid"]
    assert len(start.visual_ids) == case.config["reference_frame"]
    for name, window in windows_of(case).items():
        session = MineWorldSession(
            parts,
            start,
            seed=3,
            sampling=TOP_ONE,
            window=window,
            context_frames=case.config["context_len"],
        )
        actions = steps_of(case, parts.action_tokenizer.schema)
        assert len(actions) == len(outputs[f"{name}.frame_ids"])
        for number, action in enumerate(actions):
            frame = session.step(action)
            ids = parts.action_tokenizer.encode(action) + grid["action_vocab_offset"]
            assert ids.tolist() == outputs[f"{name}.action_ids"][number].tolist(), name
            assert session.slid == bool(outputs[f"{name}.context_slid"][number]), name
            # The frame that the step made is not counted there.
            assert session.num_frames - 1 == outputs[f"{name}.context_frames"][number], name
            expected = outputs[f"{name}.frame_ids"][number]
            assert session.ids.tolist() == expected.tolist(), (name, number)
            levels = outputs[f"{name}.frames_u8"][number].numpy().astype(int)
            assert abs(frame.astype(int) - levels).max() <= 1, (name, number)


def test_the_exact_session_in_raster_order_is_upstreams_until_the_context_slides(
    played: tuple[Case, SessionParts, Start],
) -> None:
    case, parts, start = played
    session = Session(
        parts, start, seed=0, decoder=make_decoder("raster", parts.model.layout, GREEDY)
    )
    slid = case.outputs["raster.context_slid"].tolist()
    before = slid.index(1) if 1 in slid else len(slid)
    assert before
    for number, action in enumerate(steps_of(case, parts.action_tokenizer.schema)[:before]):
        session.step(action)
        assert session.ids.tolist() == case.outputs["raster.frame_ids"][number].tolist()


def vocabulary_size(case: Case) -> int:
    sizes = case.config["model"]["params"]["transformer_config"]["params"]
    return int(sizes["vocab_size"] - case.config["grid"]["action_vocab_offset"])


def parts_of(
    model: NextTokenTransformer, tokenizer: VisualTokenizer, action_vocabulary_size: int
) -> SessionParts:
    return SessionParts(
        world="reference",
        world_hash="0" * 64,
        model=model,
        visual_tokenizer=tokenizer,
        action_tokenizer=ActionTokenizer(mineworld_schema(vocabulary_size=action_vocabulary_size)),
    )


def plain_tokenizer(model: NextTokenTransformer) -> VisualTokenizer:
    """Return a tokenizer of the model's grid, for a session whose pixels nobody looks at."""
    patch = PatchConfig(patch=2, width=4, blocks=1)
    config = ConvolutionalTokenizerConfig(
        frame_height=2 * model.layout.rows,
        frame_width=2 * model.layout.columns,
        encoder=patch,
        decoder=patch,
        quantizer=GradientVQConfig(codebook_size=model.codebook_size, width=2),
    )
    return build_visual_tokenizer(config).eval()


# What holds on every grid, without upstream's numbers

LAYOUT = SequenceLayout(rows=3, columns=4, num_action_tokens=2, actions_first=False)


def tiny_model() -> NextTokenTransformer:
    torch.manual_seed(0)
    config = NextTokenConfig(
        rows=3,
        columns=4,
        codebook_size=12,
        num_action_tokens=2,
        action_vocabulary_size=5,
        width=16,
        num_heads=4,
        num_key_value_heads=2,
        feed_forward_width=24,
        windows=(4, 4),
    )
    model = NextTokenTransformer(config)
    with torch.no_grad():
        model.embedding.weight.normal_()
        model.readout.weight.normal_()
    return model.eval()


def plain_parts(model: NextTokenTransformer) -> SessionParts:
    schema = ActionSchema(
        groups=(Categorical("a", ("none", "x")), Categorical("b", ("none", "y", "z"))),
        named={"nothing": {}, "x": {"a": "x"}, "z": {"b": "z"}},
        keys={},
    )
    return SessionParts(
        world="tiny",
        world_hash="0" * 64,
        model=model,
        visual_tokenizer=plain_tokenizer(model),
        action_tokenizer=ActionTokenizer(schema),
    )


def start_of(model: NextTokenTransformer, frames: int) -> Start:
    generator = torch.Generator().manual_seed(1)
    shape = (frames, model.layout.num_cells)
    return Start(
        visual_ids=torch.randint(0, model.codebook_size, shape, generator=generator),
        action_ids=torch.tensor([[0, 2]]).expand(frames - 1, 2),
    )


def all_calls(layout: SequenceLayout) -> dict[str, list[Call]]:
    windows = range(1, layout.columns + 1)
    return {
        "clip": clip_calls(layout, 3),
        "live": live_calls(layout, 2, 3),
        **{f"clip {w}": clip_calls(layout, 3, w) for w in windows},
        **{f"video {w}": video_calls(layout, 3, w) for w in windows},
        **{f"live {w}": live_calls(layout, 2, 3, w) for w in windows},
    }


@pytest.mark.parametrize("size", [(3, 4), (1, 5), (5, 1), (1, 1)])
def test_every_cell_is_drawn_once_and_only_known_ids_are_fed(size: tuple[int, int]) -> None:
    layout = SequenceLayout(rows=size[0], columns=size[1], num_action_tokens=2, actions_first=False)
    for name, calls in all_calls(layout).items():
        step, context = layout.tokens_per_step, 2 if "live" in name else 1
        frames = [range(f * step, f * step + layout.num_cells) for f in range(context, context + 3)]
        wanted = {cell for frame in frames for cell in frame}
        drawn: list[int] = []
        for call in calls:
            assert len(call.sources) == len(call.positions)
            # A given id, or one that an earlier call drew.
            assert not (set(call.sources) & wanted) - set(drawn), name
            # A cell is given by the output at the position before it; the first one of a frame by
            # that of the last action token.
            asking = [call.positions[index] for index in call.asked_by]
            assert [cell - 1 for cell in call.drawn] == asking, name
            drawn += call.drawn
        assert sorted(drawn) == sorted(wanted), name


def test_raster_order_feeds_every_id_as_it_is() -> None:
    for calls in (clip_calls(LAYOUT, 2), live_calls(LAYOUT, 2, 2)):
        fed = [position for call in calls for position in call.positions]
        assert fed == sorted(set(fed))
        assert all(call.sources == call.positions for call in calls)
    # The newest id of the row above is that of its end when the rows do not overlap.
    assert live_frame_calls(LAYOUT, 2, LAYOUT.columns) == live_frame_calls(LAYOUT, 2)


@torch.no_grad()
def test_an_empty_slot_takes_its_share_of_the_softmax() -> None:
    model = tiny_model()
    ids = torch.randint(0, 12, (1, 2, 12), generator=torch.Generator().manual_seed(2))
    actions = torch.zeros(1, 2, 2, dtype=torch.int64)
    uniforms = torch.zeros(1, 28)
    # Positions 14 and 15 are left out; 16 sees them.
    late = Call(positions=(16,), sources=(16,), drawn=(17,), asked_by=(0,))
    memory = MineWorldMemory(model, ids, actions)
    read = context_call(model.layout, 1)
    everything = Call(positions=tuple(range(14)), sources=tuple(range(14)))
    assert read.positions == tuple(range(12))
    *_, logits = memory.run([everything, late], uniforms, GREEDY)
    # The same by one dense pass in which two keys and values are nothing.
    tokens = model.step_ids(ids, actions).flatten(1)[:, [*range(14), 14, 15, 16]]
    visible = torch.ones(17, 17).tril().bool()

    def see(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
        key[:, :, 14:16] = value[:, :, 14:16] = 0.0
        scores = query @ key.mT / 2.0
        mixed: Tensor = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1) @ value
        return mixed

    output = model.run_blocks(model.embedding(tokens), model.rotary(torch.arange(17)), see)
    torch.testing.assert_close(logits[:, 0], model.read(output[:, -1])[:, :12])


def test_draws_depend_on_their_own_numbers_and_never_leave_the_codebook() -> None:
    model = tiny_model()
    with torch.no_grad():
        # The ids of actions are by far the most likely ones.
        model.readout.weight[12:] *= 100.0
    start = start_of(model, 1)
    actions = torch.tensor([[[0, 2], [1, 3]]]).expand(2, -1, -1)
    uniforms = torch.stack((frame_uniforms([5, 5], [0, 1], 12), frame_uniforms([6, 6], [0, 1], 12)))
    how = SamplingConfig(temperature=1.5, top_p=0.9)
    calls = clip_calls(LAYOUT, 2, 2)
    both = draw_frames(model, calls, start.visual_ids.expand(2, 1, 12), actions, uniforms, how)
    assert both.max() < 12
    assert not torch.equal(both[0], both[1])
    for row in range(2):
        alone = draw_frames(
            model, calls, start.visual_ids[None], actions[:1], uniforms[row : row + 1], how
        )
        assert torch.equal(alone[0], both[row])


def test_a_session_is_a_function_of_its_seed_and_actions() -> None:
    model = tiny_model()
    parts, start = plain_parts(model), start_of(model, 2)
    how = SamplingConfig(temperature=2.0)

    def play(seed: int) -> list[list[int]]:
        session = MineWorldSession(parts, start, seed=seed, sampling=how, window=2)
        assert session.frame.shape == (6, 8, 3)
        assert session.ids.tolist() == start.visual_ids[-1].tolist()
        frames = []
        for action in ("x", "nothing", np.array([0, 2]), "x+z", "z"):
            assert session.step(action).dtype == np.uint8
            frames.append(session.ids.tolist())
        assert session.frame_index == 5
        return frames

    assert play(1) == play(1)
    assert play(1) != play(2)
    assert len(start.visual_ids) == 2


def test_after_a_slide_a_session_is_one_that_starts_there() -> None:
    model = tiny_model()
    parts, start = plain_parts(model), start_of(model, 2)
    session = MineWorldSession(parts, start, seed=0, sampling=GREEDY, window=1)
    shown, taken = list(start.visual_ids), list(start.action_ids)
    for number, action in enumerate(([0, 2], [1, 4], [1, 2], [0, 3])):
        if number == 2:
            later = Start(visual_ids=torch.stack(shown[2:]), action_ids=torch.stack(taken[2:]))
            again = MineWorldSession(parts, later, seed=0, sampling=GREEDY, window=1)
        session.advance(torch.tensor(action))
        assert session.slid == (number == 2)
        if number >= 2:
            again.advance(torch.tensor(action))
            assert session.ids.tolist() == again.ids.tolist()
        shown.append(torch.from_numpy(session.ids))
        taken.append(torch.tensor(action))


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_model()
    parts, start = plain_parts(model), start_of(model, 2)
    for window in (0, 5):
        with pytest.raises(ConfigError, match=r"1 \.\.\. 4, the columns of the grid, got"):
            live_frame_calls(LAYOUT, 1, window)
        with pytest.raises(ConfigError, match=r"1 \.\.\. 4, the columns of the grid, got"):
            video_calls(LAYOUT, 2, window)
    with pytest.raises(ConfigError, match="need 2 actions, one for each frame but the last, got 3"):
        draw_frames(
            model,
            clip_calls(LAYOUT, 2),
            start.visual_ids[None, :1],
            torch.zeros(1, 3, 2, dtype=torch.int64),
            torch.zeros(1, 2, 12),
            GREEDY,
        )
    with pytest.raises(ConfigError, match="a start of 2 frames leaves no room in a context of 2"):
        MineWorldSession(parts, start, seed=0, sampling=GREEDY, context_frames=2)
    with pytest.raises(ActionError):
        MineWorldSession(parts, start, seed=0, sampling=GREEDY).step("fly")


def test_worlds_of_another_kind_are_refused() -> None:
    model = tiny_model()
    other = SessionParts(
        world="other",
        world_hash="0" * 64,
        model=NextFrameTransformer(tiny_model_config()),
        visual_tokenizer=plain_tokenizer(model),
        action_tokenizer=plain_parts(model).action_tokenizer,
    )
    with pytest.raises(ConfigError, match="world 'other' has a NextFrameTransformer; use Session"):
        MineWorldSession(other, start_of(model, 2), seed=0, sampling=GREEDY)


def test_a_model_that_sees_frames_differently_by_age_is_refused() -> None:
    model = tiny_model()
    parts, start = plain_parts(model), start_of(model, 2)
    model.time_decay = 0.1
    with pytest.raises(ConfigError, match=r"far_frames 0 and time_decay 0\.1; use Session"):
        MineWorldSession(parts, start, seed=0, sampling=SamplingConfig())
