"""Vector quantization: a codebook of running cluster means, with dead codes placed anew."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers.base import QuantizerOutput
from worldgen.tokenizers.quantizers.codebook import CodebookQuantizer, Normalise
from worldgen.tokenizers.quantizers.lookup import nearest_codes, nearest_neighbours

__all__ = ["VQConfig", "VectorQuantizer"]

# Squared distance, as a share of the spread of the vectors, under which two codes are one: the
# choice between them would be a matter of rounding.
_SAME_PLACE = 1e-4

# Codes placed anew in one search, one after the other; the others wait for the next search.
_MOST_REVIVED = 1024

# Nearest codes among which those in the same place are sought.
_TWINS_SOUGHT = 4


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Codebook of a vector quantizer and how it follows the vectors.

    `normalise="vectors", smoothing=1e-7, revival_threshold=0` is the quantizer of OmniTokenizer.
    """

    kind: Literal["vq"] = "vq"
    codebook_size: int
    width: int
    """Channels of a code."""
    normalise: Normalise = "none"
    """What is scaled to length 1: nothing, the encoder's vectors, or codes too (`both`)."""
    commitment_weight: float = 0.25
    """Pull of the encoder's vectors towards their codes."""
    decay: float = 0.99
    """Share of the running means that stays at each training step."""
    smoothing: float = 0.0
    """Uses that every code is given in thought when means are taken (Laplace smoothing)."""
    revival_threshold: float = 0.01
    """A code used less often than this, as a running mean of uses per step, is placed anew; with 0
    none ever is, and all codes start from vectors of the first batch."""
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
        if min(self.smoothing, self.revival_threshold, self.commitment_weight) < 0:
            raise ConfigError(
                "vq smoothing, revival_threshold and commitment_weight must not be negative, got "
                f"{self.smoothing}, {self.revival_threshold} and {self.commitment_weight}"
            )
        if self.smoothing == 0 and self.revival_threshold == 0:
            raise ConfigError(
                "vq needs a smoothing or a revival_threshold above 0: without both, the mean of a "
                "code that falls out of use is 0 / 0"
            )


class VectorQuantizer(CodebookQuantizer):
    """Takes the nearest code; codes are exponential moving averages of what was mapped to them.

    A code that nothing is mapped to any more moves onto a vector of the batch, drawn with a
    probability proportional to the squared distance from the nearest code, one after the other:
    badly served, rare content gets codes first. Codes that have come to lie in one place are
    merged. A code that is dead when training ends is never chosen. Draws are a function of the
    seed and the number of training steps seen, so a resumed training repeats them.

    Codes and loss of a step are those of the codebook before the step moves it.

    Source: van den Oord et al. 2017, Neural Discrete Representation Learning (arXiv:1711.00937),
        section 3 and appendix A.1 (moving averages); Dhariwal et al. 2020, Jukebox
        (arXiv:2005.00341), section 3.1 (random restarts); Arthur and Vassilvitskii 2007,
        k-means++ (drawing by squared distance); Yu et al. 2021, Vector-quantized Image Modeling
        with Improved VQGAN (arXiv:2110.04627), section 3.2 (vectors and codes of length 1); Wang
        et al. 2024, OmniTokenizer (arXiv:2406.09399) (vectors of length 1 alone).
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
        self.normalise = config.normalise
        generator = torch.Generator().manual_seed(config.seed)
        codebook = torch.randn(config.codebook_size, config.width, generator=generator)
        if config.normalise != "none":
            codebook = F.normalize(codebook, dim=-1)
        self.register_buffer("codebook", codebook)
        # On the verge of being dead: chosen as they are, replaced at the first chance.
        uses = config.revival_threshold or 1.0
        self.register_buffer("code_sums", codebook * uses)
        self.register_buffer("code_uses", torch.full((config.codebook_size,), uses))
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, vectors: Float[Tensor, "batch width row column"]) -> QuantizerOutput:
        """Return nearest codes and the commitment loss; in training mode also move the codebook."""
        # Distances in bfloat16 would choose wrong codes, so mixed precision ends here.
        with torch.autocast(vectors.device.type, enabled=False):
            flat = self._flat(vectors)
            if self.training and not self.config.revival_threshold and not int(self.steps_seen):
                self._start_from(flat.detach())
            ids = self._nearest(flat)
            codes = F.embedding(ids, self.codebook)
            loss = self.config.commitment_weight * F.mse_loss(flat, codes)
            if self.training:
                self._follow(flat.detach(), ids)
        return self._output(vectors, flat, codes, ids, loss)

    def codes(self) -> Float[Tensor, "code width"]:
        """Return the codebook."""
        return self.codebook

    def choosable(self) -> Bool[Tensor, " code"] | None:
        """Return which codes are alive."""
        # Dead codes lie where a vector was once; none may be nearest by accident.
        return ~self._dead if self.config.revival_threshold else None

    @property
    def _dead(self) -> Tensor:
        return self.code_uses < self.config.revival_threshold

    @torch.no_grad()
    def _start_from(self, flat: Tensor) -> None:
        generator = torch.Generator().manual_seed(self.config.seed + 1)
        # Each vector once before any is taken twice.
        repeats = -(-self.codebook_size // len(flat))
        order = torch.cat([torch.randperm(len(flat), generator=generator) for _ in range(repeats)])
        self.codebook.copy_(flat[order[: self.codebook_size].to(flat.device)])
        self.code_sums.copy_(self.codebook)

    @torch.no_grad()
    def _follow(self, flat: Tensor, ids: Tensor) -> None:
        decay = self.config.decay
        uses = torch.bincount(ids, minlength=self.codebook_size).float()
        sums = torch.zeros_like(self.code_sums).index_add_(0, ids, flat)
        self.code_uses.mul_(decay).add_(uses, alpha=1 - decay)
        self.code_sums.mul_(decay).add_(sums, alpha=1 - decay)
        means = self.code_sums / self._smoothed_uses().unsqueeze(-1)
        if self.normalise == "both":
            means = F.normalize(means, dim=-1)
        self.codebook.copy_(torch.where(self._dead.unsqueeze(-1), self.codebook, means))
        searching = int(self.steps_seen) % self.config.revival_period == 0
        if searching and self.config.revival_threshold:
            spread = (flat - flat.mean(0)).square().sum(-1).mean()
            self._merge(ids, _SAME_PLACE * spread)
            self._revive(flat, _SAME_PLACE * spread)
        self.steps_seen.add_(1)

    def _smoothed_uses(self) -> Tensor:
        smoothing, total = self.config.smoothing, self.code_uses.sum()
        if smoothing == 0:
            return self.code_uses
        return (self.code_uses + smoothing) / (total + self.codebook_size * smoothing) * total

    def _merge(self, ids: Tensor, near: Tensor) -> None:
        # Only codes in use look for others in their place: a twin of one of them that is not used
        # dies on its own, and the square of a large codebook is out of reach.
        used = ids.unique()
        used = used[~self._dead[used]]
        codes, count = self.codebook[used], min(_TWINS_SOUGHT, self.codebook_size)
        # By id, so that of twins used alike the first one stays; a code is its own twin too.
        twins = nearest_neighbours(codes, self.codebook, count, allowed=~self._dead).sort(1).values
        # Not by way of the matrix product, whose rounding is as large as the distances sought here.
        apart = (codes.unsqueeze(1) - self.codebook[twins]).square().sum(-1) > near
        # The most used code of a place stays and takes over what the others stood for.
        uses = self.code_uses[twins].masked_fill(apart | self._dead[twins], -1.0)
        owner = twins.gather(1, uses.argmax(1, keepdim=True)).squeeze(1)
        uses, sums = self.code_uses[used], self.code_sums[used]
        self.code_uses[used] = 0.0
        self.code_sums[used] = 0.0
        self.code_uses.index_add_(0, owner, uses)
        self.code_sums.index_add_(0, owner, sums)

    def _revive(self, flat: Tensor, near: Tensor) -> None:
        generator = torch.Generator().manual_seed(self.config.seed + 1 + int(self.steps_seen))
        alive = ~self._dead
        nearest = self.codebook[nearest_codes(flat, self.codebook, allowed=alive)]
        distances = (flat - nearest).square().sum(-1)
        # As if the code had been used often enough to live through the next few searches.
        uses = 10 * self.config.revival_threshold
        for code in self._dead.nonzero().flatten()[:_MOST_REVIVED]:
            distances = distances.where(distances > near, 0.0)
            if not bool(distances.any()):
                break
            chosen = torch.multinomial(distances.cpu(), 1, generator=generator).to(flat.device)
            self.codebook[code] = flat[chosen[0]]
            self.code_uses[code] = uses
            self.code_sums[code] = flat[chosen[0]] * uses
            distances = torch.minimum(distances, (flat - flat[chosen]).square().sum(-1))
