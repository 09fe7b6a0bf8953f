"""Rollouts in batches tell their model what sessions tell it."""

import numpy as np
import pytest
import torch

from tests.factories import tiny_world
from worldgen.errors import ConfigError
from worldgen.evaluation.rollout import Roller
from worldgen.generation import SamplingConfig, Start, make_decoder
from worldgen.pipeline import World, load

GREEDY = SamplingConfig(temperature=0.0, context_noise=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(
        tiny_world(
            tmp_path_factory.mktemp("world"),
            text_vocabulary_size=20,
            sink=1,
            recall_after=1,
            noise_levels=4,
        )
    )


def roller(world: World, sampling: SamplingConfig) -> Roller:
    return Roller(
        model=world.model,
        visual_tokenizer=world.tokenizer,
        action_tokenizer=world.action_tokenizer,
        decoder=make_decoder("whole_frame", world.model.layout, sampling),
        seeds=[4, 9],
    )


def clips(world: World) -> tuple[np.ndarray, np.ndarray]:
    """Return context ids of two clips that come back to where they were, and actions."""
    random = np.random.default_rng(0)
    context = random.integers(0, 64, (2, 4, 64))
    context[:, 3] = context[:, 0]
    return context, random.integers(0, 3, (2, 3 + 6, world.action_tokenizer.schema.num_groups))


def test_rows_are_what_sessions_without_a_text_show(world: World) -> None:
    context, actions = clips(world)
    dreamt = roller(world, GREEDY).roll_out(context, actions)
    for row, seed in enumerate((4, 9)):
        start = Start(
            visual_ids=torch.from_numpy(context[row]),
            action_ids=torch.from_numpy(world.action_tokenizer.encode(actions[row, :3])),
        )
        session = world.session(seed=seed, start=start, decoder="whole_frame", sampling=GREEDY)
        for step in range(6):
            session.step(actions[row, 3 + step])
            assert (session.ids == dreamt[row, step]).mean() > 0.98


def test_only_drawn_frames_are_told_to_be_spoilt(world: World) -> None:
    context, actions = clips(world)
    told = roller(world, GREEDY).roll_out(context, actions)
    clean = SamplingConfig(temperature=0.0)
    untold = roller(world, clean).roll_out(context, actions)
    # The first frame comes of given frames alone, which are clean.
    assert np.array_equal(told[:, 0], untold[:, 0])
    assert not np.array_equal(told[:, 1], untold[:, 1])


def test_a_noise_level_that_the_model_does_not_have_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="levels 0 to 3"):
        roller(world, SamplingConfig(context_noise=4)).roll_out(*clips(world))


def test_frames_of_the_past_are_recalled(world: World) -> None:
    context, actions = clips(world)
    before = roller(world, GREEDY).predict_next(context, actions[:, :3], context=3)
    # The same last frames after others: only what is recalled can tell them apart.
    model = world.model
    assert model.cache_config().receptive_field == 4
    random = np.random.default_rng(1)
    lead = random.integers(0, 64, (2, 6, 64))
    lead_actions = np.concatenate((random.integers(0, 3, (2, 6, 2)), actions[:, :3]), axis=1)
    after = {}
    for name, first in (("seen", context[:, 2:3]), ("unseen", lead[:, :1])):
        ids = np.concatenate((lead[:, :1], first, lead[:, 2:], context), axis=1)
        after[name] = roller(world, GREEDY).predict_next(ids, lead_actions, context=9)
    assert before.shape == after["seen"].shape == (2, 1, 64)
    assert not np.array_equal(after["seen"], after["unseen"])
