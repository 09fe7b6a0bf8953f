"""Blocks over space and time against dense readings of what they mean."""

import math

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.nn.space_time import (
    FullBlock,
    SpaceTimeConfig,
    SpaceTimeStack,
    StreamState,
    TemporalBlock,
    WindowBlock,
)


def config(spatial_blocks: str = "w", **changes: object) -> SpaceTimeConfig:
    sizes: dict[str, object] = {
        "width": 12,
        "num_heads": 3,
        "head_width": 4,
        "feed_forward_width": 10,
        "spatial_blocks": spatial_blocks,
        "temporal_depth": 1,
        "window": 3,
    }
    return SpaceTimeConfig(**(sizes | changes))  # type: ignore[arg-type]


def stack(sizes: SpaceTimeConfig, kind: str = "spatial") -> SpaceTimeStack:
    made = SpaceTimeStack(sizes, kind)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made.requires_grad_(False)


def volume(time: int, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, time, rows, columns, 12, generator=generator)


@pytest.mark.parametrize(("rows", "columns"), [(6, 3), (4, 5), (1, 7), (2, 2)])
def test_windows_are_dense_attention_under_a_mask(rows: int, columns: int) -> None:
    made = stack(config())
    weights = made.state_dict()
    frames = volume(2, rows, columns)
    tokens = rearrange(frames, "b t r c width -> (b t) (r c) width")
    normed = F.layer_norm(tokens, (12,), weights["blocks.0.norm.weight"])
    query, key, value = (normed @ weights["blocks.0.query_key_value.weight"].T).chunk(3, dim=-1)
    split = "s n (head width) -> s head n width"
    query, key, value = (rearrange(part, split, head=3) for part in (query, key, value))
    scores = query @ key.transpose(-1, -2) / math.sqrt(4)
    for i in range(rows * columns):
        for j in range(rows * columns):
            (row, column), (other_row, other_column) = divmod(i, columns), divmod(j, columns)
            if (row // 3, column // 3) != (other_row // 3, other_column // 3):
                scores[:, :, i, j] = -torch.inf
                continue
            place = (row - other_row + 2) * 5 + (column - other_column + 2)
            scores[:, :, i, j] += weights["blocks.0.bias_table"][place]
    mixed = rearrange(scores.softmax(-1) @ value, "s head n width -> s n (head width)")
    attended = mixed @ weights["blocks.0.output.weight"].T + weights["blocks.0.output.bias"]
    summed = frames + rearrange(attended, "(b t) (r c) width -> b t r c width", t=2, r=rows)
    block = made.blocks[0]
    assert isinstance(block, WindowBlock)
    fed = block.feed_forward(summed)
    torch.testing.assert_close(made(frames), made.norm(summed + fed))


@pytest.mark.parametrize("positions", ["alibi", "none"])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_temporal_attention_is_dense_attention_under_a_mask(
    positions: str, window: int | None
) -> None:
    made = stack(config(temporal_positions=positions, temporal_window=window), "temporal")
    block, weights = made.blocks[0], made.state_dict()
    # Without the convolution the attention of each place stands alone.
    weights["blocks.0.convolution.weight"].zero_()
    weights["blocks.0.convolution.bias"].zero_()
    clip = volume(5, 2, 3)
    tokens = rearrange(clip, "b t r c width -> (b r c) t width")
    normed = F.layer_norm(tokens, (12,), weights["blocks.0.attention.norm.weight"])
    query = normed @ weights["blocks.0.attention.query.weight"].T
    key, value = (tokens @ weights["blocks.0.attention.key_value.weight"].T).chunk(2, dim=-1)
    split = "s n (head width) -> s head n width"
    query, key, value = (rearrange(part, split, head=3) for part in (query, key, value))
    query = F.normalize(query, dim=-1) * weights["blocks.0.attention.query_scale"]
    key = F.normalize(key, dim=-1) * weights["blocks.0.attention.key_scale"]
    scores = 8 * query @ key.transpose(-1, -2)
    # Of three heads two have the slopes of two, the third the first slope of four.
    slopes = torch.tensor([2.0**-4, 2.0**-8, 2.0**-2])
    for i in range(5):
        for j in range(5):
            if j > i or (window is not None and i - j >= window):
                scores[:, :, i, j] = -torch.inf
            elif positions == "alibi":
                scores[:, :, i, j] -= slopes * (i - j)
    mixed = rearrange(scores.softmax(-1) @ value, "s head n width -> s n (head width)")
    attended = mixed @ weights["blocks.0.attention.output.weight"].T
    summed = clip + rearrange(attended, "(b r c) t width -> b t r c width", r=2, c=3)
    assert isinstance(block, TemporalBlock)
    expected = made.norm(summed + block.feed_forward(summed))
    torch.testing.assert_close(made(clip), expected)

    state = StreamState()
    pieces = [made(piece, state) for piece in clip.split([2, 1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected)


def test_convolution_of_pieces_is_that_of_the_whole() -> None:
    made = stack(config("tt", spatial_positions="rotary"))
    clip = volume(6, 3, 4)
    whole = made(clip)
    state = StreamState()
    pieces = [made(piece, state) for piece in clip.split([1, 1, 3, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    weights = made.state_dict()
    kernel, bias = (weights[f"blocks.0.convolution.{part}"] for part in ("weight", "bias"))
    padded = F.pad(rearrange(clip, "b t r c width -> b width t r c"), (1, 1, 1, 1, 2, 0))
    convolved = F.conv3d(padded, kernel, bias, groups=12)
    block = made.blocks[0]
    assert isinstance(block, FullBlock)
    torch.testing.assert_close(
        block.convolution(clip)[0], rearrange(convolved, "b width t r c -> b t r c width")
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_blocks": "tx"}, r"unknown letters \['x'\]; t, w, a, m and l are known"),
        ({"width": 0}, "sizes must be at least 1"),
        ({"spatial_blocks": "w", "num_heads": 5}, "splits width 12 into 5 heads"),
        ({"head_width": 6, "spatial_positions": "rotary"}, "divisible by 4, got 6"),
        ({"temporal_window": 0}, "temporal_window must be at least 1"),
        ({"temporal_window": 2, "causal": False}, "needs causal attention"),
        ({"temporal_positions": "alibi", "causal": False}, "alibi is defined for causal"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)  # type: ignore[arg-type]


def test_grid_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ConfigError, match="grid of 3 x 4 tokens cannot be halved"):
        stack(config("a"))(volume(1, 3, 4))
