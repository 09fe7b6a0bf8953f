"""The transformer block: normalised attention and a gated feed-forward layer."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.nn.attention import Attention, AttentionConfig
from worldgen.nn.rotary import RotaryTable

__all__ = ["Attend", "Block", "BlockConfig", "RMSNorm", "initialise"]


@runtime_checkable
class Attend(Protocol):
    """Who sees whom: gets queries, keys and values of one layer, returns what each query reads."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return what each query of the layer reads."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Sizes of a stack of blocks."""

    attention: AttentionConfig
    feed_forward_width: int
    """Width between the two linear maps of the feed-forward layer."""
    feed_forward_bias: bool = False
    """Whether the linear maps of the feed-forward layer add a learned vector."""
    norm_epsilon: float = 1e-5
    """Added to the mean square by which tokens are normalised."""


class RMSNorm(nn.Module):
    """Scale each token to unit root mean square, then by a learned factor per channel.

    Source: arXiv:1910.07467, equation 4.
    """

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, hidden: Float[Tensor, "*leading width"]) -> Float[Tensor, "*leading width"]:
        """Return the normalised tokens in the dtype of the input."""
        # The weight follows the input's dtype: mixed dtypes would leave the fused kernel.
        return F.rms_norm(hidden, (hidden.shape[-1],), self.weight.to(hidden.dtype), self.epsilon)


class Block(nn.Module):
    """Pre-normalised attention and SwiGLU feed-forward, each added to the stream.

    Source: Llama, arXiv:2302.13971, section 2.2; SwiGLU, arXiv:2002.05202, equation 6.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width, bias = config.attention.width, config.feed_forward_bias
        self.attention_norm = RMSNorm(width, config.norm_epsilon)
        self.attention = Attention(config.attention)
        self.feed_forward_norm = RMSNorm(width, config.norm_epsilon)
        self.gate_up = nn.Linear(width, 2 * config.feed_forward_width, bias=bias)
        self.down = nn.Linear(config.feed_forward_width, width, bias=bias)

    def forward(
        self,
        hidden: Float[Tensor, "batch token width"],
        rotary: RotaryTable,
        layer: int,
        attend: Attend,
    ) -> Float[Tensor, "batch token width"]:
        """Return the stream after this block.

        Args:
            hidden: Stream of tokens.
            rotary: Cosines and sines of the tokens' positions.
            layer: Index handed to `attend`, which keeps a cache per layer.
            attend: Decides which keys each query sees.
        """
        query, key, value = self.attention.project(self.attention_norm(hidden), rotary)
        hidden = hidden + self.attention.merge(attend(layer, query, key, value))
        gate, up = self.gate_up(self.feed_forward_norm(hidden)).chunk(2, dim=-1)
        fed: Tensor = self.down(F.silu(gate) * up)
        return hidden + fed


def initialise(module: nn.Module, depth: int) -> None:
    """Draw weights for training from scratch.

    Linear maps get a normal distribution of variance 1 / fan-in, those that write into the
    stream divided by twice the depth, so that the stream keeps its scale.

    Source: GPT-2 (Radford et al. 2019), section 2.3.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            writes = name.endswith(("output", "down"))
            scale = part.in_features**-0.5 / ((2 * depth) ** 0.5 if writes else 1.0)
            nn.init.normal_(part.weight, std=scale)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=1.0)
