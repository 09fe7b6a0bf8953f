"""The tokenizer with blocks over time and space: causal, streaming for ever, trainable, checked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from worldgen.config import build, to_mapping
from worldgen.errors import ConfigError
from worldgen.tokenizers.quantizers import GradientVQConfig
from worldgen.tokenizers.visual import (
    DecoderStream,
    EncoderStream,
    TemporalTokenizer,
    TemporalTokenizerConfig,
    load_visual_tokenizer,
    save_visual_tokenizer,
)
from worldgen.tokenizers.visual.temporal import TimeMemory
from worldgen.tokenizers.visual.vqgan import VQGANConfig


def tiny_config(window: int = 3, **changes: Any) -> TemporalTokenizerConfig:
    coder = VQGANConfig(widths=(4, 8), blocks=1, latent_width=8, groups=2, attention_levels=(1,))
    config = TemporalTokenizerConfig(
        frame_height=6,
        frame_width=8,
        encoder=coder,
        decoder=coder,
        quantizer=GradientVQConfig(codebook_size=64, width=4, normalise="both"),
        num_heads=2,
        feed_forward_width=16,
        window=window,
    )
    return replace(config, **changes)


def tiny_tokenizer(window: int = 3, seed: int = 0) -> TemporalTokenizer:
    torch.manual_seed(seed)
    tokenizer = TemporalTokenizer(tiny_config(window)).eval()
    with torch.no_grad():
        # Attention that looks at some frames much more than at others, and changes what it mixes.
        for block in (tokenizer.time, tokenizer.space):
            block.attention.query_key_value.weight.mul_(4)
            block.attention.output.weight.mul_(4)
    return tokenizer


def clip(frames: int, *, batch: int = 1, seed: int = 0, height: int = 6, width: int = 8) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, frames, 3, height, width, generator=generator) * 2 - 1


def grids(number: int, *, batch: int = 1, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(64, (batch, number, 3, 4), generator=generator)


def test_later_frames_change_nothing_and_earlier_ones_in_the_window_do() -> None:
    tokenizer = tiny_tokenizer(window=3)
    ids = grids(8)
    whole = tokenizer.decode(ids)
    for length in (1, 2, 5):
        assert torch.equal(tokenizer.decode(ids[:, :length]), whole[:, :length])
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 64
    same = [
        torch.equal(one, other)
        for one, other in zip(tokenizer.decode(changed)[0], whole[0], strict=True)
    ]
    assert same == [True, True, True, False, False, False, True, True]


def test_encoding_is_causal_too() -> None:
    tokenizer = tiny_tokenizer(window=3)
    frames = clip(8)
    ids = tokenizer.encode(frames)
    assert torch.equal(tokenizer.encode(frames[:, :4]), ids[:, :4])
    changed = frames.clone()
    changed[:, 3] = -changed[:, 3]
    other = tokenizer.encode(changed)
    same = [bool((one == two).all()) for one, two in zip(other[0], ids[0], strict=True)]
    assert same[:3] == [True] * 3
    assert same[6:] == [True] * 2
    assert not all(same)


def test_a_window_that_slides_gives_what_each_window_alone_gives() -> None:
    # Upstream decodes the last grids as a clip of their own, at positions from 0, and keeps the
    # last frame.
    tokenizer = tiny_tokenizer(window=4)
    ids = grids(14)
    whole = tokenizer.decode(ids)
    for last in (3, 8, 13):
        alone = tokenizer.decode(ids[:, last - 3 : last + 1])[:, -1]
        torch.testing.assert_close(whole[:, last], alone, rtol=0, atol=1e-5)


def test_positions_far_into_a_clip_are_as_good_as_the_first() -> None:
    tokenizer = tiny_tokenizer(window=4)
    features = torch.randn(1, 6, 8, 3, 4)
    near = tokenizer.mix(features, TimeMemory())
    far = tokenizer.mix(features, TimeMemory(num_frames=5_000_000))
    torch.testing.assert_close(far, near, rtol=0, atol=2e-4)


@pytest.mark.parametrize("window", [1, 3, 16])
def test_streams_give_the_whole_clip_bit_for_bit(window: int) -> None:
    tokenizer = tiny_tokenizer(window)
    frames = clip(9, batch=2)
    ids = tokenizer.encode(frames)
    decoded = tokenizer.decode(ids)
    encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    assert isinstance(encoder, EncoderStream)
    assert isinstance(decoder, DecoderStream)
    pieces = (1, 4, 2, 2)
    assert torch.equal(torch.cat([encoder.push(f) for f in frames.split(pieces, 1)], 1), ids)
    parts = [decoder.push(piece) for piece in ids.split(pieces, 1)]
    assert torch.equal(torch.cat(parts, 1), decoded)


def test_a_fork_goes_its_own_way() -> None:
    tokenizer = tiny_tokenizer()
    ids, others = grids(6), grids(6, seed=1)
    stream = tokenizer.decoder_stream()
    stream.push(ids[:, :3])
    fork = stream.fork()
    fork.push(others[:, 3:])
    assert torch.equal(stream.push(ids[:, 3:]), tokenizer.decode(ids)[:, 3:])


def test_memory_of_a_stream_does_not_grow() -> None:
    tokenizer = tiny_tokenizer(window=3)
    stream = tokenizer.decoder_stream()
    stream.push(grids(10))
    keys, values = stream._memory.keys_values  # type: ignore[attr-defined]
    assert keys.shape[2] == values.shape[2] == 2


def test_training_gives_the_ids_and_frames_of_inference() -> None:
    tokenizer = tiny_tokenizer(window=3)
    frames = clip(7, batch=2)
    output = tokenizer(frames)
    assert torch.equal(output.ids, tokenizer.encode(frames))
    decoded = tokenizer.decode(output.ids)
    torch.testing.assert_close(output.reconstruction.clamp(-1, 1), decoded, rtol=0, atol=1e-5)


def test_every_weight_learns_and_training_reduces_the_loss() -> None:
    torch.manual_seed(0)
    tokenizer = TemporalTokenizer(tiny_config())
    frames = clip(4, batch=2) * 0.1 + 0.5
    optimiser = torch.optim.Adam(tokenizer.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        output = tokenizer(frames)
        loss = F.mse_loss(output.reconstruction, frames) + output.quantizer_loss
        optimiser.zero_grad()
        loss.backward()
        missing = [n for n, p in tokenizer.named_parameters() if p.grad is None]
        assert not missing
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_perturbed_ids_change_the_frames_and_not_the_ids() -> None:
    tokenizer = tiny_tokenizer()
    frames = clip(3)
    plain = tokenizer(frames)
    perturbed = tokenizer(frames, lambda ids: (ids + 1) % 64)
    assert torch.equal(perturbed.ids, plain.ids)
    assert not torch.equal(perturbed.reconstruction, plain.reconstruction)


def test_frames_of_any_size_that_the_reduction_divides() -> None:
    tokenizer = tiny_tokenizer()
    frames = clip(3, height=10, width=4)
    ids = tokenizer.encode(frames)
    assert ids.shape == (1, 3, 5, 2)
    assert tokenizer.decode(ids).shape == frames.shape


def test_networks_in_bfloat16_show_nearly_the_same() -> None:
    tokenizer, ids = tiny_tokenizer(), grids(5)
    exact = tokenizer.decode(ids)
    for network in (tokenizer.encoder, tokenizer.time, tokenizer.space, tokenizer.decoder):
        network.to(torch.bfloat16)
    shown = tokenizer.decode(ids)
    assert shown.dtype == torch.float32
    assert float((shown - exact).abs().mean()) < 0.05
    assert tokenizer.encode(clip(4)).shape == (1, 4, 3, 4)


def test_a_tokenizer_comes_back_from_its_file(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    save_visual_tokenizer(tmp_path / "tokenizer.safetensors", tokenizer)
    loaded = load_visual_tokenizer(tmp_path / "tokenizer.safetensors")
    assert isinstance(loaded, TemporalTokenizer)
    assert loaded.config == tokenizer.config
    assert torch.equal(loaded.decode(grids(5)), tokenizer.decode(grids(5)))


def test_clips_of_different_lengths_are_encoded_together() -> None:
    tokenizer = tiny_tokenizer()
    clips = [clip(length, seed=length)[0] for length in (2, 5)]
    together = tokenizer.encode_clips(clips)
    assert all(
        torch.equal(ids, tokenizer.encode(frames[None])[0])
        for ids, frames in zip(together, clips, strict=True)
    )


def test_the_released_sizes_are_the_defaults() -> None:
    coder = {"widths": [128, 128, 256, 256, 512], "latent_width": 256, "attention_levels": [4]}
    config = build(
        TemporalTokenizerConfig,
        {
            "frame_height": 256,
            "frame_width": 512,
            "encoder": {"blocks": 2, **coder},
            "decoder": {"blocks": 3, **coder},
            "quantizer": {"codebook_size": 16384, "width": 32, "normalise": "both"}
            | {"kind": "vq_gradient"},
        },
    )
    with torch.device("meta"):
        tokenizer = TemporalTokenizer(config)
    assert (tokenizer.rows, tokenizer.columns, tokenizer.frames_per_latent) == (16, 32, 1)
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 73_993_891
    assert build(TemporalTokenizerConfig, to_mapping(config)) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_height": 7}, "7 x 8 pixels do not divide into squares of 2"),
        ({"window": 0}, "window must be at least 1"),
        ({"num_heads": 8}, "latent_width 8 for 8 heads"),
        (
            {"decoder": VQGANConfig(widths=(4, 8), blocks=1, latent_width=4, groups=2)},
            "must be the same, got 2 and 8 against 2 and 4",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda t: t.encode(clip(1, height=7)), "7 x 8 pixels do not divide into squares of 2"),
        (lambda t: t.encode(clip(0)), "must have the shape"),
        (lambda t: t.encode(clip(1) * 255), r"must lie in \[-1, 1\]"),
        (lambda t: t.decode(grids(1) + 64), "ids must lie in 0 ... 63"),
        (lambda t: t.decode(grids(1)[0]), "ids must be integers of shape"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    use: Callable[[TemporalTokenizer], Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        use(tiny_tokenizer())


def test_a_stream_keeps_to_one_batch() -> None:
    stream = tiny_tokenizer().encoder_stream()
    stream.push(clip(2))
    with pytest.raises(ConfigError, match="one batch of one size"):
        stream.push(clip(1, batch=2))
