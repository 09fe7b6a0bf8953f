"""Reconstruction losses worked out by hand."""

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.tokenizers.losses.reconstruction import (
    ReconstructionLossConfig,
    choose_frames,
    reconstruction_losses,
)


def test_each_term_is_its_weighted_mean() -> None:
    frames = torch.zeros(1, 1, 3, 10, 10)
    reconstruction = frames.clone()
    reconstruction[..., 4, 4] = 0.5
    config = ReconstructionLossConfig(
        absolute=2.0, squared=4.0, worst=1.0, worst_share=0.02, gradient=1.0
    )
    terms = reconstruction_losses(reconstruction, frames, config)
    assert terms["absolute"].item() == pytest.approx(2.0 * 0.5 / 100)
    assert terms["squared"].item() == pytest.approx(4.0 * 0.25 / 100)
    # The worst two pixels: one wrong by 0.5, one right.
    assert terms["worst"].item() == pytest.approx(0.25)
    # Two wrong differences of 0.5 among 9 x 10, downwards and across.
    assert terms["gradient"].item() == pytest.approx(2 * 2 * 0.5 / 90)


def test_terms_without_weight_are_left_out() -> None:
    frames = torch.zeros(1, 1, 3, 4, 4)
    config = ReconstructionLossConfig(absolute=1.0, squared=0.0)
    assert set(reconstruction_losses(frames, frames, config)) == {"absolute"}


def test_impossible_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        ReconstructionLossConfig(absolute=-1.0)
    with pytest.raises(ConfigError, match="worst_share must lie in"):
        ReconstructionLossConfig(worst_share=0.0)


def test_frames_are_chosen_for_each_clip_alone() -> None:
    clips = torch.arange(6.0).reshape(2, 3, 1, 1, 1).expand(-1, -1, 3, 2, 2)
    chosen = choose_frames(clips, torch.tensor([[2, 0], [1, 1]]))
    assert chosen.shape == (2, 2, 3, 2, 2)
    assert chosen[:, :, 0, 0, 0].tolist() == [[2, 0], [4, 4]]
