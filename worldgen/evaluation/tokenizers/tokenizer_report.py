"""The figures of a visual tokenizer as one HTML page that needs nothing else."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worldgen.checkpoint import write_text
from worldgen.evaluation.pages.curves import bar_chart, line_chart
from worldgen.evaluation.pages.page import (
    NONE,
    conditions,
    number,
    page,
    percent,
    pictures,
    table,
    text,
)
from worldgen.evaluation.tokenizers.examples import AMPLIFIED

__all__ = ["format_lines", "render_tokenizer_report", "write_tokenizer_report"]

_PARTS = {
    "images": "images",
    "video_frames_alone": "frames of videos, each alone",
    "videos": "videos in clips",
}


def write_tokenizer_report(result: Mapping[str, Any], path: Path) -> None:
    """Write the figures as one HTML page with its pictures inside.

    Args:
        result: From `worldgen.evaluation.tokenizers.tokenizer.evaluate_tokenizer`.
        path: Destination.
    """
    write_text(path, render_tokenizer_report(result))


def format_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the foremost figures as lines of text."""
    lines = []
    for name, label in _PARTS.items():
        part = result[name]
        if part is None:
            continue
        figures = [
            f"PSNR {_decibel(part['psnr_db'])}",
            f"SSIM {number(part['ssim'])}",
            f"LPIPS {number(part['lpips'])}" if part["lpips"] is not None else "",
            f"{part['rate']['bits_per_frame']:,.0f} bits a frame",
            f"{percent(part['codes']['used_share'])} of codes used",
            f"perturbed codes cost {_decibel(part['perturbed_drop_db'])}",
        ]
        lines.append(f"{label} ({part['frames']:,} frames): " + ", ".join(filter(None, figures)))
    for name, speed in result["speed"].items():
        if speed is not None:
            lines.append(
                f"{name}: encode {speed['encode_ms_per_frame']:.2f} ms a frame, "
                f"decode {speed['decode_ms_per_frame']:.2f} ms a frame"
            )
    if result["skipped_files"]:
        first = result["skipped_files"][0]
        more = len(result["skipped_files"]) - 1
        lines.append(
            f"skipped {first['file']}: {first['reason']}" + (f"; and {more:,} more" if more else "")
        )
    return lines


def render_tokenizer_report(result: Mapping[str, Any]) -> str:
    """Return the page of `write_tokenizer_report`."""
    measured = {label: result[name] for name, label in _PARTS.items() if result[name] is not None}
    return page(
        f"{result['tokenizer']['name']}: how good is the tokenizer",
        [
            _headline(result),
            _figures(measured),
            _examples(result),
            _clips(result["videos"]),
            _codes(measured),
            _cost(result),
            _skipped(result["skipped_files"]),
            _conditions(result),
        ],
    )


def _headline(result: Mapping[str, Any]) -> str:
    tokenizer, data, protocol = result["tokenizer"], result["data"], result["protocol"]
    part = f", split {data['split']}" if data["split"] else ""
    length = protocol["frames_per_clip"]
    clips = result["videos"]
    of_clips = (
        f" {clips['clips']:,} clips of {f'{length} frames' if length else 'whole videos'}."
        if clips
        else ""
    )
    images = f" {result['images']['frames']:,} images." if result["images"] else ""
    skipped = f" {data['skipped']:,} files skipped." if data["skipped"] else ""
    return (
        f"<header><h1>{text(tokenizer['name'])}</h1><p>Measured on {text(data['folder'])}"
        f"{text(part)}, at {protocol['height']} x {protocol['width']} pixels.{images}{of_clips}"
        f"{skipped} One grid of {tokenizer['rows']} x {tokenizer['columns']} tokens stands for "
        f"{_frames(tokenizer['frames_per_latent'])}, the first of a clip for one frame; "
        f"{tokenizer['codebook_size']:,} codes.</p></header>"
    )


def _figures(measured: Mapping[str, Mapping[str, Any]]) -> str:
    rows: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("PSNR, mean of frames", lambda part: _decibel(part["psnr_db"])),
        ("PSNR of the mean error", lambda part: _decibel(part["psnr_db_of_mean_error"])),
        ("PSNR that nine tenths reach", lambda part: _decibel(part["psnr_db_lowest_tenth"])),
        ("SSIM", lambda part: number(part["ssim"])),
        ("LPIPS", lambda part: number(part["lpips"])),
        ("Frechet distance, own features", lambda part: _small(part["frechet_own_features"])),
        ("PSNR of the change between frames", lambda part: _decibel(part.get("temporal_psnr_db"))),
        ("PSNR lost under perturbed codes", lambda part: _decibel(part["perturbed_drop_db"])),
        (
            "the same of the mean error",
            lambda part: _decibel(part["perturbed_drop_db_of_mean_error"]),
        ),
        ("tokens a frame", lambda part: f"{part['rate']['tokens_per_frame']:.1f}"),
        ("bits a frame", lambda part: f"{part['rate']['bits_per_frame']:,.0f}"),
        ("bits a pixel", lambda part: f"{part['rate']['bits_per_pixel']:.4f}"),
        (
            "entropy of the codes, bits a pixel",
            lambda part: f"{part['rate']['entropy_bits_per_pixel']:.4f}",
        ),
        ("frames", lambda part: f"{part['frames']:,}"),
    ]
    body = [[label, *(show(part) for part in measured.values())] for label, show in rows]
    return (
        f"<section><h2>Figures</h2>{table(['', *measured], body)}<p>The Frechet distance compares "
        "features of a network of our own, which is named under conditions: its values stand "
        "beside each other only where that network is the same.</p></section>"
    )


def _examples(result: Mapping[str, Any]) -> str:
    return (
        "<section><h2>Worst and best</h2><p>By PSNR, at most one of each file. The third row is "
        f"the absolute difference, {AMPLIFIED} times as bright.</p>"
        f"{pictures(result['film_strips'])}</section>"
    )


def _clips(clips: Mapping[str, Any] | None) -> str:
    if clips is None:
        return ""
    identity = clips["first_frame_identity"]
    by_position = {
        "PSNR of frames": clips["psnr_db_by_position"],
        "PSNR of the change to the next frame": clips["temporal_psnr_db_by_position"][1:],
    }
    charts = "".join(
        line_chart({label: values}, title=f"{label} by place in the clip", x_label=x, y_label="dB")
        for (label, values), x in zip(
            by_position.items(), ("frame of the clip", "change of the clip"), strict=True
        )
        if values
    )
    places = clips["psnr_db_by_place_in_group"]
    groups = (
        table(
            ["place in its group of frames", *(str(place + 1) for place in range(len(places)))],
            [
                ["PSNR, dB", *map(number, places)],
                [
                    "PSNR of the change to it, dB",
                    *map(number, clips["temporal_psnr_db_by_place_in_group"]),
                ],
            ],
        )
        if len(places) > 1
        else ""
    )
    cut_short = (
        f" {clips['clips_cut_short']:,} clips ended early, with their video."
        if clips["clips_cut_short"]
        else ""
    )
    return (
        f"<section><h2>Inside a clip</h2><p>The first frame taken as an image has the same tokens "
        f"as in its clip: {percent(identity['same_tokens_share'])} of tokens, all of them in "
        f"{percent(identity['same_clips_share'])} of {identity['clips']:,} clips.{cut_short}</p>"
        f"<div class=charts>{charts}</div>{groups}</section>"
    )


def _codes(measured: Mapping[str, Mapping[str, Any]]) -> str:
    body = [
        [
            label,
            f"{part['codes']['used']:,} of {part['codes']['codebook_size']:,}",
            percent(part["codes"]["used_share"]),
            f"{part['codes']['perplexity']:,.1f}",
            f"{part['codes']['entropy_bits_per_token']:.2f}",
            percent(part["codes"]["share_of_most_frequent"]),
            f"{part['codes']['tokens_counted']:,}",
        ]
        for label, part in measured.items()
    ]
    head = ["", "used", "share used", "perplexity", "bits a token", "most frequent", "tokens"]
    charts = "".join(
        f"<div><h3>{text(label)}</h3>{_histogram(part['codes']['histogram'])}</div>"
        for label, part in measured.items()
    )
    return f"<section><h2>Codes</h2>{table(head, body)}<div class=charts>{charts}</div></section>"


def _histogram(histogram: Mapping[str, Any]) -> str:
    per_bar = histogram["codes_per_bar"]
    unit = "code" if per_bar == 1 else f"{per_bar:,} codes"
    return bar_chart(
        [100.0 * share for share in histogram["share_of_tokens_by_rank"]],
        title="how often codes occur, the most frequent first",
        x_label=f"codes by frequency, {unit} a bar",
        y_label="% of tokens",
    )


def _cost(result: Mapping[str, Any]) -> str:
    body = [
        [
            f"{name}, {_frames(speed['frames'])}",
            f"{speed['encode_ms_per_frame']:.2f}",
            f"{speed['decode_ms_per_frame']:.2f}",
            f"{speed['encode_ms_per_frame'] + speed['decode_ms_per_frame']:.2f}",
        ]
        for name, speed in result["speed"].items()
        if speed is not None
    ]
    memory = result["memory"]
    gpu = memory["peak_gpu_megabytes"]
    return (
        f"<section><h2>Cost</h2>{table(['ms a frame', 'encode', 'decode', 'both'], body)}"
        f"<p>Peak memory {_megabytes(memory['peak_process_megabytes'])} of the whole process"
        + (f", {_megabytes(gpu)} on the graphics card" if gpu is not None else "")
        + ".</p></section>"
    )


def _skipped(files: list[Mapping[str, Any]]) -> str:
    if not files:
        return ""
    body = [[entry["file"], entry["reason"]] for entry in files]
    rows = "".join(f"<tr><td>{text(name)}</td><td>{text(why)}</td></tr>" for name, why in body)
    return (
        f"<section><h2>Skipped files ({len(files):,})</h2><div class=scroll><table><thead><tr>"
        f"<th>file</th><th>reason</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _conditions(result: Mapping[str, Any]) -> str:
    shortened = {
        group: {
            key: value[:16] if key.endswith("hash") and value else _shown(value)
            for key, value in result[group].items()
        }
        for group in ("tokenizer", "data", "protocol", "hardware", "versions")
    }
    return conditions(shortened)


def _shown(value: object) -> object:
    return NONE if value is None else value


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"


def _decibel(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f} dB"


def _small(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _megabytes(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f} MB"
