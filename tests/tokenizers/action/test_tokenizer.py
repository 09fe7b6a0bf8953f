"""Action tokens: exact round trips, ranges, and what they refuse."""

import numpy as np
import pytest

from worldgen.errors import ActionError
from worldgen.tokenizers.action import ActionSchema, ActionTokenizer, Axis, Categorical


def make_tokenizer() -> ActionTokenizer:
    """Return a tokenizer of two categorical groups and an axis."""
    return ActionTokenizer(
        ActionSchema(
            groups=(
                Categorical("steering", ("none", "left", "right")),
                Axis("look", -1.0, 1.0, 7),
                Categorical("jump", ("off", "on")),
            )
        )
    )


def test_every_combination_of_ids_survives_decoding_and_encoding() -> None:
    tokenizer = make_tokenizer()
    ids = np.stack(np.meshgrid(*tokenizer.slot_ids, indexing="ij"), axis=-1)
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)


def test_categorical_actions_survive_encoding_and_decoding() -> None:
    tokenizer = ActionTokenizer(
        ActionSchema(groups=(Categorical("a", ("x", "y", "z")), Categorical("b", ("p", "q"))))
    )
    actions = np.array([[[0, 1], [2, 0]], [[1, 1], [2, 1]]])
    decoded = tokenizer.decode(tokenizer.encode(actions))
    np.testing.assert_array_equal(decoded, actions)
    assert decoded.dtype == np.int64


def test_an_axis_comes_back_within_half_a_bin() -> None:
    tokenizer = ActionTokenizer(ActionSchema(groups=(Axis("look", -10.0, 4.0, 9),)))
    values = np.linspace(-10.0, 4.0, 1001)[:, None]
    decoded = tokenizer.decode(tokenizer.encode(values))
    assert np.abs(decoded - values).max() <= 14.0 / 9 / 2 + 1e-9


def test_zero_survives_on_a_symmetric_axis_with_an_odd_number_of_bins() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.decode(tokenizer.encode(np.zeros(3)))[1] == 0.0


def test_slots_have_ids_of_their_own() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.num_slots == 3
    assert tokenizer.vocabulary_size == 12
    assert [ids.tolist() for ids in tokenizer.slot_ids] == [
        [0, 1, 2],
        [3, 4, 5, 6, 7, 8, 9],
        [10, 11],
    ]
    assert tokenizer.encode(np.array([2, 1.0, 1])).tolist() == [2, 9, 11]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([3, 0, 0], "'steering' got 3; allowed are 0 to 2 .none, left, right."),
        ([-1, 0, 0], "'steering' got -1"),
        ([0.5, 0, 0], "'steering' takes whole numbers.* got 0.5"),
        ([np.nan, 0, 0], "'steering' takes whole numbers.* got nan"),
        ([0, 1.1, 0], "'look' got 1.1; allowed is -1 to 1"),
        ([0, np.nan, 0], "'look' got nan"),
        ([0, 0], r"an axis of 3 groups \(steering, look, jump\), got shape \(2,\)"),
    ],
)
def test_actions_outside_the_schema_are_refused(action: list[float], message: str) -> None:
    with pytest.raises(ActionError, match=message):
        make_tokenizer().encode(np.array(action))


def test_ids_of_another_slot_are_refused() -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(ActionError, match=r"id 9 does not belong to slot 2 \('jump'\).*10 to 11"):
        tokenizer.decode(np.array([[0, 3, 10], [0, 3, 9]]))
    with pytest.raises(ActionError, match="whole numbers, got float64"):
        tokenizer.decode(np.zeros(3))
    with pytest.raises(ActionError, match="an axis of 3 slots"):
        tokenizer.decode(np.zeros(2, dtype=np.int64))
