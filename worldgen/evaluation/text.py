"""Does a world show what it is told: the facts of test captions, read from frames drawn from them."""

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from tqdm import tqdm

from worldgen.data.captions import (
    NO_CAPTION,
    Caption,
    Fact,
    caption_indices,
    fact_holds,
    load_captions,
)
from worldgen.data.episodes import Dataset
from worldgen.errors import ConfigError, DataError
from worldgen.evaluation.judges.probes import MotionProbe, TileProbe
from worldgen.evaluation.live import frames_of, step_together
from worldgen.evaluation.machine import hardware, versions
from worldgen.evaluation.material import load_world_probes, roller_of
from worldgen.evaluation.measures import fraction
from worldgen.generation import SamplingConfig, Session
from worldgen.generation.batch import LARGEST_BATCH
from worldgen.pipeline import World

__all__ = ["TextProtocol", "describe_fact", "evaluate_text", "topic_of"]

_SHOWN = 24

Frames = UInt8[np.ndarray, "caption height width 3"]


@dataclass(frozen=True, kw_only=True)
class TextProtocol:
    """Which sentences a world is told, and how it draws."""

    captions: int = 200
    """Different ones, at most."""
    seed: int = 0
    """Decides which ones, and is the seed of the first session."""
    seconds_on: float = 0.0
    """Facts are read again so much later, after rest actions; 0: only from the first frame."""
    decoder: str | None = None
    """None: the first on the world's card."""
    sampling: SamplingConfig | None = None
    """None: the card's."""

    def __post_init__(self) -> None:
        if self.captions < 2 or self.seed < 0 or not 0 <= self.seconds_on < 3600:
            raise ConfigError(
                "text is measured on two captions at least, from a seed of 0 or more, less than an "
                f"hour on; got {self.captions}, {self.seed} and {self.seconds_on}"
            )


def evaluate_text(
    world: World, protocol: TextProtocol, *, data: Path, progress: bool = True
) -> dict[str, Any]:
    """Return how many of the stated facts are true in frames drawn from sentences, as JSON holds it.

    For different captions of the test split a first frame is drawn from the sentence alone. A judge
    in the world's folder reads the frame, and every fact of the caption is checked on what it
    reads. The same is read from the real frames of these captions, where all of the facts are true
    (the judge's own accuracy), from the tokenizer's reconstruction of them, and from frames drawn
    from no sentence and from those of another caption, in which facts are true by chance.

    An interrupt (Ctrl-C) ends the measurement with the captions that are complete.

    Args:
        world: World with text.
        protocol: Which sentences.
        data: Recording with captions.
        progress: Show a bar on the terminal.

    Raises:
        ConfigError: If the world reads no text, or the decoder is unknown.
        DataError: If the test split has fewer than two captions with facts that the world's judges
            can read.
    """
    # Refuses a world without text, and an unknown decoder, before anything is read.
    world.session(text="a text", decoder=protocol.decoder)
    readers = _Readers.of(world)
    captions, real = _choose(Dataset(data), readers, protocol)
    steps = round(protocol.seconds_on * world.frames_per_second)
    sampling = protocol.sampling or world.card.sampling
    drawn: dict[str, list[Frames]] = defaultdict(list)
    with tqdm(
        total=len(captions) * (2 + steps),
        desc=f"evaluate text {world.name}",
        unit="frame",
        mininterval=1.0,
        disable=not progress,
    ) as bar:
        try:
            for first in range(0, len(captions), LARGEST_BATCH):
                for name, frames in _draw(
                    world,
                    protocol,
                    captions[first : first + LARGEST_BATCH],
                    first,
                    steps,
                    bar.update,
                ).items():
                    drawn[name].append(frames)
        except KeyboardInterrupt:
            if len(drawn.get("no_text", ())) == 0:
                raise
    shown = {name: np.concatenate(parts) for name, parts in drawn.items()}
    count = min(map(len, shown.values()))
    shown = {name: frames[:count] for name, frames in shown.items()}
    complete, captions, real = count == len(captions), captions[:count], real[:count]
    roller = roller_of(world, count)
    sources = {
        **shown,
        # Each frame against the facts of the caption before its own.
        "another_caption": np.roll(shown["generated"], -1, axis=0),
        "real_frames": real,
        "tokenizer_reconstruction": roller.decode(roller.encode(real[:, None]))[:, 0],
    }
    held = {name: readers.check(captions, frames) for name, frames in sources.items()}
    return {
        "world": world.name,
        "world_hash": world.hash,
        "interrupted": not complete,
        "protocol": {
            "captions": count,
            "facts": sum(map(len, held["generated"])),
            "facts_that_no_judge_reads": sum(len(caption.facts) for caption in captions)
            - sum(map(len, held["generated"])),
            "seconds_on": steps / world.frames_per_second,
            "split": "test",
            "seed": protocol.seed,
            "decoder": protocol.decoder or world.card.decoders[0],
            "temperature": sampling.temperature,
            "text_guidance": sampling.text_guidance,
        },
        "judges": readers.held_out,
        "facts": {
            name: fraction([hit for hits in each for hit in hits]) for name, each in held.items()
        },
        "captions_with_all_facts": {
            name: fraction([all(hits) for hits in each]) for name, each in held.items()
        },
        "by_topic": _by_topic(readers, captions, held),
        "captions": [
            {
                "text": caption.text,
                "facts": [
                    {
                        "fact": describe_fact(fact, readers.class_names),
                        "true": hit,
                        "true_in_real_frame": real_hit,
                    }
                    for fact, hit, real_hit in zip(
                        readers.known(caption), hits, real_hits, strict=True
                    )
                ],
            }
            for caption, hits, real_hits in zip(
                captions, held["generated"], held["real_frames"], strict=True
            )
        ],
        "hardware": hardware(),
        "versions": versions(),
        "film_strips": [
            {"title": caption.text, "png": _png(sources["generated"][row]), "row": row}
            for row, caption in enumerate(captions)
            if row < _SHOWN or not all(held["generated"][row])
        ],
    }


def _choose(
    dataset: Dataset, readers: "_Readers", protocol: TextProtocol
) -> tuple[list[Caption], Frames]:
    """Return different captions of the test split, and for each a real frame that it is true of."""
    table = load_captions(dataset)
    if table is None:
        raise DataError(
            f"{dataset.folder} has no captions; `python -m envs.caption {dataset.folder}` writes "
            "them for recordings of car_racing and crafter"
        )
    numbers = caption_indices(dataset, "test")
    present = [
        number
        for number in np.unique(numbers)
        if number != NO_CAPTION and readers.known(table.captions[number])
    ]
    if len(present) < 2:
        raise DataError(
            f"the test split of {dataset.folder} has {len(present)} captions with facts that the "
            "judges of the world read, at least 2 are needed; caption the recording again, or use "
            "the world that was learned from it"
        )
    random = np.random.default_rng(protocol.seed)
    chosen = random.permutation(present)[: protocol.captions]
    places = [int(random.choice(np.flatnonzero(numbers == number))) for number in chosen]
    frames: dict[int, np.ndarray] = {}
    first = 0
    for info in dataset.episodes("test"):
        inside = [place for place in places if first <= place < first + info.length]
        if inside:
            episode = dataset.load(info)
            frames |= {place: episode.frames[place - first].copy() for place in inside}
        first += info.length
    return [table.captions[number] for number in chosen], np.stack([frames[p] for p in places])


def _draw(
    world: World,
    protocol: TextProtocol,
    captions: Sequence[Caption],
    first: int,
    steps: int,
    tell: Callable[[int], Any],
) -> dict[str, Frames]:
    """Return frames drawn from the captions and from no text, and those some steps on."""

    def begin(texts: Iterable[str | None]) -> list[Session]:
        begun = []
        for row, text in enumerate(texts):
            seed = protocol.seed + first + row
            begun.append(
                world.session(
                    start=None,
                    text=text,
                    seed=seed,
                    decoder=protocol.decoder,
                    sampling=protocol.sampling,
                )
            )
            tell(1)
        return begun

    told = begin(caption.text for caption in captions)
    frames = {
        "generated": frames_of(told),
        "no_text": frames_of(begin(None for _ in captions)),
    }
    if steps:
        rest = world.action_tokenizer.schema.rest()
        for _ in range(steps):
            step_together(told, np.broadcast_to(rest, (len(told), 1, len(rest))))
            tell(len(told))
        frames["later"] = frames_of(told)
    return frames


@dataclass(frozen=True, kw_only=True)
class _Readers:
    """The judges of a world that read single frames."""

    tiles: TileProbe | None
    values: tuple[MotionProbe, ...]
    held_out: dict[str, Any]

    @classmethod
    def of(cls, world: World) -> "_Readers":
        probes, held_out = load_world_probes(world)
        tiles = [probe for probe in probes.values() if isinstance(probe, TileProbe)]
        values = [
            probe
            for probe in probes.values()
            # What needs the frames before cannot judge a first one.
            if isinstance(probe, MotionProbe) and probe.config.num_frames == 1
        ]
        return cls(tiles=tiles[0] if tiles else None, values=tuple(values), held_out=held_out)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of tiles on the map, which come first; none without tiles."""
        return () if self.tiles is None else self.tiles.config.columns[0].classes

    def known(self, caption: Caption) -> list[Fact]:
        """Return those facts of a caption that can be read."""
        columns = {name for probe in self.values for name in probe.config.quantities}
        return [
            fact
            for fact in caption.facts
            if (fact["kind"] == "tiles" and self.tiles is not None)
            or (fact["kind"] == "values" and fact["column"] in columns)
        ]

    def check(self, captions: Sequence[Caption], frames: Frames) -> list[list[bool]]:
        """Return for each caption which of its facts are true of the frame of its number."""
        maps: Int[np.ndarray, "caption row column"] | None = None
        if self.tiles is not None:
            maps = self.tiles.read(frames)[:, : self.tiles.config.columns[0].rows]
        values: dict[str, np.ndarray] = {}
        for probe in self.values:
            values |= {name: each[:, 0] for name, each in probe.read(frames[:, None]).items()}
        result = []
        for row, caption in enumerate(captions):
            hits = []
            for fact in self.known(caption):
                if fact["kind"] == "tiles":
                    assert maps is not None
                    hits.append(fact_holds(fact, maps[row], self.class_names))
                else:
                    seen = {name: float(each[row]) for name, each in values.items()}
                    hits.append(fact_holds(fact, seen))
            result.append(hits)
        return result


def topic_of(fact: Fact, class_names: Sequence[str] = ()) -> str:
    """Return what a fact speaks of: classes of tiles, or the name of a value.

    Facts that name most of the classes speak of those that are not to be seen.
    """
    if fact["kind"] == "values":
        return str(fact["column"])
    missing = [name for name in class_names if name not in fact["classes"]]
    if missing and len(missing) < len(fact["classes"]):
        return f"no {', '.join(missing)}"
    return ", ".join(fact["classes"])


def describe_fact(fact: Fact, class_names: Sequence[str] = ()) -> str:
    """Return a fact as people read it."""
    if fact["kind"] == "values":
        low, high = fact["low"], fact["high"]
        bounds = [
            *([f"at least {low:g}"] if low is not None else []),
            *([f"below {high:g}"] if high is not None else []),
        ]
        return f"{fact['column']} {' and '.join(bounds)}"
    (top, bottom), (left, right) = fact["rows"], fact["columns"]
    return (
        f"at least {fact['least']}: {topic_of(fact, class_names)}, in rows {top} to {bottom - 1}, "
        f"columns {left} to {right - 1}"
    )


def _by_topic(
    readers: _Readers, captions: Sequence[Caption], held: Mapping[str, Sequence[Sequence[bool]]]
) -> dict[str, dict[str, Any]]:
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for source, each in held.items():
        for caption, row in zip(captions, each, strict=True):
            for fact, hit in zip(readers.known(caption), row, strict=True):
                hits[topic_of(fact, readers.class_names)][source].append(hit)
    return {
        topic: {
            "facts": len(sources["generated"]),
            **{source: fraction(each) for source, each in sources.items()},
        }
        for topic, sources in sorted(hits.items(), key=lambda entry: -len(entry[1]["generated"]))
    }


def _png(frame: UInt8[np.ndarray, "height width 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
