"""The figures of a world as JSON, and as one page that needs nothing else."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from worldgen.checkpoint import write_text
from worldgen.evaluation.measures import at_keys
from worldgen.evaluation.pages.curves import line_chart
from worldgen.evaluation.pages.page import (
    NONE,
    conditions,
    format_figure,
    number,
    page,
    percent,
    pictures,
    table,
    text,
)

__all__ = [
    "format_references",
    "format_target",
    "render_report",
    "without_pictures",
    "write_json",
    "write_report",
]

_REFERENCES = {
    "generated": "dream",
    "repeat_last_frame": "repeating the last frame",
    "tokenizer_reconstruction": "tokenizer's reconstruction",
    "real_frames": "judge on real frames",
    "last_true_value_kept": "last true value kept",
    "best_shift": "best whole-frame shift",
    "all_states": "of all states",
}


def without_pictures(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of `evaluate_world` without its film strips, which are long."""
    return {key: value for key, value in result.items() if key != "film_strips"}


def write_json(result: Mapping[str, Any], path: Path) -> None:
    """Write the figures as JSON, without the pictures.

    Args:
        result: From `evaluate_world`.
        path: Destination.
    """
    write_text(path, json.dumps(without_pictures(result), indent=2) + "\n")


def write_report(result: Mapping[str, Any], path: Path) -> None:
    """Write the figures as one HTML page with its pictures inside.

    Args:
        result: From `evaluate_world`.
        path: Destination.
    """
    write_text(path, render_report(result))


def render_report(result: Mapping[str, Any]) -> str:
    """Return the page of `write_report`."""
    title = f"{result['world']}: how good is the world"
    sections = [
        _headline(result),
        _summary(result["summary"]),
        _strips(result["film_strips"]),
        _rollout(result["rollout"]),
        _tokens(result["tokens"]),
        _motion(result.get("motion")),
        _tiles(result.get("tiles")),
        _inverse_dynamics(result["inverse_dynamics"]),
        _judges(result["judges"]),
        _conditions(result),
    ]
    return page(title, sections)


def _headline(result: Mapping[str, Any]) -> str:
    protocol = result["protocol"]
    rows = [row for row in result["summary"] if row["met"] is not None]
    met = sum(bool(row["met"]) for row in rows)
    return (
        f"<header><h1>{text(result['world'])}</h1>"
        f"<p>{protocol['clips']} test clips from {protocol['episodes']} episodes never trained on, "
        f"{protocol['context_frames']} frames of context, {protocol['predicted_frames']} predicted "
        f"under the recorded actions. Decoder {text(protocol['decoder'])}, temperature "
        f"{protocol['temperature']:g}, top-p {protocol['top_p']:g}.</p>"
        f'<p class="score"><b>{met}</b> of {len(rows)} targets met</p></header>'
    )


def _summary(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        verdict = {True: ("met", "good"), False: ("missed", "bad"), None: ("", "none")}[row["met"]]
        small = "; ".join(filter(None, (format_references(row), row["note"])))
        lines.append(
            f"<tr><td>{text(row['name'])}"
            + (f"<small>{text(small)}</small>" if small else "")
            + f'</td><td class="number">{format_figure(row["value"], row["unit"])}</td>'
            f'<td class="number">{format_target(row)}</td>'
            f'<td><span class="pill {verdict[1]}">{verdict[0]}</span></td></tr>'
        )
    return (
        "<section><h2>Figures and targets</h2><table class=summary><thead><tr><th>what</th>"
        "<th class=number>measured</th><th class=number>target</th><th></th></tr></thead><tbody>"
        f"{''.join(lines)}</tbody></table></section>"
    )


def _strips(strips: Iterable[Mapping[str, Any]]) -> str:
    return (
        "<section><h2>Film strips</h2><p>The truth, the tokenizer's reconstruction of it, and the "
        "dream under the same actions; the numbers are steps after the context.</p>"
        f"{pictures(strips)}</section>"
    )


def _rollout(rollout: Mapping[str, Any]) -> str:
    charts = "".join(
        line_chart(
            {_REFERENCES[name]: values for name, values in rollout["every_step"][measure].items()},
            title=f"{label} over steps",
            x_label="step",
            y_label=label,
        )
        for measure, label in (("psnr", "PSNR, dB"), ("ssim", "SSIM"))
    )
    head = ["", *(f"step {step}" for step in rollout["steps"])]
    body = [
        [f"{label} {_REFERENCES[name]}", *map(number, values)]
        for measure, label in (("psnr", "PSNR,"), ("ssim", "SSIM,"))
        for name, values in rollout[measure].items()
    ]
    body += [
        ["gain over repeating, dB", *map(number, rollout["gain_db"])],
        ["gain in the mean error, dB", *map(number, rollout["gain_db_of_mean_error"])],
        [
            "the same on frames that change",
            *map(number, rollout["gain_db_on_changed_frames"]),
        ],
        [
            "clips better than repeating",
            *(f"{100 * share:.0f} %" for share in rollout["clips_better_than_repeating"]),
        ],
    ]
    return (
        f"<section><h2>Rollouts against the truth</h2><div class=charts>{charts}</div>"
        f"{table(head, body)}</section>"
    )


def _tokens(tokens: Mapping[str, Any]) -> str:
    head = ["one step ahead", "tokens", "dream", "copying", "best whole-frame shift"]
    body = [
        [
            name.replace("_", " "),
            f"{tokens[name]['tokens']:,}",
            *(percent(tokens[name][key]) for key in ("generated", "copying", "best_shift")),
        ]
        for name in ("changed", "scrolled_in", "unchanged", "all")
    ]
    return (
        "<section><h2>Tokens</h2><p>Share of equal tokens, each frame drawn after the true past. "
        "Tokens that scroll in from outside, as the best whole-frame shift of the truth tells, "
        f"count apart.</p>{table(head, body)}</section>"
    )


def _motion(motion: Mapping[str, Any] | None) -> str:
    if motion is None:
        return ""
    parts = ["<section><h2>Motion</h2><p>Read by judges from frames, against the true motion.</p>"]
    for judge, quantities in motion["tracking"].items():
        body = [
            [
                f"{quantity.replace('_', ' ')}, steps {window}",
                *(number(figures[name]["correlation"]) for name in figures),
            ]
            for quantity, windows in quantities.items()
            for window, figures in windows.items()
        ]
        names = next(iter(next(iter(quantities.values())).values()))
        head = [f"correlation, judge “{judge}”", *(_REFERENCES.get(name, name) for name in names)]
        parts.append(table(head, body))
    for judge, held in (motion["held_actions"] or {}).items():
        body = [
            [
                action,
                *(
                    number(figures[source][key]) if figures[source] is not None else NONE
                    for key in ("turned", "speed_gained", "speed")
                    for source in ("generated", "simulator")
                ),
            ]
            for action, figures in held["means"].items()
        ]
        head = [
            f"held 10 steps, judge “{judge}”",
            *("turned, dream", "simulator"),
            *("speed gained, dream", "simulator"),
            *("speed, dream", "simulator"),
        ]
        parts.append(table(head, body))
    parts.append("</section>")
    return "".join(parts)


def _tiles(tiles: Mapping[str, Any] | None) -> str:
    if tiles is None:
        return ""
    reading = tiles["reconstructions"]
    body = [
        [name, f"{figures['tiles']:,}", percent(figures["agreement"])]
        for name, figures in reading["classes"].items()
    ]
    moves = [
        [source.replace("_", " "), f"{label} {name}", str(cases["cases"]), percent(cases["share"])]
        for source in ("recorded_actions", "each_move_from_every_state")
        if tiles[source] is not None
        for key, label in (
            ("free_moves_scroll_by_direction", "free"),
            ("blocked_moves_stay_by_obstacle", "blocked by"),
        )
        for name, cases in tiles[source][key].items()
    ]
    return (
        "<section><h2>Tiles</h2><p>How often the judge reads a reconstructed tile as it reads the "
        "original, by what the original shows.</p>"
        f"{table(['class', 'tiles', 'read alike'], body)}"
        "<p>Free moves that scroll by one tile the right way, blocked moves that do not scroll.</p>"
        f"{table(['actions', 'move', 'cases', 'right'], moves)}</section>"
    )


def _inverse_dynamics(judged: Mapping[str, Any]) -> str:
    title = "<section><h2>Actions read from frames</h2>"
    if "absent" in judged:
        return f"{title}<p>Not measured: {text(judged['absent'])}.</p></section>"
    frames, held_out = judged["frames"], judged["held_out"]
    names = [_REFERENCES[source] for source in frames]
    scores = {"precision_macro": "precision", "recall_macro": "recall", "f1_macro": "F1"}
    scores["f1_micro"] = "right steps"
    rows: dict[str, tuple[str, ...]] = {
        name: ("tasks", name) for name in frames["generated"]["tasks"]
    }
    if rows:
        rows["mean over tasks"] = ("mean_over_tasks",)
        for window in frames["generated"]["windows"]:
            rows[f"mean, steps {window}"] = ("windows", window, "mean_over_tasks")
    tasks = [
        [
            f"{name}: {_REFERENCES[source]}",
            *(percent(at_keys(figures, keys)[score]) for score in scores),
        ]
        for name, keys in rows.items()
        for source, figures in frames.items()
    ]
    head = ["task, macro averages", *scores.values()]
    axes = [
        [
            f"{axis}, bins",
            *(number(f["axes"][axis]["mean_absolute_difference"]) for f in frames.values()),
        ]
        for axis in frames["generated"]["axes"]
    ]
    if frames["generated"]["camera_error_bins"] is not None:
        axes.append(["camera, 11 bins", *(number(f["camera_error_bins"]) for f in frames.values())])
    shifts = [
        [
            f"{step} steps",
            *(percent(f["alignment"]["agreement"].get(step)) for f in frames.values()),
        ]
        for step in frames["real_frames"]["alignment"]["agreement"]
    ]
    confusions = "".join(
        f"<h3>{text(name)}, dream</h3>"
        + table(
            ["taken, and read as", *task["answers"]],
            [
                [answer, *(f"{count:,}" for count in counts)]
                for answer, counts in zip(task["answers"], task["confusion"], strict=True)
            ],
        )
        for name, task in frames["generated"]["tasks"].items()
    )
    alarm = "".join(f"<p><b>{text(problem)}</b></p>" for problem in judged["misaligned"])
    mean = held_out.get("mean_over_tasks")
    ceiling = f"; macro F1 {percent(mean['f1_macro'])} on its held-out recording" if mean else ""
    parts = [
        title,
        alarm,
        "<p>An inverse dynamics model labels every step with the action that it sees; held against "
        "the actions taken. What it reads from real frames is the most that a dream can reach"
        f"{ceiling}.</p>",
        table(head, tasks) if tasks else "",
        table(["mean absolute error", *names], axes) if axes else "",
        "<p>Agreement with actions shifted by some steps, where shifts make a difference; the "
        "most must be at +0.</p>",
        table(["shift", *names], shifts),
        confusions,
        "</section>",
    ]
    return "".join(parts)


def _judges(judges: Mapping[str, Any]) -> str:
    body = []
    for judge, figures in judges.items():
        for quantity, entry in figures.items():
            if isinstance(entry, Mapping) and "correlation" in entry:
                error = number(entry["root_mean_square_error"])
                body.append([judge, quantity, f"correlation {number(entry['correlation'])}", error])
        if "accuracy" in figures:
            body.append([judge, "tiles", f"accuracy {percent(figures['accuracy'])}", NONE])
    if not body:
        return "<section><h2>Judges</h2><p>This world has no judges.</p></section>"
    head = ["judge", "quantity", "on held-out real frames", "root mean square error"]
    return f"<section><h2>Judges</h2>{table(head, body)}</section>"


def _conditions(result: Mapping[str, Any]) -> str:
    groups = {
        "protocol": result["protocol"],
        "tokenizer": result["tokenizer"],
        "replay": result["replay"],
        "cost over time": result["cost"],
        "hardware": result["hardware"],
        "versions": {"world hash": result["world_hash"][:16], **result["versions"]},
    }
    return conditions(groups)


def format_references(row: Mapping[str, Any]) -> str:
    """Return the figures that stand beside a row of the summary, with their names."""
    return ", ".join(
        f"{_REFERENCES.get(name, name.replace('_', ' '))} {number(value)}"
        for name, value in row["references"].items()
    )


def format_target(row: Mapping[str, Any]) -> str:
    """Return the bounds of a row of the summary, empty where it has none."""
    low, high = row["at_least"], row["at_most"]
    if low is not None and high is not None:
        return f"{format_figure(low, row['unit'])} to {format_figure(high, row['unit'])}"
    if low is not None:
        return f"≥ {format_figure(low, row['unit'])}"
    return f"≤ {format_figure(high, row['unit'])}" if high is not None else ""
