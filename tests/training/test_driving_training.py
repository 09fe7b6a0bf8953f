"""Driving models: their objective, spoilt and dreamed context, and a training to a world."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.training.recordings import write_recording
from tests.training.test_world_model import overrides, write_tokenizer
from train.world_model import run
from worldgen.config import load_config
from worldgen.models import DrivingConfig, DrivingTransformer
from worldgen.pipeline import load
from worldgen.training.context import CorruptionConfig, OnPolicyConfig, RandomTokensConfig
from worldgen.training.tasks import TrainingClips
from worldgen.training.world_model_loss import DrivingLossConfig, world_model_losses

CLEAN = CorruptionConfig(share_of_clips=0.0, highest_rate=0.0)
RECORDED = OnPolicyConfig(share_of_clips=0.0, frames=1, rounds=1, temperature=0.0)
RELEASE = DrivingLossConfig(changed_weight=1.0, actions=1.0, schedules=("raster",))


@pytest.fixture
def model() -> DrivingTransformer:
    torch.manual_seed(0)
    config = DrivingConfig(
        rows=2,
        columns=3,
        codebook_size=11,
        num_action_tokens=2,
        action_vocabulary_size=9,
        slot_options=(4, 5),
        width=16,
        num_heads=2,
        context_depth=1,
        within_frame_depth=1,
        window=3,
        code_width=4,
        motion_width=8,
    )
    return DrivingTransformer(config)


def clip() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    visual = torch.randint(0, 11, (3, 5, 6), generator=generator)
    slots = [
        torch.randint(low, high, (3, 5), generator=generator) for low, high in ((0, 4), (4, 9))
    ]
    return visual, torch.stack(slots, dim=-1)


def losses_of(
    model: DrivingTransformer,
    losses: DrivingLossConfig = RELEASE,
    corruption: CorruptionConfig | RandomTokensConfig = CLEAN,
    on_policy: OnPolicyConfig = RECORDED,
) -> dict[str, Tensor]:
    visual_ids, action_ids = clip()
    return world_model_losses(
        model,
        TrainingClips(visual_ids=visual_ids, action_ids=action_ids),
        losses=losses,
        corruption=corruption,
        on_policy=on_policy,
        generator=torch.Generator().manual_seed(0),
    )


def watch(model: DrivingTransformer, method: str, argument: int) -> list[Tensor]:
    """Return a list that fills with what a method of the model is given, which works as ever."""
    given: list[Tensor] = []
    called = getattr(model, method)

    def noted(*arguments: Any, **more: Any) -> Any:
        given.append(arguments[argument])
        return called(*arguments, **more)

    setattr(model, method, noted)
    return given


def test_the_release_counts_every_slot_of_every_later_frame_alike(
    model: DrivingTransformer,
) -> None:
    visual, actions = clip()
    cells, slots = model(visual, actions)
    every = [F.cross_entropy(cells.flatten(0, 2), visual[:, 1:].flatten(), reduction="none")]
    for slot, (logits, first) in enumerate(zip(slots, (0, 4), strict=True)):
        wanted = (actions[:, :-1, slot] - first).flatten()
        every.append(F.cross_entropy(logits.flatten(0, 1), wanted, reduction="none"))
    terms = losses_of(model)
    total = terms["cells"] + terms["actions"]
    torch.testing.assert_close(total * 6 / 8, torch.cat(every).mean())


def test_spoilt_tokens_are_fed_and_not_aimed_at(model: DrivingTransformer) -> None:
    spoilt = RandomTokensConfig(share_of_clips=1.0, keep=0.0)
    visual, actions = clip()
    fed = watch(model, "embed_cells", argument=0)
    terms = losses_of(model, corruption=spoilt)
    context, told = fed
    assert context.shape == (3, 4, 6)
    assert (context != visual[:, :-1]).float().mean() > 0.8
    assert (told != visual[:, 1:]).float().mean() > 0.8
    states = model.encode_steps(context, actions[:, :-1])
    logits, _ = model.refine(states, told, actions[:, :-1], torch.arange(6))
    expected = F.cross_entropy(logits.flatten(0, 2), visual[:, 1:].flatten())
    torch.testing.assert_close(terms["cells"], expected)


def test_dreams_change_the_context_and_leave_the_frame_to_draw(model: DrivingTransformer) -> None:
    visual, _ = clip()
    fed, drawn = watch(model, "encode_steps", argument=0), watch(model, "refine", argument=1)
    dreams = OnPolicyConfig(share_of_clips=1.0, frames=2, rounds=2, temperature=1.0)
    losses_of(model, on_policy=dreams)
    (context,), (told,) = fed, drawn
    assert torch.equal(context[:, :2], visual[:, :2])
    assert not torch.equal(context[:, 3], visual[:, 3])
    assert torch.equal(told, visual[:, 1:])


def test_every_order_is_learned_by_every_part(model: DrivingTransformer) -> None:
    orders = DrivingLossConfig(
        changed_weight=2.0, actions=1.0, schedules=("random", "whole_frame", "rows", "raster")
    )
    sum(losses_of(model, losses=orders).values(), torch.zeros(())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_training_leaves_a_world_that_drives_itself(tmp_path: Path) -> None:
    recording = write_recording(tmp_path / "recording", length=20, moving=True)
    tokenizer_file = write_tokenizer(tmp_path / "tokenizer.safetensors", 0)
    small = [
        *overrides(recording, tokenizer_file, tmp_path / "run")[2:],
        "experiment=drivingworld_car_racing",
        "model.width=16",
        "model.num_heads=2",
        "model.context_depth=1",
        "model.within_frame_depth=1",
        "model.motion_width=8",
    ]
    folder = run(load_config("world_model", [*small, f"run_folder={tmp_path / 'run'}"]))
    assert (
        "validation_accuracy" in json.loads((folder.path / "summary.json").read_text())["figures"]
    )
    session = load(folder.path).session(seed=3)
    for _ in range(4):
        session.step(session.predict_action())
    log = session.log()
    assert list(load(folder.path).replay_session(log).replay(log)) == [True] * 4
