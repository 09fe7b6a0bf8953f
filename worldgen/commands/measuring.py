"""What the commands do that measure quality and speed."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from worldgen.commands.output import check_output, json_path, note, write_json
from worldgen.commands.rolling import sampling_of
from worldgen.errors import ConfigError
from worldgen.pipeline import (
    load,
)

if TYPE_CHECKING:
    from worldgen.evaluation.speed.decode_bench import DecodeBench


__all__ = ["COMMANDS"]

_INTERRUPTED = 130


def _evaluate_world(arguments: Namespace) -> int:
    from worldgen.evaluation.pages.report import write_report
    from worldgen.evaluation.world import evaluate_world

    world = load(arguments.world)
    check_output(json_path(arguments))
    check_output(arguments.html)
    result = evaluate_world(
        world,
        clips=arguments.clips,
        data=arguments.data,
        inverse_dynamics=arguments.inverse_dynamics,
        long=arguments.long,
    )
    if arguments.html is not None:
        write_report(result, arguments.html)
    _tell(result, arguments.json, map(_summary_line, result["summary"]))
    # Every figure of action following is worth nothing then, so no script shall overlook it.
    misaligned = result["inverse_dynamics"].get("misaligned", [])
    for problem in misaligned:
        print(f"worldgen: {problem}", file=sys.stderr)
    return 1 if misaligned else 0


def _tell(result: Mapping[str, Any], destination: str | None, lines: Iterable[str]) -> None:
    """Write figures where they are wanted, and print lines about them unless they go there."""
    from worldgen.evaluation.pages.report import without_pictures

    if destination is not None:
        # The pictures of a report would be most of the file.
        write_json(without_pictures(result), destination)
    if destination != "-":
        for line in lines:
            print(line)


def _summary_line(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return f"{row['name']}: not measured" + (f" ({row['note']})" if row["note"] else "")
    bounds = [
        f"target {word} {row[bound]:g}"
        for bound, word in (("at_least", "at least"), ("at_most", "at most"))
        if row[bound] is not None
    ]
    verdict = {True: "met", False: "missed", None: ""}[row["met"]]
    judged = ", ".join([*bounds, *([verdict] if verdict else [])])
    return f"{row['name']}: {row['value']:.4g} {row['unit']}".rstrip() + (
        f" ({judged})" if judged else ""
    )


def _evaluate_long(arguments: Namespace) -> int:
    from worldgen.evaluation.long import LongProtocol, evaluate_long
    from worldgen.evaluation.pages.long_page import format_windows, read_earlier, write_page

    world = load(arguments.world)
    check_output(json_path(arguments))
    check_output(arguments.html)
    beside = read_earlier(arguments.beside)
    protocol = LongProtocol(
        seconds=arguments.seconds,
        rollouts=arguments.rollouts,
        actions=arguments.actions,
        decoder=arguments.decoder,
        plan=arguments.plan,
    )
    result = evaluate_long(world, protocol, data=arguments.data)
    if arguments.html is not None:
        write_page(result, arguments.html, beside)
    return _tell_all(result, arguments, format_windows(result))


def _evaluate_revisits(arguments: Namespace) -> int:
    from worldgen.evaluation.pages.revisits_page import format_revisits, write_page
    from worldgen.evaluation.revisits import RevisitProtocol, evaluate_revisits

    world = load(arguments.world)
    check_output(json_path(arguments))
    check_output(arguments.html)
    protocol = RevisitProtocol(
        out_steps=arguments.out_steps, clips=arguments.clips, decoder=arguments.decoder
    )
    beside = [load(name) for name in arguments.beside]
    result = evaluate_revisits(world, protocol, data=arguments.data, beside=beside)
    if arguments.html is not None:
        write_page(result, arguments.html)
    return _tell_all(result, arguments, format_revisits(result))


def _evaluate_text(arguments: Namespace) -> int:
    from worldgen.evaluation.pages.text_page import format_text, write_page
    from worldgen.evaluation.text import TextProtocol, evaluate_text

    world = load(arguments.world)
    check_output(json_path(arguments))
    check_output(arguments.html)
    protocol = TextProtocol(
        captions=arguments.captions,
        seed=arguments.seed,
        seconds_on=arguments.seconds_on,
        decoder=arguments.decoder,
        sampling=sampling_of(world, arguments),
    )
    result = evaluate_text(world, protocol, data=arguments.data)
    if arguments.html is not None:
        write_page(result, arguments.html)
    return _tell_all(result, arguments, format_text(result))


def _tell_all(result: Mapping[str, Any], arguments: Namespace, lines: Iterable[str]) -> int:
    """Tell the figures of a long measurement; return the status, that of an interrupt after one."""
    _tell(result, arguments.json, lines)
    if not result["interrupted"]:
        return 0
    note("stopped; the figures are of what was measured until then")
    return _INTERRUPTED


def _evaluate_drive(arguments: Namespace) -> int:
    from worldgen.evaluation.drive import evaluate_drive, format_drive

    world = load(arguments.world)
    check_output(json_path(arguments))
    result = evaluate_drive(
        world,
        data=arguments.data,
        seconds=arguments.seconds,
        clips=arguments.clips,
        judge=arguments.judge,
    )
    _tell(result, arguments.json, format_drive(result))
    return 0


def _evaluate_tokenizer(arguments: Namespace) -> int:
    from worldgen.evaluation.tokenizers.tokenizer import TokenizerProtocol, evaluate_tokenizer
    from worldgen.evaluation.tokenizers.tokenizer_report import format_lines, write_tokenizer_report

    check_output(json_path(arguments))
    check_output(arguments.html)
    protocol = TokenizerProtocol(
        data=arguments.data,
        split=arguments.split,
        num_frames=arguments.frames,
        limit=arguments.limit,
        size=arguments.size,
        seed=arguments.seed,
        lpips=arguments.lpips,
        features=arguments.features,
        device=arguments.device,
    )
    result = evaluate_tokenizer(arguments.tokenizer, protocol)
    if arguments.html is not None:
        write_tokenizer_report(result, arguments.html)
    _tell(result, arguments.json, format_lines(result))
    return 0


def _bench_play(arguments: Namespace) -> int:
    from worldgen.evaluation.speed.play_bench import bench_play

    check_output(json_path(arguments))
    write_json(bench_play(load(arguments.world), arguments.frames), arguments.json)
    return 0


def _bench_tokenizer(arguments: Namespace) -> int:
    from worldgen.evaluation.speed.tokenizer_bench import TokenizerBench, bench_tokenizer

    check_output(json_path(arguments))
    bench = TokenizerBench(
        frames=arguments.frames,
        height=arguments.height,
        width=arguments.width,
        rounds=arguments.rounds,
        device=arguments.device,
        precision=arguments.precision,
    )
    write_json(bench_tokenizer(bench), arguments.json)
    return 0


def _bench_decode(arguments: Namespace) -> int:
    from worldgen.evaluation.pareto import compare_decoders, format_lines
    from worldgen.evaluation.speed.decode_bench import bench_decoders, preset_subject

    check_output(json_path(arguments))
    bench = _decode_bench(arguments, with_upstream=arguments.with_upstream)
    options = {
        name: getattr(arguments, name)
        for name in ("rows", "columns", "layers", "tokenizer")
        if getattr(arguments, name) is not None
    }
    if arguments.world is not None:
        wrong = [f"--{name}" for name in options]
        wrong += ["--random-weights"] if arguments.random_weights else []
        if wrong:
            raise ConfigError(f"{', '.join(wrong)} go with --model; a world has its own sizes")
        result = compare_decoders(
            load(arguments.world), bench, clips=arguments.clips, horizon=arguments.horizon
        )
    else:
        if not arguments.random_weights:
            raise ConfigError(
                f"{arguments.model!r} names sizes and no weights; add --random-weights to measure "
                "its speed, or take --world"
            )
        if arguments.draft is not None:
            raise ConfigError(
                "--draft goes with --world: without weights there is nothing to guess"
            )
        subject = preset_subject(arguments.model, bench, **options)
        result = bench_decoders(subject, bench, tell=note)
    write_json(result, arguments.json)
    if arguments.json != "-":
        for line in format_lines(result):
            print(line)
    return 0


def _decode_bench(arguments: Namespace, **options: Any) -> "DecodeBench":
    from worldgen.evaluation.speed.decode_bench import DecodeBench

    return DecodeBench(
        decoders=tuple(arguments.decoder or ()),
        frames=arguments.frames,
        device=arguments.device,
        precision=arguments.precision,
        draft=arguments.draft,
        **options,
    )


def _pareto(arguments: Namespace) -> int:
    from worldgen.evaluation.pages.pareto_page import write_page
    from worldgen.evaluation.pareto import compare_decoders, format_lines

    check_output(json_path(arguments))
    check_output(arguments.html)
    result = compare_decoders(
        load(arguments.world),
        _decode_bench(arguments),
        clips=arguments.clips,
        horizon=arguments.horizon,
    )
    write_page(result, arguments.html)
    _tell(result, arguments.json, format_lines(result))
    return 0


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "evaluate world": _evaluate_world,
    "evaluate long": _evaluate_long,
    "evaluate revisits": _evaluate_revisits,
    "evaluate text": _evaluate_text,
    "evaluate drive": _evaluate_drive,
    "evaluate tokenizer": _evaluate_tokenizer,
    "bench play": _bench_play,
    "bench tokenizer": _bench_tokenizer,
    "bench decode": _bench_decode,
    "pareto": _pareto,
}
