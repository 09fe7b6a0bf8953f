"""Make a world folder of two trainings: `python -m train.package_world experiment=car_racing`."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from einops import rearrange
from omegaconf import DictConfig
from torch import nn

from worldgen.card_text import card_as_markdown
from worldgen.checkpoint import file_hash, load_tensors, save_tensors, write_text
from worldgen.config import build
from worldgen.data.episodes import SPLITS, Dataset
from worldgen.data.token_cache import recorded_ids
from worldgen.errors import CheckpointError, DataError, WorldgenError
from worldgen.evaluation.clips import load_clips, write_clip_specs
from worldgen.evaluation.judges.inverse_dynamics import INVERSE_DYNAMICS_FILE
from worldgen.evaluation.machine import hardware
from worldgen.evaluation.material import PROBES_FILE
from worldgen.evaluation.pages.page import format_figure
from worldgen.generation import SamplingConfig, Start
from worldgen.layout import SequenceLayout
from worldgen.models import NextFrameTransformer, load_world_model
from worldgen.pipeline import (
    MODEL_FILE,
    STARTS_FILE,
    TEXT_FILE,
    TOKENIZER_FILE,
    EnvironmentCard,
    WorldCard,
    save_starts,
)
from worldgen.records import to_float
from worldgen.tokenizers.action import ActionTokenizer, is_driving_schema
from worldgen.tokenizers.text import TextTokenizer
from worldgen.tokenizers.visual import VisualTokenizer, load_visual_tokenizer


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What the trainings do not know about a world."""

    title: str
    description: str
    decoders: tuple[str, ...]
    """Orders offered to players, the default first."""
    sampling: SamplingConfig
    limits: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StartsConfig:
    """Beginnings taken from test episodes."""

    count: int
    context: int
    """Frames of context; fewer where a tokenizer of clips needs another number."""
    earliest: int
    """Steps after the reset at which the first start's context ends."""
    latest: int


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `python -m train.package_world` reads."""

    name: str
    out: str
    """Folder of the world."""
    data: dict[str, Any]
    tokenizer_file: str
    model_file: str
    probe_file: str
    """Judges trained by `train.probe`; left out of the world where the file does not exist."""
    inverse_dynamics_file: str
    """Judge trained by `train.inverse_dynamics`; left out in the same way."""
    figures: str | None
    """JSON file written by `worldgen evaluate world --json`, or none."""
    decoders: str | None
    """JSON file written by `worldgen pareto --json`, or none: how likely raster order finds what
    each order draws, by which a server may choose one."""
    hardware: str | None
    """What the trainings ran on; by default this machine's processor."""
    date: str
    world: WorldConfig
    starts: StartsConfig


def run(cfg: DictConfig) -> Path:
    """Make a world folder of two trainings; return it.

    Args:
        cfg: Composed from `configs/package_world.yaml`.

    Raises:
        ConfigError: If the configuration is wrong.
        CheckpointError: See `package`.
        DataError: See `package`.
    """
    config = build(RunConfig, cfg)
    figures: dict[str, str] = {}
    if config.figures is not None:
        measured = json.loads(Path(config.figures).read_text(encoding="utf-8"))
        figures = {
            row["name"]: format_figure(row["value"], row["unit"]) for row in measured["summary"]
        }
    likelihoods: dict[str, float] = {}
    if config.decoders is not None:
        compared = json.loads(Path(config.decoders).read_text(encoding="utf-8"))["decoders"]
        likelihoods = {entry["decoder"]: round(entry["log_likelihood"], 3) for entry in compared}
    return package(
        Path(config.out),
        name=config.name,
        dataset=Dataset(Path(config.data["folder"])),
        more_datasets=[Dataset(Path(folder)) for folder in config.data.get("more_folders", ())],
        tokenizer_file=Path(config.tokenizer_file),
        model_file=Path(config.model_file),
        probe_file=Path(config.probe_file),
        inverse_dynamics_file=Path(config.inverse_dynamics_file),
        world=config.world,
        starts=config.starts,
        facts={"hardware": config.hardware or str(hardware()["processor"]), "date": config.date},
        figures=figures,
        decoder_likelihoods=likelihoods,
    )


def package(
    out: Path,
    *,
    name: str,
    dataset: Dataset,
    more_datasets: Sequence[Dataset] = (),
    tokenizer_file: Path,
    model_file: Path,
    world: WorldConfig,
    starts: StartsConfig,
    probe_file: Path | None = None,
    inverse_dynamics_file: Path | None = None,
    facts: Mapping[str, str] | None = None,
    figures: Mapping[str, str] | None = None,
    decoder_likelihoods: Mapping[str, float] | None = None,
) -> Path:
    """Write tokenizer, model, starts, test clips and card of a world into a folder; return it.

    Weights are stored in half precision and computed with in single precision.

    Args:
        out: Folder, made when missing.
        name: Of the world.
        dataset: Recording of both trainings; starts and test clips come from its test split.
        more_datasets: Recordings that the world model was trained on beside it.
        tokenizer_file: Of the trained visual tokenizer.
        model_file: Of the trained world model; one with text has its `text.json` beside it.
        world: For the card.
        starts: How many beginnings, and where.
        probe_file: Judges of real frames, copied into the world if the file exists.
        inverse_dynamics_file: Judge that reads actions from frames, copied in the same way.
        facts: More about the training, for the card.
        figures: Measured quality, for the card.
        decoder_likelihoods: As on the card; those of orders that it does not offer are left out.

    Raises:
        CheckpointError: If a checkpoint is missing, or the model was trained on the tokens of
            another tokenizer.
        DataError: If the recording has no test episode long enough for a start.
    """
    tokenizer = load_visual_tokenizer(tokenizer_file)
    model, model_metadata = load_world_model(model_file)
    summary = model_metadata["summary"]
    if summary["tokenizer_hash"] != file_hash(tokenizer_file):
        raise CheckpointError(
            f"{model_file} was trained on the tokens of another tokenizer than "
            f"{tokenizer_file}; train the world model again"
        )
    tokenizer_training = load_tensors(tokenizer_file)[1].get("training", {})
    if isinstance(model, NextFrameTransformer) and model.config.text_vocabulary_size:
        TextTokenizer.load(model_file.parent / TEXT_FILE).save(out / TEXT_FILE)
    _store(tokenizer_file, out / TOKENIZER_FILE, tokenizer)
    _store(model_file, out / MODEL_FILE, model)
    save_starts(out / STARTS_FILE, make_starts(dataset, tokenizer, starts))
    # Test clips are rendered again by the environment, so without one they would be of no use.
    if dataset.metadata.environment is not None:
        _write_test_clips(dataset, out / "evaluation.json")
    judges = {PROBES_FILE: probe_file, INVERSE_DYNAMICS_FILE: inverse_dynamics_file}
    for judges_name, file in judges.items():
        if file is not None and file.exists():
            save_tensors(out / judges_name, *load_tensors(file))
    metadata = dataset.metadata
    datasets = (dataset, *more_datasets)
    frames = {split: sum(_frames(each, split) for each in datasets) for split in SPLITS}
    card = WorldCard(
        name=name,
        title=world.title,
        description=world.description,
        frames_per_second=metadata.frames_per_second,
        action_schema=metadata.action_schema,
        decoders=world.decoders,
        sampling=world.sampling,
        environment=EnvironmentCard(**metadata.environment) if metadata.environment else None,
        data={
            "frames": frames,
            "first_seeds": metadata.seeds,
            **_length_unit(dataset),
        },
        training={
            "commands": [
                *(_recording_command(each) for each in datasets),
                *_training_commands(name, summary["config"], datasets),
            ],
            "seed": summary["config"]["seed"],
            "tokenizer_steps": tokenizer_training.get("steps"),
            "tokenizer_minutes": tokenizer_training.get("minutes"),
            **_trained(summary),
            "torch": torch.__version__.partition("+")[0],
            **(facts or {}),
        },
        figures=dict(figures or {}),
        limits=world.limits,
        decoder_likelihoods={
            name: value
            for name, value in (decoder_likelihoods or {}).items()
            if name in world.decoders
        },
    )
    card.write(out)
    text = card_as_markdown(card)
    write_text(out / "card.md", text)
    print(f"world written; play it with: worldgen play --world {out}")
    return out


def _length_unit(dataset: Dataset) -> dict[str, str]:
    """Return what lengths of ego motion are in, where that is not metres."""
    place = dataset.metadata.columns.get("x")
    if not is_driving_schema(dataset.metadata.schema) or place is None:
        return {}
    return {} if place.unit in {"", "m", "metre"} else {"length_unit": f"{place.unit}s"}


def _trained(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a world model took, with the trainings that it was continued from."""
    stages = summary.get("stages", [summary])
    names = {"steps": "world_model_steps", "minutes": "world_model_minutes"}
    total = {
        names.get(name, name): round(sum(stage[name] for stage in stages), 1)
        for name in ("steps", "minutes", "frame_predictions")
    }
    return total | ({"world_model_stages": len(stages)} if len(stages) > 1 else {})


def _training_commands(
    name: str, config: Mapping[str, Any], datasets: Sequence[Dataset]
) -> list[str]:
    """Return the commands of the trainings, with the files of others that they began with."""
    commands = []
    changes = [f"experiment={name}"]
    own = f"runs/visual_tokenizer/{name}/{TOKENIZER_FILE}"
    if config["tokenizer_file"] == own:
        commands.append(f"python -m train.visual_tokenizer experiment={name}")
    else:
        changes.append(f"tokenizer_file={config['tokenizer_file']}")
    if config.get("initial_weights") is not None:
        changes.append(f"initial_weights={config['initial_weights']}")
    if config["model"].get("text_vocabulary_size"):
        commands += [f"python -m envs.caption {dataset.folder}" for dataset in datasets]
    if len(datasets) > 1:
        more = ",".join(str(dataset.folder) for dataset in datasets[1:])
        changes.append(f"data.more_folders=[{more}]")
    return [*commands, f"python -m train.world_model {' '.join(changes)}"]


def _recording_command(dataset: Dataset) -> str:
    if dataset.metadata.environment is None:
        return f"worldgen data convert RECORDINGS --out {dataset.folder}"
    frames = sum(_frames(dataset, split) for split in SPLITS)
    return f"python -m envs.record env={dataset.folder.name} frames={frames}"


def _write_test_clips(dataset: Dataset, path: Path) -> None:
    try:
        specs = load_clips(dataset).specs
    except DataError as error:
        print(f"no test clips for `worldgen evaluate`: {error}")
        return
    write_clip_specs(path, specs, context=8, horizon=64)


def make_starts(dataset: Dataset, tokenizer: VisualTokenizer, config: StartsConfig) -> list[Start]:
    """Return starts from all test episodes in turn, at evenly spread times.

    Raises:
        DataError: If no test episode holds a context.
    """
    context = tokenizer.longest_clip(config.context)
    if context != config.context:
        print(
            f"starts have {context} frames of context instead of {config.context}: this tokenizer "
            f"takes 1 + k x {tokenizer.frames_per_latent} frames"
        )
    infos = [info for info in dataset.episodes("test") if info.length >= context]
    if not infos:
        raise DataError(
            f"{dataset.folder} has no test episode of {context} frames or more, which a "
            f"start needs; record more frames"
        )
    action_tokenizer = ActionTokenizer(dataset.metadata.schema)
    layout = SequenceLayout(
        rows=tokenizer.rows,
        columns=tokenizer.columns,
        num_action_tokens=action_tokenizer.num_slots * tokenizer.frames_per_latent,
        frames_per_step=tokenizer.frames_per_latent,
    )
    single = tokenizer.single_frames
    can_play_again = dataset.metadata.environment is not None
    starts = []
    for number, end in enumerate(np.linspace(config.earliest, config.latest, config.count)):
        info = infos[number % len(infos)]
        last = int(np.clip(end, context - 1, info.length - 1))
        first = last + 1 - context
        actions = dataset.load_columns(info)["action"]
        if dataset.metadata.tokens is None:
            frames = to_float(torch.from_numpy(dataset.load(info).frames[first : last + 1]))
            clips = rearrange(
                frames, "t rgb h w -> t 1 rgb h w" if single else "t rgb h w -> 1 t rgb h w"
            )
            with torch.no_grad():
                grids = tokenizer.encode(clips)
            ids = rearrange(grids, "clip step row column -> (clip step) (row column)")
        else:
            ids = torch.from_numpy(recorded_ids(dataset, info, tokenizer)[first : last + 1])
        action_ids = torch.from_numpy(action_tokenizer.encode(actions[first:last]))
        starts.append(
            Start(
                visual_ids=ids,
                action_ids=layout.actions_of_steps(action_ids),
                environment_seed=info.seed if can_play_again else None,
                environment_actions=actions[:last] if can_play_again else None,
            )
        )
    return starts


def _store(source: Path, destination: Path, module: nn.Module) -> None:
    tensors, metadata = load_tensors(source)
    # Buffers hold counts and codes that half precision would spoil.
    parameters = {name for name, _ in module.named_parameters()}
    stored = {
        name: tensor.half() if name in parameters else tensor for name, tensor in tensors.items()
    }
    save_tensors(destination, stored, metadata)


def _frames(dataset: Dataset, split: str) -> int:
    return sum(info.length for info in dataset.episodes(split))


@hydra.main(version_base="1.3", config_path="../configs", config_name="package_world")
def main(cfg: DictConfig) -> None:
    """Run, with errors of the user as one line."""
    try:
        run(cfg)
    except WorldgenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
