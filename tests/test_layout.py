"""The layout says where the tokens of a step are."""

import pytest
import torch

from worldgen.errors import ConfigError
from worldgen.layout import SequenceLayout


def test_actions_come_first_then_cells_in_raster_order() -> None:
    layout = SequenceLayout(rows=2, columns=3, num_action_tokens=2)
    tokens = torch.arange(layout.tokens_per_step)
    assert tokens[layout.action_slice].tolist() == [0, 1]
    assert tokens[layout.visual_slice].tolist() == [2, 3, 4, 5, 6, 7]
    assert layout.step_positions.tolist()[:3] == [[-1, 0], [-1, 1], [0, 0]]
    assert layout.cell_positions.tolist()[-1] == [1, 2]


def test_no_two_tokens_of_a_step_share_a_place() -> None:
    places = SequenceLayout(rows=4, columns=5, num_action_tokens=3).step_positions
    assert len({tuple(place) for place in places.tolist()}) == len(places)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        SequenceLayout(rows=0, columns=3, num_action_tokens=1)
