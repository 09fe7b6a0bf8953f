"""Sequences of different lengths in one batch are told what each is told alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.factories import tiny_model_config
from worldgen.models import NextFrameTransformer, NextTokenConfig, NextTokenTransformer
from worldgen.models.base import FrameDraft
from worldgen.nn.pooled_cache import PooledFrameCache
from worldgen.schedule import make_schedule

ROWS, COLUMNS, CODES, SLOTS, ACTIONS = 3, 4, 20, 2, 6
CELLS = ROWS * COLUMNS
LENGTHS = (1, 6, 3)
"""Frames that each row has seen; the longest window is 4."""
Model = NextFrameTransformer | NextTokenTransformer


def next_frame() -> Model:
    torch.manual_seed(0)
    return NextFrameTransformer(tiny_model_config(rows=ROWS, columns=COLUMNS, codebook_size=CODES))


def next_token() -> Model:
    torch.manual_seed(0)
    return NextTokenTransformer(
        NextTokenConfig(
            rows=ROWS,
            columns=COLUMNS,
            codebook_size=CODES,
            num_action_tokens=SLOTS,
            action_vocabulary_size=ACTIONS,
            width=16,
            num_heads=4,
            num_key_value_heads=2,
            feed_forward_width=24,
            windows=(3, 2, 4),
            mask="diagonal",
        )
    )


def steps(row: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(row)
    return (
        torch.randint(0, CODES, (count, CELLS), generator=generator),
        torch.randint(0, ACTIONS, (count, SLOTS), generator=generator),
    )


def drawn(model: Model, draft: FrameDraft, order: str) -> tuple[Tensor, Tensor]:
    """Return the most likely ids of a frame, and the logits that they were taken from."""
    ids, logits = [], []
    groups = make_schedule(order, ROWS, COLUMNS).groups
    for number, group in enumerate(groups):
        cells = torch.tensor(group)
        logits.append(model.predict(draft, cells))
        ids.append(logits[-1].argmax(dim=-1))
        if number < len(groups) - 1:
            model.reveal(draft, cells, ids[-1])
    return torch.cat(ids, dim=1), torch.cat(logits, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("order", ["raster", "diagonal", "strided:4", "whole_frame"])
@pytest.mark.parametrize("make", [next_frame, next_token])
def test_rows_of_different_lengths_are_told_what_they_are_told_alone(
    make: Callable[[], Model], order: str, fixed: bool
) -> None:
    model = make().eval()
    pool = PooledFrameCache(model.cache_config(), slots=len(LENGTHS))
    slots = [pool.join() for _ in LENGTHS]
    alone = [model.new_cache(1) for _ in LENGTHS]
    clips = [steps(row, length + 3) for row, length in enumerate(LENGTHS)]
    for row, length in enumerate(LENGTHS):
        for frame in range(length):
            step = clips[row][0][frame][None], clips[row][1][frame][None]
            with pool.batch([slots[row]]) as cache:
                model.observe(cache, *step)
            model.observe(alone[row], *step)
    groups = make_schedule(order, ROWS, COLUMNS).group_of_cell[None]
    for frame in range(3):
        together = [torch.stack([clip[part][frame - 3] for clip in clips]) for part in (0, 1)]
        with pool.batch(slots, fixed=fixed) as cache:
            draft = model.observe(cache, *together)
            scores = model.score(draft, together[0], groups.expand(len(LENGTHS), -1))
            ids, logits = drawn(model, draft, order)
        for row, own in enumerate(alone):
            own_draft = model.observe(own, *(part[row][None] for part in together))
            own_scores = model.score(own_draft, together[0][row][None], groups)
            own_ids, own_logits = drawn(model, own_draft, order)
            assert torch.allclose(scores[row], own_scores[0], atol=1e-5)
            assert torch.allclose(logits[row], own_logits[0], atol=1e-5)
            assert torch.equal(ids[row], own_ids[0])


@torch.no_grad()
def test_the_policy_of_rows_of_different_lengths_is_that_of_each_alone() -> None:
    model = next_token().eval()
    assert isinstance(model, NextTokenTransformer)
    pool = PooledFrameCache(model.cache_config(), slots=len(LENGTHS))
    slots = [pool.join() for _ in LENGTHS]
    slot_ids = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])]
    expected, frames = [], []
    for row, length in enumerate(LENGTHS):
        own = model.new_cache(1)
        visual_ids, action_ids = steps(row, length + 1)
        for frame in range(length):
            step = visual_ids[frame][None], action_ids[frame][None]
            model.observe(own, *step)
            with pool.batch([slots[row]]) as cache:
                model.observe(cache, *step)
        frames.append(visual_ids[length])
        expected.append(
            model.predict_action(own, frames[-1][None], slot_ids, lambda _, x: x.argmax(dim=-1))
        )
    with pool.batch(slots) as cache:
        actions = model.predict_action(
            cache, torch.stack(frames), slot_ids, lambda _, x: x.argmax(dim=-1)
        )
    assert torch.equal(actions, torch.cat(expected))
