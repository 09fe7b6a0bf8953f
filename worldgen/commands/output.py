"""Where commands write, and what they say on the way."""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from worldgen.checkpoint import write_text
from worldgen.errors import DataError

__all__ = ["check_output", "json_path", "note", "write_json"]


def check_output(path: Path | None) -> None:
    """Refuse a place that cannot be written before minutes are spent on what goes there."""
    if path is None:
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "it is a folder" if path.is_dir() else f"{folder} cannot be written to"
        raise DataError(f"cannot write {path}: {reason}; choose another file")


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
