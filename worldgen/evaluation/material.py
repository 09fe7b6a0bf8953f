"""What the measures of a world work on: test clips, their tokens, and the dreams of a decoder."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from worldgen.data.episodes import Dataset
from worldgen.errors import DataError, EnvironmentMissingError
from worldgen.evaluation.clips import Clips, load_clips, read_clip_specs, render_clips
from worldgen.evaluation.judges.probes import Probe, TileProbe, load_probes
from worldgen.evaluation.rollout import Roller
from worldgen.generation.decoding import Decoder, make_decoder
from worldgen.pipeline import World
from worldgen.real_environment import RealEnvironment

__all__ = [
    "CLIPS_FILE",
    "PROBES_FILE",
    "Material",
    "clips_of",
    "held_rollouts",
    "load_world_probes",
    "prepare",
    "roller_of",
    "tile_probe",
]

CLIPS_FILE = "evaluation.json"
PROBES_FILE = "probe.safetensors"
CONTEXT = 8
HORIZON = 64

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Test clips of a world, and what one decoder dreams after their contexts."""

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
        """Frames that the world may see."""
        return self.clips.context

    @property
    def context_ids(self) -> Int[np.ndarray, "clip step cell"]:
        """Tokens of the context."""
        return self.ids[:, : self.world.tokenizer.num_latents(self.context)]

    def show(
        self, generated_ids: Int[np.ndarray, "clip step cell"], steps: int
    ) -> UInt8[np.ndarray, "clip step height width 3"]:
        """Return the first `steps` frames of what was generated after the context."""
        return self.roller.decode_after(self.context_ids, generated_ids)[:, :steps]

    @property
    def truth(self) -> UInt8[np.ndarray, "clip step height width 3"]:
        """What truly followed the context."""
        return self.clips.frames[:, self.context :]

    @property
    def repeated(self) -> UInt8[np.ndarray, "clip step height width 3"]:
        """The last frame of the context, as often as there are frames to predict."""
        last = self.clips.frames[:, self.context - 1 : self.context]
        return np.broadcast_to(last, self.truth.shape)

    def dream(
        self, generated: UInt8[np.ndarray, "clip step height width 3"]
    ) -> UInt8[np.ndarray, "clip time height width 3"]:
        """Return generated frames with the context in front, as a player sees both."""
        return np.concatenate((self.reconstruction[:, : self.context], generated), axis=1)

    def drawn_by(self, decoder: Decoder, tell: Progress) -> "Material":
        """Return the same clips with the dreams of another decoder."""
        roller = dataclasses.replace(self.roller, decoder=decoder)
        ids = roller.roll_out(self.context_ids, self.clips.actions, progress=tell)
        shown = roller.decode_after(self.context_ids, ids)[:, : self.clips.horizon]
        return dataclasses.replace(self, roller=roller, generated=shown)


def prepare(
    world: World,
    count: int,
    data: Path | None,
    tell: Progress,
    *,
    horizon: int = HORIZON,
    decoder: Decoder | None = None,
) -> Material:
    """Return test clips of a world, and what it dreams after their contexts.

    Args:
        world: World to measure.
        count: Clips, at most.
        data: Recording whose test split gives the clips; else the world's own, rendered again.
        tell: Told about the progress.
        horizon: Frames to predict, at most as many as the clips have.
        decoder: That dreams; by default the first one on the card, with the card's sampling.

    Raises:
        DataError: If there are no test clips.
        EnvironmentMissingError: If the clips must be rendered and the environment is missing.
    """
    clips, environment = clips_of(world, count, data, tell, horizon=horizon)
    roller = roller_of(world, len(clips), decoder)
    tell("tokens of the truth")
    ids = roller.encode(clips.frames)
    context_ids = ids[:, : world.tokenizer.num_latents(clips.context)]
    generated_ids = roller.roll_out(context_ids, clips.actions, progress=tell)
    return Material(
        world=world,
        clips=clips,
        roller=roller,
        ids=ids,
        reconstruction=roller.decode(ids)[:, : clips.frames.shape[1]],
        generated=roller.decode_after(context_ids, generated_ids)[:, : clips.horizon],
        environment=environment,
    )


def clips_of(
    world: World, count: int, data: Path | None, tell: Progress, *, horizon: int = HORIZON
) -> tuple[Clips, RealEnvironment | None]:
    """Return test clips of a world, with as much context as its tokenizer can take, as `prepare`.

    With them comes the real environment, if there is one.
    """
    tell("test clips")
    environment: RealEnvironment | None = None
    card = world.card.environment
    if data is not None:
        dataset = Dataset(data)
        recorded, played = (
            ", ".join(group.name for group in schema.groups)
            for schema in (dataset.metadata.schema, world.action_tokenizer.schema)
        )
        if recorded != played:
            raise DataError(
                f"in {data} the actions are {recorded}, in world {world.name!r} {played}; give a "
                "recording of the same kind"
            )
        clips = load_clips(dataset, count=count, context=CONTEXT, horizon=horizon, progress=tell)
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
    return clips.until(horizon), environment


def roller_of(world: World, rows: int, decoder: Decoder | None = None) -> Roller:
    """Return what rolls out that many clips of a world, by default with the card's first decoder."""
    return Roller(
        model=world.model,
        visual_tokenizer=world.tokenizer,
        action_tokenizer=world.action_tokenizer,
        decoder=decoder
        or make_decoder(
            world.card.decoders[0], world.model.layout, world.card.sampling, world.tokenizer
        ),
        seeds=range(rows),
    )


def held_rollouts(
    material: Material, names: tuple[str, ...], steps: int, tell: Progress
) -> dict[str, UInt8[np.ndarray, "clip time height width 3"]]:
    """Return for each action the context and `steps` frames dreamt while it is held.

    Every action has the random numbers of the clips; all are dreamt in one batch.
    """
    schema = material.world.action_tokenizer.schema
    context, count = material.context, len(material.clips)
    actions = []
    for name in names:
        settings = schema.action(schema.named[name])
        held = np.broadcast_to(settings, (count, steps, len(settings)))
        actions.append(np.concatenate((material.clips.actions[:, : context - 1], held), axis=1))
    roller = dataclasses.replace(
        material.roller, seeds=list(material.roller.seeds[:count]) * len(names)
    )
    ids = roller.roll_out(
        np.concatenate([material.context_ids] * len(names)),
        np.concatenate(actions),
        progress=lambda text: tell(f"hold {', '.join(names)}: {text}"),
    )
    return {
        name: material.dream(material.show(part, steps))
        for name, part in zip(names, np.split(ids, len(names)), strict=True)
    }


def load_world_probes(world: World) -> tuple[dict[str, Probe], dict[str, Any]]:
    """Return the judges in a world's folder and their figures, none where there are none."""
    path = world.folder / PROBES_FILE
    if not path.exists():
        return {}, {}
    return load_probes(path)


def tile_probe(world: World) -> TileProbe:
    """Return the judge in a world's folder that reads tiles.

    Raises:
        DataError: If there is none.
        CheckpointError: If the file is damaged.
    """
    probes, _ = load_world_probes(world)
    for probe in probes.values():
        if isinstance(probe, TileProbe):
            return probe
    raise DataError(
        f"world {world.name!r} has no judge of tiles in {world.folder / PROBES_FILE}; this is "
        "measured in worlds of tiles, whose judge `python -m train.probe` trains"
    )
