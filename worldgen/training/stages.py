"""Stages of a training on images and clips: which batch a step sees, and how large."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from worldgen.errors import ConfigError
from worldgen.training.data_order import DataOrder

__all__ = ["Draw", "StageConfig", "Stages"]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What batches are made of in one part of a training.

    Source: Wang et al. 2024, OmniTokenizer (arXiv:2406.09399), section 3.2, for images first and
        images with videos after.
    """

    share: float = 1.0
    """Length on any scale, for example steps; the stages together take the whole training."""
    image_batch_size: int
    """Images of a batch."""
    video_share: float = 0.0
    """Probability that a batch is of clips; 0 is images alone."""
    clip_frames: int = 1
    """Frames of a clip."""
    clip_batch_size: int = 1
    """Clips of a batch."""
    resolutions: tuple[tuple[int, int], ...] = ()
    """Height and width in pixels, one pair drawn for each batch; empty: as the tokenizer says."""

    def __post_init__(self) -> None:
        sizes = (self.image_batch_size, self.clip_frames, self.clip_batch_size)
        if self.share <= 0 or min(sizes) < 1 or not 0 <= self.video_share <= 1:
            raise ConfigError(
                "a stage needs share > 0, image_batch_size, clip_frames and clip_batch_size of at "
                f"least 1 and video_share in [0, 1], got {self}"
            )
        if any(min(pair) < 1 for pair in self.resolutions):
            raise ConfigError(f"resolutions are pairs of pixels, got {self.resolutions}")

    @property
    def longest_clip(self) -> int:
        """Frames of the longest clip that is drawn; 1 where only images are."""
        return self.clip_frames if self.video_share > 0 else 1


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A batch, by the places of its frames."""

    starts: Int[np.ndarray, " clip"]
    """First frames of the clips in the pool."""
    clip_frames: int
    """1 for images."""
    resolution: tuple[int, int]
    """Height and width in pixels."""

    @property
    def kind(self) -> str:
        """`"images"` or `"videos"`."""
        return "images" if self.clip_frames == 1 else "videos"

    @property
    def num_frames(self) -> int:
        """Frames of the whole batch."""
        return len(self.starts) * self.clip_frames


class Stages:
    """Says which batch a step sees: a function of seed, step and stage, and of nothing else."""

    def __init__(
        self,
        stages: Sequence[StageConfig],
        clip_weights: Callable[[int], Float[np.ndarray, " frame"]],
        *,
        frame_size: tuple[int, int],
        seed: int,
    ) -> None:
        """Prepare the draws.

        Args:
            stages: One after the other.
            clip_weights: Frames of a clip -> how often each frame of the pool begins one.
            frame_size: Height and width where a stage names no resolution.
            seed: Two of the same seed draw the same.
        """
        self._stages = stages
        self._ends = np.cumsum([stage.share for stage in stages]) / sum(s.share for s in stages)
        self._frame_size = frame_size
        self._seed = seed
        self._images = [
            DataOrder(clip_weights(1), batch_size=stage.image_batch_size, seed=seed)
            for stage in stages
        ]
        self._clips = [
            DataOrder(clip_weights(stage.longest_clip), batch_size=stage.clip_batch_size, seed=seed)
            for stage in stages
        ]

    def stage(self, progress: float) -> int:
        """Return the number of the stage at a share of the training in [0, 1)."""
        return int(np.searchsorted(self._ends[:-1], progress, side="right"))

    def clips_begin(self, before: int, now: int) -> bool:
        """Return whether clips are drawn in stage `now` and were in none up to stage `before`."""
        clips = [stage.longest_clip > 1 for stage in self._stages]
        return now > before and clips[now] and not any(clips[: before + 1])

    def draw(self, step: int, stage: int) -> Draw:
        """Return the batch of a step."""
        config = self._stages[stage]
        # The third number sets these draws apart from those of the samples.
        random = np.random.default_rng((self._seed, step, 1))
        video = random.random() < config.video_share
        sizes = config.resolutions or (self._frame_size,)
        return Draw(
            starts=(self._clips if video else self._images)[stage].indices(step),
            clip_frames=config.clip_frames if video else 1,
            resolution=sizes[int(random.integers(len(sizes)))],
        )
