"""Does a world stay a world: long rollouts, judged in windows of five seconds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch.nn import functional as F
from tqdm import tqdm

from worldgen.evaluation.clips import Clips
from worldgen.evaluation.frechet import FeatureNetwork, Moments, RandomFeatures, frechet_distance
from worldgen.evaluation.judges.inverse_dynamics import (
    INVERSE_DYNAMICS_FILE,
    InverseDynamicsModel,
    load_inverse_dynamics,
)
from worldgen.evaluation.judges.inverse_dynamics_measures import measure_actions
from worldgen.evaluation.machine import hardware, versions
from worldgen.evaluation.material import clips_of, roller_of
from worldgen.evaluation.pages.film_strip import draw_film_strip
from worldgen.evaluation.pages.strips import Strip
from worldgen.generation import Session, Start
from worldgen.generation.batch import advance_together
from worldgen.pipeline import World
from worldgen.records import to_float

__all__ = [
    "WINDOW_SECONDS",
    "LongProtocol",
    "WindowMoments",
    "compare",
    "evaluate_long",
    "measure",
]

WINDOW_SECONDS = 5.0
_STILL = 0.5
"""Mean difference of two frames, of 255, below which the second repeats the first."""
_FRAMES_AT_ONCE = 128
_FEATURES_EVERY = 2
"""Frames from one picture to the next that features are taken of; neighbours say little more."""


@dataclass(frozen=True, kw_only=True)
class LongProtocol:
    """What is rolled out, and how long."""

    seconds: float = 60.0
    rollouts: int = 8
    """Each from the context of another test clip, with a seed of its own."""
    actions: Literal["recorded", "policy"] = "recorded"
    """Those of the test clips, one clip's after the other's; or those that the model itself would
    take, which only a model that predicts actions has."""
    decoder: str | None = None
    """None: the first on the world's card."""
    clips: int = 64
    """Test clips that real frames are taken from."""


@dataclass(kw_only=True)
class WindowMoments:
    """Sums over the frames of a window, all rollouts together."""

    features: Moments = field(default_factory=Moments)
    sums: dict[str, float] = field(default_factory=dict)
    colour: np.ndarray = field(default_factory=lambda: np.zeros(3))
    frames: int = 0


def evaluate_long(
    world: World,
    protocol: LongProtocol,
    *,
    data: Path | None = None,
    features: FeatureNetwork | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Return figures of each window of long rollouts against real frames, as JSON holds them.

    Each window has the Frechet distance of its frames to all real ones, and that distance over
    the first window's; sharpness (mean size of the Laplacian) and motion (mean difference of
    neighbouring frames) over those of real frames; the shift of the mean colour; the share of
    frames that repeat the one before; and, where the world has a judge of actions, how well the
    actions it reads from the frames agree with those taken. Real frames cut in two halves say
    how large a Frechet distance is between equals.

    Memory does not depend on the length, but for the tokens that a session keeps.

    Args:
        world: World to measure.
        protocol: What is rolled out.
        data: Recording whose test split gives contexts, actions and real frames; without it the
            clips of the world's `evaluation.json`, rendered again by the real environment.
        features: What the Frechet distance is taken over; random convolutions by default.
        progress: Show a bar on the terminal.

    Raises:
        DataError: If there are no test clips.
        EnvironmentMissingError: If the clips must be rendered and the environment is missing.
        ActionError: If the model is asked for actions and predicts none.
        CheckpointError: If the world's judge of actions is damaged.
    """
    judge_file = world.folder / INVERSE_DYNAMICS_FILE
    judge = None
    if judge_file.exists():
        judge, _ = load_inverse_dynamics(judge_file, world.action_tokenizer.schema)
    network = features or RandomFeatures()
    clips, _ = clips_of(world, protocol.clips, data, lambda _: None)
    real = measure(clips.frames, network)
    halves = [measure(clips.frames[half::2], network) for half in range(2)]
    floor = frechet_distance(halves[0].features, halves[1].features)

    sessions = _sessions(world, protocol, clips)
    per_window = max(2, round(WINDOW_SECONDS * world.frames_per_second))
    count = max(1, round(protocol.seconds / WINDOW_SECONDS))
    windows: list[dict[str, Any]] = []
    shown: list[UInt8[np.ndarray, "window height width 3"]] = []
    drive = _driver(protocol, world, clips)
    with tqdm(
        total=count * per_window * len(sessions),
        desc=f"evaluate long {world.name}",
        unit="frame",
        mininterval=1.0,
        disable=not progress,
    ) as bar:
        for number in range(count):
            begun = time.perf_counter()
            frames, actions = _roll(sessions, drive, per_window, bar.update)
            seconds = time.perf_counter() - begun
            figures = compare(measure(frames, network), real)
            figures["milliseconds_a_frame"] = 1000 * seconds / (per_window * len(sessions))
            if judge is not None:
                figures |= _followed(judge, frames, actions)
            figures["from_second"] = number * WINDOW_SECONDS
            windows.append(figures)
            shown.append(frames[:, -1])
    first = windows[0]["frechet"]
    for figures in windows:
        figures["frechet_over_first"] = figures["frechet"] / max(first, 1e-12)
    strip = draw_film_strip(
        {f"rollout {row}": np.stack([frames[row] for frames in shown]) for row in range(4)}
        if len(sessions) >= 4
        else {"rollout 0": np.stack([frames[0] for frames in shown])},
        labels=[f"{(number + 1) * WINDOW_SECONDS:.0f} s" for number in range(count)],
    )
    return {
        "world": world.name,
        "world_hash": world.hash,
        "protocol": {
            "seconds": count * WINDOW_SECONDS,
            "frames_a_window": per_window,
            "rollouts": len(sessions),
            "actions": protocol.actions,
            "decoder": sessions[0].decoder.name,
            "temperature": world.card.sampling.temperature,
            "features": network.name,
            "features_hash": network.hash,
            "real_frames": real.frames,
            "source": "recording" if data is not None else "rendered by the real environment",
        },
        "real_frames": {
            "frechet_between_halves": floor,
            **(_followed(judge, clips.frames, clips.actions) if judge is not None else {}),
        },
        "windows": windows,
        "drift": windows[-1]["frechet_over_first"],
        "hardware": hardware(),
        "versions": versions(),
        "film_strips": [Strip(title="the last frame of each window", picture=strip).to_json()],
    }


def _sessions(world: World, protocol: LongProtocol, clips: Clips) -> list[Session]:
    count = min(protocol.rollouts, len(clips))
    roller = roller_of(world, count)
    ids = roller.encode(clips.frames[:count, : clips.context])
    action_ids = world.model.layout.actions_of_steps(
        torch.from_numpy(world.action_tokenizer.encode(clips.actions[:count, : clips.context - 1]))
    )
    return [
        world.session(
            seed=row,
            start=Start(visual_ids=torch.from_numpy(ids[row]), action_ids=action_ids[row]),
            decoder=protocol.decoder,
        )
        for row in range(count)
    ]


_Drive = Callable[[Sequence[Session]], np.ndarray]


def _driver(protocol: LongProtocol, world: World, clips: Clips) -> _Drive:
    """Return what gives each session its next action, `[session, group]`."""
    if protocol.actions == "policy":
        return lambda sessions: np.stack([session.predict_action() for session in sessions])
    taken = rearrange(clips.actions[:, clips.context - 1 :], "clip step group -> (clip step) group")

    def recorded(sessions: Sequence[Session]) -> np.ndarray:
        # A session goes on with the actions of its own clip, then with those of the next ones.
        places = [row * clips.horizon + each.frame_index for row, each in enumerate(sessions)]
        chosen: np.ndarray = taken[np.array(places) % len(taken)]
        return chosen

    return recorded


def _roll(
    sessions: Sequence[Session], drive: _Drive, steps: int, tell: Callable[[int], Any]
) -> tuple[UInt8[np.ndarray, "session time height width 3"], np.ndarray]:
    """Return the sessions' current frames and those of some steps on, and the actions taken."""
    frames, actions = [np.stack([session.frame for session in sessions])], []
    for _ in range(steps):
        chosen = drive(sessions)
        ids = torch.from_numpy(sessions[0].parts.action_tokenizer.encode(chosen))
        advance_together(sessions, [row[None] for row in ids])
        frames.append(np.stack([session.frame for session in sessions]))
        actions.append(chosen)
        tell(len(sessions))
    return np.stack(frames, axis=1), np.stack(actions, axis=1)


def _followed(
    judge: InverseDynamicsModel, frames: np.ndarray, actions: np.ndarray
) -> dict[str, Any]:
    agreement = measure_actions(judge.schema, actions, judge.label(frames))
    scores = agreement["mean_over_tasks"]
    return {
        "actions_f1": None if scores is None else scores["f1_macro"],
        "axes_off_by_bins": {
            name: axis["mean_absolute_difference"] for name, axis in agreement["axes"].items()
        },
    }


def measure(
    clips: UInt8[np.ndarray, "*clip time height width 3"], network: FeatureNetwork
) -> WindowMoments:
    """Return the sums over the frames of a clip or of many, but for the first frame of each.

    Args:
        clips: Each from the frame before the first one that counts.
        network: What the Frechet distance is taken over.
    """
    window = WindowMoments()
    for clip in clips.reshape(-1, *clips.shape[-4:]):
        for first in range(0, len(clip) - 1, _FRAMES_AT_ONCE):
            _add(window, np.ascontiguousarray(clip[first : first + _FRAMES_AT_ONCE + 1]), network)
    return window


def _add(
    window: WindowMoments,
    clip: UInt8[np.ndarray, "time height width 3"],
    network: FeatureNetwork,
) -> None:
    frames = to_float(torch.from_numpy(clip))
    later = frames[1:]
    window.features.add(network(later[::_FEATURES_EVERY]))
    grey = later.mean(dim=1, keepdim=True)
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    edges = F.conv2d(grey, kernel[None, None]).abs().mean(dim=(1, 2, 3))
    moved = (later - frames[:-1]).abs().mean(dim=(1, 2, 3)) * 127.5
    for name, values in (("sharpness", edges), ("motion", moved), ("still", moved < _STILL)):
        window.sums[name] = window.sums.get(name, 0.0) + float(values.double().sum())
    window.colour += clip[1:].astype(np.float64).mean(axis=(1, 2)).sum(axis=0)
    window.frames += len(later)


def compare(window: WindowMoments, real: WindowMoments) -> dict[str, Any]:
    """Return the figures of a window against those of real frames; see `evaluate_long`."""

    def mean(of: WindowMoments, name: str) -> float:
        return of.sums[name] / of.frames

    shift = window.colour / window.frames - real.colour / real.frames
    return {
        "frechet": frechet_distance(window.features, real.features),
        "sharpness": mean(window, "sharpness") / max(mean(real, "sharpness"), 1e-12),
        "motion": mean(window, "motion") / max(mean(real, "motion"), 1e-12),
        "colour_shift": float(np.abs(shift).mean()),
        "repeated_frames": mean(window, "still"),
        "repeated_frames_real": mean(real, "still"),
    }
