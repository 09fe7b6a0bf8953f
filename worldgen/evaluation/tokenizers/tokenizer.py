"""How good a visual tokenizer is, on any folder of images, videos and recordings."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldgen.checkpoint import file_hash
from worldgen.data.media import MediaFolder
from worldgen.errors import CheckpointError, ConfigError
from worldgen.evaluation.frechet import FeatureNetwork, RandomFeatures, TokenizerFeatures
from worldgen.evaluation.machine import hardware, peak_memory_megabytes, versions
from worldgen.evaluation.tokenizers.tokenizer_pass import TokenizerPass
from worldgen.pipeline import CARD_FILE, TOKENIZER_FILE, shipped_worlds, world_folder
from worldgen.tokenizers.losses.perceptual import Lpips
from worldgen.tokenizers.visual import VisualTokenizer, load_visual_tokenizer

__all__ = ["TokenizerProtocol", "evaluate_tokenizer", "find_tokenizer"]


@dataclass(frozen=True, kw_only=True)
class TokenizerProtocol:
    """What a tokenizer is measured on, and how."""

    data: Path
    """Folder of images, videos and recordings."""
    split: str | None = None
    """Part of it, see `MediaFolder`; by default "test" where the folder is a recording."""
    num_frames: int | None = 17
    """Of a clip; None takes each video whole, as one clip."""
    limit: int | None = None
    """At most so many images and so many clips, spread evenly; None takes all."""
    size: tuple[int, int] | None = None
    """Height and width; by default those the tokenizer was made for."""
    seed: int = 0
    """Decides which codes are perturbed, and how."""
    perturbed_share: float = 0.05
    """Of the codes."""
    lpips: Path | None = None
    """Weights for LPIPS, see `worldgen.tokenizers.losses.perceptual.Lpips`."""
    features: Path | None = None
    """File of a tokenizer whose encoder gives the features of the Frechet distance; by default
    fixed random convolutions."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be 1 or more, got {self.limit}")
        if self.size is not None and min(self.size) < 1:
            raise ConfigError(f"size must be 1 x 1 or more, got {self.size[0]} x {self.size[1]}")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"no device {self.device!r} on this machine; take 'cpu'")


def find_tokenizer(name_or_path: str | Path) -> Path:
    """Return the file of a tokenizer: itself, that of a shipped world, or that in a folder.

    Raises:
        CheckpointError: If there is none.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if str(name_or_path) in shipped_worlds() or (path / CARD_FILE).is_file():
        return world_folder(name_or_path) / TOKENIZER_FILE
    if (path / TOKENIZER_FILE).is_file():
        return path / TOKENIZER_FILE
    raise CheckpointError(
        f"no tokenizer {str(name_or_path)!r}: it is neither a file, nor a shipped world "
        f"({', '.join(shipped_worlds())}), nor a folder with a {TOKENIZER_FILE}"
    )


@torch.no_grad()
def evaluate_tokenizer(name_or_path: str | Path, protocol: TokenizerProtocol) -> dict[str, Any]:
    """Return every figure of a tokenizer, as JSON holds them, and film strips under their own key.

    Images, and every frame of the videos, are taken alone as clips of one frame; videos are also
    taken in clips. Reconstructions are rounded to uint8 before they are measured, as people see
    them. Files that cannot be used are passed over and listed.

    Args:
        name_or_path: See `find_tokenizer`.
        protocol: On what and how.

    Raises:
        CheckpointError: If the tokenizer, LPIPS weights or features are missing or damaged.
        ConfigError: If the tokenizer takes no clips of that length or frames of that size.
        DataError: If there is no folder, or none of its files can be used.
    """
    path, device = find_tokenizer(name_or_path), torch.device(protocol.device)
    tokenizer = load_visual_tokenizer(path).to(device)
    is_recording = (protocol.data / "dataset.json").is_file()
    folder = MediaFolder(protocol.data, protocol.split or ("test" if is_recording else None))
    size = protocol.size or (tokenizer.frame_height, tokenizer.frame_width)
    described = _describe(tokenizer, size, protocol.num_frames)
    features: FeatureNetwork = (
        TokenizerFeatures(protocol.features, device)
        if protocol.features
        else RandomFeatures().to(device)
    )
    measured = TokenizerPass(
        tokenizer,
        folder,
        size=size,
        num_frames=protocol.num_frames,
        limit=protocol.limit,
        perturbed_share=protocol.perturbed_share,
        seed=protocol.seed,
        lpips=Lpips(protocol.lpips).to(device) if protocol.lpips else None,
        features=features,
    )
    measured.run()
    return {
        "tokenizer": {"name": str(name_or_path), "hash": file_hash(path), **described},
        "data": {
            "folder": str(protocol.data),
            "split": folder.split,
            "images": len(folder.images),
            "videos": len(folder.videos),
            "skipped": len(folder.skipped),
        },
        "protocol": {
            "frames_per_clip": protocol.num_frames,
            "limit": protocol.limit,
            "height": size[0],
            "width": size[1],
            "fitting": "largest centred part of that shape, scaled bicubically with antialiasing",
            "seed": protocol.seed,
            "perturbed_share": protocol.perturbed_share,
            "perturbed_by": "near neighbours in the codebook",
            "lpips_weights_hash": file_hash(protocol.lpips) if protocol.lpips else None,
            "feature_network": features.name,
            "feature_network_hash": features.hash,
            "device": protocol.device,
        },
        **measured.figures(),
        "speed": measured.speed(),
        "memory": {
            "peak_process_megabytes": peak_memory_megabytes(),
            "peak_gpu_megabytes": torch.cuda.max_memory_allocated(device) / 2**20
            if device.type == "cuda"
            else None,
        },
        "skipped_files": [
            {"file": folder.name(entry.path), "reason": entry.reason} for entry in folder.skipped
        ],
        "hardware": hardware(),
        "versions": versions(),
        "film_strips": measured.strips(),
    }


def _describe(
    tokenizer: VisualTokenizer, size: tuple[int, int], num_frames: int | None
) -> dict[str, Any]:
    """Return what the tokenizer is, and refuse frames and clips that it does not take.

    Raises:
        ConfigError: If it does not, before any file is read.
    """
    if num_frames is None and not tokenizer.causal:
        raise ConfigError(
            "this tokenizer is not causal and needs whole clips; name their number of frames"
        )
    if num_frames is not None:
        tokenizer.num_latents(num_frames)
    grid = tokenizer.encode(torch.zeros(1, 1, 3, *size, device=tokenizer.device)).shape
    parts = {
        f"{name}_parameters": sum(weight.numel() for weight in part.parameters())
        for name, part in tokenizer.named_children()
        if name in {"encoder", "decoder"}
    }
    return {
        "family": tokenizer.config.kind,
        "rows": grid[-2],
        "columns": grid[-1],
        "codebook_size": tokenizer.codebook_size,
        "bits_per_token": math.log2(tokenizer.codebook_size),
        "frames_per_latent": tokenizer.frames_per_latent,
        "causal": tokenizer.causal,
        "parameters": sum(weight.numel() for weight in tokenizer.parameters()),
        **parts,
    }
