"""Perturbed codes: how many, which, and from which draws."""

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import (
    FiniteScalarQuantizer,
    FSQConfig,
    LFQConfig,
    LookupFreeQuantizer,
    Quantizer,
    VectorQuantizer,
    VQConfig,
    perturb,
)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_share_is_replaced_by_neighbours_and_the_rest_stays() -> None:
    scheme = VectorQuantizer(VQConfig(codebook_size=100, width=4))
    ids = torch.randint(100, (2, 5, 10, 10), generator=draws())
    before = ids.clone()
    perturbed = perturb(ids, scheme, 0.05, draws(), count=3)
    assert torch.equal(ids, before)
    assert perturbed.shape == ids.shape
    changed = perturbed != ids
    assert changed.sum() == 50
    near = scheme.neighbours(ids[changed], 3)
    ranks = (near == perturbed[changed].unsqueeze(1)).long().argmax(1)
    assert (near == perturbed[changed].unsqueeze(1)).any(1).all()
    assert set(ranks.tolist()) == {0, 1, 2}


def test_all_neighbours_of_the_scheme_are_drawn_alike_by_default() -> None:
    scheme = LookupFreeQuantizer(LFQConfig(bits=18))
    ids = torch.zeros(1, 60, 60, dtype=torch.int64)
    flipped = perturb(ids, scheme, 1.0, draws()).log2().long()
    counts = torch.bincount(flipped.flatten(), minlength=18)
    # 200 each; 5 standard deviations of the count.
    assert ((counts - 200).abs() < 5 * 200**0.5).all()


def test_equal_draws_give_equal_codes_and_others_others() -> None:
    scheme = FiniteScalarQuantizer(FSQConfig(levels=(8, 5, 5)))
    ids = torch.randint(200, (1, 20, 20), generator=draws())
    one = perturb(ids, scheme, 0.5, draws(1))
    assert torch.equal(one, perturb(ids, scheme, 0.5, draws(1)))
    assert not torch.equal(one, perturb(ids, scheme, 0.5, draws(2)))


def test_no_share_changes_nothing() -> None:
    scheme = FiniteScalarQuantizer(FSQConfig(levels=(8, 5, 5)))
    ids = torch.randint(200, (1, 4, 4), generator=draws())
    assert torch.equal(perturb(ids, scheme, 0.0, draws()), ids)


def test_a_scheme_without_neighbours_is_refused_with_words() -> None:
    class Distant(FiniteScalarQuantizer):
        num_neighbours = Quantizer.num_neighbours
        neighbours = Quantizer.neighbours

    scheme = Distant(FSQConfig(levels=(8, 5, 5)))
    with pytest.raises(ConfigError, match="Distant does not say which codes are near"):
        perturb(torch.zeros(1, 4, 4, dtype=torch.int64), scheme, 0.5, draws())


def test_impossible_shares_and_counts_are_refused() -> None:
    scheme = FiniteScalarQuantizer(FSQConfig(levels=(8, 5, 5)))
    ids = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"must lie in \[0, 1\], got 1.5"):
        perturb(ids, scheme, 1.5, draws())
    for count in (0, 7):
        with pytest.raises(ConfigError, match=f"1 to 6 neighbours to ask for, got {count}"):
            perturb(ids, scheme, 0.5, draws(), count=count)
