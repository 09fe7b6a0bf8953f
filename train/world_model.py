"""Train a world model on recordings: `python -m train.world_model experiment=car_racing`."""

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig

from train.package_world import StartsConfig, WorldConfig, package
from worldgen.checkpoint import file_hash, load_state
from worldgen.config import build, to_mapping
from worldgen.data.episodes import Dataset
from worldgen.data.token_cache import TokenCache, open_or_build_token_cache
from worldgen.errors import CheckpointError, DataError, WorldgenError
from worldgen.evaluation.pages.film_strip import film_strip
from worldgen.evaluation.rollout import Roller
from worldgen.generation import SamplingConfig, make_decoder
from worldgen.models import (
    Transformer,
    TransformerConfig,
    build_world_model,
    load_world_model,
    save_world_model,
    world_model_config,
)
from worldgen.nn.image_quality import psnr
from worldgen.records import to_float
from worldgen.tokenizers.action import ActionTokenizer
from worldgen.tokenizers.visual import VisualTokenizer, load_visual_tokenizer
from worldgen.training import (
    Clock,
    DataOrder,
    Interruption,
    Position,
    ProgressBar,
    RunFolder,
    WeightAverage,
    build_optimiser,
    learning_rate,
    load_training_state,
    refuse_non_finite,
    save_training_state,
    set_learning_rate,
)
from worldgen.training.context import CorruptionConfig, OnPolicyConfig, RandomTokensConfig
from worldgen.training.settings import TrainingConfig, refuse_other_settings
from worldgen.training.world_model_loss import WorldModelLossConfig, world_model_losses


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Recording, and the clips cut from it."""

    folder: str
    clip_frames: int
    """Frames of context in a training clip; what follows each step of it is predicted."""
    encoded_steps: int
    """Grids that a tokenizer of clips makes of a recording before it starts afresh."""


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


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `python -m train.world_model` reads."""

    name: str
    run_folder: str
    resume: bool
    seed: int
    tokenizer_file: str
    """File of the trained visual tokenizer."""
    initial_weights: str | None
    """File of another world model of the same sizes to start from, None: random weights."""
    data: DataConfig
    model: dict[str, Any]
    """Family and sizes; grid, codebook and actions follow from tokenizer and data."""
    losses: WorldModelLossConfig
    corruption: CorruptionConfig | RandomTokensConfig
    on_policy: OnPolicyConfig
    validation: ValidationConfig
    training: TrainingConfig
    world: WorldConfig
    starts: StartsConfig

    def fixed(self, tokenizer_hash: str) -> dict[str, Any]:
        """What must be equal for a run to be resumed."""
        return {
            "seed": self.seed,
            "tokenizer": tokenizer_hash,
            "data": to_mapping(self.data),
            "model": self.model,
            "losses": to_mapping(self.losses),
            "corruption": to_mapping(self.corruption),
            "on_policy": to_mapping(self.on_policy),
            "batch_size": self.training.batch_size,
        }


def run(cfg: DictConfig) -> RunFolder:
    """Train, checkpoint, draw rollouts, and leave a playable world in the run folder.

    Args:
        cfg: Composed from `configs/world_model.yaml`.

    Raises:
        ConfigError: If the configuration is wrong, or differs from that of the run to resume.
        CheckpointError: If the tokenizer is missing or damaged, or the initial weights are of
            another size.
        DataError: If the recording is missing or empty.
        DivergedError: If a loss or a gradient stops being finite.
    """
    config = build(RunConfig, cfg)
    training = config.training
    torch.set_num_threads(training.threads)
    torch.manual_seed(config.seed)
    device = torch.device(training.device)
    folder = RunFolder(Path(config.run_folder))

    dataset = Dataset(Path(config.data.folder))
    visual_tokenizer = load_visual_tokenizer(Path(config.tokenizer_file)).to(device)
    tokenizer_hash = file_hash(Path(config.tokenizer_file))
    action_tokenizer = ActionTokenizer(dataset.metadata.schema)
    clip_steps = visual_tokenizer.num_latents(config.data.clip_frames)
    clip_length = clip_steps + 1
    frames_per_clip = clip_steps * visual_tokenizer.frames_per_latent
    tokens = {
        split: open_or_build_token_cache(
            dataset,
            split,
            dataset.folder / "tokens",
            visual_tokenizer,
            tokenizer_hash,
            clip_steps=config.data.encoded_steps,
        )
        for split in ("train", "validation")
    }
    starts = tokens["train"].clip_starts(clip_length)
    _, rollout_length = _validation_steps(config.validation, visual_tokenizer)
    for found, clips, length in (
        (starts, "train", clip_length),
        (
            tokens["validation"].clip_starts(rollout_length, from_pixels=True),
            "validation",
            rollout_length,
        ),
    ):
        if not found.any():
            raise DataError(_too_short(dataset, visual_tokenizer, clips, length))
    order = DataOrder(starts.astype(float), batch_size=training.batch_size, seed=config.seed)

    model = build_world_model(_model_config(config, visual_tokenizer, action_tokenizer))
    trained_before: list[dict[str, float]] = []
    if config.initial_weights is not None:
        trained_before = _start_from(model, Path(config.initial_weights))
    model = model.to(device)
    average = WeightAverage(model, training.average_decay)
    optimiser = build_optimiser(model, training.optimiser)
    fixed = config.fixed(tokenizer_hash)
    position = Position(step=0, elapsed_seconds=0.0, settings=fixed)
    if config.resume and folder.checkpoint.exists():
        position = load_training_state(folder.checkpoint, model, average.module, optimiser)
        refuse_other_settings(position.settings, fixed, folder.checkpoint)
    folder.forget_after(position.step)

    step, clock = position.step, Clock(position.elapsed_seconds)
    progress = training.length.progress(step, clock.elapsed_seconds)
    last_validation = last_checkpoint = clock.elapsed_seconds
    last_log = (step, time.monotonic())

    def save_checkpoint() -> None:
        now = Position(step=step, elapsed_seconds=clock.elapsed_seconds, settings=fixed)
        save_training_state(folder.checkpoint, model, average.module, optimiser, now)

    def validate() -> dict[str, float]:
        parts = (average.module, visual_tokenizer, action_tokenizer, tokens["validation"])
        figures = _validate(folder, config, *parts, step)
        folder.log(step, figures)
        folder.draw_curves()
        return figures

    with (
        Interruption() as interruption,
        closing(ProgressBar(f"{config.name} world model", progress)) as bar,
    ):
        while progress < 1.0 and not interruption.requested:
            rate = learning_rate(training.optimiser, progress)
            set_learning_rate(optimiser, rate)
            visual_ids, action_ids = tokens["train"].clips(order.indices(step), clip_length)
            with training.autocast:
                terms = world_model_losses(
                    model,
                    visual_ids.to(device),
                    action_ids.to(device),
                    losses=config.losses,
                    corruption=config.corruption,
                    on_policy=config.on_policy,
                    generator=torch.Generator().manual_seed(config.seed * 2**32 + step),
                )
            loss = torch.stack(list(terms.values())).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(
                model.parameters(), training.optimiser.gradient_clip
            )
            refuse_non_finite({**terms, "gradient norm": norm}, step)
            optimiser.step()
            average.update(model, step)
            step += 1
            progress = training.length.progress(step, clock.elapsed_seconds)

            if step % training.log_steps == 0:
                trained = (step - last_log[0]) * training.batch_size * frames_per_clip
                speed = trained / (time.monotonic() - last_log[1])
                last_log = (step, time.monotonic())
                figures = {f"loss_{name}": float(term.detach()) for name, term in terms.items()}
                figures |= {
                    "gradient_norm": float(norm),
                    "learning_rate": rate,
                    "frames_per_second": speed,
                }
                folder.log(step, figures)
                shown = {"loss": f"{float(loss.detach()):.3f}", "frames/s": f"{speed:.0f}"}
                bar.show(progress, shown)
            if clock.elapsed_seconds - last_validation > 60 * training.validation_minutes:
                last_validation = clock.elapsed_seconds
                validate()
            if clock.elapsed_seconds - last_checkpoint > 60 * training.checkpoint_minutes:
                last_checkpoint = clock.elapsed_seconds
                save_checkpoint()

    save_checkpoint()
    if progress < 1.0:
        print(f"stopped at step {step}; the same command goes on from {folder.checkpoint}")
        return folder
    stage = {
        "steps": step,
        "minutes": round(clock.elapsed_seconds / 60, 1),
        "frame_predictions": step * training.batch_size * frames_per_clip,
    }
    summary = {
        "name": config.name,
        **stage,
        "stages": [*trained_before, stage],
        "training_frames": tokens["train"].metadata["frames"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokenizer_hash": tokenizer_hash,
        "figures": validate(),
        "config": to_mapping(config),
    }
    folder.save_summary(summary)
    save_world_model(folder.path / "model.safetensors", average.module, summary=summary)
    print(f"{folder.path / 'model.safetensors'}: {summary['figures']}")
    package(
        folder.path,
        name=config.name,
        dataset=dataset,
        tokenizer_file=Path(config.tokenizer_file),
        model_file=folder.path / "model.safetensors",
        world=config.world,
        starts=config.starts,
    )
    return folder


def _model_config(
    config: RunConfig, visual_tokenizer: VisualTokenizer, action_tokenizer: ActionTokenizer
) -> TransformerConfig:
    sizes = dict(config.model)
    family = str(sizes.pop("family", None))
    derived: dict[str, Any] = {
        "rows": visual_tokenizer.rows,
        "columns": visual_tokenizer.columns,
        "codebook_size": visual_tokenizer.codebook_size,
        "num_action_tokens": action_tokenizer.num_slots * visual_tokenizer.frames_per_latent,
        "frames_per_step": visual_tokenizer.frames_per_latent,
        "action_vocabulary_size": action_tokenizer.vocabulary_size,
    }
    if family == "driving":
        derived["slot_options"] = tuple(len(ids) for ids in action_tokenizer.slot_ids)
    return world_model_config(family, sizes | derived)


def _validation_steps(
    validation: ValidationConfig, visual_tokenizer: VisualTokenizer
) -> tuple[int, int]:
    """Return the steps of context in a validation rollout, and all of its steps.

    Where a step has several frames, the context is cut and the rollout is longer to fit.
    """
    context = visual_tokenizer.longest_clip(validation.context)
    steps = -(-validation.steps // visual_tokenizer.frames_per_latent)
    first = visual_tokenizer.num_latents(context)
    return first, first + steps


def _too_short(dataset: Dataset, visual_tokenizer: VisualTokenizer, split: str, length: int) -> str:
    size = visual_tokenizer.frames_per_latent
    unit = "frames" if size == 1 else f"steps of {size} frames"
    setting = {"train": "data.clip_frames", "validation": "validation.steps"}[split]
    more = "" if visual_tokenizer.single_frames else ", raise data.encoded_steps"
    return (
        f"no {split} episode of {dataset.folder} holds a clip of {length} {unit}; record longer "
        f"episodes{more} or lower {setting}"
    )


def _start_from(model: Transformer, path: Path) -> list[dict[str, float]]:
    """Load the weights of another training; return what that and those before it took."""
    initial, metadata = load_world_model(path)
    try:
        load_state(model, initial.state_dict(), path)
    except CheckpointError as error:
        wanted, given = to_mapping(model.config), to_mapping(initial.config)
        different = [
            f"{name} {given.get(name)} instead of {wanted[name]}"
            for name in wanted
            if given.get(name) != wanted[name]
        ]
        raise CheckpointError(
            f"initial_weights={path} are of another size than the model to train: "
            f"{', '.join(different)}; give a model of the same sizes, or null for random weights"
        ) from error
    summary = metadata.get("summary", {})
    alone = {name: summary[name] for name in ("steps", "minutes", "frame_predictions") if summary}
    stages: list[dict[str, float]] = summary.get("stages", [alone] if alone else [])
    return stages


def _validate(
    folder: RunFolder,
    config: RunConfig,
    model: Transformer,
    visual_tokenizer: VisualTokenizer,
    action_tokenizer: ActionTokenizer,
    tokens: TokenCache,
    step: int,
) -> dict[str, float]:
    """Roll out held-out clips; return figures and draw film strips beside the truth."""
    validation = config.validation
    first, length = _validation_steps(validation, visual_tokenizer)
    context = visual_tokenizer.num_frames(first)
    allowed = np.flatnonzero(tokens.clip_starts(length, from_pixels=True))
    count = min(config.training.validation_frames, len(allowed))
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
    return figures


@hydra.main(version_base="1.3", config_path="../configs", config_name="world_model")
def main(cfg: DictConfig) -> None:
    """Run, with errors of the user as one line."""
    try:
        run(cfg)
    except WorldgenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
