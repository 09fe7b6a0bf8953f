"""Refinement against its plain recomputation, and against the whole frame at once."""

import pytest
import torch
from torch import Tensor

from tests.generation.test_exact_decoders import SAMPLINGS, make_model, play
from worldgen.errors import ConfigError
from worldgen.generation import SamplingConfig, make_decoder
from worldgen.generation.random import frame_uniforms
from worldgen.generation.refinement import RefinementDecoder
from worldgen.generation.sampling import draw
from worldgen.models import NextFrameTransformer
from worldgen.models.next_frame import group_masks
from worldgen.schedule import cosine_round_sizes


@torch.no_grad()
def plain_refinement(
    model: NextFrameTransformer, clip: tuple[Tensor, Tensor], uniforms: Tensor, rounds: int
) -> list[int]:
    """Return the ids of the frame after a clip of one sequence, cell by cell, without a cache."""
    hidden = model.encode_steps(*clip)[:, -1]
    cells = uniforms.numel()
    ids, settled_in = torch.zeros(1, cells, dtype=torch.int64), [rounds] * cells
    for number, size in enumerate(cosine_round_sizes(cells, rounds)):
        logits = model.read(hidden)
        if number:
            masks = group_masks(torch.tensor(settled_in)[None])
            logits = model.refine(hidden, ids, *masks)
        certain = []
        for cell in range(cells):
            if settled_in[cell] < rounds:
                continue
            number_of_cell = uniforms[cell]
            code = int(draw(logits[0, cell], number_of_cell, SamplingConfig()))
            ids[0, cell] = code
            surprise = -float(logits[0, cell].double().log_softmax(-1)[code])
            second = float(number_of_cell * 2**20 % 1)
            noise = -torch.tensor(second, dtype=torch.float64).log().neg().log()
            left = (rounds - number - 1) / rounds
            certain.append((surprise - 0.5 * left * float(noise), cell))
        for _, cell in sorted(certain)[:size]:
            settled_in[cell] = number
    return ids[0].tolist()


def test_refinement_equals_its_own_recomputation_without_a_cache() -> None:
    model = make_model("next_frame")
    assert isinstance(model, NextFrameTransformer)
    generator = torch.Generator().manual_seed(2)
    frames = torch.randint(0, 20, (2, 3, 16), generator=generator)
    actions = torch.randint(0, 6, (2, 3, 2), generator=generator)
    decoder = make_decoder("refine:5:0.5", model.layout, SamplingConfig())
    cache = model.new_cache(2)
    for number in range(3):
        draft = model.observe(cache, frames[:, number], actions[:, number])
        uniforms = frame_uniforms([4, 5], [number, number], 16)
        drawn = decoder.draw_frame(model, draft, uniforms)
        assert draft.calls == 5
        for row in range(2):
            clip = frames[row, None, : number + 1], actions[row, None, : number + 1]
            assert drawn[row].tolist() == plain_refinement(model, clip, uniforms[row], 5)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("kind", ["next_frame", "next_token"])
def test_one_round_is_the_whole_frame_and_many_are_not(kind: str, sampling: SamplingConfig) -> None:
    model = make_model(kind)
    whole, one, four = (
        play(model, make_decoder(name, model.layout, sampling))
        for name in ("whole_frame", "refine:1", "refine:4")
    )
    assert torch.equal(whole[0], one[0])
    assert not torch.equal(whole[0], four[0])
    assert four[1] == [4] * 4


@pytest.mark.parametrize("kind", ["next_frame", "next_token"])
def test_frames_of_a_batch_settle_their_cells_on_their_own(kind: str) -> None:
    model = make_model(kind)
    decoder = make_decoder("refine:6", model.layout, SamplingConfig())
    generator = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 20, (3, 16), generator=generator)
    actions = torch.randint(0, 6, (3, 2), generator=generator)
    uniforms = frame_uniforms([0, 1, 2], [5, 5, 5], 16)

    def drawn(rows: slice) -> Tensor:
        number = len(frames[rows])
        draft = model.observe(model.new_cache(number), frames[rows], actions[rows])
        return decoder.draw_frame(model, draft, uniforms[rows])

    together = drawn(slice(None))
    for row in range(3):
        assert torch.equal(together[row], drawn(slice(row, row + 1))[0])


def test_confidence_noise_is_even_and_apart_from_the_draws() -> None:
    uniforms = frame_uniforms([1] * 100, range(100), 64)
    noise = RefinementDecoder(rounds=4, sampling=SamplingConfig())._noise(uniforms).flatten()
    second = (-(-noise).exp()).exp()
    counts = torch.histc(second, bins=10, min=0.0, max=1.0)
    assert float((counts - 640).abs().max()) < 5 * 640**0.5
    both = torch.stack((uniforms.flatten(), second))
    assert abs(float(torch.corrcoef(both)[0, 1])) < 5 / 6400**0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refine:0", "positive integer"),
        ("refine:x", "positive integer"),
        ("refine:2:warm", "confidence temperature"),
        ("refine:2:-1", "0 or more"),
        ("refine:2:nan", "0 or more"),
    ],
)
def test_impossible_refinements_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_decoder(name, make_model("next_frame").layout, SamplingConfig())
