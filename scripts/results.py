"""Fill the tables of docs/results.md from measured figures: `python -m scripts.results *.json`."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldgen.checkpoint import write_text
from worldgen.evaluation.pages.page import format_figure
from worldgen.evaluation.pages.report import format_references, format_target

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results.md"
_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"
_VERDICTS = {True: "met", False: "missed", None: ""}


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite the part of the page between its marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "figures", nargs="+", type=Path, help="JSON of `worldgen evaluate world` or `bench play`"
    )
    parser.add_argument("--page", type=Path, default=RESULTS)
    parsed = parser.parse_args(arguments)
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in parsed.figures]
    page = parsed.page.read_text(encoding="utf-8")
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    text = f"{before}{_BEGIN}\n{render_results(documents)}\n{_END}{after}"
    write_text(parsed.page, text)


def render_results(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown with a section for each world, and a table of speeds at the end."""
    evaluations = [document for document in documents if "summary" in document]
    benches = [document for document in documents if "frames_per_second" in document]
    sections = [_world(document) for document in evaluations]
    if benches:
        sections.append(_speeds(benches))
    return "\n\n".join(sections)


def _world(document: Mapping[str, Any]) -> str:
    protocol, hardware = document["protocol"], document["hardware"]
    lines = [
        f"## {document['world']}",
        "",
        f"{protocol['clips']} clips from {protocol['episodes']} test episodes, decoder "
        f"`{protocol['decoder']}`, temperature {protocol['temperature']:g}, top-p "
        f"{protocol['top_p']:g}; world `{document['world_hash'][:12]}`; "
        f"{hardware['processor']}, {hardware['cores']} cores, torch "
        f"{document['versions']['torch']}.",
        "",
        "| figure | measured | target | | references and notes |",
        "|---|---|---|---|---|",
    ]
    for row in document["summary"]:
        cells = (
            row["name"],
            format_figure(row["value"], row["unit"]),
            format_target(row),
            _VERDICTS[row["met"]],
            "; ".join(filter(None, (format_references(row), row["note"]))),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _speeds(benches: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "## Speed",
        "",
        "From the key press to the painted canvas, unpaced, everything included.",
        "",
        "| world | frames/s | latency p50 | p95 | a frame's own time p50 | p95 | measured through | "
        "hardware |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for bench in benches:
        times = (
            f"{bench[key]:.0f} ms"
            for key in (
                "latency_ms_p50",
                "latency_ms_p95",
                "frame_latency_ms_p50",
                "frame_latency_ms_p95",
            )
        )
        way = "headless Chromium" if bench["browser"] else "the WebSocket"
        hardware = bench["hardware"]
        machine = (
            f"{hardware['processor']}, {hardware['cores']} cores, "
            f"load {hardware['load_average']} before"
        )
        cells = (bench["world"], f"{bench['frames_per_second']:.1f}", *times, way, machine)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
