"""SimVQ: only the linear layer learns, and it carries every code along."""

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import SimVectorQuantizer, SimVQConfig


def test_codes_are_the_frozen_codebook_behind_the_linear_layer() -> None:
    scheme = SimVectorQuantizer(SimVQConfig(codebook_size=20, width=4))
    assert [name for name, _ in scheme.named_parameters()] == ["linear.weight", "linear.bias"]
    codes = scheme.ids_to_vectors(torch.arange(20).reshape(1, 20, 1))[0, :, :, 0].T
    torch.testing.assert_close(codes, scheme.frozen @ scheme.linear.weight.T + scheme.linear.bias)


def test_gradients_are_those_of_the_plain_formula() -> None:
    scheme = SimVectorQuantizer(
        SimVQConfig(codebook_size=20, width=4, commitment_weight=0.5, codebook_weight=2.0)
    )
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 4, 3, 3, generator=generator, requires_grad=True)
    loss = scheme(vectors).loss
    found = torch.autograd.grad(loss, [vectors, *scheme.parameters()])
    flat = vectors.movedim(1, -1).reshape(-1, 4)
    table = scheme.frozen @ scheme.linear.weight.T + scheme.linear.bias
    codes = table[torch.cdist(flat, table).argmin(1)]
    plain = 0.5 * (flat - codes.detach()).square().mean()
    plain = plain + 2.0 * (codes - flat.detach()).square().mean()
    torch.testing.assert_close(loss, plain)
    for one, other in zip(
        found, torch.autograd.grad(plain, [vectors, *scheme.parameters()]), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_all_codes_come_into_use_as_the_layer_learns_the_size_of_the_vectors() -> None:
    scheme = SimVectorQuantizer(SimVQConfig(codebook_size=64, width=4))
    optimiser = torch.optim.Adam(scheme.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)

    def batch() -> torch.Tensor:
        return 3 * torch.randn(4, 4, 8, 8, generator=generator)

    before = scheme(batch()).ids.unique().numel()
    for _ in range(300):
        optimiser.zero_grad()
        scheme(batch()).loss.backward()
        optimiser.step()
    assert before < 40
    assert scheme(batch()).ids.unique().numel() > 50


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="codebook_size >= 2"):
        SimVQConfig(codebook_size=1, width=4)
    with pytest.raises(ConfigError, match="commitment_weight >= 0"):
        SimVQConfig(codebook_size=8, width=4, commitment_weight=-1.0)
