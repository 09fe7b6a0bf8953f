"""Action schemas: values, JSON, and what they refuse."""

import json

import numpy as np
import pytest

from worldgen.errors import ActionError
from worldgen.tokenizers.action import (
    ActionSchema,
    Axis,
    Categorical,
    MuLawAxis,
    PointerAxis,
)

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
        ({"groups": [{"kind": "mu_law_axis", "name": "x", "limit": 1, "bins": 3}]}, "missing: mu"),
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


LOOK = MuLawAxis("look", limit=90.0, bins=21, mu=10.0)
POINTER = {"x": PointerAxis("look", 0.15), "y": PointerAxis("gas", -0.01)}


def make_pointer_schema() -> ActionSchema:
    """Return a schema with a choice, two axes and a pointer that moves both."""
    groups = (STEERING, Axis("gas", 0.0, 1.0, 5), LOOK)
    return ActionSchema(groups=groups, pointer=POINTER)


def test_json_gives_the_same_pointer_back() -> None:
    schema = make_pointer_schema()
    value = json.loads(json.dumps(schema.to_json()))
    assert value["pointer"] == {
        "x": {"group": "look", "per_pixel": 0.15},
        "y": {"group": "gas", "per_pixel": -0.01},
    }
    assert ActionSchema.from_json(value) == schema


def test_json_of_a_schema_without_a_pointer_is_as_it_was_before_there_were_any() -> None:
    assert list(make_schema().to_json()) == ["groups", "named", "keys"]


@pytest.mark.parametrize(
    ("pointer", "message"),
    [
        ({"z": {"group": "look", "per_pixel": 1}}, "moves in 'x' and 'y', got 'z'"),
        ({"x": {"group": "wheel", "per_pixel": 1}}, "no action group 'wheel'"),
        ({"x": {"group": "steering", "per_pixel": 1}}, "'steering', which is a choice"),
        (
            {"x": {"group": "look", "per_pixel": 1}, "y": {"group": "look", "per_pixel": 1}},
            "both move the group 'look'",
        ),
        ({"x": {"group": "look", "per_pixel": 0}}, "finite per_pixel other than 0"),
        ({"x": {"group": "look", "per_pixel": float("inf")}}, "finite per_pixel other than 0"),
        ({"x": {"group": "look", "per_pixel": "1"}}, "'per_pixel' has the wrong type"),
        ({"x": {"group": "look"}}, "pointer axis.*missing: per_pixel"),
        ({"x": "look"}, "pointer axis must be a JSON object, got str"),
        ([], "'pointer' has the wrong type"),
    ],
)
def test_json_that_is_no_pointer_is_refused(pointer: object, message: str) -> None:
    with pytest.raises(ActionError, match=message):
        ActionSchema.from_json({**make_pointer_schema().to_json(), "pointer": pointer})
