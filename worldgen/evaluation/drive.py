"""Does a world of ego motion go where it is told, and know where it would go itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from tqdm import tqdm

from worldgen.checkpoint import load_tensors
from worldgen.data.episodes import Dataset
from worldgen.ego_motion import integrate, path_length
from worldgen.errors import ActionError, CheckpointError
from worldgen.evaluation.clips import Clips, load_clips
from worldgen.evaluation.judges.ego_motion import compare_drives, probe_motion, read_motion
from worldgen.evaluation.judges.inverse_dynamics import (
    INVERSE_DYNAMICS_FILE,
    load_inverse_dynamics,
)
from worldgen.evaluation.judges.probes import MotionProbe, load_probes
from worldgen.evaluation.machine import hardware, versions
from worldgen.evaluation.material import CONTEXT, PROBES_FILE, roller_of
from worldgen.evaluation.summary import figure_row
from worldgen.generation import SamplingConfig, Start
from worldgen.models import Policy
from worldgen.pipeline import World
from worldgen.tokenizers.action import is_driving_schema

__all__ = ["evaluate_drive", "format_drive"]


def evaluate_drive(
    world: World,
    *,
    data: Path,
    seconds: float = 10.0,
    clips: int = 32,
    judge: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Return how well a world follows given ego motion, and predicts it, as JSON holds it.

    Test clips go on under their recorded motion for some seconds. A judge reads the motion from
    the frames that come out, and the trajectory of what it reads is held against the given one;
    beside it stands what it reads from the real frames, and from the tokenizer's reconstruction of
    them, which bound what can be expected. Where the model predicts ego motion, it drives on for
    one second by itself from the same contexts, at temperature 0, and where it ends is held
    against where the recorded driver ended.

    Args:
        world: World whose actions are ego motion.
        data: Recording whose test split gives the clips.
        seconds: Length of the drives.
        clips: How many test clips.
        judge: File of an inverse dynamics model of ego motion, or of probes of which one reads turn
            and speed; without it the one in the world's folder, the inverse dynamics model first.
        progress: Show a bar on the terminal.

    Raises:
        ActionError: If the world's actions are no ego motion.
        CheckpointError: If there is no judge, or it reads other actions.
        DataError: If the recording has no test clips of that length.
    """
    if not is_driving_schema(world.action_tokenizer.schema):
        raise ActionError(
            f"the actions of world {world.name!r} are no ego motion; `worldgen evaluate world` "
            "measures how well it follows others"
        )
    reader = _load_judge(world, judge)
    steps = max(1, round(seconds * world.frames_per_second))
    with tqdm(total=4, desc=f"evaluate drive {world.name}", disable=not progress) as bar:

        def tell(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)

        chosen = load_clips(
            Dataset(data), count=clips, context=CONTEXT, horizon=steps, progress=tell
        )
        bar.update()
        roller = roller_of(world, len(chosen))
        ids = roller.encode(chosen.frames)
        reconstruction = roller.decode(ids)
        bar.update()
        drawn = roller.roll_out(ids[:, :CONTEXT], chosen.actions, progress=tell)
        generated = np.concatenate((reconstruction[:, :CONTEXT], roller.decode(drawn)), axis=1)
        bar.update()
        kinds = {
            "generated": generated,
            "real_frames": chosen.frames,
            "tokenizer_reconstruction": reconstruction,
        }
        followed = {name: _followed(reader, frames, chosen) for name, frames in kinds.items()}
        predicted = None
        if isinstance(world.model, Policy):
            predicted = _predict(world, chosen, ids, min(steps, round(world.frames_per_second)))
        bar.update()
    return {
        "world": world.name,
        "world_hash": world.hash,
        "summary": _summary(followed, predicted, steps / world.frames_per_second),
        "protocol": {
            "clips": len(chosen),
            "seconds": steps / world.frames_per_second,
            "context_frames": CONTEXT,
            "decoder": roller.decoder.name,
            "split": "test",
        },
        "followed": followed,
        "one_second_ahead": predicted,
        "hardware": hardware(),
        "versions": versions(),
    }


_Read = Callable[
    [UInt8[np.ndarray, "clip time height width 3"]], Float64[np.ndarray, "clip step 3"]
]


def _load_judge(world: World, path: Path | None) -> _Read:
    """Return what reads the motion between frames, of the last steps if not of all."""
    own = (world.folder / name for name in (INVERSE_DYNAMICS_FILE, PROBES_FILE))
    file = path or next((each for each in own if each.exists()), None)
    if file is None:
        raise CheckpointError(
            f"world {world.name!r} has no {INVERSE_DYNAMICS_FILE} to read motion from frames with; "
            "train one with `python -m train.inverse_dynamics` on a recording of ego motion and "
            "name it with --judge"
        )
    if load_tensors(file)[1].get("kind") == "probes":
        probes, _ = load_probes(file)
        for probe in probes.values():
            if isinstance(probe, MotionProbe) and {"yaw_change", "speed"} <= set(
                probe.config.quantities
            ):
                return lambda frames: probe_motion(probe, frames, world.frames_per_second)
        raise CheckpointError(f"no probe in {file} reads yaw_change and speed")
    # The judge may read in other bins than the world writes: both say degrees and metres.
    reader, _ = load_inverse_dynamics(file)
    return lambda frames: read_motion(reader, frames)


def _followed(
    read: _Read, frames: UInt8[np.ndarray, "clip time height width 3"], clips: Clips
) -> dict[str, Any]:
    given = clips.actions[:, clips.context - 1 :]
    return compare_drives(given, read(frames)[:, -given.shape[1] :])


def _summary(
    followed: dict[str, Any], predicted: dict[str, Any] | None, seconds: float
) -> list[dict[str, Any]]:
    """Return the headline figures of a drive."""
    rows = [
        figure_row(
            f"given motion followed for {seconds:.0f} s, off by",
            followed["generated"]["deviation_mean"],
            "share",
            at_most=0.05,
            references={
                name.replace("_", " "): followed[name]["deviation_mean"]
                for name in ("real_frames", "tokenizer_reconstruction")
            },
        )
    ]
    if predicted is not None:
        kept = predicted["last_motion_kept"]["deviation_mean"]
        rows.append(
            figure_row(
                f"{predicted['seconds']:.0f} s ahead, driven by the model itself, off by",
                predicted["model"]["deviation_mean"],
                "share",
                at_most=0.1,
                references={"last motion kept": kept},
            )
        )
    return rows


def _predict(world: World, clips: Clips, ids: np.ndarray, steps: int) -> dict[str, Any]:
    """Return where the model drives in some steps, against where the recorded drivers went."""
    encode = world.action_tokenizer.encode
    first = clips.context - 1
    taken = torch.from_numpy(encode(clips.actions[:, :first]))
    best = SamplingConfig(temperature=0.0)
    driven: list[Float64[np.ndarray, "step 3"]] = []
    for row in range(len(clips)):
        visual = torch.from_numpy(ids[row, : clips.context])
        session = world.session(seed=row, start=Start(visual_ids=visual, action_ids=taken[row]))
        for _ in range(steps):
            session.step(session.predict_action(best))
        driven.append(session.actions.astype(np.float64))
    true = clips.actions[:, first : first + steps].astype(np.float64)
    held = np.repeat(clips.actions[:, first - 1 : first], steps, axis=1).astype(np.float64)
    return {
        "seconds": steps / world.frames_per_second,
        "path_length": float(np.median(path_length(integrate(true)))),
        "model": compare_drives(true, np.stack(driven)),
        "last_motion_kept": compare_drives(true, held),
    }


def format_drive(result: dict[str, Any]) -> list[str]:
    """Return the figures of `evaluate_drive` as lines for a terminal."""
    seconds = result["protocol"]["seconds"]
    lines = [f"{seconds:g} s under the recorded motion, read from the frames (medians of clips)"]
    rows = dict(result["followed"])
    ahead = result["one_second_ahead"]
    if ahead is not None:
        rows |= {name: ahead[name] for name in ("model", "last_motion_kept")}
    for name, figures in rows.items():
        if name == "model":
            lines.append(f"{ahead['seconds']:g} s ahead, driven by the model itself")
        lines.append(
            f"  {name.replace('_', ' ')}: off by {_share(figures['deviation_mean'])} of the way on "
            f"average, {_share(figures['deviation_end'])} at the end"
        )
    return lines


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
