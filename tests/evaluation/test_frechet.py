"""The Frechet distance against closed forms, and the features under it."""

from pathlib import Path

import pytest
import torch

from tests.factories import tiny_tokenizer_config, tiny_world
from worldgen.checkpoint import file_hash
from worldgen.errors import CheckpointError, DataError
from worldgen.evaluation.frechet import (
    Moments,
    RandomFeatures,
    TokenizerFeatures,
    frechet_distance,
)
from worldgen.tokenizers.visual import build_visual_tokenizer


def moments(samples: torch.Tensor) -> Moments:
    made = Moments()
    made.add(samples)
    return made


def with_moments(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    """Return moments that are exactly these: the corners of a whitened simplex, coloured."""
    width = len(mean)
    noise = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(1)).double()
    noise = noise - noise.mean(dim=0)
    white = noise @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(noise.T))).T
    values, vectors = torch.linalg.eigh(covariance)
    return moments(white @ (vectors * values.clamp_min(0).sqrt()).T + mean)


def test_moments_of_batches_are_those_of_all_samples_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    # A large common offset is what sums of squares would lose every digit to.
    samples = torch.randn(97, 5, generator=generator).double() + 1e6
    batched = Moments()
    for batch in samples.split((1, 50, 0, 46)):
        batched.add(batch)
    assert batched.count == 97
    torch.testing.assert_close(batched.mean, samples.mean(dim=0), rtol=1e-14, atol=0)
    centred = samples - samples.mean(dim=0)
    torch.testing.assert_close(batched.covariance, centred.T @ centred / 96, rtol=1e-9, atol=1e-9)


def test_diagonal_covariances_give_the_closed_form() -> None:
    first, second = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 1.0, 0.25])
    shift = torch.tensor([1.0, -2.0, 0.5])
    expected = shift.square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    distance = frechet_distance(
        with_moments(shift.double(), first.diag().double()),
        with_moments(torch.zeros(3).double(), second.diag().double()),
    )
    assert distance == pytest.approx(float(expected), rel=1e-10)


def test_one_dimension_is_the_difference_of_means_and_of_deviations() -> None:
    first, second = torch.tensor([[1.0], [3.0]]), torch.tensor([[10.0], [10.0], [16.0]])
    expected = (2.0 - 12.0) ** 2 + (2.0**0.5 - 12.0**0.5) ** 2
    assert frechet_distance(moments(first), moments(second)) == pytest.approx(expected)


def test_two_by_two_covariances_that_do_not_commute_give_the_closed_form() -> None:
    first = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    second = torch.tensor([[5.0, -2.0], [-2.0, 1.0]]).double()
    # For 2 x 2: tr sqrt(A B) = sqrt(tr(A B) + 2 sqrt(det(A B))).
    product = first @ second
    root = (product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt()
    expected = first.trace() + second.trace() - 2 * root
    zero = torch.zeros(2).double()
    distance = frechet_distance(with_moments(zero, first), with_moments(zero, second))
    assert distance == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(with_moments(zero, second), with_moments(zero, first)) == (
        pytest.approx(distance, rel=1e-10)
    )


def test_scaling_all_features_scales_the_distance_by_its_square() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.randn(30, 6, generator=generator) for _ in range(2))
    distance = frechet_distance(moments(first), moments(second))
    assert frechet_distance(moments(10 * first), moments(10 * second)) == pytest.approx(
        100 * distance, rel=1e-5
    )


def test_fewer_samples_than_features_are_no_trouble() -> None:
    samples = torch.randn(7, 40, generator=torch.Generator().manual_seed(3)).double()
    assert frechet_distance(moments(samples), moments(samples)) == pytest.approx(0, abs=1e-6)
    shifted = frechet_distance(moments(samples), moments(samples + 1.0))
    assert shifted == pytest.approx(40.0, rel=1e-6)


def test_a_single_picture_has_no_distance() -> None:
    with pytest.raises(DataError, match="2 pictures or more, got 1"):
        frechet_distance(moments(torch.zeros(1, 3)), moments(torch.zeros(5, 3)))


def test_random_features_are_fixed_by_their_seed_and_named_by_it() -> None:
    pictures = torch.rand(4, 3, 24, 40, generator=torch.Generator().manual_seed(4)) * 2 - 1
    network, again, other = RandomFeatures(), RandomFeatures(), RandomFeatures(seed=1)
    assert torch.equal(network(pictures), again(pictures))
    assert network(pictures).shape == (4, 230)
    assert network.hash == again.hash != other.hash
    assert "fid" not in network.name.lower()
    assert network.name == "random_convolutions_seed_0"


def test_features_of_one_picture_do_not_depend_on_the_others() -> None:
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    network = RandomFeatures()
    alone = torch.cat([network(picture[None]) for picture in pictures])
    torch.testing.assert_close(network(pictures), alone)


def test_the_distance_grows_with_blur_and_with_noise() -> None:
    generator = torch.Generator().manual_seed(6)
    pictures = torch.rand(64, 3, 32, 32, generator=generator) * 2 - 1
    pictures = torch.nn.functional.avg_pool2d(pictures, 3, stride=1, padding=1)
    network = RandomFeatures()
    truth = moments(network(pictures))

    def blurred(size: int) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(
            pictures, size, stride=1, padding=size // 2, count_include_pad=False
        )

    def noisy(amount: float) -> torch.Tensor:
        return pictures + amount * torch.randn(pictures.shape, generator=generator)

    for worse in ([blurred(3), blurred(5)], [noisy(0.05), noisy(0.2)]):
        little, much = (frechet_distance(truth, moments(network(each))) for each in worse)
        assert 0 < little < much


def test_features_of_a_tokenizer_are_what_it_would_quantize(tmp_path: Path) -> None:
    path = tiny_world(tmp_path) / "tokenizer.safetensors"
    features = TokenizerFeatures(path, torch.device("cpu"))
    pictures = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(7)) * 2 - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_visual_tokenizer(tiny_tokenizer_config()).eval()
    vectors = tokenizer.get_submodule("encoder")(pictures)
    expected = torch.cat((vectors.mean(dim=(2, 3)), vectors.std(dim=(2, 3), correction=0)), dim=1)
    torch.testing.assert_close(features(pictures), expected)
    torch.testing.assert_close(features(pictures[:2]), expected[:2])
    assert features.hash == file_hash(path)
    with pytest.raises(CheckpointError, match="not a visual tokenizer"):
        TokenizerFeatures(tmp_path / "model.safetensors", torch.device("cpu"))
