"""Parts that the HTML pages of evaluations are made of: one file, with nothing to fetch."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "NONE",
    "conditions",
    "format_figure",
    "number",
    "page",
    "percent",
    "pictures",
    "table",
    "text",
]

NONE = "-"
"""Stands where there is no figure."""

_STYLE = Path(__file__).with_name("report.css")


def page(title: str, sections: Iterable[str]) -> str:
    """Return a whole HTML page of sections that are HTML already."""
    style = _STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def pictures(strips: Iterable[Mapping[str, Any]]) -> str:
    """Return a figure for each strip, as `worldgen.evaluation.pages.strips.Strip.to_json` gives it."""
    return "".join(
        f"<figure class=strip><figcaption>{text(strip['title'])}</figcaption>"
        f'<div class=scroll><img alt="{text(strip["title"])}" '
        f'src="data:image/png;base64,{strip["png"]}"></div></figure>'
        for strip in strips
    )


def conditions(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a section with a list of names and values for each group."""
    lists = "".join(
        f"<div><h3>{text(name)}</h3><dl>"
        + "".join(
            f"<dt>{text(key.replace('_', ' '))}</dt><dd>{_value(value)}</dd>"
            for key, value in entries.items()
        )
        + "</dl></div>"
        for name, entries in groups.items()
    )
    return f"<section><h2>Conditions</h2><div class=columns>{lists}</div></section>"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a table whose columns hold numbers, the first one excepted."""
    cells = "".join(
        f"<th{' class=number' if place else ''}>{text(name)}</th>"
        for place, name in enumerate(head)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=number' if place else ''}>{text(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in body
    )
    return f"<div class=scroll><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>"


def text(value: object) -> str:
    """Return a value as text that is safe inside HTML."""
    return html.escape(str(value))


def number(value: float | None) -> str:
    """Return a figure with three digits behind the point where it is small, else with one."""
    if value is None:
        return NONE
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def percent(value: float | None) -> str:
    """Return a share in per cent."""
    return NONE if value is None else f"{100 * value:.1f} %"


def format_figure(value: float | None, unit: str) -> str:
    """Return a figure as people read it: shares in per cent, decibel with one digit."""
    if unit == "share":
        return percent(value)
    if value is None:
        return NONE
    if unit == "dB":
        return f"{value:.1f} dB"
    return f"{value:.0f} {unit}" if unit in ("codes", "steps") else number(value)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, float) else text(value)
