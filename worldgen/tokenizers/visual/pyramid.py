"""Convolutions over a pyramid of resolutions: neighbouring tokens share what they see."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from worldgen.errors import ConfigError
from worldgen.nn.residual import ResidualBlock

__all__ = ["PyramidConfig", "PyramidDecoder", "PyramidEncoder"]


@dataclass(frozen=True, kw_only=True)
class PyramidConfig:
    """Sizes of an encoder or a decoder, listed from the finest level to the coarsest."""

    kind: Literal["pyramid"] = "pyramid"
    patch: int
    """Pixels on a side that are folded into channels before the finest level."""
    base_width: int
    """Channels of the finest level."""
    multipliers: tuple[int, ...]
    """Channels of each level in multiples of `base_width`; each level halves the resolution."""
    blocks: tuple[int, ...]
    """Residual blocks at each level."""
    kernel_size: int = 3

    def __post_init__(self) -> None:
        if len(self.multipliers) != len(self.blocks) or not self.blocks:
            raise ConfigError(
                f"a pyramid needs as many blocks as multipliers and at least one level, got "
                f"{self.blocks} and {self.multipliers}"
            )
        if self.patch < 1 or self.base_width < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(
                f"a pyramid needs patch and base_width of at least 1 and an odd kernel_size, got "
                f"{self.patch}, {self.base_width} and {self.kernel_size}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.base_width * multiplier for multiplier in self.multipliers)

    @property
    def reduction(self) -> int:
        """Pixels on a side of the square that one token stands for."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))


def _blocks(width: int, count: int, kernel_size: int) -> Iterator[nn.Module]:
    for _ in range(count):
        yield ResidualBlock(width, kernel_size)


class PyramidEncoder(nn.Module):
    """Frames to latent vectors, halving the resolution between levels."""

    def __init__(self, config: PyramidConfig, latent_width: int) -> None:
        super().__init__()
        padding = config.kernel_size // 2
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.patch),
            nn.Conv2d(3 * config.patch**2, config.widths[0], config.kernel_size, padding=padding),
        ]
        for level, width in enumerate(config.widths):
            if level > 0:
                layers.append(nn.Conv2d(config.widths[level - 1], width, 2, stride=2))
            layers.extend(_blocks(width, config.blocks[level], config.kernel_size))
        layers += [nn.SiLU(), nn.Conv2d(config.widths[-1], latent_width, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch latent row column"]:
        """Return latent vectors; batch latent row column."""
        latents: Tensor = self.layers(frames)
        return latents


class PyramidDecoder(nn.Module):
    """Latent vectors to frames, doubling the resolution between levels."""

    def __init__(self, config: PyramidConfig, latent_width: int) -> None:
        super().__init__()
        padding = config.kernel_size // 2
        layers: list[nn.Module] = [
            nn.Conv2d(latent_width, config.widths[-1], config.kernel_size, padding=padding)
        ]
        for level in reversed(range(len(config.widths))):
            width = config.widths[level]
            layers.extend(_blocks(width, config.blocks[level], config.kernel_size))
            if level > 0:
                finer = config.widths[level - 1]
                layers += [nn.Conv2d(width, 4 * finer, 1), nn.PixelShuffle(2)]
        layers += [
            nn.SiLU(),
            nn.Conv2d(config.widths[0], 3 * config.patch**2, config.kernel_size, padding=padding),
            nn.PixelShuffle(config.patch),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(
        self, latents: Float[Tensor, "batch latent row column"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return frames, not clamped; batch 3 height width."""
        frames: Tensor = self.layers(latents)
        return frames
