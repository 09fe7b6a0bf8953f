"""Long rollouts as one page that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldgen.checkpoint import write_text
from worldgen.evaluation.pages.curves import line_chart
from worldgen.evaluation.pages.page import conditions, number, page, percent, pictures, table, text

__all__ = ["format_windows", "write_page"]

_CHARTS = {
    "frechet_over_first": "Frechet distance to real frames over that of the first window",
    "sharpness": "sharpness over that of real frames",
    "motion": "motion over that of real frames",
    "actions_f1": "actions read from the frames, F1",
}


def write_page(result: Mapping[str, Any], path: Path) -> None:
    """Write the figures of `evaluate_long` as one HTML page.

    Args:
        result: From `evaluate_long`.
        path: Destination.
    """
    protocol, windows = result["protocol"], result["windows"]
    title = f"{result['world']}: {protocol['seconds']:g} seconds"
    head = (
        f"<header><h1>{text(title)}</h1><p>{protocol['rollouts']} rollouts under "
        f"{text(protocol['actions'])} actions, decoder {text(protocol['decoder'])}. The last window "
        f"is {result['drift']:.2f} times as far from real frames as the first.</p></header>"
    )
    charts = [
        line_chart({name: values}, title=label, x_label="window of five seconds", y_label=label)
        for name, label in _CHARTS.items()
        if None not in (values := [window.get(name) for window in windows])
    ]
    sections = [
        head,
        f"<section><h2>Windows</h2><div class=charts>{''.join(charts)}</div>"
        f"{table(_HEAD, [_row(window) for window in windows])}</section>",
        f"<section><h2>Frames</h2>{pictures(result['film_strips'])}</section>",
        conditions(
            {
                "protocol": protocol,
                "real frames": result["real_frames"],
                "hardware": result["hardware"],
                "versions": result["versions"],
            }
        ),
    ]
    write_text(path, page(title, sections))


_HEAD = [
    "from second",
    "Frechet distance",
    "over the first",
    "sharpness",
    "motion",
    "colour shift",
    "repeated frames",
    "actions, F1",
    "ms a frame",
]


def _row(window: Mapping[str, Any]) -> list[str]:
    return [
        f"{window['from_second']:g}",
        number(window["frechet"]),
        number(window["frechet_over_first"]),
        number(window["sharpness"]),
        number(window["motion"]),
        number(window["colour_shift"]),
        percent(window["repeated_frames"]),
        number(window.get("actions_f1")),
        number(window["milliseconds_a_frame"]),
    ]


def format_windows(result: Mapping[str, Any]) -> list[str]:
    """Return the table of windows as lines for a terminal."""
    rows = [_HEAD, *(_row(window) for window in result["windows"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
