"""Minecraft: schemas of its keys and its camera, and the environment's dictionaries to and fro.

The environment's action (MineRL 1.0, and the recordings of VPT, arXiv:2206.11795) is a dictionary
with a 0 or a 1 for each key of `ENVIRONMENT_KEYS` and `camera`, the turn of this step in degrees:
pitch (positive looks down), then yaw (positive looks right).

In every schema here the options of a choice are "none" and the environment's own names of keys;
keys that are down together are joined, as in "forward&back".
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from worldgen.errors import ActionError
from worldgen.tokenizers.action.groups import Categorical, Group, MuLawAxis, Setting
from worldgen.tokenizers.action.numbering import GroupIds, Numbering
from worldgen.tokenizers.action.schema import ActionSchema, PointerAxis

__all__ = [
    "DEGREES_PER_PIXEL",
    "ENVIRONMENT_KEYS",
    "PRESETS",
    "minecraft_schema",
    "mineworld_schema",
    "mineworld_vocabulary",
    "to_environment_action",
    "to_schema_action",
]

PRESETS = ("minecraft", "mineworld", "vpt_camera")

DEGREES_PER_PIXEL = 360 / 2400
"""How far the recorder of VPT turns the camera for one unit of its mouse."""

_HOTBAR = tuple(f"hotbar.{number}" for number in range(1, 10))

ENVIRONMENT_KEYS: tuple[str, ...] = (
    "ESC",
    "attack",
    "back",
    "drop",
    "forward",
    *_HOTBAR,
    "inventory",
    "jump",
    "left",
    "pickItem",
    "right",
    "sneak",
    "sprint",
    "swapHands",
    "use",
)
"""Keys of the environment's dictionary beside `camera`."""

_CAMERA = ("camera_pitch", "camera_yaw")
"""The axes, in the order of `camera`."""

_GROUPS: Mapping[str, tuple[str, ...]] = {
    "hotbar": _HOTBAR,
    "forward_back": ("forward", "back"),
    "left_right": ("left", "right"),
    "sprint_sneak": ("sprint", "sneak"),
    "use_attack": ("use", "attack"),
    "jump": ("jump",),
    "drop_pick": ("drop", "pickItem"),
}
_MORE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "inventory": ("inventory",),
    "swap_hands": ("swapHands",),
    "escape": ("ESC",),
}

# The browser keeps Escape for itself: it lets go of the pointer.
_KEYS: Mapping[str, str] = {
    "KeyW": "forward",
    "KeyS": "back",
    "KeyA": "left",
    "KeyD": "right",
    "Space": "jump",
    "ShiftLeft": "sneak",
    "ControlLeft": "sprint",
    "Mouse0": "attack",
    "Mouse2": "use",
    "Mouse1": "pickItem",
    "KeyQ": "drop",
    "KeyE": "inventory",
    "KeyF": "swapHands",
    **{f"Digit{name[-1]}": name for name in _HOTBAR},
    "ArrowUp": "look_up",
    "ArrowDown": "look_down",
    "ArrowLeft": "look_left",
    "ArrowRight": "look_right",
}

# For those without a mouse: 100 degrees a second at the 20 steps of the game.
_LOOK_DEGREES = 5.0


def minecraft_schema(preset: str) -> ActionSchema:
    """Return the schema of a preset.

    - "mineworld": the 11 slots and the ids of MineWorld (arXiv:2504.08388), less its offset: ids
      0 to 67, in a vocabulary of 70. Two keys of one slot make none, and the inventory, swapping
      hands and escape cannot be said.
    - "vpt_camera": the same with the camera of VPT, 11 bins up to 10 degrees.
    - "minecraft": every combination of keys has an option, so keys survive exactly, and the camera
      is finer near rest.

    The camera of "minecraft" has 61 bins up to 90 degrees with mu = 100. The centres next to rest
    are then 0.15, 0.32, 0.53, 0.77 and 1.04 degrees: the first is one pixel of the recorder's
    mouse, 0.15 degrees, the smallest turn that there is. From there bins grow by 17 % each, to 65.9,
    77.0 and 90 degrees, so a turn comes back within 8 % of itself plus half a pixel. MineWorld's own
    21 bins take all below 1.05 degrees, which is seven pixels, for rest.

    Its hotbar has an option for every set of its nine keys: two overlap whenever a player rolls from
    one to the next, and then the lowest is as often the key let go as the key meant.

    Raises:
        ActionError: If there is no such preset.
    """
    if preset == "mineworld":
        return mineworld_schema(vocabulary_size=70)
    if preset == "vpt_camera":
        return mineworld_schema(camera_limit=10.0, camera_bin_width=2.0, mu=10.0)
    if preset == "minecraft":
        return _schema(
            [
                *(MuLawAxis(name, limit=90.0, bins=61, mu=100.0) for name in _CAMERA),
                *(_choice(name, keys, len(keys)) for name, keys in _GROUPS.items()),
                *(_choice(name, keys, len(keys)) for name, keys in _MORE_GROUPS.items()),
            ]
        )
    raise ActionError(f"there is no Minecraft preset {preset!r}; there are {', '.join(PRESETS)}")


def mineworld_schema(
    *,
    camera_limit: float = 90.0,
    camera_bin_width: float = 9.0,
    mu: float = 11.4887,
    vocabulary_size: int | None = None,
) -> ActionSchema:
    """Return the schema of MineWorld with another camera or vocabulary.

    Args:
        camera_limit: The largest turn of a step, in degrees.
        camera_bin_width: Width of a bin after companding, in degrees; divides `camera_limit`.
        mu: How much finer the bins near rest are; with 0 all are equal.
        vocabulary_size: Ids in all, if more than those in use.

    Raises:
        ActionError: If these contradict each other.
    """
    half = camera_limit / camera_bin_width if camera_bin_width > 0 else 0.0
    if not 1 <= half < math.inf or abs(half - round(half)) > 1e-9:
        raise ActionError(
            f"the camera's bin width must divide its limit of {camera_limit:g} degrees, so that "
            f"rest is the centre of a bin; got {camera_bin_width:g}"
        )
    bins = 2 * round(half) + 1
    # Upstream writes its limit as a whole number; here one schema has one spelling in JSON.
    axes = [MuLawAxis(name, float(camera_limit), bins, float(mu)) for name in _CAMERA]
    choices = [_choice(name, keys, 1) for name, keys in _GROUPS.items()]
    ids = mineworld_vocabulary(bins)
    slots: list[int | GroupIds] = [ids["<act_bos>"]]
    for number, axis in enumerate(axes):
        names = [f"cam_{number}_{index}" for index in range(bins)]
        slots.append(GroupIds(axis.name, tuple(ids[name] for name in names)))
    for choice in choices:
        names = ["<null_act>", *choice.options[1:]]
        slots.append(GroupIds(choice.name, tuple(ids[name] for name in names)))
    slots.append(ids["<act_eos>"])
    size = len(ids) if vocabulary_size is None else vocabulary_size
    return _schema([*axes, *choices], Numbering(tuple(slots), size))


def mineworld_vocabulary(camera_bins: int) -> dict[str, int]:
    """Return MineWorld's ids by upstream's names, counted from its first action id."""
    names = (
        *("use", "attack", "forward", "back", "left", "right", "jump", "sneak", "sprint"),
        *("drop", "swapHands", "pickItem", "inventory", "ESC", *_HOTBAR),
        *(f"cam_{axis}_{index}" for axis in range(2) for index in range(camera_bins)),
        *("<act_bos>", "<null_act>", "<act_eos>"),
    )
    return {name: index for index, name in enumerate(names)}


def to_schema_action(
    action: Mapping[str, Any], schema: ActionSchema
) -> Num[np.ndarray, "*leading group"]:
    """Return the environment's action as one of a Minecraft schema.

    Pressed keys that together are no option of their group become what MineWorld makes of them:
    the lowest number of the hotbar, and none of any others. Keys without a group are dropped, and
    the camera is clipped to its limits.

    Args:
        action: The environment's dictionary, or several in one: 0 or 1, or an array `[*leading]` of
            them, for each key; `camera` is `[*leading, 2]`. What is left out is 0.
        schema: A schema of this module, or one with groups of the same names and options.

    Raises:
        ActionError: If a key is unknown, a value is not 0 or 1, or the camera is not two numbers.
    """
    unknown = sorted(set(map(str, action)) - {*ENVIRONMENT_KEYS, "camera"})
    if unknown:
        raise ActionError(
            f"a Minecraft action has no key {unknown[0]!r}; it has "
            f"{', '.join(ENVIRONMENT_KEYS)} and camera"
        )
    pressed = {name: _pressed(name, each) for name, each in action.items() if name != "camera"}
    camera = _camera(action.get("camera", (0.0, 0.0)))
    try:
        leading = np.broadcast_shapes(
            camera.shape[:-1], *(values.shape for values in pressed.values())
        )
    except ValueError:
        shapes = {str(values.shape) for values in pressed.values()}
        raise ActionError(
            "the keys and the camera of a Minecraft action must be of one length, got keys of "
            f"shape {', '.join(sorted(shapes))} and a camera of shape {camera.shape}"
        ) from None
    result = np.empty((*leading, schema.num_groups), dtype=schema.dtype)
    for index, group in enumerate(schema.groups):
        if isinstance(group, Categorical):
            keys, _, options = _option_tables(group)
            down = sum(pressed.get(key, np.int64(0)) << bit for bit, key in enumerate(keys))
            result[..., index] = options[down]
        else:
            values = camera[..., _camera_index(group)]
            result[..., index] = np.clip(values, group.low, group.high)
    return result


def to_environment_action(
    action: Num[np.ndarray, "*leading group"], schema: ActionSchema
) -> dict[str, Any]:
    """Return an action of a Minecraft schema as the environment's; inverse of `to_schema_action`.

    Returns:
        For one action: 0 or 1 for each key, `camera` a float64 array `[2]`. For several: arrays
        `[*leading]`, int64, and `camera` `[*leading, 2]`. Keys without a group are 0.

    Raises:
        ActionError: If the last axis is not `num_groups` long, or a value is not allowed.
    """
    action = np.asarray(action)
    if action.ndim == 0 or action.shape[-1] != schema.num_groups:
        raise ActionError(
            f"an action of this schema ends in an axis of {schema.num_groups} groups, "
            f"got shape {action.shape}"
        )
    leading = action.shape[:-1]
    camera = np.zeros((*leading, 2))
    pressed = {key: np.zeros(leading, dtype=np.int64) for key in ENVIRONMENT_KEYS}
    for index, group in enumerate(schema.groups):
        if isinstance(group, Categorical):
            keys, down, _ = _option_tables(group)
            chosen = down[group.to_ids(action[..., index])]
            pressed |= {key: chosen[..., place] for place, key in enumerate(keys)}
        else:
            camera[..., _camera_index(group)] = action[..., index]
    values = pressed if leading else {key: int(value) for key, value in pressed.items()}
    return {**values, "camera": camera}


def _schema(groups: Sequence[Group], numbering: Numbering | None = None) -> ActionSchema:
    owners = {
        option: group.name
        for group in groups
        if isinstance(group, Categorical)
        for option in group.options[1:]
    }
    pressed = [name for name in (*_KEYS.values(), "ESC") if name in owners]
    named: dict[str, dict[str, Setting]] = {
        "nothing": {},
        **{name: {owners[name]: name} for name in pressed},
    }
    for group in groups:
        if isinstance(group, MuLawAxis):
            turn = min(_LOOK_DEGREES, group.limit)
            less, more = ("up", "down") if group.name == "camera_pitch" else ("left", "right")
            named |= {f"look_{less}": {group.name: -turn}, f"look_{more}": {group.name: turn}}
    return ActionSchema(
        groups=tuple(groups),
        named=named,
        keys={code: name for code, name in _KEYS.items() if name in named},
        pointer={
            "x": PointerAxis("camera_yaw", DEGREES_PER_PIXEL),
            "y": PointerAxis("camera_pitch", DEGREES_PER_PIXEL),
        },
        numbering=numbering,
    )


def _choice(name: str, keys: Sequence[str], most: int) -> Categorical:
    """Return the choice among all sets of at most so many of some keys, the smallest first."""
    sets = (chosen for count in range(1, most + 1) for chosen in combinations(keys, count))
    return Categorical(name, ("none", *("&".join(chosen) for chosen in sets)))


@cache
def _option_tables(
    group: Categorical,
) -> tuple[tuple[str, ...], Int[np.ndarray, "option key"], Int[np.ndarray, " pressed"]]:
    """Return the keys of a group, which of them each option presses, and the way back.

    The way back is a table from the keys that are down, one bit each, to the option.
    """
    chosen = [() if name == "none" else tuple(name.split("&")) for name in group.options]
    keys = tuple(dict.fromkeys(key for option in chosen for key in option))
    foreign = [key for key in keys if key not in ENVIRONMENT_KEYS]
    if foreign or chosen[0]:
        raise ActionError(
            f"action group {group.name!r} has the option {foreign[0] if foreign else group.options[0]!r}, "
            "which is not of a Minecraft schema; the first is 'none', others are keys of the "
            "environment, such as 'forward' or 'forward&back'"
        )
    down = np.array([[key in option for key in keys] for option in chosen], dtype=np.int64)
    down = down.reshape(len(chosen), len(keys))
    bits = 1 << np.arange(len(keys))
    options = np.zeros(1 << len(keys), dtype=np.int64)
    if group.name == "hotbar":
        for lowest, key in enumerate(keys):
            # The sets whose lowest bit is this one.
            options[1 << lowest :: 2 << lowest] = group.options.index(key)
    options[down @ bits] = np.arange(len(chosen))
    return keys, down, options


def _camera_index(group: Group) -> int:
    if group.name not in _CAMERA:
        raise ActionError(
            f"action axis {group.name!r} is not of a Minecraft schema; its axes are "
            f"{' and '.join(_CAMERA)}"
        )
    return _CAMERA.index(group.name)


def _pressed(name: str, values: Any) -> Int[np.ndarray, "*leading"]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or not np.all((array == 0) | (array == 1)):
        raise ActionError(f"key {name!r} of a Minecraft action takes 0 or 1, got {values!r}")
    return array.astype(np.int64)


def _camera(values: Any) -> Num[np.ndarray, "*leading 2"]:
    try:
        camera = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        camera = np.empty(0)
    if camera.shape[-1:] != (2,) or not np.isfinite(camera).all():
        raise ActionError(
            "'camera' of a Minecraft action takes two finite numbers, the turn in pitch and in "
            f"yaw in degrees, got {values!r}"
        )
    return camera
