"""Figures and film strips of held-out clips while a world model is trained."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from worldgen.evaluation.pages.film_strip import film_strip
from worldgen.evaluation.rollout import Roller
from worldgen.generation import SamplingConfig, make_decoder
from worldgen.models import NextFrameTransformer, Transformer
from worldgen.nn.image_quality import psnr
from worldgen.records import to_float
from worldgen.tokenizers.action import ActionTokenizer
from worldgen.tokenizers.visual import VisualTokenizer
from worldgen.training import RunFolder
from worldgen.training.tasks import TaskClips

__all__ = ["ValidationConfig", "validate", "validation_steps"]


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Rollouts drawn while training."""

    decoder: str
    sampling: SamplingConfig
    context: int
    """True frames before a rollout."""
    steps: int
    """Frames generated."""
    strips: int
    """Clips drawn as film strips; figures are over `TrainingConfig.validation_frames` clips."""


def validation_steps(
    validation: ValidationConfig, visual_tokenizer: VisualTokenizer
) -> tuple[int, int]:
    """Return the steps of context in a validation rollout, and all of its steps.

    Where a step has several frames, the context is cut and the rollout is longer to fit.
    """
    context = visual_tokenizer.longest_clip(validation.context)
    steps = -(-validation.steps // visual_tokenizer.frames_per_latent)
    first = visual_tokenizer.num_latents(context)
    return first, first + steps


def validate(
    folder: RunFolder,
    validation: ValidationConfig,
    model: Transformer,
    visual_tokenizer: VisualTokenizer,
    action_tokenizer: ActionTokenizer,
    clips: TaskClips,
    *,
    count: int,
    step: int,
) -> dict[str, float]:
    """Roll out held-out clips; return figures and draw film strips beside the truth.

    Args:
        folder: Of the run; gets the film strips.
        validation: How long, and how drawn.
        model: In evaluation mode.
        visual_tokenizer: Of the tokens.
        action_tokenizer: Of the actions.
        clips: Of the validation split.
        count: Clips, fewer where there are not as many.
        step: Of the training, for the names of the film strips.
    """
    tokens = clips.tokens
    first, length = validation_steps(validation, visual_tokenizer)
    context = visual_tokenizer.num_frames(first)
    allowed = np.flatnonzero(tokens.clip_starts(length, from_pixels=True))
    count = min(count, len(allowed))
    chosen = allowed[np.linspace(0, len(allowed) - 1, count).astype(int)]
    visual_ids, action_ids = tokens.clips(chosen, length)
    roller = Roller(
        model=model,
        visual_tokenizer=visual_tokenizer,
        action_tokenizer=action_tokenizer,
        decoder=make_decoder(validation.decoder, model.layout, validation.sampling),
        seeds=range(count),
    )
    truth = visual_ids.numpy()
    slots = action_tokenizer.num_slots
    frame_actions = action_ids[:, :-1].reshape(count, -1, slots)
    actions = action_tokenizer.decode(frame_actions.numpy())
    guessed = roller.predict_next(truth, actions, context=context)
    dreamed = roller.roll_out(truth[:, :first], actions)
    changed = truth[:, first:] != truth[:, first - 1 : -1]
    right = guessed == truth[:, first:]
    figures = {
        "validation_accuracy": float(right.mean()),
        "validation_accuracy_of_changed": float(right[changed].mean()) if changed.any() else 1.0,
    }
    shown = slice(context - 1, context + validation.steps)
    true = roller.decode(truth)[:, shown]
    dream = roller.decode_after(truth[:, :first], dreamed)[:, : validation.steps]
    for number in (1, 4, 8, 16, 32):
        if number <= validation.steps:
            wanted = to_float(torch.from_numpy(true[:, number]))
            for name, frames in (("dream", dream[:, number - 1]), ("copy", true[:, 0])):
                quality = psnr(to_float(torch.from_numpy(frames)), wanted).mean()
                figures[f"validation_psnr_{name}_{number}"] = float(quality)
    rows = {}
    for clip in np.linspace(0, count - 1, min(validation.strips, count)).astype(int):
        rows[f"truth {clip}"] = true[clip, 1:]
        rows[f"dream {clip}"] = dream[clip]
    every = max(1, validation.steps // 12)
    film_strip(rows, folder.path / f"rollouts_{step:07d}.png", every=every, scale=1)
    return figures | _figures_of_told(model, clips, count)


@torch.no_grad()
def _figures_of_told(model: Transformer, clips: TaskClips, count: int) -> dict[str, float]:
    """Return how much a first frame gains by its caption, and the frame in a gap by its goal."""
    allowed = np.flatnonzero(clips.starts)
    if not isinstance(model, NextFrameTransformer) or not len(allowed):
        return {}
    starts = allowed[np.linspace(0, len(allowed) - 1, min(count, len(allowed))).astype(int)]
    figures = {}
    caption = clips.captions(starts)
    if caption is not None:
        frame = clips.tokens.clips(starts, 1)[0][:, 0].to(model.device)
        # What an empty sequence says about its first frame.
        for name, text_ids in (("caption", caption), ("null", torch.zeros_like(caption))):
            draft = model.observe_text(model.new_cache(len(starts)), text_ids.to(model.device))
            right = draft.logits.argmax(dim=-1) == frame
            figures[f"validation_first_frame_accuracy_{name}"] = float(right.float().mean())
    if clips.config.fill > 0:
        generator = torch.Generator().manual_seed(0)
        gap = clips.clips_of(["fill"] * len(starts), starts, generator).to(model.device)
        assert gap.conditions is not None
        middle = clips.steps - clips.config.stride + clips.config.stride // 2 - 1
        for name, conditions in (
            ("goal", gap.conditions),
            ("no_goal", replace(gap.conditions, goal_ids=None, goal_distance=None)),
        ):
            context, actions = gap.visual_ids[:, :-1], gap.action_ids[:, :-1]
            hidden = model.encode_steps(context, actions, conditions, gap.text_ids)
            # The text step, where there is one, comes first.
            guess = model.read(hidden[:, middle - clips.steps]).argmax(dim=-1)
            right = guess == gap.visual_ids[:, middle + 1]
            figures[f"validation_middle_accuracy_{name}"] = float(right.float().mean())
    return figures
