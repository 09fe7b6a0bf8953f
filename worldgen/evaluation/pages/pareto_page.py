"""Speed and quality of decoders as one page that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldgen.checkpoint import write_text
from worldgen.evaluation.pages.curves import scatter_chart
from worldgen.evaluation.pages.page import NONE, conditions, number, page, percent, table, text
from worldgen.evaluation.pareto import on_the_front

__all__ = ["render_page", "write_page"]

_CHARTS = {
    "psnr": "PSNR against the truth, dB",
    "action_following": "actions followed, share",
    "log_likelihood": "log likelihood under raster order, nats a cell",
    "drift_db": "drift, dB",
}


def write_page(result: Mapping[str, Any], path: Path) -> None:
    """Write the figures of `compare_decoders` as one HTML page.

    Args:
        result: From `compare_decoders`.
        path: Destination.
    """
    write_text(path, render_page(result))


def render_page(result: Mapping[str, Any]) -> str:
    """Return the page of `write_page`."""
    title = f"{result['world']}: decoders by speed and quality"
    return page(
        title, [_headline(result), _charts(result), _quality(result), _speed(result), _end(result)]
    )


def _headline(result: Mapping[str, Any]) -> str:
    quality, sampling = result["quality"], result["sampling"]
    clips = f"{quality['clips']} test clips, {quality['horizon']} frames predicted in each"
    notes = "".join(
        f"<p><b>{text(note)}</b></p>" for note in [*result["notes"], quality["note"]] if note
    )
    return (
        f"<header><h1>{text(result['world'])}: decoders</h1>"
        f"<p>One model, the same random numbers. Speed: one sequence, {result['frames']} frames, "
        f"pixels included, {text(result['precision'])} on {text(result['device'])}. Quality: "
        f"{clips}; temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}.</p>"
        f"{notes}</header>"
    )


def _charts(result: Mapping[str, Any]) -> str:
    charts = []
    for name, label in _CHARTS.items():
        points = {
            entry["decoder"]: (entry["frames_per_second"], entry[name])
            for entry in result["decoders"]
            if entry.get(name) is not None
        }
        if points:
            charts.append(
                scatter_chart(
                    points,
                    front=on_the_front(result["decoders"], name),
                    title=f"{label} over frames per second",
                    x_label="frames per second",
                    y_label=label,
                )
            )
    if not charts:
        return ""
    return (
        "<section><h2>Speed and quality</h2><p>Up and right is better. The line joins the decoders "
        "that no other surpasses in both.</p>"
        f"<div class=charts>{''.join(charts)}</div></section>"
    )


def _quality(result: Mapping[str, Any]) -> str:
    body = [
        [
            entry["decoder"] + (" *" if entry["trained"] is False else ""),
            _plain(entry["frames_per_second"]),
            _plain(entry["calls_per_frame"]),
            number(entry.get("log_likelihood")),
            _decibel(entry.get("psnr")),
            _decibel(entry.get("psnr_of_mean_error")),
            _decibel(entry.get("drift_db")),
            percent(entry.get("action_following")),
        ]
        for entry in result["decoders"]
    ]
    head = [
        "decoder",
        "frames/s",
        "calls a frame",
        "log likelihood",
        "PSNR",
        "PSNR of the mean error",
        "drift",
        "actions followed",
    ]
    untrained = any(entry["trained"] is False for entry in result["decoders"])
    star = "<p>* The model was not trained for this order.</p>" if untrained else ""
    return (
        "<section><h2>Decoders</h2><p>Log likelihood: mean over the drawn cells of what raster "
        "order would have given them, in nats. Drift: PSNR of a clip's last quarter minus that of "
        f"its first.</p>{table(head, body)}{star}</section>"
    )


def _speed(result: Mapping[str, Any]) -> str:
    body = [
        [
            entry["decoder"],
            _plain(entry["frame_ms_p50"]),
            _plain(entry["frame_ms_p99"]),
            _plain(entry["model_ms_p50"]),
            _plain(entry["model_ms_p99"]),
            _plain(entry["processor_ms"]),
            f"{entry['tokens_per_second']:,.0f}",
            _plain(entry["bandwidth_floor_ms"]),
            _plain(entry["arithmetic_floor_ms"]),
            percent(entry["share_of_floor"]),
            f"{entry['cache_bytes'] / 2**20:.2f}",
        ]
        for entry in result["decoders"]
    ]
    head = [
        "decoder",
        "ms a frame, p50",
        "p99",
        "model alone, p50",
        "p99",
        "processor ms",
        "tokens/s",
        "bandwidth floor, ms",
        "arithmetic floor, ms",
        "share of the floor's speed",
        "cache, MB",
    ]
    return (
        "<section><h2>Speed</h2><p>The floor is the time in which this machine reads the weights "
        "and the cache, or makes the matrix products, of every pass, whichever takes longer.</p>"
        f"{table(head, body)}</section>"
    )


def _end(result: Mapping[str, Any]) -> str:
    peak = result["decoders"][-1]["peak_memory_mb"]
    return conditions(
        {
            "machine": {**result["machine"], "peak memory, MB": NONE if peak is None else peak},
            "model": {
                "parameters": f"{result['parameters']:,}",
                "cells of a frame": result["cells"],
                "frames drawn together": result["frames_drawn_together"],
            },
            "hardware": result["hardware"],
            "versions": {"world hash": result["world_hash"][:16], **result["versions"]},
        }
    )


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _decibel(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
