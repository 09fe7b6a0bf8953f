"""Train a judge of action following: `python -m train.inverse_dynamics experiment=car_racing`."""

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import nn
from torch.nn import functional as F

from worldgen.config import build, to_mapping
from worldgen.data.episodes import Dataset
from worldgen.errors import ConfigError, WorldgenError
from worldgen.evaluation.judges.inverse_dynamics import (
    INVERSE_DYNAMICS_FILE,
    InverseDynamicsConfig,
    InverseDynamicsModel,
    group_ids,
    save_inverse_dynamics,
)
from worldgen.evaluation.judges.inverse_dynamics_alignment import describe_misalignment
from worldgen.evaluation.judges.inverse_dynamics_data import (
    label_weights,
    load_labelled_clips,
    load_labelled_frames,
)
from worldgen.evaluation.judges.inverse_dynamics_following import judge_actions
from worldgen.records import to_float
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
from worldgen.training.settings import TrainingConfig, refuse_other_settings


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Recording, and the clips cut from it."""

    folder: str
    """A recording, see docs/data-format.md."""
    training_frames: int
    """Most frames of the train split kept in memory."""
    evaluation_frames: int
    """Most frames of the test split on which the finished model is measured."""
    clip_frames: int
    """Frames of a clip; every step between two of them is labelled."""
    rarity_power: float
    """0 draws clips evenly; higher values favour clips with rare actions, 1 the most."""
    noise: float
    """Standard deviation of the noise added to real frames in [-1, 1], so that the judge reads
    shapes and not the last bit of a colour, which no tokenizer keeps."""

    def __post_init__(self) -> None:
        if self.clip_frames < 6 or min(self.training_frames, self.evaluation_frames) < 1:
            raise ConfigError(
                f"clip_frames must be at least 6 and the numbers of frames positive, got "
                f"{self.clip_frames}, {self.training_frames} and {self.evaluation_frames}"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `python -m train.inverse_dynamics` reads."""

    name: str
    run_folder: str
    resume: bool
    seed: int
    data: DataConfig
    model: InverseDynamicsConfig
    training: TrainingConfig

    @property
    def fixed(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed."""
        return {
            "seed": self.seed,
            "data": to_mapping(self.data),
            "model": to_mapping(self.model),
            "batch_size": self.training.batch_size,
        }


def run(cfg: DictConfig) -> RunFolder:
    """Train, checkpoint, measure, and leave `inverse_dynamics.safetensors` in the run folder.

    Args:
        cfg: Composed from `configs/inverse_dynamics.yaml`.

    Raises:
        ConfigError: If the configuration is wrong, or differs from that of the run to resume.
        CheckpointError: If the checkpoint to resume from is damaged.
        DataError: If the recording is missing, empty, or its episodes are too short.
        DivergedError: If a loss or a gradient stops being finite.
    """
    config = build(RunConfig, cfg)
    training, data = config.training, config.data
    torch.set_num_threads(training.threads)
    torch.manual_seed(config.seed)
    device = torch.device(training.device)
    folder = RunFolder(Path(config.run_folder))

    dataset = Dataset(Path(data.folder))
    schema = dataset.metadata.schema
    size = config.model.frame_size
    labelled = load_labelled_frames(dataset, "train", size, data.training_frames)
    weights = label_weights(labelled, schema, data.clip_frames, data.rarity_power)
    order = DataOrder(weights, batch_size=training.batch_size, seed=config.seed)
    held_out = load_labelled_clips(
        dataset, "validation", size, training.validation_frames, clip_frames=data.clip_frames
    )

    model = InverseDynamicsModel(config.model, schema)
    # The layout that convolutions on CPUs work in: half the time of a step.
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = WeightAverage(model, training.average_decay)
    optimiser = build_optimiser(model, training.optimiser)
    position = Position(step=0, elapsed_seconds=0.0, settings=config.fixed)
    if config.resume and folder.checkpoint.exists():
        position = load_training_state(folder.checkpoint, model, average.module, optimiser)
        refuse_other_settings(position.settings, config.fixed, folder.checkpoint)
    folder.forget_after(position.step)

    step, clock = position.step, Clock(position.elapsed_seconds)
    progress = training.length.progress(step, clock.elapsed_seconds)
    last_validation = last_checkpoint = clock.elapsed_seconds
    last_log = (step, time.monotonic())

    def save_checkpoint() -> None:
        now = Position(step=step, elapsed_seconds=clock.elapsed_seconds, settings=config.fixed)
        save_training_state(folder.checkpoint, model, average.module, optimiser, now)

    def validate() -> None:
        folder.log(step, _curves(judge_actions(average.module, *held_out)))
        folder.draw_curves()

    with (
        Interruption() as interruption,
        closing(ProgressBar(f"{config.name} inverse dynamics", progress)) as bar,
    ):
        while progress < 1.0 and not interruption.requested:
            rate = learning_rate(training.optimiser, progress)
            set_learning_rate(optimiser, rate)
            frames, actions = labelled.clips(order.indices(step), data.clip_frames)
            generator = torch.Generator().manual_seed(config.seed * 2**32 + step)
            clips = to_float(torch.from_numpy(frames))
            clips = clips + data.noise * torch.randn(clips.shape, generator=generator)
            targets = torch.from_numpy(group_ids(schema, actions)).to(device)
            with training.autocast:
                logits = model(clips.to(device))
            terms = {
                group.name: F.cross_entropy(
                    read.float().flatten(0, 1), targets[..., index].flatten()
                )
                for index, (group, read) in enumerate(zip(schema.groups, logits, strict=True))
            }
            loss = torch.stack(list(terms.values())).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), training.optimiser.gradient_clip)
            refuse_non_finite({**terms, "gradient norm": norm}, step)
            optimiser.step()
            average.update(model, step)
            step += 1
            progress = training.length.progress(step, clock.elapsed_seconds)

            if step % training.log_steps == 0:
                read_frames = (step - last_log[0]) * training.batch_size * data.clip_frames
                speed = read_frames / (time.monotonic() - last_log[1])
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
    validate()
    _finish(config, dataset, average.module, folder, step, clock.elapsed_seconds)
    return folder


def _curves(figures: dict[str, Any]) -> dict[str, float]:
    """Return the few figures that are drawn over steps."""
    curves = {
        f"validation_{score}_{name}": task[score]
        for name, task in figures["tasks"].items()
        for score in ("f1_macro", "f1_micro")
    }
    curves |= {
        f"validation_error_{name}": axis["mean_absolute_difference"]
        for name, axis in figures["axes"].items()
    }
    return curves


def _finish(
    config: RunConfig,
    dataset: Dataset,
    model: InverseDynamicsModel,
    folder: RunFolder,
    step: int,
    seconds: float,
) -> None:
    """Measure what is stored, with its weights as the file holds them, on the test split."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    data, size = config.data, config.model.frame_size
    test = load_labelled_clips(
        dataset, "test", size, data.evaluation_frames, clip_frames=data.clip_frames
    )
    figures = judge_actions(model, *test)
    held_out = {
        "split": "test",
        "clip_frames": data.clip_frames,
        "training_frames_per_second": dataset.metadata.frames_per_second,
        "steps_trained": step,
        "seed": config.seed,
        **figures,
    }
    path = folder.path / INVERSE_DYNAMICS_FILE
    save_inverse_dynamics(path, model, held_out)
    summary = {
        "name": config.name,
        "steps": step,
        "minutes": round(seconds / 60, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held_out": held_out,
        "config": to_mapping(config),
    }
    folder.save_summary(summary)
    print(f"wrote {path}: {figures['mean_over_tasks'] or figures['axes']}")
    problem = describe_misalignment(figures["alignment"], str(dataset.folder))
    if problem is not None:
        print(f"warning: {problem}")


@hydra.main(version_base="1.3", config_path="../configs", config_name="inverse_dynamics")
def main(cfg: DictConfig) -> None:
    """Run, with errors of the user as one line."""
    try:
        run(cfg)
    except WorldgenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
