"""What every quantizer promises, whatever its scheme."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from worldgen.checkpoint import load_state, load_tensors, save_tensors
from worldgen.config import build, to_mapping
from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import (
    BSQConfig,
    FSQConfig,
    GradientVQConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    ResidualFSQConfig,
    SimVQConfig,
    VQConfig,
    build_quantizer,
    code_usage,
)

SCHEMES: dict[str, QuantizerConfig] = {
    "fsq": FSQConfig(levels=(4, 3, 5)),
    "residual_fsq": ResidualFSQConfig(levels=(4, 3), depth=2),
    "vq": VQConfig(codebook_size=50, width=4),
    "vq_cosine": VQConfig(codebook_size=50, width=4, normalise="both"),
    "vq_upstream": VQConfig(
        codebook_size=50, width=4, normalise="vectors", smoothing=1e-7, revival_threshold=0.0
    ),
    "vq_gradient": GradientVQConfig(codebook_size=50, width=4),
    "vq_gradient_cosine": GradientVQConfig(codebook_size=50, width=4, normalise="both"),
    "simvq": SimVQConfig(codebook_size=50, width=4),
    "lfq": LFQConfig(bits=6, group_bits=4),
    "bsq": BSQConfig(bits=6),
    "residual_vq": ResidualConfig(inner=VQConfig(codebook_size=7, width=4), depth=2, shrink=0.1),
    "residual_lfq": ResidualConfig(inner=LFQConfig(bits=2), depth=3, shrink=0.5),
    "residual_simvq": ResidualConfig(
        inner=SimVQConfig(codebook_size=7, width=4), depth=2, shrink=0.1
    ),
}

every_scheme = pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)


@dataclass(frozen=True, kw_only=True)
class Holder:
    quantizer: QuantizerConfig


def vectors_for(width: int, batch: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, width, 5, 4, generator=torch.Generator().manual_seed(seed))


@every_scheme
def test_every_id_survives_the_way_to_vectors_and_back(config: QuantizerConfig) -> None:
    scheme = build_quantizer(config).eval()
    ids = torch.arange(scheme.codebook_size).reshape(1, -1, 1)
    vectors = scheme.ids_to_vectors(ids)
    assert vectors.shape == (1, scheme.width, scheme.codebook_size, 1)
    assert vectors.dtype == torch.float32
    assert torch.equal(scheme.vectors_to_ids(vectors), ids)


@every_scheme
def test_quantized_is_the_code_exactly_and_gradients_pass(config: QuantizerConfig) -> None:
    scheme = build_quantizer(config).eval()
    vectors = vectors_for(scheme.width).requires_grad_()
    output = scheme(vectors)
    assert output.ids.dtype == torch.int64
    assert output.ids.shape == (3, 5, 4)
    assert torch.equal(output.quantized, scheme.ids_to_vectors(output.ids))
    weights = vectors_for(scheme.width, seed=1)
    (output.quantized * weights).sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()
    assert (vectors.grad != 0).all()


@every_scheme
def test_each_clip_of_a_batch_is_quantized_as_if_alone(config: QuantizerConfig) -> None:
    scheme = build_quantizer(config).eval()
    vectors = vectors_for(scheme.width)
    together = scheme(vectors)
    for one in range(3):
        alone = scheme(vectors[one : one + 1])
        assert torch.equal(alone.ids[0], together.ids[one])
        assert torch.equal(alone.quantized[0], together.quantized[one])


@every_scheme
def test_mixed_precision_changes_nothing(config: QuantizerConfig) -> None:
    scheme = build_quantizer(config).eval()
    vectors = vectors_for(scheme.width)
    plain = scheme(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = scheme(vectors)
        decoded = scheme.ids_to_vectors(plain.ids)
        ids = scheme.vectors_to_ids(decoded)
    assert torch.equal(mixed.ids, plain.ids)
    assert torch.equal(mixed.quantized, plain.quantized)
    assert torch.equal(mixed.loss, plain.loss)
    assert torch.equal(decoded, plain.quantized)
    assert torch.equal(ids, plain.ids)
    # Vectors of an encoder in bfloat16 are quantized in float32 as well.
    half = scheme(vectors.bfloat16())
    assert half.quantized.dtype == torch.float32
    assert torch.equal(half.ids, scheme(vectors.bfloat16().float()).ids)


@every_scheme
def test_training_changes_what_a_scheme_learns_and_saving_keeps_it(
    config: QuantizerConfig, tmp_path: Path
) -> None:
    scheme, twin = build_quantizer(config).train(), build_quantizer(config)
    for step in range(3):
        output = scheme(vectors_for(scheme.width, seed=step))
        assert output.loss.isfinite()
        assert output.loss.shape == ()
        if output.loss.requires_grad:
            output.loss.backward()
    for parameter in scheme.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).any()
        with torch.no_grad():
            parameter.sub_(parameter.grad, alpha=0.1)
    path = tmp_path / "quantizer.safetensors"
    save_tensors(path, scheme.state_dict(), {})
    load_state(twin, load_tensors(path)[0], path)
    ids = torch.arange(scheme.codebook_size).reshape(1, -1, 1)
    assert torch.equal(scheme.ids_to_vectors(ids), twin.ids_to_vectors(ids))
    vectors = vectors_for(scheme.width, seed=9)
    assert torch.equal(scheme.eval()(vectors).ids, twin.eval()(vectors).ids)


@every_scheme
def test_code_usage_counts_what_occurs(config: QuantizerConfig) -> None:
    scheme = build_quantizer(config).eval()
    ids = scheme(vectors_for(scheme.width)).ids
    usage = code_usage(ids, scheme.codebook_size)
    assert usage.used == len(set(ids.flatten().tolist()))
    assert usage.share == usage.used / scheme.codebook_size
    assert 1 <= usage.perplexity <= usage.used + 1e-9


@every_scheme
def test_neighbours_are_other_codes_and_near(config: QuantizerConfig) -> None:
    scheme = build_quantizer(config).eval()
    ids = torch.arange(scheme.codebook_size).reshape(1, -1, 1)
    near = scheme.neighbours(ids, scheme.num_neighbours)
    assert near.shape == (*ids.shape, scheme.num_neighbours)
    assert near.min() >= 0
    assert near.max() < scheme.codebook_size
    assert (near != ids.unsqueeze(-1)).all()
    codes = scheme.ids_to_vectors(ids)[0, :, :, 0].T
    gaps = torch.cdist(codes, codes)
    typical = gaps.sum() / (gaps.numel() - len(gaps))
    assert gaps.gather(1, near[0, :, 0]).mean() < typical
    with pytest.raises(ConfigError, match="neighbours to ask for, got 0"):
        scheme.neighbours(ids, 0)


@every_scheme
def test_a_configuration_survives_the_way_to_plain_words_and_back(config: QuantizerConfig) -> None:
    assert build(Holder, to_mapping(Holder(quantizer=config))) == Holder(quantizer=config)
