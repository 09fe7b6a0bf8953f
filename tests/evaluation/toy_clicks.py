"""Recordings in which each action shows at once: squares that hop by what was pressed and turned."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worldgen.data.episodes import DatasetMetadata, Episode, EpisodeInfo, EpisodeWriter
from worldgen.tokenizers.action import ActionSchema, Axis, Categorical

SIZE = 16


def clicks_schema() -> ActionSchema:
    """Return a choice of three options and an axis of five bins."""
    return ActionSchema(
        groups=(
            Categorical("move", ("none", "left", "right")),
            Axis("turn", low=-1.0, high=1.0, bins=5),
        )
    )


def random_actions(random: np.random.Generator, length: int) -> NDArray[np.float64]:
    """Return options, and numbers anywhere on the axis."""
    moves = random.integers(0, 3, length)
    return np.stack((moves, random.uniform(-1.0, 1.0, length)), axis=-1)


def show(actions: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return a frame for each action, and one more: [step + 1, 16, 16, 3]."""
    # Red stands in one of four places and blue in one of five, so there is little to learn.
    hops = np.array([0, -1, 1])[actions[:, 0].astype(int)]
    turns = clicks_schema().groups[1].to_ids(actions[:, 1])
    frames = np.full((len(actions) + 1, SIZE, SIZE, 3), 40, np.uint8)
    red, blue = 0, 0
    for step, frame in enumerate(frames):
        frame[1:7, 4 * red : 4 * red + 4] = (250, 40, 40)
        frame[9:15, 3 * blue : 3 * blue + 3] = (40, 40, 250)
        if step < len(actions):
            red, blue = (red + hops[step]) % 4, (blue + turns[step]) % 5
    return frames


def record(
    folder: Path, *, episodes: int = 3, length: int = 40, shift: int = 0, seed: int = 0
) -> Path:
    """Write episodes into each split; return the folder.

    Args:
        folder: Of the recording.
        episodes: In each split.
        length: Of an episode.
        shift: The action that leads from frame t is stored at t + shift, as a broken recorder may.
        seed: Of the actions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    DatasetMetadata(
        environment={"id": "none", "options": {}},
        frames_per_second=10.0,
        frame_height=SIZE,
        frame_width=SIZE,
        action_schema=clicks_schema().to_json(),
        columns={},
    ).write(folder)
    random = np.random.default_rng(seed)
    for split in ("train", "validation", "test"):
        writer = EpisodeWriter(folder / split, 10.0)
        for index in range(episodes):
            actions = random_actions(random, length)
            writer.write(
                Episode(
                    frames=show(actions)[:-1],
                    actions=np.roll(actions, shift, axis=0),
                    columns={},
                    info=EpisodeInfo(
                        index=index, seed=index, length=length, driver="random", split=split
                    ),
                )
            )
    return folder
