"""Recordings of others to native episodes, continued where it was stopped."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldgen.checkpoint import write_text
from worldgen.data.episodes import SPLITS, Dataset, DatasetMetadata, EpisodeWriter
from worldgen.data.formats.base import Content, Layout, Reading, ReadOptions, Recording
from worldgen.data.formats.report import Problem
from worldgen.errors import DataError

__all__ = ["STATE_FILE", "Conversion", "convert", "format_conversion", "split_behind"]

STATE_FILE = "conversion.json"
_FORMAT = "worldgen-conversion"
_VERSION = 1
_SHARES = {"train": 0.94, "validation": 0.03, "test": 0.03}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What one run of `convert` did.

    Attributes:
        episodes: Native episodes by split, those of earlier runs included.
        frames: Native frames by split.
        recordings: Converted now.
        skipped: Recordings that an earlier run converted.
        decoded: Frames decoded now.
        decode_seconds: For that, conversion to RGB included.
        resized: Frames scaled now, or left at their size.
        resize_seconds: For that.
        write_seconds: Spent on encoding and writing episodes.
        problems: What was wrong with the recordings converted now.
    """

    episodes: Mapping[str, int]
    frames: Mapping[str, int]
    recordings: int
    skipped: int
    decoded: int
    decode_seconds: float
    resized: int
    resize_seconds: float
    write_seconds: float
    problems: tuple[Problem, ...] = ()


@dataclass
class _State:
    """What is on disk already: recording -> its split, episodes and frames."""

    source: str
    layout: str
    options: dict[str, Any]
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    def count(self, split: str, what: str) -> int:
        """Return how many episodes or frames of a split there are."""
        return sum(entry[split][what] for entry in self.done.values() if split in entry)

    def write(self, folder: Path) -> None:
        """Write the file that the next run continues from."""
        content = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)}
        write_text(folder / STATE_FILE, json.dumps(content, indent=2) + "\n")


def convert(
    layout: Layout,
    out: Path,
    options: ReadOptions,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write the episodes of recordings into a folder, or go on doing so.

    A recording goes into one split as a whole, so that its parts never stand on both sides: train,
    validation and test get 94, 3 and 3 of 100, the first three one each. Recordings that name
    their split keep it. Of fewer than three recordings the episodes are dealt out instead.

    Stopped at any moment, what is there are whole episodes, and the same call goes on with the
    recording in which it was stopped.

    Args:
        layout: Reader of the recordings.
        out: Folder to make; one begun by the same call is continued.
        options: How recordings become episodes.
        limit: Most recordings, those of earlier runs included.
        progress: Told how many recordings are done of how many.

    Raises:
        DataError: If the folder holds something else, or no recording can be read.
    """
    if options.frames_per_second is not None and not layout.can_thin_out:
        raise DataError(
            f"recordings of the layout {layout.name} keep their frame rate; leave "
            f"{options.frames_per_second:g} frames per second out"
        )
    content = layout.content(options)
    recordings = layout.recordings()[:limit]
    if not recordings:
        raise DataError(f"{layout.path} holds no complete recordings; see worldgen data inspect")
    state = _begin(layout, out, options, content)
    _remove_unfinished(out, state)
    whole = len(recordings) >= len(SPLITS)
    reading = Reading(options=options)
    resized = converted = 0
    write_seconds = 0.0
    skipped = sum(recording.name in state.done for recording in recordings)
    for number, recording in enumerate(recordings, start=1):
        if recording.name not in state.done:
            entry: dict[str, dict[str, int]] = {}
            split = _next_split(recording, state)
            for episode in layout.read(recording, content, reading):
                if not whole and recording.split is None:
                    split = _next_split(recording, state, entry)
                counts = entry.setdefault(split, {"episodes": 0, "frames": 0})
                index = state.count(split, "episodes") + counts["episodes"]
                info = dataclasses.replace(episode.info, index=index, seed=index, split=split)
                begun = time.perf_counter()
                EpisodeWriter(out / split, content.frames_per_second).write(
                    dataclasses.replace(episode, info=info)
                )
                write_seconds += time.perf_counter() - begun
                counts["episodes"] += 1
                counts["frames"] += info.length
                resized += info.length
            state.done[recording.name] = entry
            state.write(out)
            converted += 1
        if progress is not None:
            progress(number, len(recordings))
    return Conversion(
        episodes={split: state.count(split, "episodes") for split in SPLITS},
        frames={split: state.count(split, "frames") for split in SPLITS},
        recordings=converted,
        skipped=skipped,
        decoded=reading.frames,
        decode_seconds=reading.decode_seconds,
        resized=resized,
        resize_seconds=reading.resize_seconds,
        write_seconds=write_seconds,
        problems=tuple(reading.problems),
    )


def split_behind(counts: Mapping[str, int]) -> str:
    """Return the split that is furthest behind its share of 94, 3 and 3 in 100.

    Args:
        counts: How much each split has; the first that has nothing comes before all others.
    """
    return min(SPLITS, key=lambda split: counts[split] / _SHARES[split])


def format_conversion(conversion: Conversion) -> list[str]:
    """Return what was done as lines for a person."""
    lines = [
        f"{split}: {conversion.episodes[split]:,} episodes, {conversion.frames[split]:,} frames"
        for split in SPLITS
    ]
    before = f", {conversion.skipped:,} were there already" if conversion.skipped else ""
    lines.append(f"recordings: {conversion.recordings:,} converted{before}")
    for what, frames, seconds in (
        ("decoding", conversion.decoded, conversion.decode_seconds),
        ("resizing", conversion.resized, conversion.resize_seconds),
        ("writing", conversion.resized, conversion.write_seconds),
    ):
        if seconds > 0:
            lines.append(f"{what}: {frames / seconds:,.0f} frames/s ({frames:,} frames)")
    return lines


def _begin(layout: Layout, out: Path, options: ReadOptions, content: Content) -> _State:
    """Return the state of the folder, making both when the folder is new."""
    described = json.loads(json.dumps(dataclasses.asdict(options)))
    state = _State(source=str(layout.path.resolve()), layout=layout.name, options=described)
    if (out / STATE_FILE).is_file():
        there = _read_state(out / STATE_FILE)
        # Options that came later were at their defaults.
        there.options = dataclasses.asdict(ReadOptions()) | there.options
        for name in ("source", "layout", "options"):
            if getattr(there, name) != getattr(state, name):
                raise DataError(
                    f"{out} was begun with {name} {getattr(there, name)}, asked for "
                    f"{getattr(state, name)}; use the same, or choose another --out"
                )
        state = there
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty and no conversion; choose another --out")
    else:
        state.write(out)
    # The state comes first, so it may stand alone where an earlier run was stopped in between.
    DatasetMetadata(
        environment=content.environment,
        frames_per_second=content.frames_per_second,
        frame_height=content.frame_size[0],
        frame_width=content.frame_size[1],
        action_schema=content.schema.to_json(),
        columns=dict(content.columns),
        tokens=content.tokens,
    ).write(out)
    layout.write_beside(out)
    return state


def _read_state(path: Path) -> _State:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content.pop("format"), content.pop("version")) != (_FORMAT, _VERSION):
            raise ValueError("another format or version")
        return _State(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}); choose another --out") from error


def _remove_unfinished(out: Path, state: _State) -> None:
    """Delete the episodes of a recording in which an earlier run was stopped."""
    dataset = Dataset(out)
    for split in SPLITS:
        for info in dataset.episodes(split):
            if info.index >= state.count(split, "episodes"):
                # The JSON file makes the episode exist, so it goes first.
                for suffix in (".json", ".npz", ".mp4"):
                    dataset.stem(info).with_suffix(suffix).unlink(missing_ok=True)


def _next_split(
    recording: Recording, state: _State, entry: Mapping[str, Mapping[str, int]] | None = None
) -> str:
    """Return the split of a recording, or of its next episode when `entry` tells those before."""
    if recording.split is not None:
        return recording.split
    if entry is None:
        return split_behind(
            {split: sum(split in done for done in state.done.values()) for split in SPLITS}
        )
    none = {"episodes": 0}
    return split_behind(
        {
            split: state.count(split, "episodes") + entry.get(split, none)["episodes"]
            for split in SPLITS
        }
    )
