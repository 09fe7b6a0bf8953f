"""Which frames are near and far, and how a far one becomes few tokens."""

import pytest
import torch

from worldgen.nn.far import FarPooling, visible_frames


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("sink", [0, 2])
@pytest.mark.parametrize("far_frames", [0, 1, 4])
def test_every_frame_is_seen_in_one_way_or_not_at_all(
    window: int, sink: int, far_frames: int
) -> None:
    for frame in range(14):
        seen = visible_frames(frame, window, sink, far_frames)
        for earlier in range(frame + 1):
            age = frame - earlier
            whole = age < window or earlier < sink
            assert (earlier in seen.kept) + (earlier in seen.near) == whole
            assert (earlier in seen.far) == (not whole and age < window + far_frames)
        assert max([*seen.kept, *seen.far, *seen.near]) == frame


def test_all_age_but_the_first_ones() -> None:
    seen = visible_frames(9, window=2, sink=1, far_frames=3)
    assert seen.ages(sink=1, tokens=2, far_tokens=1).tolist() == [0, 0, 4, 3, 2, 1, 1, 0, 0]
    # A frame of the sink is as new as ever, also while it is near.
    assert visible_frames(1, 2, 1, 3).ages(1, 2, 1).tolist() == [0, 0, 0, 0]


def test_pooling_begins_as_the_mean_of_each_patch() -> None:
    pool = FarPooling(5, (4, 6), (2, 3))
    cells = torch.randn(2, 3, 24, 5)
    grid = cells.reshape(2, 3, 4, 6, 5)
    means = [
        grid[:, :, row : row + 2, column : column + 3].mean(dim=(2, 3))
        for row in (0, 2)
        for column in (0, 3)
    ]
    assert torch.allclose(pool(cells), torch.stack(means, dim=2), atol=1e-6)


def test_a_token_stands_in_the_middle_of_its_patch() -> None:
    assert FarPooling(2, (4, 6), (2, 3)).middle_cells.tolist() == [1, 4, 13, 16]
    assert FarPooling(2, (8, 8), (4, 4)).middle_cells.tolist() == [9, 13, 41, 45]


def test_each_cell_of_a_patch_has_weights_of_its_own() -> None:
    pool = FarPooling(3, (4, 4), (2, 4))
    with torch.no_grad():
        pool.weight.normal_()
        cells = torch.randn(16, 3)
        # The second patch: rows 2 and 3.
        expected = sum(
            cells[8 + place] @ pool.weight[3 * place : 3 * place + 3] for place in range(8)
        )
        assert torch.allclose(pool(cells)[1], torch.as_tensor(expected), atol=1e-5)
