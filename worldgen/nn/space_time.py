"""Blocks over space and time: attention inside a frame, along time, and a convolution over both.

Everything here works on volumes `[batch, time, row, column, width]` and can take them piece by
piece: a `StreamState` holds what a causal stack remembers of the pieces before.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.errors import ConfigError

__all__ = ["SpaceTimeConfig", "SpaceTimeStack", "StreamState"]

_SCORE_SCALE = 8.0
"""Constant factor of the scores between queries and keys of unit length."""


@dataclass(frozen=True, kw_only=True)
class SpaceTimeConfig:
    """Sizes of a spatial and a temporal stack and how they see."""

    width: int
    num_heads: int
    head_width: int
    """Channels of a head of full and temporal attention; window attention splits `width`."""
    feed_forward_width: int
    spatial_blocks: str
    """One letter a block: t full attention, w window attention; a, m, l reduce the grid by 2."""
    temporal_depth: int
    window: int = 8
    """Side of the windows of window attention, in tokens."""
    spatial_positions: Literal["rotary", "relative", "none"] = "rotary"
    temporal_positions: Literal["alibi", "none"] = "none"
    temporal_window: int | None = None
    """Steps of time, the current one included, that temporal attention sees; None: all.
    A stream needs a number, or its memory grows."""
    causal: bool = True
    """Whether temporal attention sees no later step."""
    causal_convolution: bool = True
    """Whether the convolution sees no later step."""
    temporal_convolution: Literal["aligned", "scrambled"] = "aligned"
    """`scrambled` repeats an error of the released OmniTokenizer, which reads memory of the order
    (row, column, time) as (time, row, column); its weights need it."""

    def __post_init__(self) -> None:
        sizes = (self.width, self.num_heads, self.head_width, self.feed_forward_width, self.window)
        if min(sizes) < 1 or self.temporal_depth < 0:
            raise ConfigError(f"sizes must be at least 1 and depths not negative, got {self}")
        if unknown := sorted(set(self.spatial_blocks) - set("twaml")):
            raise ConfigError(
                f"spatial_blocks {self.spatial_blocks!r} has unknown letters {unknown}; "
                "t, w, a, m and l are known"
            )
        if "w" in self.spatial_blocks and self.width % self.num_heads:
            raise ConfigError(
                f"window attention splits width {self.width} into {self.num_heads} heads; "
                "choose a number of heads that divides it"
            )
        if self.spatial_positions == "rotary" and self.head_width % 4:
            raise ConfigError(
                f"rotary positions over rows and columns need a head width divisible by 4, "
                f"got {self.head_width}"
            )
        if self.temporal_window is not None and (self.temporal_window < 1 or not self.causal):
            raise ConfigError(
                f"temporal_window must be at least 1 and needs causal attention, got "
                f"{self.temporal_window} with causal={self.causal}"
            )
        if self.temporal_positions == "alibi" and not self.causal:
            raise ConfigError("alibi is defined for causal attention; set causal or positions none")

    @property
    def streams(self) -> bool:
        """Whether the stacks can take a clip piece by piece."""
        return self.causal and self.causal_convolution and self.temporal_convolution == "aligned"

    @property
    def reduction(self) -> int:
        """Factor by which the blocks reduce rows and columns."""
        return int(2 ** sum(letter in "aml" for letter in self.spatial_blocks))


@dataclass
class StreamState:
    """What the blocks of a stack remember of earlier steps; tensors in it are never written to."""

    convolutions: dict[int, Tensor] = field(default_factory=dict)
    """For each block the last two volumes that its convolution has read."""
    keys_values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """For each block of temporal attention the keys and values still in sight."""

    def fork(self) -> "StreamState":
        """Return an independent state."""
        return StreamState(dict(self.convolutions), dict(self.keys_values))


class ScaleNorm(nn.Module):
    """Layer normalisation with a learned factor and no learned shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, volume: Float[Tensor, "*leading width"]) -> Float[Tensor, "*leading width"]:
        """Return the normalised volume."""
        return F.layer_norm(volume, (volume.shape[-1],), self.weight.to(volume.dtype))


class PositionConvolution(nn.Module):
    """Depth-wise 3 x 3 x 3 convolution over time and space: tells tokens their neighbours.

    Source: positional encoding generator, Chu et al. 2021 (arXiv:2102.10882), section 3.2;
        over time, Villegas et al. 2022, Phenaki (arXiv:2210.02399), section 2.1.

    Args:
        width: Channels.
        causal: Whether the two steps before are read, or the one before and the one after.
        scrambled: Read the volume in the order of the released OmniTokenizer's temporal stacks.
    """

    def __init__(self, width: int, *, causal: bool, scrambled: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight, std=0.02)
        self.padding = (2, 0) if causal else (1, 1)
        self.scrambled = scrambled

    def forward(
        self, volume: Float[Tensor, "batch time row column width"], past: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch time row column width"], Tensor]:
        """Return the convolved volume, and the last two steps read.

        Args:
            volume: The piece.
            past: The two steps read before it; zeros if there are none.
        """
        if self.scrambled:
            shape = volume.shape
            read = rearrange(volume, "b t r c width -> b (r c t) width")
            read = read.reshape(shape)
        else:
            read = volume
        before, after = self.padding
        if past is None:
            read = F.pad(read, (0, 0, 0, 0, 0, 0, before, after))
        else:
            read = torch.cat((past, read), dim=1)
        convolved = self._convolve(read)
        if self.scrambled:
            _, t, r, c, _ = volume.shape
            flat = rearrange(convolved, "b t r c width -> b (t r c) width")
            convolved = rearrange(flat, "b (r c t) width -> b t r c width", r=r, c=c, t=t)
        return convolved, read[:, -2:]

    def _convolve(self, read: Tensor) -> Tensor:
        # One two-dimensional convolution for each step of the kernel: on a CPU the backward pass
        # of the three-dimensional one takes 2 times (float32) to 11 times (bfloat16) as long.
        steps = read.shape[1] - 2
        total: Tensor | None = None
        for offset in range(3):
            frames = rearrange(read[:, offset : offset + steps], "b t r c width -> (b t) width r c")
            bias = self.bias.to(read.dtype) if offset == 2 else None
            kernel = self.weight[:, :, offset].to(read.dtype)
            part = F.conv2d(frames, kernel, bias, padding=1, groups=len(self.weight))
            total = part if total is None else total + part
        assert total is not None
        return rearrange(total, "(b t) width r c -> b t r c width", t=steps)


class CosineAttention(nn.Module):
    """Attention between queries and keys of unit length, each scaled by a learned vector.

    Queries are taken from the normalised stream, keys and values from the stream as it is.

    Source: OmniTokenizer (arXiv:2406.09399), section 3.1; unit queries and keys, Henry et al.
        2020 (arXiv:2010.04245), equation 3, here with the constant 8 instead of a learned factor.
    """

    def __init__(self, config: SpaceTimeConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        inner = config.num_heads * config.head_width
        self.norm = ScaleNorm(config.width)
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key_value = nn.Linear(config.width, 2 * inner, bias=False)
        self.output = nn.Linear(inner, config.width, bias=False)
        self.query_scale = nn.Parameter(torch.ones(config.head_width))
        self.key_scale = nn.Parameter(torch.ones(config.head_width))

    def project(
        self,
        tokens: Float[Tensor, "sequence token width"],
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (with the factor of the scores), keys and values, heads in front."""
        split = "s token (head width) -> s head token width"
        query = rearrange(self.query(self.norm(tokens)), split, head=self.heads)
        both = rearrange(self.key_value(tokens), split, head=2 * self.heads)
        key, value = both.chunk(2, dim=1)
        if rotary is not None:
            query, key = _turn(query, rotary), _turn(key, rotary)
        query = F.normalize(query, dim=-1) * (_SCORE_SCALE * self.query_scale).to(query.dtype)
        return query, F.normalize(key, dim=-1) * self.key_scale.to(key.dtype), value

    def merge(
        self, mixed: Float[Tensor, "sequence head token head_width"]
    ) -> Float[Tensor, "sequence token width"]:
        """Return the heads' results as one vector per token."""
        merged: Tensor = self.output(rearrange(mixed, "s head token width -> s token (head width)"))
        return merged


class FeedForward(nn.Module):
    """Gated feed-forward layer; the second half of the inner vector is the gate.

    Source: GEGLU, Shazeer 2020 (arXiv:2002.05202), equation 5.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * inner, bias=False)
        self.reduce = nn.Linear(inner, width, bias=False)

    def forward(self, volume: Float[Tensor, "*leading width"]) -> Float[Tensor, "*leading width"]:
        """Return what is added to the stream."""
        value, gate = self.expand(self.norm(volume)).chunk(2, dim=-1)
        reduced: Tensor = self.reduce(value * F.gelu(gate))
        return reduced


class RelativePositions(nn.Module):
    """Bias of the scores of a head as a learned function of the distance in rows and columns.

    Source: continuous position bias, Liu et al. 2022, Swin Transformer V2 (arXiv:2111.09883),
        section 3.3.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first = nn.Linear(2, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, heads)

    def forward(self, rows: int, columns: int) -> Float[Tensor, "head query key"]:
        """Return the bias between all tokens of a grid in raster order."""
        places = _grid_places(rows, columns).to(self.first.weight)
        distance = places[:, None] - places[None, :]
        distance = distance.sign() * distance.abs().log1p()
        hidden = F.leaky_relu(self.first(distance), 0.1)
        bias: Tensor = self.last(F.leaky_relu(self.second(hidden), 0.1))
        return rearrange(bias, "query key head -> head query key")


class FullBlock(nn.Module):
    """Convolution, attention among all tokens of a frame, feed-forward layer."""

    def __init__(self, config: SpaceTimeConfig) -> None:
        super().__init__()
        self.convolution = PositionConvolution(
            config.width, causal=config.causal_convolution, scrambled=False
        )
        self.attention = CosineAttention(config)
        self.feed_forward = FeedForward(config.width, config.feed_forward_width)
        self.rotary = config.spatial_positions == "rotary"
        self.relative = (
            RelativePositions(config.width, config.num_heads)
            if config.spatial_positions == "relative"
            else None
        )

    def forward(self, volume: Tensor, state: StreamState, index: int) -> Tensor:
        """Return the volume after the block."""
        _, t, r, c, width = volume.shape
        moved, state.convolutions[index] = self.convolution(volume, state.convolutions.get(index))
        volume = volume + moved
        tokens = rearrange(volume, "b t r c width -> (b t) (r c) width")
        rotary = _grid_rotary(r, c, self.attention.query_scale) if self.rotary else None
        query, key, value = self.attention.project(tokens, rotary)
        bias = None if self.relative is None else self.relative(r, c).to(query.dtype)
        mixed = _attend(query, key, value, bias)
        merged = self.attention.merge(mixed)
        volume = volume + merged.reshape(-1, t, r, c, width)
        fed: Tensor = volume + self.feed_forward(volume)
        return fed


class WindowBlock(nn.Module):
    """Attention inside square windows of a frame, without shift, and a feed-forward layer.

    A grid that does not divide into windows is padded, and nothing sees the padding.

    Source: Liu et al. 2021, Swin Transformer (arXiv:2103.14030), section 3.2 and equation 4.
    """

    def __init__(self, config: SpaceTimeConfig) -> None:
        super().__init__()
        self.window, self.heads = config.window, config.num_heads
        self.norm = ScaleNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=False)
        self.output = nn.Linear(config.width, config.width)
        self.bias_table = nn.Parameter(torch.zeros((2 * config.window - 1) ** 2, config.num_heads))
        self.feed_forward = FeedForward(config.width, config.feed_forward_width)

    def forward(self, volume: Tensor, state: StreamState, index: int) -> Tensor:
        """Return the volume after the block."""
        _, t, r, c, _ = volume.shape
        side = self.window
        frames = rearrange(self.norm(volume), "b t r c width -> (b t) r c width")
        below, right = -r % side, -c % side
        frames = F.pad(frames, (0, 0, 0, right, 0, below))
        rows = (r + below) // side
        windows = rearrange(frames, "f (y r) (x c) width -> (f y x) (r c) width", r=side, c=side)
        query, key, value = rearrange(
            self.query_key_value(windows),
            "s token (part head width) -> part s head token width",
            part=3,
            head=self.heads,
        )
        query = query * query.shape[-1] ** -0.5
        bias = self._bias().to(query.dtype)
        if below or right:
            inside = torch.zeros(r + below, c + right, dtype=torch.bool, device=volume.device)
            inside[:r, :c] = True
            seen = rearrange(inside, "(y r) (x c) -> (y x) (r c)", r=side, c=side)
            hidden = torch.zeros(seen.shape, dtype=bias.dtype, device=bias.device)
            hidden = hidden.masked_fill(~seen, -torch.inf)
            bias = bias[None] + hidden[:, None, None]
            bias = bias.repeat(len(windows) // len(seen), 1, 1, 1)
        mixed = _attend(query, key, value, bias)
        windows = self.output(rearrange(mixed, "s head token width -> s token (head width)"))
        frames = rearrange(
            windows,
            "(f y x) (r c) width -> f (y r) (x c) width",
            y=rows,
            r=side,
            c=side,
            x=(c + right) // side,
        )
        volume = volume + rearrange(frames[:, :r, :c], "(b t) r c width -> b t r c width", t=t)
        fed: Tensor = volume + self.feed_forward(volume)
        return fed

    def _bias(self) -> Float[Tensor, "head query key"]:
        places = _grid_places(self.window, self.window)
        distance = places[:, None] - places[None, :] + self.window - 1
        index = distance[..., 0] * (2 * self.window - 1) + distance[..., 1]
        bias = self.bias_table[index.to(self.bias_table.device)]
        return rearrange(bias, "query key head -> head query key")


class ReduceBlock(nn.Module):
    """Halve rows and columns, then a feed-forward layer.

    Args:
        config: Sizes.
        kind: `a` average, `m` maximum over 2 x 2 tokens, `l` a linear map of 4 tokens that follow
            each other in raster order.
    """

    def __init__(self, config: SpaceTimeConfig, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(4 * config.width, config.width) if kind == "l" else None
        self.feed_forward = FeedForward(config.width, config.feed_forward_width)

    def forward(self, volume: Tensor, state: StreamState, index: int) -> Tensor:
        """Return the reduced volume.

        Raises:
            ConfigError: If the number of rows or columns is odd.
        """
        _, t, r, c, _ = volume.shape
        if r % 2 or c % 2:
            raise ConfigError(
                f"a grid of {r} x {c} tokens cannot be halved; choose frames whose sides divide by "
                "the patch times 2 for each reducing block"
            )
        if self.linear is not None:
            strips = rearrange(volume, "b t r c width -> b t (r c) width")
            strips = rearrange(strips, "b t (strip four) width -> b t strip (four width)", four=4)
            reduced = rearrange(self.linear(strips), "b t (r c) width -> b t r c width", r=r // 2)
        else:
            pool = F.avg_pool2d if self.kind == "a" else F.max_pool2d
            frames = rearrange(volume, "b t r c width -> (b t) width r c")
            reduced = rearrange(pool(frames, 2), "(b t) width r c -> b t r c width", t=t)
        fed: Tensor = reduced + self.feed_forward(reduced)
        return fed


class TemporalBlock(nn.Module):
    """Convolution, attention along time at each place, feed-forward layer."""

    def __init__(self, config: SpaceTimeConfig) -> None:
        super().__init__()
        self.config = config
        self.convolution = PositionConvolution(
            config.width,
            causal=config.causal_convolution,
            scrambled=config.temporal_convolution == "scrambled",
        )
        self.attention = CosineAttention(config)
        self.feed_forward = FeedForward(config.width, config.feed_forward_width)

    def forward(self, volume: Tensor, state: StreamState, index: int) -> Tensor:
        """Return the volume after the block."""
        b, t, r, c, _ = volume.shape
        moved, state.convolutions[index] = self.convolution(volume, state.convolutions.get(index))
        volume = volume + moved
        tokens = rearrange(volume, "b t r c width -> (b r c) t width")
        query, key, value = self.attention.project(tokens)
        if index in state.keys_values:
            past = state.keys_values[index]
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        window = self.config.temporal_window
        kept = key.shape[2] if window is None else window - 1
        first = max(0, key.shape[2] - kept)
        state.keys_values[index] = (key[:, :, first:], value[:, :, first:])
        mixed = _attend(query, key, value, self._bias(t, key.shape[2], query))
        merged = rearrange(
            self.attention.merge(mixed), "(b r c) t width -> b t r c width", b=b, r=r, c=c
        )
        volume = volume + merged
        fed: Tensor = volume + self.feed_forward(volume)
        return fed

    def _bias(self, queries: int, keys: int, like: Tensor) -> Tensor | None:
        if not self.config.causal:
            return None
        window = self.config.temporal_window
        alibi = self.config.temporal_positions == "alibi"
        if queries == 1 and not alibi and (window is None or keys <= window):
            return None
        time = torch.arange(keys, device=like.device)
        distance = time[keys - queries :, None] - time[None, :]
        hidden = distance < 0
        if window is not None:
            hidden = hidden | (distance >= window)
        bias = torch.zeros(distance.shape, device=like.device).masked_fill(hidden, -torch.inf)
        if alibi:
            slopes = _alibi_slopes(self.config.num_heads).to(like.device)
            bias = bias - slopes[:, None, None] * distance.abs()
        return bias.to(like.dtype)


class SpaceTimeStack(nn.Module):
    """Blocks and a final normalisation, on a volume or on one piece of it after the other.

    Args:
        config: Sizes.
        kind: `spatial` takes the letters of the configuration, `temporal` its depth.
    """

    def __init__(self, config: SpaceTimeConfig, kind: Literal["spatial", "temporal"]) -> None:
        super().__init__()
        letters = config.spatial_blocks if kind == "spatial" else "T" * config.temporal_depth
        self.blocks = nn.ModuleList(_make_block(config, letter) for letter in letters)
        self.norm = ScaleNorm(config.width)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02, a=-0.04, b=0.04)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(
        self,
        volume: Float[Tensor, "batch time row column width"],
        state: StreamState | None = None,
    ) -> Float[Tensor, "batch time lower_row lower_column width"]:
        """Return the volume after all blocks.

        Args:
            volume: A whole clip, or the next piece of one.
            state: Of the pieces before, brought up to date; None for a whole clip.
        """
        state = StreamState() if state is None else state
        for index, block in enumerate(self.blocks):
            volume = block(volume, state, index)
        normalised: Tensor = self.norm(volume)
        return normalised


def _make_block(config: SpaceTimeConfig, letter: str) -> nn.Module:
    if letter == "t":
        return FullBlock(config)
    if letter == "w":
        return WindowBlock(config)
    if letter == "T":
        return TemporalBlock(config)
    return ReduceBlock(config, letter)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention; the queries carry the scale of the scores, `bias` is added to them."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # There the fused kernel does not use the bfloat16 units, see worldgen.nn.attention.
        scores = query @ key.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        return scores.softmax(dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)


def _grid_places(rows: int, columns: int) -> Int[Tensor, "token 2"]:
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack((row.flatten(), column.flatten()), dim=-1)


def _grid_rotary(rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines `[token, head_width / 2]`, pairs turned by column and row in turn.

    Source: rotary positions in two dimensions as in Fang et al. 2023, EVA-02 (arXiv:2303.11331),
        section 2.1; frequencies, Su et al. 2021 (arXiv:2104.09864), equation 15.
    """
    width = len(like)
    frequencies = 10000.0 ** (-4 * torch.arange(width // 4, dtype=torch.float64) / width)
    places = _grid_places(rows, columns).double()
    by_column = places[:, 1:] * frequencies
    by_row = places[:, :1] * frequencies
    angle = rearrange([by_column, by_row], "two token pair -> token (pair two)")
    return angle.cos().to(like.device, torch.float32), angle.sin().to(like.device, torch.float32)


def _turn(vectors: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel pairs (2 j, 2 j + 1) of each token."""
    cosine, sine = (part.to(vectors.dtype) for part in rotary)
    even, odd = vectors[..., 0::2], vectors[..., 1::2]
    turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1)
    return turned.flatten(-2)


def _alibi_slopes(heads: int) -> Float[Tensor, " head"]:
    """Return the slopes of Press et al. 2021 (arXiv:2108.12409), section 3, for any head count."""

    def powers(count: int) -> list[float]:
        start = 2.0 ** (-8.0 / count)
        return [start**power for power in range(1, count + 1)]

    lower = 1 << (heads.bit_length() - 1)
    slopes = powers(lower)
    if lower < heads:
        slopes += powers(2 * lower)[0::2][: heads - lower]
    return torch.tensor(slopes)
