"""Numberings: ids as they say, exact round trips, JSON, and what they refuse."""

import json
from typing import Any

import numpy as np
import pytest

from worldgen.errors import ActionError
from worldgen.tokenizers.action import (
    ActionSchema,
    ActionTokenizer,
    Categorical,
    GroupIds,
    MuLawAxis,
    Numbering,
)

GROUPS = (
    Categorical("walk", ("none", "forward", "back")),
    MuLawAxis("look", limit=9.0, bins=3, mu=5.0),
    Categorical("jump", ("none", "jump")),
)
# Another order than that of the groups, a shared id for "none", and ids that no slot holds.
NUMBERING = Numbering(
    slots=(
        11,
        GroupIds("look", (4, 3, 2)),
        GroupIds("walk", (7, 0, 9)),
        GroupIds("jump", (7, 5)),
        1,
    ),
    vocabulary_size=14,
)


def make_tokenizer() -> ActionTokenizer:
    """Return a tokenizer whose schema numbers its slots."""
    return ActionTokenizer(ActionSchema(groups=GROUPS, numbering=NUMBERING))


def test_each_slot_holds_its_constant_or_the_id_of_the_option() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.num_slots == 5
    assert tokenizer.vocabulary_size == 14
    assert tokenizer.encode(np.array([0.0, 0.0, 0.0])).tolist() == [11, 3, 7, 7, 1]
    assert tokenizer.encode(np.array([2.0, 99.0, 1.0])).tolist() == [11, 2, 9, 5, 1]
    assert tokenizer.decode(np.array([11, 4, 0, 5, 1])).tolist() == [1.0, -9.0, 1.0]
    assert [ids.tolist() for ids in tokenizer.slot_ids] == [[11], [4, 3, 2], [7, 0, 9], [7, 5], [1]]
    assert all(ids.dtype == np.int64 for ids in tokenizer.slot_ids)


def test_every_combination_of_ids_survives_decoding_and_encoding() -> None:
    tokenizer = make_tokenizer()
    ids = np.stack(np.meshgrid(*tokenizer.slot_ids, indexing="ij"), axis=-1)
    actions = tokenizer.decode(ids)
    assert actions.shape == (1, 3, 3, 2, 1, 3)
    np.testing.assert_array_equal(tokenizer.encode(actions), ids)


def test_ids_that_do_not_belong_to_their_slot_are_refused() -> None:
    tokenizer = make_tokenizer()
    for wrong, message in [
        ([11, 3, 5, 7, 1], r"id 5 does not belong to slot 2 \('walk'\), whose ids are 0, 7, 9"),
        ([11, 3, 7, 7, 0], r"id 0 does not belong to slot 4 \('constant'\), whose ids are 1"),
        ([11, 14, 7, 7, 1], r"id 14 does not belong to slot 1 \('look'\), whose ids are 2 to 4"),
        ([11, -1, 7, 7, 1], "id -1 does not belong to slot 1"),
    ]:
        with pytest.raises(ActionError, match=message):
            tokenizer.decode(np.array([[11, 3, 7, 7, 1], wrong]))
    with pytest.raises(ActionError, match=r"5 slots \(constant, look, walk, jump, constant\)"):
        tokenizer.decode(np.zeros(4, dtype=np.int64))


def test_json_gives_the_same_numbering_back() -> None:
    schema = make_tokenizer().schema
    again = ActionSchema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again == schema
    assert again.numbering == NUMBERING


def test_json_without_a_numbering_has_no_such_field() -> None:
    assert sorted(ActionSchema(groups=GROUPS).to_json()) == ["groups", "keys", "named"]


def test_leading_axes_stay() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.encode(np.zeros((2, 0, 3))).shape == (2, 0, 5)
    assert tokenizer.decode(np.zeros((0, 5), dtype=np.int64)).shape == (0, 3)


LOOK = {"group": "look", "ids": [0, 1, 2]}
WALK = {"group": "walk", "ids": [3, 4, 5]}
JUMP = {"group": "jump", "ids": [6, 7]}


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([], "at least one slot"),
        ([LOOK, WALK], "one slot for each group; groups are walk, look, jump, slots are for look"),
        ([8], "slots are for none"),
        ([LOOK, WALK, JUMP, JUMP], "one slot for each group.*jump, jump"),
        ([LOOK, WALK, JUMP, {"group": "swim", "ids": [8]}], "one slot for each group.*swim"),
        ([LOOK, WALK, {"group": "jump", "ids": [6]}], "'jump' 1 ids; it needs 2"),
        ([LOOK, WALK, {"group": "jump", "ids": [6, 6]}], r"slot 2.*'jump'.*repeats the id 6"),
        ([LOOK, WALK, {"group": "jump", "ids": [6, 10]}], "slot 2.*holds the id 10;.*0 to 9"),
        ([LOOK, WALK, {"group": "jump", "ids": [6, -1]}], "holds the id -1"),
        ([LOOK, WALK, {"group": "jump", "ids": [6, 1.5]}], "holds the id 1.5"),
        ([LOOK, WALK, {"group": "jump", "ids": [6, True]}], "holds the id True"),
        ([LOOK, WALK, JUMP, 10], "slot 3 of the action numbering holds the id 10"),
        ([LOOK, WALK, JUMP, True], "slot of an action numbering must be a JSON object, got bool"),
        ([LOOK, WALK, JUMP, "8"], "slot of an action numbering must be a JSON object, got str"),
        ([LOOK, WALK, {"group": "jump"}], "slot of an action numbering.*missing: ids"),
    ],
)
def test_numberings_that_do_not_fit_are_refused(slots: list[Any], message: str) -> None:
    value = {
        **ActionSchema(groups=GROUPS).to_json(),
        "numbering": {"slots": slots, "vocabulary_size": 10},
    }
    with pytest.raises(ActionError, match=message):
        ActionSchema.from_json(value)


@pytest.mark.parametrize(
    ("numbering", "message"),
    [
        (None, "'numbering' has the wrong type"),
        ({"slots": [LOOK, WALK, JUMP]}, "action numbering.*missing: vocabulary_size"),
        ({"slots": [8], "vocabulary_size": "9"}, "'vocabulary_size' has the wrong type"),
    ],
)
def test_json_that_is_no_numbering_is_refused(numbering: object, message: str) -> None:
    value = {**ActionSchema(groups=GROUPS).to_json(), "numbering": numbering}
    with pytest.raises(ActionError, match=message):
        ActionSchema.from_json(value)
