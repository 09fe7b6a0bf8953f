"""OmniTokenizer's class-conditional language model, read into ours."""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from worldgen.errors import CheckpointError
from worldgen.interop.files import ForeignState
from worldgen.models.class_conditional import ClassConditionalConfig, ClassConditionalTransformer

__all__ = ["class_conditional_config", "read_class_conditional"]

# What upstream's language model can do and ours leaves out.
_UNSUPPORTED = {"n_unmasked": 0, "vtokens_pos": False, "starts_with_sos": True}

# Our name of a layer -> upstream's.
_PARTS = {
    "token_embedding": "tok_emb",
    "norm": "ln_f",
    "head": "head",
    "attention_norm": "ln1",
    "output": "attn.proj",
    "feed_forward_norm": "ln2",
    "up": "mlp.0",
    "down": "mlp.2",
}
_ATTENTION = ("query", "key", "value")


def class_conditional_config(arguments: Mapping[str, Any]) -> ClassConditionalConfig:
    """Return the configuration of a class-conditional language model.

    Args:
        arguments: Upstream's, under upstream's names.

    Raises:
        CheckpointError: If an argument is missing or asks for something that is not built here.
    """
    for name, built in _UNSUPPORTED.items():
        if arguments.get(name, built) != built:
            raise CheckpointError(
                f"language models of OmniTokenizer are read with {name} {built}, got "
                f"{arguments[name]}; this checkpoint cannot be imported"
            )
    try:
        return ClassConditionalConfig(
            codebook_size=arguments["first_stage_vocab_size"],
            num_classes=arguments["class_cond_dim"],
            num_positions=arguments["block_size"],
            width=arguments["n_embd"],
            num_heads=arguments["n_head"],
            depth=arguments["n_layer"],
            class_first=arguments["class_first"],
        )
    except KeyError as error:
        raise CheckpointError(
            f"the arguments of the language model lack {error}; give those that it was trained with"
        ) from error


def read_class_conditional(
    state: ForeignState, config: ClassConditionalConfig, prefix: str = "transformer."
) -> ClassConditionalTransformer:
    """Return the language model of a checkpoint, ready for inference.

    The causal masks that upstream stores and the tokenizer beside the model are left.

    Args:
        state: Of the checkpoint.
        config: As `class_conditional_config` returns it.
        prefix: Before every name.

    Raises:
        CheckpointError: If names or shapes differ; the message lists them.
    """
    state.leave("first_stage_model.")
    state.leave(*(f"{prefix}blocks.{layer}.attn.mask" for layer in range(config.depth)))
    model = ClassConditionalTransformer(config)
    tensors = {
        name: _take(state, prefix, name, tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    state.finish()
    model.load_state_dict(tensors)
    return model.eval()


def _take(state: ForeignState, prefix: str, name: str, shape: torch.Size) -> Tensor:
    if name == "position_embedding.weight":
        table = state.take(f"{prefix}pos_emb", (1, *shape))
        return rearrange(table, "1 position width -> position width")
    *place, part, kind = name.split(".")
    stem = prefix + "".join(f"{piece}." for piece in place)
    if part == "query_key_value":
        third = (shape[0] // 3, *shape[1:])
        return torch.cat([state.take(f"{stem}attn.{each}.{kind}", third) for each in _ATTENTION])
    return state.take(f"{stem}{_PARTS[part]}.{kind}", shape)
