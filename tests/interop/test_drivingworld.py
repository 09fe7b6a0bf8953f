"""DrivingWorld's tokenizer: upstream's numbers, and what is said about files that do not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from tests.reference_cases import Case, reference_cases
from worldgen.errors import CheckpointError, ConfigError
from worldgen.interop.drivingworld import (
    RELEASED,
    drivingworld_tokenizer_config,
    import_drivingworld_tokenizer,
    upstream_names,
)
from worldgen.interop.files import read_checkpoint
from worldgen.tokenizers.quantizers import GradientVectorQuantizer
from worldgen.tokenizers.visual import (
    TemporalTokenizer,
    load_visual_tokenizer,
    save_visual_tokenizer,
)
from worldgen.tokenizers.visual.temporal import TimeMemory

VIDEOS = reference_cases("drivingworld", lambda c: c.get("model_class") == "VideoVQModel")


def load(case: Case) -> TemporalTokenizer:
    return import_drivingworld_tokenizer(read_checkpoint(case.weights), case.config).tokenizer


def codebook(tokenizer: TemporalTokenizer) -> GradientVectorQuantizer:
    assert isinstance(tokenizer.quantizer, GradientVectorQuantizer)
    return tokenizer.quantizer


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Compare as the reference numbers ask: within 2e-4, or that much of the largest value."""
    tolerance = 2e-4 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_there_are_cases() -> None:
    assert VIDEOS


@pytest.mark.parametrize("case", VIDEOS)
@torch.no_grad()
def test_clips_become_upstreams_ids_and_frames(case: Case) -> None:
    inputs, outputs = case.inputs, case.outputs
    tokenizer = load(case)
    frames = inputs["frames"]
    ids = outputs["indices"].unflatten(-1, case.config["latent_size"])
    features = tokenizer.encoder.features(frames.flatten(0, 1))
    assert_near(features, outputs["encoder_out"])
    mixed = tokenizer.mix(features.unflatten(0, frames.shape[:2]), TimeMemory())
    assert_near(mixed.flatten(0, 1), outputs["temporal_out"])
    assert torch.equal(tokenizer.encode(frames), ids)
    assert_near(tokenizer.decode(ids) / 2 + 0.5, outputs["recon"])
    assert_near(tokenizer.decode(ids)[:, -1:] / 2 + 0.5, outputs["recon_last"])
    whole = tokenizer(frames)
    assert torch.equal(whole.ids, ids)
    assert_near(whole.reconstruction, outputs["recon_raw"])
    random = tokenizer.decode(inputs["random_ids"][None])[0]
    assert_near(random / 2 + 0.5, outputs["decode_of_random_ids"])
    assert_near(codebook(tokenizer).codes()[ids.flatten(2)], outputs["features_l2"])
    # What the world model reads.
    assert torch.equal(codebook(tokenizer).codebook[ids.flatten(2)], outputs["features_raw"])


@pytest.mark.parametrize("case", VIDEOS)
def test_training_has_upstreams_losses_and_gradients(case: Case) -> None:
    config, outputs = case.config, case.outputs
    tokenizer = load(case).requires_grad_(True).train()
    frames = case.inputs["frames"]
    found: list[Tensor] = []
    handle = tokenizer.encoder.project.register_forward_hook(lambda *call: found.append(call[2]))
    output = tokenizer(frames)
    handle.remove()
    assert_near(found[0], outputs["pre_quant"])
    assert_near(
        output.quantizer_loss.reshape(1), outputs["train_vq_loss"] + outputs["train_commit_loss"]
    )
    entropy = config["entropy_loss_ratio"] * entropy_term(found[0], codebook(tokenizer))
    assert_near(entropy.reshape(1), outputs["train_entropy_loss"])
    total = F.mse_loss(output.reconstruction, frames) + output.quantizer_loss + entropy
    assert_near(total.reshape(1), outputs["train_total_loss"])
    total.backward()
    norms = gradient_norms(tokenizer)
    assert norms.keys() == set(config["train_grad_param_names"])
    ours = torch.stack([norms[name] for name in config["train_grad_param_names"]])
    assert_near(ours, outputs["train_grad_norm"])


def entropy_term(latents: Tensor, quantizer: GradientVectorQuantizer) -> Tensor:
    """Mean entropy of soft assignments minus the entropy of their mean, as LlamaGen has it."""
    vectors = rearrange(latents, "b width r c -> (b r c) width")
    if quantizer.normalise == "both":
        vectors = F.normalize(vectors, dim=-1)
    logits = -(vectors[:, None] - quantizer.codes()).square().sum(-1) / 0.01
    shares = logits.softmax(-1)
    mean = shares.mean(0)
    return -(shares * logits.log_softmax(-1)).sum(-1).mean() + (mean * (mean + 1e-5).log()).sum()


def gradient_norms(tokenizer: TemporalTokenizer) -> dict[str, Tensor]:
    norms = {}
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None
        theirs = upstream_names(name)
        for their, part in zip(theirs, parameter.grad.chunk(len(theirs)), strict=True):
            norms[their] = part.norm()
    return norms


# Checkpoints made here, in upstream's layout.

SETTINGS: dict[str, Any] = {
    "image_size": [6, 8],
    "downsample_size": 2,
    "encoder_ch_mult": [1, 2],
    "decoder_ch_mult": [1, 2],
    "ch": 4,
    "num_res_blocks": 1,
    "group_norm_groups": 2,
    "z_channels": 8,
    "attn_heads": 2,
    "ffn_multiple_of": 4,
    "codebook_size": 24,
    "codebook_embed_dim": 3,
    "condition_frames": 2,
}


def upstream_state(tokenizer: TemporalTokenizer) -> dict[str, Tensor]:
    """Return a tokenizer's weights under upstream's names, and in its order of channels."""
    state: dict[str, Tensor] = {}
    for name, value in tokenizer.state_dict().items():
        names = upstream_names(name)
        parts = [part.clone() for part in value.chunk(len(names))]
        if "query_key_value" in name:
            heads = tokenizer.config.num_heads
            halves = "(head two pair) width -> (head pair two) width"
            parts[:2] = [rearrange(part, halves, head=heads, two=2) for part in parts[:2]]
        state |= dict(zip(names, parts, strict=True))
    return state


def synthetic() -> TemporalTokenizer:
    torch.manual_seed(0)
    return TemporalTokenizer(drivingworld_tokenizer_config(SETTINGS)).eval()


def frames_of(number: int) -> Tensor:
    return torch.rand(1, number, 3, 6, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_tokenizer_comes_back_from_a_checkpoint_of_training(tmp_path: Path) -> None:
    original = synthetic()
    state = upstream_state(original) | {"quantize.codebook_used": torch.zeros(65536)}
    torch.save({"model": state, "steps": 7, "optimizer": {"lr": 0.1}}, tmp_path / "vqvae.pt")
    imported = import_drivingworld_tokenizer(read_checkpoint(tmp_path / "vqvae.pt"), SETTINGS)
    assert imported.left_out == ("quantize.codebook_used",)
    ids = original.encode(frames_of(5))
    assert torch.equal(imported.tokenizer.encode(frames_of(5)), ids)
    save_visual_tokenizer(tmp_path / "tokenizer.safetensors", imported.tokenizer)
    again = load_visual_tokenizer(tmp_path / "tokenizer.safetensors")
    assert torch.equal(again.decode(ids), original.decode(ids))


def test_names_that_do_not_fit_are_told_by_their_foreign_names(tmp_path: Path) -> None:
    state = upstream_state(synthetic())
    del state["space_block.feed_forward.w3.weight"]
    state["causal_time_block.attention.wq.weight"] = torch.ones(8, 9)
    state["teacher.weight"] = torch.ones(2)
    torch.save({"model": state}, tmp_path / "vqvae.pt")
    with pytest.raises(CheckpointError) as caught:
        import_drivingworld_tokenizer(read_checkpoint(tmp_path / "vqvae.pt"), SETTINGS)
    message = str(caught.value)
    assert "missing space_block.feed_forward.w3.weight," in message
    assert "unexpected teacher.weight," in message
    assert "wrong shape causal_time_block.attention.wq.weight (8, 9) instead of (8, 8)" in message


def test_a_checkpoint_of_other_sizes_does_not_fit(tmp_path: Path) -> None:
    torch.save({"model": upstream_state(synthetic())}, tmp_path / "vqvae.pt")
    checkpoint = read_checkpoint(tmp_path / "vqvae.pt")
    with pytest.raises(CheckpointError, match=r"wrong shape quantize\.embedding\.weight \(24, 3\)"):
        import_drivingworld_tokenizer(checkpoint, SETTINGS | {"codebook_size": 48})


def test_a_world_model_is_no_tokenizer(tmp_path: Path) -> None:
    torch.save({"sos_emb": torch.ones(1, 1, 4)}, tmp_path / "world_model.pth")
    checkpoint = read_checkpoint(tmp_path / "world_model.pth")
    with pytest.raises(CheckpointError, match="must hold one codebook"):
        import_drivingworld_tokenizer(checkpoint, RELEASED)


def test_the_released_sizes_are_the_defaults() -> None:
    config = drivingworld_tokenizer_config({})
    assert (config.window, config.num_heads, config.feed_forward_width) == (16, 8, 768)
    with torch.device("meta"):
        tokenizer = TemporalTokenizer(config)
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 73_993_891
    names = [each for name in tokenizer.state_dict() for each in upstream_names(name)]
    # With `quantize.codebook_used` there are 362.
    assert len(set(names)) == len(names) == 361


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downsample_size": 16}, "downsample_size must be 2 for 2 levels"),
        ({"image_size": [7, 8]}, "7 x 8 pixels do not divide"),
        ({"image_size": 256}, "a setting of the tokenizer is of the wrong kind"),
        ({"attn_heads": 3}, "latent_width 8 for 3 heads"),
        ({"encoder_ch_mult": "1,2"}, "a setting of the tokenizer is of the wrong kind"),
        ({"norm_type": "batch"}, "norm_type must be 'group'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        drivingworld_tokenizer_config(SETTINGS | change)
