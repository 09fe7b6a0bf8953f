"""Action vectors of tables: those of Minecraft by the names of their entries, others as axes."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Num

from worldgen.errors import DataError
from worldgen.tokenizers.action.minecraft import ENVIRONMENT_KEYS, to_schema_action
from worldgen.tokenizers.action.schema import ActionSchema, Axis

__all__ = ["MinecraftVector", "RobotVector", "VectorActions"]

_BINS = 255
_PREFIXES = ("action.", "action_", "key.", "keyboard.", "mouse.", "button.")
_CAMERA = {
    **dict.fromkeys(("camera.pitch", "camera.0", "camera.y", "pitch", "camera.dy", "dpitch"), 0),
    **dict.fromkeys(("camera.yaw", "camera.1", "camera.x", "yaw", "camera.dx", "dyaw"), 1),
}
_PRESSED = 0.5


class VectorActions(Protocol):
    """Turns action vectors into actions of a schema."""

    @property
    def schema(self) -> ActionSchema:
        """Of the actions."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about it."""

    def convert(self, vectors: Float[np.ndarray, "row entry"]) -> Num[np.ndarray, "row group"]:
        """Return actions; rows that are not finite become anything."""


class MinecraftVector:
    """Vectors with an entry for each key and two for the camera, in degrees.

    Args:
        schema: Of Minecraft.
        names: Of the entries, such as "forward", "hotbar.1", "hotbar_1" or "camera_pitch".
    """

    def __init__(self, schema: ActionSchema, names: Sequence[str]) -> None:
        self.schema = schema
        self.names = tuple(names)
        self._keys = [_minecraft_key(name) for name in names]
        self.camera = [self._keys.index(axis) for axis in (0, 1)]
        """Entries of pitch and yaw."""

    @staticmethod
    def fits(names: Sequence[str], size: int) -> bool:
        """Return whether all entries have names of Minecraft's, walking and the camera included."""
        keys = [_minecraft_key(name) for name in names]
        return (
            len(keys) == size == len(set(keys))
            and None not in keys
            and {"forward", 0, 1} <= set(keys)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Say which keys the vectors lack."""
        lacking = [key for key in ENVIRONMENT_KEYS if key not in self._keys]
        return (
            f"{len(self.names)} entries named after Minecraft's keys and camera"
            + (f"; never pressed: {', '.join(lacking)}" if lacking else ""),
        )

    def convert(self, vectors: Float[np.ndarray, "row entry"]) -> Num[np.ndarray, "row group"]:
        """Return actions; a key is down above one half."""
        _check(vectors, len(self.names))
        finite = np.nan_to_num(vectors, posinf=0.0, neginf=0.0)
        action: dict[str, Any] = {
            key: (finite[:, entry] > _PRESSED).astype(np.int64)
            for entry, key in enumerate(self._keys)
            if isinstance(key, str)
        }
        return to_schema_action({**action, "camera": finite[:, self.camera]}, self.schema)


class RobotVector:
    """Vectors of numbers: an axis for each entry.

    Args:
        names: Of the entries; numbered where they are missing.
        lows: Least value of each.
        highs: Largest value of each.
    """

    def __init__(
        self,
        names: Sequence[str],
        lows: Float[np.ndarray, " entry"],
        highs: Float[np.ndarray, " entry"],
    ) -> None:
        self.notes: tuple[str, ...] = ()
        if len(names) != len(lows):
            names = [f"action.{entry}" for entry in range(len(lows))]
            self.notes = ("the entries of the action have no names of their own",)
        axes = []
        for name, low, high in zip(_unique(names), lows.tolist(), highs.tolist(), strict=True):
            # An entry that never moves still needs an axis of some width.
            margin = 0.0 if high > low else max(1e-3, abs(low) * 1e-3)
            axes.append(Axis(name, low - margin, high + margin, _BINS))
        self.schema = ActionSchema(groups=tuple(axes))

    def convert(self, vectors: Float[np.ndarray, "row entry"]) -> Num[np.ndarray, "row group"]:
        """Return the vectors, clipped to the limits."""
        _check(vectors, self.schema.num_groups)
        axes = [group for group in self.schema.groups if isinstance(group, Axis)]
        lows, highs = np.array([axis.low for axis in axes]), np.array([axis.high for axis in axes])
        clipped: np.ndarray = np.clip(np.nan_to_num(vectors), lows, highs)
        return clipped


def _check(vectors: Float[np.ndarray, "row entry"], size: int) -> None:
    if len(vectors) and vectors.shape[1] != size:
        raise DataError(f"actions have {vectors.shape[1]} entries where {size} were announced")


def _minecraft_key(name: str) -> str | int | None:
    """Return the key of the environment that an entry is named after, or the axis of the camera."""
    plain = name.strip().lower()
    for prefix in _PREFIXES:
        plain = plain.removeprefix(prefix)
    plain = plain.replace("_", ".").replace(" ", ".").replace("[", ".").replace("]", "")
    if plain in _CAMERA:
        return _CAMERA[plain]
    if match := re.fullmatch(r"(?:hotbar|slot)\.?([1-9])", plain):
        return f"hotbar.{match[1]}"
    bare = plain.replace(".", "")
    return next((key for key in ENVIRONMENT_KEYS if key.lower() == bare), None)


def _unique(names: Sequence[str]) -> list[str]:
    """Return names without the marks of action strings, numbered where they repeat."""
    plain = [re.sub(r"[\s,+*=]+", "_", name) or "action" for name in names]
    counts: dict[str, int] = {}
    unique = []
    for name in plain:
        counts[name] = counts.get(name, 0) + 1
        numbered = name if plain.count(name) == 1 else f"{name}.{counts[name]}"
        unique.append(numbered)
    return unique
