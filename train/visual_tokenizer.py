"""Train a visual tokenizer: `python -m train.visual_tokenizer experiment=car_racing`."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from omegaconf import DictConfig

from worldgen.config import build, to_mapping
from worldgen.data.episodes import Dataset
from worldgen.errors import WorldgenError
from worldgen.nn.image_quality import psnr, ssim
from worldgen.records import to_float, to_uint8
from worldgen.tokenizers.losses import ReconstructionLossConfig, reconstruction_losses
from worldgen.tokenizers.quantizers import code_usage
from worldgen.tokenizers.visual import (
    VisualTokenizer,
    VisualTokenizerConfig,
    build_visual_tokenizer,
    save_visual_tokenizer,
)
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
from worldgen.training.frame_pool import FramePoolConfig, load_frames, rarity_weights
from worldgen.training.settings import TrainingConfig, refuse_other_settings


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `python -m train.visual_tokenizer` reads."""

    name: str
    """Of the world, for titles and metadata."""
    run_folder: str
    resume: bool
    """Go on from the checkpoint in the run folder, if there is one."""
    seed: int
    data: FramePoolConfig
    tokenizer: VisualTokenizerConfig
    losses: ReconstructionLossConfig
    training: TrainingConfig

    @property
    def fixed(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed."""
        return {
            "seed": self.seed,
            "data": to_mapping(self.data),
            "tokenizer": to_mapping(self.tokenizer),
            "losses": to_mapping(self.losses),
            "batch_size": self.training.batch_size,
        }


def run(cfg: DictConfig) -> RunFolder:
    """Train, checkpoint, validate, and leave `tokenizer.safetensors` in the run folder.

    Args:
        cfg: Composed from `configs/visual_tokenizer.yaml`.

    Raises:
        ConfigError: If the configuration is wrong, or differs from that of the run to resume.
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
    frames = load_frames(dataset, "train", config.data.training_frames, config.seed)
    held_out = load_frames(dataset, "validation", training.validation_frames, config.seed)
    weights = rarity_weights(frames, config.data.rarity_square, config.data.rarity_power)
    order = DataOrder(weights, batch_size=training.batch_size, seed=config.seed)

    tokenizer = build_visual_tokenizer(config.tokenizer).to(device)
    average = WeightAverage(tokenizer, training.average_decay)
    optimiser = build_optimiser(tokenizer, training.optimiser)
    position = Position(step=0, elapsed_seconds=0.0, settings=config.fixed)
    if config.resume and folder.checkpoint.exists():
        position = load_training_state(folder.checkpoint, tokenizer, average.module, optimiser)
        refuse_other_settings(position.settings, config.fixed, folder.checkpoint)
    folder.forget_after(position.step)

    step, clock = position.step, Clock(position.elapsed_seconds)
    progress = training.length.progress(step, clock.elapsed_seconds)
    last_validation = last_checkpoint = clock.elapsed_seconds
    last_log = (step, time.monotonic())
    tokenizer.train()

    def save_checkpoint() -> None:
        now = Position(step=step, elapsed_seconds=clock.elapsed_seconds, settings=config.fixed)
        save_training_state(folder.checkpoint, tokenizer, average.module, optimiser, now)

    with (
        Interruption() as interruption,
        closing(ProgressBar(f"{config.name} tokenizer", progress)) as bar,
    ):
        while progress < 1.0 and not interruption.requested:
            rate = learning_rate(training.optimiser, progress)
            set_learning_rate(optimiser, rate)
            batch = _to_batch(frames[order.indices(step)], device)
            with training.autocast:
                output = tokenizer(batch)
            terms = reconstruction_losses(output.reconstruction, batch, config.losses)
            terms["quantizer"] = output.quantizer_loss
            loss = torch.stack(list(terms.values())).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(
                tokenizer.parameters(), training.optimiser.gradient_clip
            )
            refuse_non_finite({**terms, "gradient norm": norm}, step)
            optimiser.step()
            average.update(tokenizer, step)
            step += 1
            progress = training.length.progress(step, clock.elapsed_seconds)

            if step % training.log_steps == 0:
                with torch.no_grad():
                    quality = float(psnr(output.reconstruction.clamp(-1, 1), batch).mean())
                speed = (step - last_log[0]) * training.batch_size
                speed = int(speed / (time.monotonic() - last_log[1]))
                last_log = (step, time.monotonic())
                usage = code_usage(output.ids, tokenizer.codebook_size)
                losses = {f"loss_{name}": float(term.detach()) for name, term in terms.items()}
                figures = {
                    "loss": float(loss.detach()),
                    **losses,
                    "gradient_norm": float(norm),
                    "learning_rate": rate,
                    "batch_psnr": quality,
                    "batch_perplexity": usage.perplexity,
                    "images_per_second": speed,
                }
                folder.log(step, figures)
                shown = {"psnr": f"{quality:.2f} dB", "images/s": str(speed)}
                bar.show(progress, shown)
            if clock.elapsed_seconds - last_validation > 60 * training.validation_minutes:
                last_validation = clock.elapsed_seconds
                _validate(folder, average.module, held_out, step, training, device)
            if clock.elapsed_seconds - last_checkpoint > 60 * training.checkpoint_minutes:
                last_checkpoint = clock.elapsed_seconds
                save_checkpoint()

    save_checkpoint()
    if progress < 1.0:
        print(f"stopped at step {step}; the same command goes on from {folder.checkpoint}")
        return folder
    _validate(folder, average.module, held_out, step, training, device)
    figures_of_splits = {
        split: measure(
            average.module,
            load_frames(dataset, split, config.data.evaluation_frames, config.seed),
            training,
            device,
        )
        for split in ("validation", "test")
    }
    summary = {
        "name": config.name,
        "steps": step,
        "minutes": round(clock.elapsed_seconds / 60, 1),
        "training_frames": len(frames),
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "figures": figures_of_splits,
        "config": to_mapping(config),
    }
    folder.save_summary(summary)
    save_visual_tokenizer(
        folder.path / "tokenizer.safetensors", average.module, {"training": summary}
    )
    print(f"{folder.path / 'tokenizer.safetensors'}: {figures_of_splits['test']}")
    return folder


@torch.no_grad()
def measure(
    tokenizer: VisualTokenizer,
    frames: UInt8[np.ndarray, "frame height width 3"],
    training: TrainingConfig,
    device: torch.device,
) -> dict[str, float]:
    """Return mean PSNR and SSIM of the frames after rounding to 8 bits, and code usage."""
    quality: list[torch.Tensor] = []
    similarity: list[torch.Tensor] = []
    ids: list[torch.Tensor] = []
    for batch in _batches(frames, training.batch_size, device):
        with training.autocast:
            batch_ids = tokenizer.encode(batch)
            decoded = tokenizer.decode(batch_ids)
        decoded = to_float(to_uint8(decoded))
        quality.append(psnr(decoded, batch).flatten())
        similarity.append(ssim(decoded, batch).flatten())
        ids.append(batch_ids)
    usage = code_usage(torch.cat(ids), tokenizer.codebook_size)
    return {
        "frames": len(frames),
        "psnr": float(torch.cat(quality).mean()),
        "psnr_worst": float(torch.cat(quality).min()),
        "ssim": float(torch.cat(similarity).mean()),
        "codes_used": usage.used,
        "codebook_size": tokenizer.codebook_size,
        "perplexity": usage.perplexity,
    }


def _validate(
    folder: RunFolder,
    tokenizer: VisualTokenizer,
    frames: UInt8[np.ndarray, "frame height width 3"],
    step: int,
    training: TrainingConfig,
    device: torch.device,
) -> None:
    figures = measure(tokenizer, frames, training, device)
    names = ("psnr", "ssim", "codes_used", "perplexity")
    folder.log(step, {f"validation_{name}": figures[name] for name in names})
    chosen = frames[:: max(1, len(frames) // 48)][:48]
    batch = _to_batch(chosen, device)
    with training.autocast:
        decoded = tokenizer.decode(tokenizer.encode(batch))
    pairs = np.stack((chosen, to_uint8(decoded).squeeze(1).cpu().numpy()))
    # Six pairs a line, original on the left, reconstruction on the right of each pair.
    pairs = pairs[:, : len(chosen) // 6 * 6] if len(chosen) >= 6 else pairs[:, :1]
    wide = 6 if len(chosen) >= 6 else 1
    picture = rearrange(pairs, "pair (r c) h w rgb -> (r h) (c pair w) rgb", c=wide)
    folder.save_picture(f"reconstructions_{step:07d}.png", picture.repeat(2, 0).repeat(2, 1))
    folder.draw_curves()


def _batches(
    frames: UInt8[np.ndarray, "frame height width 3"], size: int, device: torch.device
) -> Iterator[torch.Tensor]:
    for start in range(0, len(frames), size):
        yield _to_batch(frames[start : start + size], device)


def _to_batch(
    frames: UInt8[np.ndarray, "frame height width 3"], device: torch.device
) -> torch.Tensor:
    return to_float(torch.from_numpy(frames).to(device)).unsqueeze(1)


@hydra.main(version_base="1.3", config_path="../configs", config_name="visual_tokenizer")
def main(cfg: DictConfig) -> None:
    """Run, with errors of the user as one line."""
    try:
        run(cfg)
    except WorldgenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
