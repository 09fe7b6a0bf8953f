"""An inverse dynamics model: reads from frames which action was taken between any two of them."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int, Num, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.checkpoint import load_state, load_tensors, save_tensors
from worldgen.config import build
from worldgen.errors import CheckpointError, ConfigError
from worldgen.records import to_float
from worldgen.tokenizers.action import ActionSchema, Categorical

__all__ = [
    "INVERSE_DYNAMICS_FILE",
    "InverseDynamicsConfig",
    "InverseDynamicsModel",
    "group_ids",
    "load_inverse_dynamics",
    "save_inverse_dynamics",
]

INVERSE_DYNAMICS_FILE = "inverse_dynamics.safetensors"
"""By convention the name of the file in a world's folder."""

_ARTIFACT = "inverse_dynamics"
_PAIRS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class InverseDynamicsConfig:
    """Sizes of an inverse dynamics model."""

    frame_height: int
    """Frames of any other size are brought to this one."""
    frame_width: int
    window_frames: int = 8
    """Consecutive frames that a label depends on, half of them before the action's effect and half
    after it; a clip's first and last labels see fewer."""
    channels: tuple[int, ...] = (24, 48, 64, 64)
    """Of the convolutions over a pair of frames, each of which halves its sides."""
    width: int = 128
    """Features of a pair of frames."""

    def __post_init__(self) -> None:
        if self.window_frames < 2 or self.window_frames % 2:
            raise ConfigError(
                f"window_frames must be an even number of at least 2, as many frames before an "
                f"action's effect as after it; got {self.window_frames}"
            )
        if not self.channels or min(*self.channels, self.width) < 1:
            raise ConfigError(
                f"channels and width must be positive, got {self.channels} and {self.width}"
            )
        least = 2 ** len(self.channels)
        if min(self.frame_height, self.frame_width) < least:
            raise ConfigError(
                f"{len(self.channels)} halvings need frames of at least {least} x {least} pixels, "
                f"got {self.frame_height} x {self.frame_width}"
            )

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the frames that the network sees."""
        return self.frame_height, self.frame_width


class _TimeBlock(nn.Module):
    """A residual convolution over three steps; what is outside of the clip counts as zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, 3, padding=1)

    def forward(
        self, steps: Float[Tensor, "batch step width"]
    ) -> Float[Tensor, "batch step width"]:
        mixed = self.convolution(rearrange(F.gelu(self.norm(steps)), "b step w -> b w step"))
        moved: Tensor = steps + rearrange(mixed, "b w step -> b step w")
        return moved


class InverseDynamicsModel(nn.Module):
    """Labels every step of a clip with the action between its frames t and t + 1.

    Two-dimensional convolutions look at each pair of neighbouring frames; convolutions over time,
    which see the future too, join the pairs of a window; a softmax for each group of the schema
    says its option, or the bin of an axis.

    Source: Baker et al. 2022, Video PreTraining (arXiv:2206.11795), section 3 and appendix D, for
        the idea of labelling with past and future frames; the network here is a small one.
    """

    def __init__(self, config: InverseDynamicsConfig, schema: ActionSchema) -> None:
        super().__init__()
        self.config = config
        self.schema = schema
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(itertools.pairwise((6, *config.channels))):
            side = 5 if number == 0 else 3
            layers += [nn.Conv2d(before, after, side, stride=2, padding=side // 2), nn.GELU()]
        self.look = nn.Sequential(*layers)
        with torch.no_grad():
            blank = torch.zeros(1, 6, config.frame_height, config.frame_width)
            num_features = self.look(blank).numel()
        self.join = nn.Linear(num_features, config.width)
        self.blocks = nn.Sequential(
            *(_TimeBlock(config.width) for _ in range(config.window_frames // 2 - 1))
        )
        self.norm = nn.LayerNorm(config.width)
        self.heads = nn.Linear(config.width, sum(group.size for group in schema.groups))

    def forward(
        self, frames: Float[Tensor, "batch time 3 height width"]
    ) -> tuple[Float[Tensor, "batch step option"], ...]:
        """Return logits for each group of the schema.

        Args:
            frames: In [-1, 1], consecutive; of the configured size.

        Shapes:
            `step` is `time - 1`; `option` is the size of the group.
        """
        return self._read(self._pairs(frames))

    def _pairs(
        self, frames: Float[Tensor, "batch time 3 height width"]
    ) -> Float[Tensor, "batch step width"]:
        pairs = torch.cat((frames[:, :-1], frames[:, 1:]), dim=2)
        seen = self.look(rearrange(pairs, "b step rgb h w -> (b step) rgb h w"))
        joined: Tensor = self.join(seen.flatten(1))
        return rearrange(joined, "(b step) width -> b step width", b=len(frames))

    def _read(
        self, pairs: Float[Tensor, "batch step width"]
    ) -> tuple[Float[Tensor, "batch step option"], ...]:
        logits: Tensor = self.heads(F.gelu(self.norm(self.blocks(pairs))))
        return torch.split(logits, [group.size for group in self.schema.groups], dim=-1)

    @torch.no_grad()
    def label(
        self, frames: UInt8[np.ndarray, "clip time height width 3"]
    ) -> Int[np.ndarray, "clip step group"]:
        """Return the likeliest option or bin of every group at every step, int64.

        Args:
            frames: uint8 in [0, 255], of any size, consecutive along time, two or more of them.

        Shapes:
            `step` is `time - 1`.
        """
        clips = [
            torch.stack([logits.argmax(dim=-1) for logits in read], dim=-1)
            for read in self._read_clips(frames)
        ]
        return torch.stack(clips).cpu().numpy()

    @torch.no_grad()
    def expect(
        self, frames: UInt8[np.ndarray, "clip time height width 3"]
    ) -> Float64[np.ndarray, "clip step group"]:
        """Return the mean of every axis at every step, weighted by how likely its bins are.

        Finer than the likeliest bin, and bins beside each other do not compete; of a choice it is
        the likeliest option's index, as there is nothing between two options.

        Args:
            frames: As for `label`.
        """
        clips = []
        for read in self._read_clips(frames):
            columns = []
            for group, logits in zip(self.schema.groups, read, strict=True):
                if isinstance(group, Categorical):
                    columns.append(logits.argmax(dim=-1).double())
                else:
                    centres = torch.from_numpy(group.from_ids(np.arange(group.size)))
                    columns.append(logits.double().softmax(dim=-1) @ centres.to(logits.device))
            clips.append(torch.stack(columns, dim=-1))
        return torch.stack(clips).cpu().numpy()

    def _read_clips(
        self, frames: UInt8[np.ndarray, "clip time height width 3"]
    ) -> Iterator[list[Float[Tensor, "step option"]]]:
        """Yield the logits of every group, clip by clip."""
        if frames.shape[1] < 2:
            raise ConfigError(f"an action lies between two frames, got {frames.shape[1]}")
        size = self.config.frame_size
        device = self.heads.weight.device
        for clip in frames:
            parts = []
            for first in range(0, len(clip) - 1, _PAIRS_AT_ONCE):
                # One frame more than pairs; the last of it begins the next part.
                part = np.ascontiguousarray(clip[first : first + _PAIRS_AT_ONCE + 1])
                parts.append(self._pairs(resized(part, size).to(device)[None]))
            yield [logits[0] for logits in self._read(torch.cat(parts, dim=1))]


def resized(
    frames: UInt8[np.ndarray, "time height width 3"], size: tuple[int, int]
) -> Float[Tensor, "time 3 new_height new_width"]:
    """Return frames in [-1, 1] of another height and width, smoothed where they shrink."""
    whole = to_float(torch.from_numpy(frames))
    if whole.shape[-2:] == size:
        return whole
    return F.interpolate(whole, size=size, mode="bilinear", antialias=True)


def group_ids(
    schema: ActionSchema, actions: Num[np.ndarray, "*leading group"]
) -> Int[np.ndarray, "*leading group"]:
    """Return for each group the index of its option, or of the bin that holds its number; int64.

    Args:
        schema: Says what the groups are.
        actions: As recorded.

    Raises:
        ActionError: If a value is outside of what its group allows.
    """
    columns = [
        group.to_ids(np.asarray(actions[..., index])) for index, group in enumerate(schema.groups)
    ]
    return np.stack(columns, axis=-1).astype(np.int64)


def save_inverse_dynamics(
    path: Path, model: InverseDynamicsModel, held_out: Mapping[str, Any]
) -> None:
    """Write a model with its sizes, its schema and its figures to one file; weights in half precision.

    Args:
        path: By convention `inverse_dynamics.safetensors`.
        model: Trained model.
        held_out: Its figures on held-out real frames.
    """
    metadata = {
        "kind": _ARTIFACT,
        "config": dataclasses.asdict(model.config),
        "action_schema": model.schema.to_json(),
        "held_out": dict(held_out),
    }
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_tensors(path, tensors, metadata)


def load_inverse_dynamics(
    path: Path, schema: ActionSchema | None = None
) -> tuple[InverseDynamicsModel, dict[str, Any]]:
    """Return a model, to compute in single precision, and its figures on held-out real frames.

    Args:
        path: File of `save_inverse_dynamics`.
        schema: What it must be able to read; None takes whatever it reads.

    Raises:
        CheckpointError: If the file is missing, damaged, holds something else, or its groups are
            not those of `schema`.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != _ARTIFACT:
        raise CheckpointError(
            f"{path} holds {metadata.get('kind')!r}, not an inverse dynamics model; "
            f"python -m train.inverse_dynamics makes one"
        )
    own = ActionSchema.from_json(metadata["action_schema"])
    if schema is not None and own.groups != schema.groups:
        raise CheckpointError(
            f"{path} reads the groups {_names(own)}, but the actions have {_names(schema)}; "
            f"train an inverse dynamics model on a recording with these actions"
        )
    model = InverseDynamicsModel(build(InverseDynamicsConfig, metadata["config"]), own)
    load_state(model, tensors, path)
    return model.eval(), metadata["held_out"]


def _names(schema: ActionSchema) -> str:
    return ", ".join(f"{group.name} ({group.size})" for group in schema.groups)
