"""Every decoder on one world, by speed and by quality."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from worldgen.evaluation.pareto_quality import QUALITIES, WorldQuality
from worldgen.evaluation.speed.decode_bench import DecodeBench, bench_decoders, world_subject
from worldgen.pipeline import World

__all__ = ["compare_decoders", "format_lines", "on_the_front"]

_REFRESH_SECONDS = 0.3


def compare_decoders(
    world: World,
    bench: DecodeBench,
    *,
    clips: int = 4,
    horizon: int = 16,
    progress: bool = True,
) -> dict[str, Any]:
    """Return the figures of `bench_decoders` with those of quality beside them.

    Speed is that of one sequence; quality comes from test clips that are drawn as one batch.

    Args:
        world: To measure.
        bench: What is measured.
        clips: Test clips; 0 for speed alone.
        horizon: Frames to predict in each.
        progress: Show bars on the terminal.

    Raises:
        ConfigError: If a decoder is unknown or cannot be measured.
    """
    subject = world_subject(world, bench)
    result = bench_decoders(subject, bench, progress=progress)
    result["quality"] = {"clips": 0, "horizon": horizon, "note": None, "figures": QUALITIES}
    if not clips:
        return result
    assert subject.tokenizer is not None
    parts = dataclasses.replace(
        world.parts, model=subject.paired_model, visual_tokenizer=subject.tokenizer
    )
    moved = dataclasses.replace(world, parts=parts)
    entries = result["decoders"]
    with tqdm(total=1 + len(entries), desc="quality", disable=None if progress else True) as bar:
        shown = 0.0

        def tell(text: str) -> None:
            nonlocal shown
            bar.set_postfix_str(text, refresh=False)
            if time.monotonic() - shown > _REFRESH_SECONDS:
                shown = time.monotonic()
                bar.refresh()

        quality = WorldQuality(moved, clips=clips, horizon=horizon, tell=tell)
        bar.update()
        for entry in entries:
            tell(entry["decoder"])
            entry |= quality.measure(subject.decoder(entry["decoder"]))
            bar.update()
    result["quality"] |= {"clips": quality.clips, "note": quality.note}
    return result


def on_the_front(entries: Sequence[dict[str, Any]], quality: str) -> list[str]:
    """Return the decoders that none surpasses in both speed and one quality, fastest first.

    Args:
        entries: Of `compare_decoders`.
        quality: Key of a figure of which more is better; entries without it are left out.
    """
    known = sorted(
        (entry for entry in entries if entry.get(quality) is not None),
        key=lambda entry: (-entry["frames_per_second"], -entry[quality]),
    )
    front, best = [], float("-inf")
    for entry in known:
        if entry[quality] > best:
            front.append(entry["decoder"])
            best = entry[quality]
    return front


def format_lines(result: dict[str, Any]) -> list[str]:
    """Return the figures as lines of a terminal, one for each decoder."""
    lines = []
    for entry in result["decoders"]:
        parts = [
            f"{entry['calls_per_frame']:.4g} calls",
            f"{entry['frames_per_second']:.4g} frames/s",
            f"p50 {entry['frame_ms_p50']:.4g} ms",
            f"p99 {entry['frame_ms_p99']:.4g} ms",
        ]
        if entry["guessed_right"] is not None:
            parts.append(f"{100 * entry['guessed_right']:.1f} % of the cells guessed right")
        if entry["share_of_floor"] is not None:
            parts.append(f"{100 * entry['share_of_floor']:.2g} % of the floor's speed")
        for name, unit in (("log_likelihood", " nats"), ("psnr", " dB"), ("drift_db", " dB")):
            if entry.get(name) is not None:
                parts.append(
                    f"{name.removesuffix('_db').replace('_', ' ')} {entry[name]:.4g}{unit}"
                )
        if entry.get("action_following") is not None:
            parts.append(f"actions followed {100 * entry['action_following']:.1f} %")
        lines.append(f"{entry['decoder']}: {', '.join(parts)}")
    for entry in result.get("upstream", []):
        lines.append(
            f"upstream's design, {entry['decoder']}: {entry['calls_per_frame']:.4g} calls, p50 "
            f"{entry['model_ms_p50']:.4g} ms, ours is {entry['times_faster']:.3g} times faster"
        )
    return lines + [f"note: {note}" for note in result["notes"]]
