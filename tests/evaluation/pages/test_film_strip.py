"""Film strips place each frame where its label says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldgen.errors import DataError
from worldgen.evaluation.pages.film_strip import draw_film_strip, film_strip


def _clip(length: int, level: int) -> np.ndarray:
    frames = np.full((length, 8, 8, 3), level, np.uint8)
    frames[:, :, :, 0] = np.arange(length)[:, None, None]
    return frames


def test_strip_shows_every_second_frame_of_each_row(tmp_path: Path) -> None:
    rows = {"truth": _clip(6, 100), "dream": _clip(4, 200)}
    written = film_strip(rows, tmp_path / "deep" / "strip.png", every=2, scale=3)
    picture = np.asarray(Image.open(written))
    assert picture.shape[0] == 16 + 2 * (24 + 4)
    last = picture[16 + 12, picture.shape[1] - 4 - 12]
    assert tuple(last) == (4, 100, 100), "third column of the first row is frame 4"
    below = picture[16 + 28 + 12, picture.shape[1] - 4 - 12]
    assert tuple(below) == (255, 255, 255), "the shorter clip leaves its end empty"


def test_strip_refuses_rows_of_different_sizes() -> None:
    rows = {"a": _clip(2, 0), "b": np.zeros((2, 9, 8, 3), np.uint8)}
    with pytest.raises(DataError, match="one size for all rows"):
        draw_film_strip(rows)
    with pytest.raises(DataError, match="no rows"):
        draw_film_strip({})
