"""Perceptual terms: how alike recorded and rebuilt frames look to a network that has seen frames.

None of them downloads anything. Without further files there is the discriminator in training
(`gram`); a tokenizer of an earlier run (`encoder`) and LPIPS (`lpips`) are read from a path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.errors import CheckpointError, ConfigError
from worldgen.nn.residual import ResidualBlock
from worldgen.tokenizers.visual import load_visual_tokenizer

__all__ = [
    "EncoderFeatures",
    "Lpips",
    "PerceptualLoss",
    "PerceptualLossConfig",
    "feature_distance",
    "gram_distance",
]

Features = Sequence[Float[Tensor, "example _ ..."]]
"""Activations `example width *place` of several stages, each with its own width and places."""

# Places of the convolutions in torchvision's VGG-16; a pooling layer stands before those in
# _VGG_AFTER_POOLING, and LPIPS compares what comes out of those in _VGG_COMPARED.
_VGG_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG_AFTER_POOLING = (5, 10, 17, 24)
_VGG_COMPARED = (2, 7, 14, 21, 28)

# Mean and spread of ImageNet's colours on the scale of [-1, 1], as LPIPS rounds them.
_COLOUR_MEAN = (-0.030, -0.088, -0.188)
_COLOUR_SPREAD = (0.458, 0.448, 0.450)


@dataclass(frozen=True, kw_only=True)
class PerceptualLossConfig:
    """Weights of the perceptual terms; a weight of 0 leaves its term out."""

    gram: float = 0.0
    """Of Gram matrices of the discriminators' features; needs discriminators and no files."""
    encoder: float = 0.0
    """Of the features of the encoder of a tokenizer trained before."""
    encoder_path: str | None = None
    """File of that tokenizer, of the convolutional family."""
    lpips: float = 0.0
    lpips_path: str | None = None
    """safetensors file with LPIPS on VGG-16; see `Lpips` for its names."""
    lpips_input_scale: float = 1.0
    """Factor on frames in [-1, 1]; OmniTokenizer was trained with 0.5."""

    def __post_init__(self) -> None:
        if min(self.gram, self.encoder, self.lpips) < 0 or self.lpips_input_scale <= 0:
            raise ConfigError(f"perceptual weights must not be negative, got {self}")
        for name in ("encoder", "lpips"):
            if getattr(self, name) and getattr(self, f"{name}_path") is None:
                raise ConfigError(
                    f"the perceptual term {name!r} reads its network from a file: give "
                    f"{name}_path, or set its weight to 0 and take 'gram', which needs none"
                )


class PerceptualLoss(nn.Module):
    """The perceptual terms of a configuration. Its networks are frozen and not part of a training.

    Raises:
        CheckpointError: If a file is missing or holds something else.
    """

    def __init__(self, config: PerceptualLossConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = None
        if config.encoder and config.encoder_path is not None:
            self.encoder = EncoderFeatures(Path(config.encoder_path))
        self.lpips = None
        if config.lpips and config.lpips_path is not None:
            self.lpips = Lpips(Path(config.lpips_path), input_scale=config.lpips_input_scale)

    def forward(
        self,
        rebuilt: Float[Tensor, "batch time 3 height width"],
        frames: Float[Tensor, "batch time 3 height width"],
        judged: Sequence[tuple[Features, Features]] = (),
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms by name; their sum is the loss.

        Args:
            rebuilt: float, meant for [-1, 1].
            frames: Recorded, float in [-1, 1].
            judged: For each discriminator its features of recorded and of rebuilt frames; where
                there are none, there is no term `gram`.
        """
        ours = rearrange(rebuilt, "b t rgb h w -> (b t) rgb h w")
        theirs = rearrange(frames, "b t rgb h w -> (b t) rgb h w")
        terms: dict[str, Tensor] = {}
        if self.config.gram and judged:
            distances = [gram_distance(fake, real) for real, fake in judged]
            terms["gram"] = self.config.gram * torch.stack(distances).sum()
        if self.encoder is not None:
            with torch.no_grad():
                recorded = self.encoder(theirs)
            terms["encoder"] = self.config.encoder * feature_distance(self.encoder(ours), recorded)
        if self.lpips is not None:
            terms["lpips"] = self.config.lpips * self.lpips(ours, theirs).mean()
        return terms


def gram_distance(rebuilt: Features, recorded: Features) -> Float[Tensor, ""]:
    """Return how far the Gram matrices of features differ: textures, whatever their places.

    The squared norm of the difference of an example's matrices, as a share of that of the
    recorded ones, mean over examples and stages. As a share it does not hang on the scale of the
    features, which drifts in a discriminator that learns. Recorded features get no gradient.

    Source: Gram matrices, Gatys et al. 2016, arXiv:1508.06576, equations 3 and 4; in place of an
        adversary AToken, arXiv:2509.14476.
    """
    distances = []
    for ours, theirs in zip(rebuilt, recorded, strict=True):
        target = _gram(theirs.detach())
        error = (_gram(ours) - target).square().sum(dim=(1, 2))
        distances.append((error / (target.square().sum(dim=(1, 2)) + 1e-8)).mean())
    return torch.stack(distances).mean()


def _gram(features: Tensor) -> Tensor:
    flat: Tensor = features.float().flatten(2)
    gram: Tensor = einsum(flat, flat, "n a place, n b place -> n a b")
    return gram / flat.shape[-1]


def feature_distance(rebuilt: Features, recorded: Features) -> Float[Tensor, ""]:
    """Return the squared distance of features of unit length, mean over places and stages.

    Recorded features get no gradient.

    Source: LPIPS, arXiv:1801.03924, equation 1, with all channels weighted alike.
    """
    distances = []
    for ours, theirs in zip(rebuilt, recorded, strict=True):
        error = _unit_length(ours.float()) - _unit_length(theirs.detach().float())
        distances.append(error.square().sum(dim=1).mean())
    return torch.stack(distances).mean()


def _unit_length(features: Tensor) -> Tensor:
    # The norm's gradient at 0 is 0; that of a square root of a sum would be none at all.
    length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (length + 1e-10)


class EncoderFeatures(nn.Module):
    """What the residual blocks of a trained encoder say about frames.

    Raises:
        CheckpointError: If the file is missing, damaged, or its encoder has no residual blocks.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        encoder = load_visual_tokenizer(path).get_submodule("encoder")
        blocks = [part for part in encoder.modules() if isinstance(part, ResidualBlock)]
        if not blocks:
            raise CheckpointError(
                f"{path} holds a tokenizer whose encoder has no residual blocks to read features "
                f"from; give one of the convolutional family with a pyramid"
            )
        self.encoder = encoder.eval().requires_grad_(False)
        self._features: list[Tensor] = []
        for block in blocks:
            block.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, features: Tensor) -> None:
        self._features.append(features)

    def forward(self, frames: Float[Tensor, "example 3 height width"]) -> list[Tensor]:
        """Return the features of each residual block, from the finest level to the coarsest.

        Args:
            frames: float in [-1, 1], of a size that the encoder's reduction divides.
        """
        self._features = []
        self.encoder(frames)
        features, self._features = self._features, []
        return features

    def train(self, mode: bool = True) -> "EncoderFeatures":
        """Stay as it was trained."""
        del mode
        return super().train(False)


class Lpips(nn.Module):
    """Learned perceptual distance on VGG-16, from weights of the user's.

    The file has torchvision's `features.N.weight` and `features.N.bias` of VGG-16 and the `lpips`
    package's `lin0.model.1.weight` to `lin4.model.1.weight`; others in it are passed over. Where
    both packages are installed, this makes it::

        vgg = torchvision.models.vgg16(weights="IMAGENET1K_V1").state_dict()
        linear = lpips.LPIPS(net="vgg").state_dict()
        names = [f"lin{stage}.model.1.weight" for stage in range(5)]
        kept = {name: tensor for name, tensor in vgg.items() if name.startswith("features.")}
        save_file(kept | {name: linear[name] for name in names}, "lpips_vgg16.safetensors")

    Widths are those of the file. Frames in [-1, 1] are what LPIPS was fitted to; OmniTokenizer
    gave it frames in [-0.5, 0.5], which is `input_scale=0.5`.

    Source: Zhang et al. 2018, arXiv:1801.03924, equation 1.

    Raises:
        CheckpointError: If the file is missing, damaged, or lacks weights; the message lists them.
    """

    colour_mean: Tensor
    colour_spread: Tensor

    def __init__(self, path: Path, *, input_scale: float = 1.0) -> None:
        super().__init__()
        self.input_scale = input_scale
        tensors = _read(path)
        _check(tensors, path)
        self.convolutions = nn.ModuleList()
        for number in _VGG_CONVOLUTIONS:
            weight = tensors[f"features.{number}.weight"].float()
            convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            convolution.weight.data = weight
            convolution.bias = nn.Parameter(tensors[f"features.{number}.bias"].float())
            self.convolutions.append(convolution)
        self.channel_weights = nn.ParameterList(
            tensors[name].float() for name in map(_linear_name, range(len(_VGG_COMPARED)))
        )
        for name, values in (("colour_mean", _COLOUR_MEAN), ("colour_spread", _COLOUR_SPREAD)):
            colours = rearrange(torch.tensor(values), "rgb -> rgb 1 1")
            self.register_buffer(name, colours, persistent=False)
        self.eval().requires_grad_(False)

    def forward(
        self,
        rebuilt: Float[Tensor, "example 3 height width"],
        frames: Float[Tensor, "example 3 height width"],
    ) -> Float[Tensor, " example"]:
        """Return the distance of each pair of frames, 0 where they are equal.

        Args:
            rebuilt: float, meant for [-1, 1]; at least 16 pixels on a side.
            frames: float in [-1, 1].
        """
        with torch.no_grad():
            recorded = self._features(frames)
        total = torch.zeros(rebuilt.shape[0], device=rebuilt.device)
        for ours, theirs, weights in zip(
            self._features(rebuilt), recorded, self.channel_weights, strict=True
        ):
            error = (_unit_length(ours.float()) - _unit_length(theirs.float())).square()
            total = total + reduce(F.conv2d(error, weights), "n 1 h w -> n", "mean")
        return total

    def _features(self, frames: Tensor) -> list[Tensor]:
        hidden = (self.input_scale * frames - self.colour_mean) / self.colour_spread
        features = []
        for number, convolution in zip(_VGG_CONVOLUTIONS, self.convolutions, strict=True):
            if number in _VGG_AFTER_POOLING:
                hidden = F.max_pool2d(hidden, 2)
            hidden = F.relu(convolution(hidden))
            if number in _VGG_COMPARED:
                features.append(hidden)
        return features


def _linear_name(stage: int) -> str:
    return f"lin{stage}.model.1.weight"


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(
            f"no LPIPS weights at {path}; check the path, or make the file as "
            f"worldgen.tokenizers.losses.perceptual.Lpips describes"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a safetensors file ({error}); convert it as "
            f"worldgen.tokenizers.losses.perceptual.Lpips describes"
        ) from error


def _check(tensors: Mapping[str, Tensor], path: Path) -> None:
    width = 3
    expected: dict[str, tuple[int, ...]] = {}
    for number in _VGG_CONVOLUTIONS:
        weight = tensors.get(f"features.{number}.weight")
        next_width = 0 if weight is None else weight.shape[0]
        expected[f"features.{number}.weight"] = (next_width, width, 3, 3)
        expected[f"features.{number}.bias"] = (next_width,)
        if number in _VGG_COMPARED:
            expected[_linear_name(_VGG_COMPARED.index(number))] = (1, next_width, 1, 1)
        width = next_width
    missing = sorted(expected.keys() - tensors.keys())
    misshapen = [
        f"{name} {tuple(tensors[name].shape)}"
        for name, shape in expected.items()
        if not missing and tensors[name].shape != shape
    ]
    if missing or misshapen:
        raise CheckpointError(
            f"{path} does not hold LPIPS on VGG-16: missing {missing or 'nothing'}, wrong shape "
            f"{misshapen or 'nothing'}; make it as worldgen.tokenizers.losses.perceptual.Lpips describes"
        )
