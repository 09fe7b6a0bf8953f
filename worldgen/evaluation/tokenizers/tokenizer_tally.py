"""Running sums of a tokenizer's figures, in memory that does not grow with the pictures."""

import math
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.evaluation.frechet import Moments, frechet_distance

__all__ = ["ClipTally", "CodeCounts", "PictureQuality", "Tally"]

_MOST_POSITIONS = 65
"""Positions in a clip whose figures are kept apart; clips may be hours long."""
_LEAST_FOR_MOMENTS = 2
# Pictures are in [-1, 1].
_PEAK_SQUARED = 4.0
_HISTOGRAM_BARS = 128


@dataclass(frozen=True, kw_only=True)
class PictureQuality:
    """How close pictures came to the truth."""

    psnr: Float[Tensor, " picture"]
    """dB."""
    perturbed: Float[Tensor, " picture"]
    """PSNR in dB, decoded from ids of which some were replaced."""
    ssim: Float[Tensor, " picture"] | None
    """None where pictures are too small for it."""
    lpips: Float[Tensor, " picture"] | None
    """None where there are no weights for it."""


class CodeCounts:
    """How often each code occurred; keeps those that did, whatever the size of the codebook."""

    def __init__(self, codebook_size: int) -> None:
        self._codebook_size = codebook_size
        self._codes = torch.empty(0, dtype=torch.int64)
        self._counts = torch.empty(0, dtype=torch.int64)

    def add(self, ids: Int[Tensor, "*any"]) -> None:
        """Count ids of any shape."""
        codes, counts = ids.detach().cpu().unique(return_counts=True)
        both = torch.cat((self._codes, codes))
        self._codes, places = both.unique(return_inverse=True)
        self._counts = torch.zeros_like(self._codes).scatter_add_(
            0, places, torch.cat((self._counts, counts))
        )

    def entropy_bits(self) -> float:
        """Return the entropy of the codes, bits a token, each token taken alone."""
        shares = self._counts.double() / self._counts.sum()
        return float(-(shares * shares.log2()).sum())

    def to_json(self) -> dict[str, Any]:
        """Return use of the codebook as JSON holds it."""
        entropy = self.entropy_bits()
        total = int(self._counts.sum())
        ordered = self._counts.sort(descending=True).values
        return {
            "codebook_size": self._codebook_size,
            "tokens_counted": total,
            "used": len(self._codes),
            "used_share": len(self._codes) / self._codebook_size,
            "perplexity": 2.0**entropy,
            "perplexity_share": 2.0**entropy / self._codebook_size,
            "entropy_bits_per_token": entropy,
            "share_of_most_frequent": int(ordered[0]) / total,
            "histogram": self._histogram(ordered / total),
        }

    def _histogram(self, shares: Float[Tensor, " code"]) -> dict[str, Any]:
        """Return shares of codes by rank, as many bars as a page can show."""
        per_bar = math.ceil(self._codebook_size / _HISTOGRAM_BARS)
        bars = math.ceil(self._codebook_size / per_bar)
        sums = torch.zeros(bars, dtype=torch.float64)
        sums.index_add_(0, torch.arange(len(shares)) // per_bar, shares.double())
        return {
            "codes_per_bar": per_bar,
            "share_of_tokens_by_rank": sums.tolist(),
        }


class Tally:
    """Figures of pictures, each taken for itself."""

    def __init__(self, codebook_size: int) -> None:
        self.codes = CodeCounts(codebook_size)
        self.truth_moments, self.moments = Moments(), Moments()
        self._tokens = self._pixels = 0
        self._psnr, self._perturbed = array("d"), array("d")
        self._ssim, self._lpips = array("d"), array("d")

    @property
    def frames(self) -> int:
        """Pictures taken in."""
        return len(self._psnr)

    def add(self, ids: Int[Tensor, "*any"], pixels: int, quality: PictureQuality) -> None:
        """Take in pictures.

        Args:
            ids: All tokens of these pictures.
            pixels: Of all these pictures together.
            quality: Of each of them.
        """
        self.codes.add(ids)
        self._tokens += ids.numel()
        self._pixels += pixels
        for values, new in (
            (self._psnr, quality.psnr),
            (self._perturbed, quality.perturbed),
            (self._ssim, quality.ssim),
            (self._lpips, quality.lpips),
        ):
            if new is not None:
                values.extend(new.double().cpu().tolist())

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON holds them; at least one picture must be in."""
        psnr = np.asarray(self._psnr)
        mean_error, perturbed_error = (
            10.0 * math.log10(_PEAK_SQUARED / np.mean(_PEAK_SQUARED * 10.0 ** (-each / 10.0)))
            for each in (psnr, np.asarray(self._perturbed))
        )
        per_token = math.log2(self.codes.to_json()["codebook_size"])
        enough = self.moments.count >= _LEAST_FOR_MOMENTS
        distance = frechet_distance(self.truth_moments, self.moments) if enough else None
        return {
            "frames": self.frames,
            "psnr_db": float(psnr.mean()),
            "psnr_db_of_mean_error": mean_error,
            "psnr_db_lowest_tenth": float(np.quantile(psnr, 0.1)),
            "ssim": float(np.mean(self._ssim)) if self._ssim else None,
            "lpips": float(np.mean(self._lpips)) if self._lpips else None,
            "frechet_own_features": distance,
            "perturbed_psnr_db": float(np.mean(self._perturbed)),
            "perturbed_drop_db": float(psnr.mean() - np.mean(self._perturbed)),
            "perturbed_drop_db_of_mean_error": mean_error - perturbed_error,
            "rate": {
                "tokens_per_frame": self._tokens / self.frames,
                "bits_per_frame": self._tokens * per_token / self.frames,
                "bits_per_pixel": self._tokens * per_token / self._pixels,
                "entropy_bits_per_pixel": self._tokens * self.codes.entropy_bits() / self._pixels,
            },
            "codes": self.codes.to_json(),
        }


class ClipTally(Tally):
    """Figures of clips: those of their frames, and what only frames in a row can show."""

    def __init__(self, codebook_size: int, frames_per_latent: int) -> None:
        super().__init__(codebook_size)
        self.clips = 0
        self.clips_cut_short = 0
        self._size = frames_per_latent
        self._by_position = {name: _Positions() for name in ("psnr", "temporal")}
        self._by_place = {name: _Positions() for name in ("psnr", "temporal")}
        self._temporal = array("d")
        self._first_tokens = self._same_tokens = self._same_clips = self._first_clips = 0

    def add_positions(
        self,
        first: int,
        psnr: Float[Tensor, " picture"],
        temporal: Float[Tensor, " picture"],
    ) -> None:
        """Take in frames of one clip in a row.

        Args:
            first: Position of the first of them in the clip.
            psnr: dB, of each.
            temporal: dB, of the change from the frame before to each; the clip's first frame has
                none.
        """
        self._temporal.extend(temporal.double().cpu().tolist())
        changed = first + len(psnr) - len(temporal)
        for name, values, start in (("psnr", psnr, first), ("temporal", temporal, changed)):
            for position, value in enumerate(values.double().cpu().tolist(), start=start):
                self._by_position[name].add(position, value)
                if position:
                    self._by_place[name].add((position - 1) % self._size, value)

    def add_first(
        self, alone: Int[Tensor, "row column"], in_clip: Int[Tensor, "row column"]
    ) -> None:
        """Compare the ids of a clip's first frame, taken as an image, with those in the clip."""
        same = int((alone == in_clip).sum())
        self._first_tokens += alone.numel()
        self._same_tokens += same
        self._first_clips += 1
        self._same_clips += same == alone.numel()

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON holds them; at least one clip must be in."""
        temporal = self._temporal
        return {
            "clips": self.clips,
            "clips_cut_short": self.clips_cut_short,
            **super().to_json(),
            "temporal_psnr_db": float(np.mean(temporal)) if temporal else None,
            "psnr_db_by_position": self._by_position["psnr"].means(),
            "temporal_psnr_db_by_position": [None, *self._by_position["temporal"].means()[1:]],
            "psnr_db_by_place_in_group": self._by_place["psnr"].means(),
            "temporal_psnr_db_by_place_in_group": self._by_place["temporal"].means(),
            "first_frame_identity": {
                "clips": self._first_clips,
                "same_tokens_share": self._same_tokens / self._first_tokens,
                "same_clips_share": self._same_clips / self._first_clips,
            },
        }


class _Positions:
    """Means by position, of the first positions of long clips only."""

    def __init__(self) -> None:
        self._sums: list[float] = []
        self._counts: list[int] = []

    def add(self, position: int, value: float) -> None:
        if position >= _MOST_POSITIONS:
            return
        missing = position + 1 - len(self._sums)
        self._sums += [0.0] * missing
        self._counts += [0] * missing
        self._sums[position] += value
        self._counts[position] += 1

    def means(self) -> list[float | None]:
        return [
            value / count if count else None
            for value, count in zip(self._sums, self._counts, strict=True)
        ]
