"""Lines of the Minecraft recorder of VPT: what they mean, with and without their traps.

The recorder and its conversion are those of Baker et al., "Video PreTraining (VPT): Learning to Act
by Watching Unlabeled Online Videos", 2022 (arXiv:2206.11795). Contractors played in a window 720
pixels high; 2,400 mouse units turn the player around once.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from worldgen.errors import DataError
from worldgen.tokenizers.action.minecraft import DEGREES_PER_PIXEL, ENVIRONMENT_KEYS

__all__ = [
    "CURSOR_HEIGHT",
    "ActionLine",
    "RecorderLines",
    "gui_camera_scale",
    "parity_action",
]

CURSOR_HEIGHT = 720.0
"""Height of the window in which cursor positions are counted."""

_KEYS = {
    "key.keyboard.escape": "ESC",
    "key.keyboard.s": "back",
    "key.keyboard.q": "drop",
    "key.keyboard.w": "forward",
    **{f"key.keyboard.{number}": f"hotbar.{number}" for number in range(1, 10)},
    "key.keyboard.e": "inventory",
    "key.keyboard.space": "jump",
    "key.keyboard.a": "left",
    "key.keyboard.d": "right",
    "key.keyboard.left.shift": "sneak",
    "key.keyboard.left.control": "sprint",
    "key.keyboard.f": "swapHands",
}
_BUTTONS = {0: "attack", 1: "use", 2: "pickItem"}

# In windows, these recorders wrote mouse movement in another unit.
_GUI_SCALES = {"5.7": 0.5, "5.8": 0.5, "6.7": 2.0, "6.8": 2.0, "6.9": 2.0}
_VERSION = re.compile(r"(\d{1,2}\.\d{1,2})(\.\d+)?")

_LINE_FIELDS = frozenset(
    {
        *("mouse", "keyboard", "isGuiOpen", "isGuiInventory", "hotbar", "inventory", "stats"),
        *("yaw", "pitch", "xpos", "ypos", "zpos"),
        *("tick", "milli", "serverTick", "serverTickDurationMs"),
    }
)
_MOUSE_FIELDS = frozenset(
    {"x", "y", "dx", "dy", "scaledX", "scaledY", "dwheel", "buttons", "newButtons"}
)
_KEYBOARD_FIELDS = frozenset({"keys", "newKeys", "chars"})
_POSITION = {"x": "xpos", "y": "ypos", "z": "zpos", "yaw": "yaw", "pitch": "pitch"}


@dataclass(frozen=True, kw_only=True)
class ActionLine:
    """One line of a recording, understood.

    Attributes:
        action: The environment's dictionary: key -> 0 or 1, and `camera`, pitch and yaw in degrees.
        gui: A window of the game is open.
        cursor: Place of the cursor in a window `CURSOR_HEIGHT` high, where it shows.
        values: Column -> number, NaN where the line does not tell.
        unknown: Parts that mean nothing to us.
    """

    action: Mapping[str, Any]
    gui: bool = False
    cursor: tuple[float, float] | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def gui_camera_scale(version: str) -> float:
    """Return the factor on mouse movement in windows, by the version of the recorder.

    Args:
        version: Such as "6.9"; empty when unknown, which counts as 1.
    """
    match = _VERSION.fullmatch(version)
    return _GUI_SCALES.get(match[1], 1.0) if match else 1.0


class RecorderLines:
    """Turns the lines of one recording, in their order, into actions.

    Attack that is down from the first line on without the player having clicked is taken away until
    the attack button is newly pressed. Which slot of the hotbar is selected decides about hotbar
    actions whenever it changes, since the mouse wheel is not recorded; the key counts otherwise.
    Camera stays fractional, and lines in which nothing happens are actions like others.

    Args:
        version: Of the recorder; empty when unknown.
    """

    def __init__(self, version: str = "") -> None:
        self._gui_scale = gui_camera_scale(version)
        self._first = True
        self._attack_is_stuck = False
        self._hotbar: int | None = None

    def read(self, record: object) -> ActionLine:
        """Return what a line means.

        Raises:
            DataError: If the line lacks what an action is made of; it then changes nothing.
        """
        line = _object(record, "the line")
        mouse, keyboard = (
            _object(line.get("mouse"), "mouse"),
            _object(line.get("keyboard"), "keyboard"),
        )
        buttons, new_buttons = _list(mouse, "buttons"), _list(mouse, "newButtons")
        pressed = {_KEYS[key] for key in _names(keyboard, "keys") if key in _KEYS}
        turn = (_number(mouse, "dy"), _number(mouse, "dx"))
        gui = line.get("isGuiOpen", False)
        if not isinstance(gui, bool):
            raise DataError(f"isGuiOpen is {_short(gui)}, not true or false")
        hotbar = line.get("hotbar")
        if hotbar is not None and (type(hotbar) is not int or not 0 <= hotbar <= 8):
            raise DataError(f"hotbar is {_short(hotbar)}, not a slot from 0 to 8")
        cursor = (_optional(mouse.get("x")), _optional(mouse.get("y")))

        if self._first:
            self._attack_is_stuck = 0 in new_buttons
        elif 0 in new_buttons:
            self._attack_is_stuck = False
        self._first = False
        pressed |= {
            _BUTTONS[button]
            for button in buttons
            if type(button) is int
            and button in _BUTTONS
            and not (button == 0 and self._attack_is_stuck)
        }
        if hotbar is not None:
            if self._hotbar is not None and hotbar != self._hotbar:
                pressed = {key for key in pressed if not key.startswith("hotbar.")}
                pressed.add(f"hotbar.{hotbar + 1}")
            self._hotbar = hotbar

        scale = DEGREES_PER_PIXEL * (self._gui_scale if gui else 1.0)
        action = {key: int(key in pressed) for key in ENVIRONMENT_KEYS}
        values = {name: _optional(line.get(source)) for name, source in _POSITION.items()}
        return ActionLine(
            action={**action, "camera": [turn[0] * scale, turn[1] * scale]},
            gui=gui,
            cursor=cursor if gui and all(map(math.isfinite, cursor)) else None,
            values={**values, "hotbar": -1 if hotbar is None else hotbar},
            unknown=tuple(_unknown(line, mouse, keyboard)),
        )


def parity_action(record: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return MineWorld's own action for a recorder line, and whether it calls the line empty.

    For comparison with its numbers only. Each line stands for itself, so no trap is handled; the
    camera is cut to whole degrees toward zero; of contradicting keys both are released, one pair
    after the other, so that jump with sneak and sprint leaves sprint. A line counts as empty when
    nothing is pressed or moved, and whenever inventory or escape is down.

    Args:
        record: A well-formed line.
    """
    mouse = record["mouse"]
    pressed = {_KEYS[key] for key in record["keyboard"]["keys"] if key in _KEYS}
    pressed |= {_BUTTONS[button] for button in mouse["buttons"] if button in _BUTTONS}
    moved = mouse["dx"] != 0 or mouse["dy"] != 0
    is_null = not (pressed or moved) or bool(pressed & {"inventory", "ESC"})
    for pair in (
        {"forward", "back"},
        {"left", "right"},
        {"jump", "sneak"},
        {"sprint", "sneak"},
        {"attack", "use"},
    ):
        if pair <= pressed:
            pressed -= pair
    camera = [int(mouse["dy"] * DEGREES_PER_PIXEL), int(mouse["dx"] * DEGREES_PER_PIXEL)]
    return {**{key: int(key in pressed) for key in ENVIRONMENT_KEYS}, "camera": camera}, is_null


def _unknown(
    line: Mapping[str, Any], mouse: Mapping[str, Any], keyboard: Mapping[str, Any]
) -> Iterator[str]:
    for name in sorted(line.keys() - _LINE_FIELDS):
        yield f"unknown key {_short(name)}, ignored"
    for part, fields, known in (
        ("mouse", mouse, _MOUSE_FIELDS),
        ("keyboard", keyboard, _KEYBOARD_FIELDS),
    ):
        for name in sorted(fields.keys() - known):
            yield f"unknown key {_short(name)} in {part}, ignored"
    for key in keyboard["keys"]:
        if key not in _KEYS:
            yield f"no action is known for {_short(key)}, ignored"
    for button in mouse["buttons"]:
        if type(button) is not int or button not in _BUTTONS:
            yield f"no action is known for mouse button {_short(button)}, ignored"


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{what} is {_short(value)}, not an object")
    return value


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise DataError(f"{name} is {_short(value)}, not a list")
    return value


def _names(fields: Mapping[str, Any], name: str) -> list[str]:
    value = _list(fields, name)
    if not all(isinstance(item, str) for item in value):
        raise DataError(f"{name} is {_short(value)}, not a list of names")
    return value


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = _optional(fields.get(name))
    if not math.isfinite(value):
        raise DataError(f"{name} of the mouse is {_short(fields.get(name))}, not a finite number")
    return value


def _optional(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _short(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
