"""Adversarial losses against hand-worked values, and one pass against the usual two."""

import pytest
import torch
from torch import nn

from worldgen.errors import ConfigError
from worldgen.tokenizers.losses.adversarial import (
    AdversarialLossConfig,
    Adversary,
    LecamAverages,
    adaptive_weight,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    interpolate,
    lecam_regularisation,
    unit_gradient_penalty,
    zero_centred_penalty,
)
from worldgen.tokenizers.losses.discriminators import (
    DiscriminatorOutput,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
)


def logits(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def discriminator() -> PatchDiscriminator:
    return PatchDiscriminator(PatchDiscriminatorConfig(dimensions=2, base_width=4, num_halvings=1))


def test_hinge_ignores_logits_on_the_right_side_of_the_margin() -> None:
    assert discriminator_loss(logits(2.0, 0.5), logits(-3.0, 0.0)).item() == pytest.approx(
        0.5 * (0.25 + 0.5)
    )


def test_vanilla_is_binary_cross_entropy() -> None:
    real, fake = logits(2.0, 0.5), logits(-3.0, 0.1)
    entropy = nn.functional.binary_cross_entropy_with_logits
    by_library = 0.5 * (entropy(real, torch.ones_like(real)) + entropy(fake, 0 * fake))
    torch.testing.assert_close(discriminator_loss(real, fake, "vanilla"), by_library)


def test_generator_is_paid_by_the_mean_logit() -> None:
    assert generator_loss(logits(2.0, 4.0)).item() == -3.0


def test_feature_matching_sums_stages_and_spares_the_recorded_side() -> None:
    features = [torch.zeros(1, 2, 2, 2, requires_grad=True) for _ in range(2)]
    real = DiscriminatorOutput(logits=logits(0.0), features=tuple(features))
    others = [torch.full((1, 2, 2, 2), value, requires_grad=True) for value in (1.0, 3.0)]
    fake = DiscriminatorOutput(logits=logits(0.0), features=tuple(others))
    loss = feature_matching_loss(real, fake)
    assert loss.item() == 4.0
    loss.backward()
    assert features[0].grad is None
    assert others[0].grad is not None


def test_lecam_pulls_each_side_to_the_running_mean_of_the_other() -> None:
    averages = LecamAverages()
    averages.update(logits(2.0), logits(-1.0), 0.9)
    assert (averages.recorded.item(), averages.rebuilt.item()) == (2.0, -1.0)
    assert lecam_regularisation(logits(3.0), logits(1.0), averages).item() == 16.0 + 1.0
    for _ in range(300):
        averages.update(logits(5.0), logits(0.0), 0.9)
    assert averages.recorded.item() == pytest.approx(5.0)


def test_lecam_averages_are_saved() -> None:
    averages, copy = LecamAverages(), LecamAverages()
    averages.update(logits(2.0), logits(-1.0), 0.9)
    copy.load_state_dict(averages.state_dict())
    for each in (averages, copy):
        each.update(logits(0.0), logits(0.0), 0.9)
    assert torch.equal(averages.recorded, copy.recorded)
    assert averages.recorded.item() == pytest.approx(1.0)


def test_penalties_measure_the_gradient_at_each_example() -> None:
    # Two patches, the sum of all pixels times 1 and times 2: gradients known by hand.
    frames = torch.randn(2, 1, 3, 4, 4, requires_grad=True)
    total = frames.flatten(1).sum(1)
    patches = torch.stack((total, 2 * total), 1).reshape(2, 1, 1, 2)
    pixels = 3 * 4 * 4
    assert zero_centred_penalty(patches, frames).item() == pytest.approx(0.5 * 9 * pixels)
    expected = (1.5 * pixels**0.5 - 1) ** 2
    assert unit_gradient_penalty(patches, frames).item() == pytest.approx(expected, rel=1e-5)


def test_interpolation_lies_between_clip_by_clip() -> None:
    real, fake = torch.ones(2, 1, 3, 2, 2), torch.zeros(2, 1, 3, 2, 2, requires_grad=True)
    mixed = interpolate(real, fake, torch.tensor([0.25, 1.0]))
    assert mixed[0].unique().tolist() == [0.25]
    assert mixed[1].unique().tolist() == [1.0]
    assert mixed.is_leaf
    assert mixed.requires_grad


def test_adaptive_weight_balances_gradients_at_the_last_layer() -> None:
    layer = torch.randn(4, 3, requires_grad=True)
    hidden = torch.randn(5, 4)
    one, other = (hidden @ layer).square().mean(), 7 * (hidden @ layer).sin().mean()
    weight = adaptive_weight(one, other, layer)
    balanced = torch.autograd.grad(weight * other, layer, retain_graph=True)[0].norm()
    torch.testing.assert_close(balanced, torch.autograd.grad(one, layer)[0].norm())
    assert not weight.requires_grad
    assert adaptive_weight(layer.sum(), 0 * layer.sum(), layer).item() == 1e4


def test_one_pass_gives_the_gradients_of_separate_passes() -> None:
    network = discriminator()
    adversary = Adversary(network, AdversarialLossConfig(weight=0.7, feature_matching=2.0))
    generator = nn.Conv2d(3, 3, 3, padding=1)
    frames = torch.randn(2, 1, 3, 12, 12)
    rebuilt = generator(frames[:, 0])[:, None]

    terms = adversary(frames, rebuilt, step=0)
    adversary.backward(terms)
    assert generator.weight.grad is None
    theirs = [
        parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None
    ]
    loss = adversary.weighted(terms.adversarial) + terms.generator["feature_matching"]
    loss.backward(inputs=list(generator.parameters()))

    real, fake = network(frames), network(rebuilt.detach())
    alone = discriminator_loss(real.logits, fake.logits)
    expected = torch.autograd.grad(alone, list(network.parameters()))
    for ours, apart in zip(theirs, expected, strict=True):
        torch.testing.assert_close(ours, apart)
    for parameter, before in zip(network.parameters(), theirs, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, before)
    again = network(generator(frames[:, 0])[:, None])
    loss = 0.7 * generator_loss(again.logits) + 2.0 * feature_matching_loss(real, again)
    for parameter, gradient in zip(
        generator.parameters(), torch.autograd.grad(loss, list(generator.parameters())), strict=True
    ):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)


def test_every_weighted_term_is_named_and_reaches_the_discriminator() -> None:
    config = AdversarialLossConfig(
        kind="vanilla",
        lecam=0.1,
        zero_centred_penalty=1.0,
        unit_gradient_penalty=1.0,
        penalty_period=4,
        start_step=2,
    )
    adversary = Adversary(discriminator(), config)
    frames, rebuilt = torch.rand(2, 2, 3, 8, 8), torch.rand(2, 2, 3, 8, 8, requires_grad=True)
    terms = adversary(frames, rebuilt, step=6)
    names = {"discriminator", "lecam", "zero_centred_penalty", "unit_gradient_penalty"}
    assert terms.discriminator.keys() == names
    assert terms.generator == {}
    for term in terms.discriminator.values():
        gradient = torch.autograd.grad(
            term,
            adversary.discriminator.get_parameter("stages.0.convolution.weight"),
            retain_graph=True,
        )
        assert gradient[0].abs().sum() > 0
    adversary.backward(terms)
    assert rebuilt.grad is None
    assert not frames.requires_grad
    assert adversary(frames, rebuilt, step=7).discriminator.keys() == {"discriminator", "lecam"}


def test_a_discriminator_learns_to_tell_noise_from_flat_frames() -> None:
    adversary = Adversary(discriminator(), AdversarialLossConfig(zero_centred_penalty=0.001))
    optimiser = torch.optim.Adam(adversary.parameters(), lr=1e-2)
    for step in range(25):
        flat = torch.rand(8, 1, 3, 1, 1).expand(-1, -1, -1, 8, 8)
        terms = adversary(flat, torch.rand(8, 1, 3, 8, 8), step)
        optimiser.zero_grad()
        adversary.backward(terms)
        optimiser.step()
    assert terms.recorded.logits.mean() > terms.rebuilt.logits.mean() + 0.25


def test_the_start_step_is_the_first_active_one() -> None:
    config = AdversarialLossConfig(start_step=10, penalty_period=3)
    assert [config.active(step) for step in (9, 10)] == [False, True]
    assert [config.penalty_factor(step) for step in (10, 11, 12, 13)] == [3, 0, 0, 3]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        AdversarialLossConfig(lecam=-1.0)
    with pytest.raises(ConfigError, match="lecam_decay must lie between 0 and 1"):
        AdversarialLossConfig(lecam_decay=1.0)
    with pytest.raises(ConfigError, match="penalty_period must be at least 1"):
        AdversarialLossConfig(penalty_period=0)
    adversary = Adversary(discriminator(), AdversarialLossConfig(adaptive=True))
    with pytest.raises(ConfigError, match="needs the reconstruction loss"):
        adversary.weighted(torch.zeros(()))
