"""Raster order by guessing: a whole frame is guessed, one call checks the guess in every cell."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.generation.sampling import SamplingConfig, draw
from worldgen.generation.scheduled import ScheduleDecoder
from worldgen.models.base import FrameDraft, WorldModel
from worldgen.schedule import make_schedule

__all__ = ["JacobiDecoder", "settle"]


def settle(
    model: WorldModel,
    draft: FrameDraft,
    guess: Int[Tensor, "batch cell"],
    uniforms: Float[Tensor, "batch cell"],
    sampling: SamplingConfig,
    *,
    window: int | None = None,
    kind_of_code: Int[Tensor, " codebook"] | None = None,
) -> Int[Tensor, "batch cell"]:
    """Return the ids that raster order draws, by checking and mending a guess of them.

    Each cell has its own random number, so at any temperature raster order is a chain of functions:
    the id of a cell follows from those before it. A call of `WorldModel.score` evaluates all of them
    on the guess. Up to and with the first cell whose id comes out different, what came out is
    raster's; it settles, the rest is the next guess. At least one cell settles with each call.

    Raster order asks in other pieces, so its logits differ in the last digits. Where that could
    decide for another id, which is rare in float32, raster order has the word. In 16 bits it would
    have it always, and so is not asked: ids are then raster's up to rounding.

    Source: Jacobi decoding as in SJD (arXiv:2410.01699). There a rejected cell is drawn with fresh
        random numbers and the distribution is kept; here the numbers stay, and so do the ids.

    Args:
        model: Made the draft.
        draft: Of the frame to draw; used up.
        guess: Any ids of the codebook.
        uniforms: One number in [0, 1) per cell.
        sampling: How ids are drawn.
        window: At most so many cells settle with a call, and those behind keep their guess; None
            for all.
        kind_of_code: If given, a different id that is of the same kind is no reason to ask again;
            the result is then near raster's and not equal to it.
    """
    guess, uniforms = guess.to(model.device), uniforms.to(model.device)
    batch, cells = guess.shape
    place = torch.arange(cells, device=guess.device)
    reach = cells if window is None else window
    settled = torch.zeros(batch, 1, dtype=torch.int64, device=guess.device)
    while bool((settled < cells).any()):
        logits = model.score(draft, guess, place.expand(batch, -1))
        drawn = draw(logits, uniforms, sampling)
        fresh = (place >= settled) & (place < settled + reach)
        drawn = torch.where(fresh, drawn, guess)
        wrong = drawn != guess
        if kind_of_code is not None:
            wrong = kind_of_code[drawn] != kind_of_code[guess]
        first_wrong = torch.where(wrong, place, cells).amin(dim=1, keepdim=True)
        settled = torch.minimum(first_wrong + 1, settled + reach)
        guess = drawn
    if kind_of_code is None and _may_be_rounding(logits, guess, uniforms, sampling):
        raster = make_schedule("raster", model.layout.rows, model.layout.columns)
        decoder = ScheduleDecoder(schedule=raster, sampling=sampling)
        return decoder.draw_frame(model, draft, uniforms)
    return guess


def _may_be_rounding(
    logits: Float[Tensor, "batch cell codebook"],
    ids: Int[Tensor, "batch cell"],
    uniforms: Float[Tensor, "batch cell"],
    sampling: SamplingConfig,
) -> bool:
    """Whether logits that differ by errors of rounding could give another id in some cell.

    Errors do most where all codes before an id gain and all from it on lose, or the reverse; so it
    is enough to draw again under these two. As errors, three times the precision of the largest
    logit: in the shipped worlds that covers 99.9 % of the ids that rounding changes.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        return False
    error = 3 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=-1, keepdim=True).double()
    code = torch.arange(logits.shape[-1], device=ids.device)
    below = torch.where(code < ids[..., None], error, -error)
    above = torch.where(code > ids[..., None], error, -error)
    return any(
        bool((draw(logits + tilt, uniforms, sampling) != ids).any()) for tilt in (below, above)
    )


@dataclass(frozen=True, kw_only=True)
class JacobiDecoder:
    """Raster's ids in fewer calls: the guess is the frame before, mended until nothing changes.

    Raises:
        ConfigError: If the window is below 1.
    """

    sampling: SamplingConfig
    window: int | None = None
    """At most so many cells settle with a call; None for all."""

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ConfigError(f"the window of jacobi must be at least 1 cell, got {self.window}")

    @property
    def name(self) -> str:
        """`jacobi`, with the window behind a colon."""
        return "jacobi" if self.window is None else f"jacobi:{self.window}"

    @property
    def order(self) -> str:
        """That of the ids."""
        return "raster"

    def draw_frame(
        self,
        model: WorldModel,
        draft: FrameDraft,
        uniforms: Float[Tensor, "batch cell"],
    ) -> Int[Tensor, "batch cell"]:
        """Return the ids of the frame; see `settle`."""
        return settle(model, draft, draft.previous_ids, uniforms, self.sampling, window=self.window)
