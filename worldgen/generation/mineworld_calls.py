"""The passes in which MineWorld's own decoders draw frames, written down before any is made.

Everything stands in one sequence of steps `[visual tokens of the frame | action tokens]`. A token is
named by its position there, whether it is given or still to be drawn. So what is fed in a pass, at
which places, and which cells are drawn from it are numbers that only depend on the grid.

Source: diagonal decoding (arXiv:2503.14070), as the released code of MineWorld has it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from worldgen.errors import ConfigError
from worldgen.layout import SequenceLayout

__all__ = ["Call", "clip_calls", "context_call", "live_calls", "live_frame_calls", "video_calls"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One pass of the model."""

    positions: tuple[int, ...]
    """Where the tokens stand that are fed."""
    sources: tuple[int, ...]
    """For each of them the position whose id it has: its own, or for a stand-in another one."""
    drawn: tuple[int, ...] = ()
    """Positions of the cells that are drawn from the outputs."""
    asked_by: tuple[int, ...] = ()
    """For each of them the index of the fed token whose output predicts it."""


def clip_calls(layout: SequenceLayout, num_frames: int, window: int | None = None) -> list[Call]:
    """Return the passes of the offline decoder: some frames after one given frame and its action.

    The last cell of a frame is fed together with the next action. A row's end that is not drawn
    when the next row starts is stood in for by that cell of the given frame.

    Args:
        layout: Of a step.
        num_frames: To draw.
        window: Calls by which a row starts after the one above, at most as many as there are
            columns; none for raster order.

    Raises:
        ConfigError: If the window does not fit.
    """
    _check(layout, window)
    opening = range(layout.tokens_per_step)
    feeds: list[_Feed] = []
    for frame in range(1, num_frames + 1):
        first_call = (frame - 1) * _calls_of_frame(layout, window)
        feeds += _frame(layout, frame, first_call, opening, window, from_first_frame=True)
        # The last cell, then the actions.
        opening = range(feeds[-1].drawn, (frame + 1) * layout.tokens_per_step)
    return _merge(feeds)


def video_calls(layout: SequenceLayout, num_frames: int, window: int) -> list[Call]:
    """Return the passes of the decoder in which the rows of all frames are one staircase.

    The first row of a frame starts `window` calls after the last one of the frame before, so all
    actions must be known. The last cell of a frame is never fed. Otherwise as `clip_calls`.

    Args:
        layout: Of a step.
        num_frames: To draw.
        window: Calls by which a row starts after the one above.

    Raises:
        ConfigError: If the window does not fit.
    """
    _check(layout, window)
    opening = range(layout.tokens_per_step)
    feeds: list[_Feed] = []
    for frame in range(1, num_frames + 1):
        first_call = (frame - 1) * layout.rows * window
        feeds += _frame(layout, frame, first_call, opening, window, from_first_frame=True)
        opening = _actions(layout, frame)
    return _merge(feeds)


def live_calls(
    layout: SequenceLayout, num_context: int, num_frames: int, window: int | None = None
) -> list[Call]:
    """Return the passes of the interactive decoder: `context_call`, then `live_frame_calls`.

    Args:
        layout: Of a step.
        num_context: Frames that are given, with the actions between them.
        num_frames: To draw.
        window: As for `clip_calls`.

    Raises:
        ConfigError: If the window does not fit.
    """
    calls = [context_call(layout, num_context)]
    for frame in range(num_context, num_context + num_frames):
        calls += live_frame_calls(layout, frame, window)
    return calls


def context_call(layout: SequenceLayout, num_context: int) -> Call:
    """Return the pass that reads frames and the actions between them; nothing is drawn from it."""
    positions = tuple(range(num_context * layout.tokens_per_step - layout.num_action_tokens))
    return Call(positions=positions, sources=positions)


def live_frame_calls(layout: SequenceLayout, frame: int, window: int | None = None) -> list[Call]:
    """Return the passes of the interactive decoder for one frame.

    First the action before it is fed, last its last cell, from which nothing is drawn. A row's end
    that is not drawn when the next row starts is stood in for by the newest id of its row.

    Args:
        layout: Of a step.
        frame: Counted from the start of the sequence, at least 1.
        window: As for `clip_calls`.

    Raises:
        ConfigError: If the window does not fit.
    """
    _check(layout, window)
    opening = _actions(layout, frame - 1)
    calls = _merge(_frame(layout, frame, 0, opening, window, from_first_frame=False))
    last = calls[-1].drawn[-1:]
    return [*calls, Call(positions=last, sources=last)]


@dataclass(frozen=True)
class _Feed:
    """What one row feeds in one call, and the cell that its last output gives."""

    call: int
    positions: tuple[int, ...]
    sources: tuple[int, ...]
    drawn: int


def _frame(
    layout: SequenceLayout,
    frame: int,
    first_call: int,
    opening: Iterable[int],
    window: int | None,
    *,
    from_first_frame: bool,
) -> Iterator[_Feed]:
    """Yield what draws the cells of a frame: `opening` the first one, each next the one before it."""
    first = frame * layout.tokens_per_step
    opened = tuple(opening)
    yield _Feed(first_call, opened, opened, first)
    lag = layout.columns if window is None else window
    for cell in range(1, layout.num_cells):
        row, column = divmod(cell, layout.columns)
        source = place = first + cell - 1
        if column == 0 and window is not None:
            newest = first + (row - 1) * layout.columns + window - 1
            source = cell - 1 if from_first_frame else newest
        yield _Feed(first_call + row * lag + column, (place,), (source,), first + cell)


def _merge(feeds: Iterable[_Feed]) -> list[Call]:
    """Return the calls in their order; rows that meet in a call follow each other from the top."""
    together: defaultdict[int, list[_Feed]] = defaultdict(list)
    for feed in feeds:
        together[feed.call].append(feed)
    calls = []
    for _, rows in sorted(together.items()):
        positions = [position for row in rows for position in row.positions]
        asked_by = [positions.index(row.positions[-1]) for row in rows]
        calls.append(
            Call(
                positions=tuple(positions),
                sources=tuple(source for row in rows for source in row.sources),
                drawn=tuple(row.drawn for row in rows),
                asked_by=tuple(asked_by),
            )
        )
    return calls


def _calls_of_frame(layout: SequenceLayout, window: int | None) -> int:
    lag = layout.columns if window is None else window
    return layout.columns + (layout.rows - 1) * lag


def _actions(layout: SequenceLayout, frame: int) -> range:
    first = frame * layout.tokens_per_step + layout.num_cells
    return range(first, first + layout.num_action_tokens)


def _check(layout: SequenceLayout, window: int | None) -> None:
    if window is not None and not 1 <= window <= layout.columns:
        raise ConfigError(
            f"the window of a diagonal must lie in 1 ... {layout.columns}, the columns of the "
            f"grid, got {window}: a row starts when that many cells of the row above are drawn"
        )
