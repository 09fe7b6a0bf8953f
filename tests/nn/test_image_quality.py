"""Picture measures against values worked out by hand."""

import math

import pytest
import torch

from worldgen.nn.image_quality import psnr, ssim


def picture() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_psnr_of_a_constant_error() -> None:
    # An error of 0.02 in a range of 2 is one per cent: 40 dB.
    truth = picture() * 0.5
    assert psnr(truth + 0.02, truth).tolist() == pytest.approx([40.0, 40.0], abs=1e-3)


def test_equal_pictures_have_the_highest_figures() -> None:
    assert psnr(picture(), picture()).tolist() == pytest.approx([100.0, 100.0])
    assert ssim(picture(), picture()).tolist() == pytest.approx([1.0, 1.0])


def test_ssim_of_constant_pictures_is_the_luminance_term() -> None:
    # Without structure only (2ab + C1) / (a^2 + b^2 + C1) remains, with C1 = (0.01 * 2)^2.
    first, second = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.12 + 4e-4) / (0.04 + 0.36 + 4e-4)
    assert ssim(first, second).item() == pytest.approx(expected, rel=1e-3)


def test_ssim_falls_with_noise() -> None:
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    slightly, strongly = (
        ssim(picture() + 0.05 * noise, picture()),
        ssim(picture() + noise, picture()),
    )
    assert (slightly > strongly).all()
    assert math.isfinite(float(strongly.sum()))
