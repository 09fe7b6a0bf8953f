"""A world being played: reset, step, fork, rewind, save, replay."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from worldgen.errors import ActionError, LogError, SessionLimitError
from worldgen.generation.decoding import Decoder, make_decoder
from worldgen.generation.guidance import steer
from worldgen.generation.log import RolloutLog, frame_digest
from worldgen.generation.pixels import GridToShow, SessionPixels
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import SamplingConfig, draw
from worldgen.generation.turns import Drawn, Turn, draw_grids
from worldgen.models.base import Policy, WorldModel
from worldgen.tokenizers.action import ActionTokenizer, parse_action
from worldgen.tokenizers.visual import VisualTokenizer

__all__ = ["Session", "SessionParts", "Start"]

_SPARE_STEPS = 64
"""Steps that can be rewound without computing them again."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Context from which a session begins, and how to bring the real environment there."""

    visual_ids: Int[Tensor, "step cell"]
    """Visual tokens of the context; its last frame is frame 0 of the session."""
    action_ids: Int[Tensor, "action slot"]
    """Action tokens of its steps but the last, whose actions are yet to come."""
    environment_seed: int | None = None
    environment_actions: NDArray[Any] | None = None
    """Actions `[step, group]` from the environment's reset to frame 0."""

    def __post_init__(self) -> None:
        if len(self.visual_ids) < 1 or len(self.action_ids) != len(self.visual_ids) - 1:
            raise ActionError(
                f"a start of {len(self.visual_ids)} context steps needs the actions of one step "
                f"fewer, got those of {len(self.action_ids)}"
            )


@dataclass(frozen=True, kw_only=True)
class SessionParts:
    """What a session plays: the networks of a world, its name and its hash."""

    world: str
    world_hash: str
    model: WorldModel
    visual_tokenizer: VisualTokenizer
    action_tokenizer: ActionTokenizer


@dataclass(frozen=True, kw_only=True)
class _Ahead:
    """A grid that was drawn under an action that may come."""

    action: bytes
    """Its tokens, packed."""
    drawn: Drawn
    pixels: SessionPixels
    """With the grid's frames."""


class Session:
    """One player's world.

    Everything that is generated is a function of the start, the seed, the decoder and the
    actions: sessions can be forked, rewound and replayed and give the same ids again.

    Where a grid of tokens stands for several frames, they are drawn together when the first of them
    is asked for, under the actions known at that moment; the last known one is held for the rest.
    Their other actions come too late to change them. What the session remembers, logs and
    replays are the actions that the frames were drawn under.

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
        decoder: Decoder,
        start_index: int | None = None,
    ) -> None:
        if not 0 <= seed < 2**63:
            raise SessionLimitError(f"a seed must lie in 0 ... 2**63 - 1, got {seed}")
        self.parts = parts
        self.seed = seed
        self.decoder = decoder
        rest = parts.action_tokenizer.encode(parts.action_tokenizer.schema.rest())
        rest_ids = torch.from_numpy(rest).repeat(parts.model.layout.frames_per_step)
        self._model = steer(parts.model, decoder.sampling, rest_ids)
        self.calls = 0
        """Calls of the model, `predict` and `score`, that the grid drawn last took."""
        self.reset(start, start_index)

    def reset(self, start: Start, start_index: int | None = None) -> NDArray[np.uint8]:
        """Begin again from a context; return its last frame, uint8 `[height, width, 3]`."""
        slots = self.parts.model.layout.num_action_tokens
        if len(start.action_ids) and start.action_ids.shape[1:] != (slots,):
            raise ActionError(
                f"a step of world {self.parts.world!r} has {slots} action tokens, the start's have "
                f"the shape {list(start.action_ids.shape)}"
            )
        self.start = start
        self.start_index = start_index
        # Bytes, not tensors: a session may last for hours, and a small tensor costs kilobytes.
        self._ids = [_pack(start.visual_ids[-1])]
        self._actions: list[bytes] = []
        self._frame_index = 0
        self._ahead: _Ahead | None = None
        self._pixels = SessionPixels(self.parts.visual_tokenizer)
        self._observe_again(0)
        return self.frame

    @property
    def frame_index(self) -> int:
        """Number of the current frame; 0 is the last frame of the context."""
        return self._frame_index

    @property
    def frames_per_step(self) -> int:
        """Frames that are drawn together."""
        return self.parts.model.layout.frames_per_step

    @property
    def frames_left(self) -> int:
        """Frames after the current one that are drawn already, whatever the next actions are."""
        return len(self._actions) * self.frames_per_step - self._frame_index

    @property
    def ids(self) -> NDArray[np.int64]:
        """Visual tokens of the grid with the current frame, raster order, int64 `[cell]`."""
        return self.ids_at(self.frame_index)

    @property
    def frame(self) -> NDArray[np.uint8]:
        """The current frame, uint8 `[height, width, 3]`."""
        return self.frame_at(self.frame_index)

    @property
    def actions(self) -> NDArray[Any]:
        """Actions that led to the frames so far, in the groups of the schema, `[frame, group]`."""
        ids = self._frame_actions()[: self._frame_index]
        return self.parts.action_tokenizer.decode(ids.astype(np.int64))

    def action_at(self, index: int) -> NDArray[Any]:
        """Return the action that led to frame `index`, in the groups of the schema, `[group]`.

        It is the one given, or one that was held when the frame was drawn.

        Raises:
            SessionLimitError: If the session has no such frame, or it is frame 0.
        """
        self._check_index(index, first=1)
        step, place = divmod(index - 1, self.frames_per_step)
        rows = _unpack(self._actions[step]).reshape(self.frames_per_step, -1)
        return self.parts.action_tokenizer.decode(rows[place].numpy())

    def frame_at(self, index: int) -> NDArray[np.uint8]:
        """Return frame `index`, `0 <= index <= frame_index`, uint8 `[height, width, 3]`.

        Raises:
            SessionLimitError: If the session has no such frame.
        """
        self._check_index(index)
        place = (index - 1) % self.frames_per_step if index else -1
        return self._pixels.frame(self._grid_number(index), place, self._grid)

    def ids_at(self, index: int) -> NDArray[np.int64]:
        """Return the visual tokens of the grid with frame `index`, int64 `[cell]`.

        Raises:
            SessionLimitError: If the session has no such frame.
        """
        self._check_index(index)
        return _unpack(self._ids[self._step_of(index)]).numpy()

    def step(
        self, action: NDArray[Any] | str, following: Sequence[NDArray[Any] | str] = ()
    ) -> NDArray[np.uint8]:
        """Take an action in the current frame; return the next one, uint8 `[height, width, 3]`.

        Args:
            action: Values of the schema's groups, or a name such as `"left+gas"`.
            following: The actions after it where they are known, for frames that are drawn
                together; those beyond are left alone.

        Raises:
            ActionError: If the action does not fit the world's schema.
        """
        ids = [self._action_ids(each) for each in (action, *following[: self.frames_per_step - 1])]
        self.advance(ids[0], torch.stack(ids)[1:])
        return self.frame

    def play(self, actions: Iterable[NDArray[Any] | str]) -> Iterator[NDArray[np.uint8]]:
        """Take actions one after the other, each heeded at its own frame; yield the frames.

        Actions are asked for as many at a time as frames are drawn together.

        Args:
            actions: Each as `step` takes them.

        Raises:
            ActionError: If an action does not fit the world's schema.
        """
        rest = iter(actions)
        while together := list(itertools.islice(rest, self.frames_left or self.frames_per_step)):
            for number, action in enumerate(together, start=1):
                yield self.step(action, together[number:])

    def advance(
        self,
        action_ids: Int[Tensor, " slot"],
        following: Int[Tensor, "action slot"] | None = None,
    ) -> None:
        """Take a step given as action tokens, without decoding pixels.

        Args:
            action_ids: Of the action.
            following: Of the actions after it, as in `step`.
        """
        known = action_ids[None]
        if following is not None:
            known = torch.cat((known, following))
        turn = self.turn(known)
        self.take(turn, None if turn is None else draw_grids([turn])[0])

    def turn(self, known: Int[Tensor, "action slot"]) -> Turn | None:
        """Return what must be drawn before a step can be taken; None if nothing, see `take`.

        Args:
            known: Action tokens of the step, and of the steps after it that are known.
        """
        if self.frames_left:
            return None
        turn = self._turn(known)
        if self._ahead is None:
            return turn
        if self._ahead.action == _pack(turn.action_ids):
            return None
        # What is drawn now takes its place in the cache.
        self._ahead = None
        return turn

    def take(self, turn: Turn | None, drawn: Drawn | None = None) -> None:
        """Take the step that `turn` was asked about.

        Args:
            turn: What it returned.
            drawn: The grid, if there was something to draw.
        """
        if turn is not None and drawn is not None:
            self._add(turn.action_ids, drawn)
        elif not self.frames_left:
            ahead, self._ahead = self._ahead, None
            assert ahead is not None
            # The step is still there, behind the pointer of the cache.
            self._cache.advance()
            self._pixels = ahead.pixels.fork()
            self._add(_unpack(ahead.action), ahead.drawn)
        self._frame_index += 1

    def _turn(self, known: Int[Tensor, "action slot"]) -> Turn:
        layout = self.parts.model.layout
        return Turn(
            model=self._model,
            decoder=self.decoder,
            cache=self._cache,
            visual_ids=_unpack(self._ids[-1]),
            action_ids=layout.actions_of_steps(known[: layout.frames_per_step])[0],
            seed=self.seed,
            number=len(self._ids),
        )

    def _add(self, action_ids: Int[Tensor, " slot"], drawn: Drawn) -> None:
        self.calls = drawn.calls
        self._actions.append(_pack(action_ids))
        self._ids.append(_pack(drawn.ids))

    @property
    def grid_to_show(self) -> GridToShow:
        """What the current frame is decoded from."""
        number = self._grid_number(self.frame_index)
        return GridToShow(pixels=self._pixels, number=number, ids=self._grid(number))

    def look_ahead(self, action: NDArray[Any] | str) -> bool:
        """Draw the next frame under the action that is likely to come, while there is time.

        If it comes, the step is there at once; if another one does, nothing is lost but this work.
        Nothing that the session shows or gives changes by it, now or later.

        Source: speculation on actions, Next-Frame Diffusion, arXiv:2506.01380.

        Args:
            action: As for `step`; held for all frames that are drawn together.

        Returns:
            Whether there was something to draw.

        Raises:
            ActionError: If the action does not fit the world's schema.
        """
        if self.frames_left or self._ahead is not None:
            return False
        turn = self._turn(self._action_ids(action)[None])
        num_frames = self._cache.num_frames
        drawn = draw_grids([turn])[0]
        # What was written stays behind the pointer until this very cache writes again.
        self._cache.rewind_to(num_frames)
        pixels = self._pixels.fork()
        latest = len(self.start.action_ids) + turn.number
        pixels.frame(latest, 0, lambda n: drawn.ids if n == latest else self._grid(n))
        self._ahead = _Ahead(action=_pack(turn.action_ids), drawn=drawn, pixels=pixels)
        return True

    def predict_action(self, sampling: SamplingConfig | None = None) -> NDArray[Any]:
        """Return what the players of the world's recordings would do now, `[group]`.

        Nothing changes by asking; the same seed and frame give the same answer.

        Args:
            sampling: Temperature and nucleus; by default every action as often as players took it.

        Raises:
            ActionError: If the world's model predicts frames only, or frames that are drawn
                already heed an action that was given.
        """
        model, tokenizer = self.parts.model, self.parts.action_tokenizer
        if not isinstance(model, Policy):
            raise ActionError(
                f"the model of world {self.parts.world!r} predicts frames and no actions; models "
                "of family interleaved_next_token or driving predict both"
            )
        if self.frames_left:
            raise ActionError(
                f"the next {self.frames_left} frames are drawn already; ask after the last of them"
            )
        rules = sampling or SamplingConfig()
        slot_ids = [torch.from_numpy(ids) for ids in tokenizer.slot_ids * self.frames_per_step]
        uniforms = frame_uniforms([self.seed], [self.frame_index], len(slot_ids), stream=1)

        def choose(slot: int, logits: Tensor) -> Tensor:
            return draw(logits, uniforms[:, slot].expand(len(logits)).to(logits.device), rules)

        # A guided session remembers its frames twice, first with the actions that were taken.
        visual_ids = _unpack(self._ids[-1]).expand(self._cache.batch, -1)
        ids = model.predict_action(self._cache, visual_ids, slot_ids, choose)
        return self.parts.action_tokenizer.decode(ids[0, : tokenizer.num_slots].cpu().numpy())

    def fork(self) -> "Session":
        """Return an independent session that continues from the current frame."""
        copy = object.__new__(Session)
        copy.__dict__.update(self.__dict__)
        copy._ids = list(self._ids)
        copy._actions = list(self._actions)
        copy._cache = self._cache.fork()
        copy._pixels = self._pixels.fork()
        return copy

    def rewind(self, count: int) -> NDArray[np.uint8]:
        """Go back `count` frames and return the frame reached, uint8 `[height, width, 3]`.

        The last few dozen frames cost nothing; further back the context is computed again. Frames
        that were drawn together with the one reached come again, whatever the actions.

        Raises:
            SessionLimitError: If the session has fewer frames.
        """
        target = self.frame_index - count
        self._check_index(target)
        steps = self._step_of(target)
        observed = len(self.start.action_ids) + steps
        self._ahead = None
        del self._actions[steps:], self._ids[steps + 1 :]
        self._frame_index = target
        self._pixels.forget_from(observed + 1)
        if self._cache.can_rewind_to(observed):
            self._cache.rewind_to(observed)
        else:
            self._observe_again(steps)
        return self.frame

    def log(self) -> RolloutLog:
        """Return all that is needed to generate this session again."""
        digests = [
            digest
            for ids in self._ids[1:]
            for digest in [frame_digest(_unpack(ids).numpy())] * self.frames_per_step
        ]
        return RolloutLog(
            world=self.parts.world,
            world_hash=self.parts.world_hash,
            seed=self.seed,
            decoder=self.decoder.name,
            sampling=self.decoder.sampling,
            start=self.start_index,
            context_ids=_as_tuples(self.start.visual_ids),
            context_actions=_as_tuples(self.start.action_ids),
            frames_per_step=self.frames_per_step,
            actions=tuple(map(tuple, self._frame_actions().tolist())),
            digests=tuple(digests[: self._frame_index]),
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
        layout = parts.model.layout
        if log.frames_per_step != layout.frames_per_step:
            raise LogError(
                f"the log draws {log.frames_per_step} frames at a time, world {parts.world!r} "
                f"{layout.frames_per_step}"
            )
        visual_ids = _as_ids(log.context_ids, layout.num_cells, parts.model.codebook_size)
        start = Start(
            visual_ids=visual_ids,
            action_ids=_action_rows(parts, log.context_actions, layout.frames_per_step),
        )
        _action_rows(parts, log.actions)
        decoder = make_decoder(
            log.decoder, parts.model.layout, log.sampling, parts.visual_tokenizer
        )
        return cls(parts, start, seed=log.seed, decoder=decoder, start_index=log.start)

    def replay(self, log: RolloutLog) -> Iterator[bool]:
        """Take the actions of a log one by one; yield for each frame whether it is the same."""
        slots = self.parts.action_tokenizer.num_slots
        action_ids = torch.tensor(log.actions, dtype=torch.int64).reshape(-1, slots)
        for number, digest in enumerate(log.digests):
            following = action_ids[number + 1 : number + self.frames_per_step]
            self.advance(action_ids[number], following)
            yield frame_digest(self.ids) == digest

    def _check_index(self, index: int, first: int = 0) -> None:
        if not first <= index <= self.frame_index:
            raise SessionLimitError(
                f"frame {index} does not exist; the session has frames {first} to "
                f"{self.frame_index}"
            )

    def _step_of(self, index: int) -> int:
        """Return how many grids were drawn when frame `index` was."""
        return self.parts.model.layout.num_steps(index)

    def _grid_number(self, index: int) -> int:
        """Return the number of the grid with a frame, counted from the first one of the context."""
        return len(self.start.action_ids) + self._step_of(index)

    def _grid(self, number: int) -> Int[Tensor, " cell"]:
        """Return the ids of a grid, counted from the first one of the context."""
        context = len(self.start.action_ids)
        if number < context:
            return self.start.visual_ids[number]
        return _unpack(self._ids[number - context])

    def _frame_actions(self) -> Int[NDArray[np.int32], "frame slot"]:
        """Return the action tokens of every frame that is drawn."""
        slots = self.parts.action_tokenizer.num_slots
        rows = len(self._actions) * self.frames_per_step
        return np.frombuffer(b"".join(self._actions), dtype=np.int32).reshape(rows, slots)

    def _observe_again(self, num_steps: int) -> None:
        self._cache = self._model.new_cache(1, spare=_SPARE_STEPS)
        frames = [*self.start.visual_ids[:-1], *map(_unpack, self._ids[:num_steps])]
        actions = [*self.start.action_ids, *map(_unpack, self._actions[:num_steps])]
        for visual_ids, action_ids in zip(frames, actions, strict=True):
            self._model.observe(self._cache, visual_ids[None], action_ids[None])

    def _action_ids(self, action: NDArray[Any] | str) -> Int[Tensor, " slot"]:
        tokenizer = self.parts.action_tokenizer
        if isinstance(action, str):
            action = parse_action(action, tokenizer.schema)
        return torch.from_numpy(tokenizer.encode(np.asarray(action)))


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


def _action_rows(
    parts: SessionParts, rows: tuple[tuple[int, ...], ...], actions_per_row: int = 1
) -> Int[Tensor, "row slot"]:
    tokenizer = parts.action_tokenizer
    ids = _as_ids(rows, tokenizer.num_slots * actions_per_row, tokenizer.vocabulary_size)
    try:
        tokenizer.decode(ids.numpy().reshape(len(ids) * actions_per_row, tokenizer.num_slots))
    except ActionError as error:
        raise LogError(f"the log's actions do not fit world {parts.world!r}: {error}") from error
    return ids
