"""The figures that a world is judged by, each with its target and its references."""

from collections.abc import Sequence
from typing import Any

from worldgen.evaluation.measures import at_keys

__all__ = ["figure_row", "summarise", "trusted_judge"]

JUDGE_CORRELATION = 0.95
"""A quantity is claimed only where its judge reaches this on held-out real frames."""


def summarise(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each headline figure: name, value, unit, target, whether it is met.

    `met` is None where nothing was measured or no judge can be trusted; `note` says why.

    Args:
        result: The figures of `evaluate_world` so far.
    """
    rows = [*_tokenizer_rows(result), *_rollout_rows(result)]
    if "motion" in result:
        rows += _motion_rows(result)
    if "tiles" in result:
        rows += _tile_rows(result)
    rows += _inverse_dynamics_rows(result["inverse_dynamics"])
    replay, cost = result["replay"], result["cost"]
    rows.append(
        figure_row(
            f"replay identical over {replay['frames']} frames, forks, rewinds, a new process",
            1.0 if replay["identical"] else 0.0,
            "share",
            at_least=1.0,
        )
    )
    name = f"cost of frame {cost['late_frame']} over frame {cost['early_frame']}"
    rows.append(figure_row(name, cost["ratio"], "times", at_most=1.05))
    return rows


def trusted_judge(judges: dict[str, Any], quantity: str) -> tuple[str | None, float | None]:
    """Return the first judge that reads a quantity well enough, and its held-out correlation.

    Judges are asked in their order in the file; the one that must see motion comes first.

    Args:
        judges: Name -> its figures on held-out real frames.
        quantity: For example yaw_change.
    """
    for name, figures in judges.items():
        reached = figures.get(quantity, {}).get("correlation")
        if reached is not None and reached >= JUDGE_CORRELATION:
            return name, reached
    return None, None


def figure_row(
    name: str,
    value: float | None,
    unit: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    references: dict[str, float | None] | None = None,
    note: str = "",
    claim: bool = True,
) -> dict[str, Any]:
    """Return a headline figure with its bounds, references, and whether it is met.

    Args:
        name: What was measured.
        value: None where nothing was.
        unit: As `worldgen.evaluation.pages.page.format_figure` knows them.
        at_least: Lower bound, if there is one.
        at_most: Upper bound.
        references: What it stands beside, by name.
        note: For the reader.
        claim: Whether the judge can be trusted; without that nothing is met or missed.
    """
    met: bool | None = None
    if value is not None and claim and (at_least is not None or at_most is not None):
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "at_least": at_least,
        "at_most": at_most,
        "met": met,
        "references": references or {},
        "note": note,
    }


def _tokenizer_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    tokenizer = result["tokenizer"]
    wanted = {"motion": 37.0, "tiles": 33.0}
    target = next((psnr for kind, psnr in wanted.items() if kind in result), None)
    dead = tokenizer["codebook_size"] - tokenizer["codes_used"]
    return [
        figure_row("tokenizer, PSNR on test frames", tokenizer["psnr"], "dB", at_least=target),
        figure_row("tokenizer, SSIM on test frames", tokenizer["ssim"], ""),
        figure_row(
            "tokenizer, perplexity of the codes",
            tokenizer["perplexity"],
            "codes",
            note=f"{tokenizer['codes_used']} of {tokenizer['codebook_size']} codes occur in these "
            f"frames, {dead} do not",
        ),
    ]


def _rollout_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    rollout = result["rollout"]
    steps: Sequence[int] = rollout["steps"]
    targets: dict[int, float] = {}
    if "motion" in result:
        targets = {4: 7.0, 8: 6.0, 16: 5.0}
    elif "tiles" in result:
        targets = dict.fromkeys((1, 2, 4, 8, 16, 32), 0.0)
    rows = []
    for place, step in enumerate(steps):
        changed = rollout["changed_frames"][place]
        rows.append(
            figure_row(
                f"rollout, PSNR over repeating the last frame, step {step}",
                rollout["gain_db_on_changed_frames"][place],
                "dB",
                at_least=targets.get(step),
                references={
                    **{
                        name: rollout["psnr_on_changed_frames"][name][place]
                        for name in ("generated", "repeat_last_frame", "tokenizer_reconstruction")
                    },
                    "gain_in_the_mean_error": rollout["gain_db_of_mean_error"][place],
                    "gain_with_frames_that_stand_still": rollout["gain_db"][place],
                },
                note=f"{changed} of {result['protocol']['clips']} clips, those whose frame differs "
                "from the last one of the context",
            )
        )
    return rows


def _motion_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    judges, motion = result["judges"], result["motion"]
    rows = []
    for quantity, label, targets in (
        ("yaw_change", "turning under the recorded actions", (0.98, 0.9)),
        ("speed", "speed under the recorded actions", (None, None)),
    ):
        judge, reached = trusted_judge(judges, quantity)
        shown = judge or next(iter(motion["tracking"]))
        windows = motion["tracking"][shown].get(quantity, {})
        for (window, figures), target in zip(windows.items(), targets, strict=False):
            rows.append(
                figure_row(
                    f"{label}, generated against true, steps {window}",
                    figures["generated"]["correlation"],
                    "correlation",
                    at_least=target,
                    references={
                        n: v["correlation"] for n, v in figures.items() if n != "generated"
                    },
                    note=_judge_note(judge, reached, shown),
                    claim=judge is not None,
                )
            )
    if motion["held_actions"] is not None:
        rows += _held_rows(judges, motion["held_actions"])
    return rows


def _held_rows(judges: dict[str, Any], held: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for share, quantity, label, target in (
        ("left_turns_left", "yaw_change", "holding left turns left", 0.99),
        ("right_turns_right", "yaw_change", "holding right turns right", 0.99),
        ("gas_faster_than_nothing", "speed", "gas faster than nothing", 0.95),
        ("brake_slower_than_nothing", "speed", "brake slower than nothing", 0.98),
    ):
        judge, reached = trusted_judge(judges, quantity)
        shown = judge or next(iter(held))
        figures = held[shown]["shares"][share]
        note = f"{figures['states']} of {held[shown]['states']} states, those where the simulator "
        note += "reacts; " if held[shown]["simulator"] else "reacts is unknown: all counted; "
        rows.append(
            figure_row(
                f"{label}, 10 steps",
                figures["share"],
                "share",
                at_least=target,
                references={"all_states": figures["share_of_all_states"]},
                note=note + _judge_note(judge, reached, shown),
                claim=judge is not None,
            )
        )
    judge, reached = trusted_judge(judges, "speed")
    shown = judge or next(iter(held))
    for key, label in (
        ("speed_gained_by_gas", "mean speed gained by gas"),
        ("speed_lost_by_brake", "mean speed lost by brake"),
    ):
        figures = held[shown][key]
        rows.append(
            figure_row(
                f"{label} over the simulator's",
                figures["ratio"],
                "times",
                at_least=0.8,
                at_most=1.2,
                references={"generated": figures["generated"], "simulator": figures["simulator"]},
                note=_judge_note(judge, reached, shown),
                claim=judge is not None,
            )
        )
    return rows


def _judge_note(judge: str | None, reached: float | None, shown: str) -> str:
    if judge is None:
        return f"no claim: no judge reaches {JUDGE_CORRELATION} on real frames; read by {shown!r}"
    return f"read by {judge!r}, correlation {reached:.3f} on held-out real frames"


def _tile_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    tiles, tokens = result["tiles"], result["tokens"]
    rows = [
        figure_row(
            f"judge reads {group} from reconstructions as from originals",
            tiles["reconstructions"][group]["agreement"],
            "share",
            at_least=target,
            note=f"{tiles['reconstructions'][group]['tiles']} tiles",
        )
        for group, target in (
            ("player", 0.97),
            ("facing", 0.97),
            ("mobs", 0.97),
            ("digits", 0.97),
            ("arrows", None),
        )
    ]
    for where, label, target in (
        ("changed", "tokens that change", 0.85),
        ("scrolled_in", "tokens that scroll in from outside", None),
    ):
        figures = tokens[where]
        rows.append(
            figure_row(
                f"one-step accuracy on {label}",
                figures["generated"],
                "share",
                at_least=target,
                references={name: figures[name] for name in ("copying", "best_shift")},
                note=f"{figures['tokens']} tokens",
            )
        )
    recorded, every = tiles["recorded_actions"], tiles["each_move_from_every_state"]
    for source, label in ((recorded, "recorded"), (every, "every move from every state")):
        if source is None:
            continue
        for key, name, target in (
            ("free_moves_scroll", "free moves scroll one tile the right way", 0.98),
            ("blocked_moves_stay", "blocked moves do not scroll", 0.95),
        ):
            rows.append(
                figure_row(
                    f"{name}, {label}",
                    source[key]["share"],
                    "share",
                    at_least=target,
                    note=f"{source[key]['cases']} cases",
                )
            )
    removed = recorded["do_removes_the_block"]
    rows.append(
        figure_row(
            "do removes the block that it truly removed",
            removed["share"],
            "share",
            at_least=0.9,
            note=f"{removed['cases']} cases",
        )
    )
    return rows


def _inverse_dynamics_rows(judged: dict[str, Any]) -> list[dict[str, Any]]:
    name = "actions read from dreamt frames"
    if "absent" in judged:
        return [figure_row(f"{name}, F1", None, "", note=f"not measured: {judged['absent']}")]
    frames = judged["frames"]
    own = frames["generated"]
    steps = f"{own['steps']} steps"
    rows = []

    def add(label: str, unit: str, keys: tuple[str, ...], note: str) -> None:
        values: dict[str, float | None] = {
            source: at_keys(figures, keys) for source, figures in frames.items()
        }
        value = values.pop("generated")
        rows.append(figure_row(f"{name}, {label}", value, unit, references=values, note=note))

    if own["mean_over_tasks"] is not None:
        note = f"macro average, mean over {', '.join(own['tasks'])}; {steps}"
        for score, label in (("f1", "F1"), ("precision", "precision"), ("recall", "recall")):
            add(label, "share", ("mean_over_tasks", f"{score}_macro"), note)
    if own["camera_error_bins"] is not None:
        add("camera error", "bins", ("camera_error_bins",), f"11 bins up to 10 degrees; {steps}")
    for axis, figures in own["axes"].items():
        note = f"of {figures['bins']} bins; {steps}"
        add(f"error of {axis}", "bins", ("axes", axis, "mean_absolute_difference"), note)
    for source, label in (("real_frames", "real"), ("generated", "dreamt")):
        found = frames[source]["alignment"]
        shift = found["best_shift"]
        rows.append(
            figure_row(
                f"shift of the actions that suits {label} frames best",
                None if shift is None else float(shift),
                "steps",
                at_least=0.0,
                at_most=0.0,
                references={f"shift_{step}": share for step, share in found["agreement"].items()},
                note=f"{found['cases']} cases that tell shifts apart"
                + ("" if found["aligned"] is not None else ", too few to be sure"),
                claim=found["aligned"] is not None,
            )
        )
    return rows
