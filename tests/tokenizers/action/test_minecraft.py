"""Minecraft's schemas: round trips of keys and camera, rules of MineWorld, scripts, bad input."""

import json
from typing import Any

import numpy as np
import pytest

from worldgen.errors import ActionError
from worldgen.tokenizers.action import (
    ActionSchema,
    ActionTokenizer,
    Categorical,
    actions_from_keys,
    format_actions,
    minecraft_schema,
    mineworld_schema,
    parse_action,
    parse_actions,
    to_environment_action,
    to_schema_action,
)
from worldgen.tokenizers.action.minecraft import ENVIRONMENT_KEYS, PRESETS

OURS = minecraft_schema("minecraft")
MINEWORLD = minecraft_schema("mineworld")
EXCLUSIVE = [
    ("forward", "back"),
    ("left", "right"),
    ("sprint", "sneak"),
    ("use", "attack"),
    ("drop", "pickItem"),
]


def random_actions(length: int, seed: int = 0) -> dict[str, Any]:
    """Return random environment actions, arrays of `length`, any keys down together."""
    generator = np.random.default_rng(seed)
    keys = {key: generator.integers(0, 2, length) for key in ENVIRONMENT_KEYS}
    return {**keys, "camera": generator.laplace(0.0, 12.0, (length, 2))}


def one(actions: dict[str, Any], index: int) -> dict[str, Any]:
    """Return one of several environment actions, in plain numbers."""
    return {name: values[index].tolist() for name, values in actions.items()}


def pressed(action: dict[str, Any]) -> set[str]:
    """Return the keys that are down."""
    return {key for key in ENVIRONMENT_KEYS if action[key]}


@pytest.mark.parametrize("preset", PRESETS)
def test_actions_survive_their_tokens(preset: str) -> None:
    schema = minecraft_schema(preset)
    tokenizer = ActionTokenizer(schema)
    actions = to_schema_action(random_actions(500), schema)
    assert actions.shape == (500, schema.num_groups)
    ids = tokenizer.encode(actions)
    decoded = tokenizer.decode(ids)
    np.testing.assert_array_equal(tokenizer.encode(decoded), ids)
    for index, group in enumerate(schema.groups):
        if isinstance(group, Categorical):
            np.testing.assert_array_equal(decoded[:, index], actions[:, index])
        assert np.isin(ids, np.concatenate(tokenizer.slot_ids)).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_any_tokens_survive_the_environments_dictionary(preset: str) -> None:
    schema = minecraft_schema(preset)
    tokenizer = ActionTokenizer(schema)
    generator = np.random.default_rng(1)
    ids = np.stack([generator.choice(slot, 500) for slot in tokenizer.slot_ids], axis=-1)
    environment = to_environment_action(tokenizer.decode(ids), schema)
    np.testing.assert_array_equal(tokenizer.encode(to_schema_action(environment, schema)), ids)


@pytest.mark.parametrize("preset", PRESETS)
def test_one_action_is_converted_as_many_are(preset: str) -> None:
    schema = minecraft_schema(preset)
    many = random_actions(40)
    actions = to_schema_action(many, schema)
    back = to_environment_action(actions, schema)
    for index in range(40):
        action = to_schema_action(one(many, index), schema)
        np.testing.assert_array_equal(action, actions[index])
        environment = to_environment_action(action, schema)
        assert environment["camera"].tolist() == back["camera"][index].tolist()
        assert pressed(environment) == pressed(one(back, index))
        assert all(type(environment[key]) is int for key in ENVIRONMENT_KEYS)


@pytest.mark.parametrize("preset", PRESETS)
def test_json_gives_the_same_schema_back(preset: str) -> None:
    schema = minecraft_schema(preset)
    assert ActionSchema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


@pytest.mark.parametrize("preset", PRESETS)
def test_scripts_say_every_action(preset: str) -> None:
    schema = minecraft_schema(preset)
    actions = to_schema_action(random_actions(60), schema)
    np.testing.assert_array_equal(parse_actions(format_actions(actions, schema), schema), actions)
    walk = parse_actions("forward+jump*20,forward+attack+look_left,hotbar.3", schema)
    assert len(walk) == 22
    assert pressed(to_environment_action(walk[0], schema)) == {"forward", "jump"}
    turned = to_environment_action(walk[20], schema)
    assert pressed(turned) == {"forward", "attack"}
    assert turned["camera"].tolist() == [0.0, -5.0]
    assert pressed(to_environment_action(walk[21], schema)) == {"hotbar.3"}
    with pytest.raises(ActionError, match="sets the group 'forward_back' twice"):
        parse_actions("forward+back", schema)


def test_our_schema_keeps_every_combination_of_keys() -> None:
    many = random_actions(3000)
    back = to_environment_action(to_schema_action(many, OURS), OURS)
    for key in ENVIRONMENT_KEYS:
        np.testing.assert_array_equal(back[key], many[key])
    assert OURS.numbering is None
    tokenizer = ActionTokenizer(OURS)
    assert all(len(slot) > 1 for slot in tokenizer.slot_ids)
    everything = to_schema_action(dict.fromkeys(ENVIRONMENT_KEYS, 1), OURS)
    decoded = tokenizer.decode(tokenizer.encode(everything))
    assert pressed(to_environment_action(decoded, OURS)) == set(ENVIRONMENT_KEYS)


def test_our_camera_tells_pixels_apart_and_keeps_turns_within_eight_percent() -> None:
    axis = OURS.group("camera_yaw")
    pixels = axis.to_ids(np.arange(-3, 4) * 0.15)
    assert len(set(pixels.tolist())) == 7
    np.testing.assert_allclose(axis.from_ids(pixels)[[2, 3, 4]], [-0.15, 0.0, 0.15], atol=1e-3)
    turns = np.linspace(-90.0, 90.0, 20001)
    error = np.abs(axis.from_ids(axis.to_ids(turns)) - turns)
    assert (error <= 0.08 * np.abs(turns) + 0.15 / 2).all()
    # To MineWorld the same movements, and twice as large ones, are rest.
    assert set(MINEWORLD.group("camera_yaw").to_ids(np.arange(-6, 7) * 0.15).tolist()) == {10}


def test_mineworlds_vocabulary_is_that_of_its_checkpoints() -> None:
    tokenizer = ActionTokenizer(MINEWORLD)
    assert tokenizer.num_slots == 11
    assert tokenizer.vocabulary_size == 70
    rest = tokenizer.encode(to_schema_action({}, MINEWORLD))
    assert rest.tolist() == [65, 33, 54, 66, 66, 66, 66, 66, 66, 66, 67]
    used = set(np.concatenate(tokenizer.slot_ids).tolist())
    # Swapping hands, the inventory and escape have ids of their own, and no slot.
    assert set(range(68)) - used == {10, 12, 13}
    assert used <= set(range(68))


@pytest.mark.parametrize("preset", ["mineworld", "vpt_camera"])
def test_mineworlds_exclusive_keys_make_none_and_the_lowest_number_wins(preset: str) -> None:
    schema = minecraft_schema(preset)
    rest = schema.rest()
    for pair in EXCLUSIVE:
        np.testing.assert_array_equal(to_schema_action(dict.fromkeys(pair, 1), schema), rest)
        for key in pair:
            action = to_schema_action({key: 1}, schema)
            assert pressed(to_environment_action(action, schema)) == {key}
    for key in ("swapHands", "inventory", "ESC"):
        np.testing.assert_array_equal(to_schema_action({key: 1}, schema), rest)
    many = random_actions(500)
    back = to_environment_action(to_schema_action(many, schema), schema)
    for index in range(500):
        wanted = pressed(one(many, index)) - {"swapHands", "inventory", "ESC"}
        for pair in EXCLUSIVE:
            wanted -= set(pair) if wanted.issuperset(pair) else set()
        numbers = sorted(key for key in wanted if key.startswith("hotbar"))
        assert pressed(one(back, index)) == wanted - set(numbers[1:])


def test_the_camera_keeps_fractions_and_is_clipped_to_its_limits() -> None:
    for schema in (OURS, MINEWORLD):
        camera = to_schema_action({"camera": [-0.45, 720]}, schema)[:2]
        assert camera.tolist() == [-0.45, 90.0]
    camera = to_schema_action({"camera": (33, -12.5)}, minecraft_schema("vpt_camera"))[:2]
    assert camera.tolist() == [10.0, -10.0]


def test_conversions_broadcast_over_any_leading_axes() -> None:
    action = to_schema_action({"forward": 1, "camera": np.zeros((2, 3, 2))}, OURS)
    assert action.shape == (2, 3, OURS.num_groups)
    environment = to_environment_action(action, OURS)
    assert environment["forward"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert environment["camera"].shape == (2, 3, 2)
    assert to_schema_action({"jump": np.ones(0, dtype=bool)}, OURS).shape == (0, OURS.num_groups)


@pytest.mark.parametrize("preset", PRESETS)
def test_keys_of_the_player_combine_and_of_one_group_the_last_wins(preset: str) -> None:
    schema = minecraft_schema(preset)
    for codes, wanted in [
        (["KeyW", "Space", "ControlLeft", "Mouse0"], {"forward", "jump", "sprint", "attack"}),
        (["KeyW", "KeyS", "Digit3", "Digit7"], {"back", "hotbar.7"}),
        (["Mouse2", "Mouse1", "ShiftLeft", "KeyA", "KeyD"], {"use", "pickItem", "sneak", "right"}),
        (["KeyQ", "Escape"], {"drop"}),
    ]:
        action = actions_from_keys(codes, schema)
        assert pressed(to_environment_action(action, schema)) == wanted
    more = pressed(to_environment_action(actions_from_keys(["KeyE", "KeyF"], schema), schema))
    assert more == ({"inventory", "swapHands"} if preset == "minecraft" else set())


@pytest.mark.parametrize("preset", PRESETS)
def test_the_pointer_turns_the_camera_as_the_recorder_does(preset: str) -> None:
    pointer = minecraft_schema(preset).pointer
    assert {direction: axis.group for direction, axis in pointer.items()} == {
        "x": "camera_yaw",
        "y": "camera_pitch",
    }
    assert all(axis.per_pixel == 360 / 2400 for axis in pointer.values())


def test_whole_numbers_and_fractions_describe_one_schema() -> None:
    whole = mineworld_schema(camera_limit=90, camera_bin_width=9, vocabulary_size=70)
    assert json.dumps(whole.to_json()) == json.dumps(MINEWORLD.to_json())


def test_another_camera_makes_another_vocabulary() -> None:
    schema = mineworld_schema(camera_limit=20.0, camera_bin_width=5.0, mu=0.0)
    assert ActionTokenizer(schema).vocabulary_size == 23 + 2 * 9 + 3
    assert to_schema_action({"camera": [5.0, -10.0]}, schema)[:2].tolist() == [5.0, -10.0]
    small = mineworld_schema(camera_limit=2.0, camera_bin_width=1.0)
    assert parse_action("look_up", small)[0] == -2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"camera_bin_width": 0.0}, "bin width must divide its limit of 90 degrees.*got 0"),
        ({"camera_bin_width": 8.0}, "bin width must divide its limit of 90 degrees.*got 8"),
        ({"camera_bin_width": 180.0}, "bin width must divide its limit"),
        ({"camera_limit": -9.0}, "bin width must divide its limit of -9 degrees"),
        ({"camera_limit": float("inf")}, "bin width must divide its limit of inf"),
        ({"mu": -1.0}, "mu of 0 or more"),
        ({"vocabulary_size": 60}, "holds the id 65; ids are whole numbers from 0 to 59"),
    ],
)
def test_settings_of_mineworld_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ActionError, match=message):
        mineworld_schema(**settings)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ActionError, match="'minekraft'; there are minecraft, mineworld, vpt_cam"):
        minecraft_schema("minekraft")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"fly": 1}, "no key 'fly'; it has ESC, attack.*use and camera"),
        ({"jump": 2}, "'jump' of a Minecraft action takes 0 or 1, got 2"),
        ({"jump": "yes"}, "'jump' of a Minecraft action takes 0 or 1, got 'yes'"),
        ({"jump": None}, "takes 0 or 1, got None"),
        ({"jump": float("nan")}, "takes 0 or 1, got nan"),
        ({"camera": 3}, "two finite numbers.*got 3"),
        ({"camera": [1, 2, 3]}, r"two finite numbers.*got \[1, 2, 3\]"),
        ({"camera": [[1, 2], [3]]}, "two finite numbers"),
        ({"camera": ["up", 0]}, "two finite numbers"),
        ({"camera": [float("nan"), 0]}, "two finite numbers"),
        ({"jump": [0, 1], "camera": np.zeros((3, 2))}, r"of one length.*\(2,\).*\(3, 2\)"),
        ({"jump": [0, 1], "use": [0, 1, 1]}, r"of one length.*\(2,\), \(3,\)"),
    ],
)
def test_dictionaries_that_are_no_action_are_refused(action: dict[str, Any], message: str) -> None:
    with pytest.raises(ActionError, match=message):
        to_schema_action(action, OURS)


def test_arrays_and_schemas_of_others_are_refused() -> None:
    with pytest.raises(ActionError, match=r"12 groups, got shape \(3,\)"):
        to_environment_action(np.zeros(3), OURS)
    wrong = OURS.rest()
    wrong[OURS.group_index("jump")] = 2
    with pytest.raises(ActionError, match=r"'jump' got 2; allowed are 0 to 1 \(none, jump\)"):
        to_environment_action(wrong, OURS)
    car = parse_schema({"kind": "categorical", "name": "steering", "options": ["none", "wheel"]})
    with pytest.raises(ActionError, match=r"'steering' has the option 'wheel'.*Minecraft schema"):
        to_schema_action({}, car)
    axis = parse_schema({"kind": "axis", "name": "gas", "low": 0, "high": 1, "bins": 3})
    with pytest.raises(ActionError, match="'gas' is not of a Minecraft schema; its axes are cam"):
        to_schema_action({}, axis)


def parse_schema(group: dict[str, Any]) -> ActionSchema:
    """Return the schema of one group."""
    return ActionSchema.from_json({"groups": [group], "named": {}, "keys": {}})
