"""Orders of decoding: an ordered partition of the grid's cells into groups drawn at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from worldgen.errors import ConfigError

__all__ = ["DecodeSchedule", "cosine_round_sizes", "make_schedule", "schedule_names"]


@dataclass(frozen=True, kw_only=True)
class DecodeSchedule:
    """An ordered partition of the cells of a frame; the cells of one group are drawn at once.

    Raises:
        ConfigError: If a cell is missing, repeated or outside the grid, or a group is empty.
    """

    name: str
    """As accepted by `make_schedule`, for example `"strided:4"`."""
    rows: int
    columns: int
    groups: tuple[tuple[int, ...], ...]
    """Cells in raster numbering, group by group in the order of drawing."""

    def __post_init__(self) -> None:
        cells = [cell for group in self.groups for cell in group]
        wanted = range(self.rows * self.columns)
        if sorted(cells) != list(wanted) or not all(self.groups):
            missing = sorted(set(wanted) - set(cells))
            repeated = sorted({cell for cell in cells if cells.count(cell) > 1})
            outside = sorted(set(cells) - set(wanted))
            raise ConfigError(
                f"schedule {self.name!r} is not a partition of {self.rows} x {self.columns} cells: "
                f"missing {missing}, repeated {repeated}, outside {outside}, "
                f"empty groups {sum(not group for group in self.groups)}"
            )

    @property
    def num_cells(self) -> int:
        """Cells of the grid."""
        return self.rows * self.columns

    @cached_property
    def group_of_cell(self) -> Int[Tensor, " cell"]:
        """For each cell the index of the group in which it is drawn."""
        index = torch.empty(self.num_cells, dtype=torch.int64)
        for number, group in enumerate(self.groups):
            index[list(group)] = number
        return index

    def visible(self) -> Bool[Tensor, "query key"]:
        """Which cells (keys) are already drawn when a cell (query) is predicted."""
        group = self.group_of_cell
        return group[None, :] < group[:, None]


def _by_group_number(numbers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    groups: dict[int, list[int]] = {}
    for cell, number in enumerate(numbers):
        groups.setdefault(number, []).append(cell)
    return tuple(tuple(groups[number]) for number in sorted(groups))


def _raster(row: int, column: int, rows: int, columns: int, parameter: int) -> int:
    return row * columns + column


def _diagonal(row: int, column: int, rows: int, columns: int, parameter: int) -> int:
    return row * parameter + column


def _rows(row: int, column: int, rows: int, columns: int, parameter: int) -> int:
    return row


def _blocks(row: int, column: int, rows: int, columns: int, parameter: int) -> int:
    blocks_across = -(-columns // parameter)
    return (row // parameter) * blocks_across + column // parameter


def _strided(row: int, column: int, rows: int, columns: int, parameter: int) -> int:
    # Neighbours in a row and neighbours in a column both fall into different groups: with a
    # square parameter this visits each position of a tile in turn, the tile's far corner second.
    side = max(1, round(parameter**0.5))
    if side * side == parameter:
        position = (row % side) * side + column % side
        spread = sorted(range(parameter), key=lambda p: ((p // side + p % side) % 2, p))
        return spread.index(position)
    return (row + column) % parameter


def _outward(row: int, column: int, rows: int, columns: int, parameter: int) -> int:
    return abs(row - rows // 2) + abs(column - columns // 2)


def _whole_frame(row: int, column: int, rows: int, columns: int, parameter: int) -> int:
    return 0


# name -> (group number of a cell, default parameter or None where the order takes none)
_ORDERS: dict[str, tuple[Callable[[int, int, int, int, int], int], int | None]] = {
    "raster": (_raster, None),
    "diagonal": (_diagonal, 1),
    "rows": (_rows, None),
    "blocks": (_blocks, 2),
    "outward": (_outward, None),
    "strided": (_strided, 4),
    "whole_frame": (_whole_frame, None),
}


def schedule_names() -> tuple[str, ...]:
    """Names that `make_schedule` accepts; `diagonal`, `blocks`, `strided` take `:number`."""
    return tuple(_ORDERS)


def make_schedule(name: str, rows: int, columns: int) -> DecodeSchedule:
    """Return the schedule of that name for a grid.

    `raster` draws one cell at a time and is the oracle. `diagonal:lag` starts each row `lag`
    groups after the row above (lag = columns is raster); `rows` a row at a time; `blocks:side`
    a square at a time; `outward` the cells at one Manhattan distance from the centre at a time, the
    centre itself (on an even side the later of the two cells) first; `strided:count` every
    count-th cell at a time; `whole_frame` all at once.

    Source: diagonal, MineWorld (arXiv:2503.14070) and ZipAR (arXiv:2412.04062); rows and blocks,
        NBP (arXiv:2502.07737) and PAR (arXiv:2412.15119); outward, NAR (arXiv:2503.10696).

    Args:
        name: Order, with an optional positive number after a colon.
        rows: Height of the grid.
        columns: Width of the grid.

    Raises:
        ConfigError: If the name is unknown or its number is not a positive integer.
    """
    order, _, text = name.partition(":")
    if order not in _ORDERS:
        raise ConfigError(f"unknown decoding order {name!r}; choose one of {', '.join(_ORDERS)}")
    number_of, default = _ORDERS[order]
    if default is None and text:
        raise ConfigError(f"decoding order {order!r} takes no number, got {name!r}")
    parameter = default or 1
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError(f"decoding order {name!r} needs a positive integer after the colon")
        parameter = int(text)
    numbers = [
        number_of(row, column, rows, columns, parameter)
        for row in range(rows)
        for column in range(columns)
    ]
    return DecodeSchedule(name=name, rows=rows, columns=columns, groups=_by_group_number(numbers))


def cosine_round_sizes(num_cells: int, rounds: int) -> tuple[int, ...]:
    """Return how many cells each round of a refinement settles: few at first, many at last.

    Source: MaskGIT (arXiv:2202.04200), section 3.3, the cosine schedule; no round is empty.

    Args:
        num_cells: Cells of the grid.
        rounds: At least 1; no more than `num_cells` are used.

    Raises:
        ConfigError: If `rounds` is below 1.
    """
    if rounds < 1:
        raise ConfigError(f"a refinement needs at least 1 round, got {rounds}")
    rounds = min(rounds, num_cells)
    sizes: list[int] = []
    settled = 0
    for number in range(1, rounds + 1):
        wanted = round(num_cells * (1.0 - math.cos(math.pi / 2 * number / rounds)))
        # At least one cell now, and one left for each round to come.
        stop = min(max(wanted, settled + 1), num_cells - (rounds - number))
        sizes.append(stop - settled)
        settled = stop
    return tuple(sizes)
