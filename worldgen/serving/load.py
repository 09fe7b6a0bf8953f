"""Chooses a decoding order for a drive that opens: the best one that the machine keeps up with."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

from worldgen.pipeline import World
from worldgen.serving.player import Player

__all__ = ["Load"]

_STEPS: Final = 32
"""A frame costs the mean of so many; older ones say little about the machine now."""
_RECENT: Final = 5.0
"""Seconds without a step after which a player is not counted: he has paused, or left the room."""
_FULL: Final = 0.9
"""Share of the model thread's time that is given away; the rest is for starts, rewinds, replays."""


class Load:
    """Knows what a frame costs in each decoding order, and who plays.

    A drive gets the best order with which all who play, its own player among them, get as many
    frames a second as their worlds have: what a frame costs, times the frames a second, summed over
    the players, is a share of the one thread that draws, and must leave a little of it. If no
    order does that, the drive gets the one whose frames cost least. Which order is better says the
    world's card, see `WorldCard.decoders_by_quality`.

    Drives that are under way keep their order, because a log holds one.

    For the model thread alone.

    Args:
        worlds: By their keys.
        seconds: For each key, the orders to choose from and the seconds that a frame costs in each.
        clock: Seconds that go on evenly.
    """

    def __init__(
        self,
        worlds: Mapping[str, World],
        seconds: Mapping[str, Mapping[str, float]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._keys = {id(world): key for key, world in worlds.items()}
        self._seconds = {
            key: {name: deque([cost], maxlen=_STEPS) for name, cost in costs.items()}
            for key, costs in seconds.items()
        }
        self._stepped: WeakKeyDictionary[Player, float] = WeakKeyDictionary()
        # Of players in orders that are not to choose from, because they asked for them.
        self._own_seconds: WeakKeyDictionary[Player, deque[float]] = WeakKeyDictionary()
        self._chosen: Counter[tuple[str, str]] = Counter()

    def drew(self, player: Player, seconds: float) -> None:
        """Remember what a frame of a player has cost.

        Args:
            player: Has taken a step.
            seconds: That the model thread drew for him.
        """
        self._seconds_of(player).append(seconds)

    def stepped(self, player: Player) -> None:
        """Count a player among those who play."""
        self._stepped[player] = self._clock()

    def choose(self, world: World, leaving: Player | None = None) -> str:
        """Return the name of the order for a drive in a world.

        Args:
            world: One of those given.
            leaving: A player who stops when this drive opens.
        """
        key = self._keys[id(world)]
        taken = sum(
            _mean(self._seconds_of(player)) * player.world.frames_per_second
            for player in self._playing()
            if player is not leaving
        )
        costs = {name: _mean(known) for name, known in self._seconds[key].items()}
        by_quality = [name for name in world.card.decoders_by_quality if name in costs]
        best = next(
            (n for n in by_quality if taken + costs[n] * world.frames_per_second <= _FULL),
            min(by_quality, key=costs.__getitem__),
        )
        self._chosen[key, best] += 1
        return best

    def info(self) -> dict[str, Any]:
        """Return who plays, what frames cost and what was chosen, as JSON can hold it."""
        return {
            "playing": len(self._playing()),
            "milliseconds": {
                key: {name: round(1000 * _mean(known), 1) for name, known in orders.items()}
                for key, orders in self._seconds.items()
            },
            "chosen": {
                key: {name: self._chosen[key, name] for name in orders if self._chosen[key, name]}
                for key, orders in self._seconds.items()
            },
        }

    def _playing(self) -> list[Player]:
        since = self._clock() - _RECENT
        return [player for player, stepped in self._stepped.items() if stepped >= since]

    def _seconds_of(self, player: Player) -> deque[float]:
        shared = self._seconds[self._keys[id(player.world)]].get(player.decoder)
        if shared is not None:
            return shared
        return self._own_seconds.setdefault(player, deque(maxlen=_STEPS))


def _mean(seconds: deque[float]) -> float:
    return sum(seconds) / len(seconds) if seconds else 0.0
