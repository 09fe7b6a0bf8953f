"""What a world model is trained on: context in, the next frame's tokens out."""

import functools
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.models import (
    DrivingTransformer,
    NextFrameTransformer,
    NextTokenTransformer,
    Transformer,
)
from worldgen.models.conditions import StepConditions
from worldgen.models.next_frame import group_masks
from worldgen.schedule import cosine_round_sizes, make_schedule
from worldgen.training.context import (
    CorruptionConfig,
    OnPolicyConfig,
    RandomTokensConfig,
    corrupt,
    draw_rates,
    dream,
    noise_levels,
)
from worldgen.training.tasks import TrainingClips

__all__ = [
    "DrivingLossConfig",
    "NextFrameLossConfig",
    "NextTokenLossConfig",
    "WorldModelLossConfig",
    "draw_groups",
    "world_model_losses",
]


@dataclass(frozen=True, kw_only=True)
class NextFrameLossConfig:
    """Weights of the terms of a model that predicts every cell one frame ahead."""

    kind: Literal["next_frame"] = "next_frame"
    changed_weight: float
    """Weight of a changed cell in a frame that changes everywhere; cells that stay count 1.

    The fewer cells of a frame change, the more each of them weighs, up to eight times: a block
    that is dug away matters as much as a landscape that scrolls.
    """
    within_frame: float
    """Weight of the term that trains the drawing of later groups."""
    schedules: tuple[str, ...]
    """Orders in which the within-frame stack learns to draw; each clip gets one of them. Beside
    the names of `make_schedule`, `random` takes cells in any order, in two to eight rounds: what
    refinement by confidence asks for."""


@dataclass(frozen=True, kw_only=True)
class NextTokenLossConfig:
    """Weights of the terms of a model that predicts the token after each token."""

    kind: Literal["next_token"] = "next_token"
    changed_weight: float
    """As in `NextFrameLossConfig`; 1 is the plain objective of a language model."""
    actions: float
    """Weight of an action token, where a visual token has 1: what makes the model a policy."""

    def __post_init__(self) -> None:
        if self.actions < 0:
            raise ConfigError(f"the weight of action tokens must not be negative: {self.actions}")


@dataclass(frozen=True, kw_only=True)
class DrivingLossConfig:
    """Weights of the terms of a model that predicts the next frame slot by slot, its action first."""

    kind: Literal["driving"] = "driving"
    changed_weight: float
    """As in `NextFrameLossConfig`; 1 counts every cell alike, as DrivingWorld's release does."""
    actions: float
    """Weight of an action slot, where a cell has 1; the release has 1."""
    schedules: tuple[str, ...]
    """As in `NextFrameLossConfig`; `[raster]` is what the release was trained on."""

    def __post_init__(self) -> None:
        if self.actions < 0:
            raise ConfigError(f"the weight of action slots must not be negative: {self.actions}")


WorldModelLossConfig = NextFrameLossConfig | NextTokenLossConfig | DrivingLossConfig


def world_model_losses(
    model: Transformer,
    clips: TrainingClips,
    *,
    losses: WorldModelLossConfig,
    corruption: CorruptionConfig | RandomTokensConfig,
    on_policy: OnPolicyConfig,
    generator: torch.Generator,
    first_frame: float = 1.0,
) -> dict[str, Float[Tensor, ""]]:
    """Return the weighted terms of the loss; their sum is what is minimised.

    A next-frame model has `prior`, every cell of every next frame before any of it is known, and
    `within_frame`, the cells of the last frame given those of earlier groups of a schedule. With
    text it has `first_frame` too, every cell of the first frame before any of it is known, and
    `within_frame` is about the first frame in half of the clips, and of every further sentence. A
    next-token model has `cells`, every cell given what is known of its frame when its turn comes,
    and `actions`, every action token. A driving model has the same two: the cells of every next
    frame given those of earlier groups of a schedule, and the action slots, each given those
    before it.

    Args:
        model: To train.
        clips: To learn from; only next-frame models are told more than frames and actions. How
            spoilt their frames are is added here.
        losses: Weights, of the model's kind.
        corruption: Of what the model is given; targets stay clean.
        on_policy: How often the end of the context is dreamed.
        generator: On the CPU; all randomness comes from it.
        first_frame: Weight of the first frame, drawn from its text, where the mean of all others
            has 1.

    Raises:
        ConfigError: If the weights are those of the other kind of model.
    """
    visual_ids, action_ids = clips.visual_ids, clips.action_ids
    rates = draw_rates(corruption, len(visual_ids), generator)
    spoilt = corrupt(visual_ids, corruption, model.codebook_size, generator, rates)
    context = visual_ids[:, :-1]
    dreamed = dream(
        model,
        context,
        action_ids[:, :-1],
        on_policy,
        generator,
        conditions=clips.conditions,
        text_ids=clips.text_ids,
    )
    if isinstance(model, NextFrameTransformer) and model.config.noise_levels:
        level = noise_levels(rates, corruption, model.config.noise_levels).to(visual_ids.device)
        level = repeat(level, "batch -> batch frame", frame=context.shape[1])
        conditions = replace(clips.conditions or StepConditions(), noise_level=level)
        clips = replace(clips, conditions=conditions)
    # Where a dream is right it may be spoilt as everything else.
    given = torch.where(dreamed != context, dreamed, spoilt[:, :-1])
    if isinstance(model, NextFrameTransformer) and isinstance(losses, NextFrameLossConfig):
        return _next_frame_losses(model, given, clips, losses, first_frame, generator)
    if isinstance(model, NextTokenTransformer) and isinstance(losses, NextTokenLossConfig):
        given = torch.cat((given, spoilt[:, -1:]), dim=1)
        return _next_token_losses(model, given, visual_ids, action_ids, losses)
    if isinstance(model, DrivingTransformer) and isinstance(losses, DrivingLossConfig):
        told = spoilt[:, 1:]
        return _driving_losses(model, given, told, visual_ids, action_ids, losses, generator)
    raise ConfigError(
        f"losses of kind {losses.kind!r} do not train a {type(model).__name__}; choose "
        f"losses=next_frame for family interleaved, losses=next_token for interleaved_next_token, "
        f"losses=driving for driving"
    )


def _next_frame_losses(
    model: NextFrameTransformer,
    given: Tensor,
    clips: TrainingClips,
    losses: NextFrameLossConfig,
    first_frame: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    visual_ids, slots = clips.visual_ids, clips.action_ids.shape[-1]
    context, following = visual_ids[:, :-1], visual_ids[:, 1:]
    hidden = model.encode_steps(given, clips.action_ids[:, :-1], clips.conditions, clips.text_ids)
    steps = hidden[:, -context.shape[1] :]
    prior = _cross_entropy(model.read(steps), following)
    weight = _weight_of_changes(context, following, losses.changed_weight)
    terms = {"prior": (prior * weight).sum() / weight.sum()}

    asked, answer, weight = steps[:, -1], following[:, -1], weight[:, -1]
    if clips.text_ids is not None:
        told, first_ids = hidden[:, 0], visual_ids[:, 0]
        # Later cells of a first frame are drawn by the same stack, from what the text says of it.
        begins = (torch.rand(len(visual_ids), 1, generator=generator) < 0.5).to(visual_ids.device)
        asked = torch.where(begins[..., None], told, asked)
        answer = torch.where(begins, first_ids, answer)
        weight = torch.where(begins, first_frame, weight)
        if clips.sentence_ids is not None and clips.described_ids is not None:
            described = clips.described_ids
            nothing = (described[:, None][:, :0], described.new_zeros(len(described), 0, slots))
            spoken = model.encode_steps(*nothing, text_ids=clips.sentence_ids)[:, 0]
            told, first_ids = torch.cat((told, spoken)), torch.cat((first_ids, described))
            asked, answer = torch.cat((asked, spoken)), torch.cat((answer, described))
            weight = torch.cat(
                (weight, torch.full_like(described, first_frame, dtype=weight.dtype))
            )
        terms["first_frame"] = first_frame * _cross_entropy(model.read(told), first_ids).mean()

    group_of_cell = draw_groups(
        losses.schedules, model.layout.rows, model.layout.columns, len(answer), generator
    ).to(visual_ids.device)
    visible, same_group = group_masks(group_of_cell)
    logits = model.refine(asked, answer, visible, same_group)
    # The first group is drawn from the prior, so it is not this stack's business.
    later = (group_of_cell > 0).float() * weight
    refined = _cross_entropy(logits, answer)
    terms["within_frame"] = losses.within_frame * (refined * later).sum() / later.sum().clamp(min=1)
    return terms


def _next_token_losses(
    model: NextTokenTransformer,
    given: Tensor,
    visual_ids: Tensor,
    action_ids: Tensor,
    losses: NextTokenLossConfig,
) -> dict[str, Tensor]:
    cells, actions = model(given, action_ids)
    following = visual_ids[:, 1:]
    weight = _weight_of_changes(visual_ids[:, :-1], following, losses.changed_weight)
    cell_losses = _cross_entropy(cells, following)
    action_losses = _cross_entropy(actions, action_ids + model.codebook_size)
    # A step's action tokens weigh in the mean as a part of the sequence, not as much as a frame.
    share = losses.actions * model.layout.num_action_tokens / model.layout.num_cells
    return {
        "cells": (cell_losses * weight).sum() / weight.sum(),
        "actions": share * action_losses.mean(),
    }


def _driving_losses(
    model: DrivingTransformer,
    given: Tensor,
    told: Tensor,
    visual_ids: Tensor,
    action_ids: Tensor,
    losses: DrivingLossConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    layout, taken = model.layout, action_ids[:, :-1]
    groups = draw_groups(
        losses.schedules, layout.rows, layout.columns, len(visual_ids), generator
    ).to(visual_ids.device)
    states = model.encode_steps(given, taken)
    cells, slots = model.refine(states, told, taken, groups)
    following = visual_ids[:, 1:]
    weight = _weight_of_changes(visual_ids[:, :-1], following, losses.changed_weight)
    terms = {"cells": (_cross_entropy(cells, following) * weight).sum() / weight.sum()}
    if slots:
        firsts = model.config.first_ids
        slot_losses = [
            _cross_entropy(logits, taken[:, :, slot] - firsts[slot])
            for slot, logits in enumerate(slots)
        ]
        # As for next-token models: the slots weigh as a part of the frame.
        share = losses.actions * len(slots) / layout.num_cells
        terms["actions"] = share * torch.stack(slot_losses).mean()
    return terms


def _weight_of_changes(context: Tensor, following: Tensor, changed_weight: float) -> Tensor:
    changed = following != context
    share = changed.float().mean(dim=-1, keepdim=True).clamp(min=1 / 8)
    return 1.0 + (changed_weight - 1.0) * changed.float() / share


def draw_groups(
    names: tuple[str, ...], rows: int, columns: int, batch: int, generator: torch.Generator
) -> Int[Tensor, "batch cell"]:
    """Return for each clip the group of every cell, in one of the named orders drawn for it.

    Args:
        names: As in `NextFrameLossConfig.schedules`.
        rows: Height of the grid.
        columns: Width of the grid.
        batch: Clips.
        generator: On the CPU.
    """
    choice = torch.randint(0, len(names), (batch,), generator=generator).tolist()
    return torch.stack(
        [
            _random_groups(rows * columns, generator)
            if names[number] == "random"
            else _groups(names[number], rows, columns)
            for number in choice
        ]
    )


@functools.cache
def _groups(name: str, rows: int, columns: int) -> Tensor:
    return make_schedule(name, rows, columns).group_of_cell


def _random_groups(num_cells: int, generator: torch.Generator) -> Tensor:
    rounds = int(torch.randint(2, 9, (), generator=generator))
    sizes = torch.tensor(cosine_round_sizes(num_cells, rounds))
    group_of_rank = torch.arange(len(sizes)).repeat_interleave(sizes)
    return group_of_rank[torch.rand(num_cells, generator=generator).argsort()]


def _cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2).float(), ids.flatten(), reduction="none").reshape(
        ids.shape
    )
