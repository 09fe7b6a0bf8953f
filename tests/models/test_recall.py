"""Recalled frames: the best of those early enough, found the same live and for whole episodes."""

import numpy as np
import pytest

from worldgen.errors import ConfigError
from worldgen.models import find_recalled, frames_around, recalled_of_episode
from worldgen.models import recall as recall_module


def brute_force(history: np.ndarray, after: int, least_share: float) -> int:
    """Return the number of the frame to recall for the last one, or -1, one comparison at a time."""
    cells, best, match = history.shape[1], 0, -1
    for number in range(len(history) - after):
        equal = sum(int(a) == int(b) for a, b in zip(history[number], history[-1], strict=True))
        if equal >= best and equal * 10 >= round(least_share * 10) * cells:
            best, match = equal, number
    return match


def random_episode(seed: int, frames: int = 60, cells: int = 12, codes: int = 2) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, codes, (frames, cells)).astype(np.uint16)


def loops(rounds: int, length: int, cells: int = 16) -> np.ndarray:
    """Return an episode that comes round the same places again and again."""
    places = np.random.default_rng(0).integers(0, 1000, (length, cells)).astype(np.uint16)
    return np.tile(places, (rounds, 1))


@pytest.mark.parametrize("after", [1, 2, 7, 100])
@pytest.mark.parametrize("least_share", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("at_once", [5, 4096])
def test_the_match_is_that_of_comparing_frame_by_frame(
    after: int, least_share: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall_module, "_FRAMES_AT_ONCE", at_once)
    for seed in range(3):
        ids = random_episode(seed)
        expected = [brute_force(ids[:stop], after, least_share) for stop in range(1, len(ids) + 1)]
        matches = recalled_of_episode(ids, after=after, least_share=least_share)
        assert matches.dtype == np.int64
        assert matches.tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_live_and_for_the_whole_episode_the_same_is_recalled(dtype: type[np.integer]) -> None:
    for ids in (random_episode(1).astype(dtype), loops(3, 11).astype(dtype)):
        matches = recalled_of_episode(ids, after=4)
        around = frames_around(ids, matches)
        for frame in range(len(ids)):
            live = find_recalled(ids[: frame + 1], after=4)
            assert live.dtype == np.int64
            assert np.array_equal(live, around[frame])


def test_a_place_seen_again_recalls_the_latest_visit_and_what_followed() -> None:
    ids = loops(rounds=3, length=10)
    matches = recalled_of_episode(ids, after=5)
    assert matches.tolist() == [-1] * 10 + list(range(20))
    before, match, following = find_recalled(ids[:25], after=5)
    assert np.array_equal(before, ids[3])
    assert np.array_equal(match, ids[24])
    assert np.array_equal(following, ids[5])


def test_of_equally_like_frames_the_latest_is_recalled() -> None:
    ids = np.zeros((9, 4), dtype=np.uint16)
    assert recalled_of_episode(ids, after=3).tolist() == [-1, -1, -1, 0, 1, 2, 3, 4, 5]


def test_a_better_frame_is_recalled_before_a_later_one() -> None:
    ids = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 4, 0], [9, 9, 9, 9, 9], [1, 2, 3, 4, 5]])
    assert recalled_of_episode(ids, after=1).tolist() == [-1, 0, -1, 0]


def test_the_least_share_is_reached_exactly() -> None:
    last, like = np.arange(10), np.arange(10)
    like[:3] += 100
    ids = np.stack((like, last))
    assert recalled_of_episode(ids, after=1, least_share=0.7).tolist() == [-1, 0]
    assert recalled_of_episode(ids, after=1, least_share=0.71).tolist() == [-1, -1]


def test_nothing_like_the_last_frame_recalls_nothing() -> None:
    ids = np.arange(40, dtype=np.uint16).reshape(10, 4)
    assert (find_recalled(ids, after=1) == -1).all()
    assert (find_recalled(ids[:1], after=1) == -1).all()


def test_at_the_beginning_the_match_stands_for_the_frame_before_it() -> None:
    ids = loops(rounds=2, length=6)[:7]
    before, match, following = find_recalled(ids, after=3)
    assert np.array_equal(before, ids[0])
    assert np.array_equal(match, ids[0])
    assert np.array_equal(following, ids[1])


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        (np.zeros((3, 4), dtype=np.uint16), {"after": 0}, "after=0"),
        (np.zeros((3, 4), dtype=np.uint16), {"after": 1, "least_share": 0.0}, "least_share=0.0"),
        (np.zeros((3, 4), dtype=np.uint16), {"after": 1, "least_share": 1.5}, "least_share=1.5"),
        (np.zeros((0, 4), dtype=np.uint16), {"after": 1}, "at least one frame"),
        (np.zeros(4, dtype=np.uint16), {"after": 1}, r"\[frame, cell\]"),
        (np.zeros((3, 4)), {"after": 1}, "float64"),
    ],
)
def test_bad_questions_are_refused(
    ids: np.ndarray, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_recalled(ids, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        recalled_of_episode(ids, **settings)  # type: ignore[arg-type]
