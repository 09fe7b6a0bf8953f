"""Frames near and far: which of them a frame sees, and those far behind it as few tokens."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["FarPooling", "FarTokens", "VisibleFrames", "visible_frames"]


class FarTokens(NamedTuple):
    """Keys and values of frames that are kept as few tokens, as many of each."""

    keys: Float[Tensor, "batch head token width"]
    values: Float[Tensor, "batch head token width"]


class VisibleFrames(NamedTuple):
    """Numbers of the frames that a frame sees in a layer; no frame is in two of them.

    Their tokens stand in this order.
    """

    kept: range
    """The first of the sequence, whole."""
    far: range
    """As few tokens."""
    near: range
    """Whole, up to the frame itself."""

    def ages(self, sink: int, tokens: int, far_tokens: int) -> Int[Tensor, " token"]:
        """Return how many frames each token lies back; 0 for those of the sink.

        Frames are counted in the sequence: where steps are told times of their own, those tell
        nothing here.

        Args:
            sink: Frames at the beginning that never age.
            tokens: Of a frame.
            far_tokens: Of a frame that is far.
        """
        now = self.near.stop - 1
        whole = [0 if frame < sink else now - frame for frame in (*self.kept, *self.near)]
        far = torch.tensor([now - frame for frame in self.far], dtype=torch.int64)
        ages = torch.tensor(whole, dtype=torch.int64).repeat_interleave(tokens)
        behind = len(self.kept) * tokens
        return torch.cat((ages[:behind], far.repeat_interleave(far_tokens), ages[behind:]))


def visible_frames(frame: int, window: int, sink: int, far_frames: int) -> VisibleFrames:
    """Return what frame number `frame` sees.

    Args:
        frame: From 0 at the beginning of the sequence.
        window: Frames seen whole, the own one included.
        sink: Frames at the beginning that are seen whole for ever.
        far_frames: Frames behind the window that are seen as few tokens; those of the sink are not.
    """
    first = max(0, frame + 1 - window)
    kept = min(sink, first)
    return VisibleFrames(
        range(kept), range(max(kept, first - far_frames), first), range(first, frame + 1)
    )


class FarPooling(nn.Module):
    """Patches of a frame as one token each, by a learned linear map that begins as their mean.

    Source: FAR (arXiv:2503.19325), long short-term context by asymmetric patchify kernels. There
        a far frame is cut into larger patches before the first layer, and passes all of them; here
        the stream is, in front of the layers that see far frames, so that a frame is read once.

    Args:
        width: Channels of the stream.
        grid: Rows and columns of a frame.
        patch: Rows and columns of the cells that become one token; they divide those of the grid.
    """

    def __init__(self, width: int, grid: tuple[int, int], patch: tuple[int, int]) -> None:
        super().__init__()
        self.grid, self.patch = grid, patch
        places = patch[0] * patch[1]
        self.weight = nn.Parameter(torch.eye(width).repeat(places, 1) / places)

    @property
    def middle_cells(self) -> Int[Tensor, " patch"]:
        """The cell in the middle of each patch (of four, the upper left): where its token stands."""
        (rows, columns), (high, wide) = self.grid, self.patch
        cells = torch.arange(rows * columns).reshape(rows, columns)
        return cells[(high - 1) // 2 :: high, (wide - 1) // 2 :: wide].flatten()

    def forward(
        self, cells: Float[Tensor, "*leading cell width"]
    ) -> Float[Tensor, "*leading patch width"]:
        """Return a token for each patch, row by row.

        Args:
            cells: Stream of the visual tokens of frames.
        """
        patches = rearrange(
            cells,
            "... (row high column wide) width -> ... (row column) (high wide width)",
            row=self.grid[0] // self.patch[0],
            high=self.patch[0],
            wide=self.patch[1],
        )
        return patches @ self.weight
