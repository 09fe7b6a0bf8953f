"""The cursor that recorded windows of the game lack."""

import numpy as np
from jaxtyping import UInt8

from worldgen.data.formats.recorder import CURSOR_HEIGHT

__all__ = ["draw_cursor"]

# An arrow whose tip is the point it shows: # black, o white.
_SHAPE = (
    "#         ",
    "##        ",
    "#o#       ",
    "#oo#      ",
    "#ooo#     ",
    "#oooo#    ",
    "#ooooo#   ",
    "#oooooo#  ",
    "#ooooooo# ",
    "#oooo#####",
    "#oo#oo#   ",
    "#o# #oo#  ",
    "##  #oo#  ",
    "#    ##   ",
)
_DRAWN_AT_HEIGHT = 360
_ARROW = np.array([list(row) for row in _SHAPE])


def draw_cursor(
    frame: UInt8[np.ndarray, "height width 3"], cursor: tuple[float, float]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a frame with an arrow whose tip is at the cursor; what lies outside is cut off.

    Args:
        frame: uint8 RGB, left as it is.
        cursor: x and y in a window `CURSOR_HEIGHT` high.
    """
    height, width = frame.shape[:2]
    scale = height / CURSOR_HEIGHT
    # Far outside is as good as just outside, and fits an integer.
    far = width + height
    left, top = (int(np.floor(np.clip(place * scale, -far, far))) for place in cursor)
    size = max(1, round(height / _DRAWN_AT_HEIGHT))
    arrow = _ARROW.repeat(size, axis=0).repeat(size, axis=1)
    rows, columns = np.nonzero(arrow != " ")
    white = (arrow[rows, columns] == "o")[:, None]
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    drawn = frame.copy()
    drawn[rows[inside], columns[inside]] = np.where(white[inside], 255, 0).astype(np.uint8)
    return drawn
