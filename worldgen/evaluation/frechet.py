"""Frechet distance between sets of pictures, over features of networks of our own.

It is not the Frechet inception distance: the features are others, so are the figures, and the two
must never be compared.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.checkpoint import file_hash
from worldgen.errors import DataError
from worldgen.tokenizers.visual import load_visual_tokenizer

__all__ = [
    "FeatureNetwork",
    "Moments",
    "RandomFeatures",
    "TokenizerFeatures",
    "frechet_distance",
]


class FeatureNetwork(Protocol):
    """Turns pictures into vectors that a distance can be measured between."""

    @property
    def name(self) -> str:
        """Says which features these are."""

    @property
    def hash(self) -> str:
        """SHA-256 of what decides them; figures of different hashes cannot be compared."""

    def __call__(
        self, pictures: Float[Tensor, "picture 3 height width"]
    ) -> Float[Tensor, "picture feature"]:
        """Return the features of pictures in [-1, 1]."""


class RandomFeatures(nn.Module):
    """Fixed random convolutions, three levels deep: nothing to download and nothing to train.

    Each level halves the resolution; mean and standard deviation over space of every channel of
    every level are the features, with those of the colours themselves. Untrained convolutions
    tell textures, edges, colours and their blur apart, and know nothing of objects.

    Args:
        seed: Decides the filters. Figures of different seeds cannot be compared.

    Source: random weights as features in Naeem et al. 2020, Reliable Fidelity and Diversity
        Metrics for Generative Models (arXiv:2002.09797); initialisation of He et al.
        2015 (arXiv:1502.01852), equation 10.
    """

    _WIDTHS = (3, 16, 32, 64)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.filters = nn.ParameterList()
        for before, after in zip(self._WIDTHS, self._WIDTHS[1:], strict=False):
            weights = torch.randn(after, before, 3, 3, generator=generator)
            weights *= math.sqrt(2.0 / (9 * before))
            self.filters.append(nn.Parameter(weights, requires_grad=False))
        self.name = f"random_convolutions_seed_{seed}"
        digest = hashlib.sha256(self.name.encode())
        for weights in self.filters:
            digest.update(weights.numpy().tobytes())
        self.hash = digest.hexdigest()

    @torch.no_grad()
    def forward(
        self, pictures: Float[Tensor, "picture 3 height width"]
    ) -> Float[Tensor, "picture feature"]:
        """Return 230 features of pictures in [-1, 1]."""
        level = pictures.float()
        features = [_pooled(level)]
        for weights in self.filters:
            # Repeated borders: a border of zeros would be the strongest edge of all.
            padded = F.pad(level, (1, 1, 1, 1), mode="replicate")
            level = F.relu(F.conv2d(padded, weights, stride=2))
            features.append(_pooled(level))
        return torch.cat(features, dim=1)


class TokenizerFeatures:
    """The vectors that a visual tokenizer would quantize, as mean and deviation over space.

    Args:
        path: File of a visual tokenizer; take one that is not itself measured.
        device: Where it computes.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._tokenizer = load_visual_tokenizer(path).to(device)
        self._vectors: list[Tensor] = []
        quantizer = self._tokenizer.get_submodule("quantizer")
        quantizer.register_forward_pre_hook(lambda _, inputs: self._vectors.append(inputs[0]))
        self.hash = file_hash(path)
        self.name = f"encoder_of_{path.parent.name}_{path.stem}"

    def __call__(
        self, pictures: Float[Tensor, "picture 3 height width"]
    ) -> Float[Tensor, "picture feature"]:
        """Return two features for each channel before quantization."""
        self._vectors.clear()
        self._tokenizer.encode(rearrange(pictures, "picture ... -> picture 1 ..."))
        return _pooled(torch.cat(self._vectors))


class Moments:
    """Mean and covariance of features that come in batches, in float64.

    Source: Chan, Golub and LeVeque 1983, Algorithms for Computing the Sample Variance, equation
        1.5, whose sums do not cancel as sums of squares do.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def add(self, features: Float[Tensor, "sample feature"]) -> None:
        """Take in a batch."""
        values = features.detach().cpu().double()
        if not len(values):
            return
        batch = Moments()
        batch.count, batch._mean = len(values), values.mean(dim=0)
        batch._scatter = (values - batch._mean).T @ (values - batch._mean)
        self.merge(batch)

    def merge(self, other: "Moments") -> None:
        """Take in all samples of others, which stay as they are."""
        if other._mean is None or other._scatter is None:
            return
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = other.count, other._mean, other._scatter
            return
        total = self.count + other.count
        difference = other._mean - self._mean
        shift = torch.outer(difference, difference) * (self.count * other.count / total)
        self._scatter = self._scatter + other._scatter + shift
        self._mean = self._mean + difference * (other.count / total)
        self.count = total

    @property
    def mean(self) -> Float[Tensor, " feature"]:
        """Mean of all samples."""
        if self._mean is None:
            raise DataError("no features to take the mean of; add pictures first")
        return self._mean

    @property
    def covariance(self) -> Float[Tensor, "feature feature"]:
        """Covariance without bias; needs two samples."""
        if self._scatter is None or self.count < 2:
            raise DataError(f"a covariance needs 2 pictures or more, got {self.count}")
        return self._scatter / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the squared Frechet distance between two Gaussians of these moments.

    The trace of the root of a product of covariances is the sum of the singular values of the
    product of their roots, so that only symmetric matrices are rooted, by their eigenvalues, and
    covariances without full rank (fewer pictures than features) need no special care.

    Source: Dowson and Landau 1982, The Frechet Distance between Multivariate Normal
        Distributions, equation 4.

    Raises:
        DataError: If there are fewer than two samples of either.
    """
    shift = (first.mean - second.mean).square().sum()
    with _one_thread():
        roots = _root(first.covariance) @ _root(second.covariance)
        overlap = torch.linalg.svdvals(roots).sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2.0 * overlap
    # Equal sets leave rounding errors of either sign.
    return max(0.0, float(shift + spread))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread whatever is inside."""
    # Threads meet after every column of a matrix this small; where others use the cores too they
    # wait for each other: 11 s instead of 0.02 s for 230 x 230.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    return root


def _pooled(channels: Tensor) -> Tensor:
    mean = channels.mean(dim=(-2, -1))
    deviation = channels.var(dim=(-2, -1), correction=0).clamp_min(0.0).sqrt()
    return torch.cat((mean, deviation), dim=1)
