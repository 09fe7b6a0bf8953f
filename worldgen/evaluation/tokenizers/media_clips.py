"""Which clips of which videos are measured: spread evenly, whole or piece by piece."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from worldgen.data.media import MediaFolder
from worldgen.data.video import num_declared_frames
from worldgen.errors import DataError

__all__ = ["ClipPlan", "spread"]

_PIECE_FRAMES = 16

Clip = tuple[int, Iterator[UInt8[np.ndarray, "t h w 3"]]]
"""Number of the first frame in the video, and the clip in one piece or in several."""


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """How clips are cut out of videos."""

    size: tuple[int, int]
    """Height and width."""
    num_frames: int | None
    """None takes a video whole, as one clip."""
    streamed: bool
    """Whether clips come in pieces, so that memory does not grow with their length."""
    frames_per_latent: int
    """Pieces hold multiples of it, the first one a frame more."""

    def clips(self, folder: MediaFolder, path: Path, quota: int | None) -> Iterator[Clip]:
        """Yield the clips of a video; each must be read before the next.

        A video that is damaged, or that ends early, is noted in `folder.skipped` after what can be
        read of it. So is one shorter than a clip, unless it is streamed: then it is cut short.

        Args:
            folder: Reads the video.
            path: The video.
            quota: Most clips, spread over the video where it tells its length; None takes all.
        """
        if self.num_frames is not None and not self.streamed:
            stride = self._stride(path, self.num_frames, quota)
            whole = folder.try_clips(path, self.num_frames, self.size, stride)
            for number, clip in enumerate(itertools.islice(whole, quota)):
                yield number * stride, iter([clip])
            return
        pieces = self._pieces(folder, path, quota)
        for start, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
            yield start, (piece for _, piece in group)

    def _pieces(
        self, folder: MediaFolder, path: Path, quota: int | None
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "t h w 3"]]]:
        group, length = self.frames_per_latent, self.num_frames
        size = group * max(1, _PIECE_FRAMES // group)
        stride = 0 if length is None else self._stride(path, length, quota)
        start, position = 0, 0
        held: list[np.ndarray] = []
        with contextlib.suppress(DataError):
            for number, frame in enumerate(folder.read_frames(path, self.size)):
                if number < start:
                    continue
                held.append(frame)
                wanted = size + (position == 0)
                if length is not None:
                    wanted = min(wanted, length - position)
                if len(held) < wanted:
                    continue
                yield start, np.stack(held)
                position, held = position + wanted, []
                if position == length:
                    position, start = 0, start + stride
                    if quota is not None and start >= quota * stride:
                        return
        # At the end of the video, or of what can be read of it, whole groups still count.
        beginning = int(position == 0)
        rest = len(held) - (len(held) - beginning) % group if held else 0
        # One frame that is left over after the last clip is no clip.
        if rest > int(start > 0 and position == 0):
            yield start, np.stack(held[:rest])

    @staticmethod
    def _stride(path: Path, length: int, quota: int | None) -> int:
        if quota is None or quota < 2:
            return length
        try:
            declared = num_declared_frames(path)
        except DataError:
            # Whoever reads it says so.
            return length
        return max(length, (declared - length) // (quota - 1))


def spread(paths: Sequence[Path], limit: int | None) -> list[Path]:
    """Return at most `limit` paths, spread evenly over all."""
    if limit is None or limit >= len(paths):
        return list(paths)
    return [paths[index * len(paths) // limit] for index in range(limit)]
