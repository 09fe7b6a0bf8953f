"""What the commands do that play worlds, roll them out and describe them."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext

from worldgen.card_text import describe_world, format_description
from worldgen.commands.output import check_apart, check_frames, check_output, note
from worldgen.commands.rolling import (
    Frame,
    Records,
    SessionSource,
    draw,
    num_steps,
    run,
    sampling_of,
)
from worldgen.data.outputs import FrameOutput, open_output
from worldgen.errors import ConfigError, LogError
from worldgen.generation import RolloutLog
from worldgen.pipeline import (
    World,
    load,
    load_card,
    shipped_worlds,
    world_folder,
)
from worldgen.prompt import Prompt

__all__ = ["COMMANDS"]

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


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
    check_apart(
        {"--out": arguments.out, "--log": arguments.log, "--motion": arguments.motion},
        {"--actions": arguments.actions, "--trajectory": arguments.trajectory},
    )
    check_frames(arguments.out)
    check_output(arguments.log)
    check_output(arguments.motion)
    if arguments.seconds is not None and arguments.repeat is not None:
        raise ConfigError("--seconds and --repeat both say how long; give one of them")
    world = load(arguments.world)
    prompt = Prompt(
        start_index=arguments.start,
        actions="policy" if arguments.drive else arguments.actions,
        trajectory=arguments.trajectory,
    )
    script = prompt.script(world, note=note)
    total = num_steps(script, world, arguments.seconds, arguments.repeat or 1)
    if script is not None:
        hold = arguments.trajectory is not None and arguments.repeat is None
        prompt = Prompt(
            start_index=arguments.start,
            # A rollout plays no more of a script than there is time for.
            actions=script[:total],
            after="last" if hold else "repeat",
        )
    session = prompt.begin(
        world,
        seed=arguments.seed,
        decoder=arguments.decoder,
        sampling=sampling_of(world, arguments),
    )
    records = Records(world=world, session=session, log=arguments.log, motion=arguments.motion)
    actions = prompt.actions_of(world, steps=total, session=session)
    output = _output(world, arguments)
    return run(SessionSource(session, actions, total), output, records=records)


def _replay(arguments: Namespace) -> int:
    check_apart({"--out": arguments.out}, {"the log": arguments.log})
    check_frames(arguments.out)
    log = RolloutLog.read(arguments.log)
    world = _world_of(log, arguments.world)
    session = world.replay_session(log)
    first_difference: int | None = None

    def frames(_: int) -> Iterator[Frame | None]:
        nonlocal first_difference
        # Pixels are wanted only for a video; without one the first difference decides.
        yield session.frame if arguments.out else None
        for same in session.replay(log):
            if not same and first_difference is None:
                first_difference = session.frame_index
                if not arguments.out:
                    return
            yield session.frame if arguments.out else None

    output = _output(world, arguments)
    with output or nullcontext():
        draw(frames, total=len(log.digests), output=output)
        if output is not None:
            output.finish()
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


def _world_of(log: RolloutLog, name_or_folder: str | None) -> World:
    if name_or_folder is None and log.world not in shipped_worlds():
        raise LogError(
            f"the log was made by world {log.world!r}, which is not among the shipped ones "
            f"({', '.join(shipped_worlds())}); name its folder with --world"
        )
    return load(name_or_folder or log.world)


def _output(world: World, arguments: Namespace) -> FrameOutput | None:
    if arguments.out is None:
        return None
    return open_output(arguments.out, world.frames_per_second, scale=arguments.scale)


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "play": _play,
    "rollout": _rollout,
    "replay": _replay,
    "info": _info,
    "list": _list,
}
