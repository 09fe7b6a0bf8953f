"""Binary quantizers: bits by hand, and entropies by factor against all codes written out."""

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import (
    BinarySphericalQuantizer,
    BSQConfig,
    LFQConfig,
    LookupFreeQuantizer,
)
from worldgen.tokenizers.quantizers.binary import BinaryQuantizer, factorised_entropies


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def all_probabilities(
    vectors: torch.Tensor, codes: torch.Tensor, inverse_temperature: float
) -> torch.Tensor:
    """Return the softmax over minus the squared distances to all codes."""
    distances = (vectors[:, None] - codes[None]).square().sum(-1)
    return (-inverse_temperature * distances).softmax(1)


def entropy(shares: torch.Tensor) -> torch.Tensor:
    return -(shares * shares.log()).nan_to_num().sum(-1)


def all_codes(scheme: BinaryQuantizer) -> torch.Tensor:
    ids = torch.arange(scheme.codebook_size).reshape(1, -1, 1)
    return scheme.ids_to_vectors(ids)[0, :, :, 0].T.double()


def test_bits_are_the_signs_with_the_first_channel_worth_one() -> None:
    scheme = LookupFreeQuantizer(LFQConfig(bits=4))
    output = scheme(torch.tensor([0.2, -3.0, 0.0, 0.1]).reshape(1, 4, 1, 1))
    assert output.ids.item() == 1 + 8
    assert output.quantized.flatten().tolist() == [1.0, -1.0, -1.0, 1.0]


def test_spherical_codes_have_length_one() -> None:
    scheme = BinarySphericalQuantizer(BSQConfig(bits=5))
    torch.testing.assert_close(all_codes(scheme).norm(dim=1), torch.ones(32).double())
    vectors = torch.randn(1, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scheme(vectors).quantized, scheme(7 * vectors).quantized)


@pytest.mark.parametrize("bits", [1, 4, 6])
def test_factorised_entropies_are_those_over_all_codes(bits: int) -> None:
    logits = 2 * normal(30, bits)
    corners = torch.tensor(
        [[1.0 if code >> bit & 1 else -1.0 for bit in range(bits)] for code in range(2**bits)]
    ).double()
    probabilities = all_probabilities(logits / 4, corners, 1.0)
    per_vector, of_mean = factorised_entropies(logits, group_bits=bits)
    torch.testing.assert_close(per_vector, entropy(probabilities).mean())
    torch.testing.assert_close(of_mean, entropy(probabilities.mean(0)))


def test_groups_add_up_the_entropies_of_their_own_bits() -> None:
    logits = 2 * normal(30, 7)
    parts = [factorised_entropies(part, group_bits=3) for part in logits.split(3, dim=1)]
    per_vector, of_mean = factorised_entropies(logits, group_bits=3)
    torch.testing.assert_close(per_vector, sum(part[0] for part in parts))
    torch.testing.assert_close(of_mean, sum(part[1] for part in parts))
    # Smaller groups see less of what bits have in common, and so never less entropy.
    bounds = [float(factorised_entropies(logits, group_bits=bits)[1]) for bits in (7, 3, 1)]
    assert bounds == sorted(bounds)


def test_the_loss_of_lookup_free_quantization_is_that_over_all_codes() -> None:
    config = LFQConfig(
        bits=5,
        group_bits=5,
        commitment_weight=0.5,
        sample_entropy_weight=0.2,
        batch_entropy_weight=0.3,
        inverse_temperature=0.7,
    )
    scheme = LookupFreeQuantizer(config)
    vectors = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    flat = vectors.movedim(1, -1).reshape(-1, 5).double()
    probabilities = all_probabilities(flat, all_codes(scheme), 0.7)
    expected = (
        0.5 * (flat.abs() - 1).square().mean()
        + 0.2 * entropy(probabilities).mean()
        - 0.3 * entropy(probabilities.mean(0))
    )
    torch.testing.assert_close(scheme(vectors).loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_loss_of_spherical_quantization_takes_the_mean_bit_by_bit() -> None:
    config = BSQConfig(
        bits=5, sample_entropy_weight=0.2, batch_entropy_weight=0.3, inverse_temperature=3.0
    )
    scheme = BinarySphericalQuantizer(config)
    vectors = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    flat = torch.nn.functional.normalize(vectors.movedim(1, -1).reshape(-1, 5).double(), dim=-1)
    probabilities = all_probabilities(flat, all_codes(scheme), 3.0)
    ones = probabilities.mean(0) @ (all_codes(scheme) > 0).double()
    of_mean = entropy(torch.stack([ones, 1 - ones], dim=-1)).sum()
    expected = 0.2 * entropy(probabilities).mean() - 0.3 * of_mean
    torch.testing.assert_close(scheme(vectors).loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_entropy_gradients_are_right_and_stay_finite_far_out() -> None:
    logits = normal(6, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: factorised_entropies(x, group_bits=3), (logits,))
    far = (400 * normal(6, 5).float()).requires_grad_()
    sum(factorised_entropies(far, group_bits=5)).backward()  # type: ignore[union-attr]
    assert far.grad is not None
    assert far.grad.isfinite().all()


def test_training_on_the_loss_evens_out_the_use_of_bits() -> None:
    config = LFQConfig(
        bits=4, commitment_weight=0.0, sample_entropy_weight=0.0, inverse_temperature=1.0
    )
    scheme = LookupFreeQuantizer(config)
    # Everything starts on the positive side.
    vectors = 0.5 + 0.2 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert scheme(vectors).ids.unique().numel() < 5
    vectors.requires_grad_()
    optimiser = torch.optim.Adam([vectors], lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        scheme(vectors).loss.backward()
        optimiser.step()
    assert scheme(vectors).ids.unique().numel() > 12


def test_forty_bits_make_ids_that_come_back() -> None:
    scheme = LookupFreeQuantizer(LFQConfig(bits=40))
    output = scheme(torch.randn(1, 40, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert output.ids.max() > 2**32
    assert torch.equal(scheme.ids_to_vectors(output.ids), output.quantized)
    assert torch.equal(scheme.vectors_to_ids(output.quantized), output.ids)


def test_neighbours_differ_in_one_bit() -> None:
    scheme = LookupFreeQuantizer(LFQConfig(bits=3))
    assert scheme.neighbours(torch.tensor([0, 5]), 3).tolist() == [[1, 2, 4], [4, 7, 1]]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lfq bits must lie in \[1, 62\]"):
        LFQConfig(bits=63)
    with pytest.raises(ConfigError, match=r"lfq group_bits must lie in \[1, 12\]"):
        LFQConfig(bits=18, group_bits=18)
    with pytest.raises(ConfigError, match="bsq inverse_temperature must be above 0"):
        BSQConfig(bits=18, inverse_temperature=0.0)
    with pytest.raises(ConfigError, match="must not be negative"):
        LFQConfig(bits=18, batch_entropy_weight=-0.1)
