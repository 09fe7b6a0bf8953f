"""Rows of ids grow, are cut and copied without anyone writing over what another reads."""

import numpy as np
import pytest
import torch

from worldgen.generation.history import IdHistory


def history(rows: int, vocabulary_size: int = 64) -> IdHistory:
    return IdHistory(np.arange(2 * rows).reshape(rows, 2) % vocabulary_size, vocabulary_size)


def add(ids: IdHistory, *values: int) -> None:
    for value in values:
        ids.append(torch.tensor([value, value]))


def firsts(ids: IdHistory) -> list[int]:
    return [int(row) for row in ids.rows[:, 0]]


def test_rows_come_back_as_they_were_added() -> None:
    ids = history(0, 2**16)
    expected = np.random.default_rng(0).integers(0, 2**16, (1000, 2))
    ids.extend(torch.from_numpy(expected))
    assert ids.rows.dtype == np.uint16
    assert np.array_equal(ids.rows, expected)
    assert ids[-1].tolist() == expected[-1].tolist()
    assert ids[3].dtype == torch.int64
    with pytest.raises(IndexError, match="no row 1000"):
        ids[1000]


def test_large_vocabularies_have_room() -> None:
    ids = history(0, 2**16 + 1)
    add(ids, 2**16)
    assert ids[0].tolist() == [2**16] * 2


def test_copies_share_their_memory_until_they_differ() -> None:
    original = history(3)
    copy = original.copy()
    add(copy, 50)
    assert np.shares_memory(original.rows, copy.rows)
    add(original, 60)
    assert not np.shares_memory(original.rows, copy.rows)
    add(copy, 51)
    assert firsts(original) == [0, 2, 4, 60]
    assert firsts(copy) == [0, 2, 4, 50, 51]


def test_what_is_cut_stays_for_those_who_have_it() -> None:
    original = history(4)
    copy = original.copy()
    copy.cut(2)
    add(copy, 50)
    assert firsts(copy) == [0, 2, 50]
    assert firsts(original) == [0, 2, 4, 6]
    copy.cut(9)
    assert len(copy) == 3


def test_rows_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        history(2).rows[0] = 1


def test_memory_is_two_bytes_an_id_and_a_quarter() -> None:
    ids = history(0)
    for _ in range(20_000):
        add(ids, 1)
    assert ids.num_bytes < 1.3 * 20_000 * 2 * 2
