"""The recent frames of one line of events, by index."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8

from worldgen.errors import SessionLimitError

__all__ = ["FrameWindow"]

Frame = UInt8[np.ndarray, "height width 3"]

_TRIM = 100
"""Frames dropped at once, because dropping the head of a list moves all that follows."""


class FrameWindow:
    """The last frames of a branch; frames are never written to, so windows share them.

    Not thread-safe.

    Args:
        capacity: How many frames are kept at least, once there were so many.
        first: Index of the first frame that is appended.
        frames: Frames to begin with.
    """

    def __init__(self, capacity: int, *, first: int = 0, frames: Iterable[Frame] = ()) -> None:
        self.capacity = capacity
        self._first = first
        self._frames = list(frames)

    @property
    def first(self) -> int:
        """Index of the oldest frame at hand."""
        return self._first

    @property
    def last(self) -> int:
        """Index of the newest frame."""
        return self._first + len(self._frames) - 1

    def append(self, frame: Frame) -> None:
        """Add the next frame; the oldest ones go when the window is full."""
        self._frames.append(frame)
        if len(self._frames) >= self.capacity + _TRIM:
            del self._frames[:_TRIM]
            self._first += _TRIM

    def __getitem__(self, index: int) -> Frame:
        """Return the frame of that index.

        Raises:
            SessionLimitError: If it is not, or no longer, at hand.
        """
        if not self.first <= index <= self.last:
            raise SessionLimitError(
                f"frame {index} is not at hand; frames {self.first} to {self.last} are"
            )
        return self._frames[index - self._first]

    def until(self, index: int) -> "FrameWindow":
        """Return a window that ends at frame `index`; raises as `window[index]` does."""
        self[index]
        kept = self._frames[: index - self._first + 1]
        return FrameWindow(self.capacity, first=self._first, frames=kept)

    def copy(self) -> "FrameWindow":
        """Return a window of the same frames that grows on its own."""
        return self.until(self.last)
