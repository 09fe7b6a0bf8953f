"""Recordings of VPT's contractors: video, one recorder line for each frame, options, an index."""

import json
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import ClassVar

from worldgen.data.episodes import Column
from worldgen.data.formats.base import Reading
from worldgen.data.formats.pairs import LineReader, Pair, PairLayout, first_object
from worldgen.data.formats.recorder import RecorderLines

__all__ = ["VptRecordings"]

_VERSION = re.compile(r"\d{1,2}\.\d{1,2}(\.\d+)?")
_VERSION_KEYS = ("recorderVersion", "recorder_version", "minerecVersion", "minerec_version")
_NAMED_MISSING = 3
_LOOKED_AT = 20


class VptRecordings(PairLayout):
    """Contractor recordings of VPT (arXiv:2206.11795), BASALT's among them.

    The version of the recorder, which decides about the camera in windows, is taken from the
    recording's options, from an index that lists it, or from the name of its folder ("6.9").
    """

    name = "vpt"
    looks_like = "VPT contractor recordings: NAME.mp4 beside NAME.jsonl of recorder lines"
    has_versions = True
    columns: ClassVar[Mapping[str, Column]] = {
        "gui": Column(dtype="bool", meaning="a window of the game is open"),
        "hotbar": Column(dtype="int64", meaning="selected slot, 0 to 8; -1 unknown"),
        "x": Column(dtype="float64", unit="block", meaning="position; NaN unknown"),
        "y": Column(dtype="float64", unit="block", meaning="height of the feet; NaN unknown"),
        "z": Column(dtype="float64", unit="block", meaning="position; NaN unknown"),
        "yaw": Column(dtype="float64", unit="degree", meaning="not wrapped; NaN unknown"),
        "pitch": Column(dtype="float64", unit="degree", meaning="down is positive; NaN unknown"),
    }

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._listed, self._missing = self._read_indices()

    @staticmethod
    def detect(path: Path) -> bool:
        """Return whether there are recorder lines, or an index of recordings."""
        if path.is_dir():
            if any(_index(entry) for entry in sorted(path.glob("*.json"))):
                return True
            candidates = list(islice(path.rglob("*.jsonl"), _LOOKED_AT))
        elif path.suffix == ".json":
            return _index(path) is not None
        else:
            candidates = [path.with_suffix(".jsonl")]
        return any({"mouse", "keyboard"} <= first_object(entry).keys() for entry in candidates)

    def pairs(self) -> list[Pair]:
        """Return the recordings of the folder, or of its index, or the one file."""
        if self.path.is_file() and self.path.suffix != ".json":
            stems = {self.path.with_suffix("")}
        else:
            files = [*self.root.rglob("*.mp4"), *self.root.rglob("*.jsonl")]
            stems = {file.with_suffix("") for file in files if not file.name.startswith(".")}
            if self.path.is_file():
                stems = {stem for stem in stems if stem.name in self._listed}
        return [Pair(stem=stem, version=self._version(stem)) for stem in sorted(stems)]

    def line_reader(self, pair: Pair) -> LineReader:
        """Return a reader that undoes the recorder's traps, which reach from line to line."""
        return RecorderLines(pair.version).read

    def note_missing(self, reading: Reading) -> None:
        """Note what an index lists and the folder lacks."""
        for index, missing in self._missing.items():
            named = ", ".join(missing[:_NAMED_MISSING])
            more = f" and {len(missing) - _NAMED_MISSING:,} more" * (len(missing) > _NAMED_MISSING)
            reading.note(index, f"lists {named}{more}, not in this folder")

    def _version(self, stem: Path) -> str:
        options = _read_json(stem.with_name(f"{stem.name}-options.json"))
        if isinstance(options, dict):
            for key in _VERSION_KEYS:
                if isinstance(options.get(key), str) and _VERSION.fullmatch(options[key]):
                    return str(options[key])
        return self._listed.get(stem.name) or _folder_version(stem.parent.name)

    def _read_indices(self) -> tuple[dict[str, str], dict[str, list[str]]]:
        """Return version by name of recording, and what is missing by name of index."""
        paths = [self.path] if self.path.suffix == ".json" else sorted(self.root.glob("*.json"))
        listed: dict[str, str] = {}
        missing: dict[str, list[str]] = {}
        here: set[str] | None = None
        for path in paths:
            relative_paths = _index(path)
            if relative_paths is None:
                continue
            if here is None:
                here = {file.stem for file in self.root.rglob("*.mp4")}
            for relative_path in relative_paths:
                # Names from an index are compared, never opened.
                name = PurePosixPath(relative_path)
                listed[name.stem] = _folder_version(name.parent.name)
                if name.stem not in here:
                    missing.setdefault(path.name, []).append(relative_path)
        return listed, missing


def _folder_version(name: str) -> str:
    return name if _VERSION.fullmatch(name) else ""


def _index(path: Path) -> list[str] | None:
    """Return what an index of recordings lists, None if the file is none."""
    if path.name.endswith("-options.json"):
        return None
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("relpaths"), list):
        return None
    return [entry for entry in content["relpaths"] if isinstance(entry, str)]


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
