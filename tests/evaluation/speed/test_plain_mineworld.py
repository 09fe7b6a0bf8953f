"""The plain reading of MineWorld's design gives the ids of the library's, call by call."""

import pytest
import torch

from worldgen.evaluation.speed.plain_mineworld import PlainMineWorld
from worldgen.generation import SamplingConfig, make_decoder
from worldgen.generation.mineworld import draw_frames
from worldgen.generation.mineworld_calls import live_calls
from worldgen.generation.random import frame_uniforms
from worldgen.models import NextTokenConfig, NextTokenTransformer

CONTEXT, FRAMES = 2, 2
SAMPLINGS = [SamplingConfig(temperature=0.0), SamplingConfig(top_p=0.8)]


@pytest.fixture
def model() -> NextTokenTransformer:
    torch.manual_seed(0)
    config = NextTokenConfig(
        rows=3,
        columns=4,
        codebook_size=32,
        num_action_tokens=2,
        action_vocabulary_size=6,
        width=32,
        num_heads=4,
        num_key_value_heads=2,
        feed_forward_width=24,
        windows=(6, 6),
    )
    model = NextTokenTransformer(config)
    for parameter in (model.embedding.weight, model.readout.weight):
        torch.nn.init.normal_(parameter)
    return model


def plain_frames(
    model: NextTokenTransformer, sampling: SamplingConfig, window: int | None
) -> tuple[list[list[int]], PlainMineWorld]:
    plain = PlainMineWorld(model, 6, sampling)
    visual_ids, action_ids, uniforms = material()
    plain.read_context(visual_ids[0], action_ids[0, : CONTEXT - 1])
    frames = [
        plain.draw_frame(
            CONTEXT + number, action_ids[0, CONTEXT - 1 + number], uniforms[0, number], window
        )
        for number in range(FRAMES)
    ]
    return frames, plain


def material() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    visual_ids = torch.randint(0, 32, (1, CONTEXT, 12), generator=generator)
    action_ids = torch.randint(0, 6, (1, CONTEXT + FRAMES - 1, 2), generator=generator)
    return visual_ids, action_ids, frame_uniforms([0, 0], [1, 2], 12)[None]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("window", [None, 1, 2, 4])
def test_ids_are_those_of_the_librarys_mineworld_mode(
    model: NextTokenTransformer, window: int | None, sampling: SamplingConfig
) -> None:
    frames, plain = plain_frames(model, sampling, window)
    calls = live_calls(model.layout, CONTEXT, FRAMES, window)
    expected = draw_frames(model, calls, *material(), sampling)
    assert frames == expected[0].tolist()
    assert len({tuple(frame) for frame in frames}) == FRAMES
    assert plain.calls == len(calls)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_in_raster_order_ids_are_those_of_the_cached_decoder(
    model: NextTokenTransformer, sampling: SamplingConfig
) -> None:
    visual_ids, action_ids, uniforms = material()
    decoder = make_decoder("raster", model.layout, sampling)
    cache = model.new_cache(1)
    model.observe(cache, visual_ids[:, 0], action_ids[:, 0])
    ids, expected = visual_ids[:, 1], []
    for number in range(FRAMES):
        draft = model.observe(cache, ids, action_ids[:, CONTEXT - 1 + number])
        ids = decoder.draw_frame(model, draft, uniforms[:, number])
        expected.append(ids[0].tolist())
    assert plain_frames(model, sampling, None)[0] == expected
