"""VQGAN tokenizers of others: their numbers, their files, and what the messages say."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from tests.reference_cases import Case, reference_cases
from worldgen.errors import CheckpointError, ConfigError
from worldgen.interop.convolutional import (
    DIFFUSERS,
    LLAMAGEN,
    ImportedTokenizer,
    Layout,
    diffusers_config,
    fill,
    import_diffusers_tokenizer,
    import_llamagen_tokenizer,
    llamagen_config,
)
from worldgen.interop.files import ForeignState, read_checkpoint
from worldgen.records import to_float
from worldgen.tokenizers.quantizers import GradientVectorQuantizer
from worldgen.tokenizers.visual import (
    ConvolutionalTokenizer,
    load_visual_tokenizer,
    save_visual_tokenizer,
)
from worldgen.tokenizers.visual.vqgan import VQGANEncoder

MINEWORLD = reference_cases("mineworld", lambda c: c.get("kind") == "visual_tokenizer")
DRIVINGWORLD_IMAGES = reference_cases("drivingworld", lambda c: c.get("model_class") == "VQModel")
DRIVINGWORLD_VIDEOS = reference_cases(
    "drivingworld", lambda c: c.get("model_class") == "VideoVQModel"
)


def size(config: Mapping[str, Any]) -> dict[str, int]:
    height, width = config["image_size"]
    return {"frame_height": height, "frame_width": width}


def codebook(tokenizer: ConvolutionalTokenizer) -> GradientVectorQuantizer:
    assert isinstance(tokenizer.quantizer, GradientVectorQuantizer)
    return tokenizer.quantizer


def encoder(tokenizer: ConvolutionalTokenizer) -> VQGANEncoder:
    assert isinstance(tokenizer.encoder, VQGANEncoder)
    return tokenizer.encoder


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def assert_near_of_maximum(found: Tensor, expected: Tensor) -> None:
    assert_near(found, expected, 2e-4 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("case", MINEWORLD)
@torch.no_grad()
def test_mineworld_tokenizer(case: Case) -> None:
    config, inputs, outputs = case.config, case.inputs, case.outputs
    imported = import_diffusers_tokenizer(
        read_checkpoint(case.weights), config["vae_config"], **size(config)
    )
    assert imported.left_out == ()
    tokenizer = imported.tokenizer
    images, ids = inputs["images"], outputs["token_ids"]
    assert_near(encoder(tokenizer).features(images), outputs["encoder_features"], 1e-4)
    assert_near(tokenizer.encoder(images), outputs["pre_quant"], 1e-4)
    for frames in (images, to_float(inputs["images_u8"])):
        assert torch.equal(tokenizer.encode(frames[:, None])[:, 0], ids)
    codes = codebook(tokenizer).ids_to_vectors(ids)
    assert torch.equal(codes, outputs["quantized"])
    assert_near(tokenizer.decoder.get_submodule("expand")(codes), outputs["post_quant"], 1e-4)
    assert_near(tokenizer.decoder(codes), outputs["reconstruction"], 2e-4)
    decoded = rearrange(tokenizer.decode(ids[:, None])[:, 0], "b rgb h w -> b h w rgb")
    # Its own way to uint8 drops the fraction.
    levels = ((decoded + 1) / 2 * 255).to(torch.uint8).int()
    off = (levels - outputs["reconstruction_u8"].int()).abs()
    assert int(off.max()) <= 1
    assert float((off > 0).float().mean()) <= 0.01
    loss = codebook(tokenizer)(outputs["pre_quant"]).loss
    torch.testing.assert_close(loss, outputs["commit_loss"].squeeze(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", DRIVINGWORLD_IMAGES)
@torch.no_grad()
def test_drivingworld_tokenizer_of_images(case: Case) -> None:
    config, inputs, outputs = case.config, case.inputs, case.outputs
    imported = import_llamagen_tokenizer(read_checkpoint(case.weights), config, **size(config))
    tokenizer, grid = imported.tokenizer, config["latent_size"]
    ids = outputs["indices"].unflatten(-1, grid)
    assert_frame_codec(tokenizer, inputs, outputs)
    assert torch.equal(tokenizer.encode(inputs["frames"]), ids)
    assert_near_of_maximum(tokenizer.decode(ids) / 2 + 0.5, outputs["recon"])
    raw = tokenizer.decoder(codebook(tokenizer).ids_to_vectors(ids.flatten(0, 1)))
    assert_near_of_maximum(raw, outputs["recon_raw"].flatten(0, 1))
    random = tokenizer.decode(inputs["random_ids"][:, None])[:, 0] / 2 + 0.5
    assert_near_of_maximum(random, outputs["decode_of_random_ids"])


@pytest.mark.parametrize("case", DRIVINGWORLD_IMAGES)
def test_drivingworld_tokenizer_of_images_in_training(case: Case) -> None:
    config, inputs, outputs = case.config, case.inputs, case.outputs
    imported = import_llamagen_tokenizer(read_checkpoint(case.weights), config, **size(config))
    tokenizer = imported.tokenizer.requires_grad_(True).train()
    output = tokenizer(inputs["frames"])
    entropy = config["entropy_loss_ratio"] * entropy_term(tokenizer, inputs["frames"])
    total = F.mse_loss(output.reconstruction, inputs["frames"]) + output.quantizer_loss + entropy
    assert_near_of_maximum(entropy.reshape(1), outputs["train_entropy_loss"])
    assert_near_of_maximum(total.reshape(1), outputs["train_total_loss"])
    total.backward()
    ours = {
        LLAMAGEN.foreign_name(name): parameter for name, parameter in tokenizer.named_parameters()
    }
    assert ours.keys() == set(config["train_grad_param_names"])
    gradients = [ours[name].grad for name in config["train_grad_param_names"]]
    norms = torch.stack([gradient.norm() for gradient in gradients if gradient is not None])
    assert_near_of_maximum(norms, outputs["train_grad_norm"])


@pytest.mark.parametrize("case", DRIVINGWORLD_VIDEOS)
@torch.no_grad()
def test_drivingworld_tokenizer_of_videos_frame_by_frame(case: Case) -> None:
    config, outputs = case.config, case.outputs
    tokenizer = ConvolutionalTokenizer(llamagen_config(config, **size(config))).eval()
    state = ForeignState(read_checkpoint(case.weights).tensors, case.weights)
    state.leave("causal_time_block.", "space_block.")
    fill(tokenizer, state, LLAMAGEN)
    state.finish()
    assert_frame_codec(tokenizer, case.inputs, outputs)
    projected = encoder(tokenizer).project(outputs["temporal_out"])
    assert_near_of_maximum(projected, outputs["pre_quant"])


def assert_frame_codec(
    tokenizer: ConvolutionalTokenizer, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> None:
    """Check what images and single frames of videos have in common."""
    features = encoder(tokenizer).features(inputs["frames"].flatten(0, 1))
    assert_near_of_maximum(features, outputs["encoder_out"])
    if "temporal_out" not in outputs:
        assert_near_of_maximum(encoder(tokenizer).project(features), outputs["pre_quant"])
    quantized = codebook(tokenizer)(outputs["pre_quant"])
    indices = outputs["indices"]
    assert torch.equal(quantized.ids.flatten(1), indices.flatten(0, 1))
    losses = outputs["train_vq_loss"] + outputs["train_commit_loss"]
    assert_near_of_maximum(quantized.loss.reshape(1), losses)
    assert_near_of_maximum(codebook(tokenizer).codes()[indices], outputs["features_l2"])
    assert_near_of_maximum(codebook(tokenizer).codebook[indices], outputs["features_raw"])


def entropy_term(tokenizer: ConvolutionalTokenizer, frames: Tensor) -> Tensor:
    """Mean entropy of soft assignments minus the entropy of their mean, as LlamaGen has it."""
    vectors = rearrange(tokenizer.encoder(frames.flatten(0, 1)), "b width r c -> (b r c) width")
    if codebook(tokenizer).normalise == "both":
        vectors = F.normalize(vectors, dim=-1)
    distances: Tensor = (vectors[:, None] - codebook(tokenizer).codes()).square().sum(-1)
    shares: Tensor = (-distances / 0.01).softmax(-1)
    entropies = -(shares * (-distances / 0.01).log_softmax(-1)).sum(-1)
    mean = shares.mean(0)
    return entropies.mean() + (mean * (mean + 1e-5).log()).sum()


def test_there_are_reference_cases_of_each_kind() -> None:
    assert MINEWORLD
    assert DRIVINGWORLD_IMAGES
    assert DRIVINGWORLD_VIDEOS


# Checkpoints made here, in the layouts of others.

DIFFUSERS_SETTINGS: dict[str, Any] = {
    "_class_name": "VQModel",
    "block_out_channels": [4, 8],
    "down_block_types": ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"],
    "latent_channels": 5,
    "num_vq_embeddings": 12,
    "norm_num_groups": 2,
}
LLAMAGEN_SETTINGS: dict[str, Any] = {
    "encoder_ch_mult": [1, 2],
    "decoder_ch_mult": [2, 1],
    "z_channels": 6,
    "codebook_size": 12,
    "codebook_embed_dim": 3,
    "ch": 4,
    "group_norm_groups": 2,
}
SMALL = {"frame_height": 6, "frame_width": 8}
LAYOUTS = pytest.mark.parametrize(
    ("layout", "describe", "load", "settings"),
    [
        (DIFFUSERS, diffusers_config, import_diffusers_tokenizer, DIFFUSERS_SETTINGS),
        (LLAMAGEN, llamagen_config, import_llamagen_tokenizer, LLAMAGEN_SETTINGS),
    ],
    ids=["diffusers", "llamagen"],
)


def foreign_state(tokenizer: ConvolutionalTokenizer, layout: Layout) -> dict[str, Tensor]:
    return {layout.foreign_name(name): value for name, value in tokenizer.state_dict().items()}


@LAYOUTS
def test_a_tokenizer_comes_back_from_a_file_that_holds_more(
    tmp_path: Path,
    layout: Layout,
    describe: Callable[..., Any],
    load: Callable[..., ImportedTokenizer],
    settings: dict[str, Any],
) -> None:
    original = ConvolutionalTokenizer(describe(settings, **SMALL)).eval()
    state = {f"tokenizer.{name}": value for name, value in foreign_state(original, layout).items()}
    others = {"transformer.weight": torch.ones(2)}
    torch.save({"state_dict": state | others, "epoch": 3}, tmp_path / "all.ckpt")
    imported = load(read_checkpoint(tmp_path / "all.ckpt"), settings, **SMALL)
    assert imported.left_out == ("transformer.weight",)
    frames = torch.rand(2, 3, 3, 6, 8) * 2 - 1
    ids = original.encode(frames)
    assert torch.equal(imported.tokenizer.encode(frames), ids)
    assert torch.equal(imported.tokenizer.decode(ids), original.decode(ids))
    save_visual_tokenizer(tmp_path / "tokenizer.safetensors", imported.tokenizer)
    loaded = load_visual_tokenizer(tmp_path / "tokenizer.safetensors")
    assert torch.equal(loaded.decode(ids), original.decode(ids))


@LAYOUTS
def test_names_that_do_not_fit_are_told_by_their_foreign_names(
    tmp_path: Path,
    layout: Layout,
    describe: Callable[..., Any],
    load: Callable[..., ImportedTokenizer],
    settings: dict[str, Any],
) -> None:
    state = foreign_state(ConvolutionalTokenizer(describe(settings, **SMALL)), layout)
    del state["decoder.conv_in.bias"]
    state["encoder.conv_out.bias"] = torch.ones(99)
    state["causal_time_block.attention.wq.weight"] = torch.ones(2)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        load(read_checkpoint(tmp_path / "a.pt"), settings, **SMALL)
    message = str(caught.value)
    assert "missing decoder.conv_in.bias," in message
    assert "unexpected causal_time_block.attention.wq.weight," in message
    assert "wrong shape encoder.conv_out.bias (99,) instead of" in message


def test_the_usage_counters_of_llamagen_are_left_out(tmp_path: Path) -> None:
    tokenizer = ConvolutionalTokenizer(llamagen_config(LLAMAGEN_SETTINGS, **SMALL))
    state = foreign_state(tokenizer, LLAMAGEN) | {"quantize.codebook_used": torch.zeros(65536)}
    torch.save({"model": state}, tmp_path / "vqvae.pt")
    checkpoint = read_checkpoint(tmp_path / "vqvae.pt")
    imported = import_llamagen_tokenizer(checkpoint, LLAMAGEN_SETTINGS, **SMALL)
    assert imported.left_out == ("quantize.codebook_used",)


def test_a_checkpoint_without_a_codebook_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="must hold one codebook"):
        import_llamagen_tokenizer(read_checkpoint(tmp_path / "a.pt"), LLAMAGEN_SETTINGS, **SMALL)


def test_the_published_sizes_are_the_defaults() -> None:
    config = llamagen_config({}, frame_height=256, frame_width=512)
    with torch.device("meta"):
        tokenizer = ConvolutionalTokenizer(config)
    assert (tokenizer.rows, tokenizer.columns, tokenizer.codebook_size) == (16, 32, 16384)
    # VQ-16 of LlamaGen: 72 million parameters.
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 71_883_403


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name must be 'VQModel', got 'AutoencoderKL'"),
        ({"act_fn": "mish"}, "act_fn must be 'silu' or 'swish', got 'mish'"),
        ({"norm_type": "spatial"}, "norm_type must be 'group'"),
        ({"in_channels": 4}, "in_channels must be 3, got 4"),
        ({"down_block_types": ["DownBlock2D"] * 2}, "down_block_types must be 2 times"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types must be 2 times"),
        ({"norm_num_groups": 3}, "3 groups do not divide 4 channels"),
    ],
)
def test_settings_that_are_not_known_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        diffusers_config(DIFFUSERS_SETTINGS | change, **SMALL)
