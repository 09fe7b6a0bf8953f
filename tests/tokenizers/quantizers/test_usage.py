"""Code usage counted by hand."""

import pytest
import torch

from worldgen.tokenizers.quantizers import code_usage


def test_even_use_of_four_codes_has_perplexity_four() -> None:
    usage = code_usage(torch.tensor([[0, 1], [2, 5]]), codebook_size=8)
    assert usage.used == 4
    assert usage.share == 0.5
    assert usage.perplexity == pytest.approx(4.0)


def test_a_single_code_has_perplexity_one() -> None:
    usage = code_usage(torch.full((3, 3), 7), codebook_size=8)
    assert usage.used == 1
    assert usage.perplexity == pytest.approx(1.0)


def test_codebooks_too_large_to_count_have_a_usage_too() -> None:
    usage = code_usage(torch.tensor([2**50, 3, 2**50, 3]), codebook_size=2**54)
    assert usage.used == 2
    assert usage.perplexity == pytest.approx(2.0)
    assert usage.share == 2 / 2**54
