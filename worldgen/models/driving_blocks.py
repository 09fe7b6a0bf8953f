"""Parts of the driving transformer: its block, how it reads tokens, and what carries what."""

import functools
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from worldgen.nn.rotary import RotaryTable, apply_rotary

__all__ = ["DrivingBlock", "MotionEmbedding", "carriers", "cell_distances", "readout"]

See = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Who sees whom: gets queries, keys and values, returns what each query reads."""

_HIGHEST_FREQUENCY = 100.0


class DrivingBlock(nn.Module):
    """Pre-normalised attention and a feed-forward layer with GELU, each added to the stream.

    Queries and keys are normalised over the full width, before they are split into heads. Linear
    maps add nothing, the feed-forward layer is four times as wide as the stream.

    Source: the released code of DrivingWorld (arXiv:2412.19505).
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = nn.LayerNorm(width)
        self.key_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(
        self,
        hidden: Float[Tensor, "batch token width"],
        rotary: RotaryTable | None,
        see: See,
    ) -> Float[Tensor, "batch token width"]:
        """Return the stream after this block.

        Args:
            hidden: Stream of tokens.
            rotary: Cosines and sines of the tokens' positions; None turns nothing.
            see: Decides which keys each query sees; `[batch, head, token, head_width]` in and out.
        """
        query, key, value = self.query_key_value(self.attention_norm(hidden)).chunk(3, dim=-1)
        # Under autocast norms give float32; attention wants one type.
        query, key = self.query_norm(query).to(value), self.key_norm(key).to(value)
        query, key, value = (
            rearrange(part, "b token (head width) -> b head token width", head=self.num_heads)
            for part in (query, key, value)
        )
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        mixed = rearrange(see(query, key, value), "b head token width -> b token (head width)")
        hidden = hidden + self.output(mixed)
        fed: Tensor = self.down(nn.functional.gelu(self.up(self.feed_forward_norm(hidden))))
        return hidden + fed


class MotionEmbedding(nn.Module):
    """Embeds a quantised number by sines and cosines of its place among the options.

    Options that are near each other begin alike, which a table would have to learn. The place
    `v` in `[0, 1)` gives `sin(v f)` and `cos(v f)` for frequencies `f` from 1 to 100.

    Source: the released code of DrivingWorld (arXiv:2412.19505); Fourier features,
        arXiv:2006.10739, section 4.

    Args:
        options: How many values the number can have.
        features: Even number of sines and cosines.
        width: Of the stream.
    """

    def __init__(self, options: int, features: int, width: int) -> None:
        super().__init__()
        self.options = options
        self.features = features
        self.projector = nn.Sequential(
            nn.Linear(features, features, bias=False),
            nn.GELU(),
            nn.Linear(features, width, bias=False),
            nn.LayerNorm(width),
        )

    def forward(self, option: Int[Tensor, "*leading"]) -> Float[Tensor, "*leading width"]:
        """Return the embedded options, given in `[0, options)`."""
        half = self.features // 2
        powers = torch.arange(half, device=option.device, dtype=torch.float32) / half
        angles = (option / self.options)[..., None] * _HIGHEST_FREQUENCY**powers
        features = torch.cat((angles.sin(), angles.cos()), dim=-1)
        embedded: Tensor = self.projector(features.to(next(self.parameters()).dtype))
        return embedded


def readout(width: int, hidden_width: int, options: int) -> nn.Sequential:
    """Return the layers from the stream to the logits of some options."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, hidden_width, bias=False),
        nn.GELU(),
        nn.Linear(hidden_width, options, bias=False),
    )


@functools.lru_cache(maxsize=16)
def cell_distances(rows: int, columns: int, device: torch.device) -> Int[Tensor, "cell cell"]:
    """Return for each pair of cells a number that orders them by nearness.

    It is twice the steps between them along rows and columns, and one more if their rows differ.
    """
    cells = torch.arange(rows * columns, device=device)
    row, column = cells // columns, cells % columns
    down, across = (place[:, None] - place[None] for place in (row, column))
    return 2 * (down.abs() + across.abs()) + (down != 0).long()


def carriers(
    distance: Int[Tensor, "*batch now before"],
    drawn_before: Bool[Tensor, "*batch now before"] | None = None,
) -> Bool[Tensor, "*batch now before"]:
    """Return which cells of a group carry which of the group drawn just before it.

    Every cell of a group takes its nearest one of the group before, and each of those that nobody
    has taken goes to the nearest cell of the group. So each is carried at least once, and in
    raster order every cell carries the one before it.

    Args:
        distance: As of `cell_distances`, for the cells of the two groups. Among equals the first
            in this order is taken.
        drawn_before: Where all groups of a frame are treated at once, with all cells on both axes:
            whether the second cell's group is the one just before that of the first.
    """
    now, before = distance.shape[-2:]
    allowed = torch.ones_like(distance, dtype=torch.bool) if drawn_before is None else drawn_before
    far = torch.iinfo(distance.dtype).max

    def nearest(dim: int, length: int) -> Tensor:
        """Return a mask of the nearest along an axis; nothing where nothing is allowed."""
        place = torch.arange(length, device=distance.device)
        place = place if dim == -1 else place[:, None]
        order = (distance * length + place).expand(allowed.shape).masked_fill(~allowed, far)
        return (order == order.amin(dim=dim, keepdim=True)) & allowed

    taken = nearest(-1, before)
    left = ~taken.any(dim=-2, keepdim=True)
    return taken | (nearest(-2, now) & left)
