"""A language model of codes under a class: every code of an image or a clip, one after the other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.checkpoint import load_state, load_tensors, save_tensors
from worldgen.config import build, to_mapping
from worldgen.errors import CheckpointError, ConfigError
from worldgen.nn.attention import attend
from worldgen.nn.cache import FrameCache
from worldgen.nn.cache_storage import CacheConfig

__all__ = [
    "ClassConditionalConfig",
    "ClassConditionalTransformer",
    "load_class_conditional",
    "save_class_conditional",
]

_ARTIFACT = "class_conditional_model"
_START = 0


@dataclass(frozen=True, kw_only=True)
class ClassConditionalConfig:
    """Sizes of the model and the order of its sequences."""

    codebook_size: int
    num_classes: int
    num_positions: int
    """Rows of the position table; a sequence has two tokens before its codes."""
    width: int
    num_heads: int
    depth: int
    class_first: bool
    """Whether the class stands before the start token or behind it; both stand before the codes."""

    def __post_init__(self) -> None:
        if min(self.codebook_size, self.num_classes, self.depth) < 1 or self.num_positions < 3:
            raise ConfigError(
                "codebook_size, num_classes and depth must be at least 1 and num_positions at "
                f"least 3, got {self}"
            )
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ConfigError(f"num_heads must divide width, got {self.num_heads} and {self.width}")

    @property
    def first_code(self) -> int:
        """Token of code 0; before it come the start token, which is 0, and the classes."""
        return 1 + self.num_classes

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return self.first_code + self.codebook_size

    @property
    def num_codes(self) -> int:
        """Codes of the longest sequence: the last one need not be read."""
        return self.num_positions - 1


class ClassConditionalTransformer(nn.Module):
    """Decoder-only transformer with learned positions, pre-normalisation and an untied head.

    A sequence is the class and the start token in the order of the configuration, then codes in
    the order of time, row, column. Without its class it is the start token at position 0 and the
    codes at the positions that they have with it: what guidance leads away from.

    Source: GPT-2 (Radford et al. 2019), section 2.3, as in minGPT; on codes of a tokenizer
        OmniTokenizer, arXiv:2406.09399, section 3.3.
    """

    first_position = 2
    """Position of the first code, with its class before it or without."""

    def __init__(self, config: ClassConditionalConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.position_embedding = nn.Embedding(config.num_positions, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                nn.init.normal_(part.weight, std=0.02)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)

    def prefix(
        self, batch: int, labels: Int[Tensor, " batch"] | None
    ) -> Int[Tensor, "batch prefix"]:
        """Return the tokens before the codes, which stand at positions from 0 on.

        Args:
            batch: Number of sequences.
            labels: int64 in [0, num_classes); None for sequences without a class.

        Raises:
            ConfigError: If a label is out of range.
        """
        start = torch.full((batch,), _START, device=self.head.weight.device)
        if labels is None:
            return rearrange(start, "b -> b 1")
        if labels.numel() and not 0 <= labels.min() <= labels.max() < self.config.num_classes:
            raise ConfigError(
                f"labels lie in [0, {self.config.num_classes}), got {labels.unique().tolist()}"
            )
        classes = labels.to(start) + 1
        ordered = (classes, start) if self.config.class_first else (start, classes)
        return torch.stack(ordered, dim=1)

    def tokens(self, codes: Int[Tensor, "*leading"]) -> Int[Tensor, "*leading"]:
        """Return the tokens of codes in [0, codebook_size)."""
        return codes + self.config.first_code

    def codes(self, tokens: Int[Tensor, "*leading"]) -> Int[Tensor, "*leading"]:
        """Return the codes of tokens; a token that is no code counts as code 0."""
        return (tokens - self.config.first_code).clamp(min=0)

    def sequence(
        self, codes: Int[Tensor, "batch code"], labels: Int[Tensor, " batch"] | None
    ) -> tuple[Int[Tensor, "batch token"], Int[Tensor, " token"]]:
        """Return the tokens of a whole sequence and their positions.

        Args:
            codes: int64 in [0, codebook_size), in the order of time, row, column.
            labels: int64 in [0, num_classes); None leaves the class out.
        """
        before = self.prefix(codes.shape[0], labels)
        tokens = torch.cat((before, self.tokens(codes)), dim=1)
        places = torch.arange(self.first_position + codes.shape[1], device=tokens.device)
        return tokens, torch.cat((places[: before.shape[1]], places[self.first_position :]))

    def forward(
        self, tokens: Int[Tensor, "batch token"], positions: Int[Tensor, " token"]
    ) -> Float[Tensor, "batch token vocabulary"]:
        """Return logits of the token that follows each token.

        Args:
            tokens: int64 in [0, vocabulary_size).
            positions: int64 in [0, num_positions).

        Raises:
            ConfigError: If the sequence is longer than the position table.
        """
        if tokens.shape[1] and positions.max() >= self.config.num_positions:
            raise ConfigError(
                f"the model has {self.config.num_positions} positions, got a sequence that needs "
                f"{int(positions.max()) + 1}; shorten it"
            )
        hidden = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits

    def loss(
        self, codes: Int[Tensor, "batch code"], labels: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, ""]:
        """Return the cross entropy of the codes in nats, mean over codes.

        Without labels it trains what guidance leads away from; a share of 0.1 of the batches is
        usual. Source: classifier-free guidance, arXiv:2207.12598, algorithm 1.

        Args:
            codes: int64 in [0, codebook_size).
            labels: int64 in [0, num_classes), or None.
        """
        tokens, positions = self.sequence(codes, labels)
        logits = self(tokens[:, :-1], positions[:-1])[:, -codes.shape[1] :]
        targets = tokens[:, -codes.shape[1] :]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def new_cache(self, batch: int) -> FrameCache:
        """Return an empty cache for `batch` sequences; all of its memory is taken now."""
        weight = self.head.weight
        config = CacheConfig(
            heads=self.config.num_heads,
            tokens=1,
            head_width=self.config.width // self.config.num_heads,
            windows=(self.config.num_positions,) * self.config.depth,
            dtype=weight.dtype,
        )
        return FrameCache(config, batch=batch, device=weight.device)

    def observe(
        self, cache: FrameCache, tokens: Int[Tensor, " batch"], position: int
    ) -> Float[Tensor, "batch vocabulary"]:
        """Commit one token of each sequence to the cache; return logits of the next one.

        Args:
            cache: As `new_cache` made it, with all tokens before.
            tokens: int64 in [0, vocabulary_size).
            position: Of the token, below `num_positions`.

        Raises:
            ConfigError: If the position is beyond the table.
        """
        if not 0 <= position < self.config.num_positions:
            raise ConfigError(
                f"positions lie in [0, {self.config.num_positions}), got {position}; draw fewer "
                f"codes"
            )
        hidden = self.token_embedding(tokens) + self.position_embedding.weight[position]
        hidden = rearrange(hidden, "b width -> b 1 width")
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, cache, layer)
        cache.advance()
        logits: Tensor = self.head(self.norm(hidden[:, 0]))
        return logits


class _Block(nn.Module):
    """Attention and a feed-forward layer, both behind a layer normalisation."""

    def __init__(self, config: ClassConditionalConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)

    def forward(self, hidden: Tensor, cache: FrameCache | None = None, layer: int = 0) -> Tensor:
        query, key, value = rearrange(
            self.query_key_value(self.attention_norm(hidden)),
            "b token (part head width) -> part b head token width",
            part=3,
            head=self.num_heads,
        )
        if cache is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            seen = cache.write_and_read(layer, key, value)
            mixed = attend(query, seen.keys, seen.values)
        merged = rearrange(mixed, "b head token width -> b token (head width)")
        hidden = hidden + self.output(merged)
        fed: Tensor = self.down(F.gelu(self.up(self.feed_forward_norm(hidden))))
        return hidden + fed


def save_class_conditional(path: Path, model: ClassConditionalTransformer, **metadata: Any) -> None:
    """Write weights, configuration and anything else worth keeping to one safetensors file."""
    header = {"artifact": _ARTIFACT, "config": to_mapping(model.config)}
    save_tensors(path, model.state_dict(), metadata | header)


def load_class_conditional(path: Path) -> ClassConditionalTransformer:
    """Return the model of a file that `save_class_conditional` wrote, ready for inference.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds something else.
        ConfigError: If its configuration is malformed.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("artifact") != _ARTIFACT:
        raise CheckpointError(
            f"{path} holds a {metadata.get('artifact')!r}; give a file with a {_ARTIFACT!r}"
        )
    model = ClassConditionalTransformer(build(ClassConditionalConfig, metadata["config"]))
    load_state(model, {name: tensor.float() for name, tensor in tensors.items()}, path)
    return model.eval()
