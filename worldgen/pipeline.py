"""A world as one object: its card, tokenizers, model and starts, loaded from a folder."""

import functools
import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from worldgen.checkpoint import file_hash, load_tensors, save_tensors, write_text
from worldgen.config import build, to_mapping
from worldgen.errors import CheckpointError, ConfigError, WorldgenError
from worldgen.generation.decoding import Decoder, make_decoder
from worldgen.generation.log import RolloutLog
from worldgen.generation.sampling import SamplingConfig
from worldgen.generation.session import Session, SessionParts, Start
from worldgen.generation.told import Told
from worldgen.models import (
    Transformer,
    load_world_model,
    save_world_model,
)
from worldgen.tokenizers.action import ActionSchema, ActionTokenizer
from worldgen.tokenizers.text import TextTokenizer
from worldgen.tokenizers.visual import (
    VisualTokenizer,
    load_visual_tokenizer,
    save_visual_tokenizer,
)

__all__ = [
    "EnvironmentCard",
    "World",
    "WorldCard",
    "load",
    "save_starts",
    "save_world",
    "shipped_worlds",
]

_SHIPPED = Path(__file__).resolve().parent / "worlds"
CARD_FILE = "world.json"
TOKENIZER_FILE = "tokenizer.safetensors"
MODEL_FILE = "model.safetensors"
STARTS_FILE = "starts.safetensors"
TEXT_FILE = "text.json"
"""Only in worlds that read text."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentCard:
    """The real environment that a world was learned from."""

    id: str
    """Gymnasium id with the module to import, `module:Name-v0`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""


@dataclass(frozen=True, kw_only=True)
class WorldCard:
    """What a world is, how it is played by default, how it was made and how good it is."""

    name: str
    title: str
    description: str
    frames_per_second: float
    """Rate at which the world was recorded and is meant to be played."""
    action_schema: dict[str, Any]
    """As made by `ActionSchema.to_json`."""
    decoders: tuple[str, ...]
    """Decoding orders the model was trained for; the first one is the default."""
    sampling: SamplingConfig
    environment: EnvironmentCard | None = None
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    """Commands, seeds, time and hardware."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Measured quality and speed."""
    decoder_likelihoods: dict[str, float] = field(default_factory=dict)
    """For decoding orders, the log-likelihood a cell that raster order would have given what they
    draw, as `worldgen pareto` measures it."""
    limits: tuple[str, ...] = ()

    @property
    def decoders_by_quality(self) -> tuple[str, ...]:
        """Return the decoding orders, the likeliest first, as listed where that was not measured."""
        likelihoods = self.decoder_likelihoods
        return tuple(
            sorted(self.decoders, key=lambda name: likelihoods.get(name, -math.inf), reverse=True)
        )

    def write(self, folder: Path) -> None:
        """Write the card as `world.json` into a world's folder."""
        text = json.dumps(to_mapping(self), indent=2) + "\n"
        write_text(folder / CARD_FILE, text)


@dataclass(frozen=True, kw_only=True)
class World:
    """A loaded world; immutable, shared by any number of sessions."""

    card: WorldCard
    folder: Path
    parts: SessionParts
    starts: tuple[Start, ...]

    @property
    def name(self) -> str:
        """Name on the card."""
        return self.card.name

    @property
    def hash(self) -> str:
        """SHA-256 over tokenizer and model; a log replays only on the world of its hash.

        The text tokenizer is not among them: logs hold the ids of texts.
        """
        return self.parts.world_hash

    @property
    def tokenizer(self) -> Any:
        """The visual tokenizer: `encode(frames) -> ids`, `decode(ids) -> frames`."""
        return self.parts.visual_tokenizer

    @property
    def action_tokenizer(self) -> ActionTokenizer:
        """Actions to tokens and back."""
        return self.parts.action_tokenizer

    @property
    def text_tokenizer(self) -> TextTokenizer | None:
        """Sentences to the ids that the model reads; None in worlds without text.

        Raises:
            ConfigError: If the library that it needs is not installed; the message says how.
            CheckpointError: If its file is missing or damaged, or has more ids than the model.
        """
        told = Told.of(self.parts.model)
        if not told.text_length:
            return None
        path = self.folder / TEXT_FILE
        tokenizer = _load_text_tokenizer(path, path.stat().st_mtime_ns if path.exists() else 0)
        if tokenizer.vocabulary_size > told.text_vocabulary_size:
            raise CheckpointError(
                f"{path} has {tokenizer.vocabulary_size} ids, the model reads "
                f"{told.text_vocabulary_size}; give the text tokenizer that it was trained with"
            )
        return tokenizer

    def text_ids(self, text: str) -> Int[Tensor, " token"]:
        """Return the ids of a sentence, padded with 0 as the model reads them.

        Raises:
            ConfigError: If the world reads no text, or the sentence is empty or too long.
            CheckpointError: As of `text_tokenizer`.
        """
        tokenizer = self.text_tokenizer
        if tokenizer is None:
            raise ConfigError(
                f"world {self.name!r} reads no text; leave the text out, or use a world with text"
            )
        return tokenizer.encode(text, Told.of(self.parts.model).text_length)

    @property
    def model(self) -> Any:
        """The world model: `observe`, `predict`, `reveal` and the whole-clip `forward`."""
        return self.parts.model

    @property
    def frames_per_second(self) -> float:
        """Rate at which the world is meant to be played."""
        return self.card.frames_per_second

    def session(
        self,
        *,
        seed: int = 0,
        start: int | Start | None = 0,
        text: str | None = None,
        decoder: str | None = None,
        sampling: SamplingConfig | None = None,
    ) -> Session:
        """Return a session that has observed a start's context and shows its last frame.

        Args:
            seed: Decides every random draw.
            start: Index of a shipped start, a start of your own, or None: no frames, the first
                one is drawn from the text.
            text: What is to be seen, in worlds that read text; None: the text of the start.
            decoder: As named by `make_decoder`, for example `"whole_frame"`, `"strided:4"` or
                `"jacobi"`; by default the first one on the card.
            sampling: Temperature and nucleus; by default the card's.

        Raises:
            WorldgenError: If the world has no start of that index, the decoder is unknown, or the
                world reads no text.
        """
        index = start if isinstance(start, int) else None
        if start is None:
            layout = self.parts.model.layout
            start = Start(
                visual_ids=torch.zeros(0, layout.num_cells, dtype=torch.int64),
                action_ids=torch.zeros(0, layout.num_action_tokens, dtype=torch.int64),
            )
        if isinstance(start, int):
            if not 0 <= start < len(self.starts):
                raise WorldgenError(
                    f"world {self.name!r} has starts 0 to {len(self.starts) - 1}, got {start}"
                )
            start = self.starts[start]
        if text is not None:
            start = replace(start, text_ids=self.text_ids(text))
        made = make_decoder(
            decoder or self.card.decoders[0],
            self.parts.model.layout,
            sampling or self.card.sampling,
            self.parts.visual_tokenizer,
        )
        self._warn_if_untrained(made)
        return Session(self.parts, start, seed=seed, decoder=made, start_index=index)

    def _warn_if_untrained(self, decoder: Decoder) -> None:
        trained = self.card.decoders
        if decoder.order in trained or decoder.order in {
            name.partition(":")[0] for name in trained if name.startswith("refine")
        }:
            return
        # Python shows a warning once for each place that caused it.
        warnings.warn(
            f"world {self.name!r} was not trained for decoder {decoder.name!r}, only for "
            f"{', '.join(trained)}: it works, but expect frames that are less sharp and follow "
            "actions less well than with those",
            stacklevel=3,
        )

    def load_session(self, path: Path) -> Session:
        """Return the session that `Session.save` or `Session.save_state` wrote, at its last frame.

        Raises:
            LogError: If the file is neither a log nor a state, is damaged, or of another world.
        """
        return Session.load(self.parts, path)

    def replay_session(self, log: RolloutLog) -> Session:
        """Return a session at the start of a log, ready for `Session.replay`.

        Raises:
            LogError: If the log belongs to another world.
        """
        return Session.from_log(self.parts, log)


def shipped_worlds() -> list[str]:
    """Return the names of the worlds inside the package."""
    return sorted(path.parent.name for path in _SHIPPED.glob(f"*/{CARD_FILE}"))


def world_folder(name_or_folder: str | Path) -> Path:
    """Return the folder of a shipped world, or the given folder if it holds a world.

    Raises:
        WorldgenError: If it is neither; the message lists the shipped names.
    """
    text = str(name_or_folder)
    if text in shipped_worlds():
        return _SHIPPED / text
    folder = Path(name_or_folder)
    if (folder / CARD_FILE).is_file():
        return folder
    raise WorldgenError(
        f"no world {text!r}: it is neither a shipped world ({', '.join(shipped_worlds())}) nor a "
        f"folder with a {CARD_FILE}"
    )


def load_card(folder: Path) -> WorldCard:
    """Return the card of a world's folder.

    Raises:
        ConfigError: If the card is not JSON or has unknown, missing or mistyped entries.
    """
    path = folder / CARD_FILE
    try:
        return build(WorldCard, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def load(name_or_folder: str | Path) -> World:
    """Return a world by its shipped name or its folder.

    Args:
        name_or_folder: For example `"car_racing"`, or the folder that a training wrote.

    Raises:
        WorldgenError: If there is no such world.
        CheckpointError: If weights are missing, damaged or do not fit each other.
        ConfigError: If the card is malformed.

    Example:
        >>> import worldgen
        >>> session = worldgen.load("car_racing").session(seed=7)
        >>> frame = session.step("left+gas")
    """
    folder = world_folder(name_or_folder).resolve()
    stamp = tuple(
        (folder / name).stat().st_mtime_ns if (folder / name).exists() else 0
        for name in (CARD_FILE, TOKENIZER_FILE, MODEL_FILE, STARTS_FILE)
    )
    return _load(folder, stamp)


@functools.lru_cache(maxsize=8)
def _load(folder: Path, stamp: tuple[int, ...]) -> World:
    card = load_card(folder)
    action_tokenizer = ActionTokenizer(ActionSchema.from_json(card.action_schema))
    tokenizer = load_visual_tokenizer(folder / TOKENIZER_FILE)
    model, _ = load_world_model(folder / MODEL_FILE)
    facts = {
        "rows": (tokenizer.rows, model.config.rows),
        "columns": (tokenizer.columns, model.config.columns),
        "codebook size": (tokenizer.codebook_size, model.config.codebook_size),
        "frames per step": (tokenizer.frames_per_latent, model.config.frames_per_step),
        "action tokens": (
            action_tokenizer.num_slots * tokenizer.frames_per_latent,
            model.config.num_action_tokens,
        ),
        "action ids": (
            action_tokenizer.vocabulary_size,
            model.config.action_vocabulary_size,
        ),
    }
    wrong = [f"{name} {a} against {b}" for name, (a, b) in facts.items() if a != b]
    if wrong:
        raise CheckpointError(
            f"{folder}: tokenizers and model do not belong together: {', '.join(wrong)}"
        )
    hashes = file_hash(folder / TOKENIZER_FILE) + file_hash(folder / MODEL_FILE)
    parts = SessionParts(
        world=card.name,
        world_hash=hashlib.sha256(hashes.encode()).hexdigest(),
        model=model,
        visual_tokenizer=tokenizer,
        action_tokenizer=action_tokenizer,
    )
    starts = _load_starts(folder / STARTS_FILE)
    return World(card=card, folder=folder, parts=parts, starts=starts)


@functools.lru_cache(maxsize=8)
def _load_text_tokenizer(path: Path, stamp: int) -> TextTokenizer:
    return TextTokenizer.load(path)


def save_world(
    folder: Path,
    *,
    card: WorldCard,
    tokenizer: VisualTokenizer,
    model: Transformer,
    starts: Sequence[Start],
    metadata: Mapping[str, Any],
) -> None:
    """Write everything that `load` reads into a folder that exists.

    Args:
        folder: Of the world.
        card: Its card.
        tokenizer: Stored in the types of its weights.
        model: Stored in the types of its weights.
        starts: At least one.
        metadata: Anything JSON can hold; goes into the files of tokenizer and model.
    """
    save_visual_tokenizer(folder / TOKENIZER_FILE, tokenizer, metadata)
    save_world_model(folder / MODEL_FILE, model, **metadata)
    save_starts(folder / STARTS_FILE, starts)
    card.write(folder)


def save_starts(path: Path, starts: Sequence[Start]) -> None:
    """Write starts to one safetensors file."""
    tensors: dict[str, Tensor] = {}
    seeds: list[int | None] = []
    for number, start in enumerate(starts):
        tensors[f"{number}.visual_ids"] = start.visual_ids.to(torch.int32)
        tensors[f"{number}.action_ids"] = start.action_ids.to(torch.int32)
        if start.text_ids is not None:
            tensors[f"{number}.text_ids"] = start.text_ids.to(torch.int32)
        if start.environment_actions is not None:
            tensors[f"{number}.environment_actions"] = torch.from_numpy(start.environment_actions)
        seeds.append(start.environment_seed)
    save_tensors(path, tensors, {"artifact": "starts", "environment_seeds": seeds})


def _load_starts(path: Path) -> tuple[Start, ...]:
    tensors, metadata = load_tensors(path)
    seeds = metadata.get("environment_seeds")
    if not isinstance(seeds, list):
        raise CheckpointError(f"{path} does not hold the starts of a world")
    return tuple(_start(tensors, number, seed) for number, seed in enumerate(seeds))


def _start(tensors: Mapping[str, Tensor], number: int, seed: int | None) -> Start:
    actions = tensors.get(f"{number}.environment_actions")
    text_ids = tensors.get(f"{number}.text_ids")
    return Start(
        visual_ids=tensors[f"{number}.visual_ids"].long(),
        action_ids=tensors[f"{number}.action_ids"].long(),
        text_ids=None if text_ids is None else text_ids.long(),
        environment_seed=seed,
        environment_actions=None if actions is None else actions.numpy(),
    )
