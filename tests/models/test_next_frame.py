"""The interleaved transformer: causal over frames, and its cached path equals the whole clip."""

from pathlib import Path

import pytest
import torch

from tests.factories import tiny_model_config
from worldgen.checkpoint import save_tensors
from worldgen.errors import CheckpointError, ConfigError
from worldgen.models import NextFrameTransformer, load_world_model, save_world_model
from worldgen.models.next_frame import group_masks
from worldgen.schedule import make_schedule

FRAMES = 7


@pytest.fixture
def model() -> NextFrameTransformer:
    torch.manual_seed(0)
    return NextFrameTransformer(tiny_model_config()).eval()


@pytest.fixture
def clip() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    visual_ids = torch.randint(0, 64, (2, FRAMES, 64), generator=generator)
    return visual_ids, torch.randint(0, 6, (2, FRAMES, 2), generator=generator)


@torch.no_grad()
def test_changing_the_future_does_not_change_the_past(
    model: NextFrameTransformer, clip: tuple[torch.Tensor, torch.Tensor]
) -> None:
    visual_ids, action_ids = clip
    before = model(visual_ids, action_ids)
    changed_ids, changed_actions = visual_ids.clone(), action_ids.clone()
    changed_ids[:, 4:] = (changed_ids[:, 4:] + 7) % 64
    changed_actions[:, 4:] = (changed_actions[:, 4:] + 1) % 6
    after = model(changed_ids, changed_actions)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


@torch.no_grad()
@pytest.mark.parametrize("what", ["action", "cell"])
def test_every_cell_depends_on_the_action_and_on_every_cell_of_its_step(
    model: NextFrameTransformer, clip: tuple[torch.Tensor, torch.Tensor], what: str
) -> None:
    visual_ids, action_ids = clip[0].clone(), clip[1].clone()
    before = model(visual_ids, action_ids)[:, 3]
    if what == "action":
        action_ids[:, 3, 0] = (action_ids[:, 3, 0] + 1) % 3
    else:
        visual_ids[:, 3, 63] = (visual_ids[:, 3, 63] + 1) % 64
    after = model(visual_ids, action_ids)[:, 3]
    assert ((before - after).abs().amax(dim=-1) > 1e-6).all()


@torch.no_grad()
def test_observing_step_by_step_equals_the_whole_clip(
    model: NextFrameTransformer, clip: tuple[torch.Tensor, torch.Tensor]
) -> None:
    visual_ids, action_ids = clip
    expected = model(visual_ids, action_ids)
    cache = model.new_cache(2)
    for frame in range(FRAMES):
        draft = model.observe(cache, visual_ids[:, frame], action_ids[:, frame])
        assert torch.allclose(draft.logits, expected[:, frame], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["raster", "diagonal", "diagonal:3", "rows", "blocks:3", "strided:4"]
)
def test_cached_drawing_equals_the_two_stream_pass(
    model: NextFrameTransformer, clip: tuple[torch.Tensor, torch.Tensor], name: str
) -> None:
    visual_ids, action_ids = clip
    schedule = make_schedule(name, 8, 8)
    hidden = model.encode_steps(visual_ids[:, :-1], action_ids[:, :-1])[:, -1]
    masks = group_masks(schedule.group_of_cell.expand(2, -1))
    expected = model.refine(hidden, visual_ids[:, -1], *masks)
    cache = model.new_cache(2)
    for frame in range(FRAMES - 1):
        draft = model.observe(cache, visual_ids[:, frame], action_ids[:, frame])
    for number, group in enumerate(schedule.groups):
        cells = torch.tensor(group)
        logits = model.predict(draft, cells)
        if number:
            assert torch.allclose(logits, expected[:, cells], atol=1e-5)
        model.reveal(draft, cells, visual_ids[:, -1, cells])


@torch.no_grad()
@pytest.mark.parametrize("name", ["raster", "diagonal:3", "rows", "strided:4", "whole_frame"])
def test_one_call_scores_what_decoding_predicts_group_by_group(
    model: NextFrameTransformer, clip: tuple[torch.Tensor, torch.Tensor], name: str
) -> None:
    visual_ids, action_ids = clip
    schedule, other = make_schedule(name, 8, 8), make_schedule("blocks:4", 8, 8)
    cache = model.new_cache(2)
    draft = model.observe(cache, visual_ids[:, 0], action_ids[:, 0])
    groups = torch.stack((schedule.group_of_cell, other.group_of_cell))
    scored = model.score(draft, visual_ids[:, 1], groups)
    for group in schedule.groups:
        cells = torch.tensor(group)
        assert torch.allclose(scored[0, cells], model.predict(draft, cells)[0], atol=1e-5)
        model.reveal(draft, cells, visual_ids[:, 1, cells])
    draft = model.observe(model.new_cache(2), visual_ids[:, 0], action_ids[:, 0])
    for group in other.groups:
        cells = torch.tensor(group)
        assert torch.allclose(scored[1, cells], model.predict(draft, cells)[1], atol=1e-5)
        model.reveal(draft, cells, visual_ids[:, 1, cells])


@torch.no_grad()
def test_cells_of_later_groups_cannot_change_earlier_ones(
    model: NextFrameTransformer, clip: tuple[torch.Tensor, torch.Tensor]
) -> None:
    visual_ids, action_ids = clip
    schedule = make_schedule("strided:4", 8, 8)
    hidden = model.encode_steps(visual_ids[:, :-1], action_ids[:, :-1])[:, -1]
    masks = group_masks(schedule.group_of_cell.expand(2, -1))
    target = visual_ids[:, -1].clone()
    before = model.refine(hidden, target, *masks)
    late = schedule.group_of_cell >= 2
    target[:, late] = (target[:, late] + 5) % 64
    after = model.refine(hidden, target, *masks)
    assert torch.equal(
        before[:, schedule.group_of_cell <= 2], after[:, schedule.group_of_cell <= 2]
    )
    last = schedule.group_of_cell == 3
    assert not torch.allclose(before[:, last], after[:, last])


@torch.no_grad()
def test_rows_of_a_batch_do_not_touch_each_other(
    model: NextFrameTransformer, clip: tuple[torch.Tensor, torch.Tensor]
) -> None:
    visual_ids, action_ids = clip
    together = model(visual_ids, action_ids)
    alone = model(visual_ids[1:], action_ids[1:])
    assert torch.allclose(together[1:], alone, atol=1e-5)


@torch.no_grad()
def test_the_direct_way_from_actions_to_cells_tells_the_frames_of_a_step_apart() -> None:
    torch.manual_seed(0)
    config = tiny_model_config(num_action_tokens=8, frames_per_step=4)
    embedding = NextFrameTransformer(config).embedding
    visual_ids = torch.zeros(1, 1, 64, dtype=torch.int64)
    early, late = (
        torch.tensor([[[1, 3, 0, 3, 0, 3, 0, 3]]]),
        torch.tensor([[[0, 3, 0, 3, 0, 3, 1, 3]]]),
    )
    cells = [embedding(visual_ids, actions)[:, :, 8:] for actions in (early, late)]
    assert ((cells[0] - cells[1]).abs().amax(dim=-1) > 1e-6).all()


@torch.no_grad()
def test_steps_of_several_frames_give_the_same_cached_and_at_once() -> None:
    torch.manual_seed(0)
    model = NextFrameTransformer(tiny_model_config(num_action_tokens=8, frames_per_step=4)).eval()
    visual_ids, action_ids = torch.randint(0, 64, (2, 5, 64)), torch.randint(0, 6, (2, 5, 8))
    expected, cache = model(visual_ids, action_ids), model.new_cache(2)
    for step in range(5):
        draft = model.observe(cache, visual_ids[:, step], action_ids[:, step])
        torch.testing.assert_close(draft.logits, expected[:, step], atol=1e-5, rtol=0.0)


def test_every_weight_is_trained(
    model: NextFrameTransformer, clip: tuple[torch.Tensor, torch.Tensor]
) -> None:
    visual_ids, action_ids = clip
    hidden = model.encode_steps(visual_ids, action_ids)
    masks = group_masks(make_schedule("rows", 8, 8).group_of_cell.expand(2, -1))
    refined = model.refine(hidden[:, -1], visual_ids[:, -1], *masks)
    (model.read(hidden).square().mean() + refined.square().mean()).backward()
    idle = [
        name
        for name, weight in model.named_parameters()
        if weight.grad is None or not weight.grad.abs().max() > 0
    ]
    assert idle == []


def test_a_saved_model_comes_back_the_same(
    model: NextFrameTransformer, clip: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    save_world_model(tmp_path / "model.safetensors", model, note="hello")
    loaded, metadata = load_world_model(tmp_path / "model.safetensors")
    assert metadata["note"] == "hello"
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded(*clip), model(*clip))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {}, {"artifact": "visual_tokenizer"})
    with pytest.raises(CheckpointError, match="visual_tokenizer"):
        load_world_model(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": ()}, "windows"),
        ({"windows": (2, 0)}, "windows"),
        ({"within_frame_depth": 0}, "within_frame_depth"),
        ({"width": 15}, "num_heads that divides width"),
        ({"num_heads": 4, "num_key_value_heads": 3}, "divides num_heads"),
        ({"num_action_tokens": 6, "frames_per_step": 4}, "cannot be shared"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    changes: dict[str, int | tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_model_config(**changes)
