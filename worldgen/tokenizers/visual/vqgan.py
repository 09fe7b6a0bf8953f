"""VQGAN's encoder and decoder of single frames: normalised residual blocks, optional attention."""

from dataclasses import dataclass
from typing import Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.errors import ConfigError

__all__ = ["VQGANConfig", "VQGANDecoder", "VQGANEncoder"]

_EPSILON = 1e-6
"""Added to variances by all normalisations; that of every published VQGAN."""


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Sizes of an encoder or a decoder; levels are listed from the finest to the coarsest.

    Published tokenizers give the decoder one block per level more than the encoder.
    """

    kind: Literal["vqgan"] = "vqgan"
    widths: tuple[int, ...]
    """Channels of each level; each level but the last halves the resolution."""
    blocks: int
    """Residual blocks at each level."""
    latent_width: int
    """Channels of the features between the coarsest level and the projection to the quantizer."""
    stem_width: int | None = None
    """Channels after the first convolution of an encoder; None for those of the finest level."""
    attention_levels: tuple[int, ...] = ()
    """Levels, 0 the finest, in which attention over the frame follows each residual block."""
    middle_attention: bool = True
    """Whether attention stands between the two residual blocks at the coarsest resolution."""
    groups: int = 32
    """Groups of channels that are normalised together; divides all channels but `latent_width`."""
    reads_levels: bool = False
    """Whether an encoder reads pixels as levels, 0 to 255, instead of -1 to 1."""

    def __post_init__(self) -> None:
        if not self.widths or min(*self.widths, self.blocks, self.latent_width, self.groups) < 1:
            raise ConfigError(
                f"a vqgan needs at least one level, and widths, blocks, latent_width and groups "
                f"of at least 1, got {self.widths}, {self.blocks}, {self.latent_width} and "
                f"{self.groups}"
            )
        uneven = [width for width in (self.stem, *self.widths) if width % self.groups]
        if uneven:
            raise ConfigError(
                f"{self.groups} groups do not divide {uneven[0]} channels; "
                f"change groups or the widths"
            )
        unknown = [level for level in self.attention_levels if not 0 <= level < len(self.widths)]
        if unknown:
            raise ConfigError(
                f"attention_levels must lie in 0 to {len(self.widths) - 1} (the coarsest), "
                f"got {unknown[0]}"
            )

    @property
    def stem(self) -> int:
        """Channels after the first convolution of an encoder."""
        return self.widths[0] if self.stem_width is None else self.stem_width

    @property
    def reduction(self) -> int:
        """Pixels on a side of the square that one token stands for."""
        return int(2 ** (len(self.widths) - 1))


class VQGANEncoder(nn.Module):
    """Frames to features (`features`), and these to vectors for the quantizer (`project`).

    Source: Esser et al. 2021, Taming Transformers (arXiv:2012.09841), section 3.1 and appendix.
    """

    def __init__(self, config: VQGANConfig, quantizer_width: int) -> None:
        super().__init__()
        self.reads_levels = config.reads_levels
        self.stem = nn.Conv2d(3, config.stem, 3, padding=1)
        self.levels = nn.ModuleList()
        width, coarsest = config.stem, len(config.widths) - 1
        for level, level_width in enumerate(config.widths):
            resample = None if level == coarsest else _Halve(level_width)
            self.levels.append(_Level(config, level, width, resample))
            width = level_width
        self.middle = _Middle(config)
        self.norm = nn.GroupNorm(config.groups, width, _EPSILON)
        self.output = nn.Conv2d(width, config.latent_width, 3, padding=1)
        self.project = nn.Conv2d(config.latent_width, quantizer_width, 1)

    def features(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch features row column"]:
        """Return the features that the projection to the quantizer takes."""
        # Not folded into the stem: its padding is 0 on whatever scale it reads.
        hidden = self.stem((frames + 1) * 127.5 if self.reads_levels else frames)
        for level in self.levels:
            hidden = level(hidden)
        features: Tensor = self.output(F.silu(self.norm(self.middle(hidden))))
        return features

    def forward(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch latent row column"]:
        """Return latent vectors; batch latent row column."""
        latents: Tensor = self.project(self.features(frames))
        return latents


class VQGANDecoder(nn.Module):
    """Codes to features (`expand`), and these to frames (`paint`).

    Source: as `VQGANEncoder`.
    """

    def __init__(self, config: VQGANConfig, quantizer_width: int) -> None:
        super().__init__()
        width = config.widths[-1]
        self.expand = nn.Conv2d(quantizer_width, config.latent_width, 1)
        self.stem = nn.Conv2d(config.latent_width, width, 3, padding=1)
        self.middle = _Middle(config)
        self.levels = nn.ModuleList()
        for level in reversed(range(len(config.widths))):
            resample = None if level == 0 else _Double(config.widths[level])
            self.levels.append(_Level(config, level, width, resample))
            width = config.widths[level]
        self.norm = nn.GroupNorm(config.groups, width, _EPSILON)
        self.output = nn.Conv2d(width, 3, 3, padding=1)

    def paint(
        self, features: Float[Tensor, "batch features row column"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return frames, not clamped, of what `expand` gave."""
        hidden = self.middle(self.stem(features))
        for level in self.levels:
            hidden = level(hidden)
        frames: Tensor = self.output(F.silu(self.norm(hidden)))
        return frames

    def forward(
        self, latents: Float[Tensor, "batch latent row column"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return frames, not clamped; batch 3 height width."""
        return self.paint(self.expand(latents))


class _Level(nn.Module):
    """What happens at one resolution, and the way to the next."""

    def __init__(
        self, config: VQGANConfig, level: int, input_width: int, resample: nn.Module | None
    ) -> None:
        super().__init__()
        width, groups = config.widths[level], config.groups
        self.residual = nn.ModuleList(
            _Residual(input_width if block == 0 else width, width, groups)
            for block in range(config.blocks)
        )
        attends = level in config.attention_levels
        self.attention = nn.ModuleList(
            _Attention(width, groups) for _ in range(config.blocks if attends else 0)
        )
        self.resample = resample

    def forward(self, hidden: Tensor) -> Tensor:
        for block, residual in enumerate(self.residual):
            hidden = residual(hidden)
            if self.attention:
                hidden = self.attention[block](hidden)
        if self.resample is not None:
            hidden = self.resample(hidden)
        return hidden


class _Middle(nn.Module):
    """Two residual blocks at the coarsest resolution, with attention between them."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        width, groups = config.widths[-1], config.groups
        self.first = _Residual(width, width, groups)
        self.attention = _Attention(width, groups) if config.middle_attention else None
        self.second = _Residual(width, width, groups)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.first(hidden)
        if self.attention is not None:
            hidden = self.attention(hidden)
        result: Tensor = self.second(hidden)
        return result


class _Residual(nn.Module):
    """Twice normalisation, SiLU and convolution, around a skip connection."""

    def __init__(self, input_width: int, width: int, groups: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(groups, input_width, _EPSILON)
        self.first = nn.Conv2d(input_width, width, 3, padding=1)
        self.second_norm = nn.GroupNorm(groups, width, _EPSILON)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = None if input_width == width else nn.Conv2d(input_width, width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        change: Tensor = self.first(F.silu(self.first_norm(hidden)))
        change = self.second(F.silu(self.second_norm(change)))
        return change + (hidden if self.shortcut is None else self.shortcut(hidden))


class _Attention(nn.Module):
    """Attention with one head over all places of a frame, around a skip connection."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, _EPSILON)
        self.query = nn.Conv2d(width, width, 1)
        self.key = nn.Conv2d(width, width, 1)
        self.value = nn.Conv2d(width, width, 1)
        self.output = nn.Conv2d(width, width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden)
        query, key, value = (
            rearrange(project(normed), "b width r c -> b 1 (r c) width")
            for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = rearrange(mixed, "b 1 (r c) width -> b width r c", r=hidden.shape[-2])
        change: Tensor = self.output(mixed)
        return hidden + change


class _Halve(nn.Module):
    """Convolution of stride 2 that looks one pixel further to the right and below only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.halving = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        halved: Tensor = self.halving(F.pad(hidden, (0, 1, 0, 1)))
        return halved


class _Double(nn.Module):
    """Each pixel four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.doubling = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        doubled: Tensor = self.doubling(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return doubled
