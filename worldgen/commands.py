"""What the words of the command line do; each command takes its arguments and returns a status."""

import dataclasses
import itertools
import json
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Num, UInt8
from tqdm import tqdm

from worldgen.card_text import card_as_markdown, describe_world, format_description
from worldgen.checkpoint import check_new_folder, write_folder, write_text
from worldgen.data.trajectory import read_trajectory, write_motion
from worldgen.data.video import write_video
from worldgen.errors import ActionError, ConfigError, DataError, LogError
from worldgen.generation import RolloutLog, SamplingConfig, Session, Start
from worldgen.pipeline import (
    World,
    WorldCard,
    load,
    load_card,
    save_world,
    shipped_worlds,
    world_folder,
)
from worldgen.tokenizers.action import MAX_STEPS, is_driving_schema, parse_actions

if TYPE_CHECKING:
    from worldgen.evaluation.speed.decode_bench import DecodeBench

__all__ = ["COMMANDS"]

_INTERRUPTED = 130
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}

Frame = UInt8[np.ndarray, "height width 3"]


def _play(arguments: Namespace) -> int:
    # Rolling out a world on a server needs no web server, and starts faster without one.
    from worldgen.serving.app import serve

    if arguments.host not in _LOOPBACK:
        print(
            f"worldgen: listening on {arguments.host}: whoever reaches this machine can play, "
            "without a password",
            file=sys.stderr,
        )
    serve(
        arguments.world or shipped_worlds(),
        host=arguments.host,
        port=arguments.port,
        open_browser=not arguments.no_browser,
        max_sessions=arguments.max_sessions,
        adaptive=arguments.adaptive,
    )
    return 0


def _rollout(arguments: Namespace) -> int:
    _check_output(arguments.out)
    _check_output(arguments.log)
    _check_output(arguments.motion)
    world = load(arguments.world)
    schema = world.action_tokenizer.schema
    if arguments.motion is not None and not is_driving_schema(schema):
        raise ActionError(
            f"world {world.card.name!r} is driven by {', '.join(g.name for g in schema.groups)} and "
            "not by ego motion, so there is none to write; leave --motion out"
        )
    script = _script(world, arguments)
    total = _num_steps(script, world, arguments)
    session = world.session(
        seed=arguments.seed,
        start=arguments.start,
        decoder=arguments.decoder,
        sampling=_sampling(world, arguments),
    )
    actions = _driven(session) if script is None else _played(script, arguments)

    def frames(until: Iterator[Num[np.ndarray, " group"]]) -> Iterator[Frame]:
        yield session.frame
        yield from session.play(until)

    try:
        with _interruptible(itertools.islice(actions, total)) as steps:
            _consume(frames(steps), total, world, arguments)
    finally:
        # Whatever became of the video, the log can make it again.
        if arguments.log is not None:
            session.save(arguments.log)
        if arguments.motion is not None:
            write_motion(arguments.motion, session.actions, world.frames_per_second)
    outputs = (arguments.out, arguments.log, arguments.motion)
    written = [str(path) for path in outputs if path is not None]
    print(
        f"{session.frame_index} frames, hash {session.log().total_hash}"
        + (f", written to {' and '.join(written)}" if written else "")
    )
    if session.frame_index < total:
        print(
            f"worldgen: stopped after {session.frame_index} of {total} steps; all of these are "
            "written",
            file=sys.stderr,
        )
        return _INTERRUPTED
    return 0


def _script(world: World, arguments: Namespace) -> Num[np.ndarray, "step group"] | None:
    """Return the actions of a list or a trajectory; None where the model itself drives."""
    schema = world.action_tokenizer.schema
    if arguments.drive:
        return None
    if arguments.trajectory is not None:
        trajectory = read_trajectory(arguments.trajectory)
        actions, changes = trajectory.actions(schema, world.frames_per_second)
        for change in changes:
            _note(change)
        return actions
    text: str = arguments.actions
    if text.endswith(".txt"):
        lines = Path(text).read_text(encoding="utf-8").splitlines()
        text = ",".join(line for line in lines if line.strip())
    return parse_actions(text, schema)


def _num_steps(
    script: Num[np.ndarray, "step group"] | None, world: World, arguments: Namespace
) -> int:
    """Return the length of a rollout: as many seconds as asked for, or all that there is to do."""
    if arguments.seconds is not None:
        if arguments.repeat is not None:
            raise ConfigError("--seconds and --repeat both say how long; give one of them")
        steps: int = max(1, round(arguments.seconds * world.frames_per_second))
    elif script is None:
        raise ConfigError("--drive goes on for ever; say for how long with --seconds")
    else:
        steps = len(script) * (arguments.repeat or 1)
    if steps > MAX_STEPS:
        raise ActionError(f"{steps:,} steps are more than {MAX_STEPS:,}; shorten the rollout")
    return steps


def _played(
    script: Num[np.ndarray, "step group"], arguments: Namespace
) -> Iterator[Num[np.ndarray, " group"]]:
    """Give out a script for ever: a list again and again, a trajectory with its last step held."""
    hold = arguments.trajectory is not None and arguments.repeat is None
    for number in itertools.count():
        yield script[min(number, len(script) - 1) if hold else number % len(script)]


def _driven(session: Session) -> Iterator[Num[np.ndarray, " group"]]:
    """Give out what the model itself would do; frames that are drawn together share an action."""
    action, asked_at = session.predict_action(), session.frame_index
    while True:
        if session.frame_index != asked_at and not session.frames_left:
            action, asked_at = session.predict_action(), session.frame_index
        yield action


def _replay(arguments: Namespace) -> int:
    _check_output(arguments.out)
    log = RolloutLog.read(arguments.log)
    world = _world_of(log, arguments.world)
    session = world.replay_session(log)
    first_difference: int | None = None

    def frames() -> Iterator[Frame | None]:
        nonlocal first_difference
        # Pixels are wanted only for a video; without one the first difference decides.
        yield session.frame if arguments.out else None
        for same in session.replay(log):
            if not same and first_difference is None:
                first_difference = session.frame_index
                if not arguments.out:
                    return
            yield session.frame if arguments.out else None

    _consume(frames(), len(log.digests), world, arguments)
    digests = session.log().digests
    if first_difference is None:
        print(f"identical: {len(digests)} frames, hash {session.log().total_hash}")
        return 0
    print(
        f"different from frame {first_difference} of {len(log.digests)} on: the log says "
        f"{log.digests[first_difference - 1]}, it came out as {digests[first_difference - 1]}"
    )
    return 1 if arguments.verify else 0


def _info(arguments: Namespace) -> int:
    description = describe_world(load(arguments.world))
    if arguments.json:
        print(json.dumps(description, indent=2))
    else:
        print(format_description(description))
    return 0


def _list(arguments: Namespace) -> int:
    for name in shipped_worlds():
        print(f"{name}: {load_card(world_folder(name)).title}")
    return 0


def _evaluate_world(arguments: Namespace) -> int:
    from worldgen.evaluation.pages.report import write_report
    from worldgen.evaluation.world import evaluate_world

    world = load(arguments.world)
    _check_output(_json_path(arguments))
    _check_output(arguments.html)
    result = evaluate_world(
        world,
        clips=arguments.clips,
        data=arguments.data,
        inverse_dynamics=arguments.inverse_dynamics,
        long=arguments.long,
    )
    if arguments.html is not None:
        write_report(result, arguments.html)
    if arguments.json is not None:
        # The pictures of the report would be most of the file.
        figures = {name: value for name, value in result.items() if name != "film_strips"}
        _write_json(figures, arguments.json)
    if arguments.json != "-":
        for row in result["summary"]:
            print(_summary_line(row))
    # Every figure of action following is worth nothing then, so no script shall overlook it.
    misaligned = result["inverse_dynamics"].get("misaligned", [])
    for problem in misaligned:
        print(f"worldgen: {problem}", file=sys.stderr)
    return 1 if misaligned else 0


def _evaluate_long(arguments: Namespace) -> int:
    from worldgen.evaluation.long import LongProtocol, evaluate_long
    from worldgen.evaluation.pages.long_page import format_windows, write_page
    from worldgen.evaluation.pages.report import without_pictures

    world = load(arguments.world)
    _check_output(_json_path(arguments))
    _check_output(arguments.html)
    protocol = LongProtocol(
        seconds=arguments.seconds,
        rollouts=arguments.rollouts,
        actions=arguments.actions,
        decoder=arguments.decoder,
    )
    result = evaluate_long(world, protocol, data=arguments.data)
    if arguments.html is not None:
        write_page(result, arguments.html)
    if arguments.json is not None:
        _write_json(without_pictures(result), arguments.json)
    if arguments.json != "-":
        for line in format_windows(result):
            print(line)
    return 0


def _evaluate_drive(arguments: Namespace) -> int:
    from worldgen.evaluation.drive import evaluate_drive, format_drive

    world = load(arguments.world)
    _check_output(_json_path(arguments))
    result = evaluate_drive(
        world,
        data=arguments.data,
        seconds=arguments.seconds,
        clips=arguments.clips,
        judge=arguments.judge,
    )
    if arguments.json is not None:
        _write_json(result, arguments.json)
    if arguments.json != "-":
        for line in format_drive(result):
            print(line)
    return 0


def _evaluate_tokenizer(arguments: Namespace) -> int:
    from worldgen.evaluation.pages.report import without_pictures
    from worldgen.evaluation.tokenizers.tokenizer import TokenizerProtocol, evaluate_tokenizer
    from worldgen.evaluation.tokenizers.tokenizer_report import format_lines, write_tokenizer_report

    _check_output(_json_path(arguments))
    _check_output(arguments.html)
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
    if arguments.json is not None:
        _write_json(without_pictures(result), arguments.json)
    if arguments.json != "-":
        for line in format_lines(result):
            print(line)
    return 0


def _bench_play(arguments: Namespace) -> int:
    from worldgen.evaluation.speed.play_bench import bench_play

    _check_output(_json_path(arguments))
    _write_json(bench_play(load(arguments.world), arguments.frames), arguments.json)
    return 0


def _bench_tokenizer(arguments: Namespace) -> int:
    from worldgen.evaluation.speed.tokenizer_bench import TokenizerBench, bench_tokenizer

    _check_output(_json_path(arguments))
    bench = TokenizerBench(
        frames=arguments.frames,
        height=arguments.height,
        width=arguments.width,
        rounds=arguments.rounds,
        device=arguments.device,
        precision=arguments.precision,
    )
    _write_json(bench_tokenizer(bench), arguments.json)
    return 0


def _bench_decode(arguments: Namespace) -> int:
    from worldgen.evaluation.pareto import compare_decoders, format_lines
    from worldgen.evaluation.speed.decode_bench import bench_decoders, preset_subject

    _check_output(_json_path(arguments))
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
        result = bench_decoders(subject, bench, tell=_note)
    _write_json(result, arguments.json)
    if arguments.json != "-":
        for line in format_lines(result):
            print(line)
    return 0


def _pareto(arguments: Namespace) -> int:
    from worldgen.evaluation.pages.pareto_page import write_page
    from worldgen.evaluation.pareto import compare_decoders, format_lines

    _check_output(_json_path(arguments))
    _check_output(arguments.html)
    result = compare_decoders(
        load(arguments.world),
        _decode_bench(arguments),
        clips=arguments.clips,
        horizon=arguments.horizon,
    )
    write_page(result, arguments.html)
    if arguments.json is not None:
        _write_json(result, arguments.json)
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


def _note(text: str) -> None:
    print(f"worldgen: {text}", file=sys.stderr)


def _import_omnitokenizer(arguments: Namespace) -> int:
    from worldgen.interop.omnitokenizer_folder import import_omnitokenizer_folder

    imported = import_omnitokenizer_folder(
        arguments.checkpoint,
        arguments.out,
        arguments=arguments.arguments,
        mode=arguments.mode,
        attention=arguments.attention,
    )
    if imported.unexpected:
        print(
            f"worldgen: {len(imported.unexpected)} names are no part of the tokenizer and unknown: "
            f"{', '.join(imported.unexpected)}",
            file=sys.stderr,
        )
    print(
        f"written to {arguments.out}; {len(imported.ignored)} names of no use here are listed in "
        "its import.json"
    )
    return 0


def _data_inspect(arguments: Namespace) -> int:
    from worldgen.data.formats import open_layout
    from worldgen.data.formats.report import format_report

    _check_output(_json_path(arguments))
    layout = open_layout(arguments.path)
    with tqdm(unit=" recordings", disable=None, leave=False) as bar:
        report = layout.inspect(arguments.limit, bar.update)
    if arguments.json is not None:
        _write_json(report.to_json(), arguments.json)
    if arguments.json != "-":
        for line in format_report(report):
            print(line)
    return 0


def _data_convert(arguments: Namespace) -> int:
    if arguments.actions == "ego_motion":
        return _data_convert_to_motion(arguments)
    from worldgen.data.formats import ReadOptions, open_layout
    from worldgen.data.formats.convert import convert, format_conversion
    from worldgen.data.formats.report import format_problems

    if (arguments.height is None) != (arguments.width is None):
        raise DataError("frames need --height and --width, or neither of them")
    options = ReadOptions(
        size=None if arguments.height is None else (arguments.height, arguments.width),
        schema=arguments.schema,
        gui=arguments.gui,
        camera=arguments.camera,
        episode_frames=arguments.episode_frames,
        frames_per_second=arguments.fps,
        crop=arguments.crop,
    )
    layout = open_layout(arguments.path)
    with tqdm(unit=" recordings", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            conversion = convert(
                layout, arguments.out, options, limit=arguments.limit, progress=show
            )
        except KeyboardInterrupt:
            print(
                f"worldgen: what is in {arguments.out} are whole episodes; the same command goes on",
                file=sys.stderr,
            )
            raise
    for line in (*format_conversion(conversion), *format_problems(conversion.problems)):
        print(line)
    print(f"written to {arguments.out}; train with data.folder={arguments.out}")
    return 0


def _data_convert_to_motion(arguments: Namespace) -> int:
    from worldgen.data.formats import NativeEpisodes
    from worldgen.data.formats.report import format_problems
    from worldgen.data.motion import (
        MOTION_SCHEMAS,
        POSE_COLUMNS,
        convert_to_motion,
        format_motion_conversion,
    )

    schema = arguments.schema or "auto"
    if schema not in MOTION_SCHEMAS:
        raise DataError(f"--schema {schema} is of Minecraft; use {', '.join(MOTION_SCHEMAS)}")
    if not NativeEpisodes.detect(arguments.path):
        raise DataError(
            f"--actions ego_motion takes worldgen's own episodes, and {arguments.path} has no "
            "dataset.json; convert it without --actions first, which recordings of drives need no "
            "more than that"
        )
    names = arguments.poses.split(",") if arguments.poses else POSE_COLUMNS
    with tqdm(unit=" episodes", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        conversion = convert_to_motion(
            arguments.path,
            arguments.out,
            schema=schema,
            columns=[name.strip() for name in names],
            progress=show,
        )
    for line in (*format_motion_conversion(conversion), *format_problems(conversion.problems)):
        print(line)
    print(f"written to {arguments.out}; train with data.folder={arguments.out}")
    return 0


def _import_commavq(arguments: Namespace) -> int:
    from worldgen.interop.commavq import import_commavq_folder

    import_commavq_folder(arguments.out, decoder=arguments.decoder, encoder=arguments.encoder)
    alone = arguments.encoder is None
    print(f"written to {arguments.out}" + ("; without an encoder it only shows ids" * alone))
    return 0


def _import_drivingworld(arguments: Namespace) -> int:
    from worldgen.interop.drivingworld_files import FRAMES_PER_SECOND, import_drivingworld

    check_new_folder(arguments.out)
    imported = import_drivingworld(arguments.tokenizer, arguments.model, settings=arguments.config)
    starts = (
        [imported.plain_start()]
        if arguments.starts is None
        else list(imported.starts(arguments.starts))
    )
    for note in (note for start in starts for note in start.notes):
        _note(note)
    sizes = imported.transformer.config
    card = WorldCard(
        name=arguments.out.resolve().name,
        title=f"DrivingWorld ({arguments.model.stem})",
        description=(
            f"Driving, imported from checkpoints of DrivingWorld (arXiv:2412.19505): {sizes.rows} x "
            f"{sizes.columns} visual tokens and ego motion as {sizes.num_action_tokens} tokens a "
            f"frame, {sizes.window} frames remembered."
        ),
        frames_per_second=FRAMES_PER_SECOND,
        action_schema=imported.schema.to_json(),
        decoders=("raster",),
        sampling=SamplingConfig(top_k=30),
        training={
            "imported": imported.record,
            "starts": [start.description for start in starts],
        },
        limits=(
            "Reversing and standing still cannot be said: the slowest motion is half a bin ahead.",
            "Motion is metres and degrees in 0.2 s; at other rates it means another speed.",
            f"After {sizes.window} frames all that are in sight have the last position in time, "
            "which upstream's weights were not trained with.",
        ),
    )

    def write(folder: Path) -> None:
        tokenizer_type, model_type = imported.types
        save_world(
            folder,
            card=card,
            tokenizer=imported.tokenizer.to(tokenizer_type),
            model=imported.transformer.to(model_type),
            starts=[
                Start(visual_ids=start.visual_ids, action_ids=start.action_ids) for start in starts
            ],
            metadata={"imported": imported.record},
        )
        write_text(folder / "card.md", card_as_markdown(card))

    write_folder(arguments.out, write)
    print(f"it begins with {'; '.join(start.description for start in starts)}")
    if arguments.starts is None:
        print("clips of driving are a better beginning: give a folder of them with --starts")
    print(f"world written; play it with: worldgen play --world {arguments.out}")
    return 0


def _import_mineworld(arguments: Namespace) -> int:
    from worldgen.interop.mineworld_files import import_mineworld

    check_new_folder(arguments.out)
    imported = import_mineworld(
        arguments.config,
        arguments.checkpoint,
        tokenizer=arguments.tokenizer,
        tokenizer_config=arguments.tokenizer_config,
        frame_height=arguments.height,
        frame_width=arguments.width,
    )
    if arguments.start is None:
        start = imported.plain_start()
    else:
        start = imported.start(arguments.start, arguments.start_actions)
    layout, frames = imported.transformer.layout, imported.transformer.windows[0]
    card = WorldCard(
        name=arguments.out.resolve().name,
        title=f"MineWorld ({arguments.config.stem})",
        description=(
            f"Minecraft, imported from a checkpoint of MineWorld (arXiv:2504.08388): "
            f"{layout.rows} x {layout.columns} visual tokens and {layout.num_action_tokens} action "
            f"tokens a frame, {frames} frames remembered."
        ),
        frames_per_second=20.0,
        action_schema=imported.schema.to_json(),
        decoders=("diagonal", "diagonal:2", "diagonal:4", "raster"),
        sampling=SamplingConfig(top_p=0.8),
        training={"imported": imported.record, "start": start.description},
        limits=(
            "Frames are drawn from what was drawn before them, exactly; MineWorld's own code "
            "attends to places that it has not written yet, so its frames differ in detail.",
            "Two keys of one group (forward and back, say) count as none, and the inventory, "
            "swapping hands and escape cannot be said.",
        ),
    )

    def write(folder: Path) -> None:
        tokenizer_type, model_type = imported.types
        save_world(
            folder,
            card=card,
            tokenizer=imported.tokenizer.to(tokenizer_type),
            model=imported.transformer.to(model_type),
            starts=[Start(visual_ids=start.visual_ids, action_ids=start.action_ids)],
            metadata={"imported": imported.record},
        )
        write_text(folder / "card.md", card_as_markdown(card))

    write_folder(arguments.out, write)
    print(f"it begins with {start.description}")
    if arguments.start is None:
        print("a picture or a recording of the game is a better beginning: give one with --start")
    print(f"world written; play it with: worldgen play --world {arguments.out}")
    return 0


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "play": _play,
    "rollout": _rollout,
    "replay": _replay,
    "info": _info,
    "list": _list,
    "evaluate world": _evaluate_world,
    "evaluate long": _evaluate_long,
    "evaluate drive": _evaluate_drive,
    "evaluate tokenizer": _evaluate_tokenizer,
    "bench play": _bench_play,
    "bench tokenizer": _bench_tokenizer,
    "bench decode": _bench_decode,
    "pareto": _pareto,
    "import commavq": _import_commavq,
    "import drivingworld": _import_drivingworld,
    "import mineworld": _import_mineworld,
    "import omnitokenizer": _import_omnitokenizer,
    "data inspect": _data_inspect,
    "data convert": _data_convert,
}
"""Command, as named by the parser -> the function that runs it."""


def _sampling(world: World, arguments: Namespace) -> SamplingConfig:
    names = ("temperature", "top_k", "top_p", "min_p", "guidance")
    given = {name: getattr(arguments, name) for name in names}
    return dataclasses.replace(
        world.card.sampling, **{name: value for name, value in given.items() if value is not None}
    )


def _world_of(log: RolloutLog, name_or_folder: str | None) -> World:
    if name_or_folder is None and log.world not in shipped_worlds():
        raise LogError(
            f"the log was made by world {log.world!r}, which is not among the shipped ones "
            f"({', '.join(shipped_worlds())}); name its folder with --world"
        )
    return load(name_or_folder or log.world)


def _json_path(arguments: Namespace) -> Path | None:
    return None if arguments.json in {None, "-"} else Path(arguments.json)


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


def _check_output(path: Path | None) -> None:
    """Refuse a place that cannot be written before minutes are spent on what goes there."""
    if path is None:
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "it is a folder" if path.is_dir() else f"{folder} cannot be written to"
        raise DataError(f"cannot write {path}: {reason}; choose another file")


def _consume(
    frames: Iterator[Frame | None], total: int, world: World, arguments: Namespace
) -> None:
    """Draw frame 0 and `total` more under a progress bar, into a video if one is wanted."""
    # disable=None: no bar where nobody watches, as in a pipe.
    with tqdm(total=total, unit=" frames", disable=None) as bar:

        def counted() -> Iterator[Any]:
            for number, frame in enumerate(frames):
                bar.update(min(number, 1))
                yield frame

        if arguments.out is None:
            for _ in counted():
                pass
        else:
            write_video(arguments.out, counted(), world.frames_per_second, scale=arguments.scale)


@contextmanager
def _interruptible(
    actions: Iterator[Num[np.ndarray, " group"]],
) -> Iterator[Iterator[Num[np.ndarray, " group"]]]:
    """Give out actions until Ctrl-C, so that no frame is left half drawn; the second one breaks."""
    interrupted = False

    def note(number: int, frame: object) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

    def give_out() -> Iterator[Num[np.ndarray, " group"]]:
        for action in actions:
            if interrupted:
                return
            yield action

    before = signal.signal(signal.SIGINT, note)
    try:
        yield give_out()
    finally:
        signal.signal(signal.SIGINT, before)


def _write_json(document: dict[str, Any], destination: str) -> None:
    text = json.dumps(document, indent=2) + "\n"
    if destination == "-":
        print(text, end="")
    else:
        write_text(Path(destination), text)
