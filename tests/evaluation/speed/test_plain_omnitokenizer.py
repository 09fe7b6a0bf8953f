"""The plain reading of OmniTokenizer: true to upstream's numbers, and the library's blocks to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from tests.reference_cases import Case, reference_cases
from worldgen.evaluation.speed.plain_omnitokenizer import PlainOmniTokenizer
from worldgen.interop.omnitokenizer import (
    AttentionPath,
    TemporalMode,
    import_omnitokenizer,
    omnitokenizer_arguments,
    omnitokenizer_config,
    upstream_name,
    upstream_state,
)
from worldgen.tokenizers.visual import OmniAutoencoder, OmniAutoencoderConfig, OmniTokenizer

CASES = reference_cases(
    "omnitokenizer", lambda config: "attention_paths" in config and config["mode"] == "eval"
)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_plain_reading_gives_upstreams_numbers(case: Case) -> None:
    arguments, _ = omnitokenizer_arguments(case.config["args"], case.folder)
    outputs, weights = case.outputs, load_file(case.weights)
    for path in case.config["attention_paths"]:
        plain = PlainOmniTokenizer(weights, arguments, attention=path)
        prefix = f"{path}." if any(name.startswith(f"{path}.") for name in outputs) else ""
        for name, frames in case.inputs.items():
            if "." in name or not frames.is_floating_point():
                continue
            video = frames[:, :, None] if frames.ndim == 4 else frames
            if arguments["use_vae"]:
                assert_close(plain.latents(video), outputs[f"{name}.moments"])
                made, wanted = outputs[f"{name}.mean"], outputs[f"{name}.recon_from_mean"]
                rebuilt = plain.frames(made)
            else:
                ids, wanted = outputs[f"{prefix}{name}.ids"], outputs[f"{prefix}{name}.recon"]
                assert torch.equal(plain.encode(video), ids)
                rebuilt = plain.decode(ids)
            assert_close(rebuilt[:, :, 0] if wanted.ndim == 4 else rebuilt, wanted)


# Block strings of all letters, heads that are no power of two, temporal patches, both bottlenecks.
SIZES: list[dict[str, Any]] = [
    {"enc_block": "t", "dec_block": "t"},
    {"enc_block": "wt", "dec_block": "tw", "heads": 3, "dim_head": 4},
    {"enc_block": "tam", "dec_block": "t", "temporal_depth": 2},
    {"enc_block": "lwt", "dec_block": "w", "temporal_patch_size": 1, "spatial_pos": "rel"},
    {"enc_block": "mtaw", "dec_block": "tt", "heads": 6, "spatial_pos": "rel"},
    {"enc_block": "wl", "dec_block": "tt", "defer_spatial_pool": True, "spatial_pos": "rel"},
    {"enc_block": "at", "dec_block": "wt", "defer_temporal_pool": True, "use_vae": True},
    {"enc_block": "tl", "dec_block": "t", "patch_embed": "cnn", "temporal_patch_size": 3},
    {"enc_block": "tt", "dec_block": "t", "patch_embed": "cnn", "gen_upscale": 2},
    {"enc_block": "ta", "dec_block": "t", "gen_upscale": 3, "defer_spatial_pool": True},
    {"enc_block": "tw", "dec_block": "t", "causal_in_peg": False, "l2_code": False},
    {"enc_block": "wt", "dec_block": "t", "causal_in_temporal_transformer": False, "heads": 5},
]
DEFAULTS: dict[str, Any] = {
    "embedding_dim": 30,
    "n_codes": 20,
    "codebook_dim": 4,
    "resolution": 32,
    "patch_size": 4,
    "temporal_patch_size": 4,
    "temporal_depth": 1,
    "twod_window_size": 2,
    "spatial_pos": "rope",
    "causal_in_temporal_transformer": True,
    "causal_in_peg": True,
    "dim_head": 8,
    "heads": 2,
    "l2_code": True,
}


@pytest.mark.parametrize("mode", ["upstream", "aligned"])
@pytest.mark.parametrize("path", ["sdpa", "einsum_bias"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(map(str, sizes.values())))
@torch.no_grad()
def test_library_agrees_with_plain_reading(
    sizes: dict[str, Any], path: AttentionPath, mode: TemporalMode
) -> None:
    arguments, _ = omnitokenizer_arguments(DEFAULTS | sizes, Path("here"))
    weights = random_weights(arguments, path)
    network = import_omnitokenizer(
        weights, arguments, Path("here"), mode=mode, attention=path
    ).network
    plain = PlainOmniTokenizer(weights, arguments, mode=mode, attention=path)
    generator = torch.Generator().manual_seed(3)
    q = arguments["temporal_patch_size"]
    for clips, frames, width in ((2, 1, 32), (1, 1 + 3 * q, 32), (1, 1 + q, 64)):
        clip = torch.rand(clips, frames, 3, 32, width, generator=generator) * 2 - 1
        video = rearrange(clip, "b t rgb h w -> b rgb t h w") / 2
        latents = network.encoder(clip)
        assert_close(rearrange(latents, "b t r c width -> b width t r c"), plain.latents(video))
        codes = torch.randn(*latents.shape[:-1], 4, generator=generator)
        rebuilt = plain.frames(rearrange(codes, "b t r c width -> b width t r c"))
        assert_close(rearrange(network.decoder(codes), "b t rgb h w -> b rgb t h w") / 2, rebuilt)
        if isinstance(network, OmniTokenizer):
            assert torch.equal(network.encode(clip), plain.encode(video))
            ids = torch.randint(0, 20, latents.shape[:-1], generator=generator)
            decoded = rearrange(network.decode(ids), "b t rgb h w -> b rgb t h w")
            assert_close(decoded, (2 * plain.decode(ids)).clamp(-1, 1))


@pytest.mark.parametrize("path", ["sdpa", "einsum_bias"])
@pytest.mark.parametrize("sizes", [SIZES[3], SIZES[6], SIZES[10]], ids=["rel", "pooled", "window"])
def test_gradients_agree_with_those_of_the_plain_reading(
    sizes: dict[str, Any], path: AttentionPath
) -> None:
    arguments, _ = omnitokenizer_arguments(DEFAULTS | sizes, Path("here"))
    weights = random_weights(arguments, path)
    network = import_omnitokenizer(weights, arguments, Path("here"), attention=path).network
    network.requires_grad_(True)
    for tensor in weights.values():
        tensor.requires_grad_(tensor.is_floating_point())
    plain = PlainOmniTokenizer(weights, arguments, attention=path)
    generator = torch.Generator().manual_seed(4)
    clip = torch.rand(1, 1 + 2 * arguments["temporal_patch_size"], 3, 32, 32, generator=generator)
    latents = plain.latents(rearrange(clip, "b t rgb h w -> b rgb t h w") / 2)
    wanted = torch.randn(latents.shape, generator=generator)
    codes = wanted[:, :4]
    ((latents - wanted).square().mean() + plain.frames(codes).square().mean()).backward()
    ours = network.encoder(clip)
    rebuilt = network.decoder(rearrange(codes, "b width t r c -> b t r c width")) / 2
    ours_wanted = rearrange(wanted, "b width t r c -> b t r c width")
    ((ours - ours_wanted).square().mean() + rebuilt.square().mean()).backward()
    for name, parameter in network.named_parameters():
        theirs = weights[str(upstream_name(name, network.config))].grad
        assert parameter.grad is not None
        assert theirs is not None
        assert_close(parameter.grad, theirs)


def random_weights(arguments: dict[str, Any], path: AttentionPath) -> dict[str, Tensor]:
    """Upstream's tensors; nothing is left at a trivial value such as a bias of zero."""
    config = omnitokenizer_config(arguments, mode="upstream", attention=path)
    network: OmniTokenizer | OmniAutoencoder = (
        OmniAutoencoder(config)
        if isinstance(config, OmniAutoencoderConfig)
        else OmniTokenizer(config)
    )
    generator = torch.Generator().manual_seed(2)
    weights = upstream_state(network)
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            weights[name] = tensor + (noise.abs() if "running_var" in name else 0.2 * noise)
    return weights
