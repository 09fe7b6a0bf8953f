"""The figures of a tokenizer against plain computations of them, and what bad input comes to."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import save_file

from tests.factories import tiny_tokenizer_config, tiny_world
from worldgen.cli import main
from worldgen.data.media import MediaFolder
from worldgen.data.video import write_video
from worldgen.errors import CheckpointError, ConfigError, DataError, WorldgenError
from worldgen.evaluation.frechet import Moments, RandomFeatures, frechet_distance
from worldgen.evaluation.pages.report import without_pictures
from worldgen.evaluation.tokenizers.examples import Example, Examples
from worldgen.evaluation.tokenizers.media_clips import ClipPlan, spread
from worldgen.evaluation.tokenizers.tokenizer import (
    TokenizerProtocol,
    evaluate_tokenizer,
    find_tokenizer,
)
from worldgen.evaluation.tokenizers.tokenizer_report import render_tokenizer_report
from worldgen.evaluation.tokenizers.tokenizer_tally import CodeCounts
from worldgen.nn.image_quality import psnr, ssim
from worldgen.nn.space_time import SpaceTimeConfig
from worldgen.records import to_float, to_uint8
from worldgen.tokenizers.losses.perceptual import Lpips
from worldgen.tokenizers.quantizers import FSQConfig, code_usage
from worldgen.tokenizers.visual import (
    OmniTokenizerConfig,
    VisualTokenizer,
    VisualTokenizerConfig,
    build_visual_tokenizer,
    save_visual_tokenizer,
)

SIDE = 16


def frame_tokenizer_config() -> VisualTokenizerConfig:
    return dataclasses.replace(tiny_tokenizer_config(), frame_height=SIDE, frame_width=SIDE)


def joint_tokenizer_config(**changes: Any) -> OmniTokenizerConfig:
    """Return a causal tokenizer of four frames a grid, 16 x 16 pixels to 2 x 2 tokens."""
    stack = SpaceTimeConfig(
        width=16,
        num_heads=2,
        head_width=8,
        feed_forward_width=16,
        spatial_blocks="tw",
        temporal_depth=1,
        window=2,
        temporal_window=2,
    )
    stack = dataclasses.replace(stack, **changes)
    return OmniTokenizerConfig(
        frame_height=SIDE,
        frame_width=SIDE,
        patch=8,
        frames_per_latent=4,
        encoder=stack,
        decoder=stack,
        quantizer=FSQConfig(levels=(4, 4, 4)),
    )


def write_tokenizer(path: Path, config: VisualTokenizerConfig) -> tuple[VisualTokenizer, Path]:
    """Write a tokenizer with random weights, the same ones each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_visual_tokenizer(config).eval().requires_grad_(False)
    save_visual_tokenizer(path, tokenizer)
    return tokenizer, path


def moving(length: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Return smooth frames that scroll, uint8 [length, side, side, 3]."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (side // 4, (side + length) // 4 + 1, 3), np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((coarse.shape[1] * 4, side)))
    return np.stack([scene[:, shift : shift + side] for shift in range(length)])


def write_images(folder: Path, count: int) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = np.stack([moving(1, seed=100 + number)[0] for number in range(count)])
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
    return pictures


def write_clip(path: Path, frames: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, 10.0, lossless=True)
    return frames


def rebuilt(tokenizer: VisualTokenizer, clips: torch.Tensor) -> torch.Tensor:
    """Return what the tokenizer makes of clips, rounded as a viewer sees it."""
    return to_float(to_uint8(tokenizer.decode(tokenizer.encode(clips))))


@pytest.fixture
def joint(tmp_path: Path) -> tuple[VisualTokenizer, Path]:
    return write_tokenizer(tmp_path / "joint" / "tokenizer.safetensors", joint_tokenizer_config())


@pytest.fixture
def single(tmp_path: Path) -> tuple[VisualTokenizer, Path]:
    return write_tokenizer(tmp_path / "single" / "tokenizer.safetensors", frame_tokenizer_config())


def test_images_get_the_figures_that_each_alone_has(
    joint: tuple[VisualTokenizer, Path], tmp_path: Path
) -> None:
    tokenizer, path = joint
    truth = to_float(torch.from_numpy(write_images(tmp_path / "data", 21)))
    result = evaluate_tokenizer(path, TokenizerProtocol(data=tmp_path / "data"))
    made = rebuilt(tokenizer, truth[:, None])[:, 0]
    figures = result["images"]
    assert result["videos"] is result["video_frames_alone"] is None
    assert figures["frames"] == 21
    assert figures["psnr_db"] == pytest.approx(float(psnr(made, truth).mean()), rel=1e-6)
    assert figures["ssim"] == pytest.approx(float(ssim(made, truth).mean()), rel=1e-5)
    error = (made - truth).square().mean()
    assert figures["psnr_db_of_mean_error"] == pytest.approx(
        float(10 * torch.log10(4.0 / error)), rel=1e-5
    )
    ids = tokenizer.encode(truth[:, None])
    usage = code_usage(ids, 64)
    assert figures["codes"]["used"] == usage.used
    assert figures["codes"]["perplexity"] == pytest.approx(usage.perplexity)
    assert figures["codes"]["tokens_counted"] == ids.numel() == 21 * 4
    rate = figures["rate"]
    assert rate["tokens_per_frame"] == 4
    assert rate["bits_per_frame"] == 24
    assert rate["bits_per_pixel"] == 24 / SIDE**2
    assert rate["entropy_bits_per_pixel"] == pytest.approx(
        4 * math.log2(usage.perplexity) / SIDE**2
    )
    moments = Moments(), Moments()
    for tally, pictures in zip(moments, (truth, made), strict=True):
        tally.add(RandomFeatures()(pictures))
    assert figures["frechet_own_features"] == pytest.approx(frechet_distance(*moments), rel=1e-4)


def test_clips_get_the_figures_of_their_frames_and_changes_by_place(
    joint: tuple[VisualTokenizer, Path], tmp_path: Path
) -> None:
    tokenizer, path = joint
    frames = write_clip(tmp_path / "data" / "a.mp4", moving(22))
    result = evaluate_tokenizer(path, TokenizerProtocol(data=tmp_path / "data", num_frames=9))
    truth = rearrange(to_float(torch.from_numpy(frames[:18])), "(clip t) ... -> clip t ...", t=9)
    made = rebuilt(tokenizer, truth)
    quality = psnr(made, truth)
    changes = psnr(made[:, 1:] - made[:, :-1], truth[:, 1:] - truth[:, :-1])
    figures = result["videos"]
    assert (figures["clips"], figures["frames"], figures["clips_cut_short"]) == (2, 18, 0)
    assert figures["psnr_db"] == pytest.approx(float(quality.mean()), rel=1e-6)
    assert figures["temporal_psnr_db"] == pytest.approx(float(changes.mean()), rel=1e-5)
    assert figures["psnr_db_by_position"] == pytest.approx(quality.mean(dim=0).tolist(), rel=1e-5)
    assert figures["temporal_psnr_db_by_position"][0] is None
    assert figures["temporal_psnr_db_by_position"][1:] == pytest.approx(
        changes.mean(dim=0).tolist(), rel=1e-5
    )
    groups = rearrange(quality[:, 1:], "clip (group place) -> (clip group) place", place=4)
    assert figures["psnr_db_by_place_in_group"] == pytest.approx(
        groups.mean(dim=0).tolist(), rel=1e-5
    )
    # Three grids of four tokens for nine frames, six bits a token.
    assert figures["rate"]["tokens_per_frame"] == pytest.approx(12 / 9)
    assert figures["rate"]["bits_per_pixel"] == pytest.approx(12 * 6 / (9 * SIDE**2))
    alone = rearrange(truth, "clip t ... -> (clip t) 1 ...")
    assert result["video_frames_alone"]["psnr_db"] == pytest.approx(
        float(psnr(rebuilt(tokenizer, alone), alone).mean()), rel=1e-6
    )
    assert result["video_frames_alone"]["rate"]["tokens_per_frame"] == 4


def test_a_causal_tokenizer_gives_a_first_frame_the_ids_of_the_image(
    joint: tuple[VisualTokenizer, Path], tmp_path: Path
) -> None:
    write_clip(tmp_path / "data" / "a.mp4", moving(20))
    protocol = TokenizerProtocol(data=tmp_path / "data", num_frames=5)
    identity = evaluate_tokenizer(joint[1], protocol)["videos"]["first_frame_identity"]
    assert identity == {"clips": 4, "same_tokens_share": 1.0, "same_clips_share": 1.0}
    config = joint_tokenizer_config(causal=False, causal_convolution=False, temporal_window=None)
    _, path = write_tokenizer(tmp_path / "other.safetensors", config)
    result = evaluate_tokenizer(path, protocol)
    assert result["tokenizer"]["causal"] is False
    assert result["videos"]["first_frame_identity"]["same_tokens_share"] < 1.0


def test_a_frame_tokenizer_has_the_same_figures_in_clips_as_alone(
    single: tuple[VisualTokenizer, Path], tmp_path: Path
) -> None:
    write_clip(tmp_path / "data" / "a.mp4", moving(12))
    protocol = TokenizerProtocol(data=tmp_path / "data", num_frames=6, perturbed_share=0.0)
    result = evaluate_tokenizer(single[1], protocol)
    clips, alone = result["videos"], result["video_frames_alone"]
    for key in ("psnr_db", "ssim", "frechet_own_features", "perturbed_drop_db"):
        assert clips[key] == pytest.approx(alone[key], rel=1e-6, abs=1e-9), key
    assert clips["codes"] == alone["codes"]
    assert clips["perturbed_drop_db"] == 0.0


@pytest.mark.parametrize("num_frames", [41, None])
def test_long_clips_pass_in_pieces_with_the_figures_of_the_whole(
    joint: tuple[VisualTokenizer, Path], tmp_path: Path, num_frames: int | None
) -> None:
    tokenizer, path = joint
    frames = write_clip(tmp_path / "data" / "a.mp4", moving(44))
    result = evaluate_tokenizer(
        path, TokenizerProtocol(data=tmp_path / "data", num_frames=num_frames)
    )
    truth = to_float(torch.from_numpy(frames[:41]))[None]
    made = rebuilt(tokenizer, truth)
    changes = psnr(made[:, 1:] - made[:, :-1], truth[:, 1:] - truth[:, :-1])
    figures = result["videos"]
    assert (figures["clips"], figures["frames"]) == (1, 41)
    assert figures["psnr_db_by_position"] == pytest.approx(psnr(made, truth)[0].tolist(), rel=1e-5)
    assert figures["temporal_psnr_db_by_position"][1:] == pytest.approx(
        changes[0].tolist(), rel=1e-5
    )
    assert figures["codes"]["tokens_counted"] == 11 * 4


def test_pieces_of_a_long_clip_are_bounded_and_join_to_the_video(tmp_path: Path) -> None:
    frames = write_clip(tmp_path / "a.mp4", moving(90))
    folder = MediaFolder(tmp_path)
    plan = ClipPlan(size=(SIDE, SIDE), num_frames=37, streamed=True, frames_per_latent=4)
    clips = [(start, list(pieces)) for start, pieces in plan.clips(folder, folder.videos[0], None)]
    assert [start for start, _ in clips] == [0, 37, 74]
    assert [[len(piece) for piece in pieces] for _, pieces in clips] == [[17, 16, 4]] * 2 + [[13]]
    for start, pieces in clips:
        joined = np.concatenate(pieces)
        assert np.array_equal(joined, frames[start : start + len(joined)])
    whole = dataclasses.replace(plan, num_frames=None)
    joined_clips = [
        (start, np.concatenate(list(pieces)))
        for start, pieces in whole.clips(folder, folder.videos[0], 1)
    ]
    assert [start for start, _ in joined_clips] == [0]
    assert np.array_equal(joined_clips[0][1], frames[:89])


def test_a_limit_spreads_clips_and_images_evenly(
    single: tuple[VisualTokenizer, Path], tmp_path: Path
) -> None:
    write_images(tmp_path / "data", 10)
    for name in ("a", "b", "c"):
        write_clip(tmp_path / "data" / f"{name}.mp4", moving(30))
    result = evaluate_tokenizer(
        single[1], TokenizerProtocol(data=tmp_path / "data", num_frames=5, limit=5)
    )
    assert result["images"]["frames"] == 5
    assert result["videos"]["clips"] == 5
    assert spread([Path(str(number)) for number in range(10)], 3) == [
        Path("0"),
        Path("3"),
        Path("6"),
    ]
    folder = MediaFolder(tmp_path / "data")
    plan = ClipPlan(size=(SIDE, SIDE), num_frames=5, streamed=False, frames_per_latent=1)
    clips = plan.clips(folder, folder.videos[0], 3)
    assert [(start, len(next(pieces))) for start, pieces in clips] == [(0, 5), (12, 5), (24, 5)]


def test_perturbed_codes_are_drawn_from_the_seed(
    single: tuple[VisualTokenizer, Path], tmp_path: Path
) -> None:
    write_images(tmp_path / "data", 4)
    drawn = [
        evaluate_tokenizer(
            single[1],
            TokenizerProtocol(data=tmp_path / "data", perturbed_share=0.5, seed=seed),
        )["images"]["perturbed_psnr_db"]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_lpips_is_measured_where_weights_are_given(
    single: tuple[VisualTokenizer, Path], tmp_path: Path
) -> None:
    tokenizer, path = single
    truth = to_float(torch.from_numpy(write_images(tmp_path / "data", 3)))
    generator = torch.Generator().manual_seed(0)
    tensors, before = {}, 3
    for number in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        tensors[f"features.{number}.weight"] = torch.randn(4, before, 3, 3, generator=generator)
        tensors[f"features.{number}.bias"] = torch.zeros(4)
        before = 4
    for stage in range(5):
        tensors[f"lin{stage}.model.1.weight"] = torch.rand(1, 4, 1, 1, generator=generator)
    save_file(tensors, tmp_path / "lpips.safetensors")
    protocol = TokenizerProtocol(data=tmp_path / "data", lpips=tmp_path / "lpips.safetensors")
    result = evaluate_tokenizer(path, protocol)
    made = rebuilt(tokenizer, truth[:, None])[:, 0]
    expected = Lpips(tmp_path / "lpips.safetensors")(made, truth).mean()
    assert result["images"]["lpips"] == pytest.approx(float(expected), rel=1e-5)
    assert len(result["protocol"]["lpips_weights_hash"]) == 64


def test_files_of_any_size_are_fitted_to_the_tokenizer_or_to_the_size_asked_for(
    joint: tuple[VisualTokenizer, Path], tmp_path: Path
) -> None:
    write_images(tmp_path / "data", 2)
    Image.fromarray(moving(1, side=40)[0]).save(tmp_path / "data" / "large.png")
    write_clip(tmp_path / "data" / "large.mp4", moving(5, side=36))
    for size, grid in ((None, (2, 2)), ((24, 32), (3, 4))):
        protocol = TokenizerProtocol(data=tmp_path / "data", num_frames=5, size=size)
        result = evaluate_tokenizer(joint[1], protocol)
        assert (result["tokenizer"]["rows"], result["tokenizer"]["columns"]) == grid
        assert result["images"]["frames"] == 3
        assert result["videos"]["rate"]["tokens_per_frame"] == 2 * grid[0] * grid[1] / 5


def test_unusable_files_are_listed_and_the_others_measured(
    single: tuple[VisualTokenizer, Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    write_images(data, 3)
    (data / "001.png").write_bytes(b"no picture")
    write_clip(data / "good.mp4", moving(12))
    write_clip(data / "short.mp4", moving(4))
    (data / "<b>.mp4").write_bytes(b"no video")
    result = evaluate_tokenizer(single[1], TokenizerProtocol(data=data, num_frames=6))
    assert result["images"]["frames"] == 2
    assert result["videos"]["clips"] == 2
    skipped = {entry["file"]: entry["reason"] for entry in result["skipped_files"]}
    assert sorted(skipped) == ["001.png", "<b>.mp4", "short.mp4"]
    assert skipped["short.mp4"].startswith("has 4 frames, a clip needs 6")
    page = render_tokenizer_report(result)
    assert "Skipped files (3)" in page
    assert "&lt;b&gt;.mp4" in page
    assert "<b>.mp4" not in page


def test_nothing_usable_is_an_error_with_the_first_reason(
    single: tuple[VisualTokenizer, Path], tmp_path: Path
) -> None:
    write_clip(tmp_path / "data" / "short.mp4", moving(4))
    with pytest.raises(DataError, match=r"none of 1 .*short\.mp4 has 4 frames, a clip needs 17"):
        evaluate_tokenizer(single[1], TokenizerProtocol(data=tmp_path / "data"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_frames": 18}, ConfigError, "clips of 1 [+] k x 4 frames, got 18"),
        ({"size": (20, 16)}, ConfigError, "20 x 16 pixels do not divide"),
        ({"data": Path("nowhere")}, DataError, "no folder nowhere"),
        ({"features": Path("nowhere")}, CheckpointError, "no weights at nowhere"),
        ({"lpips": Path("nowhere")}, CheckpointError, "no LPIPS weights at nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_file_is_read(
    joint: tuple[VisualTokenizer, Path],
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[WorldgenError],
    message: str,
) -> None:
    write_images(tmp_path / "data", 1)
    with pytest.raises(error, match=message):
        evaluate_tokenizer(joint[1], TokenizerProtocol(**{"data": tmp_path / "data", **changes}))


def test_a_tokenizer_that_is_not_causal_needs_a_number_of_frames(tmp_path: Path) -> None:
    config = joint_tokenizer_config(causal=False, temporal_window=None)
    _, path = write_tokenizer(tmp_path / "tokenizer.safetensors", config)
    write_clip(tmp_path / "data" / "a.mp4", moving(41))
    with pytest.raises(ConfigError, match="not causal and needs whole clips"):
        evaluate_tokenizer(path, TokenizerProtocol(data=tmp_path / "data", num_frames=None))
    result = evaluate_tokenizer(path, TokenizerProtocol(data=tmp_path / "data", num_frames=41))
    assert result["videos"]["frames"] == 41


def test_weights_that_decode_to_no_numbers_are_named(
    single: tuple[VisualTokenizer, Path], tmp_path: Path
) -> None:
    tokenizer, path = single
    next(tokenizer.get_submodule("decoder").parameters()).data.fill_(math.nan)
    save_visual_tokenizer(path, tokenizer)
    write_images(tmp_path / "data", 1)
    with pytest.raises(CheckpointError, match="not finite"):
        evaluate_tokenizer(path, TokenizerProtocol(data=tmp_path / "data"))


def test_a_tokenizer_is_found_as_file_folder_or_world(tmp_path: Path) -> None:
    world = tiny_world(tmp_path / "world")
    file = world / "tokenizer.safetensors"
    assert find_tokenizer(file) == find_tokenizer(world) == find_tokenizer(str(world)) == file
    run = tmp_path / "run"
    run.mkdir()
    file.rename(run / "tokenizer.safetensors")
    assert find_tokenizer(run) == run / "tokenizer.safetensors"
    assert find_tokenizer("crafter").parent.name == "crafter"
    with pytest.raises(CheckpointError, match=r"no tokenizer 'nothing': .*shipped world .*crafter"):
        find_tokenizer("nothing")


def test_counts_of_codes_that_come_in_pieces_are_those_of_all() -> None:
    ids = torch.randint(0, 300, (7, 50), generator=torch.Generator().manual_seed(0)) ** 2 // 300
    counts = CodeCounts(1000)
    for piece in ids:
        counts.add(piece)
    whole, usage = counts.to_json(), code_usage(ids, 1000)
    assert whole["used"] == usage.used
    assert whole["perplexity"] == pytest.approx(usage.perplexity)
    bars = whole["histogram"]["share_of_tokens_by_rank"]
    assert len(bars) == 125
    assert whole["histogram"]["codes_per_bar"] == 8
    assert sum(bars) == pytest.approx(1.0)
    assert bars == sorted(bars, reverse=True)
    assert whole["share_of_most_frequent"] == ids.flatten().bincount().max() / ids.numel()


def test_codebooks_too_large_to_count_each_code_are_counted() -> None:
    counts = CodeCounts(2**40)
    counts.add(torch.tensor([5, 2**39, 5]))
    assert counts.to_json()["used"] == 2
    assert len(counts.to_json()["histogram"]["share_of_tokens_by_rank"]) == 128


def test_examples_keep_the_best_and_the_worst_one_of_each_file() -> None:
    examples = Examples(count=2)
    picture = np.zeros((1, 4, 4, 3), np.uint8)
    for score, file in ((5, "a"), (1, "b"), (9, "c"), (8, "c"), (7, "d"), (2, "b"), (3, "e")):
        examples.add(
            Example(
                score=score,
                file=file,
                first_frame=0,
                positions=(0,),
                original=picture,
                reconstruction=picture,
            )
        )
    assert [(example.file, example.score) for example in examples.best] == [("c", 9), ("d", 7)]
    assert [(example.file, example.score) for example in examples.worst] == [("b", 1), ("e", 3)]
    assert examples.wants(7.5)
    assert examples.wants(2.5)
    assert not examples.wants(5.0)


def test_the_command_writes_figures_without_pictures_and_a_page_with_them(
    joint: tuple[VisualTokenizer, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "data", 2)
    write_clip(tmp_path / "data" / "a.mp4", moving(9))
    words = ["evaluate", "tokenizer", "--tokenizer", str(joint[1].parent)]
    words += ["--data", str(tmp_path / "data"), "--frames", "9", "--size", "32x16"]
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    assert main([*words, "--json", str(out), "--html", str(page)]) == 0
    written = json.loads(out.read_text())
    assert written == without_pictures(written)
    assert (written["protocol"]["height"], written["protocol"]["width"]) == (32, 16)
    assert written["videos"]["frames"] == 9
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 4
    assert "http" not in html
    assert "inception" not in html.lower()
    printed = capsys.readouterr().out
    assert "images (2 frames): PSNR" in printed
    assert main([*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["images"]["frames"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokenizer", "{world}/model.safetensors"], "not a visual tokenizer"),
        (["--tokenizer", "nothing"], "no tokenizer 'nothing'"),
        (["--tokenizer", "{world}", "--data", "{world}/nothing"], "no folder"),
        (["--tokenizer", "{world}", "--data", "{empty}"], "holds no images and no videos"),
        (["--tokenizer", "{world}", "--size", "20x20"], "takes frames of 64 x 64"),
        (["--tokenizer", "{world}", "--device", "cuda:9"], "no device"),
        (["--tokenizer", "{world}", "--json", "{empty}"], "it is a folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_status_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    places = {"world": tiny_world(tmp_path / "world"), "empty": tmp_path / "empty"}
    places["empty"].mkdir()
    write_images(tmp_path / "data", 1)
    words = [word.format(**places) for word in words]
    if "--data" not in words:
        words += ["--data", str(tmp_path / "data")]
    assert main(["evaluate", "tokenizer", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("worldgen: ")
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("size", ["256", "0x16", "16x", "axb"])
def test_a_size_that_is_none_is_refused_by_the_parser(
    size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "tokenizer", "--tokenizer", "a", "--data", "b", "--size", size])
    assert "such as 256x256" in capsys.readouterr().err
