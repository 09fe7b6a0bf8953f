"""Sequences in one batch, each at a time of its own, are told what each is told alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.factories import tiny_model_config
from worldgen.generation.turns import CacheRows
from worldgen.models import NextFrameTransformer, NextTokenConfig, NextTokenTransformer
from worldgen.models.base import FrameDraft
from worldgen.nn.cache import FrameCache
from worldgen.schedule import make_schedule

ROWS, COLUMNS, CODES, SLOTS, ACTIONS = 3, 4, 20, 2, 6
CELLS = ROWS * COLUMNS
LENGTHS = (5, 9, 6)
"""Frames that each row has had; every row sees as many of them, the longest window is 4."""
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


def caches_of(model: Model) -> list[FrameCache]:
    """Return for each row a cache of the frames that it has had."""
    caches = [model.new_cache(1) for _ in LENGTHS]
    for row, (cache, length) in enumerate(zip(caches, LENGTHS, strict=True)):
        visual_ids, action_ids = steps(row, LENGTHS[row] + 3)
        for frame in range(length):
            model.observe(cache, visual_ids[frame][None], action_ids[frame][None])
    return caches


@torch.no_grad()
@pytest.mark.parametrize("order", ["raster", "diagonal", "strided:4", "whole_frame"])
@pytest.mark.parametrize("make", [next_frame, next_token])
def test_rows_at_different_times_are_told_what_they_are_told_alone(
    make: Callable[[], Model], order: str
) -> None:
    model = make().eval()
    rows, alone = caches_of(model), caches_of(model)
    clips = [steps(row, length + 3) for row, length in enumerate(LENGTHS)]
    groups = make_schedule(order, ROWS, COLUMNS).group_of_cell[None]
    for frame in range(3):
        together = [torch.stack([clip[part][frame - 3] for clip in clips]) for part in (0, 1)]
        draft = model.observe(CacheRows(rows), together[0], together[1])
        scores = model.score(draft, together[0], groups.expand(len(LENGTHS), -1))
        ids, logits = drawn(model, draft, order)
        for row, own in enumerate(alone):
            own_draft = model.observe(own, together[0][row][None], together[1][row][None])
            own_scores = model.score(own_draft, together[0][row][None], groups)
            own_ids, own_logits = drawn(model, own_draft, order)
            assert torch.allclose(scores[row], own_scores[0], atol=1e-5)
            assert torch.allclose(logits[row], own_logits[0], atol=1e-5)
            assert torch.equal(ids[row], own_ids[0])
    assert [cache.num_frames for cache in rows] == [length + 3 for length in LENGTHS]


@torch.no_grad()
def test_the_policy_of_rows_at_different_times_is_that_of_each_alone() -> None:
    model = next_token().eval()
    assert isinstance(model, NextTokenTransformer)
    slot_ids = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])]
    rows = caches_of(model)
    frames = torch.stack([steps(row, length + 1)[0][-1] for row, length in enumerate(LENGTHS)])

    def likeliest(_: int, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    expected = [
        model.predict_action(own, frame[None], slot_ids, likeliest)
        for own, frame in zip(caches_of(model), frames, strict=True)
    ]
    actions = model.predict_action(CacheRows(rows), frames, slot_ids, likeliest)
    assert torch.equal(actions, torch.cat(expected))
