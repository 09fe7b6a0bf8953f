"""Adversarial losses, from one pass of the discriminator over recorded and over rebuilt frames."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.tokenizers.losses.discriminators import DiscriminatorOutput, PatchDiscriminator

__all__ = [
    "AdversarialLossConfig",
    "AdversarialTerms",
    "Adversary",
    "LecamAverages",
    "adaptive_weight",
    "discriminator_loss",
    "feature_matching_loss",
    "generator_loss",
    "interpolate",
    "lecam_regularisation",
    "unit_gradient_penalty",
    "zero_centred_penalty",
]

Kind = Literal["hinge", "vanilla"]


@dataclass(frozen=True, kw_only=True)
class AdversarialLossConfig:
    """Weights of the adversarial terms of one discriminator; a weight of 0 leaves its term out."""

    kind: Kind = "hinge"
    weight: float = 0.1
    """Of the generator's term; with `adaptive` a factor on the weight that is found."""
    discriminator_weight: float = 1.0
    """Of the discriminator's hinge or vanilla loss."""
    adaptive: bool = False
    """Scale the generator's term so that its gradient at the decoder's last layer has the norm
    of that of the reconstruction."""
    feature_matching: float = 0.0
    lecam: float = 0.0
    """LeCam regularisation; 0.001 is usual, of most use with little data."""
    lecam_decay: float = 0.999
    """Share of the running mean logits that stays at each step."""
    zero_centred_penalty: float = 0.0
    """R1, on recorded frames; 1 to 10 is usual."""
    unit_gradient_penalty: float = 0.0
    """Between recorded and rebuilt frames, at the price of one more pass; 10 is usual."""
    penalty_period: int = 1
    """Steps between two gradient penalties; they are multiplied by it, so that the pull over
    many steps stays the same."""
    start_step: int = 0
    """Steps of training before discriminator and adversarial terms begin."""

    def __post_init__(self) -> None:
        weights = (
            self.weight,
            self.discriminator_weight,
            self.feature_matching,
            self.lecam,
            self.zero_centred_penalty,
            self.unit_gradient_penalty,
        )
        if min(weights) < 0:
            raise ConfigError(f"adversarial weights must not be negative, got {self}")
        if not 0 < self.lecam_decay < 1:
            raise ConfigError(f"lecam_decay must lie between 0 and 1, got {self.lecam_decay}")
        if self.penalty_period < 1 or self.start_step < 0:
            raise ConfigError(
                "penalty_period must be at least 1 and start_step at least 0, got "
                f"{self.penalty_period} and {self.start_step}"
            )

    def active(self, step: int) -> bool:
        """Whether discriminator and adversarial terms take part in training step `step`."""
        return step >= self.start_step

    def penalty_factor(self, step: int) -> int:
        """Return the factor on gradient penalties in a step; 0 in steps that leave them out.

        Source: lazy regularisation, StyleGAN2, arXiv:1912.04958, section 3.1.
        """
        return self.penalty_period if (step - self.start_step) % self.penalty_period == 0 else 0


def discriminator_loss(
    recorded: Float[Tensor, "example 1 *place"],
    rebuilt: Float[Tensor, "example 1 *place"],
    kind: Kind = "hinge",
) -> Float[Tensor, ""]:
    """Return what the discriminator minimises: half the sum over recorded and rebuilt.

    Source: hinge, arXiv:1705.02894 and, in this form, SAGAN, arXiv:1805.08318, section 3;
        vanilla, arXiv:1406.2661, equation 1, by softplus so that it stays finite.

    Args:
        recorded: Logits of recorded frames.
        rebuilt: Logits of rebuilt frames.
        kind: Form of the loss.
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - recorded).mean() + F.relu(1.0 + rebuilt).mean())
    return 0.5 * (F.softplus(-recorded).mean() + F.softplus(rebuilt).mean())


def generator_loss(rebuilt: Float[Tensor, "example 1 *place"]) -> Float[Tensor, ""]:
    """Return minus the mean logit of rebuilt frames; the tokenizer's term with either kind.

    Source: SAGAN, arXiv:1805.08318, section 3; VQGAN's code takes it beside both kinds.
    """
    return -rebuilt.mean()


def feature_matching_loss(
    recorded: DiscriminatorOutput, rebuilt: DiscriminatorOutput
) -> Float[Tensor, ""]:
    """Return the sum over stages of the mean absolute difference of features.

    The features of recorded frames get no gradient.

    Source: arXiv:1606.03498, section 3.1; over all stages pix2pixHD, arXiv:1711.11585, equation 4.
    """
    pairs = zip(recorded.features, rebuilt.features, strict=True)
    return torch.stack([F.l1_loss(theirs, ours.detach()) for ours, theirs in pairs]).sum()


class LecamAverages(nn.Module):
    """Running mean logits of recorded and rebuilt frames; part of the state that is resumed."""

    recorded: Tensor
    rebuilt: Tensor
    steps_seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("recorded", torch.zeros(()))
        self.register_buffer("rebuilt", torch.zeros(()))
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(
        self,
        recorded: Float[Tensor, "example 1 *place"],
        rebuilt: Float[Tensor, "example 1 *place"],
        decay: float,
    ) -> None:
        """Take the means of one step in; the first step sets them."""
        self.steps_seen += 1
        # Early on the plain mean over the steps seen: no bias towards a start of zero.
        share = torch.maximum(1.0 / self.steps_seen, torch.full_like(self.recorded, 1.0 - decay))
        self.recorded.lerp_(recorded.float().mean(), share)
        self.rebuilt.lerp_(rebuilt.float().mean(), share)


def lecam_regularisation(
    recorded: Float[Tensor, "example 1 *place"],
    rebuilt: Float[Tensor, "example 1 *place"],
    averages: LecamAverages,
) -> Float[Tensor, ""]:
    """Return how far the logits of each kind are from the running mean of the other kind.

    Keeps the discriminator from growing sure of itself on little data.

    Source: LeCam-GAN, arXiv:2104.03310, section 3.2 (the regulariser R_LC).
    """
    to_rebuilt = (recorded - averages.rebuilt).square().mean()
    to_recorded = (rebuilt - averages.recorded).square().mean()
    return to_rebuilt + to_recorded


def zero_centred_penalty(
    logits: Float[Tensor, "example 1 *place"],
    frames: Float[Tensor, "batch time 3 height width"],
) -> Float[Tensor, ""]:
    """Return half the squared gradient norm of an example's summed logits, mean over them: R1.

    Uses the pass that made the logits; no further one.

    Source: Mescheder et al. 2018, arXiv:1801.04406, equation 9.

    Args:
        logits: Of `frames`, which required a gradient when they entered the discriminator.
        frames: Recorded frames.
    """
    return 0.5 * _gradients(logits, frames).square().sum(dim=1).mean()


def unit_gradient_penalty(
    logits: Float[Tensor, "example 1 *place"],
    frames: Float[Tensor, "batch time 3 height width"],
) -> Float[Tensor, ""]:
    """Return how far the gradient norm of an example's mean logit is from 1: mean square.

    Source: WGAN-GP, arXiv:1704.00028, equation 3.

    Args:
        logits: Of `frames`.
        frames: As `interpolate` returns them.
    """
    places = logits[0].numel()
    norms: Tensor = _gradients(logits, frames).norm(dim=1)
    return (norms / places - 1.0).square().mean()


def _gradients(logits: Tensor, frames: Tensor) -> Float[Tensor, "example pixel"]:
    (gradient,) = torch.autograd.grad(logits.sum(), frames, create_graph=True)
    examples = logits.shape[0]
    return rearrange(
        gradient.float().flatten(), "(example pixel) -> example pixel", example=examples
    )


def interpolate(
    recorded: Float[Tensor, "batch time 3 height width"],
    rebuilt: Float[Tensor, "batch time 3 height width"],
    shares: Float[Tensor, " batch"],
) -> Float[Tensor, "batch time 3 height width"]:
    """Return frames between recorded and rebuilt ones that require a gradient.

    Args:
        recorded: float in [-1, 1].
        rebuilt: float, meant for [-1, 1].
        shares: Of the recorded frames, uniform in [0, 1), one for each clip.
    """
    weight = rearrange(shares.to(recorded), "b -> b 1 1 1 1")
    mixed = weight * recorded.detach() + (1.0 - weight) * rebuilt.detach()
    return mixed.requires_grad_()


def adaptive_weight(
    reconstruction_loss: Float[Tensor, ""],
    adversarial_loss: Float[Tensor, ""],
    last_layer: Float[Tensor, "*shape"],
    *,
    largest: float = 1e4,
    epsilon: float = 1e-6,
) -> Float[Tensor, ""]:
    """Return the weight at which both losses pull equally hard at the decoder's last layer.

    Costs a backward pass from each loss to that layer, nothing below it.

    Source: VQGAN, arXiv:2012.09841, equation 7.

    Args:
        reconstruction_loss: All terms of the reconstruction, the perceptual one included.
        adversarial_loss: As `generator_loss` returns it.
        last_layer: Weight of the layer that writes pixels.
        largest: Bound, for the time when the discriminator's gradient is next to nothing.
        epsilon: Keeps the ratio finite.
    """

    def pull(loss: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        norm: Tensor = gradient.detach().float().norm()
        return norm

    ratio = pull(reconstruction_loss) / (pull(adversarial_loss) + epsilon)
    return ratio.clamp(max=largest)


@dataclass(frozen=True, kw_only=True)
class AdversarialTerms:
    """Terms of one step, all from the same two passes of the discriminator."""

    adversarial: Float[Tensor, ""]
    """The tokenizer's, without its weight: see `Adversary.weighted`."""
    generator: dict[str, Float[Tensor, ""]]
    """The tokenizer's other terms by name, weighted."""
    discriminator: dict[str, Float[Tensor, ""]]
    """The discriminator's terms by name, weighted."""
    recorded: DiscriminatorOutput
    rebuilt: DiscriminatorOutput


class Adversary(nn.Module):
    """A discriminator with its losses and running means; its state dict is what is resumed.

    One pass of the tokenizer and one each over recorded and rebuilt frames serve both sides,
    where the usual loop runs everything once for each::

        rebuilt = tokenizer(frames).reconstruction
        terms = adversary(frames, rebuilt, step)
        adversary.backward(terms)
        loss = reconstruction_loss + adversary.weighted(terms.adversarial)
        loss.backward(inputs=list(tokenizer.parameters()))

    Both optimisers step after both backward passes: a step changes weights that the graph needs.
    """

    def __init__(self, discriminator: PatchDiscriminator, config: AdversarialLossConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminator = discriminator
        self.averages = LecamAverages()

    def forward(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        rebuilt: Float[Tensor, "batch time 3 height width"],
        step: int,
        generator: torch.Generator | None = None,
    ) -> AdversarialTerms:
        """Return the terms of a step from `config.start_step` on.

        Args:
            frames: Recorded, float in [-1, 1].
            rebuilt: The tokenizer's, with its graph.
            step: Of the training; says whether gradient penalties are due.
            generator: Of input noise and of the places between recorded and rebuilt frames.
        """
        config = self.config
        penalty = config.penalty_factor(step)
        frames = frames.detach()
        if config.zero_centred_penalty and penalty:
            frames.requires_grad_()
        real = self.discriminator(frames, generator)
        fake = self.discriminator(rebuilt, generator)
        loss = discriminator_loss(real.logits, fake.logits, config.kind)
        terms = {"discriminator": config.discriminator_weight * loss}
        if config.lecam:
            self.averages.update(real.logits, fake.logits, config.lecam_decay)
            distance = lecam_regularisation(real.logits, fake.logits, self.averages)
            terms["lecam"] = config.lecam * distance
        if config.zero_centred_penalty and penalty:
            norm = zero_centred_penalty(real.logits, frames)
            terms["zero_centred_penalty"] = penalty * config.zero_centred_penalty * norm
        if config.unit_gradient_penalty and penalty:
            device = frames.device if generator is None else generator.device
            shares = torch.rand(frames.shape[0], generator=generator, device=device)
            mixed = interpolate(frames, rebuilt, shares)
            excess = unit_gradient_penalty(self.discriminator(mixed, generator).logits, mixed)
            terms["unit_gradient_penalty"] = penalty * config.unit_gradient_penalty * excess
        matching = {}
        if config.feature_matching:
            matching["feature_matching"] = config.feature_matching * feature_matching_loss(
                real, fake
            )
        return AdversarialTerms(
            adversarial=generator_loss(fake.logits),
            generator=matching,
            discriminator=terms,
            recorded=real,
            rebuilt=fake,
        )

    def backward(self, terms: AdversarialTerms) -> None:
        """Add the discriminator's gradients to its own weights and to no others; keep the graph."""
        loss = torch.stack(list(terms.discriminator.values())).sum()
        loss.backward(retain_graph=True, inputs=list(self.discriminator.parameters()))

    def weighted(
        self,
        adversarial: Float[Tensor, ""],
        reconstruction_loss: Float[Tensor, ""] | None = None,
        last_layer: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Return the tokenizer's adversarial term with its weight.

        Args:
            adversarial: As in `AdversarialTerms`.
            reconstruction_loss: Needed where the weight is adaptive.
            last_layer: Weight of the layer that writes pixels; needed where the weight is adaptive.

        Raises:
            ConfigError: If the weight is adaptive and one of them is missing.
        """
        if not self.config.adaptive:
            return self.config.weight * adversarial
        if reconstruction_loss is None or last_layer is None:
            raise ConfigError(
                "an adaptive adversarial weight needs the reconstruction loss and the decoder's "
                "last layer, got none; give both, or set adaptive to false"
            )
        found = adaptive_weight(reconstruction_loss, adversarial, last_layer)
        return self.config.weight * found * adversarial
