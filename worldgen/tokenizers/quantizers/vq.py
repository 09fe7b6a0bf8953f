"""Vector quantization: a codebook of running cluster means, with dead codes placed anew."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers.base import Quantizer, QuantizerOutput

__all__ = ["VQConfig", "VectorQuantizer"]

# Squared distance, as a share of the spread of the vectors, under which two codes are one: the
# choice between them would be a matter of rounding.
_SAME_PLACE = 1e-4


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Codebook of a vector quantizer and how it follows the vectors."""

    kind: Literal["vq"] = "vq"
    codebook_size: int
    width: int
    """Channels of a code."""
    commitment_weight: float = 0.25
    """Pull of the encoder's vectors towards their codes."""
    decay: float = 0.99
    """Share of the running means that stays at each training step."""
    revival_threshold: float = 0.01
    """A code used less often than this, as a running mean of uses per step, is placed anew."""
    revival_period: int = 20
    """Training steps between two searches for dead codes."""
    seed: int = 0
    """Seed of the first codebook and of the places of revived codes."""

    def __post_init__(self) -> None:
        if self.codebook_size < 2 or self.width < 1 or self.revival_period < 1:
            raise ConfigError(
                "vq needs codebook_size >= 2, width >= 1 and revival_period >= 1, got "
                f"{self.codebook_size}, {self.width} and {self.revival_period}"
            )
        if not 0 < self.decay < 1:
            raise ConfigError(f"vq decay must lie between 0 and 1, got {self.decay}")


class VectorQuantizer(Quantizer):
    """Takes the nearest code; codes are exponential moving averages of what was mapped to them.

    A code that nothing is mapped to any more moves onto a vector of the batch, drawn with a
    probability proportional to the squared distance from the nearest code, one after the other:
    badly served, rare content gets codes first. Codes that have come to lie in one place are
    merged. A code that is dead when training ends is never chosen. Draws are a function of the seed and the number of training steps seen, so
    a resumed training repeats them.

    Source: van den Oord et al. 2017, Neural Discrete Representation Learning (arXiv:1711.00937),
        section 3 and appendix A.1 (moving averages); Dhariwal et al. 2020, Jukebox
        (arXiv:2005.00341), section 3.1 (random restarts); Arthur and Vassilvitskii 2007,
        k-means++ (drawing by squared distance).
    """

    codebook: Tensor
    code_sums: Tensor
    code_uses: Tensor
    steps_seen: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.codebook_size = config.codebook_size
        generator = torch.Generator().manual_seed(config.seed)
        codebook = torch.randn(config.codebook_size, config.width, generator=generator)
        self.register_buffer("codebook", codebook)
        # On the verge of being dead: chosen as they are, replaced at the first chance.
        uses = config.revival_threshold
        self.register_buffer("code_sums", codebook * uses)
        self.register_buffer("code_uses", torch.full((config.codebook_size,), uses))
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, vectors: Float[Tensor, "batch width row column"]) -> QuantizerOutput:
        """Return nearest codes and the commitment loss; in training mode also move the codebook."""
        rows, columns = vectors.shape[-2:]
        # Distances in bfloat16 would choose wrong codes, so mixed precision ends here.
        with torch.autocast(vectors.device.type, enabled=False):
            flat = rearrange(vectors.float(), "b width r c -> (b r c) width")
            ids = self._nearest(flat.detach())
            if self.training:
                self._follow(flat.detach(), ids)
            codes = F.embedding(ids, self.codebook)
            loss = self.config.commitment_weight * F.mse_loss(flat, codes)
        # The value of the code, exactly, with the gradient of the encoder's vector.
        quantized = codes + (flat - flat.detach())
        return QuantizerOutput(
            quantized=rearrange(quantized, "(b r c) width -> b width r c", r=rows, c=columns),
            ids=rearrange(ids, "(b r c) -> b r c", r=rows, c=columns),
            loss=loss,
        )

    def ids_to_vectors(
        self, ids: Int[Tensor, "batch row column"]
    ) -> Float[Tensor, "batch width row column"]:
        """Return the codes of ids."""
        return rearrange(F.embedding(ids, self.codebook), "b r c width -> b width r c")

    def vectors_to_ids(
        self, codes: Float[Tensor, "batch width row column"]
    ) -> Int[Tensor, "batch row column"]:
        """Return the ids of the codes nearest to the given vectors."""
        rows, columns = codes.shape[-2:]
        ids = self._nearest(rearrange(codes.float(), "b width r c -> (b r c) width"))
        return rearrange(ids, "(b r c) -> b r c", r=rows, c=columns)

    def _nearest(self, flat: Tensor) -> Tensor:
        # |x - c|^2 without |x|^2, which is the same for every code.
        # Dead codes lie where a vector was once; none may be nearest by accident.
        offsets = self.codebook.square().sum(-1).masked_fill(self._dead, torch.inf)
        return torch.addmm(offsets, flat, self.codebook.T, alpha=-2.0).argmin(-1)

    @property
    def _dead(self) -> Tensor:
        return self.code_uses < self.config.revival_threshold

    @torch.no_grad()
    def _follow(self, flat: Tensor, ids: Tensor) -> None:
        decay = self.config.decay
        uses = torch.bincount(ids, minlength=self.codebook_size).float()
        sums = torch.zeros_like(self.code_sums).index_add_(0, ids, flat)
        self.code_uses.mul_(decay).add_(uses, alpha=1 - decay)
        self.code_sums.mul_(decay).add_(sums, alpha=1 - decay)
        means = self.code_sums / self.code_uses.unsqueeze(-1)
        self.codebook.copy_(torch.where(self._dead.unsqueeze(-1), self.codebook, means))
        if int(self.steps_seen) % self.config.revival_period == 0:
            spread = (flat - flat.mean(0)).square().sum(-1).mean()
            self._merge(_SAME_PLACE * spread)
            self._revive(flat, _SAME_PLACE * spread)
        self.steps_seen.add_(1)

    def _merge(self, near: Tensor) -> None:
        alive = (~self._dead).nonzero().flatten()
        # The most used code of a place stays and takes over what the others stood for.
        alive = alive[self.code_uses[alive].argsort(descending=True, stable=True)]
        distances = _squared_distances(self.codebook[alive], self.codebook[alive])
        # The first code in this order that lies in the same place; itself at the latest.
        owner = alive[(distances <= near).long().argmax(dim=1)]
        uses, sums = self.code_uses[alive], self.code_sums[alive]
        self.code_uses[alive] = 0.0
        self.code_sums[alive] = 0.0
        self.code_uses.index_add_(0, owner, uses)
        self.code_sums.index_add_(0, owner, sums)

    def _revive(self, flat: Tensor, near: Tensor) -> None:
        generator = torch.Generator().manual_seed(self.config.seed + 1 + int(self.steps_seen))
        distances = _squared_distances(flat, self.codebook[~self._dead]).amin(1)
        # As if the code had been used often enough to live through the next few searches.
        uses = 10 * self.config.revival_threshold
        for code in self._dead.nonzero().flatten():
            distances = distances.where(distances > near, 0.0)
            if not bool(distances.any()):
                break
            chosen = torch.multinomial(distances.cpu(), 1, generator=generator).to(flat.device)
            self.codebook[code] = flat[chosen[0]]
            self.code_uses[code] = uses
            self.code_sums[code] = flat[chosen[0]] * uses
            distances = torch.minimum(distances, (flat - flat[chosen]).square().sum(-1))


def _squared_distances(
    vectors: Float[Tensor, "vector width"], others: Float[Tensor, "other width"]
) -> Float[Tensor, "vector other"]:
    # Not by way of the matrix product, whose rounding is as large as the distances sought here.
    return torch.cdist(vectors, others, compute_mode="donot_use_mm_for_euclid_dist").square()
