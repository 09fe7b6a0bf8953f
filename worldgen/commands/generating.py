"""`worldgen generate`: a video of any length from prompts, that can be stopped and gone on with."""

import itertools
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from worldgen.checkpoint import load_tensors, save_tensors
from worldgen.commands.output import check_apart, check_frames, check_output, note
from worldgen.commands.rolling import (
    INTERRUPTED,
    Frame,
    Records,
    SessionSource,
    Source,
    num_steps,
    run,
    sampling_of,
)
from worldgen.commands.unfinished import Saver, Task, Unfinished
from worldgen.data.outputs import FrameOutput, Mark, open_output
from worldgen.errors import CheckpointError, ConfigError, DataError
from worldgen.generation import Session
from worldgen.generation.editing import edit, extend_backwards, first_frame_from, interpolate, loop
from worldgen.generation.planning import Segment, plan_then_fill
from worldgen.pipeline import World, load, shipped_worlds
from worldgen.prompt import Prompt

__all__ = ["COMMANDS"]

_SCALE = 4
_READ = ("image", "clip", "clip_actions", "session", "actions", "trajectory", "to")
_NOT_STORED = {"command", "out", "resume"}


def _generate(arguments: Namespace) -> int:
    unfinished = Unfinished(arguments.out)
    status = (_go_on if arguments.resume else _begin)(arguments, unfinished)
    if status == INTERRUPTED and unfinished.folder.is_dir():
        note(f"go on with: worldgen generate --resume --out {arguments.out}")
    return status


def _begin(arguments: Namespace, unfinished: Unfinished) -> int:
    _check_combination(arguments)
    unfinished.check_unused()
    read = {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in _READ}
    check_apart({"--out": arguments.out}, read)
    # The log of a session that goes on has all of it.
    check_apart({"--log": arguments.log, "--out": arguments.out}, read | {"--session": None})
    check_frames(arguments.out)
    check_output(arguments.log)
    world = load(arguments.world)
    prompt = Prompt(
        image=arguments.image,
        clip=arguments.clip,
        clip_actions=arguments.clip_actions,
        session=arguments.session,
        start_index=arguments.start,
        text=arguments.text,
        actions=arguments.actions,
        trajectory=arguments.trajectory,
        after=arguments.after,
        fit=arguments.fit or "crop",
    )
    if arguments.before is not None:
        return run(_ClipSource(_before(arguments, world, prompt), world), _open(arguments, world))
    script = prompt.script(world, note=note)
    steps = num_steps(script, world, arguments.seconds)
    sampling, seed, decoder = sampling_of(world, arguments), arguments.seed, arguments.decoder
    if arguments.from_second is not None and not (sampling is seed is decoder is None):
        raise ConfigError(
            "what is before --from-second stays as it was drawn, and so do seed, decoder and "
            "sampling; leave them out"
        )
    session = prompt.begin(world, seed=seed, decoder=decoder, sampling=sampling, note=note)
    origin = session.frame_index
    if arguments.from_second is not None:
        # What stays is shown too, so that the video is the whole of the edited one.
        session = edit(session, first_frame_from(arguments.from_second, world.frames_per_second))
        origin = 0
    if arguments.to is not None or arguments.loop:
        actions = list(prompt.actions_of(world, steps=steps))
        clip = _between(arguments, world, session, actions)
        return run(_ClipSource(clip, world), _open(arguments, world))
    task = Task(
        options=_options(arguments),
        begun=session.frame_index,
        origin=origin,
        steps=steps,
        policy=prompt.chooses,
        after=prompt.after or ("repeat" if prompt.trajectory is None else "last"),
    )
    # Tells of a script that is too long before anything is written.
    prompt.actions_of(world, steps=steps, session=None if arguments.plan else session)
    if arguments.plan is not None:
        plan_then_fill(session, (), stride=arguments.plan)
    unfinished.begin(task, script)
    return _make(world, session, task, script, unfinished, arguments)


def _go_on(arguments: Namespace, unfinished: Unfinished) -> int:
    task, script = unfinished.task()
    for name, value in _options(arguments).items():
        begun_with = task.options.get(name)
        if value != begun_with:
            option = "--" + name.replace("_", "-")
            how = f"without {option}" if begun_with is None else f"with {option} {begun_with}"
            raise ConfigError(
                f"{arguments.out} was begun {how}, and can only go on so; leave {option} out, or "
                "begin another video"
            )
    vars(arguments).update(task.options)
    mark = unfinished.mark()
    world = load(arguments.world)
    session = world.load_session(unfinished.session)
    if arguments.plan is None:
        # What is saved is ahead of the mark if it was killed between the two.
        reached = max(task.begun, task.origin + mark.frames - 1)
        session.rewind(session.frame_index - reached)
    return _make(world, session, task, script, unfinished, arguments, mark)


def _make(
    world: World,
    session: Session,
    task: Task,
    script: NDArray[Any] | None,
    unfinished: Unfinished,
    arguments: Namespace,
    mark: Mark | None = None,
) -> int:
    """Make what a task still lacks, and return the exit status.

    The session is at the frame to go on from; with a plan, at the one that it began from.
    """
    prompt = Prompt(
        actions="policy" if task.policy else script, after=None if script is None else task.after
    )
    total = task.begun - task.origin + task.steps
    if arguments.plan is None:
        actions = prompt.actions_of(world, steps=task.steps, session=session)
        rest = itertools.islice(actions, session.frame_index - task.begun, None)
        played = SessionSource(session, rest, total, origin=task.origin)
        log = None if arguments.log is None else Path(arguments.log)
        records = Records(world=world, session=session, log=log)
        saver = Saver(unfinished, lambda: session.save_state(unfinished.session), anywhere=False)
        return run(played, _open(arguments, world, mark), records=records, keeper=saver)
    actions = prompt.actions_of(world, steps=task.steps)
    if mark is None:
        session.save_state(unfinished.session)
        keys = torch.empty(0, len(session.ids), dtype=torch.int64)
    else:
        keys = _read_key_frames(unfinished.key_frames)[: (mark.frames - 1) // arguments.plan]
    planned = _PlannedSource(session, actions, total, arguments.plan, keys)
    saver = Saver(unfinished, lambda: planned.save(unfinished.key_frames), anywhere=True)
    return run(planned, _open(arguments, world, mark), keeper=saver)


class _PlannedSource(Source):
    """Plans and fills, segment by segment.

    Args:
        session: At the frame to begin from; stays as it is.
        actions: From that frame on.
        total: Number of the last frame.
        stride: Frames from one key frame to the next.
        keys: Key frames of the segments that are made.
    """

    def __init__(
        self,
        session: Session,
        actions: Iterator[NDArray[Any]],
        total: int,
        stride: int,
        keys: Int[Tensor, "key cell"],
    ) -> None:
        super().__init__(total)
        self._session = session
        self._tokenizer = session.parts.visual_tokenizer
        self._actions = actions
        self._stride = stride
        self._keys = keys
        self._within_segment = False

    def frames(self, first: int) -> Iterator[Frame]:
        """See `Source.frames`; only the end of a segment can be gone on from."""
        if not first:
            yield self._session.frame
        for segment in plan_then_fill(
            self._session, self._actions, stride=self._stride, known_key_frames=self._keys
        ):
            for number, frame in enumerate(segment.frames(self._tokenizer), start=1):
                self._within_segment = number < len(segment.ids)
                if not self._within_segment and segment.key_ids is not None:
                    self._keys = torch.cat((self._keys, segment.key_ids))
                yield frame

    @property
    def can_stop(self) -> bool:
        """See `Source.can_stop`."""
        return not self._within_segment

    def save(self, path: Path) -> None:
        """Write down the key frames so far."""
        save_tensors(path, {"key_ids": self._keys.to(torch.int32)}, {"artifact": "key_frames"})


class _ClipSource(Source):
    """Shows what was made at once."""

    def __init__(self, clip: Segment, world: World) -> None:
        super().__init__(len(clip.ids) - 1)
        self._clip = clip
        self._tokenizer = world.tokenizer

    def frames(self, first: int) -> Iterator[Frame]:
        """See `Source.frames`."""
        return itertools.islice(self._clip.frames(self._tokenizer), first, None)


def _between(
    arguments: Namespace, world: World, session: Session, actions: list[NDArray[Any]]
) -> Segment:
    """Return a loop, or the way from the session's frame to an image with both ends."""
    if arguments.loop:
        return loop(session, len(actions), actions)
    end = Prompt(image=arguments.to, fit=arguments.fit or "crop").start(world, note=note)
    goal = end.visual_ids[-1]
    way = interpolate(session, goal, len(actions) - 1, actions)
    first = torch.from_numpy(session.ids)
    return Segment(
        first=way.first - 1,
        ids=torch.cat((first[None], way.ids, goal[None])),
        action_ids=way.action_ids,
        calls=way.calls,
    )


def _before(arguments: Namespace, world: World, prompt: Prompt) -> Segment:
    """Return the clip or the image of a prompt with frames before it."""
    steps = num_steps(None, world, arguments.before)
    actions = prompt.actions_of(world, steps=steps, note=note)
    session = world.session(
        seed=arguments.seed or 0,
        decoder=arguments.decoder,
        sampling=sampling_of(world, arguments),
    )
    clip = prompt.start(world, whole_clip=True, note=note)
    candidates = [replace(start, text_ids=clip.text_ids) for start in world.starts]
    if prompt.text is not None:
        candidates.append(Prompt(text=prompt.text).start(world))
    longer = extend_backwards(
        world.parts,
        clip,
        steps,
        actions,
        candidates=candidates,
        seed=session.seed,
        decoder=session.decoder,
    )
    return Segment(first=0, ids=longer.visual_ids, action_ids=longer.action_ids, calls=0)


def _check_combination(arguments: Namespace) -> None:
    if arguments.world is None:
        raise ConfigError("a video is made in a world; name it with --world")
    alone = {
        "--plan": arguments.plan is not None,
        "--to": arguments.to is not None,
        "--loop": arguments.loop,
        "--from-second": arguments.from_second is not None,
        "--before": arguments.before is not None,
    }
    given = [name for name, is_given in alone.items() if is_given]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} do not go together; give one of them")
    if arguments.log is not None and given and given != ["--from-second"]:
        raise ConfigError(
            f"a log is replayed frame by frame, which {given[0]} does not draw; leave --log out"
        )
    if arguments.before is not None:
        if arguments.clip is None and arguments.image is None:
            raise ConfigError("--before needs what comes after it; give --clip or --image")
        if arguments.seconds is not None:
            raise ConfigError("--before says how much is made, and so does --seconds; give one")
    if arguments.from_second is not None and arguments.session is None:
        raise ConfigError("--from-second says where a session changes; name it with --session")


def _options(arguments: Namespace) -> dict[str, Any]:
    """Return the options that were given, as JSON can hold them and from wherever it is run."""

    def stored(name: str, value: Any) -> Any:
        is_folder = name == "world" and value not in shipped_worlds() and Path(value).is_dir()
        return str(Path(value).absolute()) if is_folder or isinstance(value, Path) else value

    return {
        name: stored(name, value)
        for name, value in vars(arguments).items()
        if name not in _NOT_STORED and value is not None and value is not False
    }


def _open(arguments: Namespace, world: World, mark: Mark | None = None) -> FrameOutput:
    scale = arguments.scale or _SCALE
    return open_output(arguments.out, world.frames_per_second, scale=scale, go_on=mark)


def _read_key_frames(path: Path) -> Int[Tensor, "key cell"]:
    try:
        tensors, _ = load_tensors(path)
        return tensors["key_ids"].long()
    except (CheckpointError, KeyError) as error:
        raise DataError(f"cannot go on with the key frames in {path}: {error}") from error


COMMANDS: dict[str, Callable[[Namespace], int]] = {"generate": _generate}
