"""Recorder lines: every trap undone, and upstream's own numbers where it does not undo them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.data.formats.synthetic import line
from tests.reference_cases import Case, reference_cases
from worldgen.data.formats.recorder import RecorderLines, gui_camera_scale, parity_action
from worldgen.errors import DataError


def _pressed(action: Any) -> set[str]:
    return {key for key, value in action.items() if key != "camera" and value}


@pytest.mark.parametrize(
    "case", reference_cases("mineworld", lambda config: config["kind"] == "action_tokenizer")
)
def test_mineworlds_own_conversion_comes_out_as_upstream_computed_it(case: Case) -> None:
    items = json.loads((case.folder / "actions.json").read_text())["items"]
    lines = [item for item in items if item["kind"] == "vpt"]
    assert lines
    for item in lines:
        action, is_null = parity_action(item["record"])
        assert action == item["env_action"], item["record"]
        assert is_null == item["is_null"], item["record"]


def test_upstream_cuts_the_camera_to_whole_degrees_and_we_keep_the_fractions() -> None:
    record = line(dx=-13, dy=6.5)
    assert parity_action(record)[0]["camera"] == [0, -1]
    camera = RecorderLines().read(record).action["camera"]
    assert camera == pytest.approx([0.975, -1.95], abs=1e-12)


def test_upstream_releases_contradicting_keys_one_pair_after_the_other() -> None:
    record = line(keys=["space", "left.shift", "left.control", "w", "s"], buttons=[0, 1, 2])
    assert _pressed(parity_action(record)[0]) == {"sprint", "pickItem"}
    assert _pressed(RecorderLines().read(record).action) == {
        *("jump", "sneak", "sprint", "forward", "back"),
        *("attack", "use", "pickItem"),
    }


def test_attack_that_is_down_from_the_first_line_is_no_attack_until_the_player_clicks() -> None:
    lines = RecorderLines()
    held = [lines.read(line(buttons=[0, 1], new_buttons=[0]))]
    held += [lines.read(line(buttons=[0])) for _ in range(3)]
    clicked = [
        lines.read(line(buttons=[0], new_buttons=[0])),
        lines.read(line(buttons=[0])),
        lines.read(line()),
        lines.read(line(buttons=[0], new_buttons=[0])),
    ]
    assert [_pressed(each.action) for each in held] == [{"use"}, set(), set(), set()]
    assert [_pressed(each.action) for each in clicked] == [
        {"attack"},
        {"attack"},
        set(),
        {"attack"},
    ]


def test_attack_held_over_from_an_earlier_part_of_the_session_is_an_attack() -> None:
    lines = RecorderLines()
    assert _pressed(lines.read(line(buttons=[0])).action) == {"attack"}


def test_the_hotbar_turned_by_the_wheel_is_the_key_of_the_new_slot() -> None:
    lines = RecorderLines()
    slots = [4, 4, 6, 6, 0]
    pressed = [_pressed(lines.read(line(hotbar=slot)).action) for slot in slots]
    # Which slot was selected before the recording began is nobody's action.
    assert pressed == [set(), set(), {"hotbar.7"}, set(), {"hotbar.1"}]


def test_a_key_of_the_hotbar_that_changes_nothing_is_pressed_and_one_turned_over_is_not() -> None:
    lines = RecorderLines()
    lines.read(line(hotbar=2))
    assert _pressed(lines.read(line(hotbar=2, keys=["3"])).action) == {"hotbar.3"}
    assert _pressed(lines.read(line(hotbar=7, keys=["3"])).action) == {"hotbar.8"}


@pytest.mark.parametrize(
    ("version", "factor"),
    [
        ("5.6", 1.0),
        ("5.7", 0.5),
        ("5.8", 0.5),
        ("5.9", 1.0),
        ("6.6", 1.0),
        ("6.7", 2.0),
        ("6.8", 2.0),
        ("6.9", 2.0),
        ("6.9.3", 2.0),
        ("6.10", 1.0),
        ("6.13", 1.0),
        ("10.0", 1.0),
        ("", 1.0),
        ("6.9 beta", 1.0),
    ],
)
def test_the_camera_in_windows_has_the_scale_of_the_recorders_version(
    version: str, factor: float
) -> None:
    assert gui_camera_scale(version) == factor
    lines = RecorderLines(version)
    in_window = lines.read(line(dx=10, dy=-3, gui=True)).action["camera"]
    outside = lines.read(line(dx=10, dy=-3)).action["camera"]
    assert in_window == pytest.approx([-0.45 * factor, 1.5 * factor])
    assert outside == pytest.approx([-0.45, 1.5])


def test_a_line_in_which_nothing_happens_is_an_action() -> None:
    record = line()
    assert parity_action(record)[1]
    understood = RecorderLines().read(record)
    assert _pressed(understood.action) == set()
    assert understood.action["camera"] == [0.0, 0.0]


def test_the_cursor_is_told_only_while_a_window_is_open() -> None:
    lines = RecorderLines()
    assert lines.read(line(gui=True, cursor=(12.5, 700))).cursor == (12.5, 700.0)
    assert lines.read(line(cursor=(12.5, 700))).cursor is None
    record = line(gui=True)
    del record["mouse"]["x"]
    assert lines.read(record).cursor is None


def test_where_the_player_is_becomes_columns_and_what_is_missing_not_a_number() -> None:
    record = line(hotbar=5)
    del record["yaw"]
    values = RecorderLines().read(record).values
    assert (values["x"], values["y"], values["z"], values["pitch"]) == (10.5, 64.0, -7.25, -3.5)
    assert math.isnan(values["yaw"])
    assert values["hotbar"] == 5


def _without(name: str) -> dict[str, Any]:
    record = line()
    del record[name]
    return record


def _mouse(**changes: Any) -> dict[str, Any]:
    record = line()
    record["mouse"] |= changes
    return record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], r"the line is \[\], not an object"),
        (_without("mouse"), "mouse is missing, not an object"),
        (_without("keyboard"), "keyboard is missing"),
        (_mouse(buttons=None), "buttons is missing, not a list"),
        (_mouse(dx="7"), "dx of the mouse is '7', not a finite number"),
        (_mouse(dy=float("nan")), "dy of the mouse is nan"),
        (_mouse(dy=10**400), "dy of the mouse is 1000"),
        (line(hotbar=9), "hotbar is 9, not a slot from 0 to 8"),
        (line(isGuiOpen="yes"), "isGuiOpen is 'yes'"),
    ],
)
def test_a_line_without_an_action_is_refused_and_changes_nothing(record: Any, message: str) -> None:
    lines = RecorderLines()
    lines.read(line(hotbar=1, buttons=[0], new_buttons=[0]))
    with pytest.raises(DataError, match=message):
        lines.read(record)
    # The slot is the same and attack still stuck, as if the line had not been there.
    assert _pressed(lines.read(line(hotbar=1, buttons=[0])).action) == set()


def test_what_means_nothing_is_named() -> None:
    record = line(keys=["w", "tab"], buttons=[3], gravity=1)
    record["mouse"]["wheel"] = 2
    record["keyboard"]["layout"] = "de"
    understood = RecorderLines().read(record)
    assert _pressed(understood.action) == {"forward"}
    assert understood.unknown == (
        "unknown key 'gravity', ignored",
        "unknown key 'wheel' in mouse, ignored",
        "unknown key 'layout' in keyboard, ignored",
        "no action is known for 'key.keyboard.tab', ignored",
        "no action is known for mouse button 3, ignored",
    )


def test_the_reference_cases_are_there() -> None:
    # Without them the comparison above would not run and nobody would notice.
    assert (Path(__file__).parents[2] / "reference/mineworld/actions/actions.json").is_file()
