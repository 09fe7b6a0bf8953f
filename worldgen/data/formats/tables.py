"""Tables and descriptions of LeRobot data sets: parquet and JSON, with every mistake named."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from worldgen.errors import DataError

__all__ = ["flat_names", "json_lines", "read_object_file", "read_table", "whole_number"]


def read_table(path: Path, columns: Sequence[str]) -> Any:
    """Return columns of a parquet file.

    Args:
        path: The file.
        columns: Their names; others are not read.

    Raises:
        DataError: If the file is missing, damaged or lacks a column, or pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            "LeRobot's tables are parquet files, which need pyarrow: pip install pyarrow"
        ) from error
    if not path.is_file():
        raise DataError(f"{path} is missing; copy the data set again")
    try:
        return parquet.ParquetFile(path).read(columns=list(columns)).select(list(columns))
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged or lacks {', '.join(columns)} ({error})") from error


def read_object_file(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        DataError: If the file is missing, damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no object; copy it again")
    return content


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that has one in each line.

    Raises:
        DataError: If the file is missing, or a line holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy the data set again") from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number} is not JSON ({error}); copy it again") from error
        if not isinstance(entry, dict):
            raise DataError(f"{path}:{number} is no object; copy the data set again")
        yield entry


def flat_names(names: object) -> tuple[str, ...]:
    """Return the names of a vector's entries, which come flat, nested, as indices, or not at all."""
    if isinstance(names, dict):
        if names and all(type(place) is int for place in names.values()):
            return tuple(sorted(map(str, names), key=lambda name: int(names[name])))
        return flat_names(list(names.values()))
    if isinstance(names, list):
        return tuple(
            flat
            for entry in names
            for flat in (flat_names(entry) if isinstance(entry, list | dict) else (str(entry),))
        )
    return ()


def whole_number(value: object, what: str) -> int:
    """Return a value that must be a whole number, zero or more.

    Args:
        value: As read.
        what: Its name, for the message.

    Raises:
        DataError: If it is none.
    """
    if type(value) is not int or value < 0:
        raise DataError(f"{what} is {value!r}; it must be a whole number")
    return value
