"""What every visual tokenizer does: frames to a grid of ids and back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["TokenizerOutput", "VisualTokenizer"]


@dataclass(frozen=True, kw_only=True)
class TokenizerOutput:
    """Result of one training pass."""

    reconstruction: Float[Tensor, "batch time 3 height width"]
    """Not clamped, so that gradients reach values outside [-1, 1]."""
    ids: Int[Tensor, "batch latent row column"]
    quantizer_loss: Float[Tensor, ""]


class VisualTokenizer(nn.Module, ABC):
    """Frames to visual tokens and back.

    Frames are float in [-1, 1], channels first; `worldgen.records.to_float` makes them from
    uint8. `frames_per_latent` frames share one grid of ids.
    """

    config: Any
    """The frozen dataclass that built it; `save_visual_tokenizer` writes it beside the weights."""
    frame_height: int
    frame_width: int
    rows: int
    """Height of the grid of ids."""
    columns: int
    """Width of the grid of ids."""
    codebook_size: int
    frames_per_latent: int

    @property
    def device(self) -> torch.device:
        """Where the weights are; `encode` and `decode` move what they are given there."""
        return next(self.parameters()).device

    @abstractmethod
    def forward(self, frames: Float[Tensor, "batch time 3 height width"]) -> TokenizerOutput:
        """Return reconstruction, ids and quantizer loss, with gradients."""

    @abstractmethod
    def encode(
        self, frames: Float[Tensor, "batch time 3 height width"]
    ) -> Int[Tensor, "batch latent row column"]:
        """Return int64 ids in [0, codebook_size) of frames in [-1, 1]."""

    @abstractmethod
    def decode(
        self, ids: Int[Tensor, "batch latent row column"]
    ) -> Float[Tensor, "batch time 3 height width"]:
        """Return float32 frames in [-1, 1] of ids in [0, codebook_size)."""
