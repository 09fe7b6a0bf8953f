"""What the descriptions of actions have in common: names, JSON objects, messages about values."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from worldgen.errors import ActionError

__all__ = ["check_name", "first_wrong", "json_fields"]

# A name is written in action strings such as "left+gas*4", so it holds none of their marks.
_NAME = re.compile(r"[^\s,+*=]+")


def json_fields(
    value: object,
    what: str,
    kinds: Mapping[str, type | tuple[type, ...]],
    optional: Mapping[str, type | tuple[type, ...]] | None = None,
) -> dict[str, Any]:
    """Return a JSON object whose keys and types are those of `kinds`, and some of `optional`.

    Raises:
        ActionError: If a key is missing or unknown, or a value has the wrong type.
    """
    if not isinstance(value, dict):
        raise ActionError(f"{what} must be a JSON object, got {type(value).__name__}")
    allowed = {**kinds, **(optional or {})}
    missing = sorted(set(kinds) - set(value))
    unknown = sorted(map(str, set(value) - set(allowed)))
    if missing or unknown:
        also = f", and may have {', '.join(optional)}" if optional else ""
        raise ActionError(
            f"{what} must have exactly the keys {', '.join(kinds)}{also}; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    for key, each in value.items():
        if not isinstance(each, allowed[key]) or isinstance(each, bool):
            raise ActionError(f"{what}: {key!r} has the wrong type, got {each!r}")
    return value


def check_name(what: str, name: str) -> None:
    """Raise ActionError if a name could not be written in an action string."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ActionError(
            f"name of {what} must not be empty nor hold spaces or any of , + * = , got {name!r}"
        )


def first_wrong(values: np.ndarray, wrong: Any) -> str:
    """Return the first wrong value as text, for a message."""
    return f"{np.atleast_1d(values)[np.atleast_1d(wrong)][0]:g}"
