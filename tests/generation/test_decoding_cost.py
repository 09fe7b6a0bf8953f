"""Cached decoding against a pass over all tokens for every group: equal ids, far less arithmetic."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from worldgen.config import build, load_config
from worldgen.generation import SamplingConfig, make_decoder
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import draw
from worldgen.models import NextTokenConfig, NextTokenTransformer
from worldgen.nn.attention import attend
from worldgen.schedule import DecodeSchedule, make_schedule


@torch.no_grad()
def recomputed_frame(
    model: NextTokenTransformer,
    visual_ids: Tensor,
    action_ids: Tensor,
    schedule: DecodeSchedule,
    uniforms: Tensor,
    sampling: SamplingConfig,
) -> Tensor:
    """Return the ids `[cell]` of the frame after some steps, without any cache.

    For each group one pass over all that is known: the steps before, the cells drawn so far, and
    what asks for cells that no cell just drawn asks for. The slow and obvious way.

    Args:
        model: Whose layers all see that many steps.
        visual_ids: `[frame, cell]`.
        action_ids: `[frame, slot]`.
        schedule: Of the frame.
        uniforms: `[cell]`.
        sampling: How ids are drawn.
    """
    device, cells, step = model.device, model.layout.num_cells, model.layout.tokens_per_step
    steps = model.step_ids(visual_ids, action_ids)
    num_past = steps.numel()
    trained, now = model.config.order.group_of_cell, schedule.group_of_cell
    # The order of the tokens of a step: cells by their group, then the actions.
    order = torch.cat((trained, torch.arange(cells, step) + cells)).repeat(len(steps)).to(device)
    frame = torch.arange(num_past, device=device) // step
    same = frame[None] == frame[:, None]
    past = (frame[None] < frame[:, None]) | same & (order[None] <= order[:, None])
    drawn_ids = torch.zeros(cells, dtype=torch.int64, device=device)
    for number, group in enumerate(schedule.groups):
        known = [cell for earlier_group in schedule.groups[:number] for cell in earlier_group]
        asked_by: dict[int, int] = {}
        asking: list[int] = []
        for cell in group:
            fresh = (
                cell > 0 and now[cell - 1] == number - 1 and trained[cell - 1] + 1 == trained[cell]
            )
            if cell == 0:
                assert not known
                asked_by[cell] = num_past - 1
            elif fresh:
                asked_by[cell] = num_past + known.index(cell - 1)
            else:
                asked_by[cell] = num_past + len(known) + len(asking)
                asking.append(cell)
        place, wanted = torch.tensor(known).long(), torch.tensor(asking).long()
        before = wanted - 1
        drawn_earlier = now[before] < number
        asking_ids = torch.where(
            drawn_earlier.to(device), drawn_ids[before], steps[-1, before].to(device)
        )
        stream = model.embedding(torch.cat((steps.flatten(), drawn_ids[known], asking_ids)))
        end = num_past + len(known)
        stream[end:] += (~drawn_earlier)[:, None].to(stream) * model.stand_in

        a, b = place[:, None], place[None]
        among = (trained[b] <= trained[a]) & (now[b] <= now[a])
        seen = (trained[b] < trained[wanted][:, None]) & (b != before[:, None])
        visible = torch.eye(end + len(asking), dtype=torch.bool, device=device)
        visible[:num_past, :num_past] = past
        visible[num_past:, :num_past] = True
        visible[num_past:, num_past:end] = torch.cat((among, seen)).to(device)

        def see(
            layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor = visible
        ) -> Tensor:
            return attend(query, key, value, mask)

        positions = torch.cat((torch.arange(num_past), num_past + place, num_past + before))
        output = model.run_blocks(stream[None], model.rotary(positions), see)
        logits = model.read(output[0, [asked_by[cell] for cell in group]])
        chosen = list(group)
        drawn_ids[chosen] = draw(
            logits[:, : model.codebook_size], uniforms[chosen].to(device), sampling
        )
    return drawn_ids


@torch.no_grad()
@pytest.mark.parametrize("sampling", [SamplingConfig(temperature=0.0), SamplingConfig(top_p=0.9)])
@pytest.mark.parametrize("mask", ["raster", "diagonal"])
@pytest.mark.parametrize("order", ["raster", "diagonal", "diagonal:2", "rows"])
def test_a_world_decoded_on_its_cache_is_the_one_recomputed_for_every_group(
    order: str, mask: str, sampling: SamplingConfig
) -> None:
    torch.manual_seed(0)
    model = NextTokenTransformer(
        NextTokenConfig(
            rows=4,
            columns=5,
            codebook_size=32,
            num_action_tokens=3,
            action_vocabulary_size=6,
            width=16,
            num_heads=4,
            num_key_value_heads=2,
            feed_forward_width=24,
            windows=(6, 6),
            mask=mask,
        )
    )
    for parameter in (model.stand_in, model.embedding.weight, model.readout.weight):
        parameter.normal_()
    actions = torch.randint(0, 6, (5, 3))
    decoder = make_decoder(order, model.layout, sampling)
    schedule = make_schedule(order, 4, 5)
    frames = torch.randint(0, 32, (1, 20))
    cache = model.new_cache(1)
    for number in range(4):
        uniforms = frame_uniforms([7], [number], 20)
        draft = model.observe(cache, frames[-1:], actions[number][None])
        drawn = decoder.draw_frame(model, draft, uniforms)
        expected = recomputed_frame(
            model, frames, actions[: number + 1], schedule, uniforms[0], sampling
        )
        assert drawn[0].tolist() == expected.tolist(), number
        frames = torch.cat((frames, drawn))
    assert len(frames.unique(dim=0)) == 5


def test_the_300m_model_on_its_cache_needs_a_twentieth_of_the_arithmetic_at_most() -> None:
    # One layer of twenty. The others cost as much again on both sides; the readout does not grow
    # with depth and weighs more on the cached side, so the whole model gains even more.
    config = mineworld_300m(depth=1)
    greedy = SamplingConfig(temperature=0.0)
    schedule = make_schedule("diagonal", config.rows, config.columns)
    cells, window = config.layout.num_cells, config.windows[0]
    visual_ids = torch.randint(0, config.codebook_size, (window - 1, cells))
    action_ids = torch.randint(0, config.action_vocabulary_size, (window - 1, 11))
    uniforms = torch.zeros(1, cells)

    model = NextTokenTransformer(config).eval()
    cache = model.new_cache(1)
    for _ in range(window - 2):
        # What earlier frames left; its values do not matter here.
        heads, head_width = config.num_key_value_heads, config.width // config.num_heads
        left = torch.randn(1, heads, config.layout.tokens_per_step, head_width)
        cache.write_and_read(0, left, left)
        cache.advance()
    decoder = make_decoder("diagonal", config.layout, greedy)
    # The counter knows attention as products of matrices, not as the fused kernel for CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as cached:
        draft = model.observe(cache, visual_ids[-1:], action_ids[-1:])
        drawn = decoder.draw_frame(model, draft, uniforms)
    assert drawn.shape == (1, cells)

    # Shapes alone: carried out, it would take minutes.
    with torch.device("meta"):
        shapes = NextTokenTransformer(config)
    with FlopCounterMode(display=False) as recomputed:
        recomputed_frame(shapes, visual_ids, action_ids, schedule, uniforms[0], greedy)

    tokens_before = (window - 1) * config.layout.tokens_per_step
    by_hand = counted_by_hand(config, schedule, tokens_before)
    assert recomputed.get_total_flops() == by_hand
    assert cached.get_total_flops() * 20 <= recomputed.get_total_flops()


def counted_by_hand(config: NextTokenConfig, schedule: DecodeSchedule, tokens_before: int) -> int:
    """Return the operations of `recomputed_frame`: two for each multiplication."""
    kv_width = config.num_key_value_heads * (config.width // config.num_heads)
    weights = config.width * (2 * config.width + 2 * kv_width + 3 * config.feed_forward_width)
    total, known = 0, 0
    trained, now = config.order.group_of_cell, schedule.group_of_cell
    for number, group in enumerate(schedule.groups):
        asking = sum(
            cell > 0
            and not (now[cell - 1] == number - 1 and trained[cell - 1] + 1 == trained[cell])
            for cell in group
        )
        tokens = tokens_before + known + int(asking)
        layer = 2 * tokens * weights + 4 * tokens * tokens * config.width
        total += len(config.windows) * layer
        total += 2 * len(group) * config.width * config.vocabulary_size
        known += len(group)
    return total


def mineworld_300m(depth: int) -> NextTokenConfig:
    """Return the shipped configuration at MineWorld's grid, codebook and actions, less deep."""
    preset = dict(load_config("world_model", ["experiment=mineworld_300m_16f"]).model)
    del preset["family"]
    grid = {"rows": 14, "columns": 24, "codebook_size": 8192}
    actions = {"num_action_tokens": 11, "action_vocabulary_size": 70}
    config = build(
        NextTokenConfig, {**preset, "windows": list(preset["windows"]), **grid, **actions}
    )
    assert (config.width, len(config.windows)) == (1024, 20)
    return dataclasses.replace(config, windows=config.windows[:depth])
