"""Walks out and back as one page that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldgen.checkpoint import write_text
from worldgen.evaluation.pages.curves import line_chart
from worldgen.evaluation.pages.page import conditions, page, percent, pictures, table, text

__all__ = ["format_revisits", "write_page"]

_SHARES = {
    "all_tiles": "all tiles",
    "tiles_that_left": "tiles that left",
    "ground": "ground",
    "ground_that_left": "ground that left",
}
_KINDS = {"went_out": "all walks", "came_back": "those that came back"}
_HEAD = ["the same after the walk", "", "walks", *_SHARES.values()]


def write_page(result: Mapping[str, Any], path: Path) -> None:
    """Write the figures of `evaluate_revisits` as one HTML page.

    Args:
        result: From `evaluate_revisits`.
        path: Destination.
    """
    protocol = result["protocol"]
    title = f"{result['world']}: {protocol['out_steps']} steps out and back"
    head = (
        f"<header><h1>{text(title)}</h1><p>{protocol['walks']} walks from the contexts of test "
        "clips, where the way looks free. Frames of the way out and of the way back that show one "
        "place are compared tile by tile, as a judge reads them.</p></header>"
    )
    sections = [
        head,
        "<section><h2>The same place again</h2>"
        f"<div class=charts>{''.join(_charts(result))}</div>{table(_HEAD, _rows(result))}"
        "<p>Tiles that left were out of the picture in between: they are remembered, or invented "
        "anew. Ground leaves out tiles with a creature, which may move. Curves are of all walks; a "
        "walk came back if no step was blocked. Two different places share "
        f"{percent(result['another_place'])} of their tiles.</p></section>",
        f"<section><h2>Walks</h2><p>The way out from left to right, and below it the way back in "
        "the same order: the last frame of the walk is below the first.</p>"
        f"{pictures(result['film_strips'])}</section>",
        conditions(
            {
                "protocol": protocol,
                "worlds": {name: each["hash"][:16] for name, each in result["worlds"].items()},
                "hardware": result["hardware"],
                "versions": result["versions"],
            }
        ),
    ]
    write_text(path, page(title, sections))


def _sources(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    real = result["simulator"]
    return {**result["worlds"], **({} if real is None else {"simulator": real})}


def _charts(result: Mapping[str, Any]) -> list[str]:
    charts = []
    for share in ("all_tiles", "tiles_that_left"):
        lines = {}
        for name, figures in _sources(result).items():
            pairs = figures["by_frames_between"]["went_out"] or []
            values = [pair[share] for pair in pairs]
            # Near the turn it may be that nothing has left the picture yet.
            if values and None not in values:
                lines[name] = values
        if lines:
            label = f"{_SHARES[share]}, share that is the same"
            charts.append(
                line_chart(lines, title=label, x_label="steps from the turn", y_label=label)
            )
    return charts


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            label,
            str(figures["walks"][kind]),
            *(percent((figures["after_the_walk"][kind] or {}).get(share)) for share in _SHARES),
        ]
        for name, figures in _sources(result).items()
        for kind, label in _KINDS.items()
    ]


def format_revisits(result: Mapping[str, Any]) -> list[str]:
    """Return the figures as lines for a terminal."""
    lines = []
    for name, kind, walks, *shares in _rows(result):
        told = ", ".join(
            f"{label} {share}" for label, share in zip(_SHARES.values(), shares, strict=True)
        )
        lines.append(f"{name}, {kind} ({walks}): {told}")
    lines.append(f"two different places: all tiles {percent(result['another_place'])}")
    return lines
