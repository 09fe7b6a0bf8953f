"""Rotary positions: scores depend on differences alone, however far the frames have gone."""

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.nn.rotary import apply_rotary, rotary_table


def score(query_place: list[int], key_place: list[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 12, generator=generator)
    places = torch.tensor([query_place, key_place])
    cosine, sine = rotary_table(places, (4, 4, 4), 100.0)
    turned = [
        apply_rotary(vector, (cosine[i : i + 1], sine[i : i + 1]))
        for i, vector in enumerate((query, key))
    ]
    return (turned[0] * turned[1]).sum()


def test_scores_depend_on_differences_of_positions() -> None:
    near = score([7, 3, 2], [5, 1, 4])
    assert torch.allclose(near, score([107, 13, 12], [105, 11, 14]), atol=1e-5)
    assert not torch.allclose(near, score([8, 3, 2], [5, 1, 4]), atol=1e-3)


def test_a_million_frames_change_nothing() -> None:
    assert torch.allclose(
        score([2, 0, 0], [0, 1, 1]), score([1_000_002, 0, 0], [1_000_000, 1, 1]), atol=1e-5
    )


def test_lengths_are_kept() -> None:
    vectors = torch.randn(6, 8)
    table = rotary_table(torch.arange(12).reshape(6, 2), (4, 4), 100.0)
    assert torch.allclose(apply_rotary(vectors, table).norm(dim=-1), vectors.norm(dim=-1))


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 axes"):
        rotary_table(torch.zeros(1, 3, dtype=torch.int64), (4, 3, 4), 100.0)


def test_rows_of_a_batch_may_be_at_different_places() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 2, 5, 8, generator=generator)
    positions = torch.randint(0, 1000, (3, 5, 2), generator=generator)
    together = apply_rotary(vectors, rotary_table(positions, (4, 4), 100.0))
    for row in range(3):
        alone = apply_rotary(vectors[row], rotary_table(positions[row], (4, 4), 100.0))
        assert torch.equal(together[row], alone)
