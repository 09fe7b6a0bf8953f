"""DrivingWorld's world model (arXiv:2412.19505): its settings and its weights, read into ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.interop.drivingworld import RELEASED
from worldgen.interop.files import ForeignState
from worldgen.models.driving import DrivingConfig, DrivingTransformer

__all__ = ["drivingworld_config", "upstream_weights", "world_model_from_upstream"]

# Upstream's names of the slots of a step, in their order.
_SLOTS = ("yaw", "pose_x", "pose_y")
# Our name of a layer of a block -> upstream's; a fused layer has several.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "attention_norm": ("ln1",),
    "query_key_value": ("attn.query", "attn.key", "attn.value"),
    "query_norm": ("attn.q_norm",),
    "key_norm": ("attn.k_norm",),
    "output": ("attn.proj",),
    "feed_forward_norm": ("ln2",),
    "up": ("mlp.0",),
    "down": ("mlp.2",),
}
_STACKS: Mapping[str, str] = {
    "time_blocks": "causal_time_space_blocks.{}.causal_time_block",
    "space_blocks": "causal_time_space_blocks.{}.space_block",
    "within_frame": "causal_space_blocks.{}",
}
# What upstream does not have.
_OURS = ("codes.weight", "origin_row", "origin_column")


def drivingworld_config(settings: Mapping[str, Any]) -> DrivingConfig:
    """Return our configuration of DrivingWorld's transformer.

    The action that is taken to have led to a first frame is no motion, as in upstream's programs.

    Args:
        settings: Under upstream's names; what is absent is as released.

    Raises:
        ConfigError: If a setting is of the wrong kind, or they do not go together.
    """
    given = {**RELEASED, **settings}
    try:
        rows, columns = (side // given["downsample_size"] for side in given["image_size"])
        context_depth, within_frame_depth = given["n_layer"]
        options = tuple(int(given[f"{name}_vocab_size"]) for name in _SLOTS)
        yaw, x, y = options
        config = DrivingConfig(
            rows=rows,
            columns=columns,
            codebook_size=given["codebook_size"],
            num_action_tokens=len(options),
            action_vocabulary_size=sum(options),
            slot_options=options,
            # Forward motion begins at 0; turning and moving aside have 0 in the middle.
            first_action=((yaw - 1) // 2, yaw, yaw + x + (y - 1) // 2),
            width=given["n_embd"],
            num_heads=given["n_head"],
            context_depth=context_depth,
            within_frame_depth=within_frame_depth,
            window=given["condition_frames"],
            code_width=given["codebook_embed_dim"],
            motion_width=given["yaw_pose_emb_dim"],
            cell_positions="folded",
            time_positions="window",
            rotary_base=float(given["rope_theta"]),
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"a setting of the world model is of the wrong kind ({error}); image_size is [height, "
            "width], n_layer [context, within frame], the other sizes are whole numbers"
        ) from error
    return config


def world_model_from_upstream(
    state: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    *,
    codebook: Tensor,
    path: Path | None = None,
) -> DrivingTransformer:
    """Return the world model of `world_model.pth`, in float32, ready for inference.

    Args:
        state: Tensors by upstream's names.
        settings: As for `drivingworld_config`.
        codebook: Of the tokenizer as it is stored, `[codebook_size, codebook_embed_dim]`: the
            world model reads these vectors, not those of length 1 that the tokenizer compares.
        path: Where the tensors came from, for messages.

    Raises:
        ConfigError: If the settings do not go together, or the codebook does not fit them.
        CheckpointError: If names or shapes differ; the message lists them.
    """
    config = drivingworld_config(settings)
    if codebook.shape != (config.codebook_size, config.code_width):
        raise ConfigError(
            f"codebook_size and codebook_embed_dim say {config.codebook_size} x "
            f"{config.code_width}, the tokenizer's codebook is "
            f"{' x '.join(map(str, codebook.shape))}; give the tokenizer that belongs to the model"
        )
    foreign = ForeignState(state, path or Path("world model"))
    # Only shapes are needed here; drawing weights of a large model takes a minute.
    with torch.device("meta"):
        model = DrivingTransformer(config)
    filled: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "codes.weight":
            filled[name] = codebook.detach().float().clone()
        elif name in _OURS:
            filled[name] = torch.zeros(tensor.shape)
        elif name == "time_embedding":
            # Upstream has more rows than frames fit into its window; the rest is never read.
            rows = max(len(state.get("time_emb", ())), len(tensor))
            filled[name] = foreign.take("time_emb", (rows, *tensor.shape[1:]))[
                : len(tensor)
            ].clone()
        else:
            filled[name] = _take(foreign, name, tensor.shape, config)
    foreign.finish()
    model.load_state_dict(filled, assign=True)
    return model.eval().requires_grad_(False)


def upstream_weights(name: str) -> tuple[str, ...]:
    """Return what a name in the state of `DrivingTransformer` is called upstream.

    Fused layers have several names there, for equal parts of the first axis; what upstream does not
    have has none.
    """
    if name in _OURS:
        return ()
    if name == "start":
        return ("sos_emb",)
    if name == "time_embedding":
        return ("time_emb",)
    first, _, rest = name.partition(".")
    if first in _STACKS:
        number, _, rest = rest.partition(".")
        part, _, kind = rest.rpartition(".")
        return tuple(f"{_STACKS[first].format(number)}.{each}.{kind}" for each in _PARTS[part])
    if first == "motion":
        number, _, rest = rest.partition(".")
        return (f"{_SLOTS[int(number)]}_{rest}",)
    if first == "action_heads":
        number, _, rest = rest.partition(".")
        return (f"{_SLOTS[int(number)]}_head.{rest}",)
    theirs = {"code_projector": "img_projector", "cell_head": "head"}[first]
    return (f"{theirs}.{rest}",)


def _take(state: ForeignState, name: str, shape: torch.Size, config: DrivingConfig) -> Tensor:
    theirs = upstream_weights(name)
    if name == "start":
        return state.take(theirs[0], (1, 1, *shape)).reshape(shape)
    parts = [state.take(each, (shape[0] // len(theirs), *shape[1:])) for each in theirs]
    if name.endswith("query_key_value.weight"):
        parts = [_pairs_to_halves(part, config) for part in parts[:2]] + parts[2:]
    elif "query_norm" in name or "key_norm" in name:
        parts = [_pairs_to_halves(part, config) for part in parts]
    return torch.cat(parts)


def _pairs_to_halves(weight: Tensor, config: DrivingConfig) -> Tensor:
    # Upstream turns channels 2 k and 2 k + 1 of a head together, the library k and k + width / 2.
    pattern = "(head pair two) ... -> (head two pair) ..."
    return rearrange(weight, pattern, head=config.num_heads, two=2).contiguous()
