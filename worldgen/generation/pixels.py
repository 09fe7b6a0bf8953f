"""The frames of a session: from its grids of ids, through a decoder that may remember earlier ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from worldgen.records import to_uint8
from worldgen.tokenizers.visual import DecoderStream, VisualTokenizer

__all__ = ["GridToShow", "SessionPixels", "decode_together"]

Grids = Callable[[int], Int[Tensor, " cell"]]

_verdicts: WeakKeyDictionary[VisualTokenizer, dict[tuple[int, int], bool]] = WeakKeyDictionary()
"""By size of batch and number of threads."""


class SessionPixels:
    """Decodes the grids of one session, in any order, to the same pixels every time.

    A tokenizer of clips decodes a grid with what it remembers of those before it. So the stream
    behind the latest grid is kept, and copies of it from earlier, half as many for each doubling of
    the distance: about thirty in an hour, and a grid of the past costs about half of the way back
    to it.

    Args:
        tokenizer: Shared, never changed.

    Raises:
        ConfigError: If the tokenizer needs whole clips.
    """

    def __init__(self, tokenizer: VisualTokenizer) -> None:
        self.tokenizer = tokenizer
        # By the number of grids that went through; never fed, only forked.
        self._streams = {0: tokenizer.decoder_stream()}
        self._latest: tuple[int, UInt8[NDArray[np.uint8], "frame height width 3"]] | None = None

    @torch.no_grad()
    def frame(
        self, number: int, place: int, grid: Grids
    ) -> UInt8[NDArray[np.uint8], "height width 3"]:
        """Return a frame of a grid.

        Args:
            number: Of the grid.
            place: Of the frame among those of the grid; -1 is the last one.
            grid: Gives the ids of a grid by its number, from 0 for the first one of the clip.
        """
        if self._latest is None or self._latest[0] != number:
            self._latest = number, self._decode(number, grid)
        # A caller may draw on what it gets.
        return np.array(self._latest[1][place])

    def keep(self, number: int, frames: UInt8[NDArray[np.uint8], "frame height width 3"]) -> None:
        """Take the frames of a grid that was decoded already."""
        self._latest = number, frames

    def misses(self, number: int) -> bool:
        """Whether the frames of a grid can be decoded in a batch with others, and are not at hand."""
        at_hand = self._latest is not None and self._latest[0] == number
        return self.tokenizer.single_frames and not at_hand

    def forget_from(self, number: int) -> None:
        """Forget that grid and all after it: they will be others."""
        self._streams = {
            passed: stream for passed, stream in self._streams.items() if passed <= number
        }
        if self._latest is not None and self._latest[0] >= number:
            self._latest = None

    def fork(self) -> "SessionPixels":
        """Return an independent copy."""
        copy = object.__new__(SessionPixels)
        copy.tokenizer = self.tokenizer
        copy._streams, copy._latest = dict(self._streams), self._latest
        return copy

    def _decode(self, number: int, grid: Grids) -> UInt8[NDArray[np.uint8], "frame height width 3"]:
        if self.tokenizer.single_frames:
            return _to_frames(self.tokenizer.decode(self._ids(number, grid)))
        nearest = max(passed for passed in self._streams if passed <= number)
        newest = max(number + 1, *self._streams)
        stream: DecoderStream = self._streams[nearest].fork()
        for passed in range(nearest, number + 1):
            pixels = stream.push(self._ids(passed, grid))
            if _worth_keeping(passed + 1, newest):
                self._streams[passed + 1] = stream.fork()
        self._streams = {
            passed: kept for passed, kept in self._streams.items() if _worth_keeping(passed, newest)
        }
        return _to_frames(pixels)

    def _ids(self, number: int, grid: Grids) -> Int[Tensor, "1 1 row column"]:
        rows = self.tokenizer.rows
        return rearrange(grid(number), "(row column) -> 1 1 row column", row=rows)


@dataclass(frozen=True, kw_only=True)
class GridToShow:
    """A grid of a session whose frames will be asked for."""

    pixels: SessionPixels
    number: int
    """Counted from the first grid of the context."""
    ids: Int[Tensor, " cell"]


def decode_together(grids: Sequence[GridToShow]) -> None:
    """Decode grids of several sessions in one batch, where their tokenizer knows single frames.

    And where a batch gives the pixels that single grids give, to the last bit; this is found out
    the first time that a size of batch is met. Others are decoded when they are asked for.
    """
    missing: dict[VisualTokenizer, list[GridToShow]] = {}
    for grid in grids:
        if grid.pixels.misses(grid.number):
            missing.setdefault(grid.pixels.tokenizer, []).append(grid)
    for tokenizer, members in missing.items():
        ids = rearrange(
            torch.stack([grid.ids for grid in members]),
            "grid (row column) -> grid 1 row column",
            row=tokenizer.rows,
        )
        if len(members) > 1 and _decodes_exactly(tokenizer, ids):
            with torch.no_grad():
                frames = to_uint8(tokenizer.decode(ids)).cpu().numpy()
            for grid, own in zip(members, frames, strict=True):
                grid.pixels.keep(grid.number, own)


@torch.no_grad()
def _decodes_exactly(tokenizer: VisualTokenizer, ids: Int[Tensor, "grid 1 row column"]) -> bool:
    verdicts = _verdicts.setdefault(tokenizer, {})
    size = len(ids), torch.get_num_threads()
    if size not in verdicts:
        alone = torch.cat([tokenizer.decode(row) for row in ids.split(1)])
        verdicts[size] = torch.equal(tokenizer.decode(ids), alone)
    return verdicts[size]


def _worth_keeping(passed: int, newest: int) -> bool:
    """Whether a stream stays: all of the last four, then two for each doubling of the distance."""
    stride = 1 << max(0, (newest - passed).bit_length() - 2)
    return passed % stride == 0


def _to_frames(pixels: Tensor) -> UInt8[NDArray[np.uint8], "frame height width 3"]:
    return to_uint8(pixels)[0].cpu().numpy()
