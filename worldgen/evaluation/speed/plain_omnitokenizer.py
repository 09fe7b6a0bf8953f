"""OmniTokenizer read plainly: the same network step by step, the way upstream runs it.

Written from the description of the design, apart from the library's own blocks: it is what they
are held against, for numbers in tests and for time and memory in `worldgen bench tokenizer`. A
whole clip at a time, in float32, with permuted copies, three-dimensional convolutions and the
full matrix of distances between vectors and codes.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from worldgen.interop.omnitokenizer import AttentionPath, TemporalMode

__all__ = ["PlainOmniTokenizer"]

Video = Float[Tensor, "batch rgb time height width"]
Volume = Float[Tensor, "batch width time row column"]


class PlainOmniTokenizer:
    """Encoder, bottleneck and decoder as functions of upstream's tensors.

    Source: Wang et al. 2024, OmniTokenizer (arXiv:2406.09399), section 3.

    Args:
        tensors: Upstream's state by upstream's names.
        arguments: Upstream's, complete, as `worldgen.interop.omnitokenizer` has them.
        mode: Order in which temporal stacks read memory for their convolution.
        attention: Whether positions are added to the scores.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        arguments: Mapping[str, Any],
        *,
        mode: TemporalMode = "upstream",
        attention: AttentionPath = "sdpa",
    ) -> None:
        self.tensors, self.arguments = tensors, arguments
        self.scrambled = mode == "upstream"
        self.biased = attention == "einsum_bias"
        linear = arguments["patch_embed"] == "linear"
        self.halved_space = linear and arguments["defer_spatial_pool"]
        self.halved_time = linear and arguments["defer_temporal_pool"]
        self.side = arguments["patch_size"] // (2 if self.halved_space else 1)
        self.time = arguments["temporal_patch_size"] // (2 if self.halved_time else 1)

    def encode(self, video: Video) -> Int[Tensor, "batch time row column"]:
        """Return ids of a clip in [-0.5, 0.5]."""
        vectors = self.latents(video)
        if self.arguments["l2_code"]:
            vectors = F.normalize(vectors, dim=1)
        flat = rearrange(vectors, "b width t r c -> (b t r c) width")
        codes = self.tensors["codebook.embeddings"]
        distances = (
            flat.square().sum(1, keepdim=True) - 2 * flat @ codes.T + codes.square().sum(1)[None]
        )
        ids = distances.argmin(1)
        # Upstream counts the use of codes in every pass, by way of a table of ones and zeros.
        F.one_hot(ids, len(codes)).to(flat.dtype).mean(0)
        b, _, t, r, c = vectors.shape
        return ids.reshape(b, t, r, c)

    def decode(self, ids: Int[Tensor, "batch time row column"]) -> Video:
        """Return a clip, meant for [-0.5, 0.5] and not clamped."""
        codes = F.embedding(ids, self.tensors["codebook.embeddings"])
        return self.frames(rearrange(codes, "b t r c width -> b width t r c"))

    def latents(self, video: Video) -> Volume:
        """Return what goes into the bottleneck."""
        tokens = self._patches(video[:, :, :1], "_first_frame", 1)
        if video.shape[2] > 1:
            tokens = torch.cat((tokens, self._patches(video[:, :, 1:], "", self.time)), dim=1)
        b, t, r, c, _ = tokens.shape
        flat = rearrange(tokens, "b t r c width -> (b t) (r c) width")
        blocks = self.arguments["enc_block"]
        flat = self._stack("encoder.enc_spatial_transformer", blocks, flat, (b, t, r, c), True)
        factor = 2 ** sum(letter in "aml" for letter in blocks)
        r, c = r // factor, c // factor
        flat = rearrange(flat, "(b t) (r c) width -> (b r c) t width", b=b, r=r)
        blocks = "t" * self.arguments["temporal_depth"]
        flat = self._stack("encoder.enc_temporal_transformer", blocks, flat, (b, t, r, c), False)
        volume = rearrange(flat, "(b r c) t width -> b width t r c", b=b, r=r)
        if self.halved_space:
            volume = F.avg_pool3d(volume, (1, 2, 2))
        if self.halved_time and t > 1:
            later = F.avg_pool3d(volume[:, :, 1:], (2, 1, 1))
            volume = torch.cat((volume[:, :, :1], later), dim=2)
        return self._project("pre_vq_conv.1", volume)

    def frames(self, codes: Volume) -> Video:
        """Return the clip of vectors out of the bottleneck."""
        volume = self._project("post_vq_conv.1", codes)
        if self.halved_time and volume.shape[2] > 1:
            later = F.interpolate(volume[:, :, 1:], scale_factor=(2, 1, 1), mode="nearest")
            volume = torch.cat((volume[:, :, :1], later), dim=2)
        if self.halved_space:
            volume = F.interpolate(volume, scale_factor=(1, 2, 2), mode="nearest")
        b, _, t, r, c = volume.shape
        flat = rearrange(volume, "b width t r c -> (b r c) t width")
        blocks = "t" * self.arguments["temporal_depth"]
        flat = self._stack("decoder.dec_temporal_transformer", blocks, flat, (b, t, r, c), False)
        flat = rearrange(flat, "(b r c) t width -> (b t) (r c) width", b=b, r=r)
        blocks = self.arguments["dec_block"]
        flat = self._stack("decoder.dec_spatial_transformer", blocks, flat, (b, t, r, c), True)
        tokens = rearrange(flat, "(b t) (r c) width -> b t r c width", b=b, r=r)
        video = self._pixels(tokens[:, :1], "_first_frame", 1)
        if t > 1:
            video = torch.cat((video, self._pixels(tokens[:, 1:], "", self.time)), dim=2)
        return video

    def _linear(self, name: str, value: Tensor) -> Tensor:
        return F.linear(value, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _layer_norm(self, name: str, value: Tensor) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return F.layer_norm(value, value.shape[-1:], weight, bias)

    def _scale_norm(self, name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], self.tensors[f"{name}.gamma"])

    def _batch_norm(self, name: str, value: Tensor) -> Tensor:
        entries = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (self.tensors[f"{name}.{entry}"] for entry in entries)
        return F.batch_norm(value, mean, variance, weight, bias)

    def _project(self, name: str, volume: Volume) -> Volume:
        projected = self._linear(name, rearrange(volume, "b width t r c -> b t r c width"))
        return rearrange(projected, "b t r c width -> b width t r c")

    def _patches(self, video: Video, which: str, time: int) -> Tensor:
        name = f"encoder.to_patch_emb{which}"
        size = (time, self.side, self.side)
        if self.arguments["patch_embed"] == "cnn":
            weight, bias = self.tensors[f"{name}.0.weight"], self.tensors[f"{name}.0.bias"]
            volume = self._batch_norm(f"{name}.1", F.conv3d(video, weight, bias, stride=size))
            return rearrange(volume, "b width t r c -> b t r c width")
        cubes = "b rgb (t q) (r y) (c x) -> b t r c (rgb q y x)"
        patches = rearrange(video, cubes, q=time, y=self.side, x=self.side)
        patches = self._linear(f"{name}.2", self._layer_norm(f"{name}.1", patches))
        return self._layer_norm(f"{name}.3", patches)

    def _pixels(self, tokens: Tensor, which: str, time: int) -> Video:
        name = f"decoder.to_pixels{which}"
        side = self.side * (self.arguments["gen_upscale"] or 1)
        if self.arguments["patch_embed"] == "cnn":
            weight, bias = self.tensors[f"{name}.1.weight"], self.tensors[f"{name}.1.bias"]
            volume = rearrange(tokens, "b t r c width -> b width t r c")
            video = F.conv_transpose3d(volume, weight, bias, stride=(time, side, side))
            return self._batch_norm(f"{name}.2", video)
        cubes = "b t r c (rgb q y x) -> b rgb (t q) (r y) (c x)"
        return rearrange(self._linear(f"{name}.0", tokens), cubes, rgb=3, q=time, y=side, x=side)

    def _stack(
        self,
        name: str,
        blocks: str,
        tokens: Float[Tensor, "sequence token width"],
        shape: tuple[int, int, int, int],
        spatial: bool,
    ) -> Float[Tensor, "sequence token width"]:
        b, t, r, c = shape
        for number, letter in enumerate(blocks):
            block = f"{name}.layers.{number}"
            if letter == "t":
                tokens = tokens + self._convolve(block, tokens, (b, t, r, c), spatial)
                tokens = tokens + self._attend(block, tokens, (r, c), spatial)
            elif letter == "w":
                tokens = tokens + self._attend_in_windows(block, tokens, (r, c))
            else:
                tokens = self._pool(block, letter, tokens, (r, c))
                r, c = r // 2, c // 2
            tokens = tokens + self._feed_forward(block, tokens)
        return self._scale_norm(f"{name}.norm_out", tokens)

    def _convolve(
        self, block: str, tokens: Tensor, shape: tuple[int, int, int, int], spatial: bool
    ) -> Tensor:
        b, t, r, c = shape
        if spatial or self.scrambled:
            # Of temporal stacks the memory lies as (row, column, time), and is read otherwise.
            volume = tokens.reshape(b, t, r, c, -1)
        else:
            volume = rearrange(tokens, "(b r c) t width -> b t r c width", b=b, r=r)
        volume = rearrange(volume, "b t r c width -> b width t r c")
        weight = self.tensors[f"{block}.0.dsconv.weight"]
        time = (2, 0) if self.arguments["causal_in_peg"] else (1, 1)
        volume = F.pad(volume, (1, 1, 1, 1, *time))
        bias = self.tensors[f"{block}.0.dsconv.bias"]
        volume = F.conv3d(volume, weight, bias, groups=len(weight))
        if spatial or self.scrambled:
            return rearrange(volume, "b width t r c -> b t r c width").reshape(tokens.shape)
        return rearrange(volume, "b width t r c -> (b r c) t width")

    def _attend(self, block: str, tokens: Tensor, grid: tuple[int, int], spatial: bool) -> Tensor:
        name = f"{block}.1"
        heads = self.arguments["heads"]
        query = self._linear(f"{name}.to_q", self._scale_norm(f"{name}.norm", tokens))
        key, value = self._linear(f"{name}.to_kv", tokens).chunk(2, dim=-1)
        split = "s token (head width) -> s head token width"
        query, key, value = (rearrange(v, split, head=heads) for v in (query, key, value))
        if spatial and self.arguments["spatial_pos"] == "rope":
            query, key = _rotate(query, grid), _rotate(key, grid)
        query = F.normalize(query, dim=-1) * self.tensors[f"{name}.q_scale"]
        key = F.normalize(key, dim=-1) * self.tensors[f"{name}.k_scale"]
        causal = not spatial and self.arguments["causal_in_temporal_transformer"]
        if self.biased:
            scores = torch.einsum("shiw,shjw->shij", query, key) * 8
            if spatial and self.arguments["spatial_pos"] == "rel":
                scores = scores + self._relative(f"{name}.spatial_rel_pos_bias", grid)
            if causal:
                count = tokens.shape[1]
                place = torch.arange(count, device=tokens.device)
                distance = (place[:, None] - place[None]).abs()
                slopes = torch.tensor(_slopes(heads), device=tokens.device)
                scores = scores - slopes[:, None, None] * distance
                later = torch.ones(count, count, dtype=torch.bool, device=tokens.device).triu(1)
                scores = scores.masked_fill(later, -torch.finfo(scores.dtype).max)
            mixed = torch.einsum("shij,shjw->shiw", scores.softmax(-1), value)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=8)
        return self._linear(
            f"{name}.to_out", rearrange(mixed, "s head n width -> s n (head width)")
        )

    def _relative(self, name: str, grid: tuple[int, int]) -> Float[Tensor, "head query key"]:
        weight = self.tensors[f"{name}.net.2.weight"]
        places = _places(grid, weight)
        distance = places[:, None] - places[None]
        hidden = distance.sign() * torch.log(distance.abs() + 1)
        for layer in (0, 1):
            hidden = F.leaky_relu(self._linear(f"{name}.net.{layer}.0", hidden), 0.1)
        return rearrange(self._linear(f"{name}.net.2", hidden), "i j head -> head i j")

    def _attend_in_windows(self, block: str, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        name, (r, c) = f"{block}.1", grid
        heads, side = self.arguments["heads"], self.arguments["twod_window_size"]
        normed = self._scale_norm(f"{name}.norm", tokens)
        cut = "s (y r x c) width -> (s y x) (r c) width"
        sizes = {"r": side, "c": side, "x": c // side}
        windows = self._linear(f"{name}.qkv", rearrange(normed, cut, **sizes))
        query, key, value = rearrange(
            windows, "s n (part head width) -> part s head n width", part=3, head=heads
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        places = _places((side, side), tokens).long()
        distance = places[:, None] - places[None] + side - 1
        index = distance[..., 0] * (2 * side - 1) + distance[..., 1]
        bias = self.tensors[f"{name}.relative_position_bias_table"][index]
        scores = scores + rearrange(bias, "i j head -> head i j")
        mixed = rearrange(scores.softmax(-1) @ value, "s head n width -> s n (head width)")
        mixed = self._linear(f"{name}.proj", mixed)
        back = "(s y x) (r c) width -> s (y r x c) width"
        return rearrange(mixed, back, y=r // side, **sizes)

    def _pool(self, block: str, letter: str, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if letter == "l":
            strips = rearrange(tokens, "s (strip four) width -> s strip (four width)", four=4)
            return self._linear(f"{block}.1.pool", strips)
        images = rearrange(tokens, "s (r c) width -> s width r c", r=grid[0])
        pooled = F.avg_pool2d(images, 2) if letter == "a" else F.max_pool2d(images, 2)
        return rearrange(pooled, "s width r c -> s (r c) width")

    def _feed_forward(self, block: str, tokens: Tensor) -> Tensor:
        inner = self._linear(f"{block}.3.1", self._layer_norm(f"{block}.3.0", tokens))
        value, gate = inner.chunk(2, dim=-1)
        return self._linear(f"{block}.3.4", F.gelu(gate) * value)


def _places(grid: tuple[int, int], like: Tensor) -> Float[Tensor, "token 2"]:
    axes = [torch.arange(size, device=like.device, dtype=like.dtype) for size in grid]
    return torch.cartesian_prod(*axes).reshape(-1, 2)


def _rotate(vectors: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn channel pairs as complex numbers, by the column and by the row in turn."""
    width = vectors.shape[-1]
    frequencies = 10000.0 ** (-torch.arange(0, width, 4, device=vectors.device) / width)
    row, column = _places(grid, vectors).unbind(-1)
    angles = torch.stack((torch.outer(column, frequencies), torch.outer(row, frequencies)), dim=-1)
    turns = torch.polar(torch.ones_like(angles), angles).flatten(1)
    pairs = torch.view_as_complex(
        rearrange(vectors, "... (pair two) -> ... pair two", two=2).contiguous()
    )
    return torch.view_as_real(pairs * turns).flatten(-2)


def _slopes(heads: int) -> list[float]:
    lower = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (number + 1) / lower) for number in range(lower)]
    between = [2 ** (-8 * (number + 1) / (2 * lower)) for number in range(0, 2 * lower, 2)]
    return slopes + between[: heads - lower]
