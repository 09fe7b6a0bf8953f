"""Tokenizer of videos: a codec of single frames, with attention over time and over each frame."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.nn.attention import AttentionConfig, attend
from worldgen.nn.blocks import Block, BlockConfig, initialise
from worldgen.nn.rotary import RotaryTable, rotary_table
from worldgen.tokenizers.quantizers import QuantizerConfig, build_quantizer
from worldgen.tokenizers.visual.base import (
    DecoderStream,
    EncoderStream,
    Perturbation,
    TokenizerOutput,
    VisualTokenizer,
)
from worldgen.tokenizers.visual.vqgan import VQGANConfig, VQGANDecoder, VQGANEncoder

__all__ = ["TemporalTokenizer", "TemporalTokenizerConfig", "TimeMemory"]


@dataclass(frozen=True, kw_only=True)
class TemporalTokenizerConfig:
    """A tokenizer of videos; the defaults are those of DrivingWorld's."""

    kind: Literal["temporal"] = "temporal"
    frame_height: int
    """Pixels of the frames it is made for; others work if the reduction divides them."""
    frame_width: int
    encoder: VQGANConfig
    decoder: VQGANConfig
    quantizer: QuantizerConfig
    num_heads: int = 8
    """Heads of the two blocks, which are as wide as the features (`latent_width`)."""
    feed_forward_width: int = 768
    """Width between the two linear maps of the blocks' feed-forward layers."""
    rotary_base: float = 1000.0
    """Ratio that sets the slowest frequency of the rotary positions."""
    window: int = 16
    """Frames that a frame is encoded and decoded with, itself included; all earlier or its own."""

    def __post_init__(self) -> None:
        reduction, width = self.encoder.reduction, self.encoder.latent_width
        if (reduction, width) != (self.decoder.reduction, self.decoder.latent_width):
            raise ConfigError(
                f"encoder and decoder share the blocks between them, so reduction and latent_width "
                f"must be the same, got {reduction} and {width} against {self.decoder.reduction} "
                f"and {self.decoder.latent_width}"
            )
        if self.frame_height % reduction or self.frame_width % reduction:
            raise ConfigError(
                f"frames of {self.frame_height} x {self.frame_width} pixels do not divide into "
                f"squares of {reduction}; change the frame size or the reduction"
            )
        if min(self.num_heads, self.feed_forward_width, self.window) < 1 or self.rotary_base <= 0:
            raise ConfigError(
                f"num_heads, feed_forward_width and window must be at least 1 and rotary_base "
                f"positive, got {self.num_heads}, {self.feed_forward_width}, {self.window} and "
                f"{self.rotary_base}"
            )
        if width % (2 * self.num_heads):
            raise ConfigError(
                f"rotary positions need heads of an even width, got latent_width {width} for "
                f"{self.num_heads} heads"
            )


@dataclass
class TimeMemory:
    """What the block in time remembers of a clip; tensors in it are never written to."""

    num_frames: int = 0
    keys_values: tuple[Tensor, Tensor] | None = None
    """`[place, head, frame, head_width]`, turned by their positions in the clip."""

    def extend(self, key: Tensor, value: Tensor, *, keep: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the frames in sight, and remember the last `keep` of them."""
        if self.keys_values is not None:
            past_key, past_value = self.keys_values
            if len(past_key) != len(key):
                raise ConfigError(
                    f"a stream takes one batch of one size to its end: it began with "
                    f"{len(past_key)} places and got {len(key)}; begin another stream"
                )
            key, value = torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2)
        first = max(0, key.shape[2] - keep)
        self.keys_values = key[:, :, first:], value[:, :, first:]
        return key, value


class TemporalTokenizer(VisualTokenizer):
    """Tokenizes a frame together with those before it; one grid of ids a frame.

    A convolutional encoder gives features of each frame. A block of causal attention along time,
    at each place, and one of attention over the places of each frame then mix them, before they
    are quantized and once more, with the same weights, after it; a convolutional decoder paints
    each frame. Ids never depend on later frames, and an image is a clip of one frame.

    Each frame sees itself and the `window - 1` frames before it. Positions in time are rotary,
    which compares frames by their distance alone, so the window slides and a clip has no longest
    length. The only block in time reads features that know one frame alone; what a frame is
    encoded to is therefore the same whether it ends a clip of `window` frames or goes on a longer
    one. Upstream has clips of exactly 16 frames, at positions 0 to 15; within the first 16 frames
    nothing differs, and its sliding rollout, which decodes the last 16 grids and keeps the last
    frame, is what a stream gives, for a sixteenth of the work.

    `encode` and `decode` work frame by frame as their streams do, so that a stream gives what the
    whole clip gives, bit for bit; `forward`, for training, takes the clip at once. Encoder, blocks
    and decoder run in the type of their weights, the quantizer in float32.

    Source: Hu et al. 2024, DrivingWorld (arXiv:2412.19505), section 3.1, temporal-aware
        vector-quantized tokenizer; codec, Sun et al. 2024, LlamaGen (arXiv:2406.06525), section
        2.1; rotary positions, Su et al. 2021 (arXiv:2104.09864), equation 15.
    """

    config: TemporalTokenizerConfig

    def __init__(self, config: TemporalTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder.latent_width
        block = BlockConfig(
            attention=AttentionConfig(
                width=width, num_heads=config.num_heads, num_key_value_heads=config.num_heads
            ),
            feed_forward_width=config.feed_forward_width,
        )
        self.quantizer = build_quantizer(config.quantizer)
        self.encoder = VQGANEncoder(config.encoder, self.quantizer.width)
        self.decoder = VQGANDecoder(config.decoder, self.quantizer.width)
        self.time, self.space = Block(block), Block(block)
        for part in (self.time, self.space):
            initialise(part, depth=2)
        self.frame_height, self.frame_width = config.frame_height, config.frame_width
        self.rows = config.frame_height // config.encoder.reduction
        self.columns = config.frame_width // config.encoder.reduction
        self.codebook_size = self.quantizer.codebook_size
        self.frames_per_latent = 1
        # The layout in which CPU and tensor-core convolutions are fastest; moving weights keeps it.
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    @property
    def single_frames(self) -> bool:
        """Whether every grid stands for a frame alone: only where frames see none before them."""
        return self.config.window == 1

    def forward(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        perturb: Perturbation | None = None,
    ) -> TokenizerOutput:
        """Return reconstruction, ids and quantizer loss, with gradients.

        Raises:
            ConfigError: If the frames' shape, type or range does not fit.
        """
        self._check(frames)
        batch = len(frames)
        output = self.quantizer(self._to_latents(frames, TimeMemory()))
        codes = output.quantized
        if perturb is not None:
            wrong = self.quantizer.ids_to_vectors(perturb(output.ids))
            codes = codes + (wrong - codes).detach()
        return TokenizerOutput(
            reconstruction=self._to_frames(codes, batch, TimeMemory()),
            ids=rearrange(output.ids, "(b t) r c -> b t r c", b=batch),
            quantizer_loss=output.loss,
        )

    def encode(
        self, frames: Float[Tensor, "batch time 3 height width"]
    ) -> Int[Tensor, "batch time row column"]:
        """Return int64 ids of frames in [-1, 1], of any size that the reduction divides.

        Raises:
            ConfigError: If the frames' shape, type or range does not fit.
        """
        return self.encoder_stream().push(frames)

    def decode(
        self, ids: Int[Tensor, "batch time row column"]
    ) -> Float[Tensor, "batch time 3 height width"]:
        """Return float32 frames in [-1, 1].

        Raises:
            ConfigError: If the ids have another shape or type, or lie outside the codebook.
        """
        return self.decoder_stream().push(ids)

    def encoder_stream(self) -> EncoderStream:
        """Return a stream that encodes a clip of any length, in memory that does not grow."""
        return _Stream(self._check, self._encode_frame)

    def decoder_stream(self) -> DecoderStream:
        """Return a stream that decodes a clip of any length, in memory that does not grow."""
        return _Stream(self.check_ids, self._decode_frame)

    def mix(
        self, features: Float[Tensor, "batch time width row column"], memory: TimeMemory
    ) -> Float[Tensor, "batch time width row column"]:
        """Return features that know of the frames before, and of all places of their frame.

        Args:
            features: Of the next frames of a clip.
            memory: Of the frames before, brought up to date.
        """
        b, t, _, r, c = features.shape
        first, memory.num_frames = memory.num_frames, memory.num_frames + t

        def look_back(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            del layer
            key, value = memory.extend(key, value, keep=self.config.window - 1)
            return attend(query, key, value, _sees(t, key.shape[2], self.config.window, key.device))

        def look_around(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            del layer
            return attend(query, key, value)

        tokens = rearrange(features, "b t width r c -> (b r c) t width")
        tokens = self.time(tokens, self._positions(first, t, tokens.device), 0, look_back)
        tokens = rearrange(tokens, "(b r c) t width -> (b t) (r c) width", b=b, r=r)
        tokens = self.space(tokens, self._positions(0, r * c, tokens.device), 0, look_around)
        mixed: Tensor = rearrange(tokens, "(b t) (r c) width -> b t width r c", b=b, r=r)
        return mixed

    def _positions(self, first: int, count: int, device: torch.device) -> RotaryTable:
        places = torch.arange(first, first + count, device=device)
        head_width = self.time.attention.config.head_width
        return rotary_table(places[:, None], (head_width,), self.config.rotary_base)

    def _to_latents(self, frames: Tensor, memory: TimeMemory) -> Tensor:
        kind = self.encoder.project.weight.dtype
        flat = rearrange(frames.to(kind), "b t rgb h w -> (b t) rgb h w")
        features = self.encoder.features(flat.contiguous(memory_format=torch.channels_last))
        latents: Tensor = self.encoder.project(self._mix_flat(features, len(frames), memory))
        return latents.float()

    def _to_frames(self, codes: Tensor, batch: int, memory: TimeMemory) -> Tensor:
        features = self.decoder.expand(codes.to(self.decoder.expand.weight.dtype))
        flat = self.decoder.paint(self._mix_flat(features, batch, memory))
        return rearrange(flat.float(), "(b t) rgb h w -> b t rgb h w", b=batch)

    def _mix_flat(self, features: Tensor, batch: int, memory: TimeMemory) -> Tensor:
        clips = rearrange(features, "(b t) width r c -> b t width r c", b=batch)
        mixed = rearrange(self.mix(clips, memory), "b t width r c -> (b t) width r c")
        return mixed.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _encode_frame(self, frame: Tensor, memory: TimeMemory) -> Tensor:
        ids: Tensor = self.quantizer(self._to_latents(frame.to(self.device), memory)).ids
        return rearrange(ids, "b r c -> b 1 r c")

    @torch.no_grad()
    def _decode_frame(self, ids: Tensor, memory: TimeMemory) -> Tensor:
        codes = self.quantizer.ids_to_vectors(ids[:, 0].to(self.device))
        return self._to_frames(codes, len(ids), memory).clamp(-1.0, 1.0)

    def _check(self, frames: Tensor) -> None:
        self.check_frames(frames)
        size = self.config.encoder.reduction
        if frames.shape[-2] % size or frames.shape[-1] % size:
            raise ConfigError(
                f"frames of {frames.shape[-2]} x {frames.shape[-1]} pixels do not divide into "
                f"squares of {size}; crop or resize them"
            )


def _sees(queries: int, keys: int, window: int, device: torch.device) -> Tensor | None:
    """Return which keys the last `queries` of them see; None for all."""
    if queries == 1 and keys <= window:
        return None
    time = torch.arange(keys, device=device)
    distance = time[keys - queries :, None] - time[None, :]
    return (distance >= 0) & (distance < window)


class _Stream:
    """Feeds a clip through `convert` one frame after the other.

    Args:
        check: Raises where a piece cannot be converted.
        convert: Takes one frame, or the ids of one, and what is remembered of those before.
    """

    def __init__(
        self, check: Callable[[Tensor], None], convert: Callable[[Tensor, TimeMemory], Tensor]
    ) -> None:
        self._check, self._convert = check, convert
        self._memory = TimeMemory()

    def push(self, piece: Tensor) -> Tensor:
        self._check(piece)
        return torch.cat(
            [self._convert(frame, self._memory) for frame in piece.split(1, dim=1)], dim=1
        )

    def fork(self) -> Self:
        copy = type(self)(self._check, self._convert)
        copy._memory = replace(self._memory)
        return copy
