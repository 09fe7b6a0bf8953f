"""A world being played: reset, step, fork, rewind, save, replay."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from worldgen.errors import ActionError, LogError, SessionLimitError
from worldgen.generation.decoding import ScheduleDecoder, make_decoder
from worldgen.generation.log import RolloutLog, frame_digest
from worldgen.generation.random import frame_uniforms
from worldgen.models.base import WorldModel
from worldgen.records import to_uint8
from worldgen.tokenizers.action import ActionTokenizer, parse_action
from worldgen.tokenizers.visual import VisualTokenizer

__all__ = ["Session", "SessionParts", "Start"]

_SPARE_FRAMES = 64
"""Frames that can be rewound without computing them again."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Context from which a session begins, and how to bring the real environment there."""

    visual_ids: Int[Tensor, "frame cell"]
    """Visual tokens of the context frames; the last one is frame 0 of the session."""
    action_ids: Int[Tensor, "action slot"]
    """Action tokens between them, one row fewer."""
    environment_seed: int | None = None
    environment_actions: NDArray[Any] | None = None
    """Actions `[step, group]` from the environment's reset to frame 0."""

    def __post_init__(self) -> None:
        if len(self.visual_ids) < 1 or len(self.action_ids) != len(self.visual_ids) - 1:
            raise ActionError(
                f"a start of {len(self.visual_ids)} context frames needs one action fewer, "
                f"got {len(self.action_ids)}"
            )


@dataclass(frozen=True, kw_only=True)
class SessionParts:
    """What a session plays: the networks of a world, its name and its hash."""

    world: str
    world_hash: str
    model: WorldModel
    visual_tokenizer: VisualTokenizer
    action_tokenizer: ActionTokenizer


class Session:
    """One player's world.

    Everything that is generated is a function of the start, the seed, the decoder and the
    actions: sessions can be forked, rewound and replayed and give the same ids again.

    Args:
        parts: Networks of the world; shared between sessions, never changed by them.
        start: Context frames and actions.
        seed: Non-negative; the same seed and actions give the same frames.
        decoder: Draws each frame.
        start_index: Index of the start among those shipped with the world, for the log.
    """

    def __init__(
        self,
        parts: SessionParts,
        start: Start,
        *,
        seed: int,
        decoder: ScheduleDecoder,
        start_index: int | None = None,
    ) -> None:
        if not 0 <= seed < 2**63:
            raise SessionLimitError(f"a seed must lie in 0 ... 2**63 - 1, got {seed}")
        self.parts = parts
        self.seed = seed
        self.decoder = decoder
        self.reset(start, start_index)

    def reset(self, start: Start, start_index: int | None = None) -> NDArray[np.uint8]:
        """Begin again from a context; return its last frame, uint8 `[height, width, 3]`."""
        self.start = start
        self.start_index = start_index
        # Bytes, not tensors: a session may last for hours, and a small tensor costs kilobytes.
        self._ids = [_pack(start.visual_ids[-1])]
        self._actions: list[bytes] = []
        self._observe_again(0)
        return self.frame

    @property
    def frame_index(self) -> int:
        """Number of the current frame; 0 is the last frame of the context."""
        return len(self._actions)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Visual tokens of the current frame, raster order, int64 `[cell]`."""
        return self.ids_at(self.frame_index)

    @property
    def frame(self) -> NDArray[np.uint8]:
        """The current frame, uint8 `[height, width, 3]`."""
        return self.frame_at(self.frame_index)

    @property
    def actions(self) -> NDArray[Any]:
        """Actions taken so far, in the groups of the schema, `[step, group]`."""
        slots = self.parts.action_tokenizer.num_slots
        ids = np.frombuffer(b"".join(self._actions), dtype=np.int32).reshape(-1, slots)
        return self.parts.action_tokenizer.decode(ids.astype(np.int64))

    def frame_at(self, index: int) -> NDArray[np.uint8]:
        """Return frame `index`, `0 <= index <= frame_index`, uint8 `[height, width, 3]`.

        Raises:
            SessionLimitError: If the session has no such frame.
        """
        self._check_index(index)
        return self._decode(_unpack(self._ids[index]))

    def ids_at(self, index: int) -> NDArray[np.int64]:
        """Return the visual tokens of frame `index`, int64 `[cell]`.

        Raises:
            SessionLimitError: If the session has no such frame.
        """
        self._check_index(index)
        return _unpack(self._ids[index]).numpy()

    def step(self, action: NDArray[Any] | str) -> NDArray[np.uint8]:
        """Take an action in the current frame; return the next one, uint8 `[height, width, 3]`.

        Args:
            action: Values of the schema's groups, or a name such as `"left+gas"`.

        Raises:
            ActionError: If the action does not fit the world's schema.
        """
        self.advance(self._action_ids(action))
        return self.frame

    def advance(self, action_ids: Int[Tensor, " slot"]) -> None:
        """Take a step given as action tokens, without decoding pixels."""
        parts = self.parts
        draft = parts.model.observe(self._cache, _unpack(self._ids[-1])[None], action_ids[None])
        uniforms = frame_uniforms([self.seed], [self.frame_index + 1], parts.model.layout.num_cells)
        drawn = self.decoder.draw_frame(parts.model, draft, uniforms)
        self._actions.append(_pack(action_ids))
        self._ids.append(_pack(drawn[0]))

    def fork(self) -> "Session":
        """Return an independent session that continues from the current frame."""
        copy = object.__new__(Session)
        copy.__dict__.update(self.__dict__)
        copy._ids = list(self._ids)
        copy._actions = list(self._actions)
        copy._cache = self._cache.fork()
        return copy

    def rewind(self, count: int) -> NDArray[np.uint8]:
        """Go back `count` frames and return the frame reached, uint8 `[height, width, 3]`.

        The last few dozen frames cost nothing; further back the context is computed again.

        Raises:
            SessionLimitError: If the session has fewer frames.
        """
        target = self.frame_index - count
        self._check_index(target)
        observed = len(self.start.action_ids) + target
        del self._actions[target:], self._ids[target + 1 :]
        if self._cache.can_rewind_to(observed):
            self._cache.rewind_to(observed)
        else:
            self._observe_again(target)
        return self.frame

    def log(self) -> RolloutLog:
        """Return all that is needed to generate this session again."""
        return RolloutLog(
            world=self.parts.world,
            world_hash=self.parts.world_hash,
            seed=self.seed,
            decoder=self.decoder.name,
            sampling=self.decoder.sampling,
            start=self.start_index,
            context_ids=_as_tuples(self.start.visual_ids),
            context_actions=_as_tuples(self.start.action_ids),
            actions=tuple(tuple(_unpack(ids).tolist()) for ids in self._actions),
            digests=tuple(frame_digest(_unpack(ids).numpy()) for ids in self._ids[1:]),
        )

    def save(self, path: Path) -> None:
        """Write the log of the session; `Session.load` generates it again."""
        self.log().write(path)

    @classmethod
    def load(cls, parts: SessionParts, path: Path) -> "Session":
        """Return the session of a saved log, at its last frame.

        Raises:
            LogError: If the file is no log, of another world, or gives other frames.
        """
        log = RolloutLog.read(path)
        session = cls.from_log(parts, log)
        for number, same in enumerate(session.replay(log), start=1):
            if not same:
                raise LogError(f"{path}: frame {number} came out different; nothing was loaded")
        return session

    @classmethod
    def from_log(cls, parts: SessionParts, log: RolloutLog) -> "Session":
        """Return a session at the start of a log, ready to `replay` it.

        Raises:
            LogError: If the log belongs to another world or its tokens do not fit.
        """
        if log.world_hash != parts.world_hash:
            raise LogError(
                f"the log was made by world {log.world!r} ({log.world_hash[:12]}), this is "
                f"{parts.world!r} ({parts.world_hash[:12]}); give the world that made it"
            )
        visual_ids = _as_ids(
            log.context_ids, parts.model.layout.num_cells, parts.model.codebook_size
        )
        start = Start(visual_ids=visual_ids, action_ids=_action_rows(parts, log.context_actions))
        _action_rows(parts, log.actions)
        decoder = make_decoder(log.decoder, parts.model.layout, log.sampling)
        return cls(parts, start, seed=log.seed, decoder=decoder, start_index=log.start)

    def replay(self, log: RolloutLog) -> Iterator[bool]:
        """Take the actions of a log one by one; yield for each frame whether it is the same."""
        for action, digest in zip(log.actions, log.digests, strict=True):
            self.advance(torch.tensor(action, dtype=torch.int64))
            yield frame_digest(self.ids) == digest

    def _check_index(self, index: int) -> None:
        if not 0 <= index <= self.frame_index:
            raise SessionLimitError(
                f"frame {index} does not exist; the session has frames 0 to {self.frame_index}"
            )

    def _observe_again(self, num_steps: int) -> None:
        self._cache = self.parts.model.new_cache(1, spare=_SPARE_FRAMES)
        frames = [*self.start.visual_ids[:-1], *map(_unpack, self._ids[:num_steps])]
        actions = [*self.start.action_ids, *map(_unpack, self._actions[:num_steps])]
        for visual_ids, action_ids in zip(frames, actions, strict=True):
            self.parts.model.observe(self._cache, visual_ids[None], action_ids[None])

    def _action_ids(self, action: NDArray[Any] | str) -> Int[Tensor, " slot"]:
        tokenizer = self.parts.action_tokenizer
        if isinstance(action, str):
            action = parse_action(action, tokenizer.schema)
        return torch.from_numpy(tokenizer.encode(np.asarray(action)))

    @torch.no_grad()
    def _decode(self, ids: Int[Tensor, " cell"]) -> UInt8[NDArray[np.uint8], "height width 3"]:
        layout = self.parts.model.layout
        grid = ids.reshape(1, 1, layout.rows, layout.columns)
        return to_uint8(self.parts.visual_tokenizer.decode(grid))[0, 0].cpu().numpy()


def _pack(ids: Int[Tensor, " token"]) -> bytes:
    return ids.cpu().numpy().astype(np.int32).tobytes()


def _unpack(packed: bytes) -> Int[Tensor, " token"]:
    return torch.from_numpy(np.frombuffer(packed, dtype=np.int32).astype(np.int64))


def _as_tuples(ids: Int[Tensor, "row column"]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in ids.tolist())


def _as_ids(rows: tuple[tuple[int, ...], ...], width: int, size: int) -> Int[Tensor, "row column"]:
    for number, row in enumerate(rows):
        if len(row) != width or not all(0 <= value < size for value in row):
            raise LogError(
                f"row {number} of the log's tokens needs {width} ids in 0 ... {size - 1}, "
                f"got {len(row)} ids from {min(row, default=0)} to {max(row, default=0)}"
            )
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), width)


def _action_rows(parts: SessionParts, rows: tuple[tuple[int, ...], ...]) -> Int[Tensor, "row slot"]:
    tokenizer = parts.action_tokenizer
    ids = _as_ids(rows, tokenizer.num_slots, tokenizer.vocabulary_size)
    try:
        tokenizer.decode(ids.numpy())
    except ActionError as error:
        raise LogError(f"the log's actions do not fit world {parts.world!r}: {error}") from error
    return ids
