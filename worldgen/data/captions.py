"""What a recording says in words about its frames, with the facts that make each sentence true."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from worldgen.checkpoint import write_atomically, write_text
from worldgen.data.episodes import Dataset, EpisodeInfo
from worldgen.errors import DataError

__all__ = [
    "CAPTIONS_FILE",
    "CAPTION_COLUMN",
    "NO_CAPTION",
    "Caption",
    "CaptionTable",
    "Fact",
    "caption_indices",
    "fact_holds",
    "load_captions",
    "write_caption_column",
]

CAPTIONS_FILE = "captions.json"
CAPTION_COLUMN = "caption"
"""Column of episodes: int32 [time], number of the caption in the table."""
NO_CAPTION = -1

_FORMAT = "worldgen-captions"
_VERSION = 1

Fact = Mapping[str, Any]
"""A statement that programs can check, as JSON; `fact_holds` says what it means."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A sentence and what it states.

    Attributes:
        text: For people and text tokenizers.
        facts: All of them hold in each frame that has the caption.
    """

    text: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, kw_only=True)
class CaptionTable:
    """The captions of a recording: the column `CAPTION_COLUMN` of its episodes counts in them.

    Attributes:
        captions: No text is there twice.

    Raises:
        DataError: If a text is there twice, or empty, or a fact is none.
    """

    captions: tuple[Caption, ...]

    def __post_init__(self) -> None:
        texts = [caption.text for caption in self.captions]
        if len(set(texts)) != len(texts):
            twice = next(text for text in texts if texts.count(text) > 1)
            raise DataError(f"the caption {twice!r} is there twice; a text has one set of facts")
        for caption in self.captions:
            if not caption.text.strip():
                raise DataError("a caption is empty; leave it out, and give its frames -1")
            for fact in caption.facts:
                _check(fact)

    def write(self, folder: Path) -> None:
        """Write `captions.json` into the folder of a recording."""
        described = [
            {"text": caption.text, "facts": [dict(fact) for fact in caption.facts]}
            for caption in self.captions
        ]
        # A line for each caption: thousands of them are still read by people.
        lines = ",\n".join(json.dumps(caption) for caption in described)
        head = f'"format": "{_FORMAT}", "version": {_VERSION}'
        write_text(folder / CAPTIONS_FILE, f'{{{head}, "captions": [\n{lines}\n]}}\n')


def load_captions(dataset: Dataset) -> CaptionTable | None:
    """Return the captions of a recording, or None where it has none.

    Raises:
        DataError: If the file is damaged or of another version.
    """
    path = dataset.folder / CAPTIONS_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = (content["format"], content["version"])
        if kind != (_FORMAT, _VERSION):
            raise DataError(f"of format {kind}; this version reads {(_FORMAT, _VERSION)}")
        return CaptionTable(
            captions=tuple(
                Caption(text=str(each["text"]), facts=tuple(each["facts"]))
                for each in content["captions"]
            )
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); caption the recording again") from error


def caption_indices(dataset: Dataset, split: str) -> Int[np.ndarray, " step"]:
    """Return the number of the caption of every frame of a split, int32, `NO_CAPTION` where none.

    Frames come in the order of the token cache: episode after episode. Episodes that were recorded
    after the captions were written have none.

    Raises:
        DataError: If an episode's column does not fit its length or the table.
    """
    table = load_captions(dataset)
    size = 0 if table is None else len(table.captions)
    parts = [np.zeros(0, np.int32)]
    for info in dataset.episodes(split):
        column = dataset.load_columns(info).get(CAPTION_COLUMN) if size else None
        if column is None:
            column = np.full(info.length, NO_CAPTION, np.int32)
        if column.shape != (info.length,) or column.min() < NO_CAPTION or column.max() >= size:
            raise DataError(
                f"{dataset.stem(info)}.npz does not fit the {size} captions of "
                f"{dataset.folder / CAPTIONS_FILE}; caption the recording again"
            )
        parts.append(column.astype(np.int32))
    return np.concatenate(parts)


def write_caption_column(
    dataset: Dataset, info: EpisodeInfo, indices: Int[np.ndarray, " step"]
) -> None:
    """Write the captions of an episode beside its other columns, which stay as they are.

    Args:
        dataset: The recording.
        info: The episode.
        indices: In the table, `NO_CAPTION` for none.

    Raises:
        DataError: If there is not one for each frame.
    """
    if indices.shape != (info.length,):
        raise DataError(f"{dataset.stem(info)} has {info.length} frames, got {indices.shape}")
    arrays: dict[str, Any] = {**dataset.load_columns(info)}
    arrays[CAPTION_COLUMN] = indices.astype(np.int32)
    write_atomically(
        dataset.stem(info).with_suffix(".npz"),
        lambda temporary: np.savez_compressed(temporary, **arrays),
    )


def fact_holds(
    fact: Fact,
    seen: Int[np.ndarray, "row column"] | Mapping[str, float],
    class_names: Sequence[str] = (),
) -> bool:
    """Return whether a fact is true.

    - `{"kind": "tiles", "classes": [...], "rows": [a, b], "columns": [c, d], "least": n}`: of the
      tiles in rows a to b - 1 and columns c to d - 1, at least n are of one of these classes.
    - `{"kind": "values", "column": name, "low": a, "high": b}`: the value of that name is at least
      a and less than b; null stands for no bound.

    Args:
        fact: One of a caption.
        seen: For tiles the class numbers of the map, for values a number for each name.
        class_names: Of the class numbers, in their order; not needed for values.

    Raises:
        DataError: If the fact is of another kind, or what it speaks of is not among what was seen.
    """
    _check(fact)
    if fact["kind"] == "values":
        if not isinstance(seen, Mapping) or fact["column"] not in seen:
            raise DataError(f"the fact {dict(fact)} needs the value {fact['column']!r}")
        value = float(seen[fact["column"]])
        low, high = fact["low"], fact["high"]
        return bool((low is None or value >= low) and (high is None or value < high))
    if isinstance(seen, Mapping):
        raise DataError(f"the fact {dict(fact)} needs a map of tiles, got values")
    (top, bottom), (left, right) = fact["rows"], fact["columns"]
    unknown = [name for name in fact["classes"] if name not in class_names]
    if unknown or bottom > seen.shape[0] or right > seen.shape[1]:
        raise DataError(
            f"the fact {dict(fact)} does not fit a map of {seen.shape[0]} x {seen.shape[1]} tiles "
            f"of the classes {', '.join(class_names)}"
        )
    numbers = [list(class_names).index(name) for name in fact["classes"]]
    return bool(np.isin(seen[top:bottom, left:right], numbers).sum() >= fact["least"])


def _check(fact: Fact) -> None:
    """Raise DataError where a fact is not one of the two kinds."""
    try:
        if fact["kind"] == "tiles":
            fits = (
                len(fact["classes"]) > 0
                and all(isinstance(name, str) for name in fact["classes"])
                and all(
                    isinstance(first, int) and isinstance(end, int) and 0 <= first < end
                    for first, end in (fact["rows"], fact["columns"])
                )
                and isinstance(fact["least"], int)
                and fact["least"] >= 1
            )
        elif fact["kind"] == "values":
            bounds = [bound for bound in (fact["low"], fact["high"]) if bound is not None]
            fits = isinstance(fact["column"], str) and [*map(float, bounds)] == sorted(bounds)
        else:
            fits = False
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise DataError(
            f"{fact} is no fact; there are "
            '{"kind": "tiles", "classes": [...], "rows": [a, b], "columns": [c, d], "least": n} '
            'and {"kind": "values", "column": name, "low": a, "high": b}'
        )
