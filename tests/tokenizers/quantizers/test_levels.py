"""Mixed-radix numbers by hand and back."""

import torch

from worldgen.tokenizers.quantizers import join_levels, split_levels


def test_the_first_digit_is_the_fastest() -> None:
    # 3 of 4, 2 of 5, 1 of 3.
    assert join_levels(torch.tensor([3, 2, 1]), (4, 5, 3)).item() == 3 + 4 * 2 + 20 * 1
    assert split_levels(torch.tensor(31), (4, 5, 3)).tolist() == [3, 2, 1]


def test_every_number_comes_back() -> None:
    ids = torch.arange(60).reshape(3, 20)
    levels = split_levels(ids, (4, 5, 3))
    assert levels.shape == (3, 20, 3)
    assert torch.equal(join_levels(levels, (4, 5, 3)), ids)


def test_products_up_to_two_to_the_62_fit() -> None:
    ids = torch.tensor([0, 2**62 - 1, 2**61 + 12345])
    assert torch.equal(join_levels(split_levels(ids, (2**31, 2**31)), (2**31, 2**31)), ids)
