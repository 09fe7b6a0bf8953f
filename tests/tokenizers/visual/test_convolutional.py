"""Frame tokenizers: shapes, locality, saving, and messages."""

from pathlib import Path

import pytest
import torch

from worldgen.config import build, to_mapping
from worldgen.errors import CheckpointError, ConfigError
from worldgen.tokenizers.quantizers import FSQConfig, VQConfig
from worldgen.tokenizers.visual import (
    ConvolutionalTokenizer,
    ConvolutionalTokenizerConfig,
    build_visual_tokenizer,
    load_visual_tokenizer,
    save_visual_tokenizer,
)
from worldgen.tokenizers.visual.convolutional import CoderConfig
from worldgen.tokenizers.visual.patch import PatchConfig
from worldgen.tokenizers.visual.pyramid import PyramidConfig
from worldgen.tokenizers.visual.vqgan import VQGANConfig

PYRAMID = PyramidConfig(patch=2, base_width=4, multipliers=(1, 2), blocks=(1, 1))
PATCH = PatchConfig(patch=4, width=16, blocks=1)
VQGAN = VQGANConfig(widths=(4, 8, 8), blocks=1, latent_width=6, groups=2)


def make(coder: CoderConfig, *, vq: bool = False) -> ConvolutionalTokenizer:
    torch.manual_seed(0)
    quantizer = VQConfig(codebook_size=30, width=4) if vq else FSQConfig(levels=(5, 5, 5))
    tokenizer = ConvolutionalTokenizer(
        ConvolutionalTokenizerConfig(
            frame_height=16, frame_width=24, encoder=coder, decoder=coder, quantizer=quantizer
        )
    )
    # Fresh residual blocks are the identity; locality must be seen through trained ones.
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tokenizer.eval()


def frames() -> torch.Tensor:
    return torch.rand(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("coder", [PYRAMID, PATCH, VQGAN])
@pytest.mark.parametrize("vq", [False, True])
def test_frames_become_a_grid_of_ids_and_frames_again(coder: CoderConfig, vq: bool) -> None:
    tokenizer = make(coder, vq=vq)
    ids = tokenizer.encode(frames())
    assert (tokenizer.rows, tokenizer.columns) == (4, 6)
    assert ids.shape == (2, 3, 4, 6)
    assert ids.dtype == torch.int64
    assert ids.min() >= 0
    assert ids.max() < tokenizer.codebook_size
    decoded = tokenizer.decode(ids)
    assert decoded.shape == (2, 3, 3, 16, 24)
    assert decoded.dtype == torch.float32
    assert decoded.abs().max() <= 1


@pytest.mark.parametrize("coder", [PYRAMID, PATCH, VQGAN])
def test_training_pass_agrees_with_encode_and_decode(coder: CoderConfig) -> None:
    tokenizer = make(coder)
    output = tokenizer(frames())
    ids = tokenizer.encode(frames())
    assert torch.equal(output.ids, ids)
    torch.testing.assert_close(output.reconstruction.clamp(-1, 1), tokenizer.decode(ids))


@pytest.mark.parametrize("coder", [PYRAMID, PATCH, VQGAN])
def test_each_frame_is_tokenized_alone(coder: CoderConfig) -> None:
    tokenizer = make(coder)
    together = tokenizer.encode(frames())
    alone = torch.stack([tokenizer.encode(frames()[:, [t]])[:, 0] for t in range(3)], dim=1)
    assert torch.equal(together, alone)


def test_patch_latent_sees_only_its_own_square() -> None:
    tokenizer = make(PATCH)
    pixels = frames()[0, :1].requires_grad_()
    tokenizer.encoder(pixels)[0, :, 1, 2].sum().backward()
    assert pixels.grad is not None
    seen = pixels.grad[0].abs().sum(0) > 0
    assert seen[4:8, 8:12].all()
    assert int(seen.sum()) == 16


def test_patch_code_paints_only_its_own_square() -> None:
    tokenizer = make(PATCH)
    codes = torch.randn(1, 3, 4, 6, requires_grad=True)
    tokenizer.decoder(codes)[0, :, 4:8, 8:12].sum().backward()
    assert codes.grad is not None
    touched = codes.grad[0].abs().sum(0) > 0
    assert touched[1, 2]
    assert int(touched.sum()) == 1


def test_changing_one_tile_changes_only_its_token() -> None:
    tokenizer = make(PATCH, vq=True)
    before, changed = frames(), frames()
    changed[:, :, :, 4:8, 8:12] *= -1
    different = tokenizer.encode(before) != tokenizer.encode(changed)
    different[:, :, 1, 2] = False
    assert not different.any()


def test_pyramid_latent_sees_beyond_its_own_square() -> None:
    tokenizer = make(PYRAMID)
    pixels = frames()[0, :1].requires_grad_()
    tokenizer.encoder(pixels)[0, :, 1, 2].sum().backward()
    assert pixels.grad is not None
    assert int((pixels.grad[0].abs().sum(0) > 0).sum()) > 16


@pytest.mark.parametrize("coder", [PYRAMID, PATCH, VQGAN])
def test_bfloat16_networks_take_and_give_float32(coder: CoderConfig) -> None:
    tokenizer = make(coder)
    tokenizer.encoder.to(torch.bfloat16)
    tokenizer.decoder.to(torch.bfloat16)
    assert tokenizer.decode(tokenizer.encode(frames())).dtype == torch.float32


@pytest.mark.parametrize("vq", [False, True])
@pytest.mark.parametrize("coder", [PYRAMID, VQGAN])
def test_a_saved_tokenizer_is_the_same_when_loaded(
    tmp_path: Path, coder: CoderConfig, vq: bool
) -> None:
    tokenizer = make(coder, vq=vq)
    save_visual_tokenizer(tmp_path / "tokenizer.safetensors", tokenizer, {"note": "tiny"})
    loaded = load_visual_tokenizer(tmp_path / "tokenizer.safetensors")
    assert loaded.config == tokenizer.config
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert torch.equal(tokenizer.encode(frames()), loaded.encode(frames()))


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    save_visual_tokenizer(path, make(PATCH))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_visual_tokenizer(path)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    from worldgen.checkpoint import save_tensors

    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.zeros(2)}, {"artifact": "world_model"})
    with pytest.raises(CheckpointError, match="holds 'world_model', not a visual tokenizer"):
        load_visual_tokenizer(path)


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes frames of 16 x 24 pixels, got 16 x 16"):
        make(PATCH).encode(torch.zeros(1, 1, 3, 16, 16))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(1, 1, 3, 16, 24, dtype=torch.uint8), r"float in \[-1, 1\], got torch.uint8"),
        (
            torch.full((1, 1, 3, 16, 24), 255.0),
            r"must lie in \[-1, 1\], got values from 255 to 255",
        ),
        (torch.full((1, 1, 3, 16, 24), torch.nan), "got values from nan to nan"),
        (torch.zeros(1, 3, 16, 24), r"shape \[batch, time, 3, height, width\].*\[1, 3, 16, 24\]"),
        (torch.zeros(1, 1, 16, 24, 3), r"got \[1, 1, 16, 24, 3\]"),
        (torch.zeros(1, 0, 3, 16, 24), r"at least one, got \[1, 0, 3, 16, 24\]"),
    ],
    ids=["type", "range", "nan", "axes", "channels last", "none"],
)
def test_frames_that_are_not_frames_are_refused(wrong: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(PATCH).encode(wrong)
    with pytest.raises(ConfigError, match=message):
        make(PATCH)(wrong)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.full((1, 1, 2, 3), -1), "got -1 to -1"),
        (torch.full((1, 1, 2, 3), 10**6), r"lie in 0 \.\.\. \d+, got 1000000 to 1000000"),
        (torch.zeros(1, 0, 2, 3, dtype=torch.int64), "at least one"),
        (torch.zeros(1, 1, 2, 3), "must be integers"),
    ],
)
def test_ids_that_are_not_ids_are_refused(ids: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(PATCH).decode(ids)


def test_perturbed_codes_reach_the_decoder_alone() -> None:
    tokenizer = make(PATCH, vq=True)
    clean = tokenizer(frames())
    same = tokenizer(frames(), lambda ids: ids)
    assert torch.equal(same.reconstruction, clean.reconstruction)
    moved = tokenizer(frames(), lambda ids: (ids + 1) % tokenizer.codebook_size)
    assert torch.equal(moved.ids, clean.ids)
    assert torch.equal(moved.quantizer_loss, clean.quantizer_loss)
    wrong = tokenizer.decode((clean.ids + 1) % tokenizer.codebook_size)
    torch.testing.assert_close(moved.reconstruction.clamp(-1, 1), wrong)
    moved.reconstruction.square().mean().backward()
    gradients = [parameter.grad for parameter in tokenizer.encoder.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_frames_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not divide into squares of 4"):
        ConvolutionalTokenizerConfig(
            frame_height=18,
            frame_width=24,
            encoder=PATCH,
            decoder=PATCH,
            quantizer=FSQConfig(levels=(5, 5)),
        )


def test_encoder_and_decoder_of_different_reduction_are_refused() -> None:
    other = PatchConfig(patch=8, width=16, blocks=1)
    with pytest.raises(ConfigError, match="same factor, got 4 and 8"):
        ConvolutionalTokenizerConfig(
            frame_height=16,
            frame_width=24,
            encoder=PATCH,
            decoder=other,
            quantizer=FSQConfig(levels=(5, 5)),
        )


def test_a_pyramid_needs_blocks_for_each_level() -> None:
    with pytest.raises(ConfigError, match="as many blocks as multipliers"):
        PyramidConfig(patch=2, base_width=4, multipliers=(1, 2), blocks=(1,))


@pytest.mark.parametrize("coder", [PYRAMID, PATCH, VQGAN])
def test_a_configuration_survives_the_way_through_a_mapping(
    coder: CoderConfig,
) -> None:
    config = make(coder, vq=True).config
    again = build(ConvolutionalTokenizerConfig, to_mapping(config))
    assert again == config
    assert build_visual_tokenizer(again).codebook_size == 30
