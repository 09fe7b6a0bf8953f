"""Perceptual terms against slow readings of their formulas, with networks of random weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from worldgen.errors import CheckpointError, ConfigError
from worldgen.tokenizers.losses.perceptual import (
    EncoderFeatures,
    Lpips,
    PerceptualLoss,
    PerceptualLossConfig,
    feature_distance,
    gram_distance,
)
from worldgen.tokenizers.quantizers import FSQConfig
from worldgen.tokenizers.visual import (
    ConvolutionalTokenizerConfig,
    build_visual_tokenizer,
    save_visual_tokenizer,
)
from worldgen.tokenizers.visual.patch import PatchConfig
from worldgen.tokenizers.visual.pyramid import PyramidConfig

# VGG-16 as it is written down everywhere: widths of convolutions, 0 for a pooling.
PLAN = [4, 4, 0, 6, 6, 0, 8, 8, 8, 0, 8, 8, 8, 0, 8, 8, 8]


def narrow_vgg() -> dict[str, Tensor]:
    """Weights of a VGG-16 a sixteenth as wide, under the names of the real one."""
    tensors: dict[str, Tensor] = {}
    width, number, stage = 3, 0, 0
    for entry in [*PLAN, 0]:
        if entry == 0:
            tensors[f"lin{stage}.model.1.weight"] = torch.rand(1, width, 1, 1)
            number, stage = number + 1, stage + 1
            continue
        tensors[f"features.{number}.weight"] = torch.randn(entry, width, 3, 3) / width**0.5
        tensors[f"features.{number}.bias"] = 0.1 * torch.randn(entry)
        width, number = entry, number + 2
    return tensors


def save_tokenizer(path: Path, encoder: PyramidConfig | PatchConfig) -> None:
    config = ConvolutionalTokenizerConfig(
        frame_height=32,
        frame_width=32,
        encoder=encoder,
        decoder=PatchConfig(patch=8, width=8, blocks=1),
        quantizer=FSQConfig(levels=(4, 4, 4)),
    )
    save_visual_tokenizer(path, build_visual_tokenizer(config))


PYRAMID = PyramidConfig(patch=4, base_width=8, multipliers=(1, 2), blocks=(1, 2))


@pytest.fixture
def lpips_path(tmp_path: Path) -> Path:
    path = tmp_path / "lpips.safetensors"
    # Other entries of a state dict lie in the file too.
    save_file(narrow_vgg() | {"classifier.0.weight": torch.zeros(2)}, path)
    return path


def plain_lpips(tensors: dict[str, Tensor], one: Tensor, other: Tensor) -> Tensor:
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(3, 1, 1)
    pair = [(one - shift) / scale, (other - shift) / scale]
    number, stage, distance = 0, 0, torch.zeros(len(one))
    for entry in [*PLAN, 0]:
        if entry:
            weight, bias = tensors[f"features.{number}.weight"], tensors[f"features.{number}.bias"]
            pair = [F.relu(F.conv2d(each, weight, bias, padding=1)) for each in pair]
            number += 2
            continue
        unit = [each / (each.square().sum(1, keepdim=True).sqrt() + 1e-10) for each in pair]
        weights = tensors[f"lin{stage}.model.1.weight"]
        error = (weights * (unit[0] - unit[1]).square()).sum(1)
        distance = distance + error.mean(dim=(1, 2))
        pair = [F.max_pool2d(each, 2) for each in pair]
        number, stage = number + 1, stage + 1
    return distance


def test_lpips_is_its_formula(lpips_path: Path) -> None:
    network = Lpips(lpips_path)
    one, other = torch.rand(2, 3, 32, 48) * 2 - 1, torch.rand(2, 3, 32, 48) * 2 - 1
    expected = plain_lpips(load_file(lpips_path), one, other)
    assert expected.min() > 0
    torch.testing.assert_close(network(one, other), expected)
    halved = plain_lpips(load_file(lpips_path), one / 2, other / 2)
    torch.testing.assert_close(Lpips(lpips_path, input_scale=0.5)(one, other), halved)
    assert not network(one, one).any()


def test_lpips_has_finite_gradients_where_nothing_responds(lpips_path: Path) -> None:
    network = Lpips(lpips_path)
    for part in network.convolutions:
        part.get_parameter("bias").fill_(-1e3)
    frames = torch.zeros(1, 3, 16, 16, requires_grad=True)
    network(frames, torch.ones(1, 3, 16, 16)).sum().backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all()


def test_files_without_the_weights_are_told_what_they_lack(tmp_path: Path) -> None:
    path = tmp_path / "lpips.safetensors"
    with pytest.raises(CheckpointError, match="no LPIPS weights at"):
        Lpips(path)
    path.write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        Lpips(path)
    tensors = narrow_vgg()
    save_file({name: tensor for name, tensor in tensors.items() if "lin3" not in name}, path)
    with pytest.raises(CheckpointError, match=r"missing \['lin3.model.1.weight'\]"):
        Lpips(path)
    save_file(tensors | {"features.5.weight": torch.zeros(6, 5, 3, 3)}, path)
    with pytest.raises(
        CheckpointError, match=r"wrong shape \['features.5.weight \(6, 5, 3, 3\)'\]"
    ):
        Lpips(path)


def test_gram_distance_sees_textures_and_not_their_places() -> None:
    recorded = [torch.randn(2, 4, 3, 5), torch.randn(2, 6, 2, 3, 4)]
    moved = [features.flatten(2).flip(2).reshape(features.shape) for features in recorded]
    assert gram_distance(moved, recorded).item() == pytest.approx(0, abs=1e-10)
    doubled = [features * 2**0.5 for features in recorded]
    assert gram_distance(doubled, recorded).item() == pytest.approx(1.0, rel=1e-5)
    # Its scale does not follow that of the network.
    other = [torch.randn_like(features) for features in recorded]
    small = gram_distance([0.1 * f for f in other], [0.1 * f for f in recorded])
    torch.testing.assert_close(small, gram_distance(other, recorded), rtol=1e-3, atol=0)


def test_feature_distance_grows_with_the_angle_and_spares_the_recorded_side() -> None:
    recorded = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
    turned = torch.tensor([0.0, 3.0]).reshape(1, 2, 1, 1).requires_grad_()
    loss = feature_distance([turned], [recorded])
    assert loss.item() == pytest.approx(2.0)
    loss.backward()
    assert recorded.grad is None
    assert turned.grad is not None


def test_terms_are_weighted_named_and_pull_rebuilt_frames_to_recorded_ones(
    tmp_path: Path, lpips_path: Path
) -> None:
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, PYRAMID)
    config = PerceptualLossConfig(
        gram=2.0, encoder=0.5, encoder_path=str(path), lpips=3.0, lpips_path=str(lpips_path)
    )
    loss = PerceptualLoss(config).train()
    frames = torch.rand(1, 2, 3, 32, 32) * 2 - 1
    rebuilt = frames.flip(-1).requires_grad_()
    real, fake = [torch.randn(1, 2, 4, 4)], [torch.randn(1, 2, 4, 4)]
    terms = loss(rebuilt, frames, [(real, fake)])
    assert terms.keys() == {"gram", "encoder", "lpips"}
    torch.testing.assert_close(terms["gram"], 2.0 * gram_distance(fake, real))
    assert loss(rebuilt, frames).keys() == {"encoder", "lpips"}
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    (terms["encoder"] + terms["lpips"]).backward()
    gradient = rebuilt.grad
    assert gradient is not None
    step = 0.5 / gradient.norm()
    nearer = loss(rebuilt.detach() - step * gradient, frames)
    assert nearer["encoder"] + nearer["lpips"] < terms["encoder"] + terms["lpips"]
    same = loss(frames, frames)
    assert same["encoder"].item() == same["lpips"].item() == 0.0


def test_encoder_features_come_from_every_block(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, PYRAMID)
    network = EncoderFeatures(path)
    features = network(torch.zeros(2, 3, 32, 48))
    assert [feature.shape for feature in features] == [(2, 8, 8, 12), (2, 16, 4, 6), (2, 16, 4, 6)]
    assert len(network(torch.zeros(1, 3, 32, 32))) == 3


def test_an_encoder_without_blocks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, PatchConfig(patch=8, width=8, blocks=0))
    with pytest.raises(CheckpointError, match="no residual blocks"):
        EncoderFeatures(path)


def test_terms_without_their_file_are_refused() -> None:
    with pytest.raises(ConfigError, match="give lpips_path, or set its weight to 0"):
        PerceptualLossConfig(lpips=1.0)
    with pytest.raises(ConfigError, match="must not be negative"):
        PerceptualLossConfig(gram=-1.0)
    assert not PerceptualLoss(PerceptualLossConfig())(
        torch.zeros(1, 1, 3, 8, 8), torch.zeros(1, 1, 3, 8, 8)
    )
