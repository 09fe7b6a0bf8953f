"""What a world model is given in training in place of what was recorded."""

import pytest
import torch

from tests.factories import tiny_model_config
from worldgen.errors import ConfigError
from worldgen.models import NextFrameTransformer
from worldgen.training.context import (
    CorruptionConfig,
    OnPolicyConfig,
    RandomTokensConfig,
    corrupt,
    dream,
)


def clips(model: NextFrameTransformer, batch: int, frames: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    layout = model.layout
    visual = torch.randint(
        0, model.codebook_size, (batch, frames, layout.num_cells), generator=generator
    )
    actions = torch.randint(0, 2, (batch, frames, layout.num_action_tokens), generator=generator)
    return visual, actions


def test_random_tokens_come_from_the_whole_codebook_at_the_stated_share() -> None:
    clean = torch.full((400, 4, 25), 7)
    config = RandomTokensConfig(share_of_clips=0.5, keep=0.7)
    given = corrupt(clean, config, 1000, torch.Generator().manual_seed(0))
    spoilt = (given != clean).flatten(1).float().mean(dim=1)
    assert 0.4 < (spoilt > 0).float().mean() < 0.6
    assert 0.28 < spoilt[spoilt > 0].mean() < 0.32
    drawn = given[given != 7]
    assert int(drawn.min()) < 10
    assert int(drawn.max()) > 989


def test_recorded_tokens_are_tokens_of_the_batch() -> None:
    clean = torch.arange(12).reshape(1, 1, 12).expand(8, 5, 12) * 3
    config = CorruptionConfig(share_of_clips=1.0, highest_rate=0.9)
    given = corrupt(clean, config, 1000, torch.Generator().manual_seed(0))
    assert (given != clean).any()
    assert set(given.unique().tolist()) <= set(clean.unique().tolist())


def test_nothing_is_spoilt_at_a_share_of_zero() -> None:
    clean = torch.arange(60).reshape(3, 4, 5)
    generator = torch.Generator().manual_seed(0)
    for config in (
        CorruptionConfig(share_of_clips=0.0, highest_rate=0.5),
        RandomTokensConfig(share_of_clips=0.0, keep=0.0),
        RandomTokensConfig(share_of_clips=1.0, keep=1.0),
    ):
        assert torch.equal(corrupt(clean, config, 60, generator), clean)


def test_dreamed_frames_are_what_the_model_draws_one_after_another() -> None:
    torch.manual_seed(0)
    model = NextFrameTransformer(tiny_model_config()).eval()
    visual, actions = clips(model, 3, 6)
    config = OnPolicyConfig(share_of_clips=1.0, frames=1000, rounds=1, temperature=0.0)
    seen_lengths = set()
    for seed in range(8):
        given = dream(model, visual, actions, config, torch.Generator().manual_seed(seed))
        # Frames asked for beyond the clip leave its first frame as it is.
        length = int((given != visual).any(dim=-1).any(dim=0).sum())
        seen_lengths.add(length)
        first = 6 - length
        assert torch.equal(given[:, :first], visual[:, :first])
        # Oracle: each dreamed frame is the best guess of a pass over all frames before it.
        for frame in range(max(first, 1), 6):
            expected = model(given[:, :frame], actions[:, :frame])[:, -1].argmax(dim=-1)
            assert torch.equal(given[:, frame], expected)
    assert max(seen_lengths) == 5


def test_the_length_of_a_dream_and_its_share_are_kept_to() -> None:
    torch.manual_seed(0)
    model = NextFrameTransformer(tiny_model_config()).eval()
    visual, actions = clips(model, 40, 6)
    config = OnPolicyConfig(share_of_clips=0.5, frames=2, rounds=3, temperature=1.0)
    given = dream(model, visual, actions, config, torch.Generator().manual_seed(0))
    changed = (given != visual).any(dim=-1)
    assert not changed[:, :4].any()
    assert 10 < int(changed.any(dim=1).sum()) < 30
    again = dream(model, visual, actions, config, torch.Generator().manual_seed(0))
    assert torch.equal(given, again)


def test_a_temperature_of_zero_draws_the_same_whatever_the_noise() -> None:
    torch.manual_seed(0)
    model = NextFrameTransformer(tiny_model_config()).eval()
    visual, actions = clips(model, 4, 3)
    for temperature, equal in ((0.0, True), (5.0, False)):
        config = OnPolicyConfig(share_of_clips=1.0, frames=1, rounds=1, temperature=temperature)
        one, other = (
            dream(model, visual, actions, config, torch.Generator().manual_seed(seed))
            for seed in (0, 1)
        )
        assert torch.equal(one, other) == equal


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomTokensConfig(share_of_clips=1.5, keep=0.5), "share_of_clips and keep"),
        (lambda: CorruptionConfig(share_of_clips=0.5, highest_rate=1.0), "highest_rate in"),
        (
            lambda: OnPolicyConfig(share_of_clips=0.5, frames=0, rounds=1, temperature=1.0),
            "at least 1 frame",
        ),
        (
            lambda: OnPolicyConfig(share_of_clips=0.5, frames=1, rounds=1, temperature=-1.0),
            "temperature be 0 or more",
        ),
    ],
)
def test_impossible_shares_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=message):
        make()
