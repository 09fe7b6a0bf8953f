"""One protocol for a whole world: every figure beside its references, the same on every run."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from tqdm import tqdm

from worldgen.evaluation.judges.action_following import (
    HELD_ACTIONS,
    compare_held_actions,
    judge_held_actions,
    simulate_held_actions,
    track_motion,
)
from worldgen.evaluation.judges.inverse_dynamics import (
    INVERSE_DYNAMICS_FILE,
    InverseDynamicsModel,
    load_inverse_dynamics,
)
from worldgen.evaluation.judges.inverse_dynamics_following import follow_actions
from worldgen.evaluation.judges.probe_data import tile_classes
from worldgen.evaluation.judges.probes import MotionProbe, Probe, TileProbe
from worldgen.evaluation.judges.tile_following import (
    MOVES,
    TileRules,
    action_names,
    follow_tiles,
    free_moves,
    reading_agreement,
)
from worldgen.evaluation.machine import hardware, versions
from worldgen.evaluation.material import (
    Material,
    held_rollouts,
    load_world_probes,
    prepare,
)
from worldgen.evaluation.pages.strips import Strip, rollout_strips
from worldgen.evaluation.prediction import changed_tokens, frame_quality, rollout_quality
from worldgen.evaluation.replay import check_replay, measure_cost
from worldgen.evaluation.summary import summarise
from worldgen.pipeline import World
from worldgen.tokenizers.quantizers import code_usage

__all__ = ["evaluate_world"]

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

        material = prepare(world, clips, data, tell)
        bar.update()
        result: dict[str, Any] = {
            "world": world.name,
            "world_hash": world.hash,
            "protocol": _protocol(world, material, data),
        }
        result["tokenizer"] = _tokenizer(world, material)
        result["rollout"] = _rollout(material)
        bar.update()
        probes, result["judges"] = load_world_probes(world)
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


def _protocol(world: World, material: Material, data: Path | None) -> dict[str, Any]:
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


def _tokenizer(world: World, material: Material) -> dict[str, Any]:
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


def _rollout(material: Material) -> dict[str, Any]:
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


def _static_rows(material: Material, probes: Mapping[str, Probe]) -> int:
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
    material: Material,
    predicted: Int[np.ndarray, "clip step cell"],
    probes: Mapping[str, Probe],
) -> dict[str, Any]:
    rows = material.world.tokenizer.rows
    grids = [
        rearrange(ids, "clip time (row column) -> clip time row column", row=rows)
        for ids in (predicted, material.ids)
    ]
    return changed_tokens(*grids, static_rows=_static_rows(material, probes))


def _load_reader(
    world: World, path: Path | None
) -> tuple[InverseDynamicsModel, dict[str, Any]] | None:
    if path is None:
        path = world.folder / INVERSE_DYNAMICS_FILE
        if not path.exists():
            return None
    return load_inverse_dynamics(path, world.action_tokenizer.schema)


def _inverse_dynamics(
    material: Material, reader: tuple[InverseDynamicsModel, dict[str, Any]] | None
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


def _motion(material: Material, probes: dict[str, MotionProbe], tell: Progress) -> dict[str, Any]:
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
        frames = held_rollouts(material, HELD_ACTIONS, _HELD_STEPS, tell)
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
    material: Material,
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
    names = action_names(schema, clips.actions[:, context - 1 :])
    held = {}
    for move in MOVES:
        if move in schema.named:
            held[move] = held_rollouts(material, (move,), 1, tell)[move][:, -1]
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


def _strips(material: Material) -> list[Strip]:
    return rollout_strips(
        truth=material.truth,
        generated=material.generated,
        reconstruction=material.reconstruction[:, material.context :],
    )
