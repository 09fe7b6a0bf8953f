"""The chunked look-up against plain distances in float64, ties and memory included."""

import pytest
import torch

from tests.tokenizers.quantizers.largest_tensor import LargestTensor
from worldgen.tokenizers.quantizers.lookup import nearest_codes, nearest_neighbours

CHUNKS = [(1, 1), (3, 7), (5, 64), (64, 5), (1000, 1000)]


def distances(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return (vectors.double()[:, None] - codes.double()[None]).square().sum(-1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunks", CHUNKS)
def test_the_nearest_code_is_found_whatever_the_chunks(chunks: tuple[int, int]) -> None:
    vectors, codes = normal(40, 6), normal(130, 6, seed=1)
    expected = distances(vectors, codes).argmin(1)
    assert torch.equal(nearest_codes(vectors, codes, chunks=chunks), expected)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_of_equally_near_codes_the_first_is_taken(chunks: tuple[int, int]) -> None:
    once = normal(30, 6, seed=1)
    codes = torch.cat([once, once.flip(0), once])
    # Half way between codes, on codes, and anywhere.
    halves = torch.tensor([[0.0] * 6, [2.0, 0, 0, 0, 0, 0]])
    corners = torch.tensor([[1.0, 0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0, 0], [3.0, 0, 0, 0, 0, 0]])
    assert nearest_codes(halves, corners, chunks=chunks).tolist() == [0, 0]
    vectors = torch.cat([once, normal(20, 6)])
    expected = distances(vectors, once).argmin(1)
    assert torch.equal(nearest_codes(vectors, codes, chunks=chunks), expected)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_distances_too_close_for_float32_are_still_told_apart(chunks: tuple[int, int]) -> None:
    # Far from the origin the matrix product loses what makes the difference.
    codes = 100 + 1e-3 * normal(64, 8, seed=1)
    vectors = 100 + 1e-3 * normal(50, 8)
    expected = distances(vectors, codes).argmin(1)
    scores = codes.square().sum(-1) - 2 * vectors @ codes.T
    assert (scores.argmin(1) != expected).any()
    assert torch.equal(nearest_codes(vectors, codes, chunks=chunks), expected)


def test_a_vector_has_the_same_code_alone_and_in_any_batch() -> None:
    vectors, codes = 10 + 1e-2 * normal(33, 8), 10 + 1e-2 * normal(500, 8, seed=1)
    together = nearest_codes(vectors, codes)
    alone = torch.cat([nearest_codes(vector[None], codes) for vector in vectors])
    assert torch.equal(together, alone)


def test_codes_that_are_not_allowed_are_not_chosen() -> None:
    vectors, codes = normal(40, 6), normal(130, 6, seed=1)
    allowed = torch.arange(130) % 3 == 0
    expected = distances(vectors, codes).masked_fill(~allowed, torch.inf).argmin(1)
    assert torch.equal(nearest_codes(vectors, codes, allowed=allowed), expected)
    assert nearest_codes(vectors, codes, allowed=torch.zeros(130, dtype=torch.bool)).sum() == 0


def test_no_number_gives_code_zero_and_leaves_the_others_alone() -> None:
    vectors, codes = normal(4, 6), normal(130, 6, seed=1)
    expected = nearest_codes(vectors, codes)
    vectors[2, 3] = torch.nan
    expected[2] = 0
    assert torch.equal(nearest_codes(vectors, codes), expected)


def test_low_precision_products_do_not_change_the_ids() -> None:
    vectors, codes = normal(40, 6), normal(500, 6, seed=1)
    expected = distances(vectors, codes).argmin(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(vectors, codes), expected)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(nearest_codes(vectors, codes), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_quarter_of_a_million_codes_need_no_matrix_of_distances() -> None:
    codes = normal(2**18, 8, seed=1)
    ids = torch.randint(2**18, (64,), generator=torch.Generator().manual_seed(0))
    with LargestTensor() as mode:
        found = nearest_codes(codes[ids], codes, chunks=(64, 4096))
    assert torch.equal(found, ids)
    # The squares of the codes are the largest: an eighth of the matrix, and of no more for more
    # vectors.
    assert mode.largest == 2**18 * 8


@pytest.mark.parametrize("chunks", CHUNKS)
def test_neighbours_are_the_nearest_in_order(chunks: tuple[int, int]) -> None:
    vectors, codes = normal(20, 6), normal(130, 6, seed=1)
    allowed = torch.arange(130) % 2 == 0
    expected = distances(vectors, codes).masked_fill(~allowed, torch.inf).argsort(1)[:, :5]
    found = nearest_neighbours(vectors, codes, 5, allowed=allowed, chunks=chunks)
    assert torch.equal(found, expected)


def test_equally_near_neighbours_come_by_index() -> None:
    codes = torch.tensor([[1.0, 0], [0, 1], [0, 0], [-1, 0], [0, -1]])
    found = nearest_neighbours(torch.zeros(1, 2), codes, 5, chunks=(1, 2))
    assert found.tolist() == [[2, 0, 1, 3, 4]]
