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


def test_a_step_of_several_frames_has_the_actions_of_each() -> None:
    layout = SequenceLayout(rows=2, columns=3, num_action_tokens=6, frames_per_step=3)
    assert layout.action_tokens_per_frame == 2
    assert [layout.num_steps(frames) for frames in (0, 1, 3, 4)] == [0, 1, 1, 2]
    frames = torch.arange(8).reshape(1, 4, 2)
    steps = layout.actions_of_steps(frames)
    # The last action is held for the frames of its step that have none.
    assert steps.tolist() == [[[0, 1, 2, 3, 4, 5], [6, 7, 6, 7, 6, 7]]]
    assert layout.actions_of_steps(frames[:, :0]).shape == (1, 0, 6)


def test_a_step_of_one_frame_has_the_actions_as_they_are() -> None:
    layout = SequenceLayout(rows=2, columns=3, num_action_tokens=2)
    frames = torch.arange(8).reshape(4, 2)
    assert torch.equal(layout.actions_of_steps(frames), frames)


@pytest.mark.parametrize("frames_per_step", [0, 4])
def test_actions_that_frames_cannot_share_are_refused(frames_per_step: int) -> None:
    with pytest.raises(ConfigError, match="cannot be shared"):
        SequenceLayout(rows=2, columns=2, num_action_tokens=6, frames_per_step=frames_per_step)
