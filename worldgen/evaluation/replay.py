"""Is a rollout the same again, after forks and rewinds and in another process; does it stay cheap."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldgen.evaluation.machine import memory_megabytes
from worldgen.generation.log import RolloutLog
from worldgen.generation.session import Session
from worldgen.pipeline import World, load

__all__ = ["check_replay", "measure_cost", "print_count_equal"]

_TIMED_STEPS = 100

Progress = Callable[[str], None]


def check_replay(
    world: World, *, frames: int, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """Return whether a rollout with forks and rewinds comes out the same again, here and elsewhere.

    Every 50 frames the session is forked, the fork goes another way, and the session rewinds and
    takes its last steps again; then the log is replayed by a new session and by a new process.

    Args:
        world: World to play, from its first start.
        frames: Length of the rollout.
        seed: Of the session and of the keys pressed.
        progress: Told about every frame.
    """
    session = world.session(seed=seed)
    actions = _held_keys(world, frames, seed)
    same_after_fork = same_after_rewind = True
    while session.frame_index < frames:
        _advance(session, actions)
        if progress is not None:
            progress(f"frame {session.frame_index} of {frames}")
        if session.frame_index % 50 == 0:
            back = min(12, session.frame_index)
            before = [session.ids_at(session.frame_index - step) for step in range(back)]
            fork = session.fork()
            for _ in range(5):
                fork.advance(actions[0])
            same_after_fork &= _same(session, before)
            session.rewind(back)
            for _ in range(back):
                _advance(session, actions)
            same_after_rewind &= _same(session, before)
    log = session.log()
    here = _count_equal(world, log)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.json"
        log.write(path)
        elsewhere = _count_equal_elsewhere(world, path)
    return {
        "frames": frames,
        "identical": bool(
            same_after_fork and same_after_rewind and here == frames and elsewhere == frames
        ),
        "same_after_forks": bool(same_after_fork),
        "same_after_rewinds": bool(same_after_rewind),
        "equal_frames_in_a_new_session": here,
        "equal_frames_in_a_new_process": elsewhere,
        "total_hash": log.total_hash,
    }


def _held_keys(world: World, frames: int, seed: int) -> torch.Tensor:
    """Return action tokens [frame, slot] of random actions, each held for some frames."""
    schema = world.action_tokenizer.schema
    random = np.random.default_rng(seed)
    choices = [schema.action(settings) for settings in schema.named.values()] or [schema.rest()]
    picked: list[np.ndarray] = []
    while len(picked) < frames:
        choice = choices[int(random.integers(len(choices)))]
        picked += [choice] * int(random.integers(1, 20))
    return torch.from_numpy(world.action_tokenizer.encode(np.stack(picked[:frames])))


def _advance(session: Session, actions: torch.Tensor) -> None:
    now = session.frame_index
    session.advance(actions[now], actions[now + 1 : now + session.frames_per_step])


def _same(session: Session, before: list[np.ndarray]) -> bool:
    return all(
        np.array_equal(session.ids_at(session.frame_index - step), ids)
        for step, ids in enumerate(before)
    )


def _count_equal(world: World, log: RolloutLog) -> int:
    return sum(world.replay_session(log).replay(log))


def _count_equal_elsewhere(world: World, log: Path) -> int:
    # A plain subprocess: multiprocessing would import the caller's script a second time.
    script = "from worldgen.evaluation import replay; replay.print_count_equal()"
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-c", script, str(world.folder), str(log), threads],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(part or "." for part in sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def print_count_equal() -> None:
    """Replay the log `argv[2]` in the world `argv[1]` on `argv[3]` threads; print equal frames."""
    folder, log, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    sys.stdout.write(f"{_count_equal(load(folder), RolloutLog.read(Path(log)))}\n")


def measure_cost(
    world: World, *, early: int, late: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Return what a frame costs early and late in a session, pixels included, and its memory.

    A fork kept at the early frame and the session at the late one take steps in turn, so that
    both see the same other load of the machine. Where frames are drawn several at a time, the cost
    is that of all of them, shared.

    Args:
        world: World to play, from its first start.
        early: Frame at which the fork is kept.
        late: Frame to which the session goes on.
        progress: Told about every hundredth frame.
    """
    session = world.session(seed=0)
    together = session.frames_per_step
    # The fork and the session begin to be timed where the next frames are yet to be drawn.
    early, late = -(-early // together) * together, -(-late // together) * together
    actions = _held_keys(world, late + (1 + _TIMED_STEPS) * together, 0)
    forks: list[Session] = []
    memory: dict[int, float | None] = {}
    while session.frame_index < late:
        if session.frame_index == early:
            forks.append(session.fork())
            memory[early] = memory_megabytes()
        _advance(session, actions)
        if progress is not None and session.frame_index % 100 == 0:
            progress(f"frame {session.frame_index} of {late}")
    memory[late] = memory_megabytes()
    times: dict[str, list[float]] = {"early": [], "late": []}
    for one in (forks[0], session):
        # A decoder with a memory catches up with the frames that nobody has looked at.
        _ = one.frame
    for number in range(_TIMED_STEPS):
        order = (("early", forks[0]), ("late", session))
        for name, one in order if number % 2 else reversed(order):
            start = time.perf_counter()
            for _ in range(together):
                _advance(one, actions)
                _ = one.frame
            times[name].append((time.perf_counter() - start) / together)
    milliseconds = {name: 1000 * statistics.median(values) for name, values in times.items()}
    return {
        "early_frame": early,
        "late_frame": late,
        "early_milliseconds": milliseconds["early"],
        "late_milliseconds": milliseconds["late"],
        "ratio": milliseconds["late"] / milliseconds["early"],
        "memory_megabytes_early": memory[early],
        "memory_megabytes_late": memory[late],
    }
