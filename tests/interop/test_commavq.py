"""commaVQ's codec: weights under its names give its ids and frames; other files are refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worldgen.cli import main
from worldgen.errors import CheckpointError, ConfigError
from worldgen.interop.commavq import import_commavq
from worldgen.tokenizers.visual import load_visual_tokenizer

# Of the published codec: 128, (1, 1, 2, 2, 4), 2, 256, 1024.
WIDTHS, BLOCKS, LATENT, CODES = (32, 32, 64, 64, 64), 1, 8, 24
CODEBOOK = "quantize._embedding.weight"


class Weights(dict[str, Tensor]):
    """Random weights under upstream's names."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, name: str, *shape: int, scale: float, shift: float = 0.0) -> None:
        self[name] = shift + scale * torch.randn(*shape, generator=self.generator)

    def convolution(self, name: str, inputs: int, outputs: int, side: int) -> None:
        scale = (inputs * side**2) ** -0.5
        self.draw(f"{name}.weight", outputs, inputs, side, side, scale=scale)
        self.draw(f"{name}.bias", outputs, scale=0.1)

    def norm(self, name: str, width: int) -> None:
        self.draw(f"{name}.weight", width, scale=0.1, shift=1.0)
        self.draw(f"{name}.bias", width, scale=0.1)

    def residual(self, name: str, inputs: int, outputs: int) -> None:
        self.norm(f"{name}.norm1", inputs)
        self.convolution(f"{name}.conv1", inputs, outputs, 3)
        self.norm(f"{name}.norm2", outputs)
        self.convolution(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            self.convolution(f"{name}.nin_shortcut", inputs, outputs, 1)

    def attention(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.convolution(f"{name}.{part}", width, width, 1)

    def middle(self, width: int) -> None:
        self.residual("mid.block_1", width, width)
        self.attention("mid.attn_1", width)
        self.residual("mid.block_2", width, width)

    def level(self, name: str, inputs: int, level: int, blocks: int) -> None:
        for block in range(blocks):
            self.residual(
                f"{name}.block.{block}", inputs if block == 0 else WIDTHS[level], WIDTHS[level]
            )
            if level == 4:
                self.attention(f"{name}.attn.{block}", WIDTHS[level])


def codebook() -> Tensor:
    return torch.randn(CODES, LATENT, generator=torch.Generator().manual_seed(9))


def encoder_weights() -> Weights:
    weights = Weights(1)
    weights.convolution("conv_in", 3, WIDTHS[0], 3)
    width = WIDTHS[0]
    for level in range(5):
        weights.level(f"down.{level}", width, level, BLOCKS)
        width = WIDTHS[level]
        if level < 4:
            weights.convolution(f"down.{level}.downsample.conv", width, width, 3)
    weights.middle(width)
    weights.norm("norm_out", width)
    weights.convolution("conv_out", width, LATENT, 3)
    weights.convolution("quant_conv", LATENT, LATENT, 1)
    weights[CODEBOOK] = codebook()
    return weights


def decoder_weights() -> Weights:
    weights = Weights(2)
    width = WIDTHS[4]
    weights.convolution("post_quant_conv", LATENT, LATENT, 1)
    weights.convolution("conv_in", LATENT, width, 3)
    weights.middle(width)
    for level in reversed(range(5)):
        weights.level(f"up.{level}", width, level, BLOCKS + 1)
        width = WIDTHS[level]
        if level:
            weights.convolution(f"up.{level}.upsample.conv", width, width, 3)
    weights.norm("norm_out", width)
    weights.convolution("conv_out", width, 3, 3)
    weights[CODEBOOK] = codebook()
    return weights


# The codec once more, as plain functions of weights under upstream's names.


def convolve(weights: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel = weights[f"{name}.weight"]
    padding = kernel.shape[-1] // 2 if stride == 1 else 0
    return F.conv2d(x, kernel, weights[f"{name}.bias"], stride=stride, padding=padding)


def normalise(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def residual(weights: Weights, name: str, x: Tensor) -> Tensor:
    h = convolve(weights, f"{name}.conv1", F.silu(normalise(weights, f"{name}.norm1", x)))
    h = convolve(weights, f"{name}.conv2", F.silu(normalise(weights, f"{name}.norm2", h)))
    shortcut = f"{name}.nin_shortcut"
    return h + (convolve(weights, shortcut, x) if f"{shortcut}.weight" in weights else x)


def attend(weights: Weights, name: str, x: Tensor) -> Tensor:
    normed = normalise(weights, f"{name}.norm", x)
    q, k, v = (convolve(weights, f"{name}.{part}", normed).flatten(2) for part in "qkv")
    shares = (q.mT @ k * x.shape[1] ** -0.5).softmax(-1)
    return x + convolve(weights, f"{name}.proj_out", (v @ shares.mT).view_as(x))


def middle_and_level(weights: Weights, name: str, x: Tensor, level: int, blocks: int) -> Tensor:
    for block in range(blocks):
        x = residual(weights, f"{name}.block.{block}", x)
        if level == 4:
            x = attend(weights, f"{name}.attn.{block}", x)
    return x


def middle(weights: Weights, x: Tensor) -> Tensor:
    x = attend(weights, "mid.attn_1", residual(weights, "mid.block_1", x))
    return residual(weights, "mid.block_2", x)


def plain_encode(weights: Weights, levels: Tensor) -> Tensor:
    """Return ids of frames with levels from 0 to 255."""
    h = convolve(weights, "conv_in", levels)
    for level in range(5):
        h = middle_and_level(weights, f"down.{level}", h, level, BLOCKS)
        if level < 4:
            h = convolve(weights, f"down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    h = convolve(weights, "conv_out", F.silu(normalise(weights, "norm_out", middle(weights, h))))
    latents = convolve(weights, "quant_conv", h).movedim(1, -1)
    return torch.cdist(latents.flatten(0, 2), weights[CODEBOOK]).argmin(-1).view(latents.shape[:3])


def plain_decode(weights: Weights, ids: Tensor) -> Tensor:
    """Return frames with levels, not clamped to 0 to 255."""
    h = convolve(weights, "post_quant_conv", weights[CODEBOOK][ids].movedim(-1, 1))
    h = middle(weights, convolve(weights, "conv_in", h))
    for level in reversed(range(5)):
        h = middle_and_level(weights, f"up.{level}", h, level, BLOCKS + 1)
        if level:
            doubled = h.repeat_interleave(2, -1).repeat_interleave(2, -2)
            h = convolve(weights, f"up.{level}.upsample.conv", doubled)
    h = convolve(weights, "conv_out", F.silu(normalise(weights, "norm_out", h)))
    return (h + 1) / 2 * 255


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    decoder, encoder = (tmp_path / f"{name}_pytorch_model.bin" for name in ("decoder", "encoder"))
    torch.save(dict(decoder_weights()), decoder)
    torch.save(dict(encoder_weights()), encoder)
    return decoder, encoder


def test_the_codec_gives_upstreams_ids_and_frames(files: tuple[Path, Path]) -> None:
    tokenizer = import_commavq(*files)
    assert (tokenizer.rows, tokenizer.columns, tokenizer.codebook_size) == (8, 16, CODES)
    levels = torch.rand(1, 3, 128, 256, generator=torch.Generator().manual_seed(0)) * 255
    ids = tokenizer.encode(levels[:, None] / 127.5 - 1)[:, 0]
    assert torch.equal(ids, plain_encode(encoder_weights(), levels))
    assert len(ids.unique()) > 3
    frames = (tokenizer.decode(ids[:, None])[:, 0] + 1) / 2 * 255
    expected = plain_decode(decoder_weights(), ids).clamp(0, 255)
    torch.testing.assert_close(frames, expected, rtol=0, atol=0.05)


def test_a_decoder_alone_shows_ids_and_says_that_it_makes_none(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "commavq"
    assert main(["import", "commavq", "--decoder", str(files[0]), "--out", str(out)]) == 0
    assert "only shows ids" in capsys.readouterr().out
    tokenizer = load_visual_tokenizer(out / "tokenizer.safetensors")
    ids = torch.arange(128).view(1, 1, 8, 16) % CODES
    assert torch.equal(tokenizer.decode(ids), import_commavq(*files).decode(ids))
    with pytest.raises(ConfigError, match="has no encoder"):
        tokenizer.encode(torch.zeros(1, 1, 3, 128, 256))


def test_both_files_become_a_folder(files: tuple[Path, Path], tmp_path: Path) -> None:
    decoder, encoder = map(str, files)
    words = ["import", "commavq", "--decoder", decoder, "--encoder", encoder]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    tokenizer = load_visual_tokenizer(tmp_path / "out" / "tokenizer.safetensors")
    frames = torch.zeros(1, 1, 3, 128, 256)
    assert torch.equal(tokenizer.encode(frames), import_commavq(*files).encode(frames))
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "decoder_pytorch_model.bin" in readme
    assert "encoder_sha256" in readme


def test_files_that_changed_places_are_told_apart(files: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="holds no decoder of commaVQ"):
        import_commavq(files[1])
    with pytest.raises(CheckpointError, match="holds no encoder of commaVQ"):
        import_commavq(files[0], files[0])


def test_half_a_file_and_names_too_many_are_told(tmp_path: Path) -> None:
    weights = decoder_weights()
    del weights["up.3.block.1.norm2.bias"]
    weights["extra.weight"] = torch.ones(1)
    weights["mid.attn_1.k.bias"] = torch.ones(7)
    torch.save(dict(weights), tmp_path / "a.bin")
    with pytest.raises(CheckpointError) as caught:
        import_commavq(tmp_path / "a.bin")
    message = str(caught.value)
    assert "missing up.3.block.1.norm2.bias," in message
    assert "unexpected extra.weight," in message
    assert "wrong shape mid.attn_1.k.bias (7,) instead of (64,)" in message
    torch.save({n: w for n, w in weights.items() if not n.startswith("up.2")}, tmp_path / "b.bin")
    with pytest.raises(CheckpointError, match=r"lacks the weights of up\.2"):
        import_commavq(tmp_path / "b.bin")


def test_parts_of_two_codecs_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    weights = encoder_weights()
    weights[CODEBOOK] = weights[CODEBOOK] + 1
    torch.save(dict(weights), tmp_path / "other.bin")
    with pytest.raises(CheckpointError, match="different codebooks"):
        import_commavq(files[0], tmp_path / "other.bin")


def test_a_pickle_with_code_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"w": torch.ones(1), "hidden": print}, tmp_path / "a.bin")
    out = tmp_path / "out"
    assert main(["import", "commavq", "--decoder", str(tmp_path / "a.bin"), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert "could run code" in message
    assert message.count("\n") == 1
    assert not out.exists()
