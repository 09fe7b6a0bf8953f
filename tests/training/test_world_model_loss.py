"""Orders that a within-frame stack is trained on."""

import torch

from worldgen.schedule import cosine_round_sizes, make_schedule
from worldgen.training.world_model_loss import draw_groups


def test_every_clip_gets_a_partition_of_a_named_order() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = draw_groups(("random", "rows"), 4, 5, 200, generator)
    rows = make_schedule("rows", 4, 5).group_of_cell
    named = (groups == rows).all(dim=-1)
    assert 70 < int(named.sum()) < 130
    rounds = set()
    for row in groups[~named]:
        sizes = tuple(row.bincount().tolist())
        rounds.add(len(sizes))
        assert sizes == cosine_round_sizes(20, len(sizes))
    assert rounds == set(range(2, 9))
    # Not the same cells first in every clip.
    assert len({tuple((row == 0).nonzero().flatten().tolist()) for row in groups[~named]}) > 20
