"""What the commands do that play worlds, roll them out and describe them."""

import dataclasses
import itertools
import json
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8
from tqdm import tqdm

from worldgen.card_text import describe_world, format_description
from worldgen.commands.output import check_output, note
from worldgen.data.trajectory import read_trajectory, write_motion
from worldgen.data.video import write_video
from worldgen.errors import ActionError, ConfigError, LogError
from worldgen.generation import RolloutLog, SamplingConfig, Session
from worldgen.pipeline import (
    World,
    load,
    load_card,
    shipped_worlds,
    world_folder,
)
from worldgen.tokenizers.action import MAX_STEPS, is_driving_schema, parse_actions

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
    check_output(arguments.out)
    check_output(arguments.log)
    check_output(arguments.motion)
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
            note(change)
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
    check_output(arguments.out)
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


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "play": _play,
    "rollout": _rollout,
    "replay": _replay,
    "info": _info,
    "list": _list,
}
