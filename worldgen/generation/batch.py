"""Sessions that advance together, each to the very ids that it gets alone."""

from collections.abc import Hashable, Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.generation.pixels import decode_together
from worldgen.generation.session import Session
from worldgen.generation.turns import Drawn, Turn, draw_grids
from worldgen.generation.wrapped import WrappedModel
from worldgen.models.base import WorldModel

__all__ = ["LARGEST_BATCH", "advance_together", "batches_exactly", "draw_together"]

LARGEST_BATCH = 8
"""Rows of a batch. On a CPU there is little to gain beyond, and the first row waits for the last."""

_Verdicts = dict[Hashable, bool]
_verdicts: WeakKeyDictionary[WorldModel, _Verdicts] = WeakKeyDictionary()


def advance_together(
    sessions: Sequence[Session], known: Sequence[Int[Tensor, "action slot"]]
) -> None:
    """Let each session take a step, as its `advance` does; grids and pixels come in batches.

    Sessions may be of any worlds and at any time; what each draws depends on nobody else. Products
    of a batch may be rounded otherwise than those of one row, and a rounding can tip a draw. So a
    batch is used where it changes no bit: that depends on the machine and on shapes alone, and is
    found out the first time that a shape is met. Where it does not hold, rows are drawn one by one.

    If one fails, all stay where they were.

    Args:
        sessions: Each at most once.
        known: For each the action tokens of its step, and of the steps after it that are known.
    """
    turns = [session.turn(each) for session, each in zip(sessions, known, strict=True)]
    grids = iter(draw_together([turn for turn in turns if turn is not None]))
    for session, turn in zip(sessions, turns, strict=True):
        session.take(turn, None if turn is None else next(grids))
    decode_together([session.grid_to_show for session in sessions])


def draw_together(
    turns: Sequence[Turn], *, largest_batch: int = LARGEST_BATCH, exactly: bool = True
) -> list[Drawn]:
    """Draw the grids of turns, those of one company in batches.

    If one fails, all caches are left as they were.

    Args:
        turns: Of a cache each.
        largest_batch: Rows of a batch.
        exactly: Draw one by one what a batch would round otherwise.
    """
    draw = _draw if exactly else draw_grids
    companies: dict[Hashable, list[int]] = {}
    for number, turn in enumerate(turns):
        company = turn.company
        companies.setdefault((company, None if company else number), []).append(number)
    drawn: dict[int, Drawn] = {}
    try:
        for members in companies.values():
            for first in range(0, len(members), largest_batch):
                batch = members[first : first + largest_batch]
                drawn.update(zip(batch, draw([turns[number] for number in batch]), strict=True))
    except BaseException:
        _rewind([turns[number] for number in drawn])
        raise
    return [drawn[number] for number in range(len(turns))]


def batches_exactly(
    sessions: Sequence[Session], known: Sequence[Int[Tensor, "action slot"]]
) -> bool:
    """Whether a batch of these sessions comes out as each of them does alone, to the last bit.

    Nothing advances by asking.

    Args:
        sessions: Each at most once; none that has its next frame already.
        known: As for `advance_together`.
    """
    turns = [session.turn(each) for session, each in zip(sessions, known, strict=True)]
    given = [turn for turn in turns if turn is not None]
    company = given[0].company
    if company is None or any(turn.company != company for turn in given):
        return False
    if _verdict(given) is None and _compare(given) is not None:
        _rewind(given)
    return bool(_verdict(given))


def _draw(turns: Sequence[Turn]) -> list[Drawn]:
    if len(turns) == 1:
        return draw_grids(turns)
    verdict = _verdict(turns)
    if verdict is None:
        drawn = _compare(turns)
        if drawn is not None:
            return drawn
        verdict = False
    return draw_grids(turns) if verdict else _draw_one_by_one(turns)


def _draw_one_by_one(turns: Sequence[Turn], model: WorldModel | None = None) -> list[Drawn]:
    drawn: list[Drawn] = []
    try:
        for turn in turns:
            drawn += draw_grids([turn], model)
    except BaseException:
        _rewind(turns[: len(drawn)])
        raise
    return drawn


def _verdict(turns: Sequence[Turn]) -> bool | None:
    """Return whether a batch of that shape is as exact as single rows; None if that is unknown."""
    return _verdicts.get(turns[0].model, {}).get(_shape(turns))


def _shape(turns: Sequence[Turn]) -> Hashable:
    return turns[0].company, len(turns), torch.get_num_threads()


def _compare(turns: Sequence[Turn]) -> list[Drawn] | None:
    """Draw rows one by one and in a batch; return what came out if the two are equal.

    All that was asked and remembered is compared: of a hundred thousand numbers some would differ
    if a product was formed in another order. Ids alone would agree nearly always.
    """
    # Read now: the caches move.
    model, shape = turns[0].model, _shape(turns)
    alone = [_Witness(model) for _ in turns]
    expected: list[Drawn] = []
    kept: list[list[Tensor]] = []
    try:
        for turn, witness in zip(turns, alone, strict=True):
            expected += draw_grids([turn], witness)
            kept.append(_remembered(turn))
    finally:
        _rewind(turns[: len(expected)])
    together = _Witness(model)
    drawn = draw_grids(turns, together)
    same = all(
        torch.equal(own.ids, row.ids)
        and _all_equal([answer[number] for answer in together.answers], witness.answers)
        and _all_equal(_remembered(turn), memory)
        for number, (own, row, turn, witness, memory) in enumerate(
            zip(expected, drawn, turns, alone, kept, strict=True)
        )
    )
    _verdicts.setdefault(model, {})[shape] = same
    if not same:
        _rewind(turns)
    return drawn if same else None


def _rewind(turns: Sequence[Turn]) -> None:
    """Take back a frame of each cache."""
    for turn in turns:
        turn.cache.rewind_to(turn.cache.num_frames - 1)


def _remembered(turn: Turn) -> list[Tensor]:
    """Return copies of what the caches' layers will see of the frames so far."""
    return [
        part.clone()
        for layer in range(len(turn.cache.windows))
        for part in turn.cache.read_before(layer)
    ]


def _all_equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


class _Witness(WrappedModel):
    """A world model that keeps all of its answers."""

    def __init__(self, inner: WorldModel) -> None:
        super().__init__(inner)
        self.answers: list[Tensor] = []
        """Logits, those of single rows without their batch."""

    def answer(
        self, logits: Float[Tensor, "batch group codebook"], cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        self.answers.append(logits[0] if len(logits) == 1 else logits)
        return logits
