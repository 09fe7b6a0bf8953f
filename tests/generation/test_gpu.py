"""Playing on a GPU: the same contract as on the CPU."""

from pathlib import Path

import pytest
import torch

from tests.factories import tiny_world
from worldgen.generation.planning import plan_then_fill
from worldgen.pipeline import load

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("order", ["whole_frame", "strided:4", "raster"])
def test_a_session_on_a_gpu_replays_and_rewinds(tmp_path: Path, order: str) -> None:
    world = load(tiny_world(tmp_path))
    world.model.to("cuda")
    world.tokenizer.to("cuda")
    session = world.session(seed=1, decoder=order)
    frames = [session.step("left") for _ in range(6)]
    log = session.log()
    assert list(world.replay_session(log).replay(log)) == [True] * 6
    session.rewind(3)
    assert (session.step("left") == frames[3]).all()


def test_logits_on_a_gpu_are_those_of_the_cpu(tmp_path: Path) -> None:
    model = load(tiny_world(tmp_path)).model
    clip = torch.randint(0, 64, (2, 5, 64)), torch.randint(0, 6, (2, 5, 2))
    with torch.no_grad():
        expected = model(*clip)
        got = model.to("cuda")(*(part.to("cuda") for part in clip))
    assert torch.allclose(got.cpu(), expected, atol=1e-3)


def test_a_plan_on_a_gpu_is_filled_in_batches_and_comes_again(tmp_path: Path) -> None:
    world = load(tiny_world(tmp_path, longest_jump=4, farthest_goal=4))
    world.model.to("cuda")
    session = world.session(seed=1)
    first, again = (list(plan_then_fill(session, ["left"] * 64, segment=8)) for _ in range(2))
    assert all(torch.equal(one.ids, two.ids) for one, two in zip(first, again, strict=True))
    # All gaps see as many key frames by then.
    assert first[1].calls == 8 + 3
    spread = list(plan_then_fill(session, ["left"] * 32, segment=8, devices=["cuda", "cpu"]))
    assert [len(segment.ids) for segment in spread] == [32]
