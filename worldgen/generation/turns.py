"""One grid to draw: of one session, or those of many sessions in one batch."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from worldgen.generation.random import frame_uniforms
from worldgen.generation.refinement import RefinementDecoder
from worldgen.generation.scheduled import Decoder, ScheduleDecoder
from worldgen.models.base import WorldModel
from worldgen.models.conditions import StepConditions, stack_conditions
from worldgen.nn.cache import FrameCache, SeenFrames
from worldgen.nn.far import FarTokens

__all__ = ["CacheRows", "Drawn", "Turn", "draw_grids"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A step of one session whose grid is yet to be drawn."""

    model: WorldModel
    decoder: Decoder
    cache: FrameCache
    """Of the steps before."""
    visual_ids: Int[Tensor, " cell"]
    """Of the current grid."""
    action_ids: Int[Tensor, " slot"]
    """Taken in it."""
    seed: int
    number: int
    """Of the grid to draw: 0 is the one that a session begins with."""
    conditions: StepConditions | None = None
    """What the step is told beside frame and action, of this one row and step."""

    @property
    def company(self) -> Hashable:
        """Equal for turns that can be drawn in one batch; None if this one is drawn alone.

        They ask one model the same questions in the same order, and see equally many frames, so
        that no row of a batch has to be filled up. A decoder that asks again where it guessed
        wrong asks as often as the unluckiest row of a batch, of parts that depend on the others.
        """
        cache, decoder = self.cache, self.decoder
        if type(cache) is not FrameCache:
            return None
        if not isinstance(decoder, ScheduleDecoder | RefinementDecoder):
            return None
        longest = cache.config.sink + max(cache.windows) + cache.config.far_frames
        seen = min(cache.num_frames, longest)
        told = None if self.conditions is None else self.conditions.kinds
        kind = type(decoder), decoder.name, decoder.sampling
        return id(self.model), kind, cache.config, cache.batch, seen, told


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A grid, and what it took."""

    ids: Int[Tensor, " cell"]
    """On the CPU."""
    calls: int
    """Calls of the model, `predict` and `score`."""
    rows: int = 1
    """Of the batch that it was drawn in, for which the calls were made."""


class CacheRows:
    """Caches as the rows of a batch; see `worldgen.nn.cache.StepCache`.

    They stay where they are, and go their own ways afterwards: forked, rewound, dropped. No session
    has to know of another. What it costs is a copy of what is read, as one memory in pages that all
    sessions share would cost too.

    A cache has one sequence, or the branches of one that is guided: the rows are then the first
    branch of every cache, the second one of every cache, and so on, as a guided model asks for them.

    Args:
        caches: With as many branches each, and such that every layer sees equally many frames.
    """

    def __init__(self, caches: Sequence[FrameCache]) -> None:
        self._caches = caches

    @property
    def windows(self) -> tuple[int, ...]:
        """For each layer, how many frames (the current one included) it looks at."""
        return self._caches[0].windows

    @property
    def frame_numbers(self) -> Int[Tensor, " batch"]:
        """Number of the frame that each row writes next."""
        return _rows([cache.frame_numbers for cache in self._caches])

    def write_and_read(
        self,
        layer: int,
        key: Float[Tensor, "batch head token width"],
        value: Float[Tensor, "batch head token width"],
        far: FarTokens | None = None,
    ) -> SeenFrames:
        """Store the current frame's keys and values and return those that it sees in a layer."""
        rows = list(zip(self._of_each(key), self._of_each(value), strict=True))
        few: list[FarTokens | None] = [None] * len(rows)
        if far is not None:
            few = [FarTokens(*row) for row in zip(*map(self._of_each, far), strict=True)]
        return _stack(
            [
                cache.write_and_read(layer, *row, far_row)
                for cache, row, far_row in zip(self._caches, rows, few, strict=True)
            ]
        )

    def read_before(self, layer: int) -> SeenFrames:
        """Return the keys and values that the frame to come sees, itself not included."""
        return _stack([cache.read_before(layer) for cache in self._caches])

    def ages_before(self, layer: int) -> Int[Tensor, " token"]:
        """Return how many frames each token of `read_before` lies behind the frame to come."""
        # All rows see equally many frames, of the same ages: those of the sink have none.
        return self._caches[0].ages_before(layer)

    def note(self, ids: Int[Tensor, "batch note"]) -> None:
        """Keep whole numbers beside the current frame."""
        for cache, row in zip(self._caches, self._of_each(ids), strict=True):
            cache.note(row)

    def noted_before(self) -> Int[Tensor, "batch note"] | None:
        """Return what was noted beside the last frame; None before the first one."""
        rows = [row for cache in self._caches if (row := cache.noted_before()) is not None]
        return _rows(rows) if rows else None

    def advance(self) -> None:
        """Close the current frame of every row."""
        for cache in self._caches:
            cache.advance()

    def _of_each(self, rows: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "cache branch ..."]:
        """Return the rows of each cache."""
        return rearrange(rows, "(branch cache) ... -> cache branch ...", cache=len(self._caches))


def draw_grids(turns: Sequence[Turn], model: WorldModel | None = None) -> list[Drawn]:
    """Observe the step of every turn and draw the grid that follows, in one batch.

    Every row has its own world time, action and random numbers. If that fails, all caches are left
    as they were.

    Args:
        turns: At least one; of one company.
        model: Asked in place of that of the turns.
    """
    first = turns[0]
    model = model or first.model
    caches = [turn.cache for turn in turns]
    before = [cache.num_frames for cache in caches]
    visual_ids = torch.stack([turn.visual_ids for turn in turns])
    action_ids = torch.stack([turn.action_ids for turn in turns])
    seeds, numbers = [turn.seed for turn in turns], [turn.number for turn in turns]
    conditions = stack_conditions([turn.conditions for turn in turns])
    try:
        cache = caches[0] if len(caches) == 1 else CacheRows(caches)
        draft = model.observe(cache, visual_ids, action_ids, conditions)
        uniforms = frame_uniforms(seeds, numbers, model.layout.num_cells)
        ids = first.decoder.draw_frame(model, draft, uniforms).cpu()
    except BaseException:
        for cache, num_frames in zip(caches, before, strict=True):
            cache.rewind_to(num_frames)
        raise
    return [Drawn(ids=row, calls=draft.calls, rows=len(ids)) for row in ids]


def _stack(seen: Sequence[SeenFrames]) -> SeenFrames:
    return SeenFrames(_rows([each.keys for each in seen]), _rows([each.values for each in seen]))


def _rows(of_caches: Sequence[Shaped[Tensor, "branch ..."]]) -> Shaped[Tensor, "batch ..."]:
    """Return what belongs to the caches as rows of a batch."""
    return rearrange(list(of_caches), "cache branch ... -> (branch cache) ...")
