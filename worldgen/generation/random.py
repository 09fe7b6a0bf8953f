"""Random numbers as a function of (seed, frame, cell): no state, so sessions fork and replay."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["frame_uniforms"]


def frame_uniforms(
    seeds: Sequence[int], frames: Sequence[int], num_cells: int, *, stream: int = 0
) -> Float[Tensor, "batch cell"]:
    """Return one number in [0, 1), float64, for each cell of one frame of each sequence.

    The numbers of a sequence depend on its own seed and frame alone, never on the batch, on the
    order of the calls or on what was drawn before.

    Source: Philox 4x64, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

    Args:
        seeds: One non-negative seed below 2**64 per sequence.
        frames: For each sequence the index of the frame to draw.
        num_cells: Cells of a frame.
        stream: 0 for the cells of frames; other numbers give what is drawn beside them.
    """
    rows = [
        # The second word of the counter is the frame; drawing advances the first one only.
        np.random.Generator(np.random.Philox(key=seed, counter=[0, frame, stream, 0])).random(
            num_cells
        )
        for seed, frame in zip(seeds, frames, strict=True)
    ]
    return torch.from_numpy(np.stack(rows))
