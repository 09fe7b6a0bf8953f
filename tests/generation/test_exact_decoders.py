"""Decoders that claim raster's ids have raster's ids, and its distribution, in fewer calls."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.factories import tiny_model_config
from worldgen.errors import ConfigError
from worldgen.generation import Decoder, SamplingConfig, WithDraftModel, make_decoder
from worldgen.generation.jacobi import JacobiDecoder
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import distribution, draw
from worldgen.generation.speculative import PairedDraft
from worldgen.models import NextFrameTransformer, NextTokenConfig, NextTokenTransformer
from worldgen.models.base import Policy, WorldModel
from worldgen.pipeline import load

SAMPLINGS = [
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=0.7, top_p=0.9),
    SamplingConfig(temperature=1.5, top_k=5),
]
WARM = 3.0
EXACT = ["jacobi", "jacobi:1", "jacobi:7", "speculative", "speculative:whole_frame"]


def make_model(kind: str, *, side: int = 4, codes: int = 20, seed: int = 0) -> WorldModel:
    """Return a model whose cells depend on each other strongly, as those of a trained one do."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "next_frame":
            frame = NextFrameTransformer(
                tiny_model_config(rows=side, columns=side, codebook_size=codes)
            )
            marks = [frame.within_frame.content.weight, frame.embedding.visual.weight]
        else:
            token = NextTokenTransformer(
                NextTokenConfig(
                    rows=side,
                    columns=side,
                    codebook_size=codes,
                    num_action_tokens=2,
                    action_vocabulary_size=6,
                    width=16,
                    num_heads=4,
                    num_key_value_heads=2,
                    feed_forward_width=24,
                    windows=(3, 2),
                )
            )
            marks = [token.embedding.weight, token.stand_in]
        model = frame if kind == "next_frame" else token
        with torch.no_grad():
            for weight in (*marks, model.readout.weight):
                weight.normal_()
    return model.eval()


def play(
    model: WorldModel, decoder: Decoder, *, batch: int = 3, frames: int = 4
) -> tuple[Tensor, list[int]]:
    """Return the ids of a rollout, `[frame, batch, cell]`, and the calls that each frame took."""
    generator = torch.Generator().manual_seed(1)
    cells = model.layout.num_cells
    ids = torch.randint(0, model.codebook_size, (batch, cells), generator=generator)
    cache, drawn, calls = model.new_cache(batch), [], []
    for number in range(frames):
        actions = torch.randint(0, 6, (batch, 2), generator=generator)
        draft = model.observe(cache, ids, actions)
        uniforms = frame_uniforms(range(batch), [number] * batch, cells)
        ids = decoder.draw_frame(model, draft, uniforms)
        drawn.append(ids)
        calls.append(draft.calls)
    return torch.stack(drawn), calls


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("kind", ["next_frame", "next_token"])
def test_exact_decoders_draw_the_very_ids_of_raster(kind: str, sampling: SamplingConfig) -> None:
    large = make_model(kind)
    model = WithDraftModel(large, make_model("next_frame", seed=1))
    expected, calls = play(large, make_decoder("raster", large.layout, sampling))
    assert calls == [16] * 4
    assert len(expected.unique()) > 5
    for name in EXACT:
        ids, calls = play(model, make_decoder(name, large.layout, sampling))
        assert torch.equal(ids, expected), name
        assert max(calls) <= 16


def test_a_window_of_one_cell_takes_rasters_calls_and_a_wide_one_fewer() -> None:
    model = make_model("next_frame")
    sampling = SamplingConfig(temperature=0.7)
    narrow = play(model, JacobiDecoder(sampling=sampling, window=1))[1]
    middle = play(model, JacobiDecoder(sampling=sampling, window=7))[1]
    wide = play(model, JacobiDecoder(sampling=sampling))[1]
    assert narrow == [16] * 4
    assert all(3 <= calls < 16 for calls in middle)
    assert sum(wide) <= sum(middle)


@pytest.mark.parametrize("kind", ["next_frame", "next_token"])
def test_where_rounding_decides_rasters_rounding_does(kind: str) -> None:
    model, sampling, cells = make_model(kind), SamplingConfig(), 16
    before, actions = torch.randint(0, 20, (3, cells)), torch.tensor([[0, 4]]).expand(3, -1)
    draft = model.observe(model.new_cache(3), before, actions)
    expected, uniforms = torch.zeros_like(before), torch.zeros(3, cells, dtype=torch.float64)
    for cell in range(cells):
        one = torch.tensor([cell])
        logits = model.predict(draft, one)
        # Each number lies where one id ends and the next begins.
        sums = distribution(logits, sampling).cumsum(dim=-1)
        near_middle = (sums - 0.5).abs().argmin(dim=-1, keepdim=True)
        uniforms[:, one] = sums.gather(-1, near_middle)[..., 0].clamp(max=0.99)
        expected[:, one] = draw(logits, uniforms[:, one], sampling)
        model.reveal(draft, one, expected[:, one])
    draft = model.observe(model.new_cache(3), before, actions)
    order = torch.arange(cells).expand(3, -1)
    assert not torch.equal(draw(model.score(draft, expected, order), uniforms, sampling), expected)
    decoder = make_decoder("jacobi", model.layout, sampling)
    assert torch.equal(decoder.draw_frame(model, draft, uniforms), expected)
    assert draft.calls > cells


def test_a_right_guess_needs_one_call() -> None:
    model = make_model("next_token")
    sampling = SamplingConfig()
    ids = torch.randint(0, 20, (1, 16))
    uniforms = frame_uniforms([0], [0], 16)

    def draft() -> PairedDraft:
        both = WithDraftModel(model, model)
        return both.observe(both.new_cache(1), ids, torch.tensor([[0, 4]]))

    first, second = draft(), draft()
    drawn = make_decoder("raster", model.layout, sampling).draw_frame(model, first.large, uniforms)
    decoder = make_decoder("speculative", model.layout, sampling)
    assert torch.equal(decoder.draw_frame(WithDraftModel(model, model), second, uniforms), drawn)
    assert (second.calls, second.small.calls) == (1, 16)
    assert second.guess is not None
    assert torch.equal(second.guess, drawn)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["next_frame", "next_token"])
@pytest.mark.parametrize("name", ["raster", *EXACT])
def test_on_a_world_that_can_be_enumerated_the_distribution_is_rasters(
    kind: str, name: str
) -> None:
    large, draws = make_model(kind, side=2, codes=3), 4000
    model = WithDraftModel(large, make_model("next_frame", side=2, codes=3, seed=3))
    before, action = torch.tensor([[0, 1, 2, 1]]), torch.tensor([[1, 3]])

    frames = torch.tensor(list(itertools.product(range(3), repeat=4)))
    draft = large.observe(large.new_cache(81), before.expand(81, -1), action.expand(81, -1))
    probability = torch.ones(81, dtype=torch.float64)
    for cell in range(4):
        one = torch.tensor([cell])
        logits = large.predict(draft, one)[:, 0].double() / WARM
        probability *= logits.softmax(-1).gather(-1, frames[:, one])[:, 0]
        large.reveal(draft, one, frames[:, one])
    assert abs(float(probability.sum()) - 1) < 1e-9
    # Neither certain nor even, or there would be nothing to find.
    assert 0.02 < float(probability.max()) < 0.7

    both = model.observe(model.new_cache(draws), before.expand(draws, -1), action.expand(draws, -1))
    decoder = make_decoder(name, large.layout, SamplingConfig(temperature=WARM))
    ids = decoder.draw_frame(model, both, frame_uniforms(range(draws), [0] * draws, 4))
    number = (ids * torch.tensor([27, 9, 3, 1])).sum(dim=1)
    share = torch.bincount(number, minlength=81) / draws
    # The expected distance is at most half the sum of the standard errors of all 81 shares.
    error = (probability * (1 - probability) / draws).sqrt().sum() / 2
    assert float((share - probability).abs().sum() / 2) < 1.3 * float(error)


@pytest.mark.parametrize("world_name", ["car_racing", "crafter"])
def test_on_shipped_worlds_jacobi_draws_rasters_ids_in_a_third_of_the_calls(
    world_name: str,
) -> None:
    world = load(world_name)
    sampling = SamplingConfig(temperature=1.0)
    sessions = [world.session(seed=3, decoder=n, sampling=sampling) for n in ("raster", "jacobi")]
    named = list(world.action_tokenizer.schema.named)
    calls = 0
    for number in range(4):
        for session in sessions:
            session.step(named[number % len(named)])
        assert sessions[0].ids.tolist() == sessions[1].ids.tolist()
        assert sessions[0].calls == 64
        calls += sessions[1].calls
    assert calls * 3 <= 64 * 4


def test_a_draft_model_goes_wherever_a_session_goes() -> None:
    model = WithDraftModel(make_model("next_token"), make_model("next_frame", seed=1))
    decoder = make_decoder("speculative:rows", model.layout, SamplingConfig())
    actions = torch.tensor([[0, 3]])
    cache = model.new_cache(1, spare=4)
    frames = [torch.randint(0, 20, (1, 16))]

    def step() -> tuple[Tensor, Tensor]:
        draft = model.observe(cache, frames[-1], actions)
        uniforms = frame_uniforms([2], [len(frames)], 16)
        ids = decoder.draw_frame(model, draft, uniforms)
        assert draft.guess is not None
        frames.append(ids)
        return ids, draft.guess

    steps = [step() for _ in range(5)]
    fork = cache.fork()
    assert fork.num_bytes == cache.num_bytes
    assert fork.small.num_frames == 5
    cache.rewind_to(2)
    del frames[3:]
    again = [step() for _ in range(3)]
    cache = fork
    frames.append(step()[0])
    for (ids, guess), (same_ids, same_guess) in zip(steps[2:], again, strict=True):
        assert torch.equal(ids, same_ids)
        assert torch.equal(guess, same_guess)
    assert fork.small.num_frames == 6


def test_the_players_actions_are_the_large_models() -> None:
    large = make_model("next_token")
    both = WithDraftModel(large, make_model("next_frame"))
    assert isinstance(large, Policy)
    assert isinstance(both, Policy)
    frame, slots = torch.randint(0, 20, (1, 16)), [torch.arange(3), torch.arange(3, 6)]

    def choose(slot: int, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    cache, alone = both.new_cache(1), large.new_cache(1)
    assert torch.equal(
        both.predict_action(cache, frame, slots, choose),
        large.predict_action(alone, frame, slots, choose),
    )


def test_a_draft_model_of_other_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"codebook size 20 against 9.*rows 4 against 3"):
        WithDraftModel(make_model("next_token"), make_model("next_frame", side=3, codes=9))


def test_speculative_decoding_without_a_draft_model_says_what_is_missing() -> None:
    model = make_model("next_frame")
    decoder = make_decoder("speculative", model.layout, SamplingConfig())
    with pytest.raises(ConfigError, match=r"WithDraftModel\(large, small\)"):
        play(model, decoder)
