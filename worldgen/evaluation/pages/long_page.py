"""Long rollouts as one page that needs nothing else, several runs in one picture."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from worldgen.checkpoint import write_text
from worldgen.errors import DataError
from worldgen.evaluation.pages.curves import line_chart
from worldgen.evaluation.pages.page import conditions, number, page, percent, pictures, table, text

__all__ = ["format_windows", "read_earlier", "write_page"]

_CHARTS = {
    "frechet": "Frechet distance to real frames",
    "frechet_over_first": "Frechet distance over that of the first window",
    "frechet_of_simulator": "Frechet distance of the simulator under the same actions to real frames",
    "frechet_to_simulator": "Frechet distance to the simulator under the same actions",
    "sharpness": "sharpness over that of real frames",
    "motion": "motion over that of real frames",
    "actions_f1": "actions read from the frames, F1",
    "moves_followed": "moves that scroll or are blocked as they should be",
}
_MOST_RUNS = 6
_MOST_ROWS = 24


def read_earlier(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the figures of earlier runs of `evaluate_long`.

    Raises:
        DataError: If a file is missing or holds something else, or there are too many for one
            picture.
    """
    results = []
    for path in paths:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(result["windows"][0]["frechet_over_first"], float):
                raise DataError(f"{path} holds no figures of `worldgen evaluate long`")
            _label(result)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"{path} holds no figures of `worldgen evaluate long` ({error!r}); give what its "
                "--json wrote"
            ) from error
        results.append(result)
    if len(results) >= _MOST_RUNS:
        raise DataError(f"a picture holds {_MOST_RUNS} runs, got {len(results)} beside this one")
    return results


def write_page(
    result: Mapping[str, Any], path: Path, beside: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write the figures of `evaluate_long` as one HTML page.

    Args:
        result: From `evaluate_long`.
        path: Destination.
        beside: Figures of earlier runs, from `read_earlier`, for the curves.
    """
    protocol, windows = result["protocol"], result["windows"]
    title = f"{result['world']}: {protocol['seconds']:g} seconds"
    head = (
        f"<header><h1>{text(title)}</h1><p>{protocol['rollouts']} rollouts under "
        f"{text(protocol['actions'])} actions, decoder {text(protocol['decoder'])}"
        f"{text(_plan(result))}. The last window is {result['drift']:.2f} times as far from real "
        "frames as the first.</p></header>"
    )
    runs = _labelled([result, *beside])
    seconds = windows[1]["from_second"] if len(windows) > 1 else 5.0
    charts = []
    for name, label in _CHARTS.items():
        lines = {
            run: values
            for run, each in runs.items()
            if None not in (values := [window.get(name) for window in each["windows"]])
        }
        if lines:
            charts.append(
                line_chart(lines, title=label, x_label="seconds", y_label=label, step=seconds)
            )
    summary = [
        [
            run,
            second,
            number(at["frechet_over_first"]),
            _points(at["actions_f1_lost"]),
            _points(at["moves_followed_lost"]),
        ]
        for run, each in runs.items()
        for second, at in each["at_seconds"].items()
    ]
    shown = _spread(windows)
    left_out = (
        "" if len(shown) == len(windows) else f"<p>{len(shown)} of {len(windows)} windows.</p>"
    )
    sections = [
        head,
        f"<section><h2>Over time</h2><div class=charts>{''.join(charts)}</div>"
        f"{table(_SUMMARY_HEAD, summary)}</section>",
        f"<section><h2>Frames</h2>{pictures(result['film_strips'])}</section>",
        f"<section><h2>Windows</h2>{left_out}{table(_HEAD, map(_row, shown))}</section>",
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


_SUMMARY_HEAD = [
    "run",
    "at second",
    "Frechet distance over the first",
    "actions, points of F1 lost since 6 s",
    "moves, points lost since 6 s",
]
_HEAD = [
    "from second",
    "Frechet distance",
    "over the first",
    "of the simulator",
    "to the simulator",
    "sharpness",
    "motion",
    "colour shift",
    "repeated frames",
    "actions, F1",
    "moves",
    "calls",
    "ms a frame",
]


def _plan(result: Mapping[str, Any]) -> str:
    plan = result["protocol"].get("plan")
    return "" if plan is None else f", every {plan}th frame planned"


def _label(result: Mapping[str, Any]) -> str:
    return f"{result['world']}, {result['protocol']['decoder']}{_plan(result)}"


def _labelled(results: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return runs by what they are, with numbers where they are the same, the first one as it is."""
    runs: dict[str, Mapping[str, Any]] = {}
    for result in results:
        label = _label(result)
        again = sum(_label(each) == label for each in runs.values())
        runs[f"{label} ({again + 1})" if again else label] = result
    return runs


def _spread(windows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return windows spread over all of them, the first and the last among them."""
    count = min(len(windows), _MOST_ROWS)
    last = len(windows) - 1
    return [windows[round(place * last / max(count - 1, 1))] for place in range(count)]


def _points(lost: float | None) -> str:
    return number(None) if lost is None else f"{100 * lost:.1f}"


def _row(window: Mapping[str, Any]) -> list[str]:
    return [
        f"{window['from_second']:g}",
        number(window["frechet"]),
        number(window["frechet_over_first"]),
        number(window.get("frechet_of_simulator")),
        number(window.get("frechet_to_simulator")),
        number(window["sharpness"]),
        number(window["motion"]),
        number(window["colour_shift"]),
        percent(window["repeated_frames"]),
        number(window.get("actions_f1")),
        percent(window.get("moves_followed")),
        number(window["calls_a_frame"]),
        number(window["milliseconds_a_frame"]),
    ]


def format_windows(result: Mapping[str, Any]) -> list[str]:
    """Return the table of windows, spread over all of them, as lines for a terminal."""
    rows = [_HEAD, *map(_row, _spread(result["windows"]))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ] + [
        f"at {second} s: Frechet distance over the first window's {number(at['frechet_over_first'])}"
        f", points of F1 lost since 6 s {_points(at['actions_f1_lost'])}"
        f", points of moves {_points(at['moves_followed_lost'])}"
        for second, at in result["at_seconds"].items()
    ]
