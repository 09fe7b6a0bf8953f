"""What every visual tokenizer does: frames to a grid of ids and back, whole or as a stream."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from worldgen.errors import ConfigError

__all__ = ["DecoderStream", "EncoderStream", "Perturbation", "TokenizerOutput", "VisualTokenizer"]

Perturbation = Callable[[Tensor], Tensor]
"""Takes ids, returns ids of the same shape, some of them replaced."""


@dataclass(frozen=True, kw_only=True)
class TokenizerOutput:
    """Result of one training pass."""

    reconstruction: Float[Tensor, "batch time 3 height width"]
    """Not clamped, so that gradients reach values outside [-1, 1]."""
    ids: Int[Tensor, "batch latent row column"]
    quantizer_loss: Float[Tensor, ""]


@runtime_checkable
class EncoderStream(Protocol):
    """Encodes one clip piece by piece; gives what `VisualTokenizer.encode` gives for the whole."""

    def push(
        self, frames: Float[Tensor, "batch time 3 height width"]
    ) -> Int[Tensor, "batch latent row column"]:
        """Return the ids of the next frames.

        At first 1 + k * `frames_per_latent` frames, then multiples of `frames_per_latent`.

        Raises:
            ConfigError: If the frames do not fit.
        """

    def fork(self) -> Self:
        """Return an independent stream that goes on from here."""


@runtime_checkable
class DecoderStream(Protocol):
    """Decodes one clip piece by piece; gives what `VisualTokenizer.decode` gives for the whole."""

    def push(
        self, ids: Int[Tensor, "batch latent row column"]
    ) -> Float[Tensor, "batch time 3 height width"]:
        """Return the frames of the next grids of ids; the very first grid gives one frame."""

    def fork(self) -> Self:
        """Return an independent stream that goes on from here."""


class VisualTokenizer(nn.Module, ABC):
    """Frames to visual tokens and back.

    Frames are float in [-1, 1], channels first; `worldgen.records.to_float` makes them from
    uint8. The first grid of ids of a clip stands for one frame, so that an image is a clip of
    one frame; each later grid stands for `frames_per_latent` frames.
    """

    config: Any
    """The frozen dataclass that built it; `save_visual_tokenizer` writes it beside the weights."""
    frame_height: int
    frame_width: int
    rows: int
    """Height of the grid of ids."""
    columns: int
    """Width of the grid of ids."""
    codebook_size: int
    frames_per_latent: int

    @property
    def device(self) -> torch.device:
        """Where the weights are; `encode` and `decode` move what they are given there."""
        return next(self.parameters()).device

    @abstractmethod
    def forward(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        perturb: Perturbation | None = None,
    ) -> TokenizerOutput:
        """Return reconstruction, ids and quantizer loss, with gradients.

        Args:
            frames: In [-1, 1].
            perturb: Replaces ids before they are decoded, so that the decoder learns to live with
                wrong ones; the ids returned and the gradient of the encoder stay those without.
        """

    @abstractmethod
    def encode(
        self, frames: Float[Tensor, "batch time 3 height width"]
    ) -> Int[Tensor, "batch latent row column"]:
        """Return int64 ids in [0, codebook_size) of frames in [-1, 1]."""

    @abstractmethod
    def decode(
        self, ids: Int[Tensor, "batch latent row column"]
    ) -> Float[Tensor, "batch time 3 height width"]:
        """Return float32 frames in [-1, 1] of ids in [0, codebook_size)."""

    def last_layer(self, num_frames: int) -> Tensor:
        """Return the weight that writes the pixels of the last frame of a clip of that length.

        Losses are weighed against each other by their gradients there.
        """
        del num_frames
        decoder = self.get_submodule("decoder")
        return [parameter for parameter in decoder.parameters() if parameter.ndim > 1][-1]

    def encoder_stream(self) -> EncoderStream:
        """Return a stream for one clip (or a batch of clips of equal length).

        Raises:
            ConfigError: If the tokenizer needs whole clips.
        """
        return _FrameByFrame(self.encode)

    def decoder_stream(self) -> DecoderStream:
        """Return a stream for one clip (or a batch of clips of equal length).

        Raises:
            ConfigError: If the tokenizer needs whole clips.
        """
        return _FrameByFrame(self.decode)

    def num_latents(self, num_frames: int) -> int:
        """Return how many grids of ids stand for a clip.

        Raises:
            ConfigError: If no whole number does.
        """
        size = self.frames_per_latent
        if num_frames < 1 or (num_frames - 1) % size:
            below = max(1, num_frames - (num_frames - 1) % size)
            raise ConfigError(
                f"this tokenizer takes clips of 1 + k x {size} frames, got {num_frames}; "
                f"cut the clip to {below} or fill it up to {below + size}"
            )
        return 1 + (num_frames - 1) // size

    def num_frames(self, num_latents: int) -> int:
        """Return how many frames that many grids of ids stand for, the first of them for one."""
        return 1 + (num_latents - 1) * self.frames_per_latent

    def longest_clip(self, num_frames: int) -> int:
        """Return the largest number of frames that can be a clip, `num_frames` at most."""
        return self.num_frames(1 + (num_frames - 1) // self.frames_per_latent)

    def encode_clips(
        self, clips: Sequence[Float[Tensor, "time 3 height width"]]
    ) -> list[Int[Tensor, "latent row column"]]:
        """Return the ids of clips of different lengths, encoded as one batch.

        Shorter clips are filled up with their last frame. In a tokenizer that is causal in time
        this changes nothing before; others take the clips one by one.

        Raises:
            ConfigError: If a length does not fit.
        """
        lengths = [self.num_latents(len(clip)) for clip in clips]
        if not self.causal:
            return [self.encode(clip[None])[0] for clip in clips]
        longest = max((len(clip) for clip in clips), default=0)
        filled = [
            torch.cat((clip, repeat(clip[-1], "... -> t ...", t=longest - len(clip))))
            for clip in clips
        ]
        ids: Tensor | list[Tensor] = self.encode(torch.stack(filled)) if filled else []
        return [own[:length] for own, length in zip(ids, lengths, strict=True)]

    def begin_clips(self) -> None:
        """Start what only clips use from what images have taught; call it once, before clips."""

    @property
    def single_frames(self) -> bool:
        """Whether every grid stands for one frame, whatever came before it in the clip."""
        return True

    @property
    def causal(self) -> bool:
        """Whether no id and no frame depends on anything later."""
        return True

    @staticmethod
    def check_frames(frames: Tensor) -> None:
        """Refuse what `encode` could only turn into nonsense.

        Raises:
            ConfigError: If the shape, the type or the range is wrong.
        """
        if frames.ndim != 5 or frames.shape[2] != 3 or frames.numel() == 0:
            raise ConfigError(
                f"frames must have the shape [batch, time, 3, height, width] and be at least one, "
                f"got {list(frames.shape)}"
            )
        if not frames.dtype.is_floating_point:
            raise ConfigError(
                f"frames must be float in [-1, 1], got {frames.dtype}; "
                "worldgen.records.to_float makes them from uint8"
            )
        low, high = (float(bound) for bound in torch.aminmax(frames.detach()))
        # Not written as two comparisons that NaN would pass.
        if not (low >= -1.001 and high <= 1.001):
            raise ConfigError(
                f"frames must lie in [-1, 1], got values from {low:g} to {high:g}; "
                "worldgen.records.to_float makes such frames from uint8"
            )

    def check_ids(self, ids: Tensor) -> None:
        """Refuse what `decode` could not look up.

        Raises:
            ConfigError: If the shape or the type is wrong, or an id lies outside the codebook.
        """
        if ids.ndim != 4 or not ids.numel() or ids.dtype.is_floating_point:
            raise ConfigError(
                f"ids must be integers of shape [batch, latent, row, column], at least one, got "
                f"{ids.dtype} of shape {list(ids.shape)}"
            )
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= self.codebook_size:
            raise ConfigError(
                f"ids must lie in 0 ... {self.codebook_size - 1}, got {low} to {high}"
            )


class _FrameByFrame:
    """Stream of a tokenizer whose frames know nothing of each other."""

    def __init__(self, convert: Callable[[Tensor], Tensor]) -> None:
        self._convert = convert

    def push(self, piece: Tensor) -> Tensor:
        return self._convert(piece)

    def fork(self) -> Self:
        return self
