"""Action strings and keys: what they stand for, and messages that help."""

import numpy as np
import pytest

from worldgen.errors import ActionError
from worldgen.tokenizers.action import (
    ActionSchema,
    Axis,
    Categorical,
    actions_from_keys,
    format_actions,
    parse_action,
    parse_actions,
)

CAR = ActionSchema(
    groups=(
        Categorical("steering", ("none", "left", "right")),
        Categorical("pedals", ("none", "gas", "brake")),
    ),
    named={
        "nothing": {},
        "left": {"steering": "left"},
        "right": {"steering": "right"},
        "gas": {"pedals": "gas"},
        "brake": {"pedals": "brake"},
    },
    keys={
        "ArrowLeft": "left",
        "KeyA": "left",
        "ArrowRight": "right",
        "ArrowUp": "gas",
        "Space": "brake",
    },
)
FLIGHT = ActionSchema(groups=(Axis("pitch", -1e20, 1e20, 5), Categorical("flaps", ("up", "down"))))


def test_a_string_stands_for_runs_of_combined_actions() -> None:
    actions = parse_actions("left*2,left+gas*1,nothing,gas*3", CAR)
    assert actions.tolist() == [[1, 0], [1, 0], [1, 1], [0, 0], [0, 1], [0, 1], [0, 1]]
    assert actions.dtype == np.int64


def test_white_space_does_not_matter() -> None:
    tight = parse_actions("left+gas*4,gas*2", CAR)
    np.testing.assert_array_equal(parse_actions(" left + gas * 4 ,\n gas*2 ", CAR), tight)


def test_a_group_can_be_set_by_its_name() -> None:
    assert parse_actions("steering=right+gas", CAR).tolist() == [[2, 1]]
    assert parse_actions("pitch=-0.25+flaps=down*2", FLIGHT).tolist() == [[-0.25, 1.0]] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "part 1 of the actions, '' at character 1: an action is missing; named are nothing"),
        ("left*2,,gas", "part 2 of the actions, '' at character 8: an action is missing"),
        ("left*2,lefft*4", "part 2.*'lefft.4' at character 8: .*.lefft' .did you mean 'left'"),
        ("fly", "no action 'fly'; named are nothing, left, right, gas, brake; or set a group"),
        ("left+right", "sets the group 'steering' twice, to left and to right"),
        ("left+steering=left", "sets the group 'steering' twice"),
        ("left+", "an action is missing"),
        ("left*0", "whole number from 1 to 1,000,000.*got '0'"),
        ("left*-3", "got '-3'"),
        ("left*", "got ''"),
        ("left*2*3", r"got '2\*3'"),
        ("left*99999999999999999999", "got '9999"),
        ("left*²", "got '²'"),
        ("left*999999,gas*2", "part 2.*more than 1,000,000 steps in all"),
        ("wheel=left", "no action group 'wheel'; groups are steering, pedals"),
        ("steering=up", "no option 'up'; it has none, left, right"),
        ("steering=", "no option ''"),
    ],
)
def test_a_malformed_string_is_refused_with_its_part_and_place(text: str, message: str) -> None:
    with pytest.raises(ActionError, match=message):
        parse_actions(text, CAR)


def test_an_axis_refuses_what_is_no_number() -> None:
    with pytest.raises(ActionError, match=r"takes a number.*got 'up'"):
        parse_actions("pitch=up", FLIGHT)
    with pytest.raises(ActionError, match=r"takes a number.*got 'nan'"):
        parse_actions("pitch=nan", FLIGHT)
    with pytest.raises(ActionError, match="this world names none; or set a group, such as pitch=0"):
        parse_actions("dive", FLIGHT)


def test_one_action_is_one_step() -> None:
    assert parse_action("left+gas", CAR).tolist() == [1, 1]
    with pytest.raises(ActionError, match=r"one action is needed.*got 3"):
        parse_action("left*3", CAR)


def test_formatting_is_the_inverse_of_parsing() -> None:
    text = "left*20,left+gas*4,gas*40,nothing,brake+right"
    actions = parse_actions(text, CAR)
    assert format_actions(actions, CAR) == "left*20,left+gas*4,gas*40,nothing,right+brake"
    generator = np.random.default_rng(0)
    for schema in (CAR, FLIGHT):
        wild = np.stack(
            [
                generator.choice([group.rest, 1.0, 1e20 if isinstance(group, Axis) else 0.0], 50)
                for group in schema.groups
            ],
            axis=-1,
        ).astype(schema.dtype)
        np.testing.assert_array_equal(parse_actions(format_actions(wild, schema), schema), wild)


def test_keys_combine_and_the_one_pressed_last_wins() -> None:
    assert actions_from_keys([], CAR).tolist() == [0, 0]
    assert actions_from_keys(["ArrowUp", "KeyA"], CAR).tolist() == [1, 1]
    assert actions_from_keys(["KeyA", "ArrowRight"], CAR).tolist() == [2, 0]
    assert actions_from_keys(["ArrowRight", "KeyA", "F5"], CAR).tolist() == [1, 0]
