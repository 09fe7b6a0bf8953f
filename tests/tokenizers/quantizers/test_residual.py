"""Residual quantization: levels by hand, joint ids, and what each level adds."""

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import (
    GradientVQConfig,
    LFQConfig,
    QuantizerOutput,
    ResidualConfig,
    ResidualQuantizer,
    VectorQuantizer,
    VQConfig,
)


def column(*values: float) -> torch.Tensor:
    """Return vectors of one position; batch width row column."""
    return torch.tensor(values).reshape(1, -1, 1, 1)


def halving(bits: int, depth: int) -> ResidualQuantizer:
    inner = LFQConfig(bits=bits, sample_entropy_weight=0.0, batch_entropy_weight=0.0)
    return ResidualQuantizer(ResidualConfig(inner=inner, depth=depth, shrink=0.5))


def test_each_level_quantizes_what_is_left_over() -> None:
    # 0.6 = 1 - 1/2 + 1/4 and -1/8 more: signs + - + -; -1.3 = -1 - 1/2 + 1/4 - 1/8 and more.
    scheme = halving(bits=2, depth=4)
    output = scheme(column(0.6, -1.3))
    assert output.quantized.flatten().tolist() == [0.625, -1.375]
    levels = scheme.split_levels(output.ids).flatten().tolist()
    # Bits of both channels at each level, the first channel worth 1.
    assert levels == [1 + 0, 0 + 0, 1 + 2, 0 + 0]
    assert output.ids.item() == 1 + 4 * 0 + 16 * 3 + 64 * 0


def test_the_loss_is_the_mean_of_the_levels() -> None:
    scheme = halving(bits=1, depth=2)
    # Residuals 0.6 and (0.6 - 1) / 0.5 against codes 1 and -1.
    torch.testing.assert_close(scheme(column(0.6)).loss, torch.tensor(0.25 * (0.4**2 + 0.2**2) / 2))


def test_levels_of_running_means_learn_what_is_left_over() -> None:
    inner = VQConfig(codebook_size=8, width=3, revival_period=2, decay=0.9)
    scheme = ResidualQuantizer(ResidualConfig(inner=inner, depth=3)).train()
    generator = torch.Generator().manual_seed(0)

    def batch() -> torch.Tensor:
        return torch.randn(4, 3, 8, 8, generator=generator)

    for _ in range(60):
        scheme(batch())
    scheme.eval()
    vectors = batch()
    ids = scheme(vectors).ids
    errors = [
        float((scheme.prefix_vectors(ids, levels) - vectors).square().mean())
        for levels in (1, 2, 3)
    ]
    assert errors[2] < 0.6 * errors[1] < 0.6 * 0.6 * errors[0]
    assert torch.equal(scheme.prefix_vectors(ids, 3), scheme.ids_to_vectors(ids))
    # Alone, the first level is a plain quantizer.
    first = scheme.levels[0]
    assert isinstance(first, VectorQuantizer)
    plain: QuantizerOutput = first(vectors)
    assert torch.equal(plain.ids, scheme.split_levels(ids)[..., 0])
    # What forward chose has a sum from which ids are found that decode to the same vectors.
    found = scheme.vectors_to_ids(scheme.ids_to_vectors(ids))
    assert (found == ids).float().mean() > 0.95


def test_levels_start_from_different_codes() -> None:
    inner = GradientVQConfig(codebook_size=8, width=3)
    scheme = ResidualQuantizer(ResidualConfig(inner=inner, depth=2))
    one, other = scheme.parameters()
    assert not torch.equal(one, other)


def test_joint_ids_go_beyond_32_bits() -> None:
    scheme = halving(bits=18, depth=3)
    output = scheme(torch.randn(1, 18, 3, 3, generator=torch.Generator().manual_seed(0)))
    assert scheme.codebook_size == 2**54
    assert output.ids.max() > 2**40
    assert torch.equal(scheme.ids_to_vectors(output.ids), output.quantized)
    assert torch.equal(scheme.join_levels(scheme.split_levels(output.ids)), output.ids)
    assert torch.equal(scheme.vectors_to_ids(output.quantized), output.ids)


def test_neighbours_differ_in_the_last_level() -> None:
    scheme = halving(bits=2, depth=2)
    ids = torch.tensor([3 + 4 * 1])
    assert scheme.neighbours(ids, 2).tolist() == [[3 + 4 * 0, 3 + 4 * 3]]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="depth >= 1 and shrink"):
        ResidualConfig(inner=LFQConfig(bits=2), depth=0)
    with pytest.raises(ConfigError, match="normalise 'none'"):
        ResidualConfig(inner=VQConfig(codebook_size=8, width=2, normalise="both"), depth=2)
    with pytest.raises(ConfigError, match="more than 2\\^62 joint ids"):
        ResidualQuantizer(ResidualConfig(inner=LFQConfig(bits=32), depth=2))
    with pytest.raises(ConfigError, match=r"num_levels must lie in \[1, 2\]"):
        halving(bits=2, depth=2).prefix_vectors(torch.zeros(1, 1, 1, dtype=torch.int64), 3)
