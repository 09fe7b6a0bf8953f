"""MineWorld's transformer (arXiv:2504.08388): its YAML tree and its weights, read into ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.interop.files import ForeignState, read_checkpoint
from worldgen.models.next_token import NextTokenConfig, NextTokenTransformer

__all__ = ["WORLD_TARGET", "import_mineworld_transformer", "mineworld_config", "parameters_of"]

# Classes that upstream's YAML names. They are compared and never imported.
WORLD_TARGET = "lvm.LlamaLVM"
_TRANSFORMER = "lvm.LlamaForCausalLM"
_SIZES = "transformers.LlamaConfig"

# What a `LlamaConfig` can ask for and upstream's transformer leaves out.
_BUILT: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "rope_scaling": (None,),
    "tie_word_embeddings": (False,),
    "pretraining_tp": (1,),
}

# Our name of a layer -> upstream's; a fused layer has several.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "attention_norm": ("input_layernorm",),
    "attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.output": ("self_attn.o_proj",),
    "feed_forward_norm": ("post_attention_layernorm",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_ENDS: Mapping[str, str] = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "readout": "lm_head",
}


def mineworld_config(
    tree: Mapping[str, Any],
    *,
    rows: int,
    columns: int,
    codebook_size: int,
    num_action_tokens: int = 11,
) -> NextTokenConfig:
    """Return our configuration of a MineWorld transformer.

    Every layer sees as many frames as fit into `max_position_embeddings`. Ids behind the codebook
    are those of actions, used or not.

    Args:
        tree: `model` of upstream's YAML, with `target` and `params`.
        rows: Of a frame's tokens; upstream's code has 14.
        columns: Of a frame's tokens; upstream's code has 24.
        codebook_size: Of the visual tokenizer, and the first id of an action.
        num_action_tokens: Of one frame.

    Raises:
        ConfigError: If the tree names other classes, lacks a size, or has one that does not fit.
    """
    params = parameters_of(tree, "model", WORLD_TARGET)
    found = params.get("model_class", _TRANSFORMER)
    if found != _TRANSFORMER:
        raise ConfigError(
            f"model.params.model_class must be {_TRANSFORMER!r}, got {found!r}; transformers of "
            "other kinds are not known here"
        )
    where = "model.params.transformer_config"
    sizes = parameters_of(params.get("transformer_config"), where, _SIZES)
    for key, allowed in _BUILT.items():
        if sizes.get(key, allowed[0]) not in allowed:
            raise ConfigError(
                f"{where}.params.{key} must be {' or '.join(map(repr, allowed))}, got "
                f"{sizes[key]!r}; MineWorld's transformer has nothing else"
            )
    width = _whole(sizes, where, "hidden_size")
    num_heads = _whole(sizes, where, "num_attention_heads")
    if (head_width := sizes.get("head_dim")) not in (None, width // num_heads):
        raise ConfigError(
            f"{where}.params.head_dim must be hidden_size / num_attention_heads, "
            f"{width // num_heads}, got {head_width!r}"
        )
    vocabulary_size = _whole(sizes, where, "vocab_size")
    if vocabulary_size <= codebook_size:
        raise ConfigError(
            f"{where}.params.vocab_size counts the {codebook_size} visual ids and those of actions "
            f"behind them, got {vocabulary_size}; give the codebook that it was trained with"
        )
    tokens = rows * columns + num_action_tokens
    frames = _whole(sizes, where, "max_position_embeddings") // tokens
    if not frames:
        raise ConfigError(
            f"{where}.params.max_position_embeddings of {sizes['max_position_embeddings']} holds "
            f"no frame of {rows}x{columns} visual tokens and {num_action_tokens} action tokens; "
            "give the size of its frames (--height, --width)"
        )
    return NextTokenConfig(
        rows=rows,
        columns=columns,
        codebook_size=codebook_size,
        num_action_tokens=num_action_tokens,
        action_vocabulary_size=vocabulary_size - codebook_size,
        width=width,
        num_heads=num_heads,
        num_key_value_heads=_whole(sizes, where, "num_key_value_heads", default=num_heads),
        feed_forward_width=_whole(sizes, where, "intermediate_size"),
        windows=(frames,) * _whole(sizes, where, "num_hidden_layers"),
        rotary_base=_positive(sizes, where, "rope_theta", default=10000.0),
        attention_bias=_flag(sizes, where, "attention_bias"),
        feed_forward_bias=_flag(sizes, where, "mlp_bias"),
        # The default of `LlamaConfig`.
        norm_epsilon=_positive(sizes, where, "rms_norm_eps", default=1e-6),
    )


def import_mineworld_transformer(
    source: Mapping[str, Tensor] | Path,
    config: NextTokenConfig,
    *,
    path: Path | None = None,
    prefix: str = "transformer.",
) -> NextTokenTransformer:
    """Return the transformer of a MineWorld checkpoint, in float32, ready for inference.

    The tokenizer beside it in the file is left.

    Args:
        source: A checkpoint file, or the tensors of one by upstream's names.
        config: As `mineworld_config` returns it.
        path: Where the tensors came from, for messages.
        prefix: Before every name.

    Raises:
        CheckpointError: If the file cannot be read, or names or shapes differ; the message lists
            them.
    """
    if isinstance(source, Path):
        path, source = source, read_checkpoint(source).tensors
    state = ForeignState(source, path or Path("checkpoint"))
    # The visual tokenizer, and tables that some versions of torch's users store.
    state.leave("tokenizer.")
    state.leave(*(name for name in source if name.endswith("rotary_emb.inv_freq")))
    # Only shapes are needed here; drawing weights of a large model takes a minute.
    with torch.device("meta"):
        model = NextTokenTransformer(config)
    tensors = {
        name: _take(state, config, prefix, name, tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    state.finish()
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def parameters_of(tree: object, where: str, target: str) -> Mapping[str, Any]:
    """Return `params` of a node of upstream's YAML that must name a certain class.

    Args:
        tree: The node.
        where: What it is called, for messages.
        target: The class; its name is compared, it is not imported.

    Raises:
        ConfigError: If the node is no mapping of `target` and `params`, or names another class.
    """
    if not isinstance(tree, Mapping) or "target" not in tree:
        raise ConfigError(
            f"{where} must be a mapping with target and params, as in MineWorld's YAML files, got "
            f"{_shortened(tree)}"
        )
    if tree["target"] != target:
        raise ConfigError(
            f"{where}.target must be {target!r}, got {_shortened(tree['target'])}; models of other "
            "classes are not known here"
        )
    params = tree.get("params")
    if not isinstance(params, Mapping):
        raise ConfigError(f"{where}.params must be a mapping, got {_shortened(params)}")
    return params


def _take(
    state: ForeignState, config: NextTokenConfig, prefix: str, name: str, shape: torch.Size
) -> Tensor:
    if name == "stand_in":
        # Upstream marks its stand-ins by nothing.
        return torch.zeros(shape)
    layer, kind = name.rsplit(".", 1)
    if layer in _ENDS:
        return state.take(f"{prefix}{_ENDS[layer]}.{kind}", shape)
    _, number, part = layer.split(".", 2)
    foreign = _PARTS[part]
    heights = [shape[0] // len(foreign)] * len(foreign)
    if len(foreign) == 3:
        head_width = config.block.attention.head_width
        heights = [config.width, *[config.num_key_value_heads * head_width] * 2]
    pieces = [
        state.take(f"{prefix}model.layers.{number}.{each}.{kind}", (height, *shape[1:]))
        for each, height in zip(foreign, heights, strict=True)
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _whole(sizes: Mapping[str, Any], where: str, key: str, default: int | None = None) -> int:
    value = sizes.get(key)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise ConfigError(
            f"{where}.params.{key} must be a whole number of at least 1, got {_shortened(value)}"
        )
    return value


def _positive(sizes: Mapping[str, Any], where: str, key: str, default: float) -> float:
    value = sizes.get(key, default)
    if isinstance(value, str):
        # YAML 1.1 takes 1e-5 for a word.
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ConfigError(
            f"{where}.params.{key} must be a number above 0, got {_shortened(sizes.get(key))}"
        )
    return float(value)


def _flag(sizes: Mapping[str, Any], where: str, key: str) -> bool:
    value = sizes.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}.params.{key} must be true or false, got {_shortened(value)}")
    return value


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
