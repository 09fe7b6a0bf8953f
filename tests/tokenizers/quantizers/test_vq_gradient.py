"""Codes learned by gradient: both halves of the loss by hand, and learning."""

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import GradientVectorQuantizer, GradientVQConfig


def test_each_half_of_the_loss_moves_its_own_side() -> None:
    config = GradientVQConfig(codebook_size=2, width=2, commitment_weight=0.5, codebook_weight=2.0)
    scheme = GradientVectorQuantizer(config)
    with torch.no_grad():
        scheme.codebook.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
    vectors = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
    output = scheme(vectors)
    # A squared distance of 1 over two channels, in both halves.
    torch.testing.assert_close(output.loss, torch.tensor(0.5 * 0.5 + 2.0 * 0.5))
    output.loss.backward()
    assert vectors.grad is not None
    assert scheme.codebook.grad is not None
    assert vectors.grad.flatten().tolist() == [0.5, 0.0]
    assert scheme.codebook.grad.tolist() == [[-2.0, 0.0], [0.0, 0.0]]


def test_what_comes_after_does_not_move_the_codes() -> None:
    scheme = GradientVectorQuantizer(GradientVQConfig(codebook_size=9, width=3))
    scheme(torch.ones(1, 3, 2, 2, requires_grad=True)).quantized.sum().backward()
    assert scheme.codebook.grad is None


@pytest.mark.parametrize("normalise", ["none", "both"])
def test_codes_find_clusters(normalise: str) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(4, 3, generator=generator), dim=1)
    config = GradientVQConfig(codebook_size=32, width=3, normalise=normalise)  # type: ignore[arg-type]
    scheme = GradientVectorQuantizer(config)
    with torch.no_grad():
        scheme.codebook.copy_(torch.randn(32, 3, generator=generator))
    optimiser = torch.optim.Adam(scheme.parameters(), lr=0.02)
    for _ in range(200):
        chosen = centres[torch.randint(4, (32,), generator=generator)]
        optimiser.zero_grad()
        scheme(chosen.T.reshape(1, 3, 8, 4)).loss.backward()
        optimiser.step()
    output = scheme(centres.T.reshape(1, 3, 2, 2))
    assert output.ids.unique().numel() == 4
    torch.testing.assert_close(output.quantized, centres.T.reshape(1, 3, 2, 2), atol=0.05, rtol=0.0)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="codebook_size >= 2"):
        GradientVQConfig(codebook_size=1, width=4)
    with pytest.raises(ConfigError, match="codebook_weight > 0"):
        GradientVQConfig(codebook_size=8, width=4, codebook_weight=0.0)
