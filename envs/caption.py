"""Say in words what the frames of a recording show: `python -m envs.caption recordings/crafter`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from envs.captions import CaptionWriter, find_narrator
from worldgen.data.captions import (
    CAPTION_COLUMN,
    CAPTIONS_FILE,
    CaptionTable,
    write_caption_column,
)
from worldgen.data.episodes import SPLITS, Dataset
from worldgen.errors import WorldgenError

__all__ = ["caption", "main"]


def caption(folder: Path, *, seed: int = 0) -> CaptionTable:
    """Caption every frame of a recording, again if need be, and return the captions.

    All sentences are chosen before anything is written. Then the old table goes, so that a recording
    which this was stopped in has no captions, rather than some that do not belong to its frames; the
    new table comes last.

    Args:
        folder: Recording of crafter or car racing.
        seed: Of the choices; equal seeds give equal captions.

    Raises:
        DataError: If the folder is no recording, a file is damaged, or nobody can speak of its
            columns.
    """
    dataset = Dataset(folder)
    metadata = dataset.metadata
    writer = CaptionWriter(find_narrator([*metadata.columns]))
    infos = [info for split in SPLITS for info in dataset.episodes(split)]
    chosen = []
    for info in tqdm(infos, desc="choose captions", unit=" episodes", disable=None):
        generator = np.random.default_rng([seed, SPLITS.index(info.split), info.index])
        columns = dataset.load_columns(info)
        chosen.append(writer.write(columns, metadata.frames_per_second, generator))
    table = CaptionTable(captions=writer.captions)
    (folder / CAPTIONS_FILE).unlink(missing_ok=True)
    pairs = zip(infos, chosen, strict=True)
    for info, numbers in tqdm(
        pairs, desc="write captions", unit=" episodes", total=len(infos), disable=None
    ):
        there = dataset.load_columns(info).get(CAPTION_COLUMN)
        if there is None or not np.array_equal(there, numbers):
            write_caption_column(dataset, info, numbers)
    table.write(folder)
    frames, captioned = sum(map(len, chosen)), sum(int((part >= 0).sum()) for part in chosen)
    _say(f"{folder}: {len(table.captions):,} captions for {captioned:,} of {frames:,} frames")
    return table


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; every mistake of the user ends in one message and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m envs.caption", description=__doc__)
    parser.add_argument("folder", type=Path, help="recording of crafter or car racing")
    parser.add_argument("--seed", type=int, default=0, help="of the choices (default: 0)")
    parsed = parser.parse_args(arguments)
    try:
        caption(parsed.folder, seed=parsed.seed)
    except WorldgenError as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("stopped; run again to caption the recording")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
