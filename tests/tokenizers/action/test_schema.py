"""Action schemas: values, JSON, and what they refuse."""

import json

import numpy as np
import pytest

from worldgen.errors import ActionError
from worldgen.tokenizers.action import ActionSchema, Axis, Categorical

STEERING = Categorical("steering", ("none", "left", "right"))


def make_schema() -> ActionSchema:
    """Return a schema with a categorical group and an axis."""
    return ActionSchema(
        groups=(STEERING, Axis("gas", 0.0, 1.0, 5)),
        named={"nothing": {}, "left": {"steering": "left"}, "race": {"gas": 1.0}},
        keys={"ArrowLeft": "left", "KeyA": "left"},
    )


def test_a_named_action_leaves_other_groups_at_rest() -> None:
    schema = make_schema()
    assert schema.action(schema.named["left"]).tolist() == [1.0, 0.0]
    assert schema.action(schema.named["race"]).tolist() == [0.0, 1.0]


def test_actions_are_whole_numbers_only_if_every_group_is_categorical() -> None:
    assert ActionSchema(groups=(STEERING,)).dtype == np.int64
    assert make_schema().dtype == np.float64


def test_an_axis_that_excludes_zero_rests_at_the_nearest_bound() -> None:
    assert Axis("speed", 2.0, 4.0, 3).rest == 2.0
    assert Axis("speed", -4.0, -2.0, 3).rest == -2.0


def test_json_gives_the_same_schema_back() -> None:
    schema = make_schema()
    assert ActionSchema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown: extra"),
        ({"groups": 3}, "'groups' has the wrong type"),
        ({"groups": []}, "at least one group"),
        ({"groups": [{"kind": "knob"}]}, "kind 'categorical', 'axis' or 'mu_law_axis'"),
        ({"groups": [{"kind": "axis", "name": "x", "low": 0, "high": 1}]}, "missing: bins"),
        (
            {"groups": [{"kind": "axis", "name": "x", "low": 0, "high": 1, "bins": True}]},
            "'bins' has the wrong type",
        ),
        ({"groups": [{"kind": "categorical", "name": "x", "options": [1]}]}, "must be names"),
        ({"named": {"left": "left"}}, "must map groups to settings"),
        ({"named": {"left": {"wheel": "left"}}}, "no action group 'wheel'"),
        ({"named": {"left": {"steering": "up"}}}, "no option 'up'.*none, left, right"),
        ({"named": {"race": {"gas": 2}}}, "number from 0 to 1, got 2"),
        ({"keys": {"KeyA": "hop"}}, "'KeyA' plays 'hop'"),
        ({"keys": {"KeyA": 4}}, "must name an action"),
    ],
)
def test_json_that_is_not_a_schema_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ActionError, match=message):
        ActionSchema.from_json({**make_schema().to_json(), **change})


def test_json_that_is_not_an_object_is_refused() -> None:
    with pytest.raises(ActionError, match="must be a JSON object, got list"):
        ActionSchema.from_json([])


def test_groups_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ActionError, match="repeats an option"):
        Categorical("steering", ("left", "left"))
    with pytest.raises(ActionError, match="must not be empty nor hold spaces"):
        Categorical("steering", ("hard left",))
    with pytest.raises(ActionError, match="finite bounds with low below high"):
        Axis("gas", 1.0, 1.0, 3)
    with pytest.raises(ActionError, match="at least 1 bin"):
        Axis("gas", 0.0, 1.0, 0)
    with pytest.raises(ActionError, match="repeats a group"):
        ActionSchema(groups=(STEERING, STEERING))
