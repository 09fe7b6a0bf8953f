"""Patch discriminators of frames and of clips, which see whether a patch was recorded or rebuilt."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.errors import ConfigError

__all__ = [
    "DiscriminatorOutput",
    "PatchDiscriminator",
    "PatchDiscriminatorConfig",
]

_KERNEL, _PADDING = 4, 2
_SLOPE = 0.2
_GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class PatchDiscriminatorConfig:
    """Sizes of a discriminator.

    The defaults are ours. OmniTokenizer's are `normalisation="batch"`, with
    `normalised_output=True` in three dimensions.
    """

    dimensions: Literal[2, 3]
    """2: each frame is judged alone. 3: patches extend over time."""
    base_width: int = 64
    """Channels of the first stage; each later stage has twice as many, up to `largest_width`."""
    num_halvings: int = 3
    """Stages that halve the resolution; one more stage and the logits follow at full stride."""
    largest_width: int = 512
    normalisation: Literal["group", "spectral", "batch", "none"] = "group"
    """Group: of the activations of one clip. Spectral: of the kernels. Batch: with running
    statistics; logits then depend on what else is in the batch, and a gradient penalty, which
    takes each example alone, has no meaning."""
    normalised_output: bool = False
    """Batch normalisation and leaky ReLU after the logits, as in OmniTokenizer's 3-D
    discriminator. It takes away most of what the mean of the logits could say."""
    input_noise: bool = False
    """Add noise to the frames, with a learned amplitude per colour that starts at 0."""

    def __post_init__(self) -> None:
        if min(self.base_width, self.num_halvings, self.largest_width) < 1:
            raise ConfigError(
                "a discriminator needs base_width, num_halvings and largest_width of at least 1, "
                f"got {self.base_width}, {self.num_halvings} and {self.largest_width}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, the one-channel logits left out."""
        grown = (self.base_width * 2**stage for stage in range(1, self.num_halvings + 1))
        return (self.base_width, *(min(width, self.largest_width) for width in grown))


@dataclass(frozen=True, kw_only=True)
class DiscriminatorOutput:
    """What a discriminator says about frames.

    In two dimensions `example` counts frames (clip by clip) and `place` is (row, column); in
    three it counts clips and `place` is (time, row, column).
    """

    logits: Float[Tensor, "example 1 *place"]
    """One per patch; high where it looks recorded."""
    features: tuple[Float[Tensor, "example _ ..."], ...]
    """Activations `example width *place` of every stage before the logits, for feature matching
    and Gram matrices."""


class _InputNoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, frames: Tensor, generator: torch.Generator | None) -> Tensor:
        device = frames.device if generator is None else generator.device
        noise = torch.randn(frames.shape, generator=generator, device=device).to(frames)
        return frames + self.weight.reshape(3, *(1 for _ in frames.shape[2:])) * noise


class _Stage(nn.Module):
    """Convolution, normalisation where there is one, leaky ReLU where wanted."""

    def __init__(
        self,
        convolution: nn.Module,
        normalisation: nn.Module | None = None,
        activated: bool = True,
    ) -> None:
        super().__init__()
        self.convolution = convolution
        self.normalisation = normalisation
        self.activated = activated

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.convolution(hidden)
        if self.normalisation is not None:
            hidden = self.normalisation(hidden)
        return F.leaky_relu(hidden, _SLOPE) if self.activated else hidden


class PatchDiscriminator(nn.Module):
    """Strided convolutions of kernel 4 and padding 2, a logit for each overlapping patch.

    Source: pix2pix, arXiv:1611.07004, section 3.2.2; in three dimensions TATS, arXiv:2204.03638,
        section 3.1; the geometry is that of OmniTokenizer, arXiv:2406.09399.
    """

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.noise = _InputNoise() if config.input_noise else None
        self.stages = nn.ModuleList(_stages(config))

    def forward(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        generator: torch.Generator | None = None,
    ) -> DiscriminatorOutput:
        """Return logits and features.

        Args:
            frames: Recorded or rebuilt, meant for [-1, 1]; any size, any number of frames.
            generator: Of the input noise; None takes torch's own.
        """
        if self.config.dimensions == 2:
            hidden = rearrange(frames, "b t rgb h w -> (b t) rgb h w")
        else:
            hidden = rearrange(frames, "b t rgb h w -> b rgb t h w")
        if self.noise is not None:
            hidden = self.noise(hidden, generator)
        outputs: list[Tensor] = []
        for stage in self.stages:
            if self.config.dimensions == 3:
                # Not left to the convolution: on CPU in bfloat16, where the padding is wider than
                # the clip is long, its weight gradient is wrong or infinite (torch 2.13).
                hidden = F.pad(hidden, (0, 0, 0, 0, _PADDING, _PADDING))
            hidden = stage(hidden)
            outputs.append(hidden)
        return DiscriminatorOutput(logits=outputs[-1].float(), features=tuple(outputs[:-1]))


def _stages(config: PatchDiscriminatorConfig) -> Iterator[_Stage]:
    width = 3
    for index, next_width in enumerate(config.widths):
        stride = 2 if index < config.num_halvings else 1
        convolution = _convolution(config, width, next_width, stride)
        # The first stage sees colours, whose mean and contrast say much: it is never normalised.
        yield _Stage(convolution, _normalisation(config, next_width) if index > 0 else None)
        width = next_width
    logits = _convolution(config, width, 1, 1)
    if config.normalised_output:
        yield _Stage(logits, _batch_normalisation(config.dimensions, 1))
    else:
        yield _Stage(logits, activated=False)


def _convolution(
    config: PatchDiscriminatorConfig, width: int, next_width: int, stride: int
) -> nn.Module:
    convolution: nn.Module
    if config.dimensions == 2:
        convolution = nn.Conv2d(width, next_width, _KERNEL, stride, _PADDING)
    else:
        padding = (0, _PADDING, _PADDING)
        convolution = nn.Conv3d(width, next_width, _KERNEL, stride, padding)
    if config.normalisation == "spectral":
        # Source: arXiv:1802.05957, algorithm 1.
        return nn.utils.parametrizations.spectral_norm(convolution)
    return convolution


def _normalisation(config: PatchDiscriminatorConfig, width: int) -> nn.Module | None:
    if config.normalisation == "batch":
        return _batch_normalisation(config.dimensions, width)
    if config.normalisation == "group":
        groups = gcd(_GROUPS, width)
        # Groups of one channel would erase how strongly each channel responds to a clip.
        return nn.GroupNorm(groups if groups < width else max(1, width // 2), width)
    return None


def _batch_normalisation(dimensions: int, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if dimensions == 2 else nn.BatchNorm3d(width)
