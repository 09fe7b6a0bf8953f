"""Train a visual tokenizer: `python -m train.visual_tokenizer experiment=car_racing`."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from torch import Tensor

from worldgen.checkpoint import load_state, write_text
from worldgen.config import build, to_mapping
from worldgen.errors import ConfigError, WorldgenError
from worldgen.evaluation.pages.film_strip import film_strip
from worldgen.nn.image_quality import psnr, ssim
from worldgen.records import to_float, to_uint8
from worldgen.tokenizers.losses.perceptual import PerceptualLoss, PerceptualLossConfig
from worldgen.tokenizers.losses.reconstruction import (
    ReconstructionLossConfig,
    reconstruction_losses,
)
from worldgen.tokenizers.quantizers import Quantizer, code_usage
from worldgen.tokenizers.quantizers.perturbation import perturb
from worldgen.tokenizers.visual import (
    ConvolutionalTokenizerConfig,
    OmniTokenizerConfig,
    Perturbation,
    TemporalTokenizerConfig,
    VisualTokenizer,
    build_visual_tokenizer,
    load_visual_tokenizer,
    save_visual_tokenizer,
)
from worldgen.training import (
    Clock,
    Interruption,
    OptimiserConfig,
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
from worldgen.training.adversaries import Adversaries, AdversaryConfig
from worldgen.training.clip_loader import ClipPoolConfig, Loader
from worldgen.training.clip_pool import ClipPool, resize
from worldgen.training.settings import TrainingConfig, refuse_other_settings
from worldgen.training.stages import StageConfig, Stages


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `python -m train.visual_tokenizer` reads."""

    name: str
    """Of the world, for titles and metadata."""
    run_folder: str
    resume: bool
    """Go on from the checkpoint in the run folder, if there is one."""
    initial_weights: str | None
    """File of a tokenizer of the same shape to start from."""
    seed: int
    data: ClipPoolConfig
    tokenizer: ConvolutionalTokenizerConfig | OmniTokenizerConfig | TemporalTokenizerConfig
    losses: ReconstructionLossConfig
    perceptual: PerceptualLossConfig
    adversaries: tuple[AdversaryConfig, ...]
    """Discriminators to train against; none by default."""
    adversary_optimiser: OptimiserConfig
    perturbation_share: float
    """Part of the codes replaced by near ones before they are decoded, so that the decoder learns
    to live with a world model's mistakes."""
    stages: tuple[StageConfig, ...]
    """One after the other, for example images first and images with clips after."""
    training: TrainingConfig

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("stages is empty; a training has at least one")
        if not 0 <= self.perturbation_share <= 1:
            raise ConfigError(
                f"perturbation_share must lie in [0, 1], got {self.perturbation_share}"
            )

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the tokenizer's frames."""
        return self.tokenizer.frame_height, self.tokenizer.frame_width

    @property
    def clip_frames(self) -> int:
        """Frames of the longest clip; 1 where all stages are of images alone."""
        return max(stage.longest_clip for stage in self.stages)

    @property
    def fixed(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed."""
        return {
            "seed": self.seed,
            "data": to_mapping(self.data),
            "tokenizer": to_mapping(self.tokenizer),
            "losses": to_mapping(self.losses),
            "stages": [to_mapping(stage) for stage in self.stages],
            **self._switched_on,
        }

    @property
    def _switched_on(self) -> dict[str, Any]:
        """Terms beside the usual ones; what is off is left out, as in a run older than the term."""
        terms: dict[str, Any] = {}
        if max(self.perceptual.gram, self.perceptual.encoder, self.perceptual.lpips) > 0:
            terms["perceptual"] = to_mapping(self.perceptual)
        if self.adversaries:
            terms["adversaries"] = [to_mapping(adversary) for adversary in self.adversaries]
        if self.perturbation_share > 0:
            terms["perturbation_share"] = self.perturbation_share
        return terms


def run(cfg: DictConfig) -> RunFolder:
    """Train, checkpoint, validate, and leave `tokenizer.safetensors` in the run folder.

    Args:
        cfg: Composed from `configs/visual_tokenizer.yaml`.

    Raises:
        ConfigError: If the configuration is wrong, or differs from that of the run to resume.
        DataError: If a recording is missing or empty.
        DivergedError: If a loss or a gradient stops being finite.
    """
    config = build(RunConfig, cfg)
    training = config.training
    torch.set_num_threads(training.threads)
    torch.manual_seed(config.seed)
    device = torch.device(training.device)
    folder = RunFolder(Path(config.run_folder))

    loader = _loader(config)
    pool, clip_weights = loader.training_pool(config.data)
    held_out = loader.evaluation_pools(config.data, "validation", training.validation_frames)
    _report_skipped(loader, folder)
    stages = Stages(config.stages, clip_weights, frame_size=config.frame_size, seed=config.seed)

    tokenizer = build_visual_tokenizer(config.tokenizer).to(device)
    for stage_config in config.stages:
        tokenizer.num_latents(stage_config.longest_clip)
    if config.initial_weights is not None:
        initial = load_visual_tokenizer(Path(config.initial_weights))
        load_state(tokenizer, initial.state_dict(), Path(config.initial_weights))
    average = WeightAverage(tokenizer, training.average_decay)
    optimiser = build_optimiser(tokenizer, training.optimiser)
    perceptual = PerceptualLoss(config.perceptual).to(device)
    adversaries = Adversaries(config.adversaries, config.adversary_optimiser).to(device)
    position = Position(step=0, elapsed_seconds=0.0, settings=config.fixed)
    if config.resume and folder.checkpoint.exists():
        position = load_training_state(
            folder.checkpoint, tokenizer, average.module, optimiser, others=adversaries.resumed
        )
        refuse_other_settings(position.settings, config.fixed, folder.checkpoint)
    folder.forget_after(position.step)

    step, clock = position.step, Clock(position.elapsed_seconds)
    progress = training.length.progress(step, clock.elapsed_seconds)
    last_validation = last_checkpoint = clock.elapsed_seconds
    frames_seen, last_log = 0, time.monotonic()
    tokenizer.train()

    def save_checkpoint() -> None:
        now = Position(step=step, elapsed_seconds=clock.elapsed_seconds, settings=config.fixed)
        save_training_state(
            folder.checkpoint, tokenizer, average.module, optimiser, now, others=adversaries.resumed
        )

    with (
        Interruption() as interruption,
        closing(ProgressBar(f"{config.name} tokenizer", progress)) as bar,
    ):
        while progress < 1.0 and not interruption.requested:
            rate = learning_rate(training.optimiser, progress)
            set_learning_rate(optimiser, rate)
            stage = stages.stage(progress)
            draw = stages.draw(step, stage)
            batch = _to_batch(pool, draw.starts, draw.clip_frames, draw.resolution, device)
            generator = torch.Generator().manual_seed(config.seed * 2**32 + step)
            with training.autocast:
                output = tokenizer(batch, _perturbation(tokenizer, config, generator))
                rebuilt = output.reconstruction
                verdicts = adversaries(batch, rebuilt, step, generator)
                perceived = perceptual(rebuilt, batch, verdicts.features)
            terms = reconstruction_losses(rebuilt, batch, config.losses) | perceived
            whole = torch.stack(list(terms.values())).sum()
            terms |= verdicts.tokenizer_terms(whole, tokenizer.last_layer(draw.clip_frames))
            terms["quantizer"] = output.quantizer_loss
            loss = torch.stack(list(terms.values())).sum()
            optimiser.zero_grad(set_to_none=True)
            strength = adversaries.backward(verdicts)
            loss.backward(inputs=list(tokenizer.parameters()))
            strength["gradient_norm"] = torch.nn.utils.clip_grad_norm_(
                tokenizer.parameters(), training.optimiser.gradient_clip
            )
            opposed = verdicts.discriminator_terms
            refuse_non_finite({**opposed, **terms, **strength}, step)
            optimiser.step()
            adversaries.step(verdicts, progress)
            average.update(tokenizer, step)
            step += 1
            frames_seen += draw.num_frames
            progress = training.length.progress(step, clock.elapsed_seconds)
            if stages.clips_begin(stage, stages.stage(progress)):
                tokenizer.begin_clips()
                average.module.begin_clips()

            if step % training.log_steps == 0:
                with torch.no_grad():
                    quality = float(psnr(rebuilt.clamp(-1, 1), batch).mean())
                speed = int(frames_seen / (time.monotonic() - last_log))
                frames_seen, last_log = 0, time.monotonic()
                usage = code_usage(output.ids, tokenizer.codebook_size)
                minimised = {f"loss_{name}": term for name, term in {**terms, **opposed}.items()}
                figures = {
                    "loss": float(loss.detach()),
                    **{name: float(term.detach()) for name, term in minimised.items()},
                    **{name: float(value) for name, value in strength.items()},
                    "learning_rate": rate,
                    "stage": stage,
                    f"batch_psnr_{draw.kind}": quality,
                    "batch_perplexity": usage.perplexity,
                    "frames_per_second": speed,
                }
                folder.log(step, figures)
                shown = {f"psnr of {draw.kind}": f"{quality:.2f} dB", "frames/s": str(speed)}
                bar.show(progress, shown)
            if clock.elapsed_seconds - last_validation > 60 * training.validation_minutes:
                last_validation = clock.elapsed_seconds
                _validate(folder, average.module, held_out, step, config)
            if clock.elapsed_seconds - last_checkpoint > 60 * training.checkpoint_minutes:
                last_checkpoint = clock.elapsed_seconds
                save_checkpoint()

    save_checkpoint()
    if progress < 1.0:
        print(f"stopped at step {step}; the same command goes on from {folder.checkpoint}")
        return folder
    _validate(folder, average.module, held_out, step, config)
    figures_of_splits = {
        split: {
            name: measure(average.module, part, config)
            for name, part in loader.evaluation_pools(
                config.data, split, config.data.evaluation_frames
            ).items()
        }
        for split in ("validation", "test")
    }
    _report_skipped(loader, folder)
    summary = {
        "name": config.name,
        "steps": step,
        "minutes": round(clock.elapsed_seconds / 60, 1),
        "training_frames": len(pool),
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
    tokenizer: VisualTokenizer, pool: ClipPool, config: RunConfig
) -> dict[str, dict[str, float]]:
    """Return mean PSNR and SSIM of all frames after rounding to 8 bits, and code usage.

    Under `images` each frame is tokenized alone; under `videos`, where the training has clips,
    the same recording is tokenized in clips.
    """
    figures: dict[str, dict[str, float]] = {}
    for clip_frames in sorted({1, config.clip_frames}):
        quality: list[Tensor] = []
        similarity: list[Tensor] = []
        ids: list[Tensor] = []
        for batch in _batches(pool, clip_frames, config):
            batch_ids, decoded = _there_and_back(tokenizer, batch, config)
            quality.append(psnr(decoded, batch).flatten())
            similarity.append(ssim(decoded, batch).flatten())
            ids.append(batch_ids.flatten())
        if not ids:
            continue
        usage = code_usage(torch.cat(ids), tokenizer.codebook_size)
        per_frame = torch.cat(quality)
        figures["images" if clip_frames == 1 else "videos"] = {
            "frames": len(per_frame),
            "tokens_per_frame": sum(part.numel() for part in ids) / len(per_frame),
            "psnr": float(per_frame.mean()),
            "psnr_worst": float(per_frame.min()),
            "ssim": float(torch.cat(similarity).mean()),
            "codes_used": usage.used,
            "codebook_size": tokenizer.codebook_size,
            "perplexity": usage.perplexity,
        }
    return figures


def _validate(
    folder: RunFolder,
    tokenizer: VisualTokenizer,
    pools: Mapping[str, ClipPool],
    step: int,
    config: RunConfig,
) -> None:
    """Log figures of each folder; draw images and clips beside what became of them."""
    for name, pool in pools.items():
        for kind, figures in measure(tokenizer, pool, config).items():
            suffix = f"{kind}_{name}" if len(pools) > 1 else kind
            chosen = ("psnr", "ssim", "codes_used", "perplexity")
            folder.log(step, {f"validation_{key}_{suffix}": figures[key] for key in chosen})
    folder.save_picture(
        f"reconstructions_{step:07d}.png", _picture_of_images(tokenizer, pools, config)
    )
    if config.clip_frames > 1:
        _draw_clips(folder.path / f"clips_{step:07d}.png", tokenizer, pools, config)
    folder.draw_curves()


def _picture_of_images(
    tokenizer: VisualTokenizer, pools: Mapping[str, ClipPool], config: RunConfig
) -> UInt8[np.ndarray, "height width 3"]:
    """Return six pairs a line, the original on the left and its reconstruction on the right of each."""
    most = 48 // len(pools)
    truth, copies = [], []
    for pool in pools.values():
        chosen = np.arange(len(pool))[:: max(1, len(pool) // most)][:most]
        frames = _to_batch(pool, chosen, 1, config.frame_size, torch.device(config.training.device))
        truth.append(frames)
        copies.append(_there_and_back(tokenizer, frames, config)[1])
    pairs = torch.stack((torch.cat(truth), torch.cat(copies))).squeeze(2)
    wide = min(6, pairs.shape[1])
    pairs = to_uint8(pairs[:, : pairs.shape[1] // wide * wide]).cpu()
    picture = rearrange(pairs, "pair (r c) h w rgb -> (r h) (c pair w) rgb", c=wide).numpy()
    return picture.repeat(2, 0).repeat(2, 1)


def _draw_clips(
    path: Path, tokenizer: VisualTokenizer, pools: Mapping[str, ClipPool], config: RunConfig
) -> None:
    """Film strips of two clips of each folder, with their reconstructions below."""
    rows: dict[str, np.ndarray] = {}
    for name, pool in pools.items():
        starts = pool.separate_clips(config.clip_frames)
        for number, start in enumerate(starts[:: max(1, len(starts) // 2)][:2], start=1):
            device = torch.device(config.training.device)
            clip = _to_batch(pool, np.array([start]), config.clip_frames, config.frame_size, device)
            copy = _there_and_back(tokenizer, clip, config)[1]
            rows[f"{name} {number}"] = to_uint8(clip)[0].cpu().numpy()
            rows[f"{name} {number}, reconstructed"] = to_uint8(copy)[0].cpu().numpy()
    if rows:
        film_strip(rows, path, scale=1)


@torch.no_grad()
def _there_and_back(
    tokenizer: VisualTokenizer, frames: Float[Tensor, "b t 3 h w"], config: RunConfig
) -> tuple[Tensor, Float[Tensor, "b t 3 h w"]]:
    """Return the ids of frames, and what is decoded from them, rounded to 8 bits."""
    with config.training.autocast:
        ids = tokenizer.encode(frames)
        decoded = tokenizer.decode(ids)
    return ids, to_float(to_uint8(decoded))


def _perturbation(
    tokenizer: VisualTokenizer, config: RunConfig, generator: torch.Generator
) -> Perturbation | None:
    if config.perturbation_share == 0:
        return None
    quantizer = cast("Quantizer", tokenizer.get_submodule("quantizer"))
    return lambda ids: perturb(ids, quantizer, config.perturbation_share, generator)


def _batches(pool: ClipPool, clip_frames: int, config: RunConfig) -> Iterator[Tensor]:
    """Yield every image of a pool, or clips that share no frame."""
    device = torch.device(config.training.device)
    starts = np.arange(len(pool)) if clip_frames == 1 else pool.separate_clips(clip_frames)
    size = max(1, config.training.batch_size // clip_frames)
    for first in range(0, len(starts), size):
        chosen = starts[first : first + size]
        yield _to_batch(pool, chosen, clip_frames, config.frame_size, device)


def _to_batch(
    pool: ClipPool,
    starts: np.ndarray,
    clip_frames: int,
    size: tuple[int, int],
    device: torch.device,
) -> Float[Tensor, "b t 3 h w"]:
    return resize(to_float(pool.clips(starts, clip_frames).to(device)), size)


def _loader(config: RunConfig) -> Loader:
    """Return what reads frames at the largest size that any stage, or the end, asks for."""
    sizes = [config.frame_size, *(pair for stage in config.stages for pair in stage.resolutions)]
    return Loader(max(sizes, key=lambda pair: pair[0] * pair[1]), config.clip_frames, config.seed)


def _report_skipped(loader: Loader, folder: RunFolder) -> None:
    if loader.skipped:
        path = folder.path / "skipped.json"
        write_text(path, json.dumps(loader.skipped, indent=2) + "\n")
        print(f"{len(loader.skipped)} files cannot be read and are left out; {path} lists them")


@hydra.main(version_base="1.3", config_path="../configs", config_name="visual_tokenizer")
def main(cfg: DictConfig) -> None:
    """Run, with errors of the user as one line."""
    try:
        run(cfg)
    except WorldgenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
