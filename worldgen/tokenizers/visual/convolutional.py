"""Tokenizer of single frames: convolutional encoder, quantizer, convolutional decoder."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import QuantizerConfig, build_quantizer
from worldgen.tokenizers.visual.base import Perturbation, TokenizerOutput, VisualTokenizer
from worldgen.tokenizers.visual.patch import PatchConfig, PatchDecoder, PatchEncoder
from worldgen.tokenizers.visual.pyramid import PyramidConfig, PyramidDecoder, PyramidEncoder
from worldgen.tokenizers.visual.vqgan import VQGANConfig, VQGANDecoder, VQGANEncoder

__all__ = ["CoderConfig", "ConvolutionalTokenizer", "ConvolutionalTokenizerConfig"]

CoderConfig = PyramidConfig | PatchConfig | VQGANConfig
"""What an encoder or a decoder is made of."""


@dataclass(frozen=True, kw_only=True)
class ConvolutionalTokenizerConfig:
    """A frame tokenizer; encoder and decoder need not be alike, only reduce alike."""

    kind: Literal["convolutional"] = "convolutional"
    frame_height: int
    frame_width: int
    encoder: CoderConfig | None
    """None for a tokenizer that only shows ids, whose encoder is not at hand."""
    decoder: CoderConfig
    quantizer: QuantizerConfig

    def __post_init__(self) -> None:
        reduction = self.decoder.reduction
        if self.encoder is not None and self.encoder.reduction != reduction:
            raise ConfigError(
                f"encoder and decoder must reduce by the same factor, got "
                f"{self.encoder.reduction} and {reduction}"
            )
        if self.frame_height % reduction or self.frame_width % reduction:
            raise ConfigError(
                f"frames of {self.frame_height} x {self.frame_width} pixels do not divide into "
                f"squares of {reduction}; change the frame size or the reduction"
            )


class ConvolutionalTokenizer(VisualTokenizer):
    """Tokenizes each frame alone (`frames_per_latent` is 1).

    Encoder and decoder run in the type of their weights, the quantizer in float32, so the
    networks may be cast to bfloat16 for speed while ids stay exact.

    Source: the encoder-quantizer-decoder scheme of Esser et al. 2021, Taming Transformers
        (arXiv:2012.09841), section 3.1, without its adversarial and perceptual losses.
    """

    config: ConvolutionalTokenizerConfig

    def __init__(self, config: ConvolutionalTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = build_quantizer(config.quantizer)
        self.encoder = _build_encoder(config.encoder, self.quantizer.width)
        self.decoder = _build_decoder(config.decoder, self.quantizer.width)
        self.frame_height, self.frame_width = config.frame_height, config.frame_width
        self.rows = config.frame_height // config.decoder.reduction
        self.columns = config.frame_width // config.decoder.reduction
        self.codebook_size = self.quantizer.codebook_size
        self.frames_per_latent = 1
        # The layout in which CPU and tensor-core convolutions are fastest; moving weights keeps it.
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        perturb: Perturbation | None = None,
    ) -> TokenizerOutput:
        """Return reconstruction, ids and quantizer loss, with gradients.

        Raises:
            ConfigError: If the frames are of another size, type or range than `encode` takes.
        """
        self._check(frames)
        batch = frames.shape[0]
        output = self.quantizer(self._to_latents(frames))
        codes = output.quantized
        if perturb is not None:
            wrong = self.quantizer.ids_to_vectors(perturb(output.ids))
            codes = codes + (wrong - codes).detach()
        return TokenizerOutput(
            reconstruction=self._to_frames(codes, batch),
            ids=rearrange(output.ids, "(b t) r c -> b t r c", b=batch),
            quantizer_loss=output.loss,
        )

    @torch.no_grad()
    def encode(
        self, frames: Float[Tensor, "batch time 3 height width"]
    ) -> Int[Tensor, "batch time row column"]:
        """Return int64 ids of frames in [-1, 1].

        Raises:
            ConfigError: If the frames are not of the size the tokenizer was made for, or their
                shape, type or range is wrong.
        """
        self._check(frames)
        ids: Tensor = self.quantizer(self._to_latents(frames.to(self.device))).ids
        return rearrange(ids, "(b t) r c -> b t r c", b=frames.shape[0])

    @torch.no_grad()
    def decode(
        self, ids: Int[Tensor, "batch time row column"]
    ) -> Float[Tensor, "batch time 3 height width"]:
        """Return float32 frames in [-1, 1].

        Raises:
            ConfigError: If the ids have another shape or type, or lie outside the codebook.
        """
        self.check_ids(ids)
        flat = rearrange(ids.to(self.device), "b t r c -> (b t) r c")
        codes = self.quantizer.ids_to_vectors(flat)
        return self._to_frames(codes, ids.shape[0]).clamp(-1.0, 1.0)

    def _check(self, frames: Tensor) -> None:
        if self.config.encoder is None:
            raise ConfigError(
                "this tokenizer has no encoder: it shows ids and cannot make them of frames; "
                "import or train it with its encoder"
            )
        self.check_frames(frames)
        if frames.shape[-2:] != (self.frame_height, self.frame_width):
            raise ConfigError(
                f"this tokenizer takes frames of {self.frame_height} x {self.frame_width} pixels, "
                f"got {frames.shape[-2]} x {frames.shape[-1]}; resize them"
            )

    def _to_latents(self, frames: Tensor) -> Tensor:
        flat = rearrange(frames, "b t rgb h w -> (b t) rgb h w").to(_weight_type(self.encoder))
        latents: Tensor = self.encoder(flat.contiguous(memory_format=torch.channels_last))
        return latents.float()

    def _to_frames(self, codes: Tensor, batch: int) -> Tensor:
        codes = codes.to(_weight_type(self.decoder))
        flat: Tensor = self.decoder(codes.contiguous(memory_format=torch.channels_last))
        return rearrange(flat.float(), "(b t) rgb h w -> b t rgb h w", b=batch)


def _weight_type(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _build_encoder(config: CoderConfig | None, latent_width: int) -> nn.Module:
    match config:
        case None:
            return nn.Identity()
        case PyramidConfig():
            return PyramidEncoder(config, latent_width)
        case PatchConfig():
            return PatchEncoder(config, latent_width)
        case VQGANConfig():
            return VQGANEncoder(config, latent_width)


def _build_decoder(config: CoderConfig, latent_width: int) -> nn.Module:
    match config:
        case PyramidConfig():
            return PyramidDecoder(config, latent_width)
        case PatchConfig():
            return PatchDecoder(config, latent_width)
        case VQGANConfig():
            return VQGANDecoder(config, latent_width)
