"""One protocol for a whole world: every figure beside its references, the same on every run."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int, UInt8
from tqdm import tqdm

from worldgen.data.episodes import Dataset
from worldgen.errors import EnvironmentMissingError
from worldgen.evaluation.action_following import (
    HELD_ACTIONS,
    compare_held_actions,
    judge_held_actions,
    simulate_held_actions,
    track_motion,
)
from worldgen.evaluation.clips import Clips, load_clips, read_clip_specs, render_clips
from worldgen.evaluation.inverse_dynamics import (
    INVERSE_DYNAMICS_FILE,
    InverseDynamicsModel,
    load_inverse_dynamics,
)
from worldgen.evaluation.inverse_dynamics_following import follow_actions
from worldgen.evaluation.machine import hardware, versions
from worldgen.evaluation.prediction import changed_tokens, frame_quality, rollout_quality
from worldgen.evaluation.probe_data import tile_classes
from worldgen.evaluation.probes import MotionProbe, Probe, TileProbe, load_probes
from worldgen.evaluation.replay import check_replay, measure_cost
from worldgen.evaluation.rollout import Roller
from worldgen.evaluation.strips import Strip, rollout_strips
from worldgen.evaluation.summary import summarise
from worldgen.evaluation.tile_following import (
    MOVES,
    TileRules,
    follow_tiles,
    free_moves,
    reading_agreement,
)
from worldgen.generation.decoding import make_decoder
from worldgen.pipeline import World
from worldgen.real_environment import RealEnvironment
from worldgen.tokenizers.quantizers import code_usage

__all__ = ["evaluate_world"]

CLIPS_FILE = "evaluation.json"
PROBES_FILE = "probe.safetensors"
CONTEXT = 8
HORIZON = 64
_HELD_STEPS = 10
# Frames of the replay check, and the early and late frame of the cost over time: short and long.
_REPLAY_FRAMES = {False: 200, True: 1000}
_COST_FRAMES = {False: (100, 600), True: (500, 5000)}

_REFRESH_SECONDS = 0.3

Progress = Callable[[str], None]


def evaluate_world(
    world: World,
    *,
    clips: int = 64,
    data: Path | None = None,
    inverse_dynamics: Path | None = None,
    long: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Return the figures of a world, as JSON holds them, and film strips as PNG in base64.

    8 frames of context, 64 frames on, the recorded actions, from episodes that were never trained
    on. References: repeating the last frame of the context, and the tokenizer's own
    reconstruction of the truth. A world whose grids stand for several frames gets as many of the
    8 frames as a whole number of its grids stands for; frames are compared, and every recorded
    action is heeded at its own frame.

    Args:
        world: World to measure, with its default decoder and sampling.
        clips: How many test clips; fewer is faster and noisier.
        data: Recording whose test split gives the clips. Without it the clips are those of the
            world's `evaluation.json`, rendered again by the real environment.
        inverse_dynamics: Judge that reads actions from frames; without it the one in the world's
            folder, if there is one.
        long: Replay 1,000 frames and compare frame 5,000 with frame 500; minutes instead of
            seconds.
        progress: Show a bar on the terminal.

    Raises:
        DataError: If there are no test clips.
        EnvironmentMissingError: If the clips must be rendered and the environment is missing.
        CheckpointError: If one of the world's judges is damaged, or reads other actions.
    """
    # First of all, for a wrong file shall not be found after minutes.
    reader = _load_reader(world, inverse_dynamics)
    stages = ["clips", "rollouts", "tokens", "judges", "replay", "cost"]
    with tqdm(total=len(stages), desc=f"evaluate {world.name}", disable=not progress) as bar:
        shown = time.monotonic()

        def tell(text: str) -> None:
            nonlocal shown
            bar.set_postfix_str(text, refresh=False)
            if time.monotonic() - shown > _REFRESH_SECONDS:
                shown = time.monotonic()
                bar.refresh()

        material = _prepare(world, clips, data, tell)
        bar.update()
        result: dict[str, Any] = {
            "world": world.name,
            "world_hash": world.hash,
            "protocol": _protocol(world, material, data),
        }
        result["tokenizer"] = _tokenizer(world, material)
        result["rollout"] = _rollout(material)
        bar.update()
        probes, result["judges"] = _probes(world)
        tell("one step ahead")
        predicted = material.roller.predict_next(
            material.ids, material.clips.actions, context=material.context, progress=tell
        )
        result["tokens"] = _tokens(material, predicted, probes)
        bar.update()
        motion = {
            name: probe
            for name, probe in probes.items()
            # A judge that sees more frames than the context has cannot read the first step.
            if isinstance(probe, MotionProbe) and probe.config.num_frames <= material.context
        }
        tiles = {n: p for n, p in probes.items() if isinstance(p, TileProbe)}
        if motion:
            result["motion"] = _motion(material, motion, tell)
        for probe in tiles.values():
            result["tiles"] = _tiles(material, predicted, probe, tell)
        tell("actions read from frames")
        result["inverse_dynamics"] = _inverse_dynamics(material, reader)
        bar.update()
        replay_frames, (early, late) = _REPLAY_FRAMES[long], _COST_FRAMES[long]
        result["replay"] = check_replay(world, frames=replay_frames, progress=tell)
        bar.update()
        result["cost"] = measure_cost(world, early=early, late=late, progress=tell)
        bar.update()
        tell("")
    result["hardware"] = hardware()
    result["versions"] = versions()
    result["summary"] = summarise(result)
    result["film_strips"] = [strip.to_json() for strip in _strips(material)]
    return result


@dataclass(frozen=True, kw_only=True)
class _Material:
    """What every measure works on."""

    world: World
    clips: Clips
    roller: Roller
    ids: Int[np.ndarray, "clip step cell"]
    """The tokenizer's tokens of the true frames."""
    reconstruction: UInt8[np.ndarray, "clip time height width 3"]
    generated: UInt8[np.ndarray, "clip step height width 3"]
    environment: RealEnvironment | None

    @property
    def context(self) -> int:
        return self.clips.context

    @property
    def context_ids(self) -> Int[np.ndarray, "clip step cell"]:
        return self.ids[:, : self.world.tokenizer.num_latents(self.context)]

    def show(
        self, generated_ids: Int[np.ndarray, "clip step cell"], steps: int
    ) -> UInt8[np.ndarray, "clip step height width 3"]:
        """Return the first `steps` frames of what was generated after the context."""
        return self.roller.decode_after(self.context_ids, generated_ids)[:, :steps]

    @property
    def truth(self) -> UInt8[np.ndarray, "clip step height width 3"]:
        return self.clips.frames[:, self.context :]

    @property
    def repeated(self) -> UInt8[np.ndarray, "clip step height width 3"]:
        last = self.clips.frames[:, self.context - 1 : self.context]
        return np.broadcast_to(last, self.truth.shape)

    def dream(
        self, generated: UInt8[np.ndarray, "clip step height width 3"]
    ) -> UInt8[np.ndarray, "clip time height width 3"]:
        """Return generated frames with the context in front, as a player sees both."""
        return np.concatenate((self.reconstruction[:, : self.context], generated), axis=1)


def _prepare(world: World, count: int, data: Path | None, tell: Progress) -> _Material:
    tell("test clips")
    environment: RealEnvironment | None = None
    card = world.card.environment
    if data is not None:
        clips = load_clips(
            Dataset(data), count=count, context=CONTEXT, horizon=HORIZON, progress=tell
        )
        if card is not None:
            try:
                environment = RealEnvironment(card.id, card.options)
            except EnvironmentMissingError:
                tell("no simulator beside the recording")
    else:
        specs, context, _ = read_clip_specs(world.folder / CLIPS_FILE)
        if card is None:
            raise EnvironmentMissingError(
                f"the card of {world.name!r} names no environment to render its test clips; give "
                "a recording with --data"
            )
        environment = RealEnvironment(card.id, card.options)
        clips = render_clips(specs[:count], environment, context=context, progress=tell)
    clips = clips.with_context(world.tokenizer.longest_clip(clips.context))
    roller = Roller(
        model=world.model,
        visual_tokenizer=world.tokenizer,
        action_tokenizer=world.action_tokenizer,
        decoder=make_decoder(world.card.decoders[0], world.model.layout, world.card.sampling),
        seeds=range(len(clips)),
    )
    tell("tokens of the truth")
    ids = roller.encode(clips.frames)
    context_ids = ids[:, : world.tokenizer.num_latents(clips.context)]
    generated_ids = roller.roll_out(context_ids, clips.actions, progress=tell)
    return _Material(
        world=world,
        clips=clips,
        roller=roller,
        ids=ids,
        reconstruction=roller.decode(ids)[:, : clips.frames.shape[1]],
        generated=roller.decode_after(context_ids, generated_ids)[:, : clips.horizon],
        environment=environment,
    )


def _protocol(world: World, material: _Material, data: Path | None) -> dict[str, Any]:
    sampling, together = world.card.sampling, world.model.layout.frames_per_step
    return {
        "clips": len(material.clips),
        "episodes": len({spec.seed for spec in material.clips.specs}),
        "context_frames": material.context,
        "predicted_frames": material.clips.horizon,
        **({"frames_drawn_together": together} if together > 1 else {}),
        "split": "test",
        "source": "recording" if data is not None else "rendered by the real environment",
        "clips_that_differ_from_the_recording": material.clips.changed,
        "decoder": world.card.decoders[0],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seeds": "clip number",
        "simulator": material.environment is not None,
    }


def _tokenizer(world: World, material: _Material) -> dict[str, Any]:
    quality = frame_quality(material.reconstruction, material.clips.frames)
    usage = code_usage(torch.from_numpy(material.ids), world.tokenizer.codebook_size)
    return {
        "frames": int(np.prod(material.clips.frames.shape[:2])),
        "psnr": float(quality.psnr.mean()),
        "psnr_worst_frame": float(quality.psnr.min()),
        "ssim": float(quality.ssim.mean()),
        "codebook_size": world.tokenizer.codebook_size,
        "codes_used": usage.used,
        "perplexity": usage.perplexity,
    }


def _rollout(material: _Material) -> dict[str, Any]:
    truth = material.truth
    qualities = {
        "generated": frame_quality(material.generated, truth),
        "repeat_last_frame": frame_quality(material.repeated, truth),
        "tokenizer_reconstruction": frame_quality(
            material.reconstruction[:, material.context :], truth
        ),
    }
    changed = (material.repeated != truth).any(axis=(2, 3, 4))
    return rollout_quality(qualities, changed)


def _static_rows(material: _Material, probes: Mapping[str, Probe]) -> int:
    """Return the rows of tokens at the bottom that never scroll, as the judges know them."""
    rows = 0
    for probe in probes.values():
        height = material.clips.frames.shape[2] // material.world.tokenizer.rows
        if isinstance(probe, MotionProbe):
            rows = max(rows, probe.config.dashboard_rows // height)
        else:
            below = sum(column.rows for column in probe.config.columns[1:])
            rows = max(rows, below * probe.config.tile // height)
    return rows


def _tokens(
    material: _Material,
    predicted: Int[np.ndarray, "clip step cell"],
    probes: Mapping[str, Probe],
) -> dict[str, Any]:
    rows = material.world.tokenizer.rows
    grids = [
        rearrange(ids, "clip time (row column) -> clip time row column", row=rows)
        for ids in (predicted, material.ids)
    ]
    return changed_tokens(*grids, static_rows=_static_rows(material, probes))


def _probes(world: World) -> tuple[dict[str, Probe], dict[str, Any]]:
    path = world.folder / PROBES_FILE
    if not path.exists():
        return {}, {}
    return load_probes(path)


def _load_reader(
    world: World, path: Path | None
) -> tuple[InverseDynamicsModel, dict[str, Any]] | None:
    if path is None:
        path = world.folder / INVERSE_DYNAMICS_FILE
        if not path.exists():
            return None
    return load_inverse_dynamics(path, world.action_tokenizer.schema)


def _inverse_dynamics(
    material: _Material, reader: tuple[InverseDynamicsModel, dict[str, Any]] | None
) -> dict[str, Any]:
    if reader is None:
        return {
            "absent": f"the world has no {INVERSE_DYNAMICS_FILE}; train one with "
            "python -m train.inverse_dynamics, or name one with --inverse-dynamics"
        }
    model, held_out = reader
    clips = {
        "generated": material.dream(material.generated),
        "real_frames": material.clips.frames,
        "tokenizer_reconstruction": material.reconstruction,
    }
    return {
        "held_out": held_out,
        **follow_actions(model, clips, material.clips.actions, context=material.context),
    }


def _held_rollouts(
    material: _Material, names: tuple[str, ...], steps: int, tell: Progress
) -> dict[str, UInt8[np.ndarray, "clip time height width 3"]]:
    """Return for each action the context and `steps` frames dreamt while it is held."""
    schema = material.world.action_tokenizer.schema
    context = material.context
    held = {}
    for name in names:
        tell(f"hold {name}")
        settings = schema.action(schema.named[name])
        shape = (len(material.clips), steps, len(settings))
        actions = np.concatenate(
            (material.clips.actions[:, : context - 1], np.broadcast_to(settings, shape)), axis=1
        )
        ids = material.roller.roll_out(material.context_ids, actions)
        held[name] = material.dream(material.show(ids, steps))
    return held


def _motion(material: _Material, probes: dict[str, MotionProbe], tell: Progress) -> dict[str, Any]:
    dreams = {
        "generated": material.dream(material.generated),
        "real_frames": material.clips.frames,
        "tokenizer_reconstruction": material.reconstruction,
    }
    tracking = {
        name: track_motion(probe, dreams, material.clips.columns, context=material.context)
        for name, probe in probes.items()
    }
    result: dict[str, Any] = {"tracking": tracking, "held_actions": None}
    schema = material.world.action_tokenizer.schema
    if all(name in schema.named for name in HELD_ACTIONS):
        frames = _held_rollouts(material, HELD_ACTIONS, _HELD_STEPS, tell)
        simulated = None
        if material.environment is not None:
            settings = {name: schema.action(schema.named[name]) for name in HELD_ACTIONS}
            simulated = simulate_held_actions(
                material.environment,
                material.clips.specs,
                settings,
                steps=_HELD_STEPS,
                progress=tell,
            )
        result["held_actions"] = {
            name: compare_held_actions(
                judge_held_actions(probe, frames, steps=_HELD_STEPS), simulated
            )
            for name, probe in probes.items()
        }
    return result


def _tiles(
    material: _Material,
    predicted: Int[np.ndarray, "clip step cell"],
    probe: TileProbe,
    tell: Progress,
) -> dict[str, Any]:
    rules = TileRules.from_config(probe.config)
    clips, context = material.clips, material.context
    true = tile_classes(clips.columns, probe.config, leading_axes=2)
    originals = probe.read(clips.frames)
    schema = material.world.action_tokenizer.schema
    shown = material.roller.decode_each_after(material.ids, predicted)
    read = probe.read(shown[:, : clips.horizon])
    # Frames in which the recorded actions were taken, and those that followed.
    before, after = true[:, context - 1 : -1], true[:, context:]
    names = _action_names(material.world, clips.actions[:, context - 1 :])
    held = {}
    for move in MOVES:
        if move in schema.named:
            held[move] = _held_rollouts(material, (move,), 1, tell)[move][:, -1]
    states = true[:, context - 1]
    return {
        "reconstructions": reading_agreement(
            probe.config, originals, probe.read(material.reconstruction)
        ),
        "recorded_actions": follow_tiles(
            _flat(before), _flat(read), names.reshape(-1), rules, _flat(after)
        ),
        "each_move_from_every_state": follow_tiles(
            np.concatenate([states for _ in held]),
            np.concatenate([probe.read(frames) for frames in held.values()]),
            np.repeat(list(held), len(states)),
            rules,
        )
        if held
        else None,
        "free_moves": int(sum(free.sum() for free in free_moves(states, rules).values())),
    }


def _flat(grids: Int[np.ndarray, "clip time row column"]) -> Int[np.ndarray, "frame row column"]:
    return rearrange(grids, "clip time row column -> (clip time) row column")


def _action_names(world: World, actions: np.ndarray) -> np.ndarray:
    """Return the name of each action, empty where the schema names none."""
    schema = world.action_tokenizer.schema
    names = np.full(actions.shape[:-1], "", dtype="<U64")
    for name, settings in schema.named.items():
        names[(actions == schema.action(settings)).all(axis=-1)] = name
    return names


def _strips(material: _Material) -> list[Strip]:
    return rollout_strips(
        truth=material.truth,
        generated=material.generated,
        reconstruction=material.reconstruction[:, material.context :],
    )
