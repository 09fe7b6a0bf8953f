"""MineWorld's validation clips: video, and a ready-made action of the environment for each frame."""

import ast
import math
import re
from pathlib import Path

from worldgen.data.formats.pairs import LineReader, Pair, PairLayout, first_object, read_object
from worldgen.data.formats.recorder import ActionLine
from worldgen.errors import DataError
from worldgen.tokenizers.action.minecraft import ENVIRONMENT_KEYS

__all__ = ["MineWorldValidation"]

_NAME = re.compile(r".+_\d+")
_LONGEST_LITERAL = 1 << 14
_LOOKED_AT = 20


class MineWorldValidation(PairLayout):
    """Clips `NAME_NUMBER.mp4` with `NAME_NUMBER.jsonl` beside them.

    A line is the environment's dictionary, the camera in fractions of a degree. Upstream runs the
    lines as Python; here they are read as JSON, or as a Python literal, which runs nothing. Line k
    belongs to frame k, whose action it is.
    """

    name = "mineworld_validation"
    looks_like = (
        "MineWorld's validation clips: NAME_NUMBER.mp4 beside NAME_NUMBER.jsonl of actions with a "
        "camera pair"
    )

    @staticmethod
    def detect(path: Path) -> bool:
        """Return whether there are lines of ready-made actions."""
        if path.is_dir():
            candidates = [entry for entry in path.rglob("*.jsonl") if _NAME.fullmatch(entry.stem)][
                :_LOOKED_AT
            ]
        else:
            candidates = [path.with_suffix(".jsonl")]
        for entry in candidates:
            action = first_object(entry, _read_literal)
            if "camera" in action and action.keys() & set(ENVIRONMENT_KEYS):
                return True
        return False

    def pairs(self) -> list[Pair]:
        """Return the clips of the folder, or the one file."""
        if self.path.is_file():
            return [Pair(stem=self.path.with_suffix(""))]
        files = [*self.root.rglob("*.mp4"), *self.root.rglob("*.jsonl")]
        stems = {file.with_suffix("") for file in files if _NAME.fullmatch(file.stem)}
        return [Pair(stem=stem) for stem in sorted(stems)]

    def line_reader(self, pair: Pair) -> LineReader:
        """Return what takes each line for itself."""
        return _read_action

    def read_line(self, text: bytes) -> object:
        """Return a line written as JSON or as a Python literal."""
        return _read_literal(text)


def _read_literal(text: bytes) -> object:
    try:
        return read_object(text)
    except DataError:
        # A literal of a few hundred characters is an action; more would only cost time.
        if len(text) > _LONGEST_LITERAL:
            raise
        try:
            return ast.literal_eval(text.decode("utf-8").strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
        raise


def _read_action(record: object) -> ActionLine:
    if not isinstance(record, dict):
        raise DataError(f"an action is an object, got {type(record).__name__}")
    camera = record.get("camera", [0.0, 0.0])
    if not (
        isinstance(camera, list | tuple)
        and len(camera) == 2
        and all(type(turn) in (int, float) and math.isfinite(turn) for turn in camera)
    ):
        raise DataError(f"camera is {str(camera)[:40]}, not pitch and yaw in degrees")
    action = {key: record[key] for key in ENVIRONMENT_KEYS if key in record}
    for key, value in action.items():
        if type(value) not in (int, float, bool) or value not in (0, 1):
            raise DataError(f"{key} is {str(value)[:40]}, not 0 or 1")
    unknown = sorted(str(key) for key in record.keys() - {*ENVIRONMENT_KEYS, "camera"})
    return ActionLine(
        action={**action, "camera": list(camera)},
        unknown=tuple(f"unknown key {key[:40]!r}, ignored" for key in unknown),
    )
