"""One patch, one token: no token sees beyond its own square of pixels."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from worldgen.errors import ConfigError
from worldgen.nn.residual import ResidualBlock

__all__ = ["PatchConfig", "PatchDecoder", "PatchEncoder"]


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """Sizes of an encoder or a decoder that treats each patch alone."""

    kind: Literal["patch"] = "patch"
    patch: int
    """Pixels on a side of a patch, which is the square that one token stands for."""
    width: int
    blocks: int

    def __post_init__(self) -> None:
        if self.patch < 1 or self.width < 1 or self.blocks < 0:
            raise ConfigError(
                f"patch and width must be at least 1 and blocks not negative, got "
                f"{self.patch}, {self.width} and {self.blocks}"
            )

    @property
    def reduction(self) -> int:
        """Pixels on a side of the square that one token stands for."""
        return self.patch


class PatchEncoder(nn.Module):
    """Frames to latent vectors, one for each patch, by convolutions that never cross its border."""

    def __init__(self, config: PatchConfig, latent_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(config.patch),
            nn.Conv2d(3 * config.patch**2, config.width, 1),
            *(ResidualBlock(config.width, kernel_size=1) for _ in range(config.blocks)),
            nn.SiLU(),
            nn.Conv2d(config.width, latent_width, 1),
        )

    def forward(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch latent row column"]:
        """Return latent vectors; batch latent row column."""
        latents: Tensor = self.layers(frames)
        return latents


class PatchDecoder(nn.Module):
    """Latent vectors to frames, one patch for each vector."""

    def __init__(self, config: PatchConfig, latent_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(latent_width, config.width, 1),
            *(ResidualBlock(config.width, kernel_size=1) for _ in range(config.blocks)),
            nn.SiLU(),
            nn.Conv2d(config.width, 3 * config.patch**2, 1),
            nn.PixelShuffle(config.patch),
        )

    def forward(
        self, latents: Float[Tensor, "batch latent row column"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return frames, not clamped; batch 3 height width."""
        frames: Tensor = self.layers(latents)
        return frames
