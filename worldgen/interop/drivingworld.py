"""DrivingWorld's tokenizer (arXiv:2412.19505): its settings and its weights, read into ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.interop.convolutional import LLAMAGEN, codebook_prefix, llamagen_parts
from worldgen.interop.files import ForeignCheckpoint, ForeignState
from worldgen.tokenizers.visual import TemporalTokenizer, TemporalTokenizerConfig

__all__ = [
    "RELEASED",
    "ImportedTemporalTokenizer",
    "drivingworld_tokenizer_config",
    "import_drivingworld_tokenizer",
    "upstream_names",
]

RELEASED: Mapping[str, Any] = {
    "image_size": (256, 512),
    "downsample_size": 16,
    "codebook_size": 16384,
    "codebook_embed_dim": 32,
    "condition_frames": 15,
    "n_layer": (12, 6),
    "n_embd": 1536,
    "n_head": 16,
    "pose_x_vocab_size": 128,
    "pose_y_vocab_size": 128,
    "yaw_vocab_size": 512,
    "yaw_pose_emb_dim": 512,
    "attn_heads": 8,
    "ffn_multiple_of": 256,
    "rope_theta": 1000.0,
}
"""What the released checkpoints were made with, under upstream's names; some of it is fixed in its
code. Settings of others need to say only what differs."""

_BLOCKS: Mapping[str, str] = {"time.": "causal_time_block.", "space.": "space_block."}
# Our name of a layer of a block -> upstream's; a fused layer has several.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "attention_norm": ("attention_norm",),
    "attention.query_key_value": ("attention.wq", "attention.wk", "attention.wv"),
    "attention.output": ("attention.wo",),
    "feed_forward_norm": ("ffn_norm",),
    "gate_up": ("feed_forward.w1", "feed_forward.w3"),
    "down": ("feed_forward.w2",),
}


@dataclass(frozen=True, kw_only=True)
class ImportedTemporalTokenizer:
    """A tokenizer with the weights of a foreign checkpoint, ready for inference."""

    tokenizer: TemporalTokenizer
    left_out: tuple[str, ...]
    """Foreign names that are no part of it."""


def drivingworld_tokenizer_config(settings: Mapping[str, Any]) -> TemporalTokenizerConfig:
    """Return our configuration of DrivingWorld's `VideoVQModel`.

    Args:
        settings: Under upstream's names; what is absent is as released.

    Raises:
        ConfigError: If the settings ask for something that is not known here, or do not go
            together.
    """
    given = {**RELEASED, **settings}
    try:
        height, width = given["image_size"]
        encoder, decoder, quantizer = llamagen_parts(given)
        # As in Llama: two thirds of four times the width, rounded up.
        latent_width, multiple = given.get("z_channels", 256), given["ffn_multiple_of"]
        config = TemporalTokenizerConfig(
            frame_height=height,
            frame_width=width,
            encoder=encoder,
            decoder=decoder,
            quantizer=quantizer,
            num_heads=given["attn_heads"],
            feed_forward_width=-(-(8 * latent_width // 3) // multiple) * multiple,
            rotary_base=float(given["rope_theta"]),
            window=given.get("video_vq_temp_frames", given["condition_frames"] + 1),
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"a setting of the tokenizer is of the wrong kind ({error}); image_size is [height, "
            "width], the other sizes are whole numbers, the multipliers lists of them"
        ) from error
    if given["downsample_size"] != config.encoder.reduction:
        raise ConfigError(
            f"downsample_size must be {config.encoder.reduction} for "
            f"{len(config.encoder.widths)} levels of encoder_ch_mult, got "
            f"{given['downsample_size']}"
        )
    return config


def import_drivingworld_tokenizer(
    checkpoint: ForeignCheckpoint, settings: Mapping[str, Any]
) -> ImportedTemporalTokenizer:
    """Return the tokenizer of `vqvae.pt`, or of a checkpoint that holds a `VideoVQModel`.

    Args:
        checkpoint: As `worldgen.interop.files.read_checkpoint` gives it.
        settings: As for `drivingworld_tokenizer_config`.

    Raises:
        ConfigError: If the settings ask for something that is not known here.
        CheckpointError: If weights are missing, unexpected, or of another shape.
    """
    prefix = codebook_prefix(checkpoint)
    config = drivingworld_tokenizer_config(settings)
    # Only shapes are needed until everything fits; drawing weights takes seconds.
    with torch.device("meta"):
        shapes = TemporalTokenizer(config).state_dict()
    state = ForeignState(checkpoint.tensors, checkpoint.path)
    # Other networks that are stored in the same file.
    state.leave(*(name for name in checkpoint.tensors if not name.startswith(prefix)))
    state.leave(*(prefix + name for name in LLAMAGEN.unused))
    filled = {}
    for name, tensor in shapes.items():
        theirs = upstream_names(name)
        shape = (tensor.shape[0] // len(theirs), *tensor.shape[1:])
        parts = [state.take(prefix + each, shape) for each in theirs]
        if name.endswith("query_key_value.weight"):
            parts = [_pairs_to_halves(part, config.num_heads) for part in parts[:2]] + parts[2:]
        filled[name] = torch.cat(parts)
    left_out = state.finish()
    tokenizer = TemporalTokenizer(config)
    tokenizer.load_state_dict(filled)
    return ImportedTemporalTokenizer(
        tokenizer=tokenizer.eval().requires_grad_(False), left_out=left_out
    )


def upstream_names(name: str) -> tuple[str, ...]:
    """Return what a name in the state of `TemporalTokenizer` is called upstream.

    Fused layers have several names there, for equal parts of the first axis.
    """
    for ours, theirs in _BLOCKS.items():
        if name.startswith(ours):
            part, _, kind = name.removeprefix(ours).rpartition(".")
            return tuple(f"{theirs}{each}.{kind}" for each in _PARTS[part])
    return (LLAMAGEN.foreign_name(name),)


def _pairs_to_halves(weight: Tensor, heads: int) -> Tensor:
    # Upstream turns channels 2 k and 2 k + 1 of a head together, the library k and k + width / 2.
    return rearrange(
        weight, "(head pair two) width -> (head two pair) width", head=heads, two=2
    ).contiguous()
