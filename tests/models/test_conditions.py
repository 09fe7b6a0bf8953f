"""What steps are told: cached as at once, silent until trained, and never about the past."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from tests.factories import tiny_model_config
from worldgen.errors import ConfigError
from worldgen.generation.turns import CacheRows
from worldgen.generation.wrapped import WrappedModel
from worldgen.models import (
    DrivingConfig,
    DrivingTransformer,
    NextFrameTransformer,
    NextTokenConfig,
    NextTokenTransformer,
    StepConditions,
    WorldModel,
    build_world_model,
    stack_conditions,
    world_model_config,
)

ROWS, COLUMNS, CODES, SLOTS, ACTIONS = 3, 4, 20, 2, 6
CELLS, TOKENS = ROWS * COLUMNS, ROWS * COLUMNS + SLOTS
SMALL: dict[str, int | tuple[int, ...]] = {
    "rows": ROWS,
    "columns": COLUMNS,
    "codebook_size": CODES,
}
PARTS: dict[str, int | tuple[int, ...]] = {
    "longest_jump": 4,
    "farthest_goal": 6,
    "recall_after": 3,
    "noise_levels": 3,
}
TEXT: dict[str, int | tuple[int, ...]] = {"text_vocabulary_size": 30, "sink": 1}
BATCH, FRAMES = 2, 14
"""The longest window is 4: it is passed three times."""
KINDS = {
    "times": ("times",),
    "jumps": ("later_actions",),
    "goals": ("goal_ids", "goal_distance"),
    "recall": ("recalled_ids",),
    "noise": ("noise_level",),
    "all": tuple(field.name for field in fields(StepConditions)),
}


def told_model(*, text: bool = True, **changes: int | tuple[int, ...]) -> NextFrameTransformer:
    """Return a model with every part, as if trained: none of them is silent."""
    torch.manual_seed(0)
    model = NextFrameTransformer(
        tiny_model_config(**(SMALL | PARTS | (TEXT if text else {}) | changes))
    )
    for weight in model.parameters():
        if not weight.abs().max() > 0:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def clip(seed: int = 1, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, CODES, (batch, FRAMES, CELLS), generator=generator),
        torch.randint(0, ACTIONS, (batch, FRAMES, SLOTS), generator=generator),
    )


def texts(seed: int = 2, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 30, (batch, TOKENS), generator=generator)


def everything(seed: int = 3, batch: int = BATCH) -> StepConditions:
    """Return conditions of every kind; each says nothing in some steps."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, (batch, FRAMES, *shape), generator=generator)

    skipped = torch.arange(3) < draw(0, 4)[..., None]
    recalled = torch.where(draw(0, 2, 1, 1) > 0, draw(0, CODES, 3, CELLS), -1)
    return StepConditions(
        times=draw(1, 4).cumsum(dim=1),
        later_actions=torch.where(skipped[..., None], draw(0, ACTIONS, 3, SLOTS), -1),
        goal_ids=draw(0, CODES, CELLS),
        goal_distance=draw(0, 7),
        recalled_ids=recalled,
        noise_level=draw(0, 3),
    )


def parts(conditions: StepConditions) -> dict[str, Tensor]:
    return {name: getattr(conditions, name) for name in KINDS["all"]}


def only(conditions: StepConditions, kind: str) -> StepConditions:
    return StepConditions(**{name: getattr(conditions, name) for name in KINDS[kind]})


def step(number: int) -> slice:
    return slice(number, number + 1)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["none", "null", "given"])
def test_observing_step_by_step_equals_the_whole_clip(kind: str, text: str) -> None:
    model = told_model(text=text != "none")
    (visual_ids, action_ids), conditions = clip(), only(everything(), kind)
    text_ids = texts() if text == "given" else None
    expected, cache = model(visual_ids, action_ids, conditions, text_ids), model.new_cache(BATCH)
    logits = []
    if text_ids is not None:
        draft = model.observe_text(cache, text_ids)
        assert torch.equal(draft.previous_ids, torch.zeros(BATCH, CELLS, dtype=torch.int64))
        logits.append(draft.logits)
    for frame in range(FRAMES):
        told = conditions.frames(step(frame))
        draft = model.observe(cache, visual_ids[:, frame], action_ids[:, frame], told)
        assert torch.equal(draft.previous_ids, visual_ids[:, frame])
        logits.append(draft.logits)
    assert cache.num_frames == FRAMES + (text != "none")
    assert expected.shape[1] == FRAMES + (text == "given")
    torch.testing.assert_close(torch.stack(logits, dim=1), expected, atol=1e-5, rtol=0.0)


@torch.no_grad()
def test_observing_equals_the_whole_clip_where_far_frames_are_kept_and_fade() -> None:
    model = told_model(far_frames=3, far_patch=(3, 2), time_decay=1)
    (visual_ids, action_ids), conditions = clip(), everything()
    expected, cache = model(visual_ids, action_ids, conditions, texts()), model.new_cache(BATCH)
    model.observe_text(cache, texts())
    for frame in range(FRAMES):
        told = conditions.frames(step(frame))
        logits = model.observe(cache, visual_ids[:, frame], action_ids[:, frame], told).logits
        torch.testing.assert_close(logits, expected[:, frame + 1], atol=1e-5, rtol=0.0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_heard_in_its_own_step_and_never_before(kind: str) -> None:
    model, (visual_ids, action_ids), conditions = told_model(), clip(), everything()
    before = model(visual_ids, action_ids, conditions, texts())
    given, other = parts(conditions), parts(everything(seed=4))
    # Neither of the two may say the same in the step that is looked at.
    other |= {
        "times": given["times"] + 5,
        "later_actions": (given["later_actions"].clamp(min=0) + 1) % ACTIONS,
        "goal_distance": other["goal_distance"].clamp(min=1),
        "recalled_ids": other["recalled_ids"].clamp(min=0),
        "noise_level": (given["noise_level"] + 1) % 3,
    }
    changed = {
        name: torch.cat((given[name][:, :8], other[name][:, 8:]), dim=1) for name in KINDS[kind]
    }
    after = model(visual_ids, action_ids, replace(conditions, **changed), texts())
    # Step 0 is the text, so frame 8 is step 9.
    assert torch.equal(before[:, :9], after[:, :9])
    assert ((before - after)[:, 9].abs().amax(dim=-1) > 1e-6).all()


@torch.no_grad()
def test_new_parts_are_silent_until_they_are_trained() -> None:
    (visual_ids, action_ids), conditions = clip(), replace(everything(), times=None)
    torch.manual_seed(0)
    plain = NextFrameTransformer(tiny_model_config(**SMALL)).eval()
    torch.manual_seed(1)
    told = NextFrameTransformer(tiny_model_config(**(SMALL | PARTS))).eval()
    missing, unexpected = told.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[1] for name in missing} == {
        "later_action",
        "goal",
        "goal_distance",
        "recalled",
        "noise_level",
    }
    expected = plain(visual_ids, action_ids)
    assert torch.equal(told(visual_ids, action_ids, conditions), expected)
    assert torch.equal(told(visual_ids, action_ids), expected)
    caches = plain.new_cache(BATCH), told.new_cache(BATCH)
    for frame in range(FRAMES):
        now = visual_ids[:, frame], action_ids[:, frame]
        logits = plain.observe(caches[0], *now).logits
        assert torch.equal(
            told.observe(caches[1], *now, conditions.frames(step(frame))).logits, logits
        )


def test_a_world_without_these_parts_has_the_weights_that_it_always_had() -> None:
    names = NextFrameTransformer(tiny_model_config(**SMALL)).state_dict()
    assert {name for name in names if not name.startswith(("blocks.", "within_frame."))} == {
        "norm.weight",
        "readout.weight",
        "embedding.visual.weight",
        "embedding.neighbourhood.weight",
        "embedding.neighbourhood.bias",
        "embedding.action.weight",
        "embedding.action_to_cells.weight",
    }


@torch.no_grad()
def test_saying_nothing_of_a_kind_is_leaving_it_out() -> None:
    model, (visual_ids, action_ids) = told_model(), clip()
    nothing = StepConditions(
        later_actions=torch.full((BATCH, FRAMES, 3, SLOTS), -1),
        goal_ids=torch.full((BATCH, FRAMES, CELLS), -1),
        goal_distance=torch.zeros(BATCH, FRAMES, dtype=torch.int64),
        recalled_ids=torch.full((BATCH, FRAMES, 3, CELLS), -1),
        noise_level=torch.zeros(BATCH, FRAMES, dtype=torch.int64),
        times=torch.arange(1, FRAMES + 1).expand(BATCH, -1),
    )
    expected = model(visual_ids, action_ids)
    assert torch.equal(model(visual_ids, action_ids, nothing), expected)
    assert torch.equal(model(visual_ids, action_ids, StepConditions()), expected)


@torch.no_grad()
def test_the_null_prompt_is_what_sequences_without_a_text_begin_with() -> None:
    model, (visual_ids, action_ids) = told_model(), clip()
    null = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
    expected = model(visual_ids, action_ids, None, null)
    assert torch.equal(model(visual_ids, action_ids), expected[:, 1:])
    assert not torch.allclose(model(visual_ids, action_ids, None, texts()), expected)


@torch.no_grad()
def test_the_text_is_seen_for_ever() -> None:
    model, (visual_ids, action_ids) = told_model(), clip()
    first = model(visual_ids, action_ids, None, texts(seed=2))
    other = model(visual_ids, action_ids, None, texts(seed=5))
    assert ((first - other).abs().amax(dim=-1) > 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("apart", [False, True])
def test_a_row_does_not_depend_on_its_batch(apart: bool) -> None:
    """Bit for bit, though the rows of the batch are told different kinds of things."""
    model, (visual_ids, action_ids), batch = told_model(), clip(batch=4), 4
    given = replace(everything(batch=batch), times=None)
    rows: list[StepConditions | None] = [
        only(given, kind).rows(step(row)) for row, kind in enumerate(("jumps", "goals", "recall"))
    ]
    rows.append(None)
    together = (
        CacheRows([model.new_cache(1) for _ in range(batch)]) if apart else model.new_cache(batch)
    )
    alone = [model.new_cache(1) for _ in range(batch)]
    text_ids = texts(batch=batch)
    model.observe_text(together, text_ids)
    for row, cache in enumerate(alone):
        model.observe_text(cache, text_ids[step(row)])
    for frame in range(6):
        now = [row and row.frames(step(frame)) for row in rows]
        logits = model.observe(
            together, visual_ids[:, frame], action_ids[:, frame], stack_conditions(now)
        ).logits
        for row, cache in enumerate(alone):
            own = visual_ids[step(row), frame], action_ids[step(row), frame]
            assert torch.equal(logits[step(row)], model.observe(cache, *own, now[row]).logits)


def test_every_weight_is_trained() -> None:
    model, (visual_ids, action_ids) = told_model(noise_levels=2), clip(batch=16)
    conditions = everything(batch=16)
    level = parts(conditions)["noise_level"].clamp(max=1)
    conditions = replace(conditions, noise_level=level)
    hidden = model.encode_steps(visual_ids, action_ids, conditions, texts(batch=16))
    model.read(hidden).square().mean().backward()
    idle = [
        name
        for name, weight in model.named_parameters()
        if not name.startswith("within_frame")
        and (weight.grad is None or not weight.grad.abs().max() > 0)
    ]
    assert idle == []


def test_silent_parts_learn_from_the_first_step_on() -> None:
    torch.manual_seed(0)
    model = NextFrameTransformer(tiny_model_config(**(SMALL | PARTS)))
    model(*clip(), everything()).square().mean().backward()
    for name, weight in model.embedding.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_times_tell_how_far_apart_frames_are() -> None:
    model, (visual_ids, action_ids) = told_model(text=False), clip()
    numbers = torch.arange(FRAMES).expand(BATCH, -1)
    with torch.no_grad():
        expected = model(visual_ids, action_ids)
        same = model(visual_ids, action_ids, StepConditions(times=numbers))
        later = model(visual_ids, action_ids, StepConditions(times=numbers + 1000))
        slower = model(visual_ids, action_ids, StepConditions(times=numbers * 3))
    assert torch.equal(same, expected)
    torch.testing.assert_close(later, expected, atol=1e-4, rtol=0.0)
    assert not torch.allclose(slower, expected, atol=1e-4)


@torch.no_grad()
def test_steps_of_several_frames_tell_the_order_of_skipped_actions() -> None:
    config = tiny_model_config(**(SMALL | PARTS | {"num_action_tokens": 4, "frames_per_step": 2}))
    torch.manual_seed(0)
    model = NextFrameTransformer(config).eval()
    torch.nn.init.normal_(model.embedding.later_action)
    visual_ids, action_ids = (
        torch.zeros(1, 1, CELLS, dtype=torch.int64),
        torch.zeros(1, 1, 4).long(),
    )
    jump = torch.full((1, 1, 3, 4), -1)
    jump[0, 0, 0] = torch.tensor([1, 3, 0, 3])
    swapped = jump.clone()
    swapped[0, 0, 0] = torch.tensor([0, 3, 1, 3])
    told = [
        model.embedding(visual_ids, action_ids, StepConditions(later_actions=later))[:, :, 4:]
        for later in (jump, swapped)
    ]
    assert ((told[0] - told[1]).abs().amax(dim=-1) > 1e-6).all()


def test_rows_steps_and_copies_are_those_of_each_part() -> None:
    given = everything(batch=3)
    assert given.shape == (3, FRAMES)
    picked = given.rows(torch.tensor([2, 0])).frames(slice(4, 9)).repeat(2).to("cpu")
    assert picked.shape == (4, 5)
    for name, part in parts(given).items():
        expected = torch.stack([part[row, 4:9] for row in (2, 0, 2, 0)])
        assert torch.equal(getattr(picked, name), expected)
    assert StepConditions().rows(slice(0, 1)) == StepConditions()


def test_stacked_rows_come_apart_again() -> None:
    given = everything(batch=3)
    stacked = stack_conditions([given.rows(step(row)) for row in range(3)])
    assert stacked is not None
    for name in KINDS["all"]:
        assert torch.equal(getattr(stacked, name), getattr(given, name))
    assert stack_conditions([None, StepConditions()]) is None
    with pytest.raises(ConfigError, match="either all sequences of a batch have times or none"):
        stack_conditions([given, None])
    with pytest.raises(ConfigError, match="of one shape"):
        stack_conditions([only(given, "noise"), only(given, "noise").frames(slice(0, 2))])


BAD_PARTS: list[tuple[dict[str, Tensor], str]] = [
    ({"times": torch.zeros(BATCH, FRAMES)}, "times must be whole numbers"),
    (
        {"noise_level": torch.zeros(BATCH, FRAMES, 1).long()},
        "noise_level must be whole numbers on 2",
    ),
    ({"goal_distance": torch.ones(BATCH, FRAMES).long()}, "both goal_ids and goal_distance"),
    (
        {"times": torch.zeros(2, 3).long(), "noise_level": torch.zeros(2, 4).long()},
        "the same sequences and steps",
    ),
]


@pytest.mark.parametrize(("parts", "message"), BAD_PARTS)
def test_parts_that_do_not_fit_together_are_refused(parts: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StepConditions(**parts)


def changed(name: str, number: int) -> StepConditions:
    part = getattr(everything(), name).clone()
    part.flatten()[-1] = number
    given = only(everything(), next(kind for kind, names in KINDS.items() if name in names))
    if name == "goal_ids":
        given = replace(given, goal_distance=torch.ones(BATCH, FRAMES, dtype=torch.int64))
    return replace(given, **{name: part})


def jump(*skipped: tuple[int, int]) -> StepConditions:
    later = torch.tensor(skipped).expand(BATCH, FRAMES, -1, -1)
    return StepConditions(later_actions=later)


BAD_VALUES = [
    (changed("later_actions", ACTIONS), "later_actions must lie between -1 and 5"),
    (jump((-1, -1), (0, 3), (-1, -1)), "consecutive frames"),
    (jump((0, -1), (-1, -1), (-1, -1)), "whole actions"),
    (jump((0, 3), (0, 3)), r"later_actions must have the shape \[batch, frame, 3, 2\]"),
    (changed("goal_ids", CODES), "goal_ids must lie between 0 and 19"),
    (changed("goal_ids", -1), "goal_ids must lie between 0 and 19"),
    (changed("goal_distance", 7), "goal_distance must lie between 0 and 6"),
    (changed("goal_distance", -1), "goal_distance must lie between 0 and 6"),
    (changed("recalled_ids", CODES), "recalled_ids must lie between -1 and 19"),
    (changed("recalled_ids", -2), "recalled_ids must lie between -1 and 19"),
    (changed("noise_level", 3), "noise_level must lie between 0 and 2"),
    (
        StepConditions(recalled_ids=torch.zeros(BATCH, FRAMES, 2, CELLS).long()),
        r"\[batch, frame, 3, 12\]",
    ),
    (everything().frames(slice(0, 3)), "of the same steps as the frames"),
    (everything(batch=1), "of the same steps as the frames"),
]


@pytest.mark.parametrize(("conditions", "message"), BAD_VALUES)
def test_conditions_beyond_the_limits_of_the_world_are_refused(
    conditions: StepConditions, message: str
) -> None:
    model, (visual_ids, action_ids) = told_model(), clip()
    with pytest.raises(ConfigError, match=message):
        model.encode_steps(visual_ids, action_ids, conditions)
    cache = model.new_cache(BATCH)
    if "same steps" not in message:
        conditions = conditions.frames(slice(FRAMES - 1, FRAMES))
        # Where only the last number is wrong, the first row is fine.
        with pytest.raises(ConfigError, match=message):
            model.observe(cache, visual_ids[:, 0], action_ids[:, 0], conditions)
        assert cache.num_frames == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("times", "all")])
def test_a_world_that_was_not_made_for_a_kind_refuses_it(kind: str) -> None:
    model = NextFrameTransformer(tiny_model_config(**SMALL))
    with pytest.raises(ConfigError, match="was not made for"):
        model(*clip(), only(everything(), kind))


def test_texts_that_do_not_fit_are_refused() -> None:
    model, null = told_model(), torch.zeros(BATCH, TOKENS, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"\[batch, token\] = \[2, 14\]; got \[2, 13\]"):
        model.observe_text(model.new_cache(BATCH), null[:, 1:])
    with pytest.raises(ConfigError, match=r"must lie in \[0, 30\)"):
        model(*clip(), None, null + 30)
    cache = model.new_cache(BATCH)
    model.observe_text(cache, null)
    with pytest.raises(ConfigError, match="there are 1 steps already"):
        model.observe_text(cache, null)
    silent = NextFrameTransformer(tiny_model_config(**SMALL))
    with pytest.raises(ConfigError, match="takes no text"):
        silent(*clip(), None, null)
    with pytest.raises(ConfigError, match="takes no text"):
        silent.observe_text(silent.new_cache(BATCH), null)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_vocabulary_size": 30}, "sink of at least 1"),
        ({"text_vocabulary_size": -1}, "must be 0 or more"),
        ({"farthest_goal": -1}, "must be 0 or more"),
        ({"recall_after": -1}, "must be 0 or more"),
        ({"longest_jump": 0}, "longest_jump must be 1"),
        ({"longest_jump": 2, "num_action_tokens": 0}, "in worlds with actions"),
        ({"noise_levels": 1}, "at least 2"),
    ],
)
def test_limits_that_do_not_fit_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_model_config(**changes)


def other_families() -> list[WorldModel]:
    sizes = {
        "rows": ROWS,
        "columns": COLUMNS,
        "codebook_size": CODES,
        "num_action_tokens": SLOTS,
        "action_vocabulary_size": ACTIONS,
        "width": 16,
        "num_heads": 2,
    }
    token = world_model_config("interleaved_next_token", sizes | {"num_key_value_heads": 1})
    driving = world_model_config("driving", sizes | {"slot_options": (3, 3), "context_depth": 1})
    assert isinstance(token, NextTokenConfig)
    assert isinstance(driving, DrivingConfig)
    models = [build_world_model(token), build_world_model(driving)]
    assert isinstance(models[0], NextTokenTransformer)
    assert isinstance(models[1], DrivingTransformer)
    return [model.eval() for model in models]


def test_families_that_take_no_conditions_refuse_them() -> None:
    visual_ids, action_ids = clip()
    for model in other_families():
        cache = model.new_cache(BATCH)
        with pytest.raises(ConfigError, match="takes no conditions"):
            model.observe(cache, visual_ids[:, 0], action_ids[:, 0], StepConditions())
        assert cache.num_frames == 0
        model.observe(cache, visual_ids[:, 0], action_ids[:, 0], None)


@torch.no_grad()
def test_models_around_others_pass_conditions_and_texts_on() -> None:
    class Same(WrappedModel):
        def answer(self, logits: Tensor, cells: Tensor) -> Tensor:
            return logits

    model, (visual_ids, action_ids) = told_model(), clip()
    around, told = Same(model), everything().frames(step(0))
    caches, cells = (model.new_cache(BATCH), around.new_cache(BATCH)), torch.arange(CELLS)
    for expected, draft in (
        (model.observe_text(caches[0], texts()), around.observe_text(caches[1], texts())),
        (
            model.observe(caches[0], visual_ids[:, 0], action_ids[:, 0], told),
            around.observe(caches[1], visual_ids[:, 0], action_ids[:, 0], told),
        ),
    ):
        assert torch.equal(around.predict(draft, cells), expected.logits)
    wordless = Same(other_families()[0])
    with pytest.raises(ConfigError, match="takes no text"):
        wordless.observe_text(wordless.new_cache(BATCH), texts())
