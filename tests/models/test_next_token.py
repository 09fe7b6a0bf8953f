"""The next-token transformer: every fast path against one dense pass that knows no cache."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.models import NextTokenConfig, NextTokenTransformer
from worldgen.nn.attention import attend
from worldgen.schedule import DecodeSchedule, make_schedule

ROWS, COLUMNS, CODES, SLOTS, ACTIONS = 3, 4, 20, 3, 7
CELLS = ROWS * COLUMNS
TOKENS = CELLS + SLOTS
ORDERS = ("raster", "diagonal", "diagonal:2", "rows", "blocks:2", "strided:4", "whole_frame")
Clip = tuple[Tensor, Tensor]


def make_model(mask: str, **changes: object) -> NextTokenTransformer:
    sizes: dict[str, object] = {
        "rows": ROWS,
        "columns": COLUMNS,
        "codebook_size": CODES,
        "num_action_tokens": SLOTS,
        "action_vocabulary_size": ACTIONS,
        "width": 16,
        "num_heads": 4,
        "num_key_value_heads": 2,
        "feed_forward_width": 24,
        "windows": (3, 2, 4),
        "mask": mask,
    }
    torch.manual_seed(0)
    model = NextTokenTransformer(NextTokenConfig(**(sizes | changes)))  # type: ignore[arg-type]
    with torch.no_grad():
        model.stand_in.normal_()
        model.embedding.weight.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def clip() -> Clip:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(0, CODES, (2, 6, CELLS), generator=generator),
        torch.randint(0, ACTIONS, (2, 6, SLOTS), generator=generator),
    )


@dataclass(frozen=True)
class Dense:
    """Attention under one dense mask, cut by each layer's window of frames."""

    windows: tuple[int, ...]
    frame_of: Tensor
    visible: Tensor

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        near = self.frame_of[None] > self.frame_of[:, None] - self.windows[layer]
        return attend(query, key, value, self.visible & near)


@torch.no_grad()
def plain_logits(model: NextTokenTransformer, clip: Clip, schedule: DecodeSchedule) -> Tensor:
    """Return logits of every cell of the last frame, `[batch, cell, codebook]`, token by token.

    One dense pass for each cell, over a list of tokens that is written down anew: those of all
    steps before, those of the frame that are drawn earlier, and the one that asks.
    """
    group_drawn = schedule.group_of_cell.tolist()
    group_mask = model.config.order.group_of_cell.tolist()
    visual_ids, action_ids = clip
    frames = visual_ids.shape[1]
    result = []
    for cell in range(CELLS):
        # frame, place in the step, ids, whether it is a stand-in
        tokens: list[tuple[int, int, Tensor, bool]] = []
        for frame in range(frames - 1):
            tokens += [(frame, c, visual_ids[:, frame, c], False) for c in range(CELLS)]
            tokens += [
                (frame, CELLS + s, action_ids[:, frame, s] + CODES, False) for s in range(SLOTS)
            ]
        drawn = [c for c in range(CELLS) if group_drawn[c] < group_drawn[cell]]
        tokens += [(frames - 1, c, visual_ids[:, -1, c], False) for c in drawn]
        follows = group_mask[cell] == group_mask[cell - 1] + 1
        just_drawn = group_drawn[cell - 1] == group_drawn[cell] - 1
        query = -1
        if cell == 0 and not drawn:
            asking = len(tokens) - 1
        elif cell and follows and just_drawn:
            asking = next(
                n for n, token in enumerate(tokens) if token[:2] == (frames - 1, cell - 1)
            )
        else:
            known = cell - 1 in drawn
            if cell == 0:
                ids = action_ids[:, -2, -1] + CODES
            else:
                ids = visual_ids[:, -1 if known else -2, cell - 1]
            asking = query = len(tokens)
            tokens.append((frames - 1, cell - 1, ids, not known and cell > 0))
        size = len(tokens)
        visible = torch.zeros(size, size, dtype=torch.bool)
        for a, (frame_a, place_a, _, _) in enumerate(tokens):
            for b, (frame_b, place_b, _, _) in enumerate(tokens):
                if a == b or frame_b < frame_a:
                    sees = True
                elif frame_b > frame_a or b == query:
                    sees = False
                elif place_a >= CELLS or place_b >= CELLS:
                    sees = place_b <= place_a
                elif a == query:
                    sees = group_mask[place_b] < group_mask[cell] and place_b != cell - 1
                else:
                    sees = group_mask[place_b] <= group_mask[place_a]
                    if frame_a == frames - 1:
                        sees = sees and group_drawn[place_b] <= group_drawn[place_a]
                visible[a, b] = sees
        frame_of = torch.tensor([token[0] for token in tokens])
        positions = torch.tensor([frame * TOKENS + place for frame, place, _, _ in tokens])
        stream = model.embedding(torch.stack([token[2] for token in tokens], dim=1))
        for number, token in enumerate(tokens):
            if token[3]:
                stream[:, number] += model.stand_in

        output = model.run_blocks(
            stream, model.rotary(positions), Dense(model.windows, frame_of, visible)
        )
        result.append(model.read(output[:, asking])[:, :CODES])
    return torch.stack(result, dim=1)


@torch.no_grad()
def cached_logits(model: NextTokenTransformer, clip: Clip, schedule: DecodeSchedule) -> Tensor:
    visual_ids, action_ids = clip
    cache = model.new_cache(2)
    for frame in range(visual_ids.shape[1] - 1):
        draft = model.observe(cache, visual_ids[:, frame], action_ids[:, frame])
    logits = torch.zeros(2, CELLS, CODES)
    for group in schedule.groups:
        cells = torch.tensor(group)
        logits[:, cells] = model.predict(draft, cells)
        model.reveal(draft, cells, visual_ids[:, -1, cells])
    return logits


@pytest.mark.parametrize("mask", ["raster", "diagonal", "diagonal:2", "whole_frame"])
@pytest.mark.parametrize("order", ORDERS)
def test_cached_drawing_equals_one_dense_pass_for_each_cell(
    clip: Clip, mask: str, order: str
) -> None:
    model, schedule = make_model(mask), make_schedule(order, ROWS, COLUMNS)
    expected = plain_logits(model, clip, schedule)
    assert torch.allclose(cached_logits(model, clip, schedule), expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_training_sees_what_decoding_in_the_same_order_sees(clip: Clip, order: str) -> None:
    model, schedule = make_model(order), make_schedule(order, ROWS, COLUMNS)
    for frames in (2, 4, 6):
        part = clip[0][:, :frames], clip[1][:, :frames]
        cells, _ = model(*part)
        assert torch.allclose(
            cells[:, -1, :, :CODES], cached_logits(model, part, schedule), atol=1e-5
        )


@torch.no_grad()
def test_first_frames_stay_in_sight_of_training_and_of_sessions_alike(clip: Clip) -> None:
    model = make_model("diagonal", windows=(2, 1, 2), sink=1)
    order = make_schedule("diagonal", ROWS, COLUMNS)
    cells, _ = model(*clip)
    assert torch.allclose(cells[:, -1, :, :CODES], cached_logits(model, clip, order), atol=1e-5)
    changed = clip[0].clone()
    changed[:, 0] = (changed[:, 0] + 1) % CODES
    assert not torch.allclose(model(changed, clip[1])[0][:, -1], cells[:, -1], atol=1e-3)
    forgetful = make_model("diagonal", windows=(1, 1, 1))
    assert torch.equal(forgetful(changed, clip[1])[0][:, -1], forgetful(*clip)[0][:, -1])


@torch.no_grad()
@pytest.mark.parametrize(("storage", "tolerance"), [("bfloat16", 0.1), ("int8", 0.1)])
def test_a_smaller_cache_says_nearly_the_same(clip: Clip, storage: str, tolerance: float) -> None:
    exact, small = make_model("raster"), make_model("raster", cache_storage=storage)
    order = make_schedule("raster", ROWS, COLUMNS)
    expected, got = cached_logits(exact, clip, order), cached_logits(small, clip, order)
    assert not torch.equal(expected, got)
    assert (expected - got).abs().max() < tolerance * expected.abs().max()
    assert small.new_cache(2).num_bytes < 0.6 * exact.new_cache(2).num_bytes


@torch.no_grad()
@pytest.mark.parametrize("mask", ["raster", "diagonal", "whole_frame"])
@pytest.mark.parametrize("order", ORDERS)
def test_one_call_scores_what_decoding_predicts_group_by_group(
    clip: Clip, mask: str, order: str
) -> None:
    model, schedule = make_model(mask), make_schedule(order, ROWS, COLUMNS)
    other = make_schedule("strided:4", ROWS, COLUMNS)
    cache = model.new_cache(2)
    for frame in range(5):
        draft = model.observe(cache, clip[0][:, frame], clip[1][:, frame])
    # Each row has an order of its own; scoring in between does not disturb what is being drawn.
    groups = torch.stack((schedule.group_of_cell, other.group_of_cell))
    target = clip[0][:, 5]
    scored = model.score(draft, target, groups)
    for group in schedule.groups:
        cells = torch.tensor(group)
        logits = model.predict(draft, cells)
        assert torch.allclose(scored[0, cells], logits[0], atol=1e-5)
        model.reveal(draft, cells, target[:, cells])
        assert torch.allclose(model.score(draft, target, groups), scored, atol=1e-5)
    expected = cached_logits(model, clip, other)[1]
    assert torch.allclose(scored[1], expected, atol=1e-5)


def test_an_order_of_single_cells_in_a_row_is_raster(clip: Clip) -> None:
    model = make_model("raster")
    lagging = make_schedule(f"diagonal:{COLUMNS}", ROWS, COLUMNS)
    raster = make_schedule("raster", ROWS, COLUMNS)
    assert torch.equal(cached_logits(model, clip, lagging), cached_logits(model, clip, raster))


@torch.no_grad()
def test_what_is_remembered_does_not_depend_on_the_order_of_drawing(clip: Clip) -> None:
    model = make_model("raster")
    visual_ids, action_ids = clip
    caches = []
    for order in ("raster", "strided:4"):
        cache = model.new_cache(2)
        for frame in range(3):
            draft = model.observe(cache, visual_ids[:, frame], action_ids[:, frame])
            for group in make_schedule(order, ROWS, COLUMNS).groups:
                cells = torch.tensor(group)
                model.predict(draft, cells)
                model.reveal(draft, cells, visual_ids[:, frame + 1, cells])
        caches.append(cache)
    for layer in range(3):
        for one, other in zip(*(cache.read_before(layer) for cache in caches), strict=True):
            assert torch.equal(one, other)


@torch.no_grad()
@pytest.mark.parametrize("mask", ["raster", "diagonal", "strided:4"])
def test_changing_what_comes_later_does_not_change_a_prediction(clip: Clip, mask: str) -> None:
    model = make_model(mask)
    visual_ids, action_ids = clip
    cells, actions = model(visual_ids, action_ids)
    group = model.config.order.group_of_cell
    last = group.max()
    changed_ids, changed_actions = visual_ids.clone(), action_ids.clone()
    changed_ids[:, 4:] = (changed_ids[:, 4:] + 3) % CODES
    late = group == last
    changed_ids[:, 3, late] = (visual_ids[:, 3, late] + 3) % CODES
    changed_actions[:, 3:] = (changed_actions[:, 3:] + 1) % ACTIONS
    other_cells, other_actions = model(changed_ids, changed_actions)
    # Frame 3 is entry 2: its cells depend on earlier groups only, none on its own action.
    assert torch.allclose(other_cells[:, :3], cells[:, :3], atol=1e-6)
    assert torch.allclose(other_actions[:, :3], actions[:, :3], atol=1e-6)
    assert not torch.allclose(other_cells[:, 3], cells[:, 3], atol=1e-3)


@torch.no_grad()
def test_the_policy_is_the_whole_clip_s_and_leaves_the_cache_alone(clip: Clip) -> None:
    model = make_model("raster")
    visual_ids, action_ids = clip
    cache = model.new_cache(2)
    for frame in range(5):
        model.observe(cache, visual_ids[:, frame], action_ids[:, frame])
    slot_ids = [torch.tensor([0, 1]), torch.tensor([2, 3, 4]), torch.tensor([5, 6])]
    asked: list[Tensor] = []

    def choose(slot: int, logits: Tensor) -> Tensor:
        asked.append(logits)
        return logits.argmax(dim=-1)

    action = model.predict_action(cache, visual_ids[:, 5], slot_ids, choose)
    assert cache.num_frames == 5
    taken = action_ids.clone()
    taken[:, 5] = action
    _, logits = model(visual_ids, taken)
    for slot, ids in enumerate(slot_ids):
        expected = logits[:, 5, slot][:, CODES + ids]
        assert torch.allclose(asked[slot], expected, atol=1e-5)
        assert torch.equal(action[:, slot], ids[expected.argmax(dim=-1)])


def test_a_world_without_actions_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one action token"):
        make_model("raster", num_action_tokens=0)
    with pytest.raises(ConfigError, match="unknown decoding order"):
        make_model("spiral")
