"""What a world model is trained on: corrupted context in, the next frame's tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.models.next_frame import NextFrameTransformer, group_masks
from worldgen.schedule import DecodeSchedule

__all__ = ["CorruptionConfig", "WorldModelLossConfig", "corrupt", "world_model_losses"]


@dataclass(frozen=True, kw_only=True)
class CorruptionConfig:
    """How much of the context is spoilt in training, so that a rollout's own errors are known.

    Source: DrivingWorld (arXiv:2412.19505), section 3.3, and GameNGen (arXiv:2408.14837),
        section 3.2.1, for the idea; what replaces a token is ours.
    """

    share_of_clips: float
    """Clips that are spoilt at all."""
    highest_rate: float
    """Share of tokens replaced in a spoilt clip; drawn uniformly from 0 to this."""

    def __post_init__(self) -> None:
        if not 0 <= self.share_of_clips <= 1 or not 0 <= self.highest_rate < 1:
            raise ConfigError(
                f"share_of_clips must lie in [0, 1] and highest_rate in [0, 1), got "
                f"{self.share_of_clips} and {self.highest_rate}"
            )


@dataclass(frozen=True, kw_only=True)
class WorldModelLossConfig:
    """Weights of the terms."""

    changed_weight: float
    """Weight of a changed cell in a frame that changes everywhere; cells that stay count 1.

    The fewer cells of a frame change, the more each of them weighs, up to eight times: a block
    that is dug away matters as much as a landscape that scrolls.
    """
    within_frame: float
    """Weight of the term that trains the drawing of later groups."""
    schedules: tuple[str, ...]
    """Orders in which the within-frame stack learns to draw; each clip gets one of them."""


def corrupt(
    visual_ids: Int[Tensor, "batch frame cell"],
    config: CorruptionConfig,
    generator: torch.Generator,
) -> Int[Tensor, "batch frame cell"]:
    """Return the tokens with some replaced by tokens of the same cell at another time or place.

    Half of the replacements come from the same cell in another frame of the clip (what a model
    that lags would draw), half from another cell of the batch (what a wild draw gives).

    Args:
        visual_ids: Clean context.
        config: Shares.
        generator: On the CPU; all randomness comes from it.
    """
    batch, frames = visual_ids.shape[:2]
    rate = torch.rand(batch, 1, 1, generator=generator) * config.highest_rate
    spoilt = torch.rand(batch, 1, 1, generator=generator) < config.share_of_clips
    chosen = spoilt & (torch.rand(visual_ids.shape, generator=generator) < rate)
    other_frame = torch.randint(0, frames, visual_ids.shape, generator=generator)
    lagging = visual_ids.gather(1, other_frame.to(visual_ids.device))
    anywhere = torch.randint(0, visual_ids.numel(), visual_ids.shape, generator=generator)
    wild = visual_ids.flatten()[anywhere.to(visual_ids.device)]
    from_time = torch.rand(visual_ids.shape, generator=generator) < 0.5
    replacement = torch.where(from_time.to(visual_ids.device), lagging, wild)
    return torch.where(chosen.to(visual_ids.device), replacement, visual_ids)


def world_model_losses(
    model: NextFrameTransformer,
    visual_ids: Int[Tensor, "batch frame cell"],
    action_ids: Int[Tensor, "batch frame slot"],
    *,
    losses: WorldModelLossConfig,
    schedules: Sequence[DecodeSchedule],
    corruption: CorruptionConfig,
    generator: torch.Generator,
) -> dict[str, Float[Tensor, ""]]:
    """Return the weighted terms of the loss; their sum is what is minimised.

    `prior` predicts every cell of every next frame before any of it is known; `within_frame`
    predicts the cells of the last frame given those of earlier groups of a schedule.

    Args:
        model: To train.
        visual_ids: Clips of one frame more than the context.
        action_ids: The action taken in each frame; that of the last frame is not used.
        losses: Weights.
        schedules: Made of `losses.schedules`.
        corruption: Of the context.
        generator: On the CPU; all randomness comes from it.
    """
    context, following = visual_ids[:, :-1], visual_ids[:, 1:]
    given = corrupt(context, corruption, generator)
    hidden = model.encode_steps(given, action_ids[:, :-1])
    prior = _cross_entropy(model.read(hidden), following)
    changed = following != context
    share = changed.float().mean(dim=-1, keepdim=True).clamp(min=1 / 8)
    weight = 1.0 + (losses.changed_weight - 1.0) * changed.float() / share
    terms = {"prior": (prior * weight).sum() / weight.sum()}

    groups = torch.stack([schedule.group_of_cell for schedule in schedules])
    choice = torch.randint(0, len(schedules), (len(visual_ids),), generator=generator)
    group_of_cell = groups[choice].to(visual_ids.device)
    visible, same_group = group_masks(group_of_cell)
    logits = model.refine(hidden[:, -1], following[:, -1], visible, same_group)
    # The first group is drawn from the prior, so it is not this stack's business.
    later = (group_of_cell > 0).float() * weight[:, -1]
    refined = _cross_entropy(logits, following[:, -1])
    terms["within_frame"] = losses.within_frame * (refined * later).sum() / later.sum().clamp(min=1)
    return terms


def _cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2).float(), ids.flatten(), reduction="none").reshape(
        ids.shape
    )
