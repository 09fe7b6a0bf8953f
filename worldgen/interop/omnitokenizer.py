"""OmniTokenizer's checkpoints: its arguments and names in ours, as a tokenizer or an autoencoder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from worldgen.errors import CheckpointError, ConfigError
from worldgen.interop.files import ForeignState
from worldgen.nn.space_time import SpaceTimeConfig
from worldgen.tokenizers.quantizers import VQConfig
from worldgen.tokenizers.visual import (
    OmniAutoencoder,
    OmniAutoencoderConfig,
    OmniTokenizer,
    OmniTokenizerConfig,
)

__all__ = [
    "AttentionPath",
    "ImportedOmniTokenizer",
    "TemporalMode",
    "import_omnitokenizer",
    "omnitokenizer_arguments",
    "omnitokenizer_config",
    "to_our_layout",
    "upstream_name",
    "upstream_state",
]

TemporalMode = Literal["upstream", "aligned"]
"""Order in which temporal stacks read memory for their convolution: that of the released weights,
which mixes places and times, or the causal one."""

AttentionPath = Literal["sdpa", "einsum_bias"]
"""Upstream's two ways to attend. `sdpa` (torch 2.1 and later) drops the relative positions in space
and ALiBi in time; `einsum_bias` (torch before 2.1) adds them. Weights belong to one of them."""

Network = OmniTokenizer | OmniAutoencoder

_REQUIRED = ("embedding_dim", "n_codes", "codebook_dim", "resolution")

# What upstream takes where an argument is not given.
_DEFAULTS: dict[str, Any] = {
    "image_channels": 3,
    "norm_type": "batch",
    "patch_embed": "linear",
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_depth": 4,
    "temporal_depth": 4,
    "twod_window_size": 4,
    "spatial_pos": "rel",
    "defer_temporal_pool": False,
    "defer_spatial_pool": False,
    "causal_in_temporal_transformer": False,
    "causal_in_peg": False,
    "dim_head": 64,
    "heads": 8,
    "ff_mult": 4.0,
    "gen_upscale": None,
    "use_vae": False,
    "use_external_codebook": False,
    "l2_code": False,
}

# The first spelling of these arguments is the one in released checkpoints.
_SPELLINGS = {
    "casual_in_temporal_transformer": "causal_in_temporal_transformer",
    "casual_in_peg": "causal_in_peg",
}

_PARTS = ("encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv.", "codebook.")
_TRAINING_PARTS = ("image_discriminator.", "video_discriminator.", "perceptual_model.")


@dataclass(frozen=True, kw_only=True)
class ImportedOmniTokenizer:
    """A network out of an upstream checkpoint, and what became of everything in it."""

    network: Network
    """In evaluation mode, without gradients."""
    arguments: Mapping[str, Any]
    """Upstream's arguments that decide about the network, complete, under today's spelling."""
    defaulted: tuple[str, ...]
    """Arguments that were not given and have upstream's default."""
    ignored: tuple[str, ...]
    """Upstream's names of no use here: discriminators, unused norms and biases, constants."""
    unexpected: tuple[str, ...]
    """Names outside of the tokenizer that nothing is known about."""


def import_omnitokenizer(
    tensors: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    path: Path,
    *,
    mode: TemporalMode = "upstream",
    attention: AttentionPath = "sdpa",
) -> ImportedOmniTokenizer:
    """Return upstream's network with its weights.

    Args:
        tensors: Upstream's state by upstream's names.
        arguments: Upstream's, in either spelling; retired ones are passed over.
        path: Where both came from, for messages.
        mode: `upstream` for weights trained by upstream's code. `aligned` makes the network
            causal and able to stream, but weights trained otherwise need further training for it.
        attention: Path that the weights were trained on.

    Raises:
        CheckpointError: If the arguments name something that upstream cannot run, or the tensors
            do not fit them; names missing and unexpected are listed.
    """
    complete, defaulted = omnitokenizer_arguments(arguments, path)
    try:
        config = omnitokenizer_config(complete, mode=mode, attention=attention)
    except ConfigError as error:
        raise CheckpointError(f"{path} names a tokenizer that cannot be built: {error}") from error
    network: Network = (
        OmniTokenizer(config)
        if isinstance(config, OmniTokenizerConfig)
        else OmniAutoencoder(config)
    )
    state = ForeignState(tensors, path)
    loaded = {
        name: _take(name, tensor, state, config) for name, tensor in network.state_dict().items()
    }
    shifts = [name for name in tensors if name.startswith(_PARTS) and name.endswith(".beta")]
    if nonzero := [name for name in shifts if bool(tensors[name].any())]:
        raise CheckpointError(
            f"{path} shifts normalised vectors ({', '.join(nonzero)}), which upstream never does; "
            "it was changed after training and is not read"
        )
    unknown = [name for name in tensors if not name.startswith(_PARTS + _TRAINING_PARTS)]
    state.leave(*_TRAINING_PARTS, *unknown, *shifts, *_unused(tensors, config))
    left = state.finish()
    network.load_state_dict(loaded)
    return ImportedOmniTokenizer(
        network=network.eval().requires_grad_(False),
        arguments=complete,
        defaulted=defaulted,
        ignored=tuple(name for name in left if name not in set(unknown)),
        unexpected=tuple(sorted(unknown)),
    )


def omnitokenizer_arguments(
    arguments: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the arguments that decide about the network, and the names of those defaulted.

    Raises:
        CheckpointError: If sizes are missing, or a part is wanted that is not read.
    """
    given = {_SPELLINGS.get(name, name): value for name, value in arguments.items()}
    if missing := [name for name in _REQUIRED if given.get(name) is None]:
        raise CheckpointError(
            f"{path} has no argument {', '.join(missing)}; give the arguments that it was trained "
            "with"
        )
    blocks = "t" * given.get("spatial_depth", _DEFAULTS["spatial_depth"])
    known = _DEFAULTS | {"enc_block": blocks, "dec_block": blocks}
    complete = {name: given.get(name, value) for name, value in known.items()}
    complete |= {name: given[name] for name in _REQUIRED}
    for name, readable in (
        ("image_channels", (3,)),
        ("use_external_codebook", (False,)),
        ("patch_embed", ("linear", "cnn")),
        ("spatial_pos", ("rel", "rope")),
        ("norm_type", ("batch",) if complete["patch_embed"] == "cnn" else (complete["norm_type"],)),
    ):
        if complete[name] not in readable:
            raise CheckpointError(
                f"{path} was trained with {name} {complete[name]!r}; only "
                f"{' and '.join(map(repr, readable))} can be read"
            )
    return complete, tuple(sorted(known.keys() - given.keys()))


def omnitokenizer_config(
    arguments: Mapping[str, Any], *, mode: TemporalMode, attention: AttentionPath
) -> OmniTokenizerConfig | OmniAutoencoderConfig:
    """Return our configuration of upstream's arguments, complete as `omnitokenizer_arguments` has them.

    Raises:
        ConfigError: If sizes do not fit together or a block letter is unknown.
    """
    causal = arguments["causal_in_temporal_transformer"]
    biased = attention == "einsum_bias"
    rotary = arguments["spatial_pos"] == "rope"

    def stacks(blocks: str) -> SpaceTimeConfig:
        width = arguments["embedding_dim"]
        return SpaceTimeConfig(
            width=width,
            num_heads=arguments["heads"],
            head_width=arguments["dim_head"],
            feed_forward_width=int(arguments["ff_mult"] * (2 / 3) * width),
            spatial_blocks=blocks,
            temporal_depth=arguments["temporal_depth"],
            window=arguments["twod_window_size"],
            spatial_positions="rotary" if rotary else "relative" if biased else "none",
            temporal_positions="alibi" if biased and causal else "none",
            causal=causal,
            causal_convolution=arguments["causal_in_peg"],
            temporal_convolution="scrambled" if mode == "upstream" else "aligned",
        )

    linear = arguments["patch_embed"] == "linear"
    deferred: dict[Literal["space", "time"], bool] = {
        "space": linear and arguments["defer_spatial_pool"],
        "time": linear and arguments["defer_temporal_pool"],
    }
    shared: dict[str, Any] = {
        "frame_height": arguments["resolution"],
        "frame_width": arguments["resolution"],
        "patch": arguments["patch_size"],
        "frames_per_latent": arguments["temporal_patch_size"],
        "encoder": stacks(arguments["enc_block"]),
        "decoder": stacks(arguments["dec_block"]),
        "patch_embedding": "linear" if linear else "convolutional",
        "deferred_pooling": tuple(name for name, wanted in deferred.items() if wanted),
        "upscale": arguments["gen_upscale"] or 1,
    }
    if arguments["use_vae"]:
        return OmniAutoencoderConfig(latent_width=arguments["codebook_dim"], **shared)
    quantizer = VQConfig(
        codebook_size=arguments["n_codes"],
        width=arguments["codebook_dim"],
        normalise="vectors" if arguments["l2_code"] else "none",
        smoothing=1e-7,
        revival_threshold=0.0,
    )
    return OmniTokenizerConfig(quantizer=quantizer, **shared)


_Config = OmniTokenizerConfig | OmniAutoencoderConfig

_PATCHES = {"first_frame": "_first_frame", "later_frames": ""}

_IN_A_BLOCK = {
    "convolution": "0.dsconv",
    "attention.norm.weight": "1.norm.gamma",
    "attention.query": "1.to_q",
    "attention.key_value": "1.to_kv",
    "attention.output": "1.to_out",
    "attention.query_scale": "1.q_scale",
    "attention.key_scale": "1.k_scale",
    "relative.first": "1.spatial_rel_pos_bias.net.0.0",
    "relative.second": "1.spatial_rel_pos_bias.net.1.0",
    "relative.last": "1.spatial_rel_pos_bias.net.2",
    "norm.weight": "1.norm.gamma",
    "query_key_value": "1.qkv",
    "output": "1.proj",
    "bias_table": "1.relative_position_bias_table",
    "linear": "1.pool",
    "feed_forward.norm": "3.0",
    "feed_forward.expand": "3.1",
    "feed_forward.reduce": "3.4",
}

_WHOLE_NAMES = {
    "quantizer.codebook": "codebook.embeddings",
    "quantizer.code_sums": "codebook.z_avg",
    "quantizer.code_uses": "codebook.N",
}


def upstream_name(name: str, config: _Config) -> str | None:
    """Return upstream's name of an entry of our state, None where it has none."""
    if name.startswith("quantizer."):
        return _WHOLE_NAMES.get(name)
    coder, part, rest = name.split(".", 2)
    short = coder[:3]
    if part == "project":
        return f"{'pre' if coder == 'encoder' else 'post'}_vq_conv.1.{rest}"
    if part in _PATCHES:
        linear = config.patch_embedding == "linear"
        if coder == "encoder":
            layers = {"before": 1, "linear": 2, "after": 3} if linear else {"linear": 0, "norm": 1}
            layer, entry = rest.split(".")
            return f"encoder.to_patch_emb{_PATCHES[part]}.{layers[layer]}.{entry}"
        if linear:
            return f"decoder.to_pixels{_PATCHES[part]}.0.{rest}"
        layer, entry = rest.split(".")
        return f"decoder.to_pixels{_PATCHES[part]}.{1 if layer == 'linear' else 2}.{entry}"
    stack = f"{coder}.{short}_{part}_transformer"
    if rest == "norm.weight":
        return f"{stack}.norm_out.gamma"
    _, block, inside = rest.split(".", 2)
    whole = _IN_A_BLOCK.get(inside)
    if whole is None:
        layer, entry = inside.rsplit(".", 1)
        whole = f"{_IN_A_BLOCK[layer]}.{entry}"
    return f"{stack}.layers.{block}.{whole}"


def to_our_layout(name: str, tensor: Tensor, config: _Config) -> Tensor:
    """Return upstream's tensor of our entry `name`, its axes as ours has them.

    Only the layers of convolutional patches differ: their kernels become linear maps.
    """
    if config.patch_embedding == "convolutional":
        if re.fullmatch(r"encoder\.(first_frame|later_frames)\.linear\.weight", name):
            return rearrange(tensor, "width rgb t y x -> width (rgb t y x)")
        if re.fullmatch(r"decoder\.(first_frame|later_frames)\.linear\.weight", name):
            return rearrange(tensor, "width rgb t y x -> (rgb t y x) width")
        if re.fullmatch(r"decoder\.(first_frame|later_frames)\.linear\.bias", name):
            return tensor.repeat_interleave(_pixels(name, config))
    return tensor


def upstream_state(network: Network) -> dict[str, Tensor]:
    """Return the weights by upstream's names and in its layout: what an import would read.

    Entries that upstream has and does not use are left out.
    """
    state = {}
    for name, tensor in network.state_dict().items():
        theirs = upstream_name(name, network.config)
        if theirs is None:
            continue
        shape = _upstream_shape(name, tensor, network.config)
        if len(shape) == 5 and name.startswith("decoder") and ".linear." in name:
            tensor = tensor.T
        elif len(shape) == 1 and shape != tensor.shape:
            tensor = tensor[:: _pixels(name, network.config)]
        state[theirs] = tensor.reshape(shape)
    return state


def _take(name: str, ours: Tensor, state: ForeignState, config: _Config) -> Tensor:
    theirs = upstream_name(name, config)
    if theirs is None:
        # Steps seen: more than none, so that training goes on with the codebook of the file.
        return torch.ones_like(ours)
    return to_our_layout(name, state.take(theirs, _upstream_shape(name, ours, config)), config)


def _upstream_shape(name: str, ours: Tensor, config: _Config) -> tuple[int, ...]:
    if config.patch_embedding == "convolutional" and ".linear." in name and "blocks" not in name:
        if name.endswith("weight"):
            side = config.patch * (config.upscale if name.startswith("decoder") else 1)
            width = config.encoder.width
            time = 1 if "first_frame" in name else config.pixel_frames
            return (width, 3, time, side, side)
        if name.startswith("decoder"):
            return (3,)
    return tuple(ours.shape)


def _pixels(name: str, config: _Config) -> int:
    time = 1 if "first_frame" in name else config.pixel_frames
    return time * (config.patch * config.upscale) ** 2


def _unused(tensors: Mapping[str, Tensor], config: _Config) -> list[str]:
    """Names that upstream writes and never reads, or reads on the other path of attention only."""
    endings = [r"context_norm\.gamma", "relative_position_index", r"codebook\.codebook_usage"]
    if isinstance(config, OmniAutoencoderConfig):
        endings.append(r"codebook\.\w+")
    parts = [r"_temporal_transformer\..*spatial_rel_pos_bias\."]
    if config.encoder.spatial_positions == "none":
        parts.append(r"_spatial_transformer\..*spatial_rel_pos_bias\.")
    pattern = "|".join([*(f"(?:{ending})$" for ending in endings), *parts])
    return [name for name in tensors if re.search(pattern, name)]
