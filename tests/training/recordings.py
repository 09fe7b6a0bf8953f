"""A recording small enough for tests: squares of few colours that move over a plain ground."""

from pathlib import Path

import numpy as np

from worldgen.data.episodes import Column, DatasetMetadata, Episode, EpisodeInfo, EpisodeWriter
from worldgen.tokenizers.action.schema import ActionSchema, Categorical

__all__ = ["write_recording"]


def write_recording(
    folder: Path,
    *,
    episodes: int = 2,
    length: int = 12,
    size: int = 16,
    cut_after: int | None = None,
    moving: bool = False,
) -> Path:
    """Write `episodes` episodes into each split; return the folder.

    After frame `cut_after` of each episode another scene begins. The actions are random where
    `moving`, otherwise none.
    """
    schema = ActionSchema(
        groups=(Categorical(name="move", options=("none", "right")),),
        named={"nothing": {}, "right": {"move": "right"}},
        keys={"ArrowRight": "right"},
    )
    metadata = DatasetMetadata(
        environment={"id": "none", "options": {}},
        frames_per_second=10.0,
        frame_height=size,
        frame_width=size,
        action_schema=schema.to_json(),
        columns={"cut": Column(dtype="bool")},
    )
    metadata.write(folder)
    random = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        writer = EpisodeWriter(folder / split, metadata.frames_per_second)
        for index in range(episodes):
            frames = np.full((length, size, size, 3), 60, dtype=np.uint8)
            for frame in frames:
                row, column = random.integers(0, size - 4, 2)
                frame[row : row + 4, column : column + 4] = (200, 40, (100 + 100 * index) % 256)
            writer.write(
                Episode(
                    frames=frames,
                    actions=random.integers(0, 1 + moving, (length, 1)),
                    columns={
                        "cut": np.isin(
                            np.arange(length), [length - 1, -1 if cut_after is None else cut_after]
                        )
                    },
                    info=EpisodeInfo(
                        index=index, seed=index, length=length, driver="none", split=split
                    ),
                )
            )
    return folder
