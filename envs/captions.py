"""What can be said about frames of crafter and of car racing, from what the simulators know."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from envs.crafter import PLAYER_COLUMN, PLAYER_ROW, TILE_CLASSES, VIEW_COLUMNS, VIEW_ROWS
from worldgen.data.captions import Caption, Fact
from worldgen.errors import DataError

__all__ = ["NARRATORS", "CaptionWriter", "Narrator", "Statement", "find_narrator"]

_Columns = Mapping[str, NDArray[Any]]

_SHARES = (0.4, 0.45, 0.15)
"""How many captions make one, two and three statements."""
_CHANGE = 1 / 8
"""Probability of another caption for a frame of which that of the frame before is still true."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Something that is true of some frames.

    Attributes:
        phrases: Ways to say it; no other statement says it like that.
        facts: What makes it true, together.
        topics: A caption says only one thing on a topic.
        weight: How readily it is said, among what else is true of the frame.
    """

    phrases: tuple[str, ...]
    facts: tuple[Fact, ...]
    topics: tuple[str, ...]
    weight: float


@dataclass(frozen=True, kw_only=True)
class Narrator:
    """Everything that can be said about the frames of one environment.

    Attributes:
        needs: Columns of the recording that it speaks of; by them a recording is known.
        statements: In the order in which a caption makes them.
        seen: Takes the columns of an episode and its frames per second, returns those that facts
            speak of.
    """

    needs: tuple[str, ...]
    statements: tuple[Statement, ...]
    seen: Callable[[_Columns, float], _Columns]

    def true_statements(
        self, columns: _Columns, frames_per_second: float
    ) -> Bool[np.ndarray, "frame statement"]:
        """Return which statements are true of each frame of an episode."""
        seen = self.seen(columns, frames_per_second)
        known: dict[str, NDArray[np.bool_]] = {}

        def holds(fact: Fact) -> NDArray[np.bool_]:
            key = repr(fact)
            if key not in known:
                known[key] = _holds_everywhere(fact, seen)
            return known[key]

        return np.stack(
            [
                np.logical_and.reduce([holds(fact) for fact in statement.facts])
                for statement in self.statements
            ],
            axis=1,
        )


class CaptionWriter:
    """Chooses a true sentence for every frame, and numbers the sentences.

    How many statements a frame gets, which ones and in which words is drawn; what is rarely to be
    seen is said more often than its share where it is. A sentence may stay while it is true. Once
    there are `most_captions` different ones, a frame gets one that is known already, made of fewer
    statements where need be.

    Args:
        narrator: Knows what can be said.
        most_captions: Different ones; the sentences of one statement come beyond that number.
    """

    def __init__(self, narrator: Narrator, most_captions: int = 18_000) -> None:
        self._narrator = narrator
        self._most_captions = most_captions
        self._numbers: dict[str, int] = {}
        self._captions: list[Caption] = []

    @property
    def captions(self) -> tuple[Caption, ...]:
        """Those that were chosen so far."""
        return tuple(self._captions)

    def write(
        self, columns: _Columns, frames_per_second: float, generator: np.random.Generator
    ) -> NDArray[np.int32]:
        """Return the number of a caption for each frame of an episode, -1 where nothing is true.

        Args:
            columns: Of the episode.
            frames_per_second: Of the recording.
            generator: Makes all choices.
        """
        statements = self._narrator.statements
        true = self._narrator.true_statements(columns, frames_per_second)
        weights = np.array([statement.weight for statement in statements])
        # The largest of logarithms with Gumbel noise is a draw by weight (arXiv:1411.0030).
        scores = np.log(weights) + generator.gumbel(size=true.shape)
        scores[~true] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")
        lengths = 1 + generator.choice(len(_SHARES), size=len(true), p=_SHARES)
        words = generator.random((len(true), len(_SHARES) + 1))
        changes = generator.random(len(true)) < _CHANGE
        numbers = np.full(len(true), -1, np.int32)
        said: list[int] = []
        for frame, length in enumerate(lengths):
            if said and not changes[frame] and true[frame, said].all():
                numbers[frame] = numbers[frame - 1]
                continue
            said = self._choose(order[frame], int(true[frame].sum()), int(length))
            while said:
                number = self._number(said, words[frame])
                if number is not None:
                    numbers[frame] = number
                    break
                said.pop()
        return numbers

    def _choose(self, order: NDArray[np.intp], num_true: int, length: int) -> list[int]:
        """Return the first statements in this order that are true and on different topics."""
        chosen: list[int] = []
        topics: set[str] = set()
        for index in order[:num_true].tolist():
            statement = self._narrator.statements[index]
            if topics.isdisjoint(statement.topics):
                chosen.append(index)
                topics.update(statement.topics)
                if len(chosen) == length:
                    break
        return chosen

    def _number(self, chosen: Sequence[int], words: Float[np.ndarray, " word"]) -> int | None:
        """Return the number of the sentence that makes these statements, None if none is left."""
        pairs = sorted(zip(chosen, words[1:], strict=False))
        statements = [self._narrator.statements[index] for index, _ in pairs]
        said = [
            statement.phrases[int(word * len(statement.phrases))]
            for statement, (_, word) in zip(statements, pairs, strict=True)
        ]
        joined = " and " if len(said) == 2 and words[0] < 0.5 else ", "
        text = joined.join(said)
        facts = tuple(fact for statement in statements for fact in statement.facts)
        number = self._numbers.get(text)
        if number is not None:
            assert self._captions[number].facts == facts, f"{text!r} says two things"
            return number
        if len(chosen) > 1 and len(self._captions) >= self._most_captions:
            return None
        self._numbers[text] = len(self._captions)
        self._captions.append(Caption(text=text, facts=facts))
        return self._numbers[text]


def find_narrator(columns: Sequence[str]) -> Narrator:
    """Return who can speak of a recording.

    Args:
        columns: That the recording has.

    Raises:
        DataError: If nobody can.
    """
    for narrator in NARRATORS.values():
        if set(narrator.needs) <= set(columns):
            return narrator
    needed = "; ".join(f"{name}: {', '.join(each.needs)}" for name, each in NARRATORS.items())
    raise DataError(
        f"nothing to say about columns {', '.join(columns)}; what can be captioned has those of "
        f"{needed}"
    )


def _holds_everywhere(fact: Fact, seen: _Columns) -> NDArray[np.bool_]:
    """Return `fact_holds` of every frame, all at once."""
    if fact["kind"] == "values":
        values = seen[fact["column"]]
        low = -math.inf if fact["low"] is None else fact["low"]
        high = math.inf if fact["high"] is None else fact["high"]
        return np.asarray((values >= low) & (values < high))
    numbers = [TILE_CLASSES.index(name) for name in fact["classes"]]
    region = seen["tiles"][:, slice(*fact["rows"]), slice(*fact["columns"])]
    return np.asarray(np.isin(region, numbers).sum(axis=(1, 2)) >= fact["least"])


# --- crafter: what is where on the map of 6 x 8 tiles, seen from the player -------------------

_ABOVE, _BELOW = (0, PLAYER_ROW), (PLAYER_ROW + 1, VIEW_ROWS)
_LEFT, _RIGHT = (0, PLAYER_COLUMN), (PLAYER_COLUMN + 1, VIEW_COLUMNS)
_ALL_ROWS, _ALL_COLUMNS = (0, VIEW_ROWS), (0, VIEW_COLUMNS)
_NEAR_ROWS = (PLAYER_ROW - 1, PLAYER_ROW + 2)
_NEAR_COLUMNS = (PLAYER_COLUMN - 1, PLAYER_COLUMN + 2)
_Range = tuple[int, int]

_SIDES: dict[str, tuple[_Range, _Range]] = {
    "north": (_ABOVE, _ALL_COLUMNS),
    "south": (_BELOW, _ALL_COLUMNS),
    "west": (_ALL_ROWS, _LEFT),
    "east": (_ALL_ROWS, _RIGHT),
}
_CORNERS: dict[str, tuple[_Range, _Range]] = {
    "north-west": (_ABOVE, _LEFT),
    "north-east": (_ABOVE, _RIGHT),
    "south-west": (_BELOW, _LEFT),
    "south-east": (_BELOW, _RIGHT),
}
_AHEAD: dict[str, tuple[str, _Range, _Range]] = {
    "north": ("player-up", (PLAYER_ROW - 1, PLAYER_ROW), (PLAYER_COLUMN, PLAYER_COLUMN + 1)),
    "south": ("player-down", (PLAYER_ROW + 1, PLAYER_ROW + 2), (PLAYER_COLUMN, PLAYER_COLUMN + 1)),
    "west": ("player-left", (PLAYER_ROW, PLAYER_ROW + 1), (PLAYER_COLUMN - 1, PLAYER_COLUMN)),
    "east": ("player-right", (PLAYER_ROW, PLAYER_ROW + 1), (PLAYER_COLUMN + 1, PLAYER_COLUMN + 2)),
}


@dataclass(frozen=True, kw_only=True)
class _Thing:
    """Something on the map: its names, and what much of it is called."""

    name: str
    classes: tuple[str, ...]
    weight: float
    """About one over the share of frames in which it can be seen, as recorded by the explorer."""
    many: tuple[str, ...] = ()
    least_of_many: int = 0
    placed: bool = True
    """Whether it is worth saying in which direction it is."""
    ground: bool = False


_THINGS = (
    _Thing(
        name="water",
        classes=("water",),
        weight=4.0,
        many=("a lot of water", "a big lake"),
        least_of_many=14,
        ground=True,
    ),
    _Thing(
        name="a tree",
        classes=("tree",),
        weight=2.0,
        many=("many trees", "a forest"),
        least_of_many=6,
    ),
    _Thing(name="a table", classes=("table",), weight=10.0),
    _Thing(
        name="sand",
        classes=("sand",),
        weight=1.5,
        many=("a lot of sand", "a wide beach"),
        least_of_many=12,
        ground=True,
    ),
    _Thing(
        name="grass",
        classes=("grass",),
        weight=1.0,
        many=("a wide meadow", "grass nearly everywhere"),
        least_of_many=36,
        placed=False,
        ground=True,
    ),
    _Thing(
        name="stone",
        classes=("stone",),
        weight=1.0,
        many=("a lot of stone", "a mountain"),
        least_of_many=20,
        ground=True,
    ),
    _Thing(
        name="a path",
        classes=("path",),
        weight=0.6,
        many=("a big cave", "a wide tunnel"),
        least_of_many=16,
        ground=True,
    ),
    _Thing(
        name="coal",
        classes=("coal",),
        weight=3.0,
        many=("a lot of coal",),
        least_of_many=4,
    ),
    _Thing(
        name="iron",
        classes=("iron",),
        weight=9.0,
        many=("a lot of iron",),
        least_of_many=3,
    ),
    _Thing(name="a diamond", classes=("diamond",), weight=25.0),
    _Thing(
        name="lava",
        classes=("lava",),
        weight=6.0,
        many=("a lot of lava", "a lake of lava"),
        least_of_many=5,
    ),
    _Thing(
        name="a cow",
        classes=("cow",),
        weight=3.0,
        many=("many cows", "a herd of cows"),
        least_of_many=3,
    ),
    _Thing(name="a zombie", classes=("zombie",), weight=15.0),
    _Thing(name="a skeleton", classes=("skeleton",), weight=3.0),
    _Thing(
        name="an arrow",
        classes=("arrow-left", "arrow-right", "arrow-up", "arrow-down"),
        weight=3.0,
    ),
    _Thing(name="the edge of the world", classes=("outside",), weight=4.0),
)


def _tiles(classes: Sequence[str], rows: _Range, columns: _Range, least: int = 1) -> Fact:
    return {
        "kind": "tiles",
        "classes": list(classes),
        "rows": list(rows),
        "columns": list(columns),
        "least": least,
    }


def _facing(player: str) -> Fact:
    own_rows, own_columns = (PLAYER_ROW, PLAYER_ROW + 1), (PLAYER_COLUMN, PLAYER_COLUMN + 1)
    return _tiles((player,), own_rows, own_columns)


def _about(thing: _Thing) -> list[Statement]:
    """Return all that can be said of a thing."""
    name, classes, topics = thing.name, thing.classes, (thing.name,)
    said: list[Statement] = []

    def say(phrases: Sequence[str], *facts: Fact, weight: float, also: str = "") -> None:
        said.append(
            Statement(
                phrases=tuple(phrases),
                facts=facts,
                topics=(*topics, also) if also else topics,
                weight=weight * thing.weight,
            )
        )

    if thing.many:
        say(
            thing.many,
            _tiles(classes, _ALL_ROWS, _ALL_COLUMNS, thing.least_of_many),
            weight=2.0,
        )
    if thing.placed:
        for side, region in _SIDES.items():
            phrases = (f"{name} to the {side}", f"{name} {side} of you")
            say(phrases, _tiles(classes, *region), weight=1.0)
        for corner, region in _CORNERS.items():
            say((f"{name} to the {corner}",), _tiles(classes, *region), weight=0.5)
        say((f"{name} in sight",), _tiles(classes, _ALL_ROWS, _ALL_COLUMNS), weight=0.4)
    if thing.ground:
        around = _tiles(classes, _NEAR_ROWS, _NEAR_COLUMNS, 7)
        say((f"surrounded by {name}",), around, weight=2.0)
    else:
        near = _tiles(classes, _NEAR_ROWS, _NEAR_COLUMNS)
        say((f"standing beside {name}", f"{name} beside you"), near, weight=1.5)
    for side, (player, rows, columns) in _AHEAD.items():
        ahead = (_facing(player), _tiles(classes, rows, columns))
        say((f"facing {name} to the {side}",), *ahead, weight=4.0, also="facing")
    if name in ("water", "a tree"):
        others = [other for other in TILE_CLASSES if other not in classes]
        nowhere = _tiles(others, _ALL_ROWS, _ALL_COLUMNS, VIEW_ROWS * VIEW_COLUMNS)
        say((f"no {name.removeprefix('a ')} in sight",), nowhere, weight=0.1)
    return said


def _crafter_statements() -> tuple[Statement, ...]:
    facing = [
        Statement(
            phrases=(f"facing {side}", f"looking {side}"),
            facts=(_facing(player),),
            topics=("facing",),
            weight=4.0,
        )
        for side, (player, _, _) in _AHEAD.items()
    ]
    return (*(statement for thing in _THINGS for statement in _about(thing)), *facing)


# --- car racing: how it drives, and how the drive goes on -----------------------------------------

_LOOK_AHEAD = 1.5
"""Seconds; about as far as the picture shows the road at a moderate speed."""
_SPINNING = 3.0
"""Radians a second; beyond this the drive no longer tells how the road bends."""


def _with_heading_change(columns: _Columns, frames_per_second: float) -> _Columns:
    """Add by how much the heading changes within the next 1.5 s, NaN where the car leaves the road.

    As long as all wheels stay on the road, the car turns as the road does.
    """
    steps = round(_LOOK_AHEAD * frames_per_second)
    yaw = columns["yaw"]
    on_road = (columns["wheels_on_road"] == 4) & (np.abs(columns["yaw_rate"]) < _SPINNING)
    change = np.full(len(yaw), np.nan)
    if len(yaw) > steps:
        windows = np.lib.stride_tricks.sliding_window_view(on_road, steps + 1)
        change[:-steps] = np.where(windows.all(axis=1), yaw[steps:] - yaw[:-steps], np.nan)
        # A car that hardly moves does not come to the bend.
        change[columns["speed"] < 5.0] = np.nan
    return {**columns, "heading_change": change}


def _value(column: str, low: float | None, high: float | None) -> Fact:
    return {"kind": "values", "column": column, "low": low, "high": high}


def _car_statements() -> tuple[Statement, ...]:
    listed: tuple[tuple[tuple[str, ...], Fact, str, float], ...] = (
        (("a sharp left turn ahead", "the road bends sharply to the left"),
         _value("heading_change", 0.9, None), "road", 4.0),
        (("a left turn ahead", "the road bends to the left"),
         _value("heading_change", 0.35, 0.9), "road", 2.5),
        (("a straight road ahead", "the road goes straight on"),
         _value("heading_change", -0.12, 0.12), "road", 2.5),
        (("a right turn ahead", "the road bends to the right"),
         _value("heading_change", -0.9, -0.35), "road", 3.0),
        (("a sharp right turn ahead", "the road bends sharply to the right"),
         _value("heading_change", None, -0.9), "road", 5.0),
        (("on the road", "all wheels on the road"),
         _value("wheels_on_road", 4, None), "ground", 0.7),
        (("partly off the road", "some wheels on the grass"),
         _value("wheels_on_road", 1, 4), "ground", 3.0),
        (("on the grass", "off the road"), _value("wheels_on_road", None, 1), "ground", 1.0),
        (("standing still", "the car stands"), _value("speed", None, 0.5), "speed", 1.5),
        (("driving slowly", "at low speed"), _value("speed", 0.5, 15.0), "speed", 1.5),
        (("driving at medium speed", "at medium speed"), _value("speed", 15.0, 35.0), "speed", 0.8),
        (("driving fast", "at high speed"), _value("speed", 35.0, 50.0), "speed", 1.2),
        (("driving very fast", "at top speed"), _value("speed", 50.0, None), "speed", 3.0),
        (("spinning to the left", "skidding round to the left"),
         _value("yaw_rate", 3.0, None), "turn", 2.5),
        (("turning left", "steering to the left"), _value("yaw_rate", 0.5, 3.0), "turn", 1.0),
        (("not turning", "heading straight"), _value("yaw_rate", -0.1, 0.1), "turn", 0.5),
        (("turning right", "steering to the right"), _value("yaw_rate", -3.0, -0.5), "turn", 1.0),
        (("spinning to the right", "skidding round to the right"),
         _value("yaw_rate", None, -3.0), "turn", 2.5),
    )  # fmt: skip
    return tuple(
        Statement(phrases=phrases, facts=(fact,), topics=(topic,), weight=weight)
        for phrases, fact, topic, weight in listed
    )


NARRATORS = {
    "crafter": Narrator(
        needs=("tiles", "facing"),
        statements=_crafter_statements(),
        seen=lambda columns, frames_per_second: columns,
    ),
    "car_racing": Narrator(
        needs=("yaw", "yaw_rate", "speed", "wheels_on_road"),
        statements=_car_statements(),
        seen=_with_heading_change,
    ),
}
"""By name of the environment."""
