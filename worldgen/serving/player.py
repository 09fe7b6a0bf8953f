"""One visitor's drive: branches of a session, the frames that can be gone back to, and its log."""

import dataclasses
import itertools
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, Num, UInt8

from worldgen.errors import SessionLimitError
from worldgen.generation.batch import advance_together
from worldgen.generation.log import RolloutLog
from worldgen.generation.session import Session
from worldgen.pipeline import World
from worldgen.serving.window import FrameWindow

__all__ = [
    "MAX_BRANCHES",
    "WINDOW_SECONDS",
    "Branch",
    "Player",
    "Wish",
    "actions_from",
    "advance_players",
]

MAX_BRANCHES: Final = 8
"""Every branch holds a key-value cache of its own, so their number is bounded."""
WINDOW_SECONDS: Final = 60
"""How far back the slider and the video reach, in seconds of the world's own time."""

Frame = UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(kw_only=True)
class Branch:
    """One line of events: a session, its recent frames, and where it left another branch."""

    identifier: int
    session: Session
    window: FrameWindow
    parent: int | None = None
    forked_at: int = 0


def actions_from(
    values: Float32[np.ndarray, "*step group"], world: World
) -> Num[np.ndarray, "*step group"]:
    """Return actions exactly as the session and its log keep them.

    Args:
        values: One setting per group of the world's schema.
        world: The world that is played.

    Raises:
        ActionError: If the number of settings or one of them does not fit the schema.
    """
    tokenizer = world.action_tokenizer
    # Through the tokens and back: the real environment then gets the very value that the dream
    # got, which on an axis is the centre of a bin.
    return np.asarray(tokenizer.decode(tokenizer.encode(values.astype(np.float64))))


class Player:
    """What one visitor plays. Not thread-safe: only the engine's thread may call it.

    Args:
        world: The world.
        session: A session of that world; the player begins at its current frame 0.
    """

    def __init__(self, world: World, session: Session) -> None:
        self.world = world
        capacity = max(2, round(WINDOW_SECONDS * world.frames_per_second))
        window = FrameWindow(capacity, first=session.frame_index, frames=(session.frame,))
        self.current = Branch(identifier=0, session=session, window=window)
        self._branches = {0: self.current}
        self._numbers = itertools.count(1)

    @classmethod
    def open(cls, world: World, *, seed: int, start: int, decoder: str | None) -> "Player":
        """Return a player at a start of the world.

        Args:
            world: The world.
            seed: Seed of the drive's random numbers.
            start: Number of the start, wrapped round the world's starts.
            decoder: Name of a decoding order, or None for the world's own.

        Raises:
            WorldgenError: If the seed or the decoder is not allowed.
        """
        number = start % len(world.starts)
        return cls(world, world.session(seed=seed, start=number, decoder=decoder))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """All branches, oldest first."""
        return tuple(self._branches.values())

    @property
    def seed(self) -> int:
        """Seed of the drive."""
        return self.current.session.seed

    @property
    def start(self) -> int | None:
        """Number of the world's start, or None for a log with a start of its own."""
        return self.current.session.start_index

    @property
    def decoder(self) -> str:
        """Name of the decoding order."""
        return self.current.session.decoder.name

    @property
    def frame_index(self) -> int:
        """Index of the current frame; 0 is the last frame of the start."""
        return self.current.window.last

    @property
    def frame(self) -> Frame:
        """The current frame."""
        return self.current.window[self.frame_index]

    @property
    def digest(self) -> int:
        """A checksum of the current frame's visual tokens, by which a page knows it again."""
        return zlib.crc32(self.current.session.ids.tobytes())

    @property
    def actions(self) -> np.ndarray:
        """Actions of the current branch from its start, `[step, group]`."""
        return self.current.session.actions

    @property
    def last_action(self) -> np.ndarray:
        """The action that led to the current frame, `[group]`."""
        return self.current.session.action_at(self.frame_index)

    def step(self, action: np.ndarray, following: Sequence[np.ndarray] = ()) -> Frame:
        """Take one action and return the next frame.

        Args:
            action: Settings of the groups.
            following: The actions after it where they are known; see `Session.step`.
        """
        self.current.session.step(action, following)
        return self.show()

    def show(self) -> Frame:
        """Return the frame that the session has reached, and remember it."""
        frame = self.current.session.frame
        self.current.window.append(frame)
        return frame

    @property
    def rest(self) -> np.ndarray:
        """The action that does nothing, `[group]`."""
        return actions_from(self.world.action_tokenizer.schema.rest(), self.world)

    def chosen_by_model(self) -> np.ndarray:
        """Return the action that the model itself would take now, `[group]`.

        It is the last one, as long as frames are left that were drawn under it.

        Raises:
            ActionError: If the model predicts no actions.
        """
        session = self.current.session
        return self.last_action if session.frames_left else session.predict_action()

    def rewind(self, index: int) -> None:
        """Go back to frame `index` of the current branch and forget what came after it.

        Raises:
            SessionLimitError: If the frame is not in the window.
        """
        window = self.current.window.until(index)
        if index < self.frame_index:
            self.current.session.rewind(self.frame_index - index)
        self.current.window = window

    def fork(self, index: int) -> None:
        """Start a branch at frame `index` of the current one, and go on in it.

        Raises:
            SessionLimitError: If there are too many branches or the frame is not in the window.
        """
        if len(self._branches) >= MAX_BRANCHES:
            raise SessionLimitError(
                f"{MAX_BRANCHES} branches are open, which is the most; close one first"
            )
        source = self.current
        window = source.window.until(index)
        session = source.session.fork()
        if index < self.frame_index:
            session.rewind(self.frame_index - index)
        self.current = Branch(
            identifier=next(self._numbers),
            session=session,
            window=window,
            parent=source.identifier,
            forked_at=index,
        )
        self._branches[self.current.identifier] = self.current

    def switch(self, identifier: int) -> None:
        """Go on in another branch.

        Raises:
            SessionLimitError: If there is no such branch.
        """
        self.current = self._branch(identifier)

    def close(self, identifier: int) -> None:
        """Forget a branch.

        Raises:
            SessionLimitError: If there is no such branch, or it is the one being played.
        """
        if self._branch(identifier) is self.current:
            raise SessionLimitError("the branch being played cannot be closed; switch first")
        del self._branches[identifier]

    def log(self) -> RolloutLog:
        """Return the log that replays the current branch."""
        return self.current.session.log()

    def _branch(self, identifier: int) -> Branch:
        if identifier not in self._branches:
            known = ", ".join(str(number) for number in self._branches)
            raise SessionLimitError(f"there is no branch {identifier}; open are {known}")
        return self._branches[identifier]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """A step that a player wants to take."""

    player: Player
    action: np.ndarray
    """Settings of the groups."""
    following: Sequence[np.ndarray] = ()
    """The actions after it where they are known; see `Session.step`."""

    def take(self) -> Frame:
        """Take it; return the next frame."""
        return self.player.step(self.action, self.following)


def advance_players(wishes: Sequence[Wish]) -> None:
    """Let players of one world take a step each, in one batch; `Player.show` gives the frames.

    If one fails, all are where they were.

    Raises:
        ActionError: If an action does not fit.
    """
    encode = wishes[0].player.world.action_tokenizer.encode
    known = [
        torch.from_numpy(np.stack([encode(np.asarray(a)) for a in (wish.action, *wish.following)]))
        for wish in wishes
    ]
    advance_together([wish.player.current.session for wish in wishes], known)
