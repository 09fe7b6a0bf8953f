"""Joint tokenizer of images and videos: windowed attention in space, causal attention in time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.nn.space_time import SpaceTimeConfig, SpaceTimeStack, StreamState
from worldgen.tokenizers.quantizers import QuantizerConfig, build_quantizer
from worldgen.tokenizers.visual.base import (
    DecoderStream,
    EncoderStream,
    Perturbation,
    TokenizerOutput,
    VisualTokenizer,
)

__all__ = [
    "GaussianLatents",
    "OmniAutoencoder",
    "OmniAutoencoderConfig",
    "OmniTokenizer",
    "OmniTokenizerConfig",
]

_PIXEL_SCALE = 0.5
"""The networks see pixels in [-0.5, 0.5]."""


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Encoder and decoder around a bottleneck."""

    frame_height: int
    """Pixels of the frames it is made for; others work if the patch divides them."""
    frame_width: int
    patch: int
    """Pixels on a side of the square that one token stands for, before reducing blocks."""
    frames_per_latent: int
    """Frames that one grid of tokens stands for, the first of a clip excepted: that is one."""
    encoder: SpaceTimeConfig
    decoder: SpaceTimeConfig
    patch_embedding: Literal["linear", "convolutional"] = "linear"
    """Linear with layer normalisation, or a strided convolution with batch normalisation."""
    deferred_pooling: tuple[Literal["space", "time"], ...] = ()
    """Where half of the reduction is done by averaging before the bottleneck, not by patches."""
    upscale: int = 1
    """Frames come out larger than they went in by this factor."""

    def __post_init__(self) -> None:
        if min(self.patch, self.frames_per_latent, self.upscale) < 1:
            raise ConfigError(
                f"patch, frames_per_latent and upscale must be at least 1, got {self.patch}, "
                f"{self.frames_per_latent} and {self.upscale}"
            )
        if "space" in self.deferred_pooling and self.patch % 2:
            raise ConfigError(f"pooling over space halves the patch, got {self.patch}")
        if "time" in self.deferred_pooling and self.frames_per_latent % 2:
            raise ConfigError(
                f"pooling over time halves frames_per_latent, got {self.frames_per_latent}"
            )
        if self.frame_height % self.reduction or self.frame_width % self.reduction:
            raise ConfigError(
                f"frames of {self.frame_height} x {self.frame_width} pixels do not divide into "
                f"squares of {self.reduction}; change the frame size or the patch"
            )
        if self.decoder.reduction != 1:
            raise ConfigError("the decoder has no reducing blocks; use t and w only")

    @property
    def reduction(self) -> int:
        """Pixels on a side of the square that one token stands for."""
        return self.patch * self.encoder.reduction

    @property
    def streams(self) -> bool:
        """Whether clips can be taken piece by piece."""
        return self.encoder.streams and self.decoder.streams

    @property
    def pixel_patch(self) -> int:
        """Side of the squares that the first layer reads and the last one writes."""
        return self.patch // 2 if "space" in self.deferred_pooling else self.patch

    @property
    def pixel_frames(self) -> int:
        """Frames that the first layer reads at once, and the last one writes."""
        halved = "time" in self.deferred_pooling
        return self.frames_per_latent // 2 if halved else self.frames_per_latent


@dataclass(frozen=True, kw_only=True)
class OmniTokenizerConfig(CodecConfig):
    """A tokenizer: the bottleneck is a quantizer."""

    kind: Literal["omnitokenizer"] = "omnitokenizer"
    quantizer: QuantizerConfig


@dataclass(frozen=True, kw_only=True)
class OmniAutoencoderConfig(CodecConfig):
    """An autoencoder with continuous latents: the bottleneck is a Gaussian."""

    kind: Literal["omnitokenizer_autoencoder"] = "omnitokenizer_autoencoder"
    latent_width: int
    """Channels of a latent."""


class Encoder(nn.Module):
    """Patches, spatial stack, temporal stack, projection to the bottleneck."""

    def __init__(self, config: CodecConfig, latent_width: int) -> None:
        super().__init__()
        self.config = config
        width, side, time = config.encoder.width, config.pixel_patch, config.pixel_frames
        make = _LinearPatches if config.patch_embedding == "linear" else _ConvolutionalPatches
        self.first_frame = make(3 * side * side, width)
        self.later_frames = make(3 * time * side * side, width)
        self.spatial = SpaceTimeStack(config.encoder, "spatial")
        self.temporal = SpaceTimeStack(config.encoder, "temporal")
        self.project = nn.Linear(width, latent_width)

    def forward(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        states: "_States | None" = None,
    ) -> Float[Tensor, "batch latent row column latent_width"]:
        """Return what goes into the bottleneck, of a whole clip or of the next piece."""
        states = _States() if states is None else states
        frames = frames.to(self.project.weight.dtype) * _PIXEL_SCALE
        split = 0 if states.begun else 1
        parts = []
        side, time = self.config.pixel_patch, self.config.pixel_frames
        if split:
            squares = "b t rgb (r y) (c x) -> b t r c (rgb y x)"
            parts.append(self.first_frame(rearrange(frames[:, :1], squares, y=side, x=side)))
        if frames.shape[1] > split:
            cubes = "b (t q) rgb (r y) (c x) -> b t r c (rgb q y x)"
            later = rearrange(frames[:, split:], cubes, q=time, y=side, x=side)
            parts.append(self.later_frames(later))
        volume = torch.cat(parts, dim=1)
        volume = self.temporal(self.spatial(volume, states.spatial), states.temporal)
        if "space" in self.config.deferred_pooling:
            t = volume.shape[1]
            flat = rearrange(volume, "b t r c width -> (b t) width r c")
            volume = rearrange(F.avg_pool2d(flat, 2), "(b t) width r c -> b t r c width", t=t)
        if "time" in self.config.deferred_pooling:
            pairs = rearrange(
                volume[:, split:], "b (t pair) r c width -> b t pair r c width", pair=2
            )
            volume = torch.cat((volume[:, :split], pairs.mean(dim=2)), dim=1)
        states.begun = True
        latents: Tensor = self.project(volume)
        return latents.float()


class Decoder(nn.Module):
    """Projection from the bottleneck, temporal stack, spatial stack, patches."""

    def __init__(self, config: CodecConfig, latent_width: int) -> None:
        super().__init__()
        self.config = config
        width, time = config.decoder.width, config.pixel_frames
        side = config.pixel_patch * config.upscale
        linear = config.patch_embedding == "linear"
        make = nn.Linear if linear else _TransposedPatches
        self.project = nn.Linear(latent_width, width)
        self.temporal = SpaceTimeStack(config.decoder, "temporal")
        self.spatial = SpaceTimeStack(config.decoder, "spatial")
        self.first_frame = make(width, 3 * side * side)
        self.later_frames = make(width, 3 * time * side * side)

    def forward(
        self,
        latents: Float[Tensor, "batch latent row column latent_width"],
        states: "_States | None" = None,
    ) -> Float[Tensor, "batch time 3 height width"]:
        """Return float32 frames, not clamped, of a whole clip or of the next piece."""
        states = _States() if states is None else states
        split = 0 if states.begun else 1
        volume = self.project(latents.to(self.project.weight.dtype))
        if "time" in self.config.deferred_pooling:
            later = repeat(volume[:, split:], "b t r c width -> b (t pair) r c width", pair=2)
            volume = torch.cat((volume[:, :split], later), dim=1)
        if "space" in self.config.deferred_pooling:
            volume = repeat(volume, "b t r c width -> b t (r y) (c x) width", y=2, x=2)
        volume = self.spatial(self.temporal(volume, states.temporal), states.spatial)
        states.begun = True
        side = self.config.pixel_patch * self.config.upscale
        parts = []
        if split:
            squares = "b t r c (rgb y x) -> b t rgb (r y) (c x)"
            parts.append(rearrange(self.first_frame(volume[:, :1]), squares, y=side, x=side, rgb=3))
        if volume.shape[1] > split:
            cubes = "b t r c (rgb q y x) -> b (t q) rgb (r y) (c x)"
            later = self.later_frames(volume[:, split:])
            time = self.config.pixel_frames
            parts.append(rearrange(later, cubes, rgb=3, q=time, y=side, x=side))
        return torch.cat(parts, dim=1).float() / _PIXEL_SCALE


class OmniTokenizer(VisualTokenizer):
    """Tokenizes images and videos with one set of weights.

    With `aligned` temporal convolutions and causal stacks it is exactly causal: the ids of an
    image are those of the first grid of any video that begins with it, the ids of a clip do not
    change when frames are appended, and a stream gives what the whole clip gives, bit for bit.
    For that, `encode` and `decode` themselves work grid by grid: sums over the same shapes come
    out the same whatever the clip's length. `forward`, for training, takes the clip at once.

    Encoder and decoder run in the type of their weights, the quantizer in float32.

    Source: Wang et al. 2024, OmniTokenizer (arXiv:2406.09399), section 3.1.
    """

    config: OmniTokenizerConfig

    def __init__(self, config: OmniTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = build_quantizer(config.quantizer)
        self.encoder = Encoder(config, self.quantizer.width)
        self.decoder = Decoder(config, self.quantizer.width)
        self.frame_height, self.frame_width = config.frame_height, config.frame_width
        self.rows = config.frame_height // config.reduction
        self.columns = config.frame_width // config.reduction
        self.codebook_size = self.quantizer.codebook_size
        self.frames_per_latent = config.frames_per_latent

    @property
    def single_frames(self) -> bool:
        """Whether every grid stands for one frame: never, grids know those before them."""
        return False

    @property
    def causal(self) -> bool:
        """Whether no id and no frame depends on anything later."""
        return self.config.streams

    def forward(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        perturb: Perturbation | None = None,
    ) -> TokenizerOutput:
        """Return reconstruction, ids and quantizer loss, with gradients."""
        self._check(frames)
        batch = len(frames)
        output = self.quantizer(_to_vectors(self.encoder(frames)))
        codes = output.quantized
        if perturb is not None:
            wrong = self.quantizer.ids_to_vectors(perturb(output.ids))
            codes = codes + (wrong - codes).detach()
        return TokenizerOutput(
            reconstruction=self.decoder(_from_vectors(codes, batch)),
            ids=rearrange(output.ids, "(b t) r c -> b t r c", b=batch),
            quantizer_loss=output.loss,
        )

    def encode(
        self, frames: Float[Tensor, "batch time 3 height width"]
    ) -> Int[Tensor, "batch latent row column"]:
        """Return int64 ids of frames in [-1, 1], of any size that the patch divides.

        Raises:
            ConfigError: If shape, type, range or number of the frames do not fit.
        """
        if frames.ndim == 5:
            self.num_latents(frames.shape[1])
        if self.config.streams:
            # It checks all the rest; looking at every pixel twice would be for nothing.
            return self.encoder_stream().push(frames)
        self._check(frames)
        return self._encode_piece(frames, _States())

    def decode(
        self, ids: Int[Tensor, "batch latent row column"]
    ) -> Float[Tensor, "batch time 3 height width"]:
        """Return float32 frames in [-1, 1].

        Raises:
            ConfigError: If the ids have another shape or type, or lie outside the codebook.
        """
        if self.config.streams:
            return self.decoder_stream().push(ids)
        self.check_ids(ids)
        return self._decode_piece(ids, _States())

    def last_layer(self, num_frames: int) -> Tensor:
        """Return the weight that writes the pixels of the last frame of a clip of that length."""
        decoder = self.decoder
        layer = decoder.first_frame if num_frames == 1 else decoder.later_frames
        return next(weight for weight in layer.parameters() if weight.ndim > 1)

    def encoder_stream(self) -> EncoderStream:
        """Return a stream that encodes a clip piece by piece, in memory that does not grow.

        Raises:
            ConfigError: If the tokenizer needs whole clips.
        """
        self._check_streams()
        return _Stream(self._check, self._encode_piece, self.frames_per_latent)

    def decoder_stream(self) -> DecoderStream:
        """Return a stream that decodes a clip piece by piece, in memory that does not grow.

        Raises:
            ConfigError: If the tokenizer needs whole clips.
        """
        self._check_streams()
        return _Stream(self.check_ids, self._decode_piece, 1)

    @torch.no_grad()
    def begin_clips(self) -> None:
        """Start the patches of later frames from those of first frames.

        A clip that stands still then has the same embedding at every step, that of its first
        frame, and decodes to one frame repeated, if the stacks see no difference either.

        Source: inflation of image weights, Carreira and Zisserman 2017 (arXiv:1705.07750),
            section 2.3; released OmniTokenizers were trained with another order of the weights.
        """
        times = self.config.pixel_frames
        _inflate(self.encoder.later_frames, self.encoder.first_frame, times, reads=True)
        _inflate(self.decoder.later_frames, self.decoder.first_frame, times, reads=False)

    @torch.no_grad()
    def _encode_piece(self, frames: Tensor, states: "_States") -> Tensor:
        latents = self.encoder(frames.to(self.device), states)
        ids: Tensor = self.quantizer(_to_vectors(latents)).ids
        return rearrange(ids, "(b t) r c -> b t r c", b=len(frames))

    @torch.no_grad()
    def _decode_piece(self, ids: Tensor, states: "_States") -> Tensor:
        flat = rearrange(ids.to(self.device), "b t r c -> (b t) r c")
        codes = self.quantizer.ids_to_vectors(flat)
        frames: Tensor = self.decoder(_from_vectors(codes, len(ids)), states)
        return frames.clamp(-1.0, 1.0)

    def _check(self, frames: Tensor) -> None:
        self.check_frames(frames)
        _check_size(frames, self.config)

    def _check_streams(self) -> None:
        if not self.config.streams:
            raise ConfigError(
                "this tokenizer is not causal (scrambled or symmetric convolutions, or attention "
                "to later frames) and needs whole clips; use encode and decode"
            )


@dataclass(frozen=True, kw_only=True)
class GaussianLatents:
    """A diagonal Gaussian at each place of a volume."""

    mean: Float[Tensor, "batch latent row column width"]
    log_variance: Float[Tensor, "batch latent row column width"]
    """Clamped to [-30, 20]."""

    def sample(
        self, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch latent row column width"]:
        """Return a draw; the same generator state gives the same draw."""
        device = self.mean.device if generator is None else generator.device
        return self.draw(torch.randn(self.mean.shape, generator=generator, device=device))

    def draw(
        self, noise: Float[Tensor, "batch latent row column width"]
    ) -> Float[Tensor, "batch latent row column width"]:
        """Return the latents that standard normal noise stands for."""
        return self.mean + (0.5 * self.log_variance).exp() * noise.to(self.mean)

    def divergence(self) -> Float[Tensor, ""]:
        """Return the Kullback-Leibler divergence from a standard normal, nats a clip.

        Source: Kingma and Welling 2014 (arXiv:1312.6114), appendix B.
        """
        terms = self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance
        return 0.5 * terms.sum() / len(self.mean)


class OmniAutoencoder(nn.Module):
    """The same encoder and decoder around continuous latents; for diffusion models, not for ids.

    Source: Wang et al. 2024, OmniTokenizer (arXiv:2406.09399), section 3.3.
    """

    def __init__(self, config: OmniAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, 2 * config.latent_width)
        self.decoder = Decoder(config, config.latent_width)

    def encode(self, frames: Float[Tensor, "batch time 3 height width"]) -> GaussianLatents:
        """Return the latents of frames in [-1, 1]; their `mean` is the deterministic choice.

        Raises:
            ConfigError: If shape, type, range or number of the frames do not fit.
        """
        VisualTokenizer.check_frames(frames)
        _check_size(frames, self.config)
        group = self.config.frames_per_latent
        if frames.shape[1] < 1 or (frames.shape[1] - 1) % group:
            raise ConfigError(
                f"this autoencoder takes clips of 1 + k x {group} frames, got {frames.shape[1]}"
            )
        mean, log_variance = self.encoder(frames).chunk(2, dim=-1)
        return GaussianLatents(mean=mean, log_variance=log_variance.clamp(-30.0, 20.0))

    def decode(
        self, latents: Float[Tensor, "batch latent row column width"]
    ) -> Float[Tensor, "batch time 3 height width"]:
        """Return float32 frames, not clamped.

        Raises:
            ConfigError: If the latents have another shape.
        """
        if latents.ndim != 5 or latents.shape[-1] != self.config.latent_width:
            raise ConfigError(
                f"latents must have the shape [batch, latent, row, column, "
                f"{self.config.latent_width}], got {list(latents.shape)}"
            )
        frames: Tensor = self.decoder(latents)
        return frames

    def forward(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "batch time 3 height width"], GaussianLatents]:
        """Return the reconstruction from a draw, and the latents."""
        latents = self.encode(frames)
        return self.decode(latents.sample(generator)), latents


@dataclass
class _States:
    """What encoder or decoder remembers between two pieces of a clip."""

    spatial: StreamState
    temporal: StreamState
    begun: bool

    def __init__(self) -> None:
        self.spatial, self.temporal, self.begun = StreamState(), StreamState(), False

    def fork(self) -> "_States":
        copy = _States()
        copy.spatial, copy.temporal = self.spatial.fork(), self.temporal.fork()
        copy.begun = self.begun
        return copy


class _Stream:
    """Feeds a clip through `convert` one grid of ids after the other.

    Args:
        check: Raises where a piece cannot be converted.
        convert: Takes the frames or the ids of one grid.
        size: Entries along time of one grid, that at the beginning of the clip excepted.
    """

    def __init__(
        self,
        check: Callable[[Tensor], None],
        convert: Callable[[Tensor, _States], Tensor],
        size: int,
    ) -> None:
        self._check, self._convert, self._size = check, convert, size
        self._states = _States()

    def push(self, piece: Tensor) -> Tensor:
        self._check(piece)
        lengths = [self._size] * (piece.shape[1] // self._size)
        if not self._states.begun:
            lengths = [1] + [self._size] * ((piece.shape[1] - 1) // self._size)
        if sum(lengths) != piece.shape[1] or not lengths:
            raise ConfigError(
                f"a stream takes {self._size} frames at a time, and one more at its beginning; "
                f"got {piece.shape[1]}"
            )
        return torch.cat(
            [self._convert(part, self._states) for part in piece.split(lengths, dim=1)], dim=1
        )

    def fork(self) -> Self:
        copy = type(self)(self._check, self._convert, self._size)
        copy._states = self._states.fork()
        return copy


class _LinearPatches(nn.Module):
    def __init__(self, values: int, width: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(values)
        self.linear = nn.Linear(values, width)
        self.after = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        embedded: Tensor = self.after(self.linear(self.before(patches)))
        return embedded


class _ConvolutionalPatches(nn.Module):
    """A convolution whose kernel is its stride, as a linear map, then batch normalisation."""

    def __init__(self, values: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(values, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, patches: Tensor) -> Tensor:
        embedded = self.linear(patches)
        normalised: Tensor = self.norm(embedded.flatten(0, -2)).view(embedded.shape)
        return normalised


class _TransposedPatches(nn.Module):
    """The way back: a linear map to all pixels of a patch, batch normalisation of each colour."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, values)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, volume: Tensor) -> Tensor:
        pixels = rearrange(self.linear(volume), "... (rgb pixel) -> (...) rgb pixel", rgb=3)
        patches: Tensor = self.norm(pixels).reshape(*volume.shape[:-1], -1)
        return patches


def _check_size(frames: Tensor, config: CodecConfig) -> None:
    size = config.reduction
    if frames.shape[-2] % size or frames.shape[-1] % size:
        raise ConfigError(
            f"frames of {frames.shape[-2]} x {frames.shape[-1]} pixels do not divide into "
            f"squares of {size}; crop or resize them"
        )


def _to_vectors(latents: Tensor) -> Tensor:
    return rearrange(latents, "b t r c width -> (b t) width r c")


def _from_vectors(codes: Tensor, batch: int) -> Tensor:
    return rearrange(codes, "(b t) width r c -> b t r c width", b=batch)


def _inflate(clips: nn.Module, images: nn.Module, times: int, *, reads: bool) -> None:
    """Copy the weights of `images` to each of the frames that a patch of `clips` holds."""
    for (name, own), other in zip(
        clips.state_dict().items(), images.state_dict().values(), strict=True
    ):
        axes = [axis for axis in range(own.ndim) if own.shape[axis] != other.shape[axis]]
        for axis in axes:
            spread = repeat(
                other.movedim(axis, -1), "... (rgb yx) -> ... (rgb times yx)", rgb=3, times=times
            )
            # What reads all frames of a patch adds them up.
            other = spread.movedim(-1, axis) / (times if reads and name == "linear.weight" else 1)
        own.copy_(other)
