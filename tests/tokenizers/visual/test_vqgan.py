"""VQGAN's encoder and decoder: sizes, the oracle of attention, edges, and messages."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from worldgen.config import build, to_mapping
from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import GradientVQConfig
from worldgen.tokenizers.visual import ConvolutionalTokenizer, ConvolutionalTokenizerConfig
from worldgen.tokenizers.visual.vqgan import VQGANConfig, VQGANDecoder, VQGANEncoder


def sizes(**changes: Any) -> VQGANConfig:
    plain: dict[str, Any] = {"widths": (4, 8, 12), "blocks": 1, "latent_width": 5, "groups": 4}
    return VQGANConfig(**plain | changes)


VARIANTS = pytest.mark.parametrize(
    "changes",
    [
        {},
        {"blocks": 2, "attention_levels": (0, 2)},
        {"middle_attention": False},
        {"stem_width": 8, "groups": 1},
        {"widths": (8,), "attention_levels": (0,)},
    ],
)


@VARIANTS
def test_each_level_but_the_last_halves_the_resolution(changes: dict[str, Any]) -> None:
    config = sizes(**changes)
    encoder, decoder = VQGANEncoder(config, 3), VQGANDecoder(config, 3)
    frames = torch.rand(2, 3, 4 * config.reduction, 6 * config.reduction)
    features = encoder.features(frames)
    assert features.shape == (2, 5, 4, 6)
    latents = encoder(frames)
    assert latents.shape == (2, 3, 4, 6)
    assert torch.equal(encoder.project(features), latents)
    assert decoder.expand(latents).shape == (2, 5, 4, 6)
    decoded = decoder(latents)
    assert decoded.shape == frames.shape
    assert torch.equal(decoder.paint(decoder.expand(latents)), decoded)


@VARIANTS
def test_every_weight_is_of_use(changes: dict[str, Any]) -> None:
    config = sizes(**changes)
    encoder, decoder = VQGANEncoder(config, 3), VQGANDecoder(config, 3)
    frames = torch.rand(2, 3, 4 * config.reduction, 6 * config.reduction)
    decoder(encoder(frames)).square().mean().backward()
    for coder in (encoder, decoder):
        for name, parameter in coder.named_parameters():
            # Adding one vector to all keys changes no attention.
            if not name.endswith("key.bias"):
                assert parameter.grad is not None, name
                assert parameter.grad.any(), name


def test_attention_stands_where_the_configuration_puts_it() -> None:
    encoder = VQGANEncoder(sizes(blocks=2, attention_levels=(1,), middle_attention=False), 3)
    names = {name.rsplit(".", 2)[0] for name, _ in encoder.named_parameters() if ".query." in name}
    assert names == {"levels.1.attention.0", "levels.1.attention.1"}


@torch.no_grad()
def test_attention_is_a_softmax_over_all_places_of_a_frame() -> None:
    attention = VQGANEncoder(sizes(), 3).middle.get_submodule("attention")
    hidden = torch.randn(2, 12, 3, 4)
    normed = attention.get_submodule("norm")(hidden)
    parts = {
        name: attention.get_submodule(name)(normed).flatten(2) for name in ("query", "key", "value")
    }
    scores = torch.einsum("bwq,bwk->bqk", parts["query"], parts["key"]) / 12**0.5
    mixed = torch.einsum("bqk,bwk->bwq", scores.softmax(-1), parts["value"])
    expected = hidden + attention.get_submodule("output")(mixed.reshape(hidden.shape))
    torch.testing.assert_close(attention(hidden), expected)


@torch.no_grad()
def test_halving_looks_beyond_the_edge_to_the_right_and_below_only() -> None:
    encoder = VQGANEncoder(sizes(widths=(1, 1), groups=1), 3)
    halve = encoder.levels[0].get_submodule("resample")
    torch.nn.init.ones_(halve.get_parameter("halving.weight"))
    torch.nn.init.zeros_(halve.get_parameter("halving.bias"))
    seen = halve(torch.ones(1, 1, 4, 6))[0, 0]
    assert seen.tolist() == [[9, 9, 6], [6, 6, 4]]


@torch.no_grad()
def test_doubling_repeats_each_pixel_before_its_convolution() -> None:
    double = VQGANDecoder(sizes(), 3).levels[0].get_submodule("resample")
    hidden = torch.randn(1, 12, 3, 4)
    repeated = hidden.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    weight, bias = double.get_parameter("doubling.weight"), double.get_parameter("doubling.bias")
    torch.testing.assert_close(double(hidden), F.conv2d(repeated, weight, bias, padding=1))


def test_a_larger_decoder_stands_beside_a_light_encoder() -> None:
    config = ConvolutionalTokenizerConfig(
        frame_height=8,
        frame_width=12,
        encoder=sizes(middle_attention=False),
        decoder=sizes(widths=(8, 8, 16), blocks=2, latent_width=7),
        quantizer=GradientVQConfig(codebook_size=10, width=3, normalise="both"),
    )
    again = build(ConvolutionalTokenizerConfig, to_mapping(config))
    assert again == config
    tokenizer = ConvolutionalTokenizer(again).eval()
    frames = torch.rand(1, 2, 3, 8, 12) * 2 - 1
    assert tokenizer.decode(tokenizer.encode(frames)).shape == frames.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": ()}, "at least one level"),
        ({"blocks": 0}, "of at least 1, got"),
        ({"latent_width": 0}, "of at least 1, got"),
        ({"groups": 8}, "8 groups do not divide 4 channels"),
        ({"stem_width": 6}, "4 groups do not divide 6 channels"),
        ({"attention_levels": (3,)}, r"must lie in 0 to 2 \(the coarsest\), got 3"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sizes(**changes)
