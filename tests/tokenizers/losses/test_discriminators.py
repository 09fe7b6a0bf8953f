"""Patch discriminators: shapes, independence, and what each normalisation promises."""

from typing import Literal

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.tokenizers.losses.discriminators import PatchDiscriminator, PatchDiscriminatorConfig

Dimensions = Literal[2, 3]
Normalisation = Literal["group", "spectral", "batch", "none"]


def tiny(
    dimensions: Dimensions, normalisation: Normalisation = "group", input_noise: bool = False
) -> PatchDiscriminator:
    config = PatchDiscriminatorConfig(
        dimensions=dimensions,
        base_width=4,
        num_halvings=2,
        largest_width=12,
        normalisation=normalisation,
        input_noise=input_noise,
    )
    return PatchDiscriminator(config)


@pytest.mark.parametrize("normalisation", ["group", "spectral", "batch", "none"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_patch_gets_a_logit_and_every_stage_its_features(
    dimensions: Dimensions, normalisation: Normalisation
) -> None:
    output = tiny(dimensions, normalisation)(torch.randn(2, 5, 3, 24, 40))
    # Kernel 4 and padding 2: n // stride + 1 places, twice halved and twice not.
    examples, time = (10, ()) if dimensions == 2 else (2, (4,))
    assert output.logits.shape == (examples, 1, *time, 9, 13)
    assert [feature.shape[1] for feature in output.features] == [4, 8, 12]
    assert output.logits.abs().sum() > 0


def test_a_frame_alone_has_patches_in_time_too() -> None:
    assert tiny(3)(torch.randn(1, 1, 3, 16, 16)).logits.shape[2] == 3


@torch.no_grad()
@pytest.mark.parametrize(("normalisation", "alone"), [("group", True), ("batch", False)])
def test_only_batch_normalisation_lets_clips_judge_each_other(
    normalisation: Normalisation, alone: bool
) -> None:
    discriminator = tiny(3, normalisation)
    clips = torch.randn(2, 5, 3, 16, 16)
    together = discriminator(clips).logits[:1]
    apart = discriminator(torch.cat((clips[:1], 3 * clips[1:]))).logits[:1]
    assert torch.allclose(together, apart, atol=1e-6) == alone


@torch.no_grad()
def test_image_logits_do_not_depend_on_other_frames_of_the_clip() -> None:
    discriminator = tiny(2)
    clip = torch.randn(1, 3, 3, 16, 16)
    whole = discriminator(clip).logits
    torch.testing.assert_close(discriminator(clip[:, 1:2]).logits, whole[1:2])


def test_spectral_normalisation_bounds_every_kernel() -> None:
    discriminator = tiny(2, "spectral")
    for _ in range(50):
        discriminator(torch.randn(1, 1, 3, 16, 16))
    for stage in discriminator.stages:
        kernel = stage.get_submodule("convolution").weight
        assert isinstance(kernel, torch.Tensor)
        assert torch.linalg.matrix_norm(kernel.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


@torch.no_grad()
def test_noise_starts_silent_and_follows_its_generator() -> None:
    discriminator = tiny(2, input_noise=True)
    frames = torch.randn(1, 2, 3, 16, 16)
    assert torch.equal(discriminator(frames).logits, discriminator(frames).logits)
    discriminator.get_parameter("noise.weight").fill_(0.5)
    seeded = [
        discriminator(frames, torch.Generator().manual_seed(seed)).logits for seed in (1, 1, 2)
    ]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])


@pytest.mark.parametrize("time", [1, 3, 5])
def test_half_precision_gives_the_gradients_of_full_precision(time: int) -> None:
    config = PatchDiscriminatorConfig(dimensions=3, base_width=16, normalisation="none")
    discriminator = PatchDiscriminator(config)
    frames = torch.randn(2, time, 3, 32, 32)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = discriminator(frames).logits
        weights = list(discriminator.parameters())
        gradients.append(torch.autograd.grad(-logits.mean(), weights))
    for full, half in zip(*gradients, strict=True):
        assert (half - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize("width", [1, 2, 3, 32, 48, 64])
def test_group_normalisation_fits_every_width(width: int) -> None:
    config = PatchDiscriminatorConfig(dimensions=2, base_width=width, num_halvings=1)
    PatchDiscriminator(config)(torch.randn(1, 1, 3, 8, 8))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 64, 0 and 512"):
        PatchDiscriminatorConfig(dimensions=2, num_halvings=0)
