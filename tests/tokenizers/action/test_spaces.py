"""Gymnasium's action spaces: schemas that fit them, and samples to and fro without loss."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence

from worldgen.errors import ActionError
from worldgen.tokenizers.action import (
    ActionTokenizer,
    Axis,
    from_space_action,
    parse_actions,
    schema_from_space,
    to_space_action,
)

SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(5),
    "discrete that starts elsewhere": spaces.Discrete(4, start=-1),
    "several choices": spaces.MultiDiscrete([3, 3]),
    "a table of choices": spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), dtype=np.int32),
    "buttons": spaces.MultiBinary(4),
    "a table of buttons": spaces.MultiBinary((2, 3)),
    "box": spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32)),
    "box of one number": spaces.Box(-2.0, 2.0, (1,), dtype=np.float64),
    "box of whole numbers": spaces.Box(0, 255, (2, 2), dtype=np.uint8),
    "mixed": spaces.Dict(
        {
            "arm": spaces.Dict({"grip": spaces.Discrete(2), "reach": spaces.Box(0, 1, (2,))}),
            "legs": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))),
        }
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_samples_of_a_space_survive_the_way_to_an_action_and_back(name: str) -> None:
    space = SPACES[name]
    space.seed(0)
    for _ in range(20):
        sample = space.sample()
        again = to_space_action(from_space_action(sample, space), space)
        assert space.contains(again)
        assert data_equivalence(sample, again)


@pytest.mark.parametrize("name", SPACES)
def test_every_decoded_token_is_a_sample_of_the_space(name: str) -> None:
    space = SPACES[name]
    tokenizer = ActionTokenizer(schema_from_space(space, bins=5))
    generator = np.random.default_rng(0)
    for _ in range(20):
        ids = np.array([generator.choice(slot) for slot in tokenizer.slot_ids])
        sample = to_space_action(tokenizer.decode(ids), space)
        assert space.contains(sample)
        np.testing.assert_array_equal(tokenizer.encode(from_space_action(sample, space)), ids)


def test_whole_numbers_in_a_box_survive_their_tokens() -> None:
    space = SPACES["box of whole numbers"]
    tokenizer = ActionTokenizer(schema_from_space(space))
    sample = np.array([[0, 1], [200, 255]], dtype=np.uint8)
    ids = tokenizer.encode(from_space_action(sample, space))
    np.testing.assert_array_equal(to_space_action(tokenizer.decode(ids), space), sample)


def test_nested_spaces_are_flattened_with_their_path_as_name() -> None:
    schema = schema_from_space(SPACES["mixed"], bins=3)
    names = [group.name for group in schema.groups]
    assert names == ["arm.grip", "arm.reach.0", "arm.reach.1", "legs.0", "legs.1.0", "legs.1.1"]
    assert schema.groups[1] == Axis("arm.reach.0", 0.0, 1.0, 3)


def test_a_discrete_space_names_its_actions_by_number() -> None:
    schema = schema_from_space(SPACES["discrete that starts elsewhere"])
    assert parse_actions("-1,2*2", schema).tolist() == [[0], [3], [3]]


def test_spaces_without_bounds_or_of_other_kinds_are_refused() -> None:
    with pytest.raises(ActionError, match="has no bounds; wrap the environment"):
        schema_from_space(spaces.Box(-np.inf, np.inf, (2,)))
    with pytest.raises(ActionError, match="cannot be turned into tokens"):
        schema_from_space(spaces.Text(3))
    with pytest.raises(ActionError, match=r"takes 2 values, got an action of shape \(3,\)"):
        to_space_action(np.zeros(3), SPACES["several choices"])
