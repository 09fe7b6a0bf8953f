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

from worldgen.errors import ActionError, ConfigError, LogError, SessionLimitError
from worldgen.generation.decoding import Decoder, make_decoder
from worldgen.generation.guidance import steer
from worldgen.generation.history import IdHistory
from worldgen.generation.log import RolloutLog, frame_digest
from worldgen.generation.pixels import GridToShow, SessionPixels
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import SamplingConfig, draw
from worldgen.generation.state import SessionState, is_state
from worldgen.generation.told import Told
from worldgen.generation.turns import Drawn, Turn, draw_grids
from worldgen.models.base import FrameDraft, Policy, TextModel, WorldModel
from worldgen.models.conditions import StepConditions
from worldgen.tokenizers.action import ActionTokenizer, parse_action
from worldgen.tokenizers.visual import VisualTokenizer

__all__ = ["Session", "SessionParts", "Start"]

_SPARE_STEPS = 64
"""Steps that can be rewound without computing them again."""
_FURTHER_STEPS = 16
"""Steps that are computed again beyond those that must be, so that rewinding on costs nothing."""


_Rows = tuple[tuple[int, ...], ...] | NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class Start:
    """Context from which a session begins, and how to bring the real environment there."""

    visual_ids: Int[Tensor, "step cell"]
    """Visual tokens of the context; its last frame is frame 0 of the session. There may be none in
    a world with text: then frame 0 is drawn."""
    action_ids: Int[Tensor, "action slot"]
    """Action tokens of its steps but the last, whose actions are yet to come."""
    text_ids: Int[Tensor, " token"] | None = None
    """Text in front, padded with 0 to the tokens of a step; None: the null prompt in worlds that
    read text, nothing in others."""
    environment_seed: int | None = None
    environment_actions: NDArray[Any] | None = None
    """Actions `[step, group]` from the environment's reset to frame 0."""

    def __post_init__(self) -> None:
        if len(self.action_ids) != max(len(self.visual_ids) - 1, 0):
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
        self._told = Told.of(parts.model)
        self._told.check(decoder.sampling)
        self._model = steer(parts.model, decoder.sampling, rest_ids)
        self.calls = 0
        """Calls of the model, `predict` and `score`, that the grid drawn last took."""
        self.reset(start, start_index)

    def reset(self, start: Start, start_index: int | None = None) -> NDArray[np.uint8]:
        """Begin again from a context; return its last frame, uint8 `[height, width, 3]`.

        Where a start has a text and no frames, frame 0 is drawn.

        Raises:
            ActionError: If the context's actions do not fit the world.
            ConfigError: If the start has a text that the world does not read, or neither text nor
                frames.
        """
        layout = self.parts.model.layout
        slots = layout.num_action_tokens
        if len(start.action_ids) and start.action_ids.shape[1:] != (slots,):
            raise ActionError(
                f"a step of world {self.parts.world!r} has {slots} action tokens, the start's have "
                f"the shape {list(start.action_ids.shape)}"
            )
        text_ids = None
        if self._told.text_length or start.text_ids is not None:
            text_ids = self._told.text(start.text_ids)
        elif not len(start.visual_ids):
            raise ConfigError(
                f"world {self.parts.world!r} reads no text, so a session needs at least 1 frame to "
                "start from; give a start with frames"
            )
        self.start = start
        self.start_index = start_index
        self._text_ids = text_ids
        # Not tensors: a session may last for hours, and a small tensor costs kilobytes.
        self._grids = IdHistory(
            start.visual_ids.reshape(-1, layout.num_cells).cpu().numpy(),
            self.parts.model.codebook_size,
        )
        self._actions = IdHistory(
            start.action_ids.reshape(-1, slots).cpu().numpy(),
            self.parts.action_tokenizer.vocabulary_size,
        )
        self._frame_index = 0
        self._ahead: _Ahead | None = None
        self._pixels = SessionPixels(self.parts.visual_tokenizer)
        draft = self._observe_again()
        if not len(self._grids):
            assert draft is not None
            uniforms = frame_uniforms([self.seed], [0], layout.num_cells)
            self._grids.append(self.decoder.draw_frame(self._model, draft, uniforms)[0])
            self.calls = draft.calls
        return self.frame

    @property
    def frame_index(self) -> int:
        """Number of the current frame; 0 is the last frame of the context, or drawn from the text."""
        return self._frame_index

    @property
    def frames_per_step(self) -> int:
        """Frames that are drawn together."""
        return self.parts.model.layout.frames_per_step

    @property
    def frames_left(self) -> int:
        """Frames after the current one that are drawn already, whatever the next actions are."""
        return self._num_drawn * self.frames_per_step - self._frame_index

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
        rows = self._actions[self._num_context + step].reshape(self.frames_per_step, -1)
        return self.parts.action_tokenizer.decode(rows[place].numpy())

    def frame_at(self, index: int) -> NDArray[np.uint8]:
        """Return frame `index`, `0 <= index <= frame_index`, uint8 `[height, width, 3]`.

        Raises:
            SessionLimitError: If the session has no such frame.
        """
        self._check_index(index)
        place = (index - 1) % self.frames_per_step if index else -1
        return self._pixels.frame(self._grid_number(index), place, self._grids.__getitem__)

    def ids_at(self, index: int) -> NDArray[np.int64]:
        """Return the visual tokens of the grid with frame `index`, int64 `[cell]`.

        Raises:
            SessionLimitError: If the session has no such frame.
        """
        self._check_index(index)
        return self._grids[self._grid_number(index)].numpy()

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
        ids = [self.action_ids(each) for each in (action, *following[: self.frames_per_step - 1])]
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
            visual_ids=self._grids[-1],
            action_ids=layout.actions_of_steps(known[: layout.frames_per_step])[0],
            seed=self.seed,
            number=self._num_drawn + 1,
            conditions=self._conditions(len(self._grids) - 1),
        )

    def _conditions(self, number: int) -> StepConditions | None:
        """Return what the model is told in a step, counted from the first grid of the context."""
        drawn = number >= len(self.start.visual_ids)
        noise_level = self.decoder.sampling.context_noise if drawn else 0
        return self._told.conditions(self._grids.rows[: number + 1], noise_level)

    def _add(self, action_ids: Int[Tensor, " slot"], drawn: Drawn) -> None:
        self.calls = drawn.calls
        self._actions.append(action_ids)
        self._grids.append(drawn.ids)

    @property
    def grid_to_show(self) -> GridToShow:
        """What the current frame is decoded from."""
        number = self._grid_number(self.frame_index)
        return GridToShow(pixels=self._pixels, number=number, ids=self._grids[number])

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
        turn = self._turn(self.action_ids(action)[None])
        num_frames = self._cache.num_frames
        drawn = draw_grids([turn])[0]
        # What was written stays behind the pointer until this very cache writes again.
        self._cache.rewind_to(num_frames)
        pixels = self._pixels.fork()
        latest = self._num_context + turn.number
        pixels.frame(latest, 0, lambda n: drawn.ids if n == latest else self._grids[n])
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
        visual_ids = self._grids[-1].expand(self._cache.batch, -1)
        ids = model.predict_action(self._cache, visual_ids, slot_ids, choose)
        return self.parts.action_tokenizer.decode(ids[0, : tokenizer.num_slots].cpu().numpy())

    @property
    def model(self) -> WorldModel:
        """The world's model, steered as the sampling says: what the session asks."""
        return self._model

    def context(self) -> Start:
        """Return all frames so far, and those drawn together with the current one, as one context."""
        actions, grids = self._actions.rows, self._grids.rows
        return Start(
            visual_ids=torch.from_numpy(grids.astype(np.int64)),
            action_ids=torch.from_numpy(actions.astype(np.int64)),
            text_ids=self.start.text_ids,
        )

    def fork(self) -> "Session":
        """Return an independent session that continues from the current frame."""
        copy = object.__new__(Session)
        copy.__dict__.update(self.__dict__)
        copy._grids = self._grids.copy()
        copy._actions = self._actions.copy()
        copy._cache = self._cache.fork()
        copy._pixels = self._pixels.fork()
        return copy

    def rewind(self, count: int) -> NDArray[np.uint8]:
        """Go back `count` frames and return the frame reached, uint8 `[height, width, 3]`.

        The last few dozen frames cost nothing; further back what the model sees of the frames
        before is computed again. Frames that were drawn together with the one reached come again,
        whatever the actions.

        Raises:
            SessionLimitError: If the session has fewer frames.
        """
        target = self.frame_index - count
        self._check_index(target)
        steps = self._grid_number(target)
        self._ahead = None
        self._actions.cut(steps)
        self._grids.cut(steps + 1)
        self._frame_index = target
        self._pixels.forget_from(steps + 1)
        observed = steps + self._num_texts
        if self._cache.can_rewind_to(observed):
            self._cache.rewind_to(observed)
        else:
            self._observe_again()
        return self.frame

    def log(self) -> RolloutLog:
        """Return all that is needed to generate this session again."""
        digests = [
            digest
            for ids in self._grids.rows[self._num_context + 1 :]
            for digest in [frame_digest(ids.astype(np.int64))] * self.frames_per_step
        ]
        text_ids = self.start.text_ids
        return RolloutLog(
            world=self.parts.world,
            world_hash=self.parts.world_hash,
            seed=self.seed,
            decoder=self.decoder.name,
            sampling=self.decoder.sampling,
            start=self.start_index,
            context_ids=_as_tuples(self.start.visual_ids),
            context_actions=_as_tuples(self.start.action_ids),
            text_ids=None if text_ids is None else tuple(text_ids.tolist()),
            frames_per_step=self.frames_per_step,
            actions=tuple(map(tuple, self._frame_actions().tolist())),
            digests=tuple(digests[: self._frame_index]),
        )

    def save(self, path: Path) -> None:
        """Write the log of the session; `Session.load` generates it again."""
        self.log().write(path)

    def save_state(self, path: Path) -> None:
        """Write every id so far; `Session.load` goes on from the end and generates nothing again.

        One safetensors file, for an hour of frames of 64 tokens about ten megabytes. Unlike a log
        it is no proof of where the frames come from.
        """
        text_ids = self.start.text_ids
        SessionState(
            world=self.parts.world,
            world_hash=self.parts.world_hash,
            seed=self.seed,
            decoder=self.decoder.name,
            sampling=self.decoder.sampling,
            start=self.start_index,
            num_context=len(self.start.visual_ids),
            frame_index=self._frame_index,
            frames_per_step=self.frames_per_step,
            visual_ids=self._grids.rows,
            action_ids=self._actions.rows,
            text_ids=None if text_ids is None else text_ids.cpu().numpy(),
        ).write(path)

    @classmethod
    def load(cls, parts: SessionParts, path: Path) -> "Session":
        """Return the session of a saved log, or of a saved state, at its last frame.

        A log is generated again. Of a state only what the model still sees is observed again;
        what follows is the same, to the last bit.

        Raises:
            LogError: If the file is neither, is damaged, of another world, or a log that gives
                other frames.
        """
        if is_state(path):
            return cls.from_state(parts, SessionState.read(path))
        log = RolloutLog.read(path)
        session = cls.from_log(parts, log)
        for number, same in enumerate(session.replay(log), start=1):
            if not same:
                raise LogError(f"{path}: frame {number} came out different; nothing was loaded")
        return session

    @classmethod
    def from_state(cls, parts: SessionParts, state: SessionState) -> "Session":
        """Return the session of a state, at its last frame.

        Raises:
            LogError: If the state belongs to another world or its tokens do not fit.
        """
        _check_origin(parts, state)
        layout = parts.model.layout
        visual_ids = _checked_ids(state.visual_ids, layout.num_cells, parts.model.codebook_size)
        action_ids = _checked_actions(parts, state.action_ids, layout.frames_per_step)
        given = state.num_context
        start = _checked_start(
            parts, visual_ids[:given], action_ids[: max(given - 1, 0)], state.text_ids
        )
        decoder = make_decoder(state.decoder, layout, state.sampling, parts.visual_tokenizer)
        session = cls(parts, start, seed=state.seed, decoder=decoder, start_index=state.start)
        if not torch.equal(session._grids[-1], visual_ids[max(given - 1, 0)]):
            raise LogError(
                f"frame 0 came out different from the one that was saved of world {parts.world!r}; "
                "nothing was loaded"
            )
        session._grids.extend(visual_ids[len(session._grids) :])
        session._actions.extend(action_ids[len(session._actions) :])
        session._frame_index = state.frame_index
        session._observe_again()
        return session

    @classmethod
    def from_log(cls, parts: SessionParts, log: RolloutLog) -> "Session":
        """Return a session at the start of a log, ready to `replay` it.

        Raises:
            LogError: If the log belongs to another world or its tokens do not fit.
        """
        _check_origin(parts, log)
        layout = parts.model.layout
        visual_ids = _checked_ids(log.context_ids, layout.num_cells, parts.model.codebook_size)
        action_ids = _checked_actions(parts, log.context_actions, layout.frames_per_step)
        start = _checked_start(parts, visual_ids, action_ids, log.text_ids)
        _checked_actions(parts, log.actions)
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

    @property
    def _num_context(self) -> int:
        """Grids before the one with frame 0."""
        return len(self.start.action_ids)

    @property
    def _num_drawn(self) -> int:
        """Grids after the one with frame 0."""
        return len(self._actions) - self._num_context

    @property
    def _num_texts(self) -> int:
        """Steps of the cache in front of the first grid."""
        return 0 if self._text_ids is None else 1

    def _grid_number(self, index: int) -> int:
        """Return the number of the grid with a frame, counted from the first one of the context."""
        return self._num_context + self._step_of(index)

    def _frame_actions(self) -> Int[NDArray[np.integer], "frame slot"]:
        """Return the action tokens of every frame that is drawn."""
        slots = self.parts.action_tokenizer.num_slots
        rows = self._num_drawn * self.frames_per_step
        return self._actions.rows[self._num_context :].reshape(rows, slots)

    def _observe_again(self) -> FrameDraft | None:
        """Fill a new cache with what the model can see of all steps but the last.

        Returns:
            What the text says about the first frame, in worlds that read text.
        """
        cache = self._cache = self._model.new_cache(1, spare=_SPARE_STEPS)
        draft = None
        if self._text_ids is not None:
            assert isinstance(self._model, TextModel)
            draft = self._model.observe_text(cache, self._text_ids[None])
        texts = self._num_texts
        stop = texts + len(self._actions)
        first = stop - cache.receptive_field - _FURTHER_STEPS
        for place in range(texts, stop):
            if cache.sink <= place < first:
                continue
            if place > cache.num_frames:
                cache.skip_to(place)
            number = place - texts
            self._model.observe(
                cache,
                self._grids[number][None],
                self._actions[number][None],
                self._conditions(number),
            )
        return draft

    def action_ids(self, action: NDArray[Any] | str) -> Int[Tensor, " slot"]:
        """Return the tokens of an action, given as `step` takes it.

        Raises:
            ActionError: If the action does not fit the world's schema.
        """
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


def _check_origin(parts: SessionParts, saved: RolloutLog | SessionState) -> None:
    if saved.world_hash != parts.world_hash:
        raise LogError(
            f"the log was made by world {saved.world!r} ({saved.world_hash[:12]}), this is "
            f"{parts.world!r} ({parts.world_hash[:12]}); give the world that made it"
        )
    frames_per_step = parts.model.layout.frames_per_step
    if saved.frames_per_step != frames_per_step:
        raise LogError(
            f"the log draws {saved.frames_per_step} frames at a time, world {parts.world!r} "
            f"{frames_per_step}"
        )


def _checked_ids(rows: _Rows, width: int, size: int) -> Int[Tensor, "row column"]:
    for number, row in enumerate(rows):
        ids = np.asarray(row)
        if len(ids) != width or not ((ids >= 0) & (ids < size)).all():
            raise LogError(
                f"row {number} of the log's tokens needs {width} ids in 0 ... {size - 1}, "
                f"got {len(ids)} ids from {min(row, default=0)} to {max(row, default=0)}"
            )
    return torch.from_numpy(np.array(rows, dtype=np.int64).reshape(len(rows), width))


def _checked_start(
    parts: SessionParts,
    visual_ids: Int[Tensor, "step cell"],
    action_ids: Int[Tensor, "action slot"],
    text_ids: tuple[int, ...] | NDArray[np.integer] | None,
) -> Start:
    told, text = Told.of(parts.model), None
    try:
        if text_ids is not None:
            text = told.text(torch.from_numpy(np.array(text_ids, dtype=np.int64)))
        elif not len(visual_ids):
            told.text(None)
    except ConfigError as error:
        raise LogError(f"the log's text does not fit world {parts.world!r}: {error}") from error
    return Start(visual_ids=visual_ids, action_ids=action_ids, text_ids=text)


def _checked_actions(
    parts: SessionParts, rows: _Rows, actions_per_row: int = 1
) -> Int[Tensor, "row slot"]:
    tokenizer = parts.action_tokenizer
    ids = _checked_ids(rows, tokenizer.num_slots * actions_per_row, tokenizer.vocabulary_size)
    try:
        tokenizer.decode(ids.numpy().reshape(len(ids) * actions_per_row, tokenizer.num_slots))
    except ActionError as error:
        raise LogError(f"the log's actions do not fit world {parts.world!r}: {error}") from error
    return ids
