"""Record episodes of a real environment: `python -m envs.record env=car_racing out=...`."""

import contextlib
import multiprocessing
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium
import hydra
import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from envs.drivers import DRIVERS, make_driver
from worldgen.config import build, config_dir
from worldgen.data.episodes import (
    SPLITS,
    Column,
    Dataset,
    DatasetMetadata,
    Episode,
    EpisodeInfo,
    EpisodeWriter,
)
from worldgen.errors import ConfigError, DataError, WorldgenError
from worldgen.tokenizers.action.spaces import schema_from_space, to_space_action

__all__ = ["FIRST_SEEDS", "EnvironmentConfig", "RecordConfig", "play_episode", "record"]

# Each split counts environment seeds up from here, a million apart, so they never meet.
FIRST_SEEDS = {"train": 0, "validation": 1_000_000, "test": 2_000_000}
_MAX_SEED = 500_000
_DEFAULT_RATE = 20.0
_SHARES = {"train": 0.94, "validation": 0.03, "test": 0.03}


@dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """Which environment to record and who plays it."""

    name: str
    id: str
    options: dict[str, Any]
    driver: str
    random_share: float
    episode_length: int


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """One recording; see `configs/record.yaml`."""

    env: EnvironmentConfig
    out: str
    frames: int
    episode_length: int
    workers: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("frames", "episode_length", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"record: {name}={getattr(self, name)}; use 1 or more")
        if not 0 <= self.seed <= _MAX_SEED:
            raise ConfigError(f"record: seed={self.seed}; use 0 to {_MAX_SEED}")
        if self.env.driver not in DRIVERS:
            raise ConfigError(f"record: driver {self.env.driver!r}; use one of {[*DRIVERS]}")


@dataclass(frozen=True, kw_only=True)
class _Job:
    split: str
    index: int


@dataclass(frozen=True, kw_only=True)
class _Result:
    split: str
    length: int
    error: str = ""


def play_episode(
    environment: gymnasium.Env[Any, Any],
    driver_name: str,
    info: EpisodeInfo,
    stop: Any = None,
    counter: Any = None,
) -> Episode | None:
    """Play one episode from `env.reset(seed=info.seed)` and return it.

    Args:
        environment: Any with RGB frames; if its `unwrapped` has `COLUMNS`, each info dict needs an
            entry for each.
        driver_name: One of `DRIVERS`; seeded by the environment seed.
        info: Index, seed and split; `length` is the most frames to play.
        stop: Event of multiprocessing; once set, None is returned.
        counter: Shared integer that counts frames for a progress bar.
    """
    described_columns: dict[str, Column] = getattr(environment.unwrapped, "COLUMNS", {})
    frame, state = environment.reset(seed=info.seed)
    driver = make_driver(driver_name, environment, np.random.default_rng([info.seed, 1]))
    frames, actions, rewards, states = [], [], [], []
    ended = "length"
    for _ in range(info.length):
        if stop is not None and stop.is_set():
            return None
        action = driver.act(state)
        frames.append(frame)
        actions.append(action)
        states.append(state)
        taken = to_space_action(action, environment.action_space)
        frame, reward, terminated, truncated, state = environment.step(taken)
        rewards.append(reward)
        if counter is not None:
            with counter.get_lock():
                counter.value += 1
        if terminated or truncated:
            ended = "terminated" if terminated else "truncated"
            break
    length = len(frames)
    columns = {
        name: np.array([row[name] for row in states], column.dtype)
        for name, column in described_columns.items()
    }
    columns["reward"] = np.array(rewards, np.float64)
    columns["cut"] = np.arange(length) == length - 1
    described = {**asdict(info), "length": length, "driver": driver.name, "ended": ended}
    return Episode(
        frames=np.stack(frames),
        actions=np.stack(actions),
        columns=columns,
        info=EpisodeInfo(**described),
    )


def record(config: RecordConfig) -> Dataset:
    """Record, or continue, a data set and return it.

    Workers write whole episodes; what Ctrl-C or a crash interrupts leaves no trace.

    Args:
        config: What to record and where.

    Raises:
        DataError: If the folder holds something else.
        ConfigError: If the environment or its options do not exist.
        KeyboardInterrupt: After Ctrl-C, once the workers have stopped.
    """
    folder = Path(config.out)
    metadata = _open(folder, config)
    dataset = Dataset(folder)
    done = {split: dataset.episodes(split) for split in SPLITS}
    have = {split: sum(info.length for info in done[split]) for split in SPLITS}
    total = sum(have.values())
    if total:
        rest = max(0, config.frames - total)
        _say(f"continuing {folder}: {total} frames are there, {rest} to go")
    jobs = _plan(
        {split: max((info.index + 1 for info in done[split]), default=0) for split in SPLITS},
        have,
        config,
    )
    interrupted = total < config.frames and _run(config, metadata, jobs, total)
    counts = {split: dataset.episodes(split) for split in SPLITS}
    for split, infos in counts.items():
        _say(f"{split}: {len(infos)} episodes, {sum(info.length for info in infos)} frames")
    if interrupted:
        _say(f"stopped; the finished episodes are in {folder}, run again to continue")
        raise KeyboardInterrupt
    return dataset


def _open(folder: Path, config: RecordConfig) -> DatasetMetadata:
    """Return the metadata of the folder, writing it when the folder is new."""
    environment = _make(config.env)
    unwrapped: Any = environment.unwrapped
    shape = unwrapped.observation_space.shape
    if shape is None or len(shape) != 3 or shape[-1] != 3:
        raise ConfigError(f"{config.env.id} has observations {shape}; recordings need RGB frames")
    schema = getattr(unwrapped, "action_schema", None) or schema_from_space(
        environment.action_space
    )
    # What cannot be played fails here, once and in words, rather than in every worker.
    environment.reset(seed=0)
    make_driver(config.env.driver, environment, np.random.default_rng(0))
    metadata = DatasetMetadata(
        environment={"id": config.env.id, "options": config.env.options},
        frames_per_second=float(unwrapped.metadata.get("render_fps", _DEFAULT_RATE)),
        frame_height=shape[0],
        frame_width=shape[1],
        action_schema=schema.to_json(),
        columns={
            **getattr(unwrapped, "COLUMNS", {}),
            "reward": Column(dtype="float64", meaning="of the action taken in this frame"),
            "cut": Column(dtype="bool", meaning="the next frame does not follow: the last row"),
        },
        seeds={split: first + config.seed for split, first in FIRST_SEEDS.items()},
    )
    environment.close()
    if (folder / "dataset.json").exists():
        there = Dataset(folder).metadata
        for name in ("environment", "action_schema", "columns"):
            if getattr(there, name) != getattr(metadata, name):
                raise DataError(
                    f"{folder} holds recordings of {there.environment}, asked for "
                    f"{metadata.environment} ({name} differs); choose another out="
                )
        if there.seeds != metadata.seeds:
            raise DataError(
                f"{folder} was begun with seed={there.seeds['train']}, asked for "
                f"seed={config.seed}; use the same, or choose another out="
            )
        return there
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and not a recording; choose another out=")
    metadata.write(folder)
    return metadata


def _plan(next_index: dict[str, int], have: dict[str, int], config: RecordConfig) -> Iterator[_Job]:
    """Yield jobs without end, each for the split that is furthest behind its share."""
    frames, indices = dict(have), dict(next_index)
    while True:
        split = min(SPLITS, key=lambda name: frames[name] / _SHARES[name])
        yield _Job(split=split, index=indices[split])
        frames[split] += config.episode_length
        indices[split] += 1


def _run(config: RecordConfig, metadata: DatasetMetadata, jobs: Iterator[_Job], total: int) -> bool:
    """Let workers play until the frames are there; return whether Ctrl-C came first."""
    # Spawned, not forked: a fork copies the locks of whatever threads torch has started.
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    stop, counter = context.Event(), context.Value("q", 0)
    arguments = (config, metadata, tasks, results, stop, counter)
    # Not daemons: those may start no processes of their own, and some environments must.
    workers = [context.Process(target=_work, args=arguments) for _ in range(config.workers)]
    finished, running = total, 0
    bar = tqdm(total=config.frames, initial=total, unit=" frames", desc=config.env.name)
    with _catch_signals(workers) as interrupted:
        try:
            while finished < config.frames and not interrupted.is_set():
                # Hand out no more than could still be needed, if every episode were full length.
                while (
                    running < config.workers
                    and finished + running * config.episode_length < config.frames
                ):
                    tasks.put(next(jobs))
                    running += 1
                try:
                    result = results.get(timeout=0.2)
                except queue.Empty:
                    bar.update(max(0, total + counter.value - bar.n))
                    if not any(worker.is_alive() for worker in workers):
                        raise DataError("every recording worker died; see above why") from None
                    continue
                running -= 1
                if result.error:
                    raise DataError(f"a recording worker failed: {result.error}")
                finished += result.length
        finally:
            stop.set()
            for worker in workers:
                worker.join(timeout=30)
                worker.kill()
            bar.update(max(0, total + counter.value - bar.n))
            bar.close()
    return interrupted.is_set()


@contextlib.contextmanager
def _catch_signals(workers: Sequence[BaseProcess]) -> Iterator[threading.Event]:
    """Start the workers, deaf to Ctrl-C and SIGTERM, and turn both into an event for the parent.

    Workers inherit the deafness, so that they let the parent decide even while they are still
    importing. Handlers are set in any case: a shell starts background jobs with SIGINT ignored.
    """
    interrupted = threading.Event()
    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        for worker in workers:
            worker.start()
        for number in numbers:
            signal.signal(number, lambda *_: interrupted.set())
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(
    config: RecordConfig,
    metadata: DatasetMetadata,
    tasks: Any,
    results: Any,
    stop: Any,
    counter: Any,
) -> None:
    """Play and write the jobs of a queue, in a process of its own."""
    parent = multiprocessing.parent_process()
    environment = _make(config.env)
    while not stop.is_set() and (parent is None or parent.is_alive()):
        try:
            job = tasks.get(timeout=0.2)
        except queue.Empty:
            continue
        try:
            seed = metadata.seeds[job.split] + job.index
            is_random = np.random.default_rng([seed, 2]).random() < config.env.random_share
            info = EpisodeInfo(
                index=job.index,
                seed=seed,
                length=config.episode_length,
                driver="",
                split=job.split,
            )
            driver = "random" if is_random else config.env.driver
            episode = play_episode(environment, driver, info, stop, counter)
            if episode is None:
                break
            EpisodeWriter(Path(config.out) / job.split, metadata.frames_per_second).write(episode)
            results.put(_Result(split=job.split, length=episode.info.length))
        except (WorldgenError, OSError) as error:
            results.put(_Result(split=job.split, length=0, error=str(error)))
            break
        except Exception:
            results.put(_Result(split=job.split, length=0, error=traceback.format_exc()))
            break
    environment.close()


def _make(config: EnvironmentConfig) -> gymnasium.Env[Any, Any]:
    try:
        # The checker would compare every frame of a recording with its space.
        return gymnasium.make(config.id, disable_env_checker=True, **config.options)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ConfigError(f"cannot make {config.id} with {config.options}: {error}") from error


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="record")
def main(cfg: DictConfig) -> None:
    """Command line entry; every mistake of the user ends in one message and exit code 2."""
    try:
        record(build(RecordConfig, cfg))
    except WorldgenError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
