"""Draws the codes of a class-conditional model one after the other, on its cache."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.generation.sampling import SamplingConfig, draw
from worldgen.models.class_conditional import ClassConditionalTransformer

__all__ = ["ClassConditionalSamplingConfig", "sample_tokens"]


@dataclass(frozen=True, kw_only=True)
class ClassConditionalSamplingConfig:
    """How codes are drawn under a class."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Applied to the guided logits."""
    guidance: float = 0.0
    """How far logits are led away from those without the class; 0 runs the model once a token."""
    growing_guidance: bool = False
    """Multiply the guidance by the number of codes drawn so far."""
    codes_only: bool = True
    """Never draw a start token or a class. Upstream draws them and takes them for code 0."""

    def __post_init__(self) -> None:
        if self.guidance < 0:
            raise ConfigError(f"guidance must not be negative, got {self.guidance}")


@torch.no_grad()
def sample_tokens(
    model: ClassConditionalTransformer,
    labels: Int[Tensor, " batch"],
    uniforms: Float[Tensor, "batch code"],
    config: ClassConditionalSamplingConfig,
) -> Int[Tensor, "batch code"]:
    """Return one token for each uniform number; `model.codes` turns them into codes.

    Source: classifier-free guidance, arXiv:2207.12598, equation 6.

    Args:
        model: Of the class-conditional family.
        labels: int64 in [0, num_classes).
        uniforms: float64 in [0, 1), one for each code, as `frame_uniforms` gives them.
        config: How tokens are drawn.

    Raises:
        ConfigError: If a label is out of range or more codes are asked for than the model has
            positions.
    """
    batch, num_codes = uniforms.shape
    if num_codes > model.config.num_codes:
        raise ConfigError(
            f"the model draws at most {model.config.num_codes} codes, got {num_codes}"
        )
    streams = [_Stream(model, batch, labels)]
    if config.guidance:
        streams.append(_Stream(model, batch, None))
    drawn: list[Tensor] = []
    for step in range(num_codes):
        logits = streams[0].logits
        if config.guidance:
            strength = config.guidance * (step if config.growing_guidance else 1)
            logits = (1 + strength) * logits - strength * streams[1].logits
        if config.codes_only:
            logits = logits.clone()
            logits[:, : model.config.first_code] = float("-inf")
        drawn.append(draw(logits, uniforms[:, step].to(logits.device), config.sampling))
        if step + 1 < num_codes:
            for stream in streams:
                stream.observe(drawn[-1])
    return torch.stack(drawn, dim=1)


class _Stream:
    """Sequences with or without their class, up to the last code drawn."""

    def __init__(
        self, model: ClassConditionalTransformer, batch: int, labels: Tensor | None
    ) -> None:
        self._model = model
        self._cache = model.new_cache(batch)
        tokens = model.prefix(batch, labels)
        self._position = model.first_position
        for place in range(tokens.shape[1]):
            self.logits = model.observe(self._cache, tokens[:, place], place)

    def observe(self, tokens: Tensor) -> None:
        self.logits = self._model.observe(self._cache, tokens, self._position)
        self._position += 1
