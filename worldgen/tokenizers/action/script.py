"""Actions as people write and press them: "left*20,left+gas*4", and keys held down."""

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Num

from worldgen.errors import ActionError
from worldgen.tokenizers.action.schema import ActionSchema, Setting

__all__ = ["MAX_STEPS", "actions_from_keys", "format_actions", "parse_action", "parse_actions"]

MAX_STEPS = 1_000_000
"""Most steps that one action string may stand for."""

_COUNT = re.compile(r"[0-9]{1,9}")


def parse_actions(text: str, schema: ActionSchema) -> Num[np.ndarray, "step group"]:
    """Return the actions that a string such as "left*20, left+gas*4, gas*40" stands for.

    Parts are joined by commas; `*n` repeats a part n times; `+` combines actions that set different
    groups. Beside the schema's named actions, `group=value` sets one group: "steering=left" or
    "steering=-0.25". White space is ignored.

    Raises:
        ActionError: If a part is empty, names an unknown action, sets a group twice, or has a
            count that is not a whole number from 1 on; or if the steps exceed `MAX_STEPS`. The
            message quotes the part and says where it stands.
    """
    actions, counts, start, total = [], [], 0, 0
    for number, part in enumerate(text.split(","), start=1):
        place = f"part {number} of the actions, {part.strip()!r} at character {start + 1}"
        try:
            action, count = _parse_part(part, schema)
        except ActionError as error:
            raise ActionError(f"{place}: {error}") from None
        actions.append(action)
        counts.append(count)
        total += count
        if total > MAX_STEPS:
            raise ActionError(f"{place}: more than {MAX_STEPS:,} steps in all; shorten the rollout")
        start += len(part) + 1
    return np.repeat(np.stack(actions), counts, axis=0)


def parse_action(text: str, schema: ActionSchema) -> Num[np.ndarray, " group"]:
    """Return the one action that a string such as "left+gas" stands for.

    Raises:
        ActionError: As `parse_actions`, and if the string stands for more than one step.
    """
    actions = parse_actions(text, schema)
    if len(actions) != 1:
        raise ActionError(f"one action is needed, such as 'left', got {len(actions)} in {text!r}")
    return np.asarray(actions[0])


def format_actions(actions: Num[np.ndarray, "step group"], schema: ActionSchema) -> str:
    """Return the string that `parse_actions` turns into these actions, runs written once."""
    runs = itertools.groupby(np.asarray(actions).tolist())
    parts = []
    for values, run in runs:
        count = len(list(run))
        name = _name_action(values, schema)
        parts.append(name if count == 1 else f"{name}*{count}")
    return ",".join(parts)


def actions_from_keys(codes: Iterable[str], schema: ActionSchema) -> Num[np.ndarray, " group"]:
    """Return the action of the keys that are down.

    Args:
        codes: `KeyboardEvent.code` of each key that is down, in the order of pressing. Keys without
            an action do nothing; where two set the same group, the one pressed last wins, also
            where the group has an option for both: a player who rolls from one key to the other
            means the other.
        schema: Holds the keys.
    """
    settings: dict[str, Setting] = {}
    for code in codes:
        if code in schema.keys:
            settings.update(schema.named[schema.keys[code]])
    return schema.action(settings)


def _parse_part(part: str, schema: ActionSchema) -> tuple[np.ndarray, int]:
    expression, star, count_text = part.partition("*")
    count_text = count_text.strip()
    if star and (not _COUNT.fullmatch(count_text) or int(count_text) < 1):
        raise ActionError(
            f"after * comes a whole number from 1 to {MAX_STEPS:,}, such as left*20, "
            f"got {count_text!r}"
        )
    settings: dict[str, Setting] = {}
    for term in expression.split("+"):
        for group, setting in _parse_term(term.strip(), schema).items():
            if group in settings:
                raise ActionError(
                    f"sets the group {group!r} twice, to {settings[group]} and to {setting}; "
                    "choose one"
                )
            settings[group] = setting
    return schema.action(settings), int(count_text) if star else 1


def _parse_term(term: str, schema: ActionSchema) -> dict[str, Setting]:
    if term in schema.named:
        return dict(schema.named[term])
    group, equals, value = (piece.strip() for piece in term.partition("="))
    if equals:
        schema.group(group).value(value)
        return {group: value}
    allowed = f"named are {', '.join(schema.named)}" if schema.named else "this world names none"
    example = schema.groups[0]
    allowed += f"; or set a group, such as {example.name}={example.setting(example.rest)}"
    if not term:
        raise ActionError(f"an action is missing; {allowed}")
    close = difflib.get_close_matches(term, schema.named, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ActionError(f"there is no action {term!r}{hint}; {allowed}")


def _name_action(values: Sequence[int | float], schema: ActionSchema) -> str:
    """Return the shortest expression for one action: named actions first, then `group=value`."""
    rest = schema.rest().tolist()
    for name, settings in schema.named.items():
        if schema.action(settings).tolist() == list(values):
            return name
    left = {index for index, value in enumerate(values) if value != rest[index]}
    terms = []
    # The named action that settles most groups goes first.
    for name, settings in sorted(schema.named.items(), key=lambda item: -len(item[1])):
        indices = {schema.group_index(group) for group in settings}
        action = schema.action(settings).tolist()
        if indices and indices <= left and all(action[i] == values[i] for i in indices):
            terms.append(name)
            left -= indices
    for index in sorted(left) or ([] if terms else [0]):
        group = schema.groups[index]
        # A plus sign joins actions, so 1e+20 is written 1e20.
        terms.append(f"{group.name}={group.setting(values[index])}".replace("e+", "e"))
    return "+".join(terms)
