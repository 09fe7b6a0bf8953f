"""What an inverse dynamics model learns from and is measured on: frames and the actions between them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num, UInt8

from worldgen.data.episodes import Dataset, Episode
from worldgen.errors import ActionError, DataError
from worldgen.evaluation.judges.inverse_dynamics import group_ids, resized
from worldgen.evaluation.judges.probe_data import spread_episodes
from worldgen.records import to_uint8
from worldgen.tokenizers.action import ActionSchema

__all__ = ["LabelledFrames", "label_weights", "load_labelled_clips", "load_labelled_frames"]


@dataclass(frozen=True, kw_only=True)
class LabelledFrames:
    """Frames of whole episodes and what was done in them."""

    frames: UInt8[np.ndarray, "frame height width 3"]
    actions: Num[np.ndarray, "frame group"]
    """As recorded; leads from this frame to the next one."""
    follows: Bool[np.ndarray, " frame"]
    """Whether the next frame follows from this one: false at the ends of episodes and at cuts."""

    def clip_starts(self, clip_frames: int) -> Bool[np.ndarray, " frame"]:
        """Return which frames begin a clip of so many frames without a cut."""
        breaks = np.cumsum(np.concatenate(([0], ~self.follows)))
        last = np.arange(len(self.frames)) + clip_frames - 1
        within = last < len(self.frames)
        unbroken = breaks[np.minimum(last, len(self.frames) - 1)] == breaks[:-1]
        starts: Bool[np.ndarray, " frame"] = within & unbroken
        return starts

    def clips(
        self, starts: Int[np.ndarray, " clip"], clip_frames: int
    ) -> tuple[UInt8[np.ndarray, "clip time height width 3"], Num[np.ndarray, "clip step group"]]:
        """Return the frames of clips and the actions between them."""
        places = starts[:, None] + np.arange(clip_frames)
        return self.frames[places], self.actions[places[:, :-1]]


def label_weights(
    data: LabelledFrames, schema: ActionSchema, clip_frames: int, rarity_power: float
) -> Float[np.ndarray, " frame"]:
    """Return how often each frame begins a training clip, on any scale.

    A clip weighs as much as its steps on average, and a step the more the rarer its options are:
    the sum over the groups of frequency ** -rarity_power.

    Args:
        data: Training frames.
        schema: Says what the groups are.
        clip_frames: Frames of a clip.
        rarity_power: 0 draws all clips evenly, 1 as if all options were equally frequent.

    Raises:
        DataError: If nothing is as long as a clip.
    """
    starts = data.clip_starts(clip_frames)
    if not starts.any():
        raise DataError(
            f"no episode for training is as long as a clip of {clip_frames} frames; lower "
            f"data.clip_frames, or record longer episodes"
        )
    rarity = np.zeros(len(data.frames))
    for ids, group in zip(group_ids(schema, data.actions).T, schema.groups, strict=True):
        counts = np.bincount(ids[data.follows], minlength=group.size).clip(1)
        rarity += (counts[ids] / data.follows.sum()) ** -rarity_power
    sums = np.concatenate(([0.0], np.cumsum(rarity)))
    last = np.minimum(np.arange(len(rarity)) + clip_frames - 1, len(rarity))
    weights: Float[np.ndarray, " frame"] = (sums[last] - sums[:-1]) * starts
    return weights


def load_labelled_frames(
    dataset: Dataset, split: str, size: tuple[int, int], max_frames: int
) -> LabelledFrames:
    """Return episodes spread over a split, about `max_frames` frames in all.

    Args:
        dataset: Recording.
        split: Split of the recording.
        size: Height and width that frames are brought to.
        max_frames: Bound on the memory; whole episodes are taken while they fit.

    Raises:
        DataError: If the split is empty, or an action is none of the schema's.
    """
    frames, actions, follows = [], [], []
    for info in spread_episodes(dataset, split, max_frames):
        episode = dataset.load(info)
        frames.append(_fit(episode.frames, size))
        actions.append(_checked_actions(dataset, episode))
        follows.append(_follows(episode))
    return LabelledFrames(
        frames=np.concatenate(frames),
        actions=np.concatenate(actions),
        follows=np.concatenate(follows),
    )


def load_labelled_clips(
    dataset: Dataset, split: str, size: tuple[int, int], max_frames: int, *, clip_frames: int
) -> tuple[UInt8[np.ndarray, "clip time height width 3"], Num[np.ndarray, "clip step group"]]:
    """Return clips side by side from a split, and the actions between their frames.

    Args:
        dataset: Recording.
        split: Split of the recording.
        size: Height and width that frames are brought to.
        max_frames: Bound on the memory.
        clip_frames: Frames of a clip.

    Raises:
        DataError: If the split is empty or nothing in it is as long as a clip.
    """
    data = load_labelled_frames(dataset, split, size, max_frames)
    free = data.clip_starts(clip_frames)
    starts: list[int] = []
    end = 0
    for start in np.flatnonzero(free):
        # Neighbours share a frame, so that no action between two frames is left out.
        if start >= end:
            starts.append(int(start))
            end = int(start) + clip_frames - 1
    if not starts:
        raise DataError(
            f"no {split} episode of {dataset.folder} is as long as a clip of {clip_frames} frames"
        )
    return data.clips(np.array(starts), clip_frames)


def _checked_actions(dataset: Dataset, episode: Episode) -> Num[np.ndarray, "frame group"]:
    schema = dataset.metadata.schema
    path = dataset.video_path(episode.info).with_suffix(".npz")
    if episode.actions.shape[1:] != (schema.num_groups,):
        raise DataError(
            f"{path}: each action must have {schema.num_groups} numbers, one for each group, got "
            f"actions of shape {episode.actions.shape[1:]}"
        )
    try:
        group_ids(schema, episode.actions)
    except ActionError as error:
        raise DataError(f"{path}: {error}") from error
    return episode.actions


def _follows(episode: Episode) -> Bool[np.ndarray, " frame"]:
    follows = np.ones(len(episode.frames), bool)
    if "cut" in episode.columns:
        follows &= ~episode.columns["cut"].astype(bool)
    follows[-1] = False
    return follows


def _fit(
    frames: UInt8[np.ndarray, "frame height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "frame new_height new_width 3"]:
    if frames.shape[1:3] == size:
        return frames
    return torch.cat(
        [to_uint8(resized(part, size)) for part in np.array_split(frames, -(-len(frames) // 64))]
    ).numpy()
