"""Schedules are partitions, and their orders are the ones their names promise."""

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.schedule import DecodeSchedule, cosine_round_sizes, make_schedule, schedule_names

NAMES = [*schedule_names(), "diagonal:3", "diagonal:5", "blocks:3", "strided:2", "strided:9"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (8, 8), (7, 2)])
def test_every_schedule_draws_each_cell_once(name: str, rows: int, columns: int) -> None:
    schedule = make_schedule(name, rows, columns)
    assert sorted(cell for group in schedule.groups for cell in group) == list(
        range(rows * columns)
    )


def test_raster_draws_one_cell_at_a_time_in_reading_order() -> None:
    assert make_schedule("raster", 2, 3).groups == ((0,), (1,), (2,), (3,), (4,), (5,))


def test_diagonal_takes_columns_plus_rows_less_one_groups() -> None:
    schedule = make_schedule("diagonal", 3, 4)
    assert len(schedule.groups) == 6
    assert schedule.groups[2] == (2, 5, 8)


def test_diagonal_with_a_lag_of_all_columns_is_raster() -> None:
    assert make_schedule("diagonal:5", 4, 5).groups == make_schedule("raster", 4, 5).groups


def test_diagonal_starts_each_row_lag_groups_after_the_row_above() -> None:
    schedule = make_schedule("diagonal:2", 3, 4)
    assert [schedule.group_of_cell[row * 4].item() for row in range(3)] == [0, 2, 4]


def test_strided_groups_never_hold_neighbours() -> None:
    group = make_schedule("strided:4", 8, 8).group_of_cell.reshape(8, 8)
    assert (group[1:] != group[:-1]).all()
    assert (group[:, 1:] != group[:, :-1]).all()


def test_outward_begins_in_the_centre_and_goes_by_manhattan_distance() -> None:
    assert make_schedule("outward", 3, 3).groups == ((4,), (1, 3, 5, 7), (0, 2, 6, 8))
    assert make_schedule("outward", 2, 4).groups == ((6,), (2, 5, 7), (1, 3, 4), (0,))


def test_visible_cells_are_those_of_earlier_groups() -> None:
    visible = make_schedule("rows", 2, 2).visible()
    expected = [[False] * 4] * 2 + [[True, True, False, False]] * 2
    assert torch.equal(visible, torch.tensor(expected))


@pytest.mark.parametrize(
    "groups", [((0, 1),), ((0, 1), (1, 2, 3)), ((0, 1, 2, 3, 4),), ((0, 1, 2, 3), ())]
)
def test_a_schedule_that_is_no_partition_is_refused(groups: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ConfigError, match="not a partition of 2 x 2"):
        DecodeSchedule(name="broken", rows=2, columns=2, groups=groups)


@pytest.mark.parametrize(
    "name", ["spiral", "raster:2", "diagonal:0", "rows:x", "strided:-1", "blocks:1.5"]
)
def test_an_unknown_order_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="decoding order"):
        make_schedule(name, 8, 8)


@pytest.mark.parametrize(("cells", "rounds"), [(64, 1), (64, 4), (64, 64), (5, 9), (336, 12)])
def test_rounds_settle_every_cell_and_more_each_time(cells: int, rounds: int) -> None:
    sizes = cosine_round_sizes(cells, rounds)
    assert sum(sizes) == cells
    assert len(sizes) == min(cells, rounds)
    assert min(sizes) >= 1
    if rounds < cells:
        assert sizes[-1] == max(sizes)


def test_a_refinement_needs_a_round() -> None:
    with pytest.raises(ConfigError, match="at least 1 round, got 0"):
        cosine_round_sizes(64, 0)
