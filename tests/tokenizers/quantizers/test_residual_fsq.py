"""Residual finite scalar quantization against sums of plain codes."""

from itertools import product

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import (
    FiniteScalarQuantizer,
    FSQConfig,
    ResidualFiniteScalarQuantizer,
    ResidualFSQConfig,
)


def residual(*levels: int, depth: int) -> ResidualFiniteScalarQuantizer:
    return ResidualFiniteScalarQuantizer(ResidualFSQConfig(levels=levels, depth=depth))


def test_odd_levels_are_sums_of_codes_each_smaller_by_the_number_of_levels() -> None:
    scheme, plain = residual(5, 3, depth=2), FiniteScalarQuantizer(FSQConfig(levels=(5, 3)))
    coarse, fine = torch.tensor(list(product(range(15), range(15)))).T
    joint = scheme.join_levels(torch.stack([coarse, fine], dim=-1)).reshape(1, -1, 1)
    coarse_codes = plain.ids_to_vectors(coarse.reshape(1, -1, 1))
    fine_codes = plain.ids_to_vectors(fine.reshape(1, -1, 1))
    shrink = torch.tensor([5.0, 3.0]).reshape(1, 2, 1, 1)
    sums = coarse_codes + fine_codes / shrink
    # Codes of the whole are in units of their own outermost value, 12 / 12 and 4 / 4.
    unit = torch.tensor([1 + 1 / 5, 1 + 1 / 3]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(scheme.ids_to_vectors(joint), sums / unit)


def test_the_first_level_alone_tells_roughly_where_a_code_lies() -> None:
    scheme = residual(8, 5, depth=2)
    ids = torch.arange(scheme.codebook_size)
    codes = scheme.ids_to_vectors(ids.reshape(1, -1, 1))[0, :, :, 0]
    first = scheme.split_levels(ids)[:, 0]
    for group in range(40):
        inside = codes[:, first == group]
        assert inside.shape == (2, 40)
        spread = inside.amax(1) - inside.amin(1)
        # A step of the first level: 2 / 8 and 2 / 5, with the two steps of rounding at its edge.
        assert (spread < torch.tensor([2 / 8, 2 / 5])).all()


def test_depth_one_is_plain_fsq() -> None:
    scheme, plain = residual(8, 5, 5, depth=1), FiniteScalarQuantizer(FSQConfig(levels=(8, 5, 5)))
    vectors = 3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scheme(vectors).ids, plain(vectors).ids)
    assert torch.equal(scheme(vectors).quantized, plain(vectors).quantized)


def test_outermost_values_can_be_reached() -> None:
    scheme = residual(10, 31, depth=2)
    far = scheme(torch.tensor([[9.0, 9.0], [-9.0, -9.0]]).reshape(2, 2, 1, 1)).quantized
    assert far.flatten(1).tolist() == [[pytest.approx(0.98), 1.0], [-1.0, -1.0]]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="levels of 2 or more and depth >= 1"):
        ResidualFSQConfig(levels=(5, 1), depth=2)
    with pytest.raises(ConfigError, match="at most 1000 values in a channel"):
        ResidualFSQConfig(levels=(8, 5), depth=4)
