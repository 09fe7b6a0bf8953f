"""The best and the worst examples among many, kept while they pass by, and drawn as strips."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from einops import rearrange
from jaxtyping import UInt8

from worldgen.data.media import fit
from worldgen.evaluation.pages.film_strip import draw_film_strip
from worldgen.evaluation.pages.strips import Strip

__all__ = ["AMPLIFIED", "Example", "Examples", "clip_strip", "image_strip"]

AMPLIFIED = 4
"""Factor on differences in pictures, so that they can be seen."""

_TALLEST = 192
_SHORTEST = 96


@dataclass(frozen=True, kw_only=True)
class Example:
    """Pictures, what became of them, and how good that is."""

    score: float
    """PSNR in dB."""
    file: str
    first_frame: int
    """Number in the file of the first frame of a clip; 0 for images."""
    positions: tuple[int, ...]
    """In the clip, of the pictures."""
    original: UInt8[np.ndarray, "time height width 3"]
    reconstruction: UInt8[np.ndarray, "time height width 3"]


@dataclass(kw_only=True)
class Examples:
    """The best and the worst of what it is given, at most one of each file."""

    count: int
    """Of each kind."""
    best: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)

    def wants(self, score: float) -> bool:
        """Return whether an example of this score could be kept, before it is made."""
        return (
            len(self.best) < self.count
            or score > self.best[-1].score
            or score < self.worst[-1].score
        )

    def add(self, example: Example) -> None:
        """Keep an example if it is among the best or the worst."""
        self.best = _kept([*self.best, example], -1, self.count)
        self.worst = _kept([*self.worst, example], 1, self.count)


def _kept(examples: list[Example], sign: Literal[-1, 1], count: int) -> list[Example]:
    ordered = sorted(examples, key=lambda example: sign * example.score)
    # Of one file the foremost stays: neighbouring frames would look alike.
    by_file: dict[str, Example] = {}
    for example in ordered:
        by_file.setdefault(example.file, example)
    return list(by_file.values())[:count]


def image_strip(title: str, examples: list[Example]) -> Strip:
    """Return images side by side, with the PSNR of each over it."""
    original = np.concatenate([_shrunk(example.original) for example in examples])
    reconstruction = np.concatenate([_shrunk(example.reconstruction) for example in examples])
    names = ", ".join(example.file for example in examples)
    return _strip(
        f"{title}: {names}",
        original,
        reconstruction,
        [f"{example.score:.1f} dB" for example in examples],
    )


def clip_strip(title: str, example: Example) -> Strip:
    """Return a clip, time to the right, with the number of each frame in the clip over it."""
    return _strip(
        f"{title}: {example.file} from frame {example.first_frame}, {example.score:.1f} dB",
        _shrunk(example.original),
        _shrunk(example.reconstruction),
        [str(position) for position in example.positions],
    )


def _strip(
    title: str, original: np.ndarray, reconstruction: np.ndarray, labels: list[str]
) -> Strip:
    difference = np.abs(original.astype(np.int16) - reconstruction)
    rows = {
        "original": original,
        "reconstruction": reconstruction,
        f"difference x{AMPLIFIED}": (AMPLIFIED * difference).clip(0, 255).astype(np.uint8),
    }
    scale = max(1, -(-_SHORTEST // original.shape[1]))
    return Strip(title=title, picture=draw_film_strip(rows, labels=labels, scale=scale))


def _shrunk(pictures: UInt8[np.ndarray, "time h w 3"]) -> UInt8[np.ndarray, "time height width 3"]:
    height, width = pictures.shape[1:3]
    if height <= _TALLEST:
        return pictures
    size = (_TALLEST, max(1, round(width * _TALLEST / height)))
    return rearrange([fit(picture, size) for picture in pictures], "t h w rgb -> t h w rgb")
