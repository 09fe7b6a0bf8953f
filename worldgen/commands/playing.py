"""What the commands do that play worlds, roll them out and describe them."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext

from worldgen.card_text import describe_world, format_description
from worldgen.commands.output import check_frames, check_output
from worldgen.commands.rolling import (
    Frame,
    Roll,
    check_motion,
    draw,
    driven,
    num_steps,
    output_of,
    played,
    read_script,
    sampling_of,
)
from worldgen.errors import ConfigError, LogError
from worldgen.generation import RolloutLog
from worldgen.pipeline import (
    World,
    load,
    load_card,
    shipped_worlds,
    world_folder,
)

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
    check_frames(arguments.out)
    check_output(arguments.log)
    check_output(arguments.motion)
    world = load(arguments.world)
    check_motion(world, arguments.motion)
    script = None
    if not arguments.drive:
        script = read_script(world, arguments.actions, arguments.trajectory)
    if arguments.seconds is not None and arguments.repeat is not None:
        raise ConfigError("--seconds and --repeat both say how long; give one of them")
    total = num_steps(script, world, arguments.seconds, arguments.repeat or 1)
    session = world.session(
        seed=arguments.seed,
        start=arguments.start,
        decoder=arguments.decoder,
        sampling=sampling_of(world, arguments),
    )
    hold = arguments.trajectory is not None and arguments.repeat is None
    roll = Roll(
        world=world,
        session=session,
        actions=driven(session) if script is None else played(script, hold=hold),
        total=total,
        log=arguments.log,
        motion=arguments.motion,
    )
    return roll.run(output_of(world, arguments))


def _replay(arguments: Namespace) -> int:
    check_frames(arguments.out)
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

    output = output_of(world, arguments)
    with output or nullcontext():
        draw(frames(), total=len(log.digests), output=output)
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


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "play": _play,
    "rollout": _rollout,
    "replay": _replay,
    "info": _info,
    "list": _list,
}
