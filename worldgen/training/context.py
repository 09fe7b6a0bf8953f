"""The context that a world model is given in training: as recorded, spoilt, or dreamed by itself."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.models import NextFrameTransformer, WorldModel
from worldgen.models.conditions import StepConditions
from worldgen.schedule import cosine_round_sizes

__all__ = [
    "CorruptionConfig",
    "OnPolicyConfig",
    "RandomTokensConfig",
    "corrupt",
    "draw_rates",
    "dream",
    "noise_levels",
]


@dataclass(frozen=True, kw_only=True)
class CorruptionConfig:
    """How much of the context is replaced by recorded tokens of elsewhere.

    A model that has seen spoilt context knows the errors of its own rollouts. Half of the
    replacements come from the same cell in another frame of the clip (what a model that lags would
    draw), half from another cell of the batch (what a wild draw gives).

    Source: DrivingWorld (arXiv:2412.19505), section 3.3, and GameNGen (arXiv:2408.14837),
        section 3.2.1, for the idea; what replaces a token is ours.
    """

    kind: Literal["recorded_tokens"] = "recorded_tokens"
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
class RandomTokensConfig:
    """How much of the context is replaced by tokens drawn uniformly from the codebook.

    Source: DrivingWorld (arXiv:2412.19505), section 3.3; its release keeps 0.7 of the tokens of a
        spoilt batch. Here each clip is spoilt or not.
    """

    kind: Literal["random_tokens"] = "random_tokens"
    share_of_clips: float
    """Clips that are spoilt at all."""
    keep: float
    """Share of tokens kept in a spoilt clip; the others may come out the same by chance."""

    def __post_init__(self) -> None:
        if not 0 <= self.share_of_clips <= 1 or not 0 <= self.keep <= 1:
            raise ConfigError(
                f"share_of_clips and keep must lie in [0, 1], got {self.share_of_clips} and "
                f"{self.keep}"
            )


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """How often the end of the context is what the model itself makes of it.

    The model learns to go on from its own frames, errors included, as it must in a rollout.

    Source: scheduled sampling, arXiv:1506.03099; self-forcing, arXiv:2506.08009, section 3.2. Here
        for tokens: what is drawn has no gradient.
    """

    share_of_clips: float
    """Clips whose last frames of context are dreamed; 0 turns it off."""
    frames: int
    """Most frames dreamed in a row; the number is drawn uniformly from 1 to this."""
    rounds: int
    """Groups that the cells of a dreamed frame are drawn in, in random order."""
    temperature: float
    """Divides the logits; 0 takes the best token."""

    def __post_init__(self) -> None:
        if not 0 <= self.share_of_clips <= 1 or self.temperature < 0:
            raise ConfigError(
                f"share_of_clips must lie in [0, 1] and temperature be 0 or more, got "
                f"{self.share_of_clips} and {self.temperature}"
            )
        if self.frames < 1 or self.rounds < 1:
            raise ConfigError(
                f"a rollout in training needs at least 1 frame of at least 1 round, got "
                f"{self.frames} and {self.rounds}"
            )


def draw_rates(
    config: CorruptionConfig | RandomTokensConfig, batch: int, generator: torch.Generator
) -> Float[Tensor, " batch"]:
    """Return the share of tokens to replace in each clip; 0 in those that stay clean.

    Args:
        config: Shares.
        batch: Clips.
        generator: On the CPU.
    """
    if isinstance(config, RandomTokensConfig):
        rates = torch.full((batch,), _highest_rate(config))
    else:
        rates = torch.rand(batch, generator=generator) * _highest_rate(config)
    return rates * (torch.rand(batch, generator=generator) < config.share_of_clips)


def noise_levels(
    rates: Float[Tensor, " batch"], config: CorruptionConfig | RandomTokensConfig, levels: int
) -> Int[Tensor, " batch"]:
    """Return what a model is told of how spoilt its context is.

    Level 0 is that of clips where nothing is replaced. The others split the rates up to the highest
    one evenly. Frames that the model dreamed are told no level of their own: in a rollout every
    frame is dreamed, and is told 0 unless somebody wants less trust in it.

    Source: GameNGen (arXiv:2408.14837), section 3.2.1; there the level is one of Gaussian noise.

    Args:
        rates: From `draw_rates`.
        config: That of the rates.
        levels: Number of levels, the clean one included.
    """
    highest = _highest_rate(config)
    if highest == 0:
        return torch.zeros(rates.shape, dtype=torch.long)
    return (rates / highest * (levels - 1)).ceil().long().clamp(max=levels - 1)


def _highest_rate(config: CorruptionConfig | RandomTokensConfig) -> float:
    return config.highest_rate if isinstance(config, CorruptionConfig) else 1.0 - config.keep


def corrupt(
    visual_ids: Int[Tensor, "batch frame cell"],
    config: CorruptionConfig | RandomTokensConfig,
    codebook_size: int,
    generator: torch.Generator,
    rates: Float[Tensor, " batch"] | None = None,
) -> Int[Tensor, "batch frame cell"]:
    """Return the tokens with some replaced.

    Args:
        visual_ids: Clean context.
        config: Shares, and what replaces a token.
        codebook_size: Ids are below it.
        generator: On the CPU; all randomness comes from it.
        rates: Share of tokens to replace in each clip; None: they are drawn.
    """
    if rates is None:
        rates = draw_rates(config, len(visual_ids), generator)
    spoilt = torch.rand(visual_ids.shape, generator=generator)
    chosen = spoilt < rearrange(rates, "batch -> batch 1 1")
    if isinstance(config, RandomTokensConfig):
        drawn = torch.randint(0, codebook_size, visual_ids.shape, generator=generator)
        replacement = drawn.to(visual_ids.device)
    else:
        replacement = _from_elsewhere(visual_ids, generator)
    return torch.where(chosen.to(visual_ids.device), replacement, visual_ids)


def _from_elsewhere(visual_ids: Tensor, generator: torch.Generator) -> Tensor:
    other_frame = torch.randint(0, visual_ids.shape[1], visual_ids.shape, generator=generator)
    lagging = visual_ids.gather(1, other_frame.to(visual_ids.device))
    anywhere = torch.randint(0, visual_ids.numel(), visual_ids.shape, generator=generator)
    wild = visual_ids.flatten()[anywhere.to(visual_ids.device)]
    from_time = torch.rand(visual_ids.shape, generator=generator) < 0.5
    return torch.where(from_time.to(visual_ids.device), lagging, wild)


@torch.no_grad()
def dream(
    model: WorldModel,
    visual_ids: Int[Tensor, "batch frame cell"],
    action_ids: Int[Tensor, "batch frame slot"],
    config: OnPolicyConfig,
    generator: torch.Generator,
    *,
    conditions: StepConditions | None = None,
    text_ids: Int[Tensor, "batch token"] | None = None,
) -> Int[Tensor, "batch frame cell"]:
    """Return the context with the last frames of some clips drawn by the model, one after another.

    The actions are those recorded; the first frame of a clip is never dreamed. Clips that jump are
    dreamed in jumps, since what is drawn is what the steps ask for.

    Args:
        model: In training; what it draws with is its present weights.
        visual_ids: Clean context.
        action_ids: The action taken in each frame.
        config: Shares, lengths and sampling.
        generator: On the CPU; all randomness comes from it.
        conditions: What the steps are told beside frame and action.
        text_ids: What stands before the first frame, in worlds with text.
    """
    batch, frames, cells = visual_ids.shape
    chosen = torch.rand(batch, generator=generator) < config.share_of_clips
    length = int(torch.randint(1, config.frames + 1, (), generator=generator))
    first = max(1, frames - length)
    if frames < 2 or not chosen.any():
        return visual_ids
    rows = chosen.nonzero().flatten().to(visual_ids.device)
    given, actions = visual_ids[rows], action_ids[rows]
    dreamed = given.clone()
    cache = model.new_cache(len(rows))
    if text_ids is not None:
        assert isinstance(model, NextFrameTransformer)
        model.observe_text(cache, text_ids[rows])
    told = None if conditions is None else conditions.rows(rows)
    for frame in range(1, frames):
        last = frame - 1
        beside = None if told is None else told.frames(slice(last, frame))
        draft = model.observe(cache, dreamed[:, last], actions[:, last], beside)
        if frame < first:
            continue
        order = torch.randperm(cells, generator=generator).to(visual_ids.device)
        for group in order.split(list(cosine_round_sizes(cells, config.rounds))):
            ids = _draw(model.predict(draft, group), config.temperature, generator)
            model.reveal(draft, group, ids)
            dreamed[:, frame, group] = ids
    mixed = visual_ids.clone()
    mixed[rows] = dreamed
    return mixed


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    # The largest of logits and Gumbel noise is a draw from their distribution.
    uniform = torch.rand(logits.shape, generator=generator).clamp(min=1e-20)
    noise = -(-uniform.log()).log()
    return (logits.float().cpu() / temperature + noise).argmax(dim=-1).to(logits.device)
