"""Test clips: a context, the recorded actions and what truly followed, with or without a data set.

A world ships no recordings. Its `evaluation.json` names an environment seed and the actions from
the reset on for each clip, and the real environment renders the truth again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from worldgen.checkpoint import write_text
from worldgen.data.episodes import Dataset, EpisodeInfo
from worldgen.errors import DataError
from worldgen.real_environment import RealEnvironment

__all__ = [
    "ClipSpec",
    "Clips",
    "choose_clips",
    "load_clips",
    "read_clip_specs",
    "render_clips",
    "write_clip_specs",
]

_FORMAT = "worldgen-evaluation-clips"
_GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """One clip as the environment's seed and its actions from the reset on."""

    seed: int
    """Of the environment's reset."""
    context_end: int
    """Index, counted from the reset, of the last frame of the context."""
    actions: np.ndarray
    """Settings of the action groups, [step, group]; the last one leads to the clip's last frame."""
    digest: str = ""
    """SHA-256 of the clip's frames as recorded; empty when unknown."""

    def lead(self, environment: RealEnvironment) -> UInt8[np.ndarray, "height width 3"]:
        """Bring an environment to the end of the context; return that frame."""
        frame = environment.reset(seed=self.seed)
        for action in self.actions[: self.context_end]:
            frame = environment.step(action)
        return frame


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Clips of one length, ready to be predicted and compared."""

    context: int
    """Frames that the model may see."""
    frames: UInt8[np.ndarray, "clip time height width 3"]
    """`context` frames and then those to predict."""
    actions: np.ndarray
    """[clip, time - 1, group]: the action taken in each frame but the last."""
    columns: Mapping[str, np.ndarray]
    """What the environment said beside the frames, each [clip, time, ...]."""
    specs: tuple[ClipSpec, ...]
    changed: int
    """Clips whose frames differ from the recording they were chosen from."""

    @property
    def horizon(self) -> int:
        """Frames to predict."""
        return int(self.frames.shape[1]) - self.context

    def __len__(self) -> int:
        return len(self.frames)

    def with_context(self, context: int) -> "Clips":
        """Return the clips with fewer frames of context, the later ones.

        Raises:
            DataError: If they have not so many.
        """
        if not 1 <= context <= self.context:
            raise DataError(
                f"clips with {self.context} frames of context cannot have {context}; "
                f"ask for 1 to {self.context}"
            )
        dropped = self.context - context
        return dataclasses.replace(
            self,
            context=context,
            frames=self.frames[:, dropped:],
            actions=self.actions[:, dropped:],
            columns={name: column[:, dropped:] for name, column in self.columns.items()},
        )

    def until(self, horizon: int) -> "Clips":
        """Return the clips with the first `horizon` frames to predict, where they have more."""
        length = self.context + horizon
        return dataclasses.replace(
            self,
            frames=self.frames[:, :length],
            actions=self.actions[:, : length - 1],
            columns={name: column[:, :length] for name, column in self.columns.items()},
        )

    def first(self, count: int) -> "Clips":
        """Return the first `count` clips."""
        return self.pick(range(min(count, len(self))))

    def pick(self, rows: Sequence[int]) -> "Clips":
        """Return the clips of these numbers, in their order."""
        chosen = np.array(rows, np.int64)
        return dataclasses.replace(
            self,
            frames=self.frames[chosen],
            actions=self.actions[chosen],
            columns={name: column[chosen] for name, column in self.columns.items()},
            specs=tuple(self.specs[row] for row in rows),
        )


def _digest(frames: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()


def choose_clips(
    dataset: Dataset, *, count: int = 64, context: int = 8, horizon: int = 64, split: str = "test"
) -> list[tuple[EpisodeInfo, int]]:
    """Return episodes and the index of the last context frame in each, spread over the split.

    Every episode is used once before one is used twice. The clips of an episode are evenly spaced
    and overlap only where the episode is too short; their places differ from episode to episode,
    and are the same on every run.

    Args:
        dataset: Recording to choose from.
        count: Clips wanted.
        context: Frames of context.
        horizon: Frames to predict.
        split: Split of the recording.

    Raises:
        DataError: If no episode of the split is long enough.
    """
    episodes = [info for info in dataset.episodes(split) if info.length >= context + horizon]
    if not episodes:
        raise DataError(
            f"no {split} episode has the {context} + {horizon} frames of a clip; "
            "record longer episodes"
        )
    if count < len(episodes):
        episodes = [episodes[number * len(episodes) // count] for number in range(count)]
    chosen = []
    for number in range(count):
        place, turn = number % len(episodes), number // len(episodes)
        turns = -(-(count - place) // len(episodes))
        info = episodes[place]
        room = info.length - horizon - context + 1
        start = int(room * (turn + place * _GOLDEN_RATIO % 1.0) / turns)
        chosen.append((info, context - 1 + start))
    return chosen


def load_clips(
    dataset: Dataset,
    *,
    count: int = 64,
    context: int = 8,
    horizon: int = 64,
    split: str = "test",
    progress: Callable[[str], None] | None = None,
) -> Clips:
    """Return clips of a recording's test split, as they were recorded.

    Args:
        dataset: Recording; see `docs/data-format.md`.
        count: Clips wanted.
        context: Frames of context.
        horizon: Frames to predict.
        split: Split of the recording.
        progress: Told about every episode.

    Raises:
        DataError: If no episode is long enough, or a clip crosses a cut.
    """
    chosen = choose_clips(dataset, count=count, context=context, horizon=horizon, split=split)
    cut: dict[int, tuple[np.ndarray, dict[str, np.ndarray], ClipSpec]] = {}
    # Episode by episode, because reading one again for each of its clips would take minutes.
    infos = list(dict.fromkeys(info for info, _ in chosen))
    for number, info in enumerate(infos):
        if progress is not None:
            progress(f"episode {number + 1} of {len(infos)}")
        episode = dataset.load(info)
        for place in (place for place, (owner, _) in enumerate(chosen) if owner == info):
            context_end = chosen[place][1]
            clip = slice(context_end + 1 - context, context_end + horizon + 1)
            cuts = episode.columns.get("cut")
            if cuts is not None and np.any(cuts[clip.start : clip.stop - 1]):
                raise DataError(
                    f"{split} episode {info.index} has a cut inside frames {clip.start} to "
                    f"{clip.stop}; clips need whole episodes"
                )
            spec = ClipSpec(
                seed=info.seed,
                context_end=context_end,
                actions=np.asarray(episode.actions[: clip.stop - 1]),
                digest=_digest(episode.frames[clip]),
            )
            columns = {name: column[clip] for name, column in episode.columns.items()}
            cut[place] = (episode.frames[clip].copy(), columns, spec)
    clips = [cut[place] for place in range(len(chosen))]
    specs = tuple(spec for _, _, spec in clips)
    return Clips(
        context=context,
        frames=np.stack([frames for frames, _, _ in clips]),
        actions=np.stack([spec.actions[spec.context_end + 1 - context :] for spec in specs]),
        columns=_stack_columns([columns for _, columns, _ in clips]),
        specs=specs,
        changed=0,
    )


def _stack_columns(columns: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    shared = set(columns[0]).intersection(*columns[1:])
    return {name: np.stack([each[name] for each in columns]) for name in sorted(shared)}


def render_clips(
    specs: Sequence[ClipSpec],
    environment: RealEnvironment,
    *,
    context: int = 8,
    progress: Callable[[str], None] | None = None,
) -> Clips:
    """Return the clips of `specs`, rendered again by the real environment.

    Args:
        specs: All with the same number of actions after `context_end`.
        environment: Made from the world's card.
        context: Frames of context.
        progress: Told about every episode.
    """
    cut: dict[int, tuple[np.ndarray, list[dict[str, Any]]]] = {}
    for number, places in enumerate(_episodes(specs)):
        if progress is not None:
            progress(f"episode {number + 1}")
        # Clips of one episode share its beginning, which runs only once.
        longest = specs[max(places, key=lambda place: len(specs[place].actions))]
        frames = [environment.reset(seed=longest.seed)]
        rows = [_numeric(environment.info)]
        for action in longest.actions:
            frames.append(environment.step(action))
            rows.append(_numeric(environment.info))
        for place in places:
            first = specs[place].context_end + 1 - context
            clip = slice(first, len(specs[place].actions) + 1)
            cut[place] = (np.stack(frames[clip]), rows[clip])
    clips = [cut[place] for place in range(len(specs))]
    return Clips(
        context=context,
        frames=np.stack([frames for frames, _ in clips]),
        actions=np.stack([spec.actions[spec.context_end + 1 - context :] for spec in specs]),
        columns=_stack_columns([_stack_columns(rows) for _, rows in clips]),
        specs=tuple(specs),
        changed=sum(
            bool(spec.digest) and _digest(frames) != spec.digest
            for spec, (frames, _) in zip(specs, clips, strict=True)
        ),
    )


def _episodes(specs: Sequence[ClipSpec]) -> list[list[int]]:
    """Return the places of clips that begin with the same seed and the same actions."""
    groups: list[list[int]] = []
    for place, spec in enumerate(specs):
        for group in groups:
            other = specs[group[0]]
            shared = min(len(spec.actions), len(other.actions))
            if spec.seed == other.seed and np.array_equal(
                spec.actions[:shared], other.actions[:shared]
            ):
                group.append(place)
                break
        else:
            groups.append([place])
    return groups


def _numeric(info: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: np.asarray(entry)
        for name, entry in info.items()
        if np.asarray(entry).dtype.kind in "biuf"
    }


def write_clip_specs(path: Path, specs: Sequence[ClipSpec], *, context: int, horizon: int) -> None:
    """Write `evaluation.json` of a world; repeated actions are written once with their count.

    Args:
        path: Destination.
        specs: Clips.
        context: Frames of context.
        horizon: Frames to predict.
    """
    episodes = _episodes(specs)
    document = {
        "format": _FORMAT,
        "version": 1,
        "context": context,
        "horizon": horizon,
        "episodes": [
            {
                "seed": specs[places[0]].seed,
                "actions": _run_lengths(max((specs[place].actions for place in places), key=len)),
            }
            for places in episodes
        ],
        "clips": [
            {"episode": number, "context_end": spec.context_end, "digest": spec.digest}
            for spec, number in zip(specs, _numbers(episodes), strict=True)
        ],
    }
    text = json.dumps(document, separators=(",", ":"))
    write_text(path, text)


def _numbers(episodes: Sequence[Sequence[int]]) -> list[int]:
    """Return for each clip the number of its episode."""
    number_of = {place: number for number, places in enumerate(episodes) for place in places}
    return [number_of[place] for place in range(len(number_of))]


def _run_lengths(actions: np.ndarray) -> list[list[Any]]:
    runs: list[list[Any]] = []
    for action in np.asarray(actions).tolist():
        if runs and runs[-1][0] == action:
            runs[-1][1] += 1
        else:
            runs.append([action, 1])
    return runs


def read_clip_specs(path: Path) -> tuple[list[ClipSpec], int, int]:
    """Return the clips of an `evaluation.json`, their context and their horizon in frames.

    Raises:
        DataError: If the file is missing, is no clip list, or a clip is shorter than it says.
    """
    if not path.is_file():
        raise DataError(
            f"no test clips at {path}; give a recording instead, for example "
            "--data recordings/car_racing"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT or document["version"] != 1:
            raise DataError(
                f"{path} is {document['format']!r} version {document['version']}, "
                f"not {_FORMAT!r} version 1"
            )
        context, horizon = int(document["context"]), int(document["horizon"])
        episodes = [
            (
                int(each["seed"]),
                np.array([run[0] for run in each["actions"] for _ in range(run[1])]),
            )
            for each in document["episodes"]
        ]
        specs = []
        for clip in document["clips"]:
            seed, actions = episodes[clip["episode"]]
            end = int(clip["context_end"])
            specs.append(
                ClipSpec(
                    seed=seed,
                    context_end=end,
                    actions=actions[: end + horizon],
                    digest=str(clip["digest"]),
                )
            )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a list of test clips: {error!r}; write it again") from error
    for number, spec in enumerate(specs):
        if len(spec.actions) != spec.context_end + horizon or spec.context_end < context - 1:
            raise DataError(
                f"{path}: clip {number} has {len(spec.actions)} actions, but its context ends at "
                f"frame {spec.context_end} and {horizon} frames follow"
            )
    return specs, context, horizon
