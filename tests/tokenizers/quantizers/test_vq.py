"""Vector quantization: nearest codes, running means, revival, and what survives saving."""

from pathlib import Path

import pytest
import torch

from tests.tokenizers.quantizers.largest_tensor import LargestTensor
from worldgen.checkpoint import load_state, load_tensors, save_tensors
from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import VectorQuantizer, VQConfig
from worldgen.tokenizers.quantizers.codebook import Normalise


def positions(rows: list[list[float]]) -> torch.Tensor:
    """Return vectors side by side in one row; batch width row column."""
    return torch.tensor(rows).T.reshape(1, len(rows[0]), 1, len(rows))


def two_codes(**settings: float) -> VectorQuantizer:
    config = VQConfig(codebook_size=2, width=2, revival_period=1000, **settings)  # type: ignore[arg-type]
    scheme = VectorQuantizer(config)
    scheme.codebook.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
    scheme.code_uses.fill_(1.0)
    scheme.code_sums.copy_(scheme.codebook)
    scheme.steps_seen.fill_(1)
    return scheme


def test_the_nearest_code_is_taken() -> None:
    scheme = two_codes().eval()
    output = scheme(positions([[1.0, 1.0], [3.0, 0.0]]))
    assert output.ids.flatten().tolist() == [0, 1]
    assert torch.equal(output.quantized, scheme.ids_to_vectors(output.ids))


def test_every_id_survives_the_way_to_vectors_and_back() -> None:
    scheme = VectorQuantizer(VQConfig(codebook_size=50, width=8))
    ids = torch.arange(50).reshape(1, 5, 10)
    assert torch.equal(scheme.vectors_to_ids(scheme.ids_to_vectors(ids)), ids)


def test_codes_move_to_the_running_mean_of_their_vectors() -> None:
    scheme = two_codes(decay=0.5).train()
    scheme(positions([[1.0, 1.0], [1.0, 3.0]]))
    # Uses 1 -> .5 * 1 + .5 * 2, sums (0, 0) -> .5 * (2, 4): mean (2/3, 4/3). The other code has
    # no vectors: uses and sums halve alike, and it stays.
    torch.testing.assert_close(scheme.code_uses, torch.tensor([1.5, 0.5]))
    torch.testing.assert_close(scheme.codebook, torch.tensor([[2 / 3, 4 / 3], [4.0, 0.0]]))


def test_evaluation_leaves_the_codebook_alone() -> None:
    scheme = two_codes().eval()
    before = {name: tensor.clone() for name, tensor in scheme.state_dict().items()}
    scheme(positions([[1.0, 1.0]]))
    for name, tensor in scheme.state_dict().items():
        assert torch.equal(before[name], tensor)


def test_a_dead_code_moves_to_where_it_is_needed() -> None:
    scheme = VectorQuantizer(VQConfig(codebook_size=2, width=2, revival_period=1)).train()
    scheme.codebook.copy_(torch.tensor([[0.0, 0.0], [90.0, 90.0]]))
    # Everything is nearest to the first code; one vector is far from it.
    batch = positions([[0.0, 0.0]] * 8 + [[8.0, 0.0]])
    for _ in range(3):
        output = scheme(batch)
    assert sorted(output.ids.flatten().tolist()) in ([0] * 8 + [1], [0] + [1] * 8)


def test_many_codes_cover_many_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 4, generator=generator) * 10
    config = VQConfig(codebook_size=16, width=4, revival_period=2, decay=0.9)
    scheme = VectorQuantizer(config).train()
    for _ in range(60):
        chosen = centres[torch.randint(12, (64,), generator=generator)]
        scheme(chosen.T.reshape(1, 4, 8, 8))
    scheme.eval()
    output = scheme(centres.T.reshape(1, 4, 3, 4))
    assert len(set(output.ids.flatten().tolist())) == 12
    torch.testing.assert_close(output.quantized, centres.T.reshape(1, 4, 3, 4), atol=0.05, rtol=0.0)


def test_what_is_served_well_gets_no_second_code() -> None:
    scheme = VectorQuantizer(VQConfig(codebook_size=8, width=2, revival_period=1)).train()
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    for _ in range(40):
        chosen = centres[torch.randint(3, (64,), generator=generator)]
        noise = 1e-3 * torch.randn(64, 2, generator=generator)
        scheme((chosen + noise).T.reshape(1, 2, 8, 8))
    alive = scheme.codebook[scheme.code_uses >= 0.01]
    assert (torch.cdist(centres, alive) < 0.05).sum(1).tolist() == [1, 1, 1]


def test_codes_in_one_place_are_merged() -> None:
    scheme = two_codes(decay=0.999).train()
    scheme.codebook[1] = scheme.codebook[0] + 1e-3
    scheme.code_sums.copy_(scheme.codebook)
    scheme.steps_seen.fill_(0)
    scheme(positions([[0.0, 0.0], [9.0, 0.0]]))
    # Both uses on the first code; the second is free and moves to the far vector.
    assert scheme.code_uses[0] > 1.9
    torch.testing.assert_close(scheme.codebook[1], torch.tensor([9.0, 0.0]))


def test_dead_codes_are_not_chosen() -> None:
    scheme = two_codes().eval()
    scheme.code_uses[1] = 0.0
    assert scheme(positions([[1.0, 1.0], [4.0, 0.0]])).ids.flatten().tolist() == [0, 0]


def test_training_goes_on_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    def train(scheme: VectorQuantizer, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            scheme(torch.randn(2, 4, 3, 3, generator=generator))

    config = VQConfig(codebook_size=16, width=4, revival_period=2, revival_threshold=0.2)
    whole, first, second = (VectorQuantizer(config).train() for _ in range(3))
    train(whole, range(10))
    train(first, range(5))
    save_tensors(tmp_path / "vq.safetensors", first.state_dict(), {})
    load_state(second, load_tensors(tmp_path / "vq.safetensors")[0], tmp_path / "vq.safetensors")
    train(second, range(5, 10))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_the_loss_pulls_vectors_to_their_codes_and_gradients_pass_through() -> None:
    scheme = two_codes(commitment_weight=0.5).eval()
    vectors = positions([[1.0, 0.0]]).requires_grad_()
    output = scheme(vectors)
    torch.testing.assert_close(output.loss, torch.tensor(0.25))
    output.quantized.sum().backward()
    assert vectors.grad is not None
    assert torch.equal(vectors.grad, torch.ones_like(vectors))


def test_mixed_precision_does_not_change_the_ids() -> None:
    scheme = VectorQuantizer(VQConfig(codebook_size=200, width=8)).eval()
    vectors = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = scheme(vectors).ids
    assert torch.equal(mixed, scheme(vectors).ids)


def test_a_large_codebook_learns_without_a_matrix_of_distances() -> None:
    scheme = VectorQuantizer(VQConfig(codebook_size=2**17, width=8)).train()
    vectors = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with LargestTensor() as mode:
        scheme(vectors)
    assert bool((scheme(vectors).quantized == vectors).any())
    # The codebook itself, an eighth of the distances of 64 vectors.
    assert mode.largest == 2**17 * 8


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="codebook_size >= 2"):
        VQConfig(codebook_size=1, width=4)
    with pytest.raises(ConfigError, match="decay must lie between 0 and 1"):
        VQConfig(codebook_size=8, width=4, decay=1.0)
    with pytest.raises(ConfigError, match="must not be negative"):
        VQConfig(codebook_size=8, width=4, smoothing=-1.0)
    with pytest.raises(ConfigError, match="0 / 0"):
        VQConfig(codebook_size=8, width=4, revival_threshold=0.0)


def test_smoothing_gives_every_code_a_few_uses_in_thought() -> None:
    scheme = two_codes(decay=0.5, smoothing=0.1).train()
    scheme(positions([[1.0, 1.0], [1.0, 3.0]]))
    # Uses 1.5 and 0.5, sums (1, 2) and (2, 0): divided by (uses + 0.1) / (2 + 2 * 0.1) * 2.
    expected = torch.tensor([[1.0, 2.0], [2.0, 0.0]]) / (torch.tensor([[1.6], [0.6]]) / 2.2 * 2)
    torch.testing.assert_close(scheme.codebook, expected)


def test_without_revival_codes_start_on_the_first_vectors_and_only_means_move_them() -> None:
    config = VQConfig(
        codebook_size=6, width=4, normalise="vectors", smoothing=1e-7, revival_threshold=0.0
    )
    scheme = VectorQuantizer(config).train()
    vectors = torch.randn(2, 4, 3, 1, generator=torch.Generator().manual_seed(0))
    output = scheme(vectors)
    flat = torch.nn.functional.normalize(vectors, dim=1).movedim(1, -1).reshape(6, 4)
    # Each vector is a code, so nothing is lost and every mean stays where it is.
    assert sorted(output.ids.flatten().tolist()) == list(range(6))
    assert output.loss == 0
    torch.testing.assert_close(scheme.codebook[output.ids.flatten()], flat, atol=1e-6, rtol=0.0)
    uses = scheme.code_uses
    for _ in range(50):
        scheme(vectors[:1])
    # Three codes are not used any more; they are neither moved onto vectors nor forbidden.
    assert (uses < 1).sum() == 3
    assert scheme.choosable() is None
    assert set(scheme(vectors).ids.flatten().tolist()) == set(range(6))


@pytest.mark.parametrize("normalise", ["vectors", "both"])
def test_vectors_of_length_one_are_compared(normalise: Normalise) -> None:
    config = VQConfig(codebook_size=20, width=4, normalise=normalise)
    scheme = VectorQuantizer(config).train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        vectors = torch.randn(2, 4, 5, 5, generator=generator)
        scheme(vectors)
    alive = scheme.choosable()
    assert alive is not None
    lengths = scheme.codebook[alive].norm(dim=1)
    # Means of vectors on the sphere lie inside it, unless they are brought back.
    assert bool(lengths.max() < 1 + 1e-6)
    assert bool(lengths.min() < 0.99) == (normalise == "vectors")
    scheme.eval()
    # The length of a vector plays no part.
    output, stretched = scheme(vectors), scheme(5 * vectors)
    assert torch.equal(output.ids, stretched.ids)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    error = (output.quantized - unit).square().mean()
    torch.testing.assert_close(output.loss, 0.25 * error)
    if normalise == "both":
        similarity = torch.einsum("b w r c, k w -> b r c k", unit, scheme.codebook)
        similarity[..., ~alive] = -2.0
        assert torch.equal(output.ids, similarity.argmax(-1))


def test_codes_and_loss_are_those_before_the_step() -> None:
    scheme = two_codes(decay=0.5).train()
    output = scheme(positions([[1.0, 1.0], [3.0, 0.0]]))
    assert torch.equal(output.quantized, positions([[0.0, 0.0], [4.0, 0.0]]))
    torch.testing.assert_close(output.loss, torch.tensor(0.25 * 3 / 4))


def test_quantized_is_the_code_exactly_and_works_in_batches() -> None:
    scheme = VectorQuantizer(VQConfig(codebook_size=64, width=8)).eval()
    vectors = 100 * torch.randn(5, 8, 3, 2, generator=torch.Generator().manual_seed(0))
    output = scheme(vectors.requires_grad_())
    assert torch.equal(output.quantized, scheme.ids_to_vectors(output.ids))
    for one in range(5):
        assert torch.equal(scheme(vectors[one : one + 1]).ids[0], output.ids[one])


def test_neighbours_are_the_nearest_living_codes() -> None:
    scheme = VectorQuantizer(VQConfig(codebook_size=40, width=3))
    scheme.code_uses[::2] = 0.0
    ids = torch.tensor([[1, 3, 4], [5, 1, 39]])
    near = scheme.neighbours(ids, 4)
    gaps = torch.cdist(scheme.codebook.double(), scheme.codebook.double())
    gaps.fill_diagonal_(torch.inf)
    gaps[:, ::2] = torch.inf
    assert torch.equal(near, gaps[ids].argsort(-1)[..., :4])
    # Where all but two are dead, the list begins again.
    scheme.code_uses.fill_(0.0)
    scheme.code_uses[[7, 9]] = 1.0
    assert scheme.neighbours(torch.tensor([7, 9]), 3).tolist() == [[9] * 3, [7] * 3]
    with pytest.raises(ConfigError, match="1 to 39 neighbours"):
        scheme.neighbours(ids, 40)
