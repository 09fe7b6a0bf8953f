"""DrivingWorld's tokenizer: upstream's numbers, and what is said about files that do not fit."""


import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from tests.reference_cases import Case, reference_cases
from worldgen.interop.drivingworld import (
    import_drivingworld_tokenizer,
    upstream_names,
)
from worldgen.interop.files import read_checkpoint
from worldgen.tokenizers.quantizers import GradientVectorQuantizer
from worldgen.tokenizers.visual import (
    TemporalTokenizer,
)

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
    vectors = F.normalize(rearrange(latents, "b width r c -> (b r c) width"), dim=-1)
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
