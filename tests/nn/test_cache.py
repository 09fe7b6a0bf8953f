"""The ring of frames gives back its window in the order of time and forgets what it must."""

import pytest
import torch

from worldgen.errors import SessionLimitError
from worldgen.nn.cache import FrameCache
from worldgen.nn.cache_storage import CacheConfig


def cache(spare: int = 0) -> FrameCache:
    return FrameCache(CacheConfig(heads=1, tokens=2, head_width=1, windows=(1, 3), spare=spare))


def write(ring: FrameCache, value: float) -> list[list[float]]:
    frame = torch.full((1, 1, 2, 1), value)
    seen = [ring.write_and_read(layer, frame, frame)[0].flatten().tolist() for layer in (0, 1)]
    ring.advance()
    return seen


def test_each_layer_sees_its_own_window_in_the_order_of_time() -> None:
    ring = cache()
    seen = [write(ring, float(number)) for number in range(8)]
    assert seen[0] == [[0, 0], [0, 0]]
    for number in range(2, 8):
        window = [float(n) for n in (number - 2, number - 1, number) for _ in range(2)]
        assert seen[number] == [[float(number)] * 2, window]


def test_rewinding_within_the_spare_frames_forgets_what_came_later() -> None:
    ring = cache(spare=3)
    for number in range(10):
        write(ring, float(number))
    ring.rewind_to(7)
    assert write(ring, 70.0)[1] == [5, 5, 6, 6, 70, 70]


def test_rewinding_further_than_the_ring_reaches_is_refused() -> None:
    ring = cache(spare=3)
    for number in range(10):
        write(ring, float(number))
    # Six frames are kept: 4 to 9. Frame 6 needs 4 and 5, frame 5 would need 3.
    assert ring.can_rewind_to(6)
    assert not ring.can_rewind_to(5)
    with pytest.raises(SessionLimitError, match="only 6 frames are kept"):
        ring.rewind_to(5)


def test_repeated_rewinding_cannot_reach_overwritten_frames() -> None:
    ring = cache(spare=3)
    for number in range(10):
        write(ring, float(number))
    ring.rewind_to(6)
    assert not ring.can_rewind_to(5)


def test_a_fork_is_independent() -> None:
    ring = cache(spare=2)
    for number in range(4):
        write(ring, float(number))
    fork = ring.fork()
    write(ring, 50.0)
    assert write(fork, 60.0)[1] == [2, 2, 3, 3, 60, 60]
    assert write(ring, 51.0)[1] == [3, 3, 50, 50, 51, 51]


def test_memory_does_not_grow() -> None:
    ring = cache(spare=3)
    before = ring.num_bytes
    for number in range(50):
        write(ring, float(number))
    assert ring.num_bytes == before == 2 * 2 * 6 * 2 * 4
