"""Film strips: rows of frames side by side, labelled, as one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from worldgen.checkpoint import write_atomically
from worldgen.errors import DataError

__all__ = ["draw_film_strip", "film_strip"]

_GAP = 4
_HEADER = 16
_BACKGROUND = (255, 255, 255)
_INK = (40, 40, 40)


def draw_film_strip(
    rows: Mapping[str, UInt8[np.ndarray, "time height width 3"]],
    *,
    every: int = 1,
    scale: int = 2,
    first_step: int = 0,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """Return the strip as an RGB picture: one row a clip, one column a step, time to the right.

    Args:
        rows: Label of a row -> its frames, uint8 [time, height, width, 3]; heights and widths
            agree, a shorter clip leaves the end of its row empty.
        every: Show each `every`-th frame, from the first on.
        scale: Whole-number enlargement; pixels stay sharp.
        first_step: Number written over the first column.
        labels: What to write over the columns instead of step numbers.

    Raises:
        DataError: If there is no frame to draw, or frames differ in size.
    """
    if every < 1 or scale < 1:
        raise DataError(f"film strip: every and scale must be 1 or more, got {every} and {scale}")
    shown = {label: frames[::every] for label, frames in rows.items()}
    sizes = {frames.shape[1:3] for frames in shown.values()}
    columns = max((len(frames) for frames in shown.values()), default=0)
    if columns == 0 or len(sizes) != 1:
        raise DataError(
            "film strip: needs at least one frame and one size for all rows, got "
            + (", ".join(f"{label} {frames.shape}" for label, frames in rows.items()) or "no rows")
        )
    height, width = (scale * side for side in sizes.pop())
    font = ImageFont.load_default(12)
    margin = 2 * _GAP + max(int(font.getlength(label)) for label in shown)
    picture = Image.new(
        "RGB",
        (margin + columns * (width + _GAP), _HEADER + len(shown) * (height + _GAP)),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(picture)
    for column in range(columns):
        left = margin + column * (width + _GAP)
        label = labels[column] if labels is not None else str(first_step + column * every)
        draw.text((left, 1), label, font=font, fill=_INK)
    for row, (label, frames) in enumerate(shown.items()):
        top = _HEADER + row * (height + _GAP)
        draw.text((_GAP, top + height // 2), label, font=font, fill=_INK, anchor="lm")
        for column, frame in enumerate(frames):
            tile = Image.fromarray(np.ascontiguousarray(frame, dtype=np.uint8))
            tile = tile.resize((width, height), Image.Resampling.NEAREST)
            picture.paste(tile, (margin + column * (width + _GAP), top))
    return picture


def film_strip(
    rows: Mapping[str, UInt8[np.ndarray, "time height width 3"]],
    path: Path,
    *,
    every: int = 1,
    scale: int = 2,
    first_step: int = 0,
) -> Path:
    """Write the strip of `draw_film_strip` to `path` (PNG by its suffix) and return the path.

    Example:
        >>> film_strip({"truth": truth, "dream": dream}, Path("strip.png"), every=4)
    """
    picture = draw_film_strip(rows, every=every, scale=scale, first_step=first_step)
    write_atomically(Path(path), lambda temporary: picture.save(temporary))
    return Path(path)
