"""Train the judges of a world's evaluation: `python -m train.probe experiment=car_racing`."""

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from einops import rearrange
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F

from worldgen.config import build, to_mapping
from worldgen.data.episodes import Dataset
from worldgen.errors import WorldgenError
from worldgen.evaluation.judges.probe_data import (
    MotionData,
    TileData,
    load_motion_data,
    load_tile_data,
)
from worldgen.evaluation.judges.probes import (
    MotionProbe,
    MotionProbeConfig,
    Probe,
    TileProbe,
    TileProbeConfig,
    save_probes,
)
from worldgen.evaluation.measures import correlation
from worldgen.records import to_float
from worldgen.training import (
    Clock,
    DataOrder,
    Interruption,
    LengthConfig,
    OptimiserConfig,
    ProgressBar,
    RunFolder,
    build_optimiser,
    learning_rate,
    refuse_non_finite,
    set_learning_rate,
)


@dataclass(frozen=True, kw_only=True)
class ProbeDataConfig:
    """Which frames to train and to measure on."""

    folder: str
    """A recording, see docs/data-format.md."""
    training_frames: int
    """Most frames of the train split kept in memory."""
    evaluation_frames: int
    """Most frames of the test split on which the finished probe is measured."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How each probe is trained."""

    length: LengthConfig
    optimiser: OptimiserConfig
    batch_size: int
    """Clips of a motion probe; of a tile probe 8 times as many tiles."""
    noise: float
    """Standard deviation of the noise added to real frames in [-1, 1], so that the judge reads
    shapes and not the last bit of a colour, which no tokenizer keeps."""
    threads: int
    mixed_precision: bool
    """bfloat16 autocast; gains on CPUs with bfloat16 instructions."""
    log_steps: int


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `python -m train.probe` reads."""

    name: str
    run_folder: str
    seed: int
    data: ProbeDataConfig
    probes: dict[str, MotionProbeConfig | TileProbeConfig]
    training: TrainingConfig


LossOfStep = Callable[[int], Tensor]


def run(cfg: DictConfig) -> RunFolder:
    """Train every probe of a configuration and leave `probe.safetensors` in the run folder.

    Args:
        cfg: Composed from `configs/probe.yaml`.

    Raises:
        ConfigError: If the configuration is wrong.
        DataError: If the recording is missing, empty or lacks a column.
    """
    config = build(RunConfig, cfg)
    torch.set_num_threads(config.training.threads)
    torch.manual_seed(config.seed)
    dataset = Dataset(Path(config.data.folder))
    folder = RunFolder(Path(config.run_folder))
    folder.forget_after(-1)
    probes: dict[str, Probe] = {}
    held_out: dict[str, dict[str, Any]] = {}
    with Interruption() as interruption:
        for name, probe_config in config.probes.items():
            if isinstance(probe_config, MotionProbeConfig):
                probe, figures = _motion(config, dataset, name, probe_config, folder, interruption)
            else:
                probe, figures = _tiles(config, dataset, name, probe_config, folder, interruption)
            if interruption.requested:
                print("stopped before the end; nothing was saved, start again")
                return folder
            probes[name], held_out[name] = probe, figures
            print(f"{name}: {figures}")
    save_probes(folder.path / "probe.safetensors", probes, held_out)
    folder.draw_curves()
    folder.save_summary({"held_out": held_out, "config": to_mapping(config)})
    print(f"wrote {folder.path / 'probe.safetensors'}")
    return folder


def _motion(
    config: RunConfig,
    dataset: Dataset,
    name: str,
    probe_config: MotionProbeConfig,
    folder: RunFolder,
    interruption: Interruption,
) -> tuple[Probe, dict[str, Any]]:
    data = load_motion_data(dataset, "train", probe_config, config.data.training_frames)
    probe = MotionProbe(probe_config)
    probe.mean.copy_(torch.from_numpy(data.targets.mean(axis=0)))
    probe.deviation.copy_(torch.from_numpy(data.targets.std(axis=0)).clamp_min(1e-6))
    batch_size = config.training.batch_size
    order = DataOrder(np.ones(len(data.targets)), batch_size=batch_size, seed=config.seed)

    def loss_of(step: int) -> Tensor:
        samples = order.indices(step)
        clips = _noisy(data.clips(samples, probe_config.num_frames), config, step)
        targets = (torch.from_numpy(data.targets[samples]) - probe.mean) / probe.deviation
        with torch.autocast("cpu", torch.bfloat16, enabled=config.training.mixed_precision):
            readings = probe(clips)
        return F.smooth_l1_loss(readings.float(), targets, beta=0.5)

    _train(probe, loss_of, config, name, folder, interruption)
    test = load_motion_data(dataset, "test", probe_config, config.data.evaluation_frames)
    return probe, measure_motion(probe, test)


def measure_motion(probe: MotionProbe, data: MotionData) -> dict[str, Any]:
    """Return correlation and root mean square error of each quantity on real frames."""
    samples = np.arange(len(data.targets))
    parts = [
        probe.read(data.clips(part, probe.config.num_frames))
        for part in np.array_split(samples, max(1, len(samples) // 2048))
    ]
    figures: dict[str, Any] = {"samples": len(samples)}
    for number, quantity in enumerate(probe.config.quantities):
        read = np.concatenate([part[quantity][:, 0] for part in parts])
        true = data.targets[:, number]
        figures[quantity] = {
            "correlation": correlation(read, true),
            "root_mean_square_error": float(np.sqrt(np.mean((read - true) ** 2))),
            "true_standard_deviation": float(true.std()),
        }
    return figures


def _tiles(
    config: RunConfig,
    dataset: Dataset,
    name: str,
    probe_config: TileProbeConfig,
    folder: RunFolder,
    interruption: Interruption,
) -> tuple[Probe, dict[str, Any]]:
    data = load_tile_data(dataset, "train", probe_config, config.data.training_frames)
    side = probe_config.tile
    tiles = rearrange(
        data.frames,
        "frame (row h) (column w) rgb -> (frame row column) (h w rgb)",
        h=side,
        w=side,
    )
    labelled = np.concatenate((data.classes.reshape(-1, 1).astype(np.uint8), tiles), axis=1)
    # Equal tiles are many and rare ones few: learn from each different tile, classes balanced.
    different = np.unique(labelled, axis=0)
    classes = different[:, 0].astype(np.int64)
    counts = np.bincount(classes, minlength=len(probe_config.classes))
    order = DataOrder(
        1.0 / counts[classes], batch_size=8 * config.training.batch_size, seed=config.seed
    )
    probe = TileProbe(probe_config)

    def loss_of(step: int) -> Tensor:
        samples = order.indices(step)
        pixels = different[samples, 1:].reshape(-1, side, side, 3)
        targets = torch.from_numpy(classes[samples])
        with torch.autocast("cpu", torch.bfloat16, enabled=config.training.mixed_precision):
            logits = probe(_noisy(pixels, config, step))
        return F.cross_entropy(logits.float(), targets)

    _train(probe, loss_of, config, name, folder, interruption)
    test = load_tile_data(dataset, "test", probe_config, config.data.evaluation_frames)
    return probe, measure_tiles(probe, test)


def measure_tiles(probe: TileProbe, data: TileData) -> dict[str, Any]:
    """Return the accuracy on real tiles, for all and for each class that occurs."""
    right = probe.read(data.frames) == data.classes
    by_class = {
        name: {
            "accuracy": float(right[data.classes == number].mean()),
            "tiles": int((data.classes == number).sum()),
        }
        for number, name in enumerate(probe.config.classes)
        if (data.classes == number).any()
    }
    return {"frames": len(data.frames), "accuracy": float(right.mean()), "classes": by_class}


def _noisy(frames: np.ndarray, config: RunConfig, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    batch = to_float(torch.from_numpy(np.ascontiguousarray(frames)))
    return batch + config.training.noise * torch.randn(batch.shape, generator=generator)


def _train(
    probe: Probe,
    loss_of: LossOfStep,
    config: RunConfig,
    name: str,
    folder: RunFolder,
    interruption: Interruption,
) -> None:
    training = config.training
    # The layout that convolutions on CPUs work in: half the time of a step.
    probe.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = build_optimiser(probe, training.optimiser)
    clock, step, progress = Clock(), 0, 0.0
    with closing(ProgressBar(f"{config.name} probe {name}")) as bar:
        while progress < 1.0 and not interruption.requested:
            set_learning_rate(optimiser, learning_rate(training.optimiser, progress))
            loss = loss_of(step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(probe.parameters(), training.optimiser.gradient_clip)
            refuse_non_finite({"loss": loss}, step)
            optimiser.step()
            step += 1
            progress = training.length.progress(step, clock.elapsed_seconds)
            if step % training.log_steps == 0:
                folder.log(step, {f"loss_{name}": float(loss.detach())})
                bar.show(progress, {"loss": f"{float(loss.detach()):.4f}"})
    probe.eval()


@hydra.main(version_base="1.3", config_path="../configs", config_name="probe")
def main(cfg: DictConfig) -> None:
    """Run, with errors of the user as one line."""
    try:
        run(cfg)
    except WorldgenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
