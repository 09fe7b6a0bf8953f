"""The driving transformer: causal in time and within the frame, in any order, cached and at once."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from worldgen.config import config_dir
from worldgen.errors import ConfigError
from worldgen.models import (
    DrivingConfig,
    DrivingTransformer,
    Policy,
    WorldModel,
    load_world_model,
    save_world_model,
    world_model_config,
)
from worldgen.models.driving_blocks import carriers, cell_distances
from worldgen.schedule import make_schedule

FRAMES, ROWS, COLUMNS, CELLS = 7, 4, 5, 20
ORDERS = ["raster", "diagonal", "diagonal:3", "rows", "blocks:2", "strided:4", "outward"]
OPTIONS = [torch.arange(4), torch.arange(4, 10)]


def config_of(**changes: Any) -> DrivingConfig:
    sizes: dict[str, Any] = {
        "rows": ROWS,
        "columns": COLUMNS,
        "codebook_size": 32,
        "num_action_tokens": 2,
        "action_vocabulary_size": 10,
        "slot_options": (4, 6),
        "width": 16,
        "num_heads": 2,
        "context_depth": 2,
        "within_frame_depth": 2,
        "window": 3,
        "code_width": 8,
        "motion_width": 8,
    }
    return DrivingConfig(**(sizes | changes))


def model_of(**changes: Any) -> DrivingTransformer:
    torch.manual_seed(0)
    model = DrivingTransformer(config_of(**changes)).eval()
    # What the weights of a fresh model make of their input is faint in the last digits.
    with torch.no_grad():
        model.start.normal_()
        model.origin_row.normal_()
        model.origin_column.normal_()
    return model


@pytest.fixture
def model() -> DrivingTransformer:
    return model_of()


@pytest.fixture
def clip() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    visual_ids = torch.randint(0, 32, (2, FRAMES, CELLS), generator=generator)
    slots = [
        torch.randint(int(ids[0]), int(ids[-1]) + 1, (2, FRAMES), generator=generator)
        for ids in OPTIONS
    ]
    return visual_ids, torch.stack(slots, dim=-1)


def order_of(name: str) -> Tensor:
    return make_schedule(name, ROWS, COLUMNS).group_of_cell


def differs(before: Tensor, after: Tensor) -> Tensor:
    """Return where vectors differ, `[...]` of `[..., width]`."""
    return (before - after).abs().amax(dim=-1) > 1e-6


def test_it_is_a_world_model_and_a_policy(model: DrivingTransformer) -> None:
    assert isinstance(model, WorldModel)
    assert isinstance(model, Policy)


# What depends on what


@torch.no_grad()
@pytest.mark.parametrize("time_positions", ["rotary", "window"])
def test_changing_the_future_does_not_change_the_past(
    clip: tuple[Tensor, Tensor], time_positions: str
) -> None:
    model, (visual_ids, actions) = model_of(time_positions=time_positions), clip
    before = model.encode_steps(visual_ids, actions)
    later_ids, later_actions = visual_ids.clone(), actions.clone()
    later_ids[:, 4:] = (later_ids[:, 4:] + 7) % 32
    # The action of a frame is read with the frame that it leads to.
    later_actions[:, 3:, 0] = (later_actions[:, 3:, 0] + 1) % 4
    after = model.encode_steps(later_ids, later_actions)
    assert torch.equal(before[:, :4], after[:, :4])
    assert differs(before[:, 4], after[:, 4]).all()


@torch.no_grad()
@pytest.mark.parametrize("what", ["action", "cell"])
def test_every_slot_depends_on_every_frame_that_the_layers_reach(
    model: DrivingTransformer, clip: tuple[Tensor, Tensor], what: str
) -> None:
    visual_ids, actions = clip[0].clone(), clip[1].clone()
    before = model.encode_steps(visual_ids, actions)
    if what == "action":
        actions[:, 0, 1] = 4 + (actions[:, 0, 1] - 3) % 6
    else:
        visual_ids[:, 1, 7] = (visual_ids[:, 1, 7] + 1) % 32
    changed = differs(before, model.encode_steps(visual_ids, actions))
    # Two layers over time that see two frames back each: four frames back and no more.
    assert changed[:, 1:6].all()
    assert not changed[:, [0, 6]].any()


@torch.no_grad()
@pytest.mark.parametrize("name", ORDERS)
def test_a_slot_depends_on_all_slots_drawn_before_it_and_on_no_other(
    model: DrivingTransformer, clip: tuple[Tensor, Tensor], name: str
) -> None:
    visual_ids, actions = clip[0][:, :2], clip[1][:, :2]
    order = order_of(name)
    states = model.encode_steps(visual_ids[:, :1], actions[:, :1])

    def answers(frame: Tensor, action: Tensor) -> Tensor:
        cells, _ = model.refine(states, frame[:, None], action[:, None], order)
        return cells[:, 0]

    frame, action = visual_ids[:, 1], actions[:, 0]
    before = answers(frame, action)
    for cell in (0, 3, 7, 11, 16, 19):
        other = frame.clone()
        other[:, cell] = (other[:, cell] + 5) % 32
        changed = differs(before, answers(other, action))
        assert torch.equal(changed, (order > order[cell]).expand_as(changed)), cell
    turned = action.clone()
    turned[:, 0] = (turned[:, 0] + 1) % 4
    assert differs(before, answers(frame, turned)).all()


@torch.no_grad()
def test_the_slots_of_an_action_follow_on_each_other(
    model: DrivingTransformer, clip: tuple[Tensor, Tensor]
) -> None:
    visual_ids, actions = clip
    before = model(visual_ids, actions)[1]
    changed = actions.clone()
    changed[:, :, 1] = 4 + (changed[:, :, 1] - 3) % 6
    first, second = model(visual_ids, changed)[1]
    # The first frames, before the change has become the past.
    assert torch.equal(first[:, 0], before[0][:, 0])
    assert torch.equal(second[:, 0], before[1][:, 0])
    changed[:, :, 0] = (changed[:, :, 0] + 1) % 4
    first, second = model(visual_ids, changed)[1]
    assert torch.equal(first[:, 0], before[0][:, 0])
    assert differs(second[:, 0], before[1][:, 0]).all()


@torch.no_grad()
def test_rows_of_a_batch_do_not_touch_each_other(
    model: DrivingTransformer, clip: tuple[Tensor, Tensor]
) -> None:
    orders = torch.stack((order_of("rows"), order_of("strided:4")))
    together = model(*clip, orders)
    alone = model(clip[0][1:], clip[1][1:], orders[1])
    torch.testing.assert_close(together[0][1:], alone[0], rtol=0, atol=1e-5)
    for one, other in zip(together[1], alone[1], strict=True):
        torch.testing.assert_close(one[1:], other, rtol=0, atol=1e-5)


@torch.no_grad()
def test_clips_without_actions_do_not_look_at_them(
    model: DrivingTransformer, clip: tuple[Tensor, Tensor]
) -> None:
    visual_ids, actions = clip
    known = torch.tensor([True, False])
    others = actions.clone()
    others[..., 0] = (others[..., 0] + 1) % 4
    cells, slots = model(visual_ids, actions, known_actions=known)
    other_cells, other_slots = model(visual_ids, others, known_actions=known)
    assert torch.equal(cells[1], other_cells[1])
    assert not torch.allclose(cells[0], other_cells[0])
    assert all(torch.equal(a[1], b[1]) for a, b in zip(slots, other_slots, strict=True))
    # A row with actions is as if all had them.
    torch.testing.assert_close(cells[0], model(visual_ids, actions)[0][0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_first_action_can_be_given_once_for_all_or_for_each_clip(
    clip: tuple[Tensor, Tensor],
) -> None:
    visual_ids, actions = clip
    model = model_of(first_action=(1, 7))
    given = torch.tensor([[1, 7], [3, 4]])
    usual, other = (
        model.encode_steps(visual_ids, actions, first_action=first) for first in (None, given)
    )
    torch.testing.assert_close(usual[0], other[0], rtol=0, atol=1e-5)
    assert differs(usual[1, 0], other[1, 0]).all()


# In any order, cached and at once


@torch.no_grad()
@pytest.mark.parametrize("time_positions", ["rotary", "window"])
def test_observing_step_by_step_equals_the_whole_clip(
    clip: tuple[Tensor, Tensor], time_positions: str
) -> None:
    model, (visual_ids, actions) = model_of(time_positions=time_positions), clip
    expected, cache = model.encode_steps(visual_ids, actions), model.new_cache(2)
    for frame in range(FRAMES):
        draft = model.observe(cache, visual_ids[:, frame], actions[:, frame])
        torch.testing.assert_close(draft.states, expected[:, frame], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", [*ORDERS, "whole_frame"])
@pytest.mark.parametrize("cell_positions", ["grid", "folded"])
def test_drawing_group_by_group_equals_all_slots_at_once(
    clip: tuple[Tensor, Tensor], name: str, cell_positions: str
) -> None:
    model, (visual_ids, actions) = model_of(cell_positions=cell_positions), clip
    schedule, other = make_schedule(name, ROWS, COLUMNS), make_schedule("strided:3", ROWS, COLUMNS)
    orders = torch.stack((schedule.group_of_cell, other.group_of_cell))
    expected = model(visual_ids, actions, orders)[0][:, 2]
    cache = model.new_cache(2)
    for frame in range(3):
        draft = model.observe(cache, visual_ids[:, frame], actions[:, frame])
    # Numbers of groups may have gaps.
    scored = model.score(draft, visual_ids[:, 3], 3 * orders)
    torch.testing.assert_close(scored, expected, rtol=0, atol=1e-5)
    for group in schedule.groups:
        cells = torch.tensor(group)
        logits = model.predict(draft, cells)
        torch.testing.assert_close(logits[0], expected[0, cells], rtol=0, atol=1e-5)
        model.reveal(draft, cells, visual_ids[:, 3, cells])
    assert draft.calls == 1 + len(schedule.groups)


@torch.no_grad()
def test_cells_asked_for_and_not_revealed_leave_no_trace(
    model: DrivingTransformer, clip: tuple[Tensor, Tensor]
) -> None:
    visual_ids, actions = clip
    groups = [torch.tensor([0, 6, 3]), torch.tensor([19, 2]), torch.tensor([4, 1, 8, 9])]
    order = torch.full((CELLS,), 3)
    for number, group in enumerate(groups):
        order[group] = number
    expected = model(visual_ids[:, :2], actions[:, :2], order)[0][:, 0]
    draft = model.observe(model.new_cache(2), visual_ids[:, 0], actions[:, 0])
    left = torch.arange(CELLS)
    for number, group in enumerate(groups):
        # More than is revealed, twice; then nothing at all of the second group.
        if number != 1:
            model.predict(draft, left)
            model.predict(draft, left.flip(0))
        if number == 2:
            logits = model.predict(draft, group)
            torch.testing.assert_close(logits, expected[:, group], rtol=0, atol=1e-5)
        left = left[~torch.isin(left, group)]
        model.reveal(draft, group, visual_ids[:, 1, group])
        if number == 0:
            model.predict(draft, left)
    logits = model.predict(draft, left)
    torch.testing.assert_close(logits, expected[:, left], rtol=0, atol=1e-5)


def test_two_groups_cannot_be_revealed_as_one(
    model: DrivingTransformer, clip: tuple[Tensor, Tensor]
) -> None:
    draft = model.observe(model.new_cache(2), clip[0][:, 0], clip[1][:, 0])
    model.reveal(draft, torch.tensor([0]), clip[0][:, 1, :1])
    with pytest.raises(AssertionError, match="would merge two groups"):
        model.reveal(draft, torch.tensor([1]), clip[0][:, 1, :1])


@torch.no_grad()
def test_the_model_drives_by_what_the_whole_clip_predicts(
    model: DrivingTransformer, clip: tuple[Tensor, Tensor]
) -> None:
    visual_ids, actions = clip
    cache = model.new_cache(2)
    for frame in range(4):
        told: list[Tensor] = []

        def choose(slot: int, logits: Tensor, told: list[Tensor] = told) -> Tensor:
            told.append(logits)
            return logits.argmin(dim=-1)

        # The second slot may take every other option only.
        allowed = [OPTIONS[0], OPTIONS[1][::2]]
        drawn = model.predict_action(cache, visual_ids[:, frame], allowed, choose)
        assert cache.num_frames == frame
        driven = torch.cat((actions[:, :frame], drawn[:, None]), dim=1)
        seen = torch.cat((visual_ids[:, : frame + 1], visual_ids[:, :1]), dim=1)
        first, second = model(seen, driven)[1]
        torch.testing.assert_close(told[0], first[:, -1], rtol=0, atol=1e-5)
        torch.testing.assert_close(told[1], second[:, -1, ::2], rtol=0, atol=1e-5)
        assert torch.equal(drawn[:, 0], told[0].argmin(dim=-1))
        assert torch.equal(drawn[:, 1], 4 + 2 * told[1].argmin(dim=-1))
        model.observe(cache, visual_ids[:, frame], actions[:, frame])


@torch.no_grad()
def test_a_world_without_actions_begins_its_frames_with_the_start_alone(
    clip: tuple[Tensor, Tensor],
) -> None:
    model = model_of(num_action_tokens=0, action_vocabulary_size=0, slot_options=())
    visual_ids, nothing = clip[0], clip[1][..., :0]
    expected, slots = model(visual_ids, nothing, order_of("rows"))
    assert slots == ()
    cache = model.new_cache(2)
    for frame in range(3):
        draft = model.observe(cache, visual_ids[:, frame], nothing[:, frame])
    for group in make_schedule("rows", ROWS, COLUMNS).groups:
        cells = torch.tensor(group)
        logits = model.predict(draft, cells)
        torch.testing.assert_close(logits, expected[:, 2, cells], rtol=0, atol=1e-5)
        model.reveal(draft, cells, visual_ids[:, 3, cells])


# Who carries what


def test_in_raster_order_each_cell_carries_the_one_before_it() -> None:
    order = torch.arange(CELLS)
    distance = cell_distances(ROWS, COLUMNS, order.device)
    carried_by = carriers(distance, order + 1 == order[:, None])
    assert torch.equal(carried_by, torch.diag(torch.ones(CELLS - 1), -1).bool())


@pytest.mark.parametrize("name", [*ORDERS, "whole_frame", "blocks:3", "strided:9", "diagonal:2"])
def test_every_cell_carries_something_and_everything_is_carried(name: str) -> None:
    groups = make_schedule(name, ROWS, COLUMNS).groups
    distance = cell_distances(ROWS, COLUMNS, torch.device("cpu"))
    order = order_of(name)
    at_once = carriers(distance, order + 1 == order[:, None])
    expected = torch.zeros(CELLS, CELLS, dtype=torch.bool)
    for before, now in itertools.pairwise(groups):
        near = {(a, b): (steps(a, b), a // COLUMNS != b // COLUMNS) for a in now for b in before}
        taken = {a: min(before, key=lambda b: (*near[a, b], b)) for a in now}
        for b in before:
            if b not in taken.values():
                expected[min(now, key=lambda a: (*near[a, b], a)), b] = True
        for a, b in taken.items():
            expected[a, b] = True
        pairs = distance[list(now)][:, list(before)]
        alone = carriers(pairs)
        assert alone.any(dim=0).all()
        assert alone.any(dim=1).all()
        assert torch.equal(alone, expected[list(now)][:, list(before)])
    assert torch.equal(at_once, expected)


def steps(a: int, b: int) -> int:
    return abs(a // COLUMNS - b // COLUMNS) + abs(a % COLUMNS - b % COLUMNS)


# Sizes, weights and files


def test_every_weight_is_trained(model: DrivingTransformer, clip: tuple[Tensor, Tensor]) -> None:
    cells, slots = model(*clip, order_of("diagonal"))
    (cells.square().mean() + sum(slot.square().mean() for slot in slots)).backward()
    idle = [
        name
        for name, weight in model.named_parameters()
        if weight.grad is None or not weight.grad.abs().max() > 0
    ]
    assert idle == []


def test_it_learns_by_heart(clip: tuple[Tensor, Tensor]) -> None:
    model, (visual_ids, actions) = model_of().train(), clip
    targets = [*(actions[:, :-1] - torch.tensor([0, 4])).unbind(-1), visual_ids[:, 1:]]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss() -> Tensor:
        cells, slots = model(visual_ids, actions, order_of("rows"))
        terms = [
            torch.nn.functional.cross_entropy(logits.flatten(0, -2), target.flatten())
            for logits, target in zip((*slots, cells), targets, strict=True)
        ]
        return torch.stack(terms).sum()

    first = float(loss().detach())
    for _ in range(40):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert float(loss().detach()) < 0.3 * first


def test_a_saved_model_comes_back_the_same(
    model: DrivingTransformer, clip: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    save_world_model(tmp_path / "model.safetensors", model, note="hello")
    loaded, metadata = load_world_model(tmp_path / "model.safetensors")
    assert metadata["note"] == "hello"
    assert metadata["family"] == "driving"
    assert isinstance(loaded, DrivingTransformer)
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded(*clip)[0], model(*clip)[0])


@pytest.mark.parametrize(("name", "millions"), [("driving_1b", 1002), ("driving_small", 4)])
def test_presets_have_the_sizes_that_they_claim(name: str, millions: int) -> None:
    large = name == "driving_1b"
    preset = yaml.safe_load((config_dir() / "model" / f"{name}.yaml").read_text())
    family = preset.pop("family")
    config = world_model_config(
        family,
        preset
        | {
            "rows": 16 if large else 8,
            "columns": 32 if large else 8,
            "codebook_size": 16384 if large else 1024,
            "num_action_tokens": 3,
            "action_vocabulary_size": 768,
            "slot_options": [512, 128, 128],
        },
    )
    assert isinstance(config, DrivingConfig)
    with torch.device("meta"):
        model = DrivingTransformer(config)
    assert sum(weight.numel() for weight in model.parameters()) // 10**6 == millions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window must be at least 1"),
        ({"context_depth": 0}, "context_depth must be at least 1"),
        ({"frames_per_step": 2}, "frames_per_step 2; choose a tokenizer of single frames"),
        ({"slot_options": (4, 6, 1)}, "each of the 2 action tokens"),
        ({"slot_options": (10, 0)}, "of at least 1 for each"),
        ({"slot_options": (4, 5)}, "9 ids together, the action vocabulary has 10"),
        ({"first_action": (1,)}, "one id of each slot"),
        ({"first_action": (1, 3)}, r"begin at \(0, 4\), got \(1, 3\)"),
        ({"num_heads": 3}, "num_heads must divide width"),
        ({"num_heads": 8}, "a multiple of 4 channels"),
        ({"motion_width": 7}, "motion_width must be even"),
        ({"time_positions": "sideways"}, "time_positions must be 'rotary' or 'window'"),
        ({"cell_positions": "sideways"}, "cell_positions must be 'grid' or 'folded'"),
        ({"rows": 0}, "rows and columns of at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**changes)
