"""The stand-in for a missing tokenizer: colours that differ, and no encoding."""

from pathlib import Path

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.tokenizers.visual import (
    FalseColourTokenizer,
    FalseColourTokenizerConfig,
    load_visual_tokenizer,
    save_visual_tokenizer,
)


def make(**changes: int) -> FalseColourTokenizer:
    sizes = {"rows": 8, "columns": 16, "codebook_size": 1024, "cell": 4}
    return FalseColourTokenizer(FalseColourTokenizerConfig(**(sizes | changes)))  # type: ignore[arg-type]


def test_every_id_is_painted_in_its_place_and_its_own_colour() -> None:
    tokenizer = make()
    ids = torch.randint(0, 1024, (2, 3, 8, 16), generator=torch.Generator().manual_seed(0))
    frames = tokenizer.decode(ids)
    assert frames.shape == (2, 3, 3, 32, 64)
    assert frames.abs().max() <= 1
    squares = frames.reshape(2, 3, 3, 8, 4, 16, 4)
    assert torch.equal(squares.amin((4, 6)), squares.amax((4, 6)))
    levels = ((tokenizer.colours + 1) * 127.5).round()
    assert len(levels.unique(dim=0)) == 1024
    # Far enough apart for an eye: a random set of 1,024 has pairs closer than one level.
    assert torch.pdist(levels).min() > 8
    # The grid can be read back, so nothing of it is lost in the picture.
    painted = squares[:, :, :, :, 0, :, 0].permute(0, 1, 3, 4, 2)
    found = torch.cdist(painted.reshape(-1, 3), tokenizer.colours).argmin(1)
    assert torch.equal(found.reshape(ids.shape), ids)


def test_it_says_that_it_cannot_encode() -> None:
    tokenizer = make()
    frames = torch.zeros(1, 1, 3, 32, 64)
    for use in (tokenizer.encode, tokenizer):
        with pytest.raises(ConfigError, match="cannot encode frames; these ids, 8 x 16 of 1024"):
            use(frames)
    with pytest.raises(ConfigError, match="ids must lie in 0"):
        tokenizer.decode(torch.full((1, 1, 8, 16), 1024))


def test_it_is_stored_like_any_tokenizer(tmp_path: Path) -> None:
    tokenizer = make(cell=2)
    save_visual_tokenizer(tmp_path / "tokenizer.safetensors", tokenizer)
    loaded = load_visual_tokenizer(tmp_path / "tokenizer.safetensors")
    assert isinstance(loaded, FalseColourTokenizer)
    assert loaded.config == tokenizer.config
    ids = torch.arange(128).reshape(1, 1, 8, 16)
    assert torch.equal(loaded.decode(ids), tokenizer.decode(ids))
    assert loaded.single_frames
    assert loaded.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["rows", "columns", "codebook_size", "cell"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be 1 or more, got 0"):
        make(**{name: 0})
