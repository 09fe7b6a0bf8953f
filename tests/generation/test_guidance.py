"""Steered models: towards an action, and with a temperature for each cell."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import tiny_model_config, tiny_world
from tests.models.test_next_token import make_model
from worldgen.errors import ConfigError
from worldgen.generation import SamplingConfig, make_decoder
from worldgen.generation.guidance import Branch, GuidedModel, TemperedModel, steer
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import distribution
from worldgen.models import NextFrameTransformer, WorldModel
from worldgen.pipeline import load
from worldgen.schedule import make_schedule

REST = torch.tensor([0, 3])


@pytest.fixture
def model() -> NextFrameTransformer:
    torch.manual_seed(0)
    return NextFrameTransformer(tiny_model_config()).eval()


def from_rest(strength: float) -> Branch:
    return Branch(strength=strength, action_ids=REST)


def play(
    model: WorldModel, decoder: str, sampling: SamplingConfig, frames: int = 4
) -> torch.Tensor:
    """Return the ids of frames drawn one after the other for two sequences."""
    generator = torch.Generator().manual_seed(1)
    cells, codes = model.layout.num_cells, model.codebook_size
    ids = torch.randint(0, codes, (2, cells), generator=generator)
    cache = model.new_cache(2)
    made = make_decoder(decoder, model.layout, sampling)
    drawn = []
    for frame in range(frames):
        actions = torch.randint(0, 3, (2, model.layout.num_action_tokens), generator=generator)
        if model.layout.num_action_tokens == 2:
            actions[:, 1] += 3
        draft = model.observe(cache, ids, actions)
        ids = made.draw_frame(model, draft, frame_uniforms([5, 6], [frame, frame], cells))
        drawn.append(ids)
    return torch.stack(drawn)


@torch.no_grad()
def test_guided_logits_are_those_of_both_branches_apart(model: NextFrameTransformer) -> None:
    generator = torch.Generator().manual_seed(2)
    visual_ids = torch.randint(0, 64, (3, 2, 64), generator=generator)
    action_ids = torch.randint(0, 3, (3, 2, 2), generator=generator) + torch.tensor([0, 3])
    guided = GuidedModel(model, [from_rest(1.5)])
    caches = guided.new_cache(2), model.new_cache(2), model.new_cache(2)
    for ids, actions in zip(visual_ids, action_ids, strict=True):
        draft = guided.observe(caches[0], ids, actions)
        given = model.observe(caches[1], ids, actions)
        rest = model.observe(caches[2], ids, REST.expand(2, 2))
    assert torch.equal(draft.previous_ids, visual_ids[-1])
    target = torch.randint(0, 64, (2, 64), generator=generator)
    for group in make_schedule("strided:4", 8, 8).groups:
        cells = torch.tensor(group)
        a, b = model.predict(given, cells), model.predict(rest, cells)
        expected = 2.5 * a - 1.5 * b
        assert torch.allclose(guided.predict(draft, cells), expected, atol=1e-5)
        for each, drawing in ((guided, draft), (model, given), (model, rest)):
            each.reveal(drawing, cells, target[:, cells])
    groups = make_schedule("rows", 8, 8).group_of_cell.expand(2, -1)
    a, b = (model.score(each, target, groups) for each in (given, rest))
    assert torch.allclose(guided.score(draft, target, groups), 2.5 * a - 1.5 * b, atol=1e-5)


def test_no_guidance_changes_nothing(model: NextFrameTransformer) -> None:
    sampling = SamplingConfig(temperature=1.0)
    assert steer(model, sampling, REST) is model
    plain = play(model, "strided:4", sampling)
    assert torch.equal(play(GuidedModel(model, [from_rest(0.0)]), "strided:4", sampling), plain)
    assert not torch.equal(play(GuidedModel(model, [from_rest(3.0)]), "strided:4", sampling), plain)


@pytest.mark.parametrize("kind", ["next_frame", "next_token"])
def test_exact_decoders_draw_the_ids_of_raster_for_steered_models(
    model: NextFrameTransformer, kind: str
) -> None:
    sampling = SamplingConfig(temperature=0.8, guidance=1.0, last_temperature=2.0)
    inner = model if kind == "next_frame" else make_model("raster")
    rest = torch.zeros(inner.layout.num_action_tokens, dtype=torch.int64)
    steered = steer(inner, sampling, rest)
    raster = play(steered, "raster", sampling)
    assert torch.equal(play(steered, "jacobi", sampling), raster)
    assert not torch.equal(play(inner, "raster", sampling), raster)


@torch.no_grad()
def test_every_cell_has_its_own_temperature(model: NextFrameTransformer) -> None:
    tempered = TemperedModel(model, 0.5, 2.0)
    ids, actions = torch.zeros(1, 64, dtype=torch.int64), REST[None]
    logits = model.predict(model.observe(model.new_cache(1), ids, actions), torch.arange(64))
    draft = tempered.observe(tempered.new_cache(1), ids, actions)
    cells = torch.tensor([63, 0, 21])
    expected = torch.tensor([2.0, 0.5, 1.0])
    got = tempered.predict(draft, cells) / 0.5
    assert torch.allclose(got[0], logits[0, cells] / expected[:, None], atol=1e-5)


def test_unlikely_ids_are_left_out() -> None:
    logits = torch.tensor([0.5, 0.26, 0.2, 0.04]).log()
    for min_p, kept in ((0.0, 4), (0.3, 3), (0.5, 2), (1.0, 1)):
        assert int((distribution(logits, SamplingConfig(min_p=min_p)) > 0).sum()) == kept
    both = distribution(logits, SamplingConfig(min_p=0.3, top_p=0.6))
    assert int((both > 0).sum()) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_p": 1.5}, "min_p must be 0 to 1, got 1.5"),
        ({"guidance": -1.0}, "guidance must be 0 or more"),
        ({"text_guidance": -1.0}, "text_guidance must be 0 or more"),
        ({"context_noise": -1}, "context_noise must be 0 or a higher noise level, got -1"),
        ({"last_temperature": 0.0}, "last_temperature needs it and temperature above 0"),
        ({"last_temperature": 1.0, "temperature": 0.0}, "last_temperature needs"),
    ],
)
def test_wrong_settings_are_one_clear_message(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**wrong)  # type: ignore[arg-type]


def test_rest_must_be_that_of_a_step(model: NextFrameTransformer) -> None:
    with pytest.raises(ConfigError, match="a step has 2 action tokens"):
        GuidedModel(model, [Branch(strength=1.0, action_ids=torch.zeros(3, dtype=torch.int64))])


def test_guidance_needs_something_to_lead_away_from(model: NextFrameTransformer) -> None:
    with pytest.raises(ConfigError, match="needs a branch"):
        GuidedModel(model, [])
    with pytest.raises(ConfigError, match=r"0 or more, got -1\.0"):
        GuidedModel(model, [from_rest(-1.0)])


@torch.no_grad()
def test_guidance_by_text_and_by_actions_adds_up() -> None:
    torch.manual_seed(0)
    model = NextFrameTransformer(tiny_model_config(text_vocabulary_size=9, sink=1)).eval()
    sampling = SamplingConfig(guidance=1.5, text_guidance=0.5)
    guided = steer(model, sampling, REST)
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(0, 9, (2, 66), generator=generator)
    ids = torch.randint(0, 64, (2, 64), generator=generator)
    actions = torch.tensor([[1, 4], [2, 5]])
    cells = torch.arange(64)
    seen = []
    branches = (actions, text), (REST.expand(2, 2), text), (actions, torch.zeros_like(text))
    for taken, read in branches:
        cache = model.new_cache(2)
        first = model.predict(model.observe_text(cache, read), cells)
        seen.append((first, model.predict(model.observe(cache, ids, taken), cells)))
    (given_first, given), (_, rest), (null_first, null) = seen
    cache = guided.new_cache(2)
    assert isinstance(guided, GuidedModel)
    draft = guided.observe_text(cache, text)
    # Before the first frame no action has been taken.
    expected = 1.5 * given_first - 0.5 * null_first
    assert torch.allclose(guided.predict(draft, cells), expected, atol=1e-5)
    draft = guided.observe(cache, ids, actions)
    expected = 3.0 * given - 1.5 * rest - 0.5 * null
    assert torch.allclose(guided.predict(draft, cells), expected, atol=1e-5)
    assert not torch.allclose(given, null, atol=1e-3)


@pytest.mark.parametrize("decoder", ["strided:4", "jacobi"])
def test_guided_sessions_fork_rewind_save_and_replay(tmp_path: Path, decoder: str) -> None:
    world = load(tiny_world(tmp_path / "world"))
    sampling = SamplingConfig(guidance=2.0, last_temperature=0.5, min_p=0.01, top_k=40)
    session = world.session(seed=3, decoder=decoder, sampling=sampling)
    actions = ["left", "gas", "right", "brake", "left+gas", "nothing"]
    for action in actions:
        session.step(action)
    fork = session.fork()
    fork.rewind(3)
    for action in actions[3:]:
        fork.step(action)
    assert np.array_equal(fork.ids, session.ids)
    session.save(tmp_path / "log.json")
    assert world.load_session(tmp_path / "log.json").log() == session.log()
    plain = world.session(seed=3, decoder=decoder)
    for action in actions:
        plain.step(action)
    assert not np.array_equal(plain.ids, session.ids)
