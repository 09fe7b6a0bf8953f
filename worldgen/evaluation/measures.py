"""Plain measures on arrays: correlation, accuracy of changed tokens, the two baselines of copying."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

__all__ = [
    "at_keys",
    "best_shift",
    "correlation",
    "fraction",
    "scrolled_in",
    "shift_agreement",
    "shifted",
    "token_accuracy",
]


def correlation(measured: np.ndarray, true: np.ndarray) -> float | None:
    """Return Pearson's correlation of two arrays of one shape, None where one does not vary.

    Args:
        measured: Any shape, for example [clip, step].
        true: Same shape.
    """
    a, b = (np.asarray(values, np.float64).ravel() for values in (measured, true))
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a * a).sum() * (b * b).sum()))
    # Rounding alone makes a constant array "vary" by about 1e-16 of its size.
    if spread <= 1e-12:
        return None
    return float((a * b).sum() / spread)


def at_keys(figures: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """Return what stands in nested mappings under one key after the other."""
    found: Any = figures
    for key in keys:
        found = found[key]
    return found


def fraction(hits: np.ndarray | Sequence[bool]) -> float | None:
    """Return the share of true entries, None where there is no entry."""
    values = np.asarray(hits, bool)
    return float(values.mean()) if values.size else None


def shifted(
    grid: Int[np.ndarray, "*leading row column"], rows: int, columns: int
) -> Int[np.ndarray, "*leading row column"]:
    """Return the grid moved down by `rows` and right by `columns`; -1 where nothing came from."""
    height, width = grid.shape[-2:]
    moved = np.full_like(grid, -1)
    target = (
        slice(max(rows, 0), height + min(rows, 0)),
        slice(max(columns, 0), width + min(columns, 0)),
    )
    source = (
        slice(max(-rows, 0), height + min(-rows, 0)),
        slice(max(-columns, 0), width + min(-columns, 0)),
    )
    moved[(..., *target)] = grid[(..., *source)]
    return moved


def best_shift(
    before: Int[np.ndarray, "row column"],
    after: Int[np.ndarray, "row column"],
    *,
    reach: int = 1,
    static_rows: int = 0,
) -> tuple[int, int]:
    """Return the whole-frame shift (rows down, columns right) that best turns one grid into another.

    On a tie the smallest movement wins. Entries of -1 are unknown and not compared.

    Args:
        before: Grid of ids or classes.
        after: The next grid.
        reach: Largest shift tried along each axis.
        static_rows: Rows at the bottom that never scroll and are not compared.
    """
    agreement = shift_agreement(before, after, reach=reach, static_rows=static_rows)
    return max(agreement, key=lambda shift: agreement[shift])


def shift_agreement(
    before: Int[np.ndarray, "row column"],
    after: Int[np.ndarray, "row column"],
    *,
    reach: int = 1,
    static_rows: int = 0,
) -> dict[tuple[int, int], float]:
    """Return for each shift the share of comparable cells that agree, small movements first.

    Arguments as for `best_shift`.
    """
    height = before.shape[0] - static_rows
    before, after = before[:height], after[:height]
    shifts = sorted(
        ((row, column) for row in range(-reach, reach + 1) for column in range(-reach, reach + 1)),
        key=lambda shift: (abs(shift[0]) + abs(shift[1]), shift),
    )
    agreement = {}
    for shift in shifts:
        moved = shifted(before, *shift)
        known = (moved >= 0) & (after >= 0)
        agreement[shift] = float((moved == after)[known].mean()) if known.any() else 0.0
    return agreement


def scrolled_in(
    shape: tuple[int, int], shift: tuple[int, int], *, static_rows: int = 0
) -> Bool[np.ndarray, "row column"]:
    """Return which cells come from outside the frame when it moves by `shift`.

    Args:
        shape: Rows and columns of the grid.
        shift: Rows down and columns right, as `best_shift` returns them.
        static_rows: Rows at the bottom that do not scroll.
    """
    outside = np.zeros(shape, bool)
    scrolling = shape[0] - static_rows
    probe = np.zeros((scrolling, shape[1]), np.int64)
    outside[:scrolling] = shifted(probe, *shift) < 0
    return outside


def token_accuracy(
    predicted: Int[np.ndarray, "*leading row column"],
    true: Int[np.ndarray, "*leading row column"],
    where: Bool[np.ndarray, "*leading row column"],
) -> float | None:
    """Return the share of equal tokens among those picked by `where`, None where none is."""
    return fraction((predicted == true)[where])
