"""The joint tokenizer: exactly causal, streams without a difference, any size, clear refusals."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from worldgen.config import to_mapping
from worldgen.errors import CheckpointError, ConfigError
from worldgen.nn.space_time import SpaceTimeConfig
from worldgen.tokenizers.quantizers import FSQConfig, VQConfig
from worldgen.tokenizers.visual import (
    OmniAutoencoder,
    OmniAutoencoderConfig,
    OmniTokenizer,
    OmniTokenizerConfig,
    load_autoencoder,
    load_visual_tokenizer,
    save_autoencoder,
    save_visual_tokenizer,
)
from worldgen.tokenizers.visual.omnitokenizer import GaussianLatents

# So many levels that ids tell vectors apart which differ by a few units in the last place.
FINE = FSQConfig(levels=(65535, 65535, 65535))

ROWS, COLUMNS = 6, 10

Network = TypeVar("Network", OmniTokenizer, OmniAutoencoder)


def stack(blocks: str = "tw", **changes: Any) -> SpaceTimeConfig:
    sizes: dict[str, Any] = {
        "width": 16,
        "num_heads": 2,
        "head_width": 8,
        "feed_forward_width": 20,
        "spatial_blocks": blocks,
        "temporal_depth": 1,
        "window": 4,
    }
    return SpaceTimeConfig(**(sizes | changes))


def make(
    *, blocks: str = "tw", quantizer: FSQConfig | VQConfig = FINE, codec: Any = None, **changes: Any
) -> OmniTokenizer:
    """Return a tokenizer of 24 x 40 pixels, a grid of 6 x 10 that windows of 4 do not divide."""
    sizes: dict[str, Any] = {
        "frame_height": 24,
        "frame_width": 40,
        "patch": 4,
        "frames_per_latent": 2,
        "encoder": stack(blocks, **changes),
        "decoder": stack("wt", **changes),
        "quantizer": quantizer,
    }
    return trained(OmniTokenizer(OmniTokenizerConfig(**(sizes | (codec or {})))))


def trained(network: Network) -> Network:
    """Move every weight and running mean away from where it starts."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and "quantizer" not in name:
            noise = 0.2 * torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise.abs() if "running_var" in name else noise)
    return network.eval()


def clip(
    frames: int, *, batch: int = 2, height: int = 24, width: int = 40, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, frames, 3, height, width, generator=generator) * 2 - 1


VARIANTS: dict[str, Callable[[], OmniTokenizer]] = {
    "rotary": make,
    "relative_alibi": lambda: make(spatial_positions="relative", temporal_positions="alibi"),
    "temporal_window": lambda: make(temporal_window=2, temporal_positions="alibi"),
    "window_of_one": lambda: make(temporal_window=1),
    "deferred_pooling": lambda: make(
        codec={"deferred_pooling": ("space", "time"), "frames_per_latent": 4}
    ),
    "reducing": lambda: make(blocks="tmw"),
    "convolutional_patches": lambda: make(codec={"patch_embedding": "convolutional"}),
    "frame_by_frame": lambda: make(codec={"frames_per_latent": 1}),
    "upscale": lambda: make(codec={"upscale": 2}),
    "vector_quantizer": lambda: make(
        quantizer=VQConfig(
            codebook_size=50, width=4, normalise="vectors", revival_threshold=0.0, smoothing=1e-7
        )
    ),
}


@pytest.fixture(params=list(VARIANTS))
def tokenizer(request: pytest.FixtureRequest) -> OmniTokenizer:
    return VARIANTS[request.param]()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # Networks this small are fastest on one thread.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_clips_become_grids_of_ids_and_clips_again(tokenizer: OmniTokenizer) -> None:
    q = tokenizer.frames_per_latent
    frames = clip(1 + 2 * q)
    ids = tokenizer.encode(frames)
    reduction = tokenizer.config.reduction
    assert (tokenizer.rows, tokenizer.columns) == (24 // reduction, 40 // reduction)
    assert ids.shape == (2, 3, tokenizer.rows, tokenizer.columns)
    assert ids.dtype == torch.int64
    assert 0 <= ids.min() <= ids.max() < tokenizer.codebook_size
    decoded = tokenizer.decode(ids)
    scale = tokenizer.config.patch * tokenizer.config.upscale
    assert decoded.shape == (2, 1 + 2 * q, 3, tokenizer.rows * scale, tokenizer.columns * scale)
    assert decoded.dtype == torch.float32
    assert decoded.abs().max() <= 1
    assert tokenizer.causal


def test_image_has_the_ids_of_the_first_frame_of_every_video(tokenizer: OmniTokenizer) -> None:
    q = tokenizer.frames_per_latent
    image = clip(1)
    alone = tokenizer.encode(image)
    for latents, seed in ((1, 2), (2, 3)):
        video = torch.cat((image, clip(latents * q, seed=seed)), dim=1)
        assert torch.equal(tokenizer.encode(video)[:, :1], alone)


def test_prefix_keeps_its_ids_and_its_frames(tokenizer: OmniTokenizer) -> None:
    q = tokenizer.frames_per_latent
    frames = clip(1 + 3 * q)
    ids = tokenizer.encode(frames)
    decoded = tokenizer.decode(ids)
    for latents in range(1, 4):
        length = tokenizer.num_frames(latents)
        assert torch.equal(tokenizer.encode(frames[:, :length]), ids[:, :latents])
        assert torch.equal(tokenizer.decode(ids[:, :latents]), decoded[:, :length])


@pytest.mark.parametrize("pieces", [(1, 1, 2), (3, 1)])
def test_streams_give_what_the_whole_clip_gives(
    tokenizer: OmniTokenizer, pieces: tuple[int, ...]
) -> None:
    q = tokenizer.frames_per_latent
    frames = clip(1 + 3 * q)
    ids = tokenizer.encode(frames)
    encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    lengths = [1 + q * (pieces[0] - 1), *(q * piece for piece in pieces[1:])]
    pushed = [encoder.push(part) for part in frames.split(lengths, dim=1)]
    assert [part.shape[1] for part in pushed] == list(pieces)
    assert torch.equal(torch.cat(pushed, dim=1), ids)
    shown = [decoder.push(part) for part in ids.split(list(pieces), dim=1)]
    assert [part.shape[1] for part in shown] == lengths
    assert torch.equal(torch.cat(shown, dim=1), tokenizer.decode(ids))


def test_forks_go_on_without_knowing_of_each_other(tokenizer: OmniTokenizer) -> None:
    q = tokenizer.frames_per_latent
    begin, one, other = clip(1 + q), clip(q, seed=4), clip(q, seed=5)
    encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    first = encoder.push(begin)
    decoder.push(first)
    encoder_fork, decoder_fork = encoder.fork(), decoder.fork()
    for frames, encode, decode in ((one, encoder, decoder), (other, encoder_fork, decoder_fork)):
        whole = torch.cat((begin, frames), dim=1)
        ids = encode.push(frames)
        assert torch.equal(ids, tokenizer.encode(whole)[:, 2:])
        decoded = tokenizer.decode(torch.cat((first, ids), dim=1))
        assert torch.equal(decode.push(ids), decoded[:, 1 + q :])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 48)])
def test_other_sizes_are_as_causal(tokenizer: OmniTokenizer, height: int, width: int) -> None:
    reduction = tokenizer.config.reduction
    height, width = height // reduction * reduction, width // reduction * reduction
    q = tokenizer.frames_per_latent
    frames = clip(1 + 2 * q, batch=1, height=height, width=width)
    ids = tokenizer.encode(frames)
    assert ids.shape == (1, 3, height // reduction, width // reduction)
    assert torch.equal(tokenizer.encode(frames[:, :1]), ids[:, :1])
    decoded = tokenizer.decode(ids)
    stream = tokenizer.decoder_stream()
    shown = torch.cat([stream.push(ids[:, [latent]]) for latent in range(3)], dim=1)
    assert torch.equal(shown, decoded)


def test_clips_of_mixed_lengths_are_encoded_as_each_alone(tokenizer: OmniTokenizer) -> None:
    q = tokenizer.frames_per_latent
    clips = [clip(1 + k * q, seed=k)[0] for k in (1, 0, 2)]
    together = tokenizer.encode_clips(clips)
    assert [len(ids) for ids in together] == [2, 1, 3]
    for frames, ids in zip(clips, together, strict=True):
        # Products over another number of clips add up in another order: equal up to rounding.
        alone = tokenizer.encode(frames[None])[0]
        pair = (tokenizer.quantizer.ids_to_vectors(some) for some in (ids, alone))
        torch.testing.assert_close(*pair, rtol=0, atol=1e-3)
    assert tokenizer.encode_clips([]) == []


def test_training_pass_agrees_with_encode_and_decode(tokenizer: OmniTokenizer) -> None:
    frames = clip(1 + 2 * tokenizer.frames_per_latent)
    with torch.no_grad():
        output = tokenizer(frames)
    if isinstance(tokenizer.config.quantizer, VQConfig):
        assert torch.equal(output.ids, tokenizer.encode(frames))
    shown = tokenizer.decode(output.ids)
    torch.testing.assert_close(output.reconstruction.clamp(-1, 1), shown, rtol=1e-4, atol=1e-4)


def test_training_pass_lets_nothing_of_the_future_into_the_past(tokenizer: OmniTokenizer) -> None:
    # Running statistics of a batch know everything of it: those layers stay in evaluation mode.
    if tokenizer.config.patch_embedding == "linear":
        tokenizer.train()
    q = tokenizer.frames_per_latent
    frames = clip(1 + 3 * q, batch=1)
    changed = torch.cat((frames[:, : 1 + q], clip(2 * q, batch=1, seed=6)), dim=1)
    with torch.no_grad():
        one, other = (tokenizer(video).reconstruction[:, : 1 + q] for video in (frames, changed))
    if isinstance(tokenizer.config.quantizer, FSQConfig):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    frames.requires_grad_()
    tokenizer(frames).reconstruction[:, : 1 + q].square().sum().backward()
    assert frames.grad is not None
    past, future = frames.grad[:, : 1 + q], frames.grad[:, 1 + q :]
    assert past.abs().sum(dim=(0, 2, 3, 4)).min() > 0
    if isinstance(tokenizer.config.quantizer, FSQConfig):
        assert future.abs().max() == 0


def test_gradients_reach_every_parameter(tokenizer: OmniTokenizer) -> None:
    tokenizer.train()
    frames = clip(1 + 3 * tokenizer.frames_per_latent)
    output = tokenizer(frames)
    target = torch.rand(output.reconstruction.shape, generator=torch.Generator().manual_seed(8))
    ((output.reconstruction - target).square().mean() + output.quantizer_loss).backward()
    still = [
        name
        for name, parameter in tokenizer.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.any())
    ]
    if tokenizer.config.patch_embedding == "convolutional":
        # What batch normalisation subtracts again.
        still = [name for name in still if not name.endswith("linear.bias")]
    if tokenizer.config.encoder.temporal_window == 1:
        # Among one key there is no choice.
        parts = ("query", "norm", "key_scale")
        still = [n for n in still if not any(f"attention.{part}" in n for part in parts)]
    assert still == []


def test_codes_put_in_by_a_perturbation_are_decoded_and_ids_stay() -> None:
    tokenizer = make(quantizer=FSQConfig(levels=(8, 8)))
    frames = clip(3)
    with torch.no_grad():
        plain = tokenizer(frames)
        output = tokenizer(frames, perturb=torch.zeros_like)
    assert torch.equal(output.ids, plain.ids)
    shown = tokenizer.decode(torch.zeros_like(plain.ids))
    torch.testing.assert_close(output.reconstruction.clamp(-1, 1), shown, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["temporal_window", "window_of_one"])
def test_memory_of_a_stream_does_not_grow(name: str) -> None:
    tokenizer = VARIANTS[name]()
    encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    decoder.push(encoder.push(clip(1)))
    held = []
    for seed in range(8):
        decoder.push(encoder.push(clip(2, seed=seed)))
        held.append(bytes_held(encoder) + bytes_held(decoder))
    assert held[2] > 0
    assert held[2:] == [held[2]] * len(held[2:])


def bytes_held(thing: object) -> int:
    """Size of the memory behind all tensors that a stream keeps, the network's left out."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, nn.Module | type) or callable(item):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            # Of a view the whole tensor behind it.
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
        else:
            waiting.extend(vars(item).values() if hasattr(item, "__dict__") else ())
    return sum(storages.values())


NOT_CAUSAL: dict[str, dict[str, Any]] = {
    "scrambled": {"temporal_convolution": "scrambled"},
    "attention": {"causal": False},
    "convolution": {"causal_convolution": False},
}


@pytest.mark.parametrize("name", list(NOT_CAUSAL))
def test_what_sees_the_future_takes_whole_clips_only(name: str) -> None:
    tokenizer = make(**NOT_CAUSAL[name])
    assert not tokenizer.causal
    frames = clip(9, batch=1)
    changed = torch.cat((frames[:, :7], clip(2, batch=1, seed=7)), dim=1)
    ids, other = tokenizer.encode(frames), tokenizer.encode(changed)
    # The change is at the end; what is before knows of it.
    assert not torch.equal(ids[:, :-1], other[:, :-1])
    assert tokenizer.decode(ids).shape == frames.shape
    for stream in (tokenizer.encoder_stream, tokenizer.decoder_stream):
        with pytest.raises(ConfigError, match=r"not causal .* whole clips; use encode and decode"):
            stream()
    clips = [frames[0], frames[0, :3]]
    for video, alone in zip(clips, tokenizer.encode_clips(clips), strict=True):
        assert torch.equal(alone, tokenizer.encode(video[None])[0])


def test_image_alone_does_not_know_the_order_of_memory() -> None:
    aligned, scrambled = make(), make(temporal_convolution="scrambled")
    scrambled.load_state_dict(aligned.state_dict())
    assert torch.equal(aligned.encode(clip(1)), scrambled.encode(clip(1)))
    assert not torch.equal(aligned.encode(clip(3)), scrambled.encode(clip(3)))


def test_saved_tokenizer_gives_the_same(tokenizer: OmniTokenizer, tmp_path: Path) -> None:
    save_visual_tokenizer(tmp_path / "tokenizer.safetensors", tokenizer)
    loaded = load_visual_tokenizer(tmp_path / "tokenizer.safetensors")
    assert to_mapping(loaded.config) == to_mapping(tokenizer.config)
    frames = clip(1 + tokenizer.frames_per_latent)
    ids = tokenizer.encode(frames)
    assert torch.equal(loaded.encode(frames), ids)
    assert torch.equal(loaded.decode(ids), tokenizer.decode(ids))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(3), r"shape \[batch, time, 3, height, width\].*\[3\]"),
        (clip(3)[0], r"shape \[batch, time, 3, height, width\]"),
        (clip(3)[:, :, :2], r"shape \[batch, time, 3, height, width\]"),
        ((clip(3) * 255).byte(), "must be float"),
        (clip(3) * 2, r"lie in \[-1, 1\]"),
        (clip(3).index_fill(1, torch.tensor(1), torch.nan), r"lie in \[-1, 1\]"),
        (clip(2), "1 \\+ k x 2 frames, got 2; cut the clip to 1 or fill it up to 3"),
        (clip(3)[:, :0], "1 \\+ k x 2 frames, got 0"),
        (clip(3, width=42), "24 x 42 pixels do not divide into squares of 4"),
    ],
)
def test_frames_that_cannot_be_encoded_are_refused(frames: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make().encode(frames)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 2, 6, dtype=torch.int64), r"shape \[batch, latent, row, column\]"),
        (torch.zeros(1, 2, 6, 10), "must be integers"),
        (torch.full((1, 2, 6, 10), -1), "got -1 to -1"),
        (torch.full((1, 2, 6, 10), 50), r"lie in 0 \.\.\. 49, got 50 to 50"),
    ],
)
def test_ids_that_cannot_be_decoded_are_refused(ids: Tensor, message: str) -> None:
    tokenizer = VARIANTS["vector_quantizer"]()
    with pytest.raises(ConfigError, match=message):
        tokenizer.decode(ids)
    with pytest.raises(ConfigError, match=message):
        tokenizer.decoder_stream().push(ids)


def test_stream_takes_whole_groups_of_frames() -> None:
    stream = make().encoder_stream()
    with pytest.raises(ConfigError, match="2 frames at a time, and one more at its beginning"):
        stream.push(clip(2))
    stream.push(clip(1))
    with pytest.raises(ConfigError, match=r"2 frames at a time.* got 3"):
        stream.push(clip(3))
    assert stream.push(clip(2)).shape[1] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_width": 42}, "24 x 42 pixels do not divide into squares of 4"),
        ({"patch": 0}, "must be at least 1"),
        ({"patch": 3, "deferred_pooling": ("space",)}, "halves the patch, got 3"),
        ({"frames_per_latent": 3, "deferred_pooling": ("time",)}, "halves frames_per_latent"),
        ({"decoder": stack("ta")}, "decoder has no reducing blocks"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(codec=changes)


def make_autoencoder() -> OmniAutoencoder:
    config = OmniAutoencoderConfig(
        frame_height=24,
        frame_width=40,
        patch=4,
        frames_per_latent=2,
        encoder=stack(),
        decoder=stack("wt"),
        latent_width=5,
    )
    return trained(OmniAutoencoder(config)).requires_grad_(False)


def test_autoencoder_draws_what_its_generator_says() -> None:
    network = make_autoencoder()
    frames = clip(5)
    latents = network.encode(frames)
    assert latents.mean.shape == latents.log_variance.shape == (2, 3, ROWS, COLUMNS, 5)
    draws = [latents.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(latents.draw(torch.zeros_like(latents.mean)), latents.mean)
    assert network.decode(latents.mean).shape == frames.shape
    rebuilt, again = network(frames, torch.Generator().manual_seed(0))
    assert torch.equal(rebuilt, network.decode(draws[0]))
    assert torch.equal(again.mean, latents.mean)


def test_divergence_is_that_of_normal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 1, 2, 2, 4, generator=generator).unbind(0)
    divergence = GaussianLatents(mean=mean, log_variance=log_variance).divergence()
    own = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(own, standard).sum() / 3
    torch.testing.assert_close(divergence, expected)


def test_autoencoder_knows_no_future() -> None:
    network = make_autoencoder()
    frames = clip(7)
    torch.testing.assert_close(
        network.encode(frames).mean[:, :2], network.encode(frames[:, :3]).mean
    )
    latents = network.encode(frames).mean
    torch.testing.assert_close(network.decode(latents)[:, :3], network.decode(latents[:, :2]))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ((clip(3) * 255).byte(), "must be float"),
        (clip(3) * 2, r"lie in \[-1, 1\]"),
        (clip(2), r"1 \+ k x 2 frames, got 2"),
        (clip(3, width=42), "24 x 42 pixels do not divide into squares of 4"),
    ],
)
def test_autoencoder_refuses_what_it_cannot_take(frames: Tensor, message: str) -> None:
    network = make_autoencoder()
    with pytest.raises(ConfigError, match=message):
        network.encode(frames)
    with pytest.raises(ConfigError, match=r"row, column, 5\], got \[1, 1, 6, 10, 4\]"):
        network.decode(torch.zeros(1, 1, 6, 10, 4))


def test_saved_autoencoder_gives_the_same(tmp_path: Path) -> None:
    network, path = make_autoencoder(), tmp_path / "autoencoder.safetensors"
    save_autoencoder(path, network, {"note": 1})
    loaded = load_autoencoder(path)
    assert torch.equal(loaded.encode(clip(3)).mean, network.encode(clip(3)).mean)
    with pytest.raises(CheckpointError, match="not a visual tokenizer"):
        load_visual_tokenizer(path)
    save_visual_tokenizer(tmp_path / "tokenizer.safetensors", make())
    with pytest.raises(CheckpointError, match="not an autoencoder"):
        load_autoencoder(tmp_path / "tokenizer.safetensors")


@pytest.mark.parametrize("embedding", ["linear", "convolutional"])
def test_clips_begin_with_what_images_have_taught(embedding: str) -> None:
    tokenizer = make(codec={"patch_embedding": embedding, "frames_per_latent": 4}).eval()
    image = torch.rand(1, 1, 3, 24, 40) * 2 - 1
    still = image.repeat(1, 5, 1, 1, 1)
    encoder, decoder = tokenizer.encoder, tokenizer.decoder

    def embedded() -> tuple[Tensor, Tensor]:
        first = rearrange(still[:, :1], "b t rgb (r y) (c x) -> b t r c (rgb y x)", y=4, x=4)
        later = rearrange(still[:, 1:], "b t rgb (r y) (c x) -> b r c (rgb t y x)", y=4, x=4)
        return encoder.first_frame(first), encoder.later_frames(later[:, None])

    with torch.no_grad():
        first, later = embedded()
        assert not torch.allclose(first, later, atol=1e-3)
        tokenizer.begin_clips()
        torch.testing.assert_close(*embedded(), rtol=1e-5, atol=1e-5)
        volume = torch.randn(1, 1, 6, 10, 16)
        one, four = decoder.first_frame(volume), decoder.later_frames(volume)
        frames = rearrange(four, "... (rgb t yx) -> t ... (rgb yx)", rgb=3, t=4)
        for frame in frames:
            torch.testing.assert_close(frame, one)
