"""Where commands write, and what they say on the way."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldgen.checkpoint import check_new_folder, write_text
from worldgen.data.outputs import check_frame_output
from worldgen.errors import DataError

__all__ = ["check_apart", "check_frames", "check_output", "json_path", "note", "write_json"]


def check_output(path: Path | None) -> None:
    """Refuse a place that cannot be written before minutes are spent on what goes there."""
    if path is None:
        return
    if path.is_dir():
        raise DataError(f"cannot write {path}: it is a folder; choose another file")
    _check_folder_of(path)


def check_frames(path: Path | None) -> None:
    """Refuse a place for frames as `check_output` does, which is a folder if it has no ending."""
    if path is None:
        return
    check_frame_output(path)
    if path.suffix:
        check_output(path)
    else:
        check_new_folder(path)
        _check_folder_of(path)


def check_apart(written: Mapping[str, Path | None], read: Mapping[str, object]) -> None:
    """Refuse to write one file twice, or over one that is read.

    Args:
        written: Files by the options that name them; None: not written.
        read: The same of what is read.

    Raises:
        DataError: If a file is named by two of the options, one of which writes it.
    """
    named = [(option, path) for option, path in written.items() if path is not None]
    others = named + [(option, path) for option, path in read.items() if path is not None]
    for option, path in named:
        for other, other_path in others:
            if option != other and os.path.realpath(path) == os.path.realpath(str(other_path)):
                raise DataError(f"{option} and {other} both name {path}; choose another file")


def json_path(arguments: Namespace) -> Path | None:
    """Return the file that figures go to; None if they go nowhere or to standard output."""
    return None if arguments.json in {None, "-"} else Path(arguments.json)


def write_json(document: dict[str, Any], destination: str) -> None:
    """Write figures to a file, or to standard output where the destination is `-`."""
    text = json.dumps(document, indent=2) + "\n"
    if destination == "-":
        print(text, end="")
    else:
        write_text(Path(destination), text)


def note(text: str) -> None:
    """Say something beside the output."""
    print(f"worldgen: {text}", file=sys.stderr)


def _check_folder_of(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(f"cannot write {path}: {folder} cannot be written to; choose another place")
