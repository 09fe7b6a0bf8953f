"""Train a world model on recordings: `python -m train.world_model experiment=car_racing`."""

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from train.package_world import StartsConfig, WorldConfig, package
from train.world_model_validation import ValidationConfig, validate, validation_steps
from worldgen.checkpoint import file_hash, load_state
from worldgen.config import build, to_mapping
from worldgen.data.episodes import Dataset
from worldgen.data.token_cache import join_token_caches, open_or_build_token_cache
from worldgen.errors import CheckpointError, ConfigError, DataError, WorldgenError
from worldgen.models import (
    NextFrameConfig,
    Transformer,
    TransformerConfig,
    build_world_model,
    load_world_model,
    save_world_model,
    world_model_config,
)
from worldgen.pipeline import TEXT_FILE
from worldgen.tokenizers.action import ActionTokenizer
from worldgen.tokenizers.text import TextTokenizer
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
from worldgen.training.tasks import TaskClips, TasksConfig
from worldgen.training.told import (
    captions_of_steps,
    open_or_train_text_tokenizer,
    recalled_of_steps,
)
from worldgen.training.world_model_loss import WorldModelLossConfig, world_model_losses

_TOLD = {
    "text_vocabulary_size",
    "longest_jump",
    "farthest_goal",
    "recall_after",
    "noise_levels",
    "sink",
    "far_frames",
    "far_patch",
    "time_decay",
}
"""What initial weights may lack: fields of a model that say what its steps are told, and what they
see beside their window."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Recording, and the clips cut from it."""

    folder: str
    more_folders: tuple[str, ...]
    """Recordings of the same environment and actions to train on beside it. Starts and test clips
    are those of `folder`."""
    clip_frames: int
    """Frames of context in a training clip; what follows each step of it is predicted."""
    encoded_steps: int
    """Grids that a tokenizer of clips makes of a recording before it starts afresh."""


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
    """File of another world model of the same sizes to start from, None: random weights. It may
    lack what steps are told, and text."""
    text_tokenizer_file: str | None
    """Hugging Face `tokenizer.json` for a model with text. None: the `text.json` beside the initial
    weights, or, if there is none, one trained on the captions of the recording."""
    data: DataConfig
    model: dict[str, Any]
    """Family and sizes; grid, codebook and actions follow from tokenizer and data."""
    losses: WorldModelLossConfig
    corruption: CorruptionConfig | RandomTokensConfig
    on_policy: OnPolicyConfig
    tasks: TasksConfig
    validation: ValidationConfig
    training: TrainingConfig
    world: WorldConfig
    starts: StartsConfig

    def fixed(self, tokenizer_hash: str) -> dict[str, Any]:
        """What must be equal for a run to be resumed."""
        data = to_mapping(self.data)
        # Runs that were begun before these settings existed are those without them.
        if not self.data.more_folders:
            del data["more_folders"]
        tasks = {} if self.tasks == TasksConfig() else {"tasks": to_mapping(self.tasks)}
        return {
            "seed": self.seed,
            "tokenizer": tokenizer_hash,
            "data": data,
            "model": self.model,
            "losses": to_mapping(self.losses),
            "corruption": to_mapping(self.corruption),
            "on_policy": to_mapping(self.on_policy),
            "batch_size": self.training.batch_size,
            **tasks,
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

    datasets = [Dataset(Path(name)) for name in (config.data.folder, *config.data.more_folders)]
    dataset = datasets[0]
    visual_tokenizer = load_visual_tokenizer(Path(config.tokenizer_file)).to(device)
    tokenizer_hash = file_hash(Path(config.tokenizer_file))
    action_tokenizer = ActionTokenizer(dataset.metadata.schema)
    clip_steps = visual_tokenizer.num_latents(config.data.clip_frames)
    frames_per_clip = clip_steps * visual_tokenizer.frames_per_latent
    sizes = _model_config(config, visual_tokenizer, action_tokenizer)
    resumes = config.resume and folder.checkpoint.exists()
    text_tokenizer = _text_tokenizer(config, sizes, datasets, folder, resumes=resumes)
    clips = {
        split: _task_clips(
            config, sizes, datasets, split, visual_tokenizer, tokenizer_hash, text_tokenizer
        )
        for split in ("train", "validation")
    }
    starts = clips["train"].starts
    _, rollout_length = validation_steps(config.validation, visual_tokenizer)
    for found, split, length in (
        (starts, "train", clips["train"].span),
        (
            clips["validation"].tokens.clip_starts(rollout_length, from_pixels=True),
            "validation",
            rollout_length,
        ),
    ):
        if not found.any():
            raise DataError(_too_short(dataset, visual_tokenizer, split, length))
    order = DataOrder(starts.astype(float), batch_size=training.batch_size, seed=config.seed)

    model = build_world_model(sizes)
    trained_before: list[dict[str, float]] = []
    if config.initial_weights is not None:
        trained_before = _start_from(model, Path(config.initial_weights))
    model = model.to(device)
    average = WeightAverage(model, training.average_decay)
    optimiser = build_optimiser(model, training.optimiser)
    fixed = config.fixed(tokenizer_hash)
    position = Position(step=0, elapsed_seconds=0.0, settings=fixed)
    if resumes:
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

    def measure() -> dict[str, float]:
        figures = validate(
            folder,
            config.validation,
            average.module,
            visual_tokenizer,
            action_tokenizer,
            clips["validation"],
            count=training.validation_frames,
            step=step,
        )
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
            seed = config.seed * 2**32 + step
            # Tasks have numbers of their own, so that those of corruption and dreams stay as they are.
            drawn = torch.Generator().manual_seed(seed + 2**31)
            batch = clips["train"].clips(order.indices(step), drawn).to(device)
            with training.autocast:
                terms = world_model_losses(
                    model,
                    batch,
                    losses=config.losses,
                    corruption=config.corruption,
                    on_policy=config.on_policy,
                    generator=torch.Generator().manual_seed(seed),
                    first_frame=config.tasks.first_frame,
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
                measure()
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
        "training_frames": clips["train"].tokens.metadata["frames"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokenizer_hash": tokenizer_hash,
        "figures": measure(),
        "config": to_mapping(config),
    }
    folder.save_summary(summary)
    save_world_model(folder.path / "model.safetensors", average.module, summary=summary)
    print(f"{folder.path / 'model.safetensors'}: {summary['figures']}")
    package(
        folder.path,
        name=config.name,
        dataset=dataset,
        more_datasets=datasets[1:],
        tokenizer_file=Path(config.tokenizer_file),
        model_file=folder.path / "model.safetensors",
        world=config.world,
        starts=config.starts,
    )
    return folder


def _text_tokenizer(
    config: RunConfig,
    sizes: TransformerConfig,
    datasets: Sequence[Dataset],
    folder: RunFolder,
    *,
    resumes: bool,
) -> TextTokenizer | None:
    """Return the text tokenizer of a model with text, and leave it in the run folder."""
    if not isinstance(sizes, NextFrameConfig) or not sizes.text_vocabulary_size:
        return None
    place = folder.path / TEXT_FILE
    beside = Path(config.initial_weights or "").parent / TEXT_FILE
    given: Path | None = None
    if resumes:
        given = place
    elif config.text_tokenizer_file is not None:
        given = Path(config.text_tokenizer_file)
    elif config.initial_weights is not None and beside.is_file():
        # The weights know what its ids mean.
        given = beside
    tokenizer = open_or_train_text_tokenizer(datasets, sizes.text_vocabulary_size, given)
    if not resumes:
        tokenizer.save(place)
    return tokenizer


def _task_clips(
    config: RunConfig,
    sizes: TransformerConfig,
    datasets: Sequence[Dataset],
    split: str,
    visual_tokenizer: VisualTokenizer,
    tokenizer_hash: str,
    text_tokenizer: TextTokenizer | None,
) -> TaskClips:
    tokens = join_token_caches(
        [
            open_or_build_token_cache(
                dataset,
                split,
                dataset.folder / "tokens",
                visual_tokenizer,
                tokenizer_hash,
                clip_steps=config.data.encoded_steps,
            )
            for dataset in datasets
        ]
    )
    text_ids = caption_of_step = recalled = None
    if text_tokenizer is not None:
        if not visual_tokenizer.single_frames:
            raise ConfigError(
                "captions are of single frames, this tokenizer makes one grid of several; choose a "
                "tokenizer of single frames, or model.text_vocabulary_size=0"
            )
        text_ids, caption_of_step = captions_of_steps(
            datasets, split, text_tokenizer, sizes.layout.tokens_per_step
        )
    if isinstance(sizes, NextFrameConfig) and sizes.recall_after and split == "train":
        recalled = recalled_of_steps(tokens, sizes.recall_after)
    return TaskClips(
        tokens,
        config.tasks,
        sizes,
        visual_tokenizer.num_latents(config.data.clip_frames),
        recalled=recalled,
        text_ids=text_ids,
        caption_of_step=caption_of_step,
    )


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
    wanted, given = to_mapping(model.config), to_mapping(initial.config)
    different = [name for name in wanted if given.get(name) != wanted[name]]
    weights = initial.state_dict()
    if set(different) <= _TOLD:
        # Parts that the other model lacks begin as they are: those that steps are told at zero.
        weights = model.state_dict() | weights
    try:
        load_state(model, weights, path)
    except CheckpointError as error:
        listed = [f"{name} {given.get(name)} instead of {wanted[name]}" for name in different]
        raise CheckpointError(
            f"initial_weights={path} are of another size than the model to train: "
            f"{', '.join(listed)}; give a model of the same sizes, or null for random weights"
        ) from error
    summary = metadata.get("summary", {})
    alone = {name: summary[name] for name in ("steps", "minutes", "frame_predictions") if summary}
    stages: list[dict[str, float]] = summary.get("stages", [alone] if alone else [])
    return stages


@hydra.main(version_base="1.3", config_path="../configs", config_name="world_model")
def main(cfg: DictConfig) -> None:
    """Run, with errors of the user as one line."""
    try:
        run(cfg)
    except WorldgenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
