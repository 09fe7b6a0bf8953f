"""Numbers of reference cases, computed by imported tokenizers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import isqrt
from typing import Literal

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tests.reference_cases import Case
from worldgen.interop.files import ForeignState
from worldgen.interop.omnitokenizer import (
    AttentionPath,
    ImportedOmniTokenizer,
    TemporalMode,
    import_omnitokenizer,
    to_our_layout,
    upstream_name,
)
from worldgen.interop.omnitokenizer_discriminators import (
    discriminator_config,
    discriminator_state,
)
from worldgen.tokenizers.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from worldgen.tokenizers.losses.discriminators import DiscriminatorOutput, PatchDiscriminator
from worldgen.tokenizers.quantizers import code_usage
from worldgen.tokenizers.visual import OmniAutoencoder, OmniTokenizer

# Upstream's pixels lie in [-0.5, 0.5], the library's in [-1, 1]; doubling is exact.
_RANGE = 2.0

# The tolerance that the reference numbers are published with.
_TOLERANCE = 2e-5


def load(case: Case, path: AttentionPath, mode: TemporalMode = "upstream") -> ImportedOmniTokenizer:
    return import_omnitokenizer(
        load_file(case.weights), case.config["args"], case.weights, mode=mode, attention=path
    )


def clips(case: Case) -> dict[str, Tensor]:
    """Frames by the name of the input, as the library has them."""
    return {
        name: _RANGE * (tensor[:, None] if tensor.ndim == 4 else to_time_first(tensor))
        for name, tensor in case.inputs.items()
        if "." not in name and tensor.is_floating_point()
    }


def to_time_first(tensor: Tensor) -> Tensor:
    return rearrange(tensor, "b c t h w -> b t c h w")


def to_channels_first(volume: Tensor) -> Tensor:
    return rearrange(volume, "b t r c width -> b width t r c")


def pixels(frames: Tensor, like: Tensor) -> Tensor:
    """Frames as upstream has them: an image without time, in [-0.5, 0.5]."""
    frames = frames / _RANGE
    return frames[:, 0] if like.ndim == 4 else rearrange(frames, "b t c h w -> b c t h w")


def compare(computed: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Every number that upstream computed, and none left out."""
    assert sorted(expected.keys() - computed.keys()) == []
    for name, theirs in expected.items():
        ours = computed[name]
        assert ours.shape == theirs.shape, name
        if theirs.is_floating_point():
            torch.testing.assert_close(
                ours.detach(),
                theirs,
                rtol=_TOLERANCE,
                atol=_TOLERANCE,
                msg=partial("{}: {}".format, name),
            )
        else:
            assert torch.equal(ours, theirs), name


@torch.no_grad()
def infer(case: Case, network: OmniTokenizer | OmniAutoencoder) -> dict[str, Tensor]:
    if isinstance(network, OmniAutoencoder):
        return infer_continuous(case, network)
    numbers: dict[str, Tensor] = {}
    for name, clip in clips(case).items():
        with tapped(network) as taps:
            latents = network.encoder(clip)
            unit = network.quantizer.normalise == "vectors"
            z = F.normalize(latents, dim=-1) if unit else latents
            ids = network.encode(clip)
            codes = network.quantizer.ids_to_vectors(rearrange(ids, "b t r c -> (b t) r c"))
            quantized = rearrange(codes, "(b t) width r c -> b t r c width", b=len(clip))
            decoded = network.decoder(quantized)
        torch.testing.assert_close(network.decode(ids), decoded.clamp(-1, 1))
        numbers |= {
            f"{name}.pre_quant": to_channels_first(latents),
            f"{name}.z": to_channels_first(z),
            f"{name}.ids": ids,
            f"{name}.quantized": to_channels_first(quantized),
            f"{name}.recon": pixels(decoded, case.inputs[name]),
            **{f"{name}.tap.{part}": tensor for part, tensor in taps.items()},
        }
    for name, ids in case.inputs.items():
        if not name.startswith("decode_"):
            continue
        image = name.startswith("decode_image")
        if ids.ndim == 2:
            side = case.config["args"]["resolution"] // case.config["args"]["patch_size"]
            side = isqrt(ids.shape[1]) if image else side
            ids = rearrange(ids, "b (t r c) -> b t r c", r=side, c=side)
        codes = network.quantizer.ids_to_vectors(rearrange(ids, "b t r c -> (b t) r c"))
        decoded = network.decoder(rearrange(codes, "(b t) width r c -> b t r c width", b=len(ids)))
        numbers[f"{name}.recon"] = pixels(decoded, decoded[:, 0] if image else decoded)
    return numbers


def infer_continuous(case: Case, network: OmniAutoencoder) -> dict[str, Tensor]:
    numbers: dict[str, Tensor] = {}
    for name, clip in clips(case).items():
        with tapped(network) as taps:
            latents = network.encode(clip)
            decoded = network.decode(latents.mean)
        noise = rearrange(case.inputs[f"{name}.eps"], "b width t r c -> b t r c width")
        sample = latents.draw(noise)
        numbers |= {
            f"{name}.moments": to_channels_first(network.encoder(clip)),
            f"{name}.mean": to_channels_first(latents.mean),
            f"{name}.logvar": to_channels_first(latents.log_variance),
            f"{name}.sample": to_channels_first(sample),
            f"{name}.kl_sum_over_batch": latents.divergence(),
            f"{name}.recon_from_mean": pixels(decoded, case.inputs[name]),
            f"{name}.recon_from_sample": pixels(network.decode(sample), case.inputs[name]),
            **{f"{name}.tap.{part}": tensor for part, tensor in taps.items()},
        }
    return numbers


@contextmanager
def tapped(network: OmniTokenizer | OmniAutoencoder) -> Iterator[dict[str, Tensor]]:
    """What the stages give the first time they run, in upstream's layout."""
    frames, places = "b t r c width -> (b t) (r c) width", "b t r c width -> (b r c) t width"
    stages = {
        "patch_first": (network.encoder.first_frame, "b t r c width -> b t r c width"),
        "patch_rest": (network.encoder.later_frames, "b t r c width -> b t r c width"),
        "enc_spatial": (network.encoder.spatial, frames),
        "enc_temporal": (network.encoder.temporal, places),
        "dec_temporal": (network.decoder.temporal, places),
        "dec_spatial": (network.decoder.spatial, frames),
    }
    taps: dict[str, Tensor] = {}

    def tap(name: str, layout: str, volume: Tensor) -> None:
        taps.setdefault(name, rearrange(volume, layout))

    hooks = [
        stage.register_forward_hook(
            lambda module, inputs, volume, name=name, layout=layout: tap(name, layout, volume)
        )
        for name, (stage, layout) in stages.items()
    ]
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()


def train(case: Case, path: AttentionPath) -> dict[str, Tensor]:
    numbers: dict[str, Tensor] = {}
    for name, clip in clips(case).items():
        numbers |= {
            f"{name}.{quantity}": tensor
            for quantity, tensor in step(case, path, name, clip).items()
        }
    return numbers


def step(case: Case, path: AttentionPath, name: str, clip: Tensor) -> dict[str, Tensor]:
    """One pass over a batch, from the stored weights, for the autoencoder and its adversaries."""
    network = load(case, path).network.train().requires_grad_(True)
    outputs = case.outputs
    arguments = case.config["args"]
    numbers: dict[str, Tensor] = {}
    if isinstance(network, OmniAutoencoder):
        latents = network.encode(clip)
        noise = rearrange(case.inputs[f"{name}.eps"], "b width t r c -> b t r c width")
        rebuilt = network.decode(latents.draw(noise))
        bottleneck = arguments["kl_weight"] * latents.divergence()
    else:
        output = network(clip)
        rebuilt, bottleneck = output.reconstruction, output.quantizer_loss
        numbers |= codebook_numbers(network, output.ids)
    frames, rebuilt = clip / _RANGE, rebuilt / _RANGE
    numbers["g.recon"] = pixels(rebuilt * _RANGE, case.inputs[name])
    if frames.shape != rebuilt.shape:
        factor = arguments["gen_upscale"]
        larger = F.interpolate(
            frames[:, 0], scale_factor=factor, mode="bilinear", align_corners=True
        )
        frames = larger[:, None]

    judged = {"image": judge(case, 2, chosen(case, name, frames), chosen(case, name, rebuilt))}
    if frames.shape[1] > 1:
        judged["video"] = judge(case, 3, frames, rebuilt)
    started = float(case.config.get("global_step", 0) >= arguments["discriminator_iter_start"])
    zero = torch.zeros(())
    adversarial, matching, adversaries = zero, zero, zero
    for kind in ("image", "video"):
        weight = arguments[f"{kind}_gan_weight"]
        if kind not in judged:
            numbers |= {f"d.d_{kind}_loss": zero, f"d.logits_{kind}_real": zero}
            numbers |= {f"d.logits_{kind}_fake": zero, f"g.g_{kind}_loss": zero}
            numbers |= {f"g.{kind}_gan_feat_loss": zero}
            continue
        _, real, fake = judged[kind]
        own = generator_loss(fake.logits)
        features = feature_matching_loss(real, fake) if weight > 0 else zero
        loss = discriminator_loss(real.logits, fake.logits, arguments["disc_loss_type"])
        adversarial = adversarial + weight * own
        matching = matching + features
        adversaries = adversaries + weight * loss
        numbers |= {
            f"g.g_{kind}_loss": own,
            f"g.{kind}_gan_feat_loss": features,
            f"d.d_{kind}_loss": loss,
            f"d.logits_{kind}_real": real.logits.mean(),
            f"d.logits_{kind}_fake": fake.logits.mean(),
        }
    recon_loss = arguments["l1_weight"] * F.l1_loss(rebuilt, frames)
    matching = started * arguments["gan_feat_weight"] * matching
    total = recon_loss + bottleneck + started * adversarial + matching
    numbers |= {
        "g.recon_loss": recon_loss,
        "g.commitment_or_kl_loss": bottleneck,
        "g.aeloss": started * adversarial,
        "g.gan_feat_loss": matching,
        "g.total_loss": total,
        "d.discloss": started * adversaries,
    }

    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(
        total, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    used = {
        own: gradient
        for own, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    }
    numbers["g.grad_norm"] = torch.stack([gradient.norm() for gradient in used.values()]).norm()
    for parameter, gradient in used.items():
        theirs = f"g.grad.{upstream_name(parameter, network.config)}"
        if f"{name}.{theirs}" in outputs:
            expected = outputs[f"{name}.{theirs}"]
            # Compared in our layout, then reported in theirs.
            expected_here = to_our_layout(parameter, expected, network.config)
            compare({theirs: gradient}, {theirs: expected_here})
            numbers[theirs] = expected

    # Noise of amplitude zero has a gradient of its own, which is random: left out.
    weights = [
        weight
        for adversary, _, _ in judged.values()
        for parameter, weight in adversary.named_parameters()
        if not parameter.startswith("noise.")
    ]
    judging = torch.autograd.grad(started * adversaries, weights)
    numbers["d.grad_norm"] = torch.stack([gradient.norm() for gradient in judging]).norm()

    dimensions: Literal[2, 3] = 2 if outputs[f"{name}.disc_eval.logits"].ndim == 4 else 3
    with torch.no_grad():
        calm = discriminator(case, dimensions).eval()(clip / _RANGE)
    numbers["disc_eval.logits"] = calm.logits
    for index, feature in enumerate(calm.features):
        numbers[f"disc_eval.feature{index}_mean_abs"] = feature.abs().mean()
    return numbers


def codebook_numbers(network: OmniTokenizer, ids: Tensor) -> dict[str, Tensor]:
    share = torch.bincount(ids.flatten(), minlength=network.codebook_size) / ids.numel()
    quantizer = network.quantizer.state_dict()
    return {
        "g.ids": ids,
        "g.perplexity": torch.tensor(code_usage(ids, network.codebook_size).perplexity),
        # Codes used more than on average.
        "g.usage": (share > 1 / network.codebook_size).float().mean(),
        "g.after.codebook.N": quantizer["code_uses"],
        "g.after.codebook.z_avg": quantizer["code_sums"],
        "g.after.codebook.embeddings": quantizer["codebook"],
        # Upstream's running mean begins with the first batch.
        "g.after.codebook.codebook_usage": share,
    }


def chosen(case: Case, name: str, frames: Tensor) -> Tensor:
    """The frames of each clip that the image discriminator sees."""
    if frames.shape[1] == 1 or case.config["args"].get("apply_allframes"):
        return frames
    return frames[torch.arange(len(frames)), case.inputs[f"{name}.frame_idx"]][:, None]


def judge(
    case: Case, dimensions: Literal[2, 3], frames: Tensor, rebuilt: Tensor
) -> tuple[PatchDiscriminator, DiscriminatorOutput, DiscriminatorOutput]:
    network = discriminator(case, dimensions)
    return network, network(frames), network(rebuilt)


def discriminator(case: Case, dimensions: Literal[2, 3]) -> PatchDiscriminator:
    prefix = {2: "image_discriminator.", 3: "video_discriminator."}[dimensions]
    config = discriminator_config(case.config["args"], dimensions)
    state = ForeignState(load_file(case.weights), case.folder)
    network = PatchDiscriminator(config)
    network.load_state_dict(discriminator_state(state, prefix, config))
    return network
