"""VQGAN tokenizers of others: the layouts of diffusers (aMUSEd, MineWorld) and of LlamaGen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldgen.errors import CheckpointError, ConfigError
from worldgen.interop.files import ForeignCheckpoint, ForeignState
from worldgen.tokenizers.quantizers import GradientVQConfig
from worldgen.tokenizers.visual.convolutional import (
    ConvolutionalTokenizer,
    ConvolutionalTokenizerConfig,
)
from worldgen.tokenizers.visual.vqgan import VQGANConfig

__all__ = [
    "DIFFUSERS",
    "LLAMAGEN",
    "TAMING",
    "ImportedTokenizer",
    "Layout",
    "codebook_prefix",
    "diffusers_config",
    "fill",
    "import_diffusers_tokenizer",
    "import_llamagen_tokenizer",
    "llamagen_config",
    "llamagen_parts",
]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a project names the weights of a VQGAN."""

    renames: tuple[tuple[str, str], ...]
    """Parts of our names and what stands for them there, replaced one after the other."""
    unused: tuple[str, ...] = ()
    """How names of buffers begin that only its training reads."""

    def foreign_name(self, name: str) -> str:
        """Return what a name in the state of `ConvolutionalTokenizer` is called there."""
        for ours, theirs in self.renames:
            name = name.replace(ours, theirs)
        return name


_CODEBOOK = "quantize.embedding.weight"

_SHARED = (
    ("quantizer.codebook", _CODEBOOK),
    ("encoder.project.", "quant_conv."),
    ("decoder.expand.", "post_quant_conv."),
    (".stem.", ".conv_in."),
    (".first_norm.", ".norm1."),
    (".second_norm.", ".norm2."),
)

DIFFUSERS = Layout(
    renames=(
        *_SHARED,
        ("coder.norm.", "coder.conv_norm_out."),
        ("coder.output.", "coder.conv_out."),
        ("middle.first.", "mid_block.resnets.0."),
        ("middle.attention.", "mid_block.attentions.0."),
        ("middle.second.", "mid_block.resnets.1."),
        ("encoder.levels.", "encoder.down_blocks."),
        ("decoder.levels.", "decoder.up_blocks."),
        (".resample.halving.", ".downsamplers.0.conv."),
        (".resample.doubling.", ".upsamplers.0.conv."),
        (".residual.", ".resnets."),
        (".attention.", ".attentions."),
        (".first.", ".conv1."),
        (".second.", ".conv2."),
        (".shortcut.", ".conv_shortcut."),
        (".norm.", ".group_norm."),
        (".query.", ".to_q."),
        (".key.", ".to_k."),
        (".value.", ".to_v."),
        (".output.", ".to_out.0."),
    )
)
"""`VQModel` of diffusers, which aMUSEd publishes and MineWorld holds as `model`."""

_SHORT = (
    ("coder.norm.", "coder.norm_out."),
    ("coder.output.", "coder.conv_out."),
    (".resample.halving.", ".downsample.conv."),
    (".resample.doubling.", ".upsample.conv."),
    (".attention.", ".attn."),
    (".first.", ".conv1."),
    (".second.", ".conv2."),
    (".shortcut.", ".nin_shortcut."),
    (".query.", ".q."),
    (".key.", ".k."),
    (".value.", ".v."),
    (".output.", ".proj_out."),
)

LLAMAGEN = Layout(
    renames=(
        *_SHARED,
        ("middle.first.", "mid.0."),
        ("middle.attention.", "mid.1."),
        ("middle.second.", "mid.2."),
        ("coder.levels.", "coder.conv_blocks."),
        (".residual.", ".res."),
        *_SHORT,
    ),
    unused=("quantize.codebook_used",),
)
"""`VQModel` of LlamaGen, and what DrivingWorld built around it."""

TAMING = Layout(
    renames=(
        *_SHARED,
        ("middle.first.", "mid.block_1."),
        ("middle.attention.", "mid.attn_1."),
        ("middle.second.", "mid.block_2."),
        ("encoder.levels.", "encoder.down."),
        ("decoder.levels.", "decoder.up."),
        (".residual.", ".block."),
        *_SHORT,
    )
)
"""`VQModel` of taming-transformers, but for the decoder's levels: it counts them from the finest."""


@dataclass(frozen=True, kw_only=True)
class ImportedTokenizer:
    """A tokenizer with the weights of a foreign checkpoint, ready for inference."""

    tokenizer: ConvolutionalTokenizer
    left_out: tuple[str, ...]
    """Foreign names that are no part of it."""


def import_diffusers_tokenizer(
    checkpoint: ForeignCheckpoint,
    settings: Mapping[str, Any],
    *,
    frame_height: int,
    frame_width: int,
) -> ImportedTokenizer:
    """Return the tokenizer of a checkpoint that holds a `VQModel` of diffusers, alone or not.

    Args:
        checkpoint: As `worldgen.interop.files.read_checkpoint` gives it.
        settings: The `config.json` of the `VQModel`.
        frame_height: Pixels; the settings do not say for which frames it was trained.
        frame_width: Pixels.

    Raises:
        ConfigError: If the settings describe something else, or do not fit the frames.
        CheckpointError: If weights are missing, unexpected, or of another shape.
    """
    config = diffusers_config(settings, frame_height=frame_height, frame_width=frame_width)
    return _import(checkpoint, config, DIFFUSERS)


def import_llamagen_tokenizer(
    checkpoint: ForeignCheckpoint,
    settings: Mapping[str, Any],
    *,
    frame_height: int,
    frame_width: int,
) -> ImportedTokenizer:
    """Return the tokenizer of a checkpoint that holds a `VQModel` of LlamaGen, alone or not.

    Args:
        checkpoint: As `worldgen.interop.files.read_checkpoint` gives it.
        settings: The arguments of the `VQModel` by their names there; {} for its defaults.
        frame_height: Pixels.
        frame_width: Pixels.

    Raises:
        ConfigError: If the settings describe something else, or do not fit the frames.
        CheckpointError: If weights are missing, unexpected, or of another shape.
    """
    config = llamagen_config(settings, frame_height=frame_height, frame_width=frame_width)
    return _import(checkpoint, config, LLAMAGEN)


def diffusers_config(
    settings: Mapping[str, Any], *, frame_height: int, frame_width: int
) -> ConvolutionalTokenizerConfig:
    """Return our configuration of a `VQModel` of diffusers.

    What is absent has diffusers' own default.

    Raises:
        ConfigError: If the settings ask for something that is not known here.
    """
    _require(settings, "_class_name", "VQModel")
    _require(settings, "act_fn", "silu", "swish")
    _require(settings, "norm_type", "group")
    _require(settings, "in_channels", 3)
    _require(settings, "out_channels", 3)
    widths = tuple(settings.get("block_out_channels", (64,)))
    latent_width = settings.get("latent_channels", 3)
    blocks = settings.get("layers_per_block", 1)

    def coder(blocks: int, attention: tuple[bool, ...]) -> VQGANConfig:
        return VQGANConfig(
            widths=widths,
            blocks=blocks,
            latent_width=latent_width,
            attention_levels=tuple(level for level, attends in enumerate(attention) if attends),
            middle_attention=settings.get("mid_block_add_attention", True),
            groups=settings.get("norm_num_groups", 32),
        )

    down = _attends(settings, "down_block_types", "DownEncoderBlock2D", len(widths))
    up = _attends(settings, "up_block_types", "UpDecoderBlock2D", len(widths))
    code_width = settings.get("vq_embed_dim")
    return ConvolutionalTokenizerConfig(
        frame_height=frame_height,
        frame_width=frame_width,
        encoder=coder(blocks, down),
        # Its decoder is listed from the coarsest level to the finest.
        decoder=coder(blocks + 1, up[::-1]),
        quantizer=GradientVQConfig(
            codebook_size=settings.get("num_vq_embeddings", 256),
            width=latent_width if code_width is None else code_width,
            # Weights the other way round than in the paper, as its "legacy" loss has them.
            commitment_weight=1.0,
            codebook_weight=0.25,
        ),
    )


def llamagen_config(
    settings: Mapping[str, Any], *, frame_height: int, frame_width: int
) -> ConvolutionalTokenizerConfig:
    """Return our configuration of a `VQModel` of LlamaGen.

    What is absent has LlamaGen's own default; `ch`, `num_res_blocks` and `group_norm_groups` are
    fixed numbers there. Dropout and the entropy term of its loss are matters of training and not
    taken over.

    Raises:
        ConfigError: If the settings ask for something that is not known here.
    """
    encoder, decoder, quantizer = llamagen_parts(settings)
    return ConvolutionalTokenizerConfig(
        frame_height=frame_height,
        frame_width=frame_width,
        encoder=encoder,
        decoder=decoder,
        quantizer=quantizer,
    )


def llamagen_parts(
    settings: Mapping[str, Any],
) -> tuple[VQGANConfig, VQGANConfig, GradientVQConfig]:
    """Return encoder, decoder and quantizer of a `VQModel` of LlamaGen; see `llamagen_config`.

    Raises:
        ConfigError: If the settings ask for something that is not known here.
    """
    _require(settings, "norm_type", "group")
    _require(settings, "in_channels", 3)
    _require(settings, "out_channels", 3)
    base_width, blocks = settings.get("ch", 128), settings.get("num_res_blocks", 2)

    def coder(name: str, blocks: int) -> VQGANConfig:
        multipliers = settings.get(name, (1, 1, 2, 2, 4))
        return VQGANConfig(
            widths=tuple(base_width * multiplier for multiplier in multipliers),
            blocks=blocks,
            latent_width=settings.get("z_channels", 256),
            stem_width=base_width,
            attention_levels=(len(multipliers) - 1,),
            groups=settings.get("group_norm_groups", 32),
        )

    quantizer = GradientVQConfig(
        codebook_size=settings.get("codebook_size", 16384),
        width=settings.get("codebook_embed_dim", 8),
        normalise="both" if settings.get("codebook_l2_norm", True) else "none",
        commitment_weight=settings.get("commit_loss_beta", 0.25),
    )
    return coder("encoder_ch_mult", blocks), coder("decoder_ch_mult", blocks + 1), quantizer


def fill(
    tokenizer: ConvolutionalTokenizer, state: ForeignState, layout: Layout, prefix: str = ""
) -> None:
    """Give a tokenizer of VQGAN coders the weights of a foreign state.

    What is amiss shows when the caller ends with `state.finish()`.

    Args:
        tokenizer: Of `diffusers_config` or `llamagen_config`.
        state: Where to take from.
        layout: How the weights are named there.
        prefix: What stands before each name, for example "tokenizer.model.".
    """
    state.leave(*(prefix + name for name in layout.unused))
    tokenizer.load_state_dict(
        {
            name: state.take(prefix + layout.foreign_name(name), tensor.shape)
            for name, tensor in tokenizer.state_dict().items()
        }
    )


def codebook_prefix(checkpoint: ForeignCheckpoint, codebook: str = _CODEBOOK) -> str:
    """Return what stands before the names of the one tokenizer that a checkpoint holds.

    Raises:
        CheckpointError: If it holds none, or several.
    """
    prefixes = [name for name in checkpoint.tensors if name.endswith(codebook)]
    if len(prefixes) != 1:
        raise CheckpointError(
            f"{checkpoint.path} must hold one codebook, a name that ends with {codebook}, got "
            f"{len(prefixes)}; give the checkpoint of a VQGAN tokenizer"
        )
    return prefixes[0].removesuffix(codebook)


def _import(
    checkpoint: ForeignCheckpoint, config: ConvolutionalTokenizerConfig, layout: Layout
) -> ImportedTokenizer:
    prefix = codebook_prefix(checkpoint)
    tokenizer = ConvolutionalTokenizer(config)
    state = ForeignState(checkpoint.tensors, checkpoint.path)
    # Other networks that are stored in the same file.
    state.leave(*(name for name in checkpoint.tensors if not name.startswith(prefix)))
    fill(tokenizer, state, layout, prefix)
    left_out = state.finish()
    return ImportedTokenizer(tokenizer=tokenizer.eval().requires_grad_(False), left_out=left_out)


def _attends(
    settings: Mapping[str, Any], key: str, plain: str, num_levels: int
) -> tuple[bool, ...]:
    kinds = tuple(settings.get(key, (plain,) * num_levels))
    allowed = (plain, f"Attn{plain}")
    unknown = [kind for kind in kinds if kind not in allowed]
    if unknown or len(kinds) != num_levels:
        raise ConfigError(
            f"{key} must be {num_levels} times {allowed[0]} or {allowed[1]}, one for each of "
            f"block_out_channels, got {list(kinds)}; other blocks are not known here"
        )
    return tuple(kind == allowed[1] for kind in kinds)


def _require(settings: Mapping[str, Any], key: str, *allowed: object) -> None:
    found = settings.get(key, allowed[0])
    if found not in allowed:
        names = " or ".join(map(repr, allowed))
        raise ConfigError(
            f"{key} must be {names}, got {found!r}; tokenizers of other kinds are not known here"
        )
