"""commaVQ's codec of driving video: encoder and decoder, each in a file of its own, read into ours."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldgen.checkpoint import file_hash, write_folder, write_text
from worldgen.errors import CheckpointError, ConfigError
from worldgen.interop.convolutional import TAMING
from worldgen.interop.files import ForeignCheckpoint, ForeignState, read_checkpoint
from worldgen.tokenizers.quantizers import GradientVQConfig
from worldgen.tokenizers.visual import (
    ConvolutionalTokenizer,
    ConvolutionalTokenizerConfig,
    save_visual_tokenizer,
)
from worldgen.tokenizers.visual.vqgan import VQGANConfig

__all__ = ["FRAME_SIZE", "import_commavq", "import_commavq_folder"]

FRAME_SIZE = (128, 256)
"""Height and width, in pixels, of the frames that the published tokens stand for."""

_CODEBOOK = "quantize._embedding.weight"


def import_commavq(decoder: Path, encoder: Path | None = None) -> ConvolutionalTokenizer:
    """Return commaVQ's codec; without an encoder it shows ids and makes none.

    Sizes are read from the shapes of the weights. Upstream's encoder takes levels from 0 to 255 and
    its decoder gives them; here both deal in [-1, 1], as everywhere.

    Args:
        decoder: `decoder_pytorch_model.bin` (a pickle of tensors) or `*.safetensors`.
        encoder: `encoder_pytorch_model.bin`, or `*.safetensors`.

    Raises:
        CheckpointError: If a file is no such part, weights are missing, unexpected or of another
            shape, or the two have different codebooks.
    """
    parts = {"decoder": read_checkpoint(decoder)}
    if encoder is not None:
        parts["encoder"] = read_checkpoint(encoder)
    sizes = {name: _sizes(part, name) for name, part in parts.items()}
    codes = {name: part.tensors[_CODEBOOK].float() for name, part in parts.items()}
    if encoder is not None and not torch.equal(codes["decoder"], codes["encoder"]):
        raise CheckpointError(
            f"{encoder} and {decoder} have different codebooks; give the two files of one codec"
        )
    try:
        config = ConvolutionalTokenizerConfig(
            frame_height=FRAME_SIZE[0],
            frame_width=FRAME_SIZE[1],
            encoder=sizes.get("encoder"),
            decoder=sizes["decoder"],
            quantizer=GradientVQConfig(
                codebook_size=len(codes["decoder"]), width=codes["decoder"].shape[1]
            ),
        )
    except ConfigError as error:
        raise CheckpointError(f"{decoder} holds no codec of commaVQ's kind: {error}") from error
    tokenizer = ConvolutionalTokenizer(config)
    states = {name: ForeignState(part.tensors, part.path) for name, part in parts.items()}
    filled: dict[str, Tensor] = {}
    for name, tensor in tokenizer.state_dict().items():
        if name == "quantizer.codebook":
            taken = [state.take(_CODEBOOK, tensor.shape) for state in states.values()]
            filled[name] = taken[0]
        else:
            part = name.partition(".")[0]
            filled[name] = states[part].take(_foreign_name(name, sizes[part]), tensor.shape)
    for state in states.values():
        state.finish()
    tokenizer.load_state_dict(filled)
    return tokenizer.eval().requires_grad_(False)


def import_commavq_folder(
    out: Path, *, decoder: Path, encoder: Path | None = None
) -> ConvolutionalTokenizer:
    """Write commaVQ's codec as `tokenizer.safetensors` into a new folder, and return it.

    Args:
        out: Folder to make.
        decoder: As for `import_commavq`.
        encoder: As for `import_commavq`.

    Raises:
        CheckpointError: As `import_commavq`.
        DataError: If the folder holds something.
    """
    tokenizer = import_commavq(decoder, encoder)
    record: dict[str, Any] = {"origin": "commaVQ"}
    for name, path in (("decoder", decoder), ("encoder", encoder)):
        if path is not None:
            record |= {name: path.name, f"{name}_sha256": file_hash(path)}

    def write(folder: Path) -> None:
        path = folder / "tokenizer.safetensors"
        save_visual_tokenizer(path, tokenizer, {"imported": record})
        lines = [f"- {name}: {value}" for name, value in record.items()]
        write_text(folder / "README.md", "\n".join(["# Imported tokenizer", "", *lines, ""]))

    write_folder(out, write)
    return tokenizer


def _sizes(checkpoint: ForeignCheckpoint, part: str) -> VQGANConfig:
    """Return the sizes of an encoder or a decoder, as the shapes of its weights tell them."""
    tensors = checkpoint.tensors
    levels = {"encoder": "down", "decoder": "up"}
    found = _numbered(tensors, rf"{levels[part]}\.(\d+)\.block\.(\d+)\.conv2\.weight")
    stem, end = tensors.get("conv_in.weight"), tensors.get("conv_out.weight")
    if not found or stem is None or end is None or _CODEBOOK not in tensors:
        raise CheckpointError(
            f"{checkpoint.path} holds no {part} of commaVQ, whose names begin with conv_in, "
            f"{levels[part]}.0.block.0 and {_CODEBOOK}; give its {part}_pytorch_model.bin"
        )
    num_levels, blocks = (max(numbers) + 1 for numbers in zip(*found, strict=True))
    widths = {level: tensor.shape[0] for (level, _), tensor in found.items()}
    if len(widths) != num_levels:
        missing = sorted(set(range(num_levels)) - widths.keys())
        raise CheckpointError(
            f"{checkpoint.path} lacks the weights of {levels[part]}.{missing[0]} and is no whole "
            f"{part}; copy or download it again"
        )
    attention = _numbered(tensors, rf"{levels[part]}\.(\d+)\.attn\.(\d+)\.q\.weight")
    try:
        return VQGANConfig(
            widths=tuple(widths[level] for level in range(num_levels)),
            blocks=blocks,
            latent_width=(end if part == "encoder" else stem).shape[part == "decoder"],
            stem_width=stem.shape[0] if part == "encoder" else None,
            attention_levels=tuple(sorted({level for level, _ in attention})),
            middle_attention="mid.attn_1.q.weight" in tensors,
            reads_levels=part == "encoder",
        )
    except ConfigError as error:
        raise CheckpointError(
            f"{checkpoint.path} holds no {part} of commaVQ's kind: {error}"
        ) from error


def _numbered(tensors: Mapping[str, Tensor], pattern: str) -> dict[tuple[int, int], Tensor]:
    """Return the tensors whose names fit a pattern with two numbers, by these."""
    matches = ((re.fullmatch(pattern, name), tensor) for name, tensor in tensors.items())
    return {(int(match[1]), int(match[2])): tensor for match, tensor in matches if match}


def _foreign_name(name: str, sizes: VQGANConfig) -> str:
    """Return what a name in the state of `ConvolutionalTokenizer` is called in its own file."""
    theirs = TAMING.foreign_name(name).removeprefix("encoder.").removeprefix("decoder.")
    last = len(sizes.widths) - 1
    # Ours go from the coarsest level of the decoder to the finest.
    return re.sub(r"^up\.(\d+)", lambda match: f"up.{last - int(match[1])}", theirs)
