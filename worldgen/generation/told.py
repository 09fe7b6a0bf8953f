"""What a world's model is told in each step beside frame and action, as far as frames decide it."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Num
from numpy.typing import NDArray
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.generation.sampling import SamplingConfig
from worldgen.generation.speculative import WithDraftModel
from worldgen.models.base import WorldModel
from worldgen.models.conditions import StepConditions
from worldgen.models.next_frame import NextFrameTransformer
from worldgen.models.recall import find_recalled

__all__ = ["Told"]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a model wants to know; the same for all sessions of a world."""

    text_vocabulary_size: int = 0
    """Ids of the text in front; 0: none."""
    text_length: int = 0
    """How many of them a text has, padding included."""
    recall_after: int = 0
    """Frames that pass until a frame may be recalled; 0: nothing is recalled."""
    noise_levels: int = 0
    """Levels of how spoilt a frame may be; 0: none."""

    @classmethod
    def of(cls, model: WorldModel) -> "Told":
        """Return what a world's model wants to know."""
        if isinstance(model, WithDraftModel):
            model = model.large
        if not isinstance(model, NextFrameTransformer):
            return cls()
        config = model.config
        return cls(
            text_vocabulary_size=config.text_vocabulary_size,
            text_length=config.layout.tokens_per_step if config.text_vocabulary_size else 0,
            recall_after=config.recall_after,
            noise_levels=config.noise_levels,
        )

    def check(self, sampling: SamplingConfig) -> None:
        """Refuse a sampling that tells the model what it does not understand.

        Raises:
            ConfigError: If the model has no such noise level, or no text to be led by.
        """
        highest = max(self.noise_levels - 1, 0)
        if sampling.context_noise > highest:
            kind = f"levels 0 to {highest}" if highest else "no noise levels"
            raise ConfigError(
                f"context_noise is {sampling.context_noise}, this world's model has {kind}; use "
                "one that it has, or a world whose model was trained with noise_levels"
            )
        if sampling.text_guidance and not self.text_length:
            raise ConfigError(
                f"text_guidance is {sampling.text_guidance}, this world's model reads no text; "
                "leave it 0, or use a world with text"
            )

    def text(self, text_ids: Int[Tensor, " token"] | None) -> Int[Tensor, " token"]:
        """Return the ids of a text as the model reads them; None is the null prompt.

        Raises:
            ConfigError: If the model reads no text, or their number or an id does not fit.
        """
        if not self.text_length:
            raise ConfigError(
                "this world's model reads no text; leave the text out, or use a world with text"
            )
        if text_ids is None:
            return torch.zeros(self.text_length, dtype=torch.int64)
        if text_ids.shape != (self.text_length,):
            raise ConfigError(
                f"a text has {self.text_length} ids in this world, padded with 0; got the shape "
                f"{list(text_ids.shape)}"
            )
        if not bool(((text_ids >= 0) & (text_ids < self.text_vocabulary_size)).all()):
            raise ConfigError(
                f"ids of a text are in 0 ... {self.text_vocabulary_size - 1} in this world, got "
                f"{int(text_ids.min())} to {int(text_ids.max())}; use the world's own text "
                "tokenizer"
            )
        return text_ids.to("cpu", torch.int64)

    def conditions(
        self, history: Num[NDArray[np.integer], "frame cell"], noise_level: int = 0
    ) -> StepConditions | None:
        """Return what a sequence is told in the last step of its history.

        Args:
            history: Ids of all frames so far, the one of the step last.
            noise_level: How spoilt that frame may be.
        """
        if not (self.recall_after or self.noise_levels):
            return None
        recalled = level = None
        if self.recall_after:
            found = find_recalled(history, after=self.recall_after)
            recalled = torch.from_numpy(found)[None, None]
        if self.noise_levels:
            level = torch.tensor([[noise_level]])
        return StepConditions(recalled_ids=recalled, noise_level=level)
