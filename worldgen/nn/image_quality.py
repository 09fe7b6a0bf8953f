"""How close pictures are: peak signal-to-noise ratio and structural similarity."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["psnr", "ssim"]

# Pictures are in [-1, 1].
_RANGE = 2.0
_WINDOW = 11
_WINDOW_SIGMA = 1.5


def psnr(
    pictures: Float[Tensor, "*leading rgb height width"],
    truth: Float[Tensor, "*leading rgb height width"],
) -> Float[Tensor, "*leading"]:
    """Return the peak signal-to-noise ratio of each picture in dB, 100 dB where they are equal.

    Average the returned figures for a mean of per-frame PSNR, the one reported everywhere here.

    Args:
        pictures: float in [-1, 1].
        truth: float in [-1, 1], same shape.
    """
    error = (pictures.float() - truth.float()).square().mean(dim=(-3, -2, -1))
    return 10.0 * torch.log10(_RANGE**2 / error.clamp_min(_RANGE**2 * 1e-10))


def ssim(
    pictures: Float[Tensor, "*leading rgb height width"],
    truth: Float[Tensor, "*leading rgb height width"],
) -> Float[Tensor, "*leading"]:
    """Return the structural similarity of each picture, 1 where they are equal.

    Each colour apart, 11 x 11 Gaussian window of sigma 1.5, only where the window fits.

    Source: Wang et al. 2004, Image Quality Assessment: From Error Visibility to Structural
        Similarity, equation 13 with K1 = 0.01 and K2 = 0.03.

    Args:
        pictures: float in [-1, 1], at least 11 pixels high and wide.
        truth: float in [-1, 1], same shape.
    """
    leading = pictures.shape[:-3]
    first = rearrange(pictures.float(), "... rgb h w -> (...) rgb h w")
    second = rearrange(truth.float(), "... rgb h w -> (...) rgb h w")
    mean_first, mean_second = _blur(first), _blur(second)
    variance_first = _blur(first.square()) - mean_first.square()
    variance_second = _blur(second.square()) - mean_second.square()
    covariance = _blur(first * second) - mean_first * mean_second
    steady_means, steady_variances = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    similarity = (
        (2 * mean_first * mean_second + steady_means)
        * (2 * covariance + steady_variances)
        / (mean_first.square() + mean_second.square() + steady_means)
        / (variance_first + variance_second + steady_variances)
    )
    return similarity.mean(dim=(-3, -2, -1)).reshape(leading)


def _blur(pictures: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, device=pictures.device) - _WINDOW // 2
    weights = (-offsets.float().square() / (2 * _WINDOW_SIGMA**2)).exp()
    weights = (weights / weights.sum()).expand(pictures.shape[1], 1, 1, _WINDOW)
    rows = F.conv2d(pictures, weights, groups=pictures.shape[1])
    return F.conv2d(rows, weights.transpose(-1, -2), groups=pictures.shape[1])
