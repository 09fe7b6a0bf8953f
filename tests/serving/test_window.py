"""The frames that can be gone back to."""

import numpy as np
import pytest

from worldgen.errors import SessionLimitError
from worldgen.serving.window import FrameWindow


def frame(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value % 256, np.uint8)


def filled(count: int, capacity: int) -> FrameWindow:
    window = FrameWindow(capacity, first=0)
    for index in range(count):
        window.append(frame(index))
    return window


def test_a_full_window_forgets_its_oldest_frames_and_keeps_the_indices() -> None:
    window = filled(1000, capacity=50)
    assert window.last == 999
    assert 50 <= window.last - window.first + 1 < 150
    assert np.array_equal(window[window.first], frame(window.first))
    assert np.array_equal(window[999], frame(999))


def test_a_window_cut_at_a_frame_grows_apart_from_the_whole() -> None:
    window = filled(10, capacity=50)
    cut = window.until(4)
    cut.append(frame(77))
    assert (cut.last, window.last) == (5, 9)
    assert np.array_equal(cut[5], frame(77))
    assert np.array_equal(window[5], frame(5))


@pytest.mark.parametrize("index", [-1, 10])
def test_a_frame_outside_says_which_frames_are_at_hand(index: int) -> None:
    with pytest.raises(SessionLimitError, match="frames 0 to 9 are"):
        filled(10, capacity=50)[index]
