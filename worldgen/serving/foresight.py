"""Draws the next frame of idle players under the action that is likely to come: the last one.

Source: speculation on actions, Next-Frame Diffusion, arXiv:2506.01380. What is played is the same
with and without it, see `Session.look_ahead`.
"""

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from worldgen.generation.session import Session
from worldgen.serving.player import Player, Wish

__all__ = ["Foresight"]


@dataclass(kw_only=True)
class _Habit:
    """How a player steps."""

    answered: float
    """When he got his last frame."""
    idle: float = 0.0
    """Seconds that he let pass before the last step he took."""
    waits: bool = False
    """Whether the next frame may be drawn ahead of him."""
    drawing: float = math.inf
    """Seconds that a frame takes."""
    guess: tuple[Session, int, bytes] | None = None
    """Session, frame and action for which the next frame was drawn."""
    ready: float = 0.0
    """When that was done."""


class Foresight:
    """Keeps the habits of players and uses the time that they leave.

    It looks ahead of a player only if he let at least as much time pass before his last step as a
    frame takes: whoever steps as fast as he can would wait for every wrong guess.

    For the model thread alone.
    """

    def __init__(self) -> None:
        self._habits: WeakKeyDictionary[Player, _Habit] = WeakKeyDictionary()
        self._steps = self._guesses = self._tested = self._hits = self._ready = 0

    def info(self) -> dict[str, Any]:
        """Return counts and rates.

        `guesses` frames were drawn ahead, and `tested` of them were there when a step came; `hits`
        were under its action, and `ready` were hits that were done when it arrived. `hit_rate` is
        of those tested, `ready_rate` of all steps.
        """
        return {
            "steps": self._steps,
            "guesses": self._guesses,
            "tested": self._tested,
            "hits": self._hits,
            "ready": self._ready,
            "hit_rate": self._hits / self._tested if self._tested else None,
            "ready_rate": self._ready / self._steps if self._steps else None,
        }

    @property
    def candidate(self) -> Player | None:
        """The player who has waited longest for a look ahead."""
        waiting = [(habit.answered, id(p), p) for p, habit in self._habits.items() if habit.waits]
        return min(waiting)[2] if waiting else None

    def look(self) -> None:
        """Draw the next frame of one player."""
        player = self.candidate
        if player is None:
            return
        habit = self._habits[player]
        habit.waits = False
        session = player.current.session
        action = player.last_action if player.frame_index else player.rest
        # Whatever is wrong shows again when the step is taken, and then somebody is told.
        with contextlib.suppress(Exception):
            if session.look_ahead(action):
                self._guesses += 1
                habit.guess = (session, player.frame_index, action.tobytes())
                habit.ready = time.perf_counter()

    def judge(self, wish: Wish, arrived: float) -> bool:
        """Count a step that is about to be taken; return whether its frame is there already."""
        player = wish.player
        habit = self._habits.setdefault(player, _Habit(answered=arrived))
        habit.waits = False
        habit.idle = arrived - habit.answered
        if player.current.session.frames_left:
            return True
        self._steps += 1
        guess, habit.guess = habit.guess, None
        if guess is None or guess[:2] != (player.current.session, player.frame_index):
            return False
        self._tested += 1
        hit = guess[2] == np.asarray(wish.action).tobytes()
        self._hits += hit
        self._ready += hit and habit.ready <= arrived
        return hit

    def answered(self, player: Player, end: float, drawing: float | None) -> None:
        """Note that a player has got his frame, and whether to look ahead of him.

        Args:
            player: Who took a step.
            end: When it was taken.
            drawing: Seconds that it took, None if the frame was there already.
        """
        habit = self._habits[player]
        habit.answered = end
        if drawing is not None:
            habit.drawing = drawing
        habit.waits = habit.idle >= habit.drawing and not player.current.session.frames_left
