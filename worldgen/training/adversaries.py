"""The discriminators beside a tokenizer in training, and their optimiser."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldgen.tokenizers.losses.adversarial import (
    AdversarialLossConfig,
    AdversarialTerms,
    Adversary,
)
from worldgen.tokenizers.losses.discriminators import PatchDiscriminator, PatchDiscriminatorConfig
from worldgen.tokenizers.losses.perceptual import Features
from worldgen.training.optimiser import (
    OptimiserConfig,
    build_optimiser,
    learning_rate,
    set_learning_rate,
)

__all__ = ["Adversaries", "AdversaryConfig", "Verdicts"]


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """A discriminator and its losses.

    Of two dimensions it judges every frame alone, of images and of clips; of three, clips only.
    """

    discriminator: PatchDiscriminatorConfig
    losses: AdversarialLossConfig


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What the discriminators say in one step; empty while none takes part."""

    terms: dict[str, tuple[Adversary, AdversarialTerms]]
    """By name: `image` or `video`."""

    @property
    def features(self) -> list[tuple[Features, Features]]:
        """Of each discriminator the features of recorded and of rebuilt frames."""
        return [
            (terms.recorded.features, terms.rebuilt.features) for _, terms in self.terms.values()
        ]

    @property
    def discriminator_terms(self) -> dict[str, Float[Tensor, ""]]:
        """What the discriminators minimise, by name."""
        return {
            f"{name}_{term}": value
            for name, (_, terms) in self.terms.items()
            for term, value in terms.discriminator.items()
        }

    def tokenizer_terms(
        self, reconstruction_loss: Float[Tensor, ""], last_layer: Tensor
    ) -> dict[str, Float[Tensor, ""]]:
        """Return what the tokenizer minimises, by name.

        Args:
            reconstruction_loss: All other terms of the reconstruction; says how much an adaptive
                weight is.
            last_layer: Weight that writes the pixels.
        """
        found: dict[str, Tensor] = {}
        for name, (adversary, terms) in self.terms.items():
            weighted = adversary.weighted(terms.adversarial, reconstruction_loss, last_layer)
            found[f"{name}_adversarial"] = weighted
            found |= {f"{name}_{term}": value for term, value in terms.generator.items()}
        return found


class Adversaries(nn.Module):
    """Any number of discriminators, none included, trained on what the tokenizer's pass made."""

    def __init__(self, configs: Sequence[AdversaryConfig], optimiser: OptimiserConfig) -> None:
        super().__init__()
        self.adversaries = nn.ModuleList(
            Adversary(PatchDiscriminator(config.discriminator), config.losses) for config in configs
        )
        self._optimiser_config = optimiser
        self._optimiser = build_optimiser(self, optimiser) if configs else None

    @property
    def resumed(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """What a training's state holds of them, by name."""
        return {} if self._optimiser is None else {"adversaries": (self, self._optimiser)}

    def forward(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        rebuilt: Float[Tensor, "batch time 3 height width"],
        step: int,
        generator: torch.Generator,
    ) -> Verdicts:
        """Return what those say that take part: past their first step, and clips where needed.

        Args:
            frames: Recorded, float in [-1, 1].
            rebuilt: The tokenizer's, with its graph.
            step: Of the training.
            generator: Of all randomness.
        """
        terms: dict[str, tuple[Adversary, AdversarialTerms]] = {}
        for module in self.adversaries:
            adversary = cast("Adversary", module)
            flat = adversary.discriminator.config.dimensions == 2
            if adversary.config.active(step) and (flat or frames.shape[1] > 1):
                said = adversary(frames, rebuilt, step, generator)
                terms["image" if flat else "video"] = (adversary, said)
        return Verdicts(terms=terms)

    def backward(self, verdicts: Verdicts) -> dict[str, Float[Tensor, ""]]:
        """Find the gradients of the discriminators, and of nothing else; keep the graph.

        Returns:
            Their norm, by name; none where no discriminator took part.
        """
        if not verdicts.terms:
            return {}
        self.zero_grad(set_to_none=True)
        for adversary, terms in verdicts.terms.values():
            adversary.backward(terms)
        clip = self._optimiser_config.gradient_clip
        norm = nn.utils.clip_grad_norm_(self.parameters(), clip)
        return {"discriminator_gradient_norm": norm}

    def step(self, verdicts: Verdicts, progress: float) -> None:
        """Change the weights of those that took part; after all backward passes."""
        if self._optimiser is not None and verdicts.terms:
            set_learning_rate(self._optimiser, learning_rate(self._optimiser_config, progress))
            self._optimiser.step()
