"""Stand-in for a tokenizer that is not at hand: paints each id as a square of its own colour."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.tokenizers.visual.base import Perturbation, TokenizerOutput, VisualTokenizer

__all__ = ["FalseColourTokenizer", "FalseColourTokenizerConfig"]

# Root of x^4 = x + 1: in three dimensions, what the golden ratio is in one.
_RATIO = 1.2207440846057596


@dataclass(frozen=True, kw_only=True)
class FalseColourTokenizerConfig:
    """The grid of ids of a tokenizer whose networks are somewhere else.

    Attributes:
        kind: Of the family.
        rows: Height of the grid.
        columns: Width of the grid.
        codebook_size: Number of different ids.
        cell: Side of the square painted for each id, in pixels.
    """

    kind: Literal["false_colour"] = "false_colour"
    rows: int
    columns: int
    codebook_size: int
    cell: int = 8

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "codebook_size", "cell"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")


class FalseColourTokenizer(VisualTokenizer):
    """Decodes ids of single frames to squares of fixed colours, and cannot encode.

    Recordings that come as ids alone are trained on with it: it knows the sizes that a world model
    needs, and what it paints shows where a picture moves and where it stands still. A file of the
    tokenizer that made the ids decodes them to what was seen, in its place.

    The colours of ids 0, 1, 2, ... are an additive recurrence through the RGB cube, id times
    (1/g, 1/g^2, 1/g^3) modulo 1, which stays evenly spread however many ids there are.

    Source: the sequence is R3 of Roberts 2018, The Unreasonable Effectiveness of Quasirandom
        Sequences.
    """

    config: FalseColourTokenizerConfig
    colours: Tensor

    def __init__(self, config: FalseColourTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.rows, self.columns = config.rows, config.columns
        self.frame_height, self.frame_width = (
            config.rows * config.cell,
            config.columns * config.cell,
        )
        self.codebook_size = config.codebook_size
        self.frames_per_latent = 1
        steps = _RATIO ** -torch.arange(1.0, 4.0, dtype=torch.float64)
        ids = torch.arange(config.codebook_size, dtype=torch.float64)
        colours = (0.5 + ids[:, None] * steps) % 1.0
        self.register_buffer("colours", (2.0 * colours - 1.0).float())

    @property
    def device(self) -> torch.device:
        """Where the colours are."""
        return self.colours.device

    def forward(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        perturb: Perturbation | None = None,
    ) -> TokenizerOutput:
        """Raise ConfigError: there is nothing to train."""
        del perturb
        return TokenizerOutput(
            reconstruction=frames,
            ids=self.encode(frames),
            quantizer_loss=torch.zeros((), device=self.device),
        )

    def encode(
        self, frames: Float[Tensor, "batch time 3 height width"]
    ) -> Int[Tensor, "batch time row column"]:
        """Raise ConfigError: only the tokenizer that made the ids can make more of them."""
        del frames
        raise ConfigError(
            f"a false-colour tokenizer paints ids and cannot encode frames; these ids, "
            f"{self.rows} x {self.columns} of {self.codebook_size}, were made by a tokenizer that "
            "is not here. Import that one and give its file instead"
        )

    @torch.no_grad()
    def decode(
        self, ids: Int[Tensor, "batch time row column"]
    ) -> Float[Tensor, "batch time 3 height width"]:
        """Return float32 frames in [-1, 1], a square of `cell` pixels for each id.

        Raises:
            ConfigError: If the ids have another shape or type, or lie outside the codebook.
        """
        self.check_ids(ids)
        colours = self.colours[ids.to(self.device)].float()
        size = self.config.cell
        return repeat(colours, "b t r c rgb -> b t rgb (r h) (c w)", h=size, w=size)
