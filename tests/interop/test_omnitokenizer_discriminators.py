"""Discriminators and adversarial losses against numbers that OmniTokenizer's own code computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tests import reference_cases
from worldgen.errors import CheckpointError
from worldgen.interop.files import ForeignState
from worldgen.interop.omnitokenizer_discriminators import (
    discriminator_config,
    discriminator_state,
)
from worldgen.tokenizers.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from worldgen.tokenizers.losses.discriminators import DiscriminatorOutput, PatchDiscriminator

CASES = reference_cases.reference_cases("omnitokenizer", lambda config: config["mode"] == "train")


@dataclass(frozen=True, kw_only=True)
class Case:
    path: Path
    step: int
    arguments: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def discriminator(self, dimensions: Literal[2, 3]) -> PatchDiscriminator:
        prefix = {2: "image_discriminator.", 3: "video_discriminator."}[dimensions]
        config = discriminator_config(self.arguments, dimensions)
        state = ForeignState(self.weights, self.path)
        state.leave(*(name for name in self.weights if not name.startswith(prefix)))
        discriminator = PatchDiscriminator(config)
        discriminator.load_state_dict(discriminator_state(state, prefix, config))
        state.finish()
        return discriminator

    @property
    def batches(self) -> list[str]:
        ending = ".disc_eval.logits"
        return [name.removesuffix(ending) for name in self.outputs if name.endswith(ending)]

    def is_image(self, batch: str) -> bool:
        return self.inputs[batch].ndim == 4

    def clips(self, batch: str, tensor: Tensor) -> Tensor:
        """Frames as the library has them; upstream puts colours before time."""
        return (
            tensor[:, None] if self.is_image(batch) else rearrange(tensor, "b c t h w -> b t c h w")
        )

    def chosen(self, batch: str, clips: Tensor) -> Tensor:
        """The frames of each clip that the image discriminator sees."""
        if clips.shape[1] == 1 or self.arguments.get("apply_allframes"):
            return clips
        return clips[torch.arange(len(clips)), self.inputs[f"{batch}.frame_idx"]][:, None]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    reference: reference_cases.Case = request.param
    config = reference.config
    return Case(
        path=reference.weights,
        step=config["global_step"],
        arguments=config["args"],
        weights=load_file(reference.weights),
        inputs=reference.inputs,
        outputs=reference.outputs,
    )


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    # The tolerance that the reference numbers are published with.
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_logits_and_features_are_upstreams(case: Case) -> None:
    compared = 0
    for batch in case.batches:
        logits = case.outputs[f"{batch}.disc_eval.logits"]
        dimensions: Literal[2, 3] = 2 if logits.ndim == 4 else 3
        output = case.discriminator(dimensions).eval()(case.clips(batch, case.inputs[batch]))
        assert_close(output.logits, logits)
        for index, feature in enumerate(output.features):
            theirs = case.outputs[f"{batch}.disc_eval.feature{index}_mean_abs"]
            assert_close(feature.abs().mean(), theirs)
            compared += 1
    assert compared


def test_one_pass_gives_the_losses_of_upstreams_two(case: Case) -> None:
    for batch in case.batches:
        frames = case.clips(batch, case.inputs[batch])
        rebuilt = case.clips(batch, case.outputs[f"{batch}.g.recon"]).requires_grad_()
        if frames.shape != rebuilt.shape:
            frames = F.interpolate(
                frames[:, 0], size=rebuilt.shape[-2:], mode="bilinear", align_corners=True
            )[:, None]
        judged: dict[str, tuple[DiscriminatorOutput, DiscriminatorOutput]] = {}
        image = case.discriminator(2)
        judged["image"] = (image(case.chosen(batch, frames)), image(case.chosen(batch, rebuilt)))
        networks = [image]
        if frames.shape[1] > 1:
            video = case.discriminator(3)
            judged["video"] = (video(frames), video(rebuilt))
            networks.append(video)

        kind: Literal["hinge", "vanilla"] = case.arguments["disc_loss_type"]
        matching = torch.zeros(())
        adversarial = torch.zeros(())
        total = torch.zeros(())
        for name, (real, fake) in judged.items():
            loss = discriminator_loss(real.logits, fake.logits, kind)
            weight = case.arguments[f"{name}_gan_weight"]
            total = total + weight * loss
            adversarial = adversarial + weight * generator_loss(fake.logits)
            if weight > 0:
                matching = matching + feature_matching_loss(real, fake)
            assert_close(loss, case.outputs[f"{batch}.d.d_{name}_loss"])
            assert_close(real.logits.mean(), case.outputs[f"{batch}.d.logits_{name}_real"])
            assert_close(fake.logits.mean(), case.outputs[f"{batch}.d.logits_{name}_fake"])
        started = case.step >= case.arguments["discriminator_iter_start"]
        assert_close(started * adversarial, case.outputs[f"{batch}.g.aeloss"])
        weighted = started * case.arguments["gan_feat_weight"] * matching
        assert_close(weighted, case.outputs[f"{batch}.g.gan_feat_loss"])
        assert_close(started * total, case.outputs[f"{batch}.d.discloss"])

        # Noise of amplitude zero has a gradient of its own, which is random: left out.
        weights = [
            parameter
            for network in networks
            for name, parameter in network.named_parameters()
            if not name.startswith("noise.")
        ]
        gradients = torch.autograd.grad(started * total, weights)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        assert_close(norm, case.outputs[f"{batch}.d.grad_norm"])


def test_missing_and_foreign_entries_are_listed_by_their_upstream_names() -> None:
    config = discriminator_config({"disc_channels": 2, "disc_layers": 2}, 3)
    state = ForeignState({"video_discriminator.model9.0.weight": torch.zeros(1)}, Path("a.ckpt"))
    discriminator_state(state, "video_discriminator.", config)
    with pytest.raises(
        CheckpointError, match=r"missing .*model1\.2\.running_var.*unexpected .*model9"
    ):
        state.finish()


def test_discriminators_that_upstream_cannot_run_are_refused() -> None:
    with pytest.raises(CheckpointError, match="norm_type 'batch', got 'group'"):
        discriminator_config({"norm_type": "group"}, 2)
