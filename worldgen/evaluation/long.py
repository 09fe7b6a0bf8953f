"""Does a world stay a world: long rollouts, judged in windows of five seconds."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch.nn import functional as F
from tqdm import tqdm

from worldgen.errors import ConfigError
from worldgen.evaluation.clips import Clips
from worldgen.evaluation.frechet import FeatureNetwork, Moments, RandomFeatures, frechet_distance
from worldgen.evaluation.judges.inverse_dynamics import (
    INVERSE_DYNAMICS_FILE,
    InverseDynamicsModel,
    load_inverse_dynamics,
)
from worldgen.evaluation.judges.inverse_dynamics_measures import measure_actions
from worldgen.evaluation.judges.probes import TileProbe
from worldgen.evaluation.judges.tile_following import TileRules, action_names, follow_tiles
from worldgen.evaluation.live import frames_of, sessions_after, step_together
from worldgen.evaluation.machine import hardware, versions
from worldgen.evaluation.material import clips_of, load_world_probes
from worldgen.evaluation.pages.film_strip import draw_film_strip
from worldgen.evaluation.pages.strips import Strip
from worldgen.evaluation.simulators import Simulators
from worldgen.generation import Session
from worldgen.generation.planning import Segment, plan_then_fill
from worldgen.pipeline import World
from worldgen.records import to_float

__all__ = [
    "WINDOW_SECONDS",
    "LongProtocol",
    "WindowMoments",
    "at_seconds",
    "compare",
    "evaluate_long",
    "measure",
]

WINDOW_SECONDS = 5.0
_STILL = 0.5
"""Mean difference of two frames, of 255, below which the second repeats the first."""
_FRAMES_AT_ONCE = 128
_STRIP_ROWS, _STRIP_FRAMES = 4, 16
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
    plan: int | None = None
    """Frames from one key frame to the next, which are drawn first, and the gaps filled then; None:
    frame after frame."""
    clips: int = 64
    """Test clips that real frames are taken from."""

    def __post_init__(self) -> None:
        if self.plan is not None and self.actions == "policy":
            raise ConfigError(
                "a plan needs the actions of frames that are not drawn yet, and the model takes its "
                "own in the frames it sees; leave out either"
            )


@dataclass(kw_only=True)
class WindowMoments:
    """Sums over the frames of a window, all rollouts together."""

    features: Moments = field(default_factory=Moments)
    sums: dict[str, float] = field(default_factory=dict)
    colour: np.ndarray = field(default_factory=lambda: np.zeros(3))
    frames: int = 0

    def merge(self, other: "WindowMoments") -> None:
        """Take in all frames of another window, which stays as it is."""
        self.features.merge(other.features)
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.colour = self.colour + other.colour
        self.frames += other.frames


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
    actions it reads from the frames agree with those taken; in worlds of tiles also the share of
    moves that scroll the map where nothing stands in the way, and leave it where something does.
    Real frames cut in two halves say how large a Frechet distance is between equals.

    Actions that were recorded on one road leave another one, in a dream as in reality. So where the
    real environment is at hand it goes on from the same contexts under the same actions: each
    window has its distance to all real frames too, and that of the dream to it.

    `calls_a_frame` counts the calls of the model that were made one after the other: what a plan
    saves.

    Memory does not depend on the length, but for the tokens that a session keeps. An interrupt
    (Ctrl-C) ends the measurement with the windows that are complete.

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
        ConfigError: If the model cannot jump as far as the plan asks.
        CheckpointError: If one of the world's judges is damaged.
    """
    network = features or RandomFeatures()
    judge = _Judge.of(world)
    clips, _ = clips_of(world, protocol.clips, data, lambda _: None)
    real, floor = _real(clips.frames, network)
    begun_from = clips.first(min(protocol.rollouts, len(clips)))
    sessions = sessions_after(world, begun_from, decoder=protocol.decoder)
    simulators = Simulators.of(world, begun_from.specs)
    per_window = max(2, round(WINDOW_SECONDS * world.frames_per_second))
    count = max(1, round(protocol.seconds / WINDOW_SECONDS))
    windows: list[dict[str, Any]] = []
    shown: list[UInt8[np.ndarray, "row height width 3"]] = []
    rollouts = _rollouts(protocol, clips, sessions, count * per_window)
    with tqdm(
        total=count * per_window * len(sessions),
        desc=f"evaluate long {world.name}",
        unit="frame",
        mininterval=1.0,
        disable=not progress,
    ) as bar:
        try:
            for number in range(count):
                begun = time.perf_counter()
                rolled = rollouts.roll(per_window, bar.update)
                seconds = time.perf_counter() - begun
                figures = {"from_second": number * WINDOW_SECONDS}
                window = measure(rolled.frames, network)
                figures |= compare(window, real)
                if simulators is not None:
                    truth = measure(simulators.roll(rolled.actions), network)
                    figures["frechet_of_simulator"] = compare(truth, real)["frechet"]
                    figures["frechet_to_simulator"] = frechet_distance(
                        window.features, truth.features
                    )
                figures["milliseconds_a_frame"] = 1000 * seconds / (per_window * len(sessions))
                figures["calls_a_frame"] = rolled.calls / (per_window * len(sessions))
                figures |= judge.read(rolled.frames, rolled.actions)
                windows.append(figures)
                shown.append(rolled.frames[:_STRIP_ROWS, -1])
        except KeyboardInterrupt:
            if not windows:
                raise
        finally:
            if simulators is not None:
                simulators.close()
    for figures in windows:
        figures["frechet_over_first"] = figures["frechet"] / max(windows[0]["frechet"], 1e-12)
    return {
        "world": world.name,
        "world_hash": world.hash,
        "interrupted": len(windows) < count,
        "protocol": {
            "seconds": len(windows) * WINDOW_SECONDS,
            "frames_a_window": per_window,
            "rollouts": len(sessions),
            "actions": protocol.actions,
            "decoder": sessions[0].decoder.name,
            "plan": protocol.plan,
            "temperature": world.card.sampling.temperature,
            "features": network.name,
            "features_hash": network.hash,
            "real_frames": real.frames,
            "source": "recording" if data is not None else "rendered by the real environment",
        },
        "real_frames": {
            "frechet_between_halves": floor,
            **judge.read(clips.frames, clips.actions),
        },
        "windows": windows,
        "drift": windows[-1]["frechet_over_first"],
        "at_seconds": at_seconds(windows),
        "hardware": hardware(),
        "versions": versions(),
        "film_strips": [_strip(shown).to_json()],
    }


def at_seconds(windows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what is asked of the windows that hold the seconds 6, 60 and 600, as far as they go.

    Each has its Frechet distance over the first window's, and by how much less than at second 6
    actions are followed (shares, 0.03 is three points; None where no judge reads them).
    """

    def lost(window: Mapping[str, Any], name: str) -> float | None:
        now, early = window.get(name), at[6].get(name)
        return None if now is None or early is None else early - now

    # A second belongs to the window that it ends in: 60 to that from 55 on.
    at = {
        second: windows[int((second - 1) // WINDOW_SECONDS)]
        for second in (6, 60, 600)
        if second <= len(windows) * WINDOW_SECONDS
    }
    return {
        str(second): {
            "frechet_over_first": window["frechet_over_first"],
            **{f"{name}_lost": lost(window, name) for name in ("actions_f1", "moves_followed")},
        }
        for second, window in at.items()
    }


def _real(
    frames: UInt8[np.ndarray, "clip time height width 3"], network: FeatureNetwork
) -> tuple["WindowMoments", float]:
    """Return the sums over real frames, and the distance of every second clip from the others."""
    halves = [measure(frames[half::2], network) for half in range(2)]
    floor = frechet_distance(halves[0].features, halves[1].features)
    halves[0].merge(halves[1])
    return halves[0], floor


@dataclass(frozen=True, kw_only=True)
class _Rolled:
    """Some frames of all rollouts."""

    frames: UInt8[np.ndarray, "session time height width 3"]
    """The ones before in front."""
    actions: np.ndarray
    """[session, step, group]: that led to all frames but the first."""
    calls: float
    """Of the model, one after the other, of all rollouts together."""


class _Stepped:
    """Rollouts frame after frame, all at once.

    Args:
        sessions: Advance.
        scripts: Of each rollout; None: the model takes its own actions.
    """

    def __init__(
        self, sessions: Sequence[Session], scripts: Sequence[Iterator[np.ndarray]] | None
    ) -> None:
        self._sessions = sessions
        self._together = sessions[0].frames_per_step
        self._scripts = scripts
        self._known: list[deque[np.ndarray]] = [deque() for _ in sessions]

    def roll(self, steps: int, tell: Callable[[int], Any]) -> _Rolled:
        frames, actions, calls = [frames_of(self._sessions)], [], 0.0
        for _ in range(steps):
            known = self._next()
            step_together(self._sessions, known)
            frames.append(frames_of(self._sessions))
            actions.append(known[:, 0])
            for session in self._sessions:
                # Frames that were drawn together with one before took no calls of their own.
                if (session.frame_index - 1) % self._together == 0:
                    calls += session.calls
            tell(len(self._sessions))
        return _Rolled(
            frames=np.stack(frames, axis=1), actions=np.stack(actions, axis=1), calls=calls
        )

    def _next(self) -> np.ndarray:
        """Return the actions of the next step and those known after it, [session, action, group]."""
        if self._scripts is None:
            return np.stack([session.predict_action() for session in self._sessions])[:, None]
        for known, script in zip(self._known, self._scripts, strict=True):
            known.extend(itertools.islice(script, self._together - len(known)))
        chosen = np.array([list(known) for known in self._known])
        for known in self._known:
            known.popleft()
        return chosen


class _Planned:
    """Rollouts in two passes, one after the other: key frames, then the gaps between them.

    Args:
        sessions: Go on; they stay as they are.
        scripts: Of each rollout.
        stride: Frames from one key frame to the next.
    """

    def __init__(
        self, sessions: Sequence[Session], scripts: Sequence[Iterator[np.ndarray]], stride: int
    ) -> None:
        self._last = [session.frame for session in sessions]
        self._rollouts = [
            self._play(session, plan_then_fill(session, script, stride=stride))
            for session, script in zip(sessions, scripts, strict=True)
        ]

    def roll(self, steps: int, tell: Callable[[int], Any]) -> _Rolled:
        frames, actions, calls = [], [], 0.0
        for row, rollout in enumerate(self._rollouts):
            made = []
            for each in itertools.islice(rollout, steps):
                made.append(each)
                tell(1)
            frames.append(np.stack([self._last[row], *(frame for frame, _, _ in made)]))
            actions.append(np.stack([action for _, action, _ in made]))
            calls += sum(each for _, _, each in made)
            self._last[row] = frames[-1][-1]
        return _Rolled(frames=np.stack(frames), actions=np.stack(actions), calls=calls)

    @staticmethod
    def _play(
        session: Session, segments: Iterable[Segment]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        """Yield each frame with its action and its share of the calls."""
        parts = session.parts
        for segment in segments:
            actions = parts.action_tokenizer.decode(segment.action_ids.numpy())
            share = segment.calls / len(segment.ids)
            for frame, action in zip(segment.frames(parts.visual_tokenizer), actions, strict=True):
                yield frame, action, share


def _script(taken: np.ndarray, *, first: int, steps: int) -> Iterator[np.ndarray]:
    for step in range(first, first + steps):
        yield taken[step % len(taken)]


def _rollouts(
    protocol: LongProtocol, clips: Clips, sessions: Sequence[Session], steps: int
) -> _Stepped | _Planned:
    if protocol.actions == "policy":
        return _Stepped(sessions, None)
    taken = rearrange(clips.actions[:, clips.context - 1 :], "clip step group -> (clip step) group")
    # A session goes on with the actions of its own clip, then with those of the next ones.
    scripts = [
        _script(taken, first=row * clips.horizon, steps=steps) for row in range(len(sessions))
    ]
    if protocol.plan is not None:
        return _Planned(sessions, scripts, protocol.plan)
    return _Stepped(sessions, scripts)


def _strip(shown: Sequence[UInt8[np.ndarray, "row height width 3"]]) -> Strip:
    """Return the last frames of windows spread over the whole length, a row for each rollout."""
    picked = np.unique(np.linspace(0, len(shown) - 1, min(len(shown), _STRIP_FRAMES)).round())
    chosen = [int(number) for number in picked]
    picture = draw_film_strip(
        {
            f"rollout {row}": np.stack([shown[number][row] for number in chosen])
            for row in range(len(shown[0]))
        },
        labels=[f"{(number + 1) * WINDOW_SECONDS:.0f} s" for number in chosen],
        # All of it in sight, where frames are not larger than those of the shipped worlds.
        scale=max(1, 64 // shown[0].shape[1]),
    )
    return Strip(title="the last frame of windows", picture=picture)


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """What reads from frames whether they followed their actions; either may be missing."""

    world: World
    reader: InverseDynamicsModel | None
    tiles: TileProbe | None

    @classmethod
    def of(cls, world: World) -> "_Judge":
        file, reader = world.folder / INVERSE_DYNAMICS_FILE, None
        if file.exists():
            reader, _ = load_inverse_dynamics(file, world.action_tokenizer.schema)
        probes, _ = load_world_probes(world)
        tiles = [probe for probe in probes.values() if isinstance(probe, TileProbe)]
        return cls(world=world, reader=reader, tiles=tiles[0] if tiles else None)

    def read(self, frames: np.ndarray, actions: np.ndarray) -> dict[str, Any]:
        figures = _followed(self.reader, frames, actions) if self.reader is not None else {}
        if self.tiles is not None:
            names = action_names(self.world.action_tokenizer.schema, actions)
            figures |= {"moves_followed": _moves_followed(self.tiles, frames, names)}
        return figures


def _moves_followed(probe: TileProbe, frames: np.ndarray, names: np.ndarray) -> float | None:
    """Return the share of free moves that scroll the map and of blocked ones that do not."""
    tiles = probe.read(frames)
    flat = "clip time row column -> (clip time) row column"
    figures = follow_tiles(
        rearrange(tiles[:, :-1], flat),
        rearrange(tiles[:, 1:], flat),
        names.reshape(-1),
        TileRules.from_config(probe.config),
    )
    parts = [figures[name] for name in ("free_moves_scroll", "blocked_moves_stay")]
    cases = sum(part["cases"] for part in parts)
    hits = sum(part["cases"] * (part["share"] or 0.0) for part in parts)
    return hits / cases if cases else None


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
