"""MineWorld's transformer against numbers that its own code computed, and its YAML read as data."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from tests import reference_cases
from worldgen.errors import CheckpointError, ConfigError
from worldgen.interop.mineworld import import_mineworld_transformer, mineworld_config
from worldgen.models import NextTokenConfig, NextTokenTransformer
from worldgen.nn.attention import attend

CASES = reference_cases.reference_cases("mineworld", lambda c: c.get("kind") == "transformer")


def config_of(settings: dict[str, Any]) -> NextTokenConfig:
    grid = settings["grid"]
    return mineworld_config(
        settings["model"],
        rows=grid["rownum"],
        columns=grid["columnnum"],
        codebook_size=grid["codebook_size"],
        num_action_tokens=grid["actnum"],
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    settings: dict[str, Any]
    model: NextTokenTransformer
    ids: Tensor
    outputs: dict[str, Tensor]

    @property
    def whole_steps(self) -> tuple[Tensor, Tensor]:
        """Visual and action ids of all steps that are whole, `[1, step, id]`."""
        tokens = self.model.layout.tokens_per_step
        steps = self.ids[:, : self.ids.shape[1] // tokens * tokens].unflatten(1, (-1, tokens))
        cells = self.model.layout.num_cells
        return steps[..., :cells], steps[..., cells:] - self.model.codebook_size


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    reference: reference_cases.Case = request.param
    return Case(
        settings=reference.config,
        model=import_mineworld_transformer(reference.weights, config_of(reference.config)),
        ids=reference.inputs["input_ids"],
        outputs=reference.outputs,
    )


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@dataclass
class Memory:
    """Keys and values of all tokens fed so far, and the stream at every depth."""

    model: NextTokenTransformer
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    streams: list[list[Tensor]] = field(default_factory=list)
    length: int = 0

    def feed(self, ids: Tensor) -> Tensor:
        """Return the logits of the next tokens of the sequence, `[1, token, vocabulary]`."""
        places = torch.arange(self.length, self.length + ids.shape[1])
        seen = torch.arange(self.length + ids.shape[1]) <= places[:, None]

        def see(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            if layer in self.keys:
                key = torch.cat((self.keys[layer], key), dim=2)
                value = torch.cat((self.values[layer], value), dim=2)
            self.keys[layer], self.values[layer] = key, value
            return attend(query, key, value, seen)

        depths = [self.model.embedding(ids)]
        hooks = [
            block.register_forward_hook(lambda _block, _inputs, output: depths.append(output))
            for block in self.model.blocks
        ]
        stream = self.model.run_blocks(depths[0], self.model.rotary(places), see)
        for hook in hooks:
            hook.remove()
        self.streams.append([*depths, self.model.norm(stream)])
        self.length += ids.shape[1]
        return self.model.read(stream)


def feed_in_chunks(case: Case, ends: list[int]) -> tuple[Memory, Tensor]:
    memory = Memory(case.model)
    begins = [0, *ends[:-1]]
    logits = [memory.feed(case.ids[:, begin:end]) for begin, end in zip(begins, ends, strict=True)]
    return memory, torch.cat(logits, dim=1)


def test_there_are_cases() -> None:
    assert CASES


@torch.no_grad()
def test_whole_clips_have_upstreams_logits(case: Case) -> None:
    visual_ids, action_ids = case.whole_steps
    logits = case.model.read(case.model.encode_clip(visual_ids, action_ids)).flatten(1, 2)
    length = logits.shape[1]
    assert_close(logits, case.outputs["logits_full"][:, :length])
    # What training sees: the token after each, of every frame but the first.
    cells, actions = case.model(visual_ids, action_ids)
    tokens, num_cells = case.model.layout.tokens_per_step, case.model.layout.num_cells
    before = case.outputs["logits_full"][:, : length - 1].roll(1, dims=1)
    before = torch.cat((before, case.outputs["logits_full"][:, length - 2 : length - 1]), dim=1)
    before = before.unflatten(1, (-1, tokens))
    assert_close(cells, before[:, 1:, :num_cells])
    assert_close(actions, before[:, :, num_cells:])


@torch.no_grad()
def test_the_sequence_at_once_has_upstreams_stream_keys_and_values(case: Case) -> None:
    memory, logits = feed_in_chunks(case, [case.ids.shape[1]])
    assert_close(logits, case.outputs["logits_full"])
    assert_close(torch.cat(memory.streams[0]), case.outputs["hidden_states"])
    for ours, theirs in ((memory.keys, "cache_k"), (memory.values, "cache_v")):
        stacked = torch.cat([ours[layer] for layer in range(len(ours))])
        stacked = rearrange(stacked, "layer head token width -> layer token head width")
        assert_close(stacked, case.outputs[theirs])


@torch.no_grad()
def test_tokens_fed_in_pieces_have_upstreams_logits(case: Case) -> None:
    one_by_one = list(range(1, case.ids.shape[1] + 1))
    assert_close(feed_in_chunks(case, one_by_one)[1], case.outputs["logits_step"])
    in_turn = case.settings["chunk_ends"]
    assert_close(feed_in_chunks(case, in_turn)[1], case.outputs["logits_chunk"])


def test_cells_drawn_one_by_one_have_upstreams_logits(case: Case) -> None:
    visual_ids, action_ids = case.whole_steps
    theirs = case.outputs["logits_step"][..., : case.model.codebook_size]
    cache = case.model.new_cache(1)
    tokens = case.model.layout.tokens_per_step
    for frame in range(1, visual_ids.shape[1]):
        draft = case.model.observe(cache, visual_ids[:, frame - 1], action_ids[:, frame - 1])
        for cell in range(case.model.layout.num_cells):
            place = torch.tensor([cell])
            before = frame * tokens + cell - 1
            logits = case.model.predict(draft, place)
            assert_close(logits, theirs[:, before : before + 1])
            case.model.reveal(draft, place, visual_ids[:, frame, cell : cell + 1])


def test_rotary_tables_are_upstreams(case: Case) -> None:
    places = torch.arange(case.ids.shape[1])
    width = case.outputs["rope_cos"].shape[-1]
    base = case.model.config.rotary_base
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    # Upstream rounds frequencies and angles to float32; ours are formed in float64.
    allowed = 1e-6 + places[:, None] * frequencies * 2**-23
    tables = case.model.rotary(places)
    for table, name in zip(tables, ("rope_cos", "rope_sin"), strict=True):
        off = (torch.cat((table, table), dim=-1) - case.outputs[name]).abs()
        assert (off <= torch.cat((allowed, allowed), dim=-1)).all()


# What does not fit.

TREE: dict[str, Any] = {
    "target": "lvm.LlamaLVM",
    "params": {
        "model_class": "lvm.LlamaForCausalLM",
        "transformer_config": {
            "target": "transformers.LlamaConfig",
            "params": {
                "max_position_embeddings": 100,
                "hidden_size": 8,
                "intermediate_size": 12,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "num_hidden_layers": 2,
                "rope_theta": 10000.0,
                "torch_dtype": "bfloat16",
                "rms_norm_eps": "1e-5",
                "vocab_size": 90,
            },
        },
    },
}
GRID = {"rows": 3, "columns": 4, "codebook_size": 20}


def changed(*keys: str, value: object) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    node = tree
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return tree


def size(key: str, value: object) -> dict[str, Any]:
    return changed("params", "transformer_config", "params", key, value=value)


def test_sizes_are_taken_from_the_tree() -> None:
    config = mineworld_config(TREE, **GRID)
    assert config.windows == (4, 4)  # 100 positions hold four steps of 23
    assert config.action_vocabulary_size == 70
    assert config.norm_epsilon == 1e-5
    assert not config.attention_bias
    # What `LlamaConfig` leaves out has its defaults.
    tree = size("num_key_value_heads", None)
    assert mineworld_config(tree, **GRID).num_key_value_heads == 2
    del tree["params"]["transformer_config"]["params"]["rms_norm_eps"]
    assert mineworld_config(tree, **GRID).norm_epsilon == 1e-6


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (changed("target", value="os.system"), "target must be 'lvm.LlamaLVM', got 'os.system'"),
        (changed("params", "model_class", value="lvm.Other"), "model_class must be .*'lvm.Other'"),
        (
            changed("params", "transformer_config", "target", value="builtins.exec"),
            "transformer_config.target must be 'transformers.LlamaConfig', got 'builtins.exec'",
        ),
        (changed("params", value=[1]), r"model.params must be a mapping, got \[1\]"),
        (changed("params", "transformer_config", value=None), "transformer_config must be a map"),
        (size("hidden_size", "large"), "hidden_size must be a whole number .* got 'large'"),
        (size("hidden_size", True), "hidden_size must be a whole number .* got True"),
        (size("num_hidden_layers", 0), "num_hidden_layers must be a whole number of at least 1"),
        (size("num_attention_heads", 3), "num_heads that divides width"),
        (size("hidden_act", "gelu"), "hidden_act must be 'silu' or 'swish', got 'gelu'"),
        (size("rope_scaling", {"type": "linear"}), "rope_scaling must be None"),
        (size("head_dim", 16), "head_dim must be .* 4, got 16"),
        (size("vocab_size", 20), "vocab_size counts the 20 visual ids .* got 20"),
        (size("max_position_embeddings", 22), "of 22 holds no frame of 3x4 visual tokens"),
        (size("attention_bias", "no"), "attention_bias must be true or false, got 'no'"),
        (size("rms_norm_eps", "small"), "rms_norm_eps must be a number above 0, got 'small'"),
        (size("rope_theta", float("nan")), "rope_theta must be a number above 0, got nan"),
        ({}, "model must be a mapping with target and params"),
    ],
)
def test_trees_that_say_something_else_are_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mineworld_config(tree, **GRID)


def test_weights_that_do_not_fit_are_told_by_upstreams_names() -> None:
    reference = CASES[0].values[0]
    assert isinstance(reference, reference_cases.Case)
    tensors = load_file(reference.weights)
    tensors["transformer.model.extra.weight"] = torch.ones(2)
    tensors["transformer.lm_head.weight"] = torch.ones(2, 2)
    del tensors["transformer.model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError) as caught:
        import_mineworld_transformer(
            tensors, config_of(reference.config), path=Path("some/epoch.ckpt")
        )
    message = str(caught.value)
    assert message.startswith("some/epoch.ckpt does not fit")
    assert "missing transformer.model.layers.0.mlp.up_proj.weight," in message
    assert "unexpected transformer.model.extra.weight," in message
    assert "wrong shape transformer.lm_head.weight (2, 2) instead of" in message


def test_the_tokenizer_and_tables_beside_the_transformer_are_left() -> None:
    reference = CASES[0].values[0]
    assert isinstance(reference, reference_cases.Case)
    tensors = load_file(reference.weights)
    tensors["tokenizer.model.quant_conv.bias"] = torch.ones(2)
    tensors["transformer.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    model = import_mineworld_transformer(tensors, config_of(reference.config))
    assert torch.equal(model.embedding.weight, tensors["transformer.model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("width", "feed_forward", "heads", "positions", "millions"),
    [
        (1024, 4096, 16, 5552, 321.0),
        (2048, 4096, 32, 11104, 726.0),
        (2048, 8192, 32, 5552, 1229.3),
    ],
    ids=["300M_16f", "700M_32f", "1200M_16f"],
)
def test_published_sizes(
    width: int, feed_forward: int, heads: int, positions: int, millions: float
) -> None:
    tree = copy.deepcopy(TREE)
    tree["params"]["transformer_config"]["params"] |= {
        "hidden_size": width,
        "intermediate_size": feed_forward,
        "num_attention_heads": heads,
        "num_key_value_heads": 4,
        "num_hidden_layers": 20,
        "max_position_embeddings": positions,
        "vocab_size": 8262,
    }
    config = mineworld_config(tree, rows=14, columns=24, codebook_size=8192)
    assert config.windows == (positions // 347,) * 20
    assert config.action_vocabulary_size == 70
    with torch.device("meta"):
        model = NextTokenTransformer(config)
    # Upstream's stand-ins have no weights.
    total = sum(weights.numel() for weights in model.parameters()) - model.stand_in.numel()
    assert round(total / 1e6, 1) == millions
