"""A whole frame in a few rounds: all cells are drawn, the most certain ones stay."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.generation.sampling import SamplingConfig, draw
from worldgen.models.base import FrameDraft, WorldModel
from worldgen.schedule import cosine_round_sizes

__all__ = ["RefinementDecoder"]

_FINE = 2**20
"""The number of a cell is cut into so many parts: which part it is decides the id more or less
alone, where it lies in its part is as good as a second number."""


@dataclass(frozen=True, kw_only=True)
class RefinementDecoder:
    """Draws every open cell in each round and keeps those it is most certain of.

    The order of the cells is thus made while drawing, for each frame of a batch its own. A cell
    keeps its random number over the rounds, so an unlikely id waits and is not drawn again until
    it is a likely one; with one round the frame is that of `whole_frame`.

    Source: MaskGIT (arXiv:2202.04200), section 3.3: cosine schedule, confidence with temperature.

    Raises:
        ConfigError: If there is no round, or the temperature is negative.
    """

    rounds: int
    sampling: SamplingConfig
    confidence_temperature: float = 1.0
    """Of the Gumbel noise on the log probabilities that are compared; it falls to 0 over the
    rounds. 0 keeps the most probable, larger values choose more freely. Greedy sampling has none."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"refine needs at least 1 round, got {self.rounds}")
        if not 0.0 <= self.confidence_temperature < float("inf"):
            raise ConfigError(
                "the confidence temperature of refine must be 0 or more and finite, got "
                f"{self.confidence_temperature}"
            )

    @property
    def name(self) -> str:
        """`refine:rounds`, with the confidence temperature behind another colon if it is not 1."""
        rest = "" if self.confidence_temperature == 1.0 else f":{self.confidence_temperature}"
        return f"refine:{self.rounds}{rest}"

    @property
    def order(self) -> str:
        """Any: models for it are trained on random groups, whatever the number of rounds."""
        return "refine"

    def draw_frame(
        self,
        model: WorldModel,
        draft: FrameDraft,
        uniforms: Float[Tensor, "batch cell"],
    ) -> Int[Tensor, "batch cell"]:
        """Return the ids of the frame.

        Args:
            model: Made the draft; is asked once per round.
            draft: Of the frame to draw.
            uniforms: One number in [0, 1) per cell.
        """
        uniforms = uniforms.to(model.device)
        sizes = cosine_round_sizes(uniforms.shape[1], self.rounds)
        noise = self._noise(uniforms)
        ids = torch.zeros(uniforms.shape, dtype=torch.int64, device=uniforms.device)
        # The round in which a cell settles; open ones form the last group.
        groups = torch.full_like(ids, len(sizes))
        for number, size in enumerate(sizes):
            logits = model.score(draft, ids, groups)
            drawn = draw(logits, uniforms, self.sampling)
            log_probability = logits.double().log_softmax(dim=-1).gather(-1, drawn[..., None])
            confidence = log_probability[..., 0] + noise * (1 - (number + 1) / len(sizes))
            is_open = groups == len(sizes)
            confidence = confidence.masked_fill(~is_open, float("-inf"))
            # Stable, so that equal confidences settle in raster order on every machine.
            order = confidence.argsort(dim=-1, descending=True, stable=True)[:, :size]
            ids = torch.where(is_open, drawn, ids)
            groups = groups.scatter(1, order, number)
        return ids

    def _noise(self, uniforms: Float[Tensor, "batch cell"]) -> Float[Tensor, "batch cell"]:
        """Return Gumbel noise times the temperature."""
        if self.sampling.temperature == 0.0:
            return torch.zeros_like(uniforms)
        within = (uniforms * _FINE).frac().clamp(min=torch.finfo(uniforms.dtype).tiny)
        return -(-within.log()).log() * self.confidence_temperature
