"""Finite scalar quantization against values worked out by hand."""

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import FiniteScalarQuantizer, FSQConfig


def quantizer(*levels: int) -> FiniteScalarQuantizer:
    return FiniteScalarQuantizer(FSQConfig(levels=levels))


def column(*values: float) -> torch.Tensor:
    """Return vectors of one position; batch width row column."""
    return torch.tensor(values).reshape(1, -1, 1, 1)


def test_codebook_size_is_the_product_of_levels() -> None:
    assert quantizer(8, 5, 5, 5).codebook_size == 1000
    assert quantizer(8, 5, 5, 5).width == 4


def test_odd_levels_are_rounded_as_by_hand() -> None:
    # Five levels: tanh(z) * 2 * (1 - 1e-3) rounded is one of -2 .. 2, divided by 2.
    for value, code, digit in [(0.0, 0.0, 2), (0.5, 0.5, 3), (9.0, 1.0, 4), (-9.0, -1.0, 0)]:
        output = quantizer(5)(column(value))
        assert output.quantized.item() == code
        assert output.ids.item() == digit


def test_even_levels_are_rounded_as_by_hand() -> None:
    # Four levels sit at -2, -1, 0, 1, divided by 2; the shift keeps zero at zero.
    for value, code, digit in [(0.0, 0.0, 2), (9.0, 0.5, 3), (-0.8, -0.5, 1), (-9.0, -1.0, 0)]:
        output = quantizer(4)(column(value))
        assert output.quantized.item() == code
        assert output.ids.item() == digit


def test_ids_are_mixed_radix_with_the_first_channel_fastest() -> None:
    # Digits 3 of 4, 2 of 5, 0 of 3: 3 + 4 * 2 + 20 * 0.
    assert quantizer(4, 5, 3)(column(9.0, 0.0, -9.0)).ids.item() == 11


def test_every_id_survives_the_way_to_vectors_and_back() -> None:
    scheme = quantizer(8, 5, 5, 5)
    ids = torch.arange(1000).reshape(1, 40, 25)
    vectors = scheme.ids_to_vectors(ids)
    assert vectors.shape == (1, 4, 40, 25)
    assert vectors.min() >= -1
    assert vectors.max() <= 1
    assert torch.equal(scheme.vectors_to_ids(vectors), ids)


def test_quantized_vectors_are_exactly_those_of_their_ids() -> None:
    scheme = quantizer(8, 5, 5, 5)
    output = scheme(torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3)
    assert torch.equal(scheme.ids_to_vectors(output.ids), output.quantized)
    assert torch.equal(scheme.vectors_to_ids(output.quantized), output.ids)


def test_gradients_pass_through_the_rounding() -> None:
    vectors = column(0.3, -0.4).requires_grad_()
    quantizer(5, 5)(vectors).quantized.sum().backward()
    assert vectors.grad is not None
    # Derivative of tanh(z) * 2 * (1 - 1e-3) / 2, as if rounding were not there.
    expected = (1 - column(0.3, -0.4).tanh().square()) * (1 - 1e-3)
    torch.testing.assert_close(vectors.grad, expected)


@pytest.mark.parametrize("levels", [(), (8, 1)])
def test_impossible_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="levels must all be 2 or more"):
        FSQConfig(levels=levels)


def test_neighbours_are_one_level_away_and_the_shortest_steps_come_first() -> None:
    scheme = quantizer(3, 5)
    # Digits 1 of 3 and 2 of 5: steps of 3 in the id (of 1 / 2) before steps of 1 (of 1).
    assert scheme.neighbours(torch.tensor(1 + 3 * 2), 4).tolist() == [10, 4, 8, 6]
    # At both ends the step inwards stands twice.
    assert scheme.neighbours(torch.tensor([0, 14]), 4).tolist() == [[3, 3, 1, 1], [11, 11, 13, 13]]
