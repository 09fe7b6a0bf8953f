"""Actions: what they are made of, their tokens, and how people and environments write them."""

from worldgen.tokenizers.action.schema import ActionSchema, Axis, Categorical
from worldgen.tokenizers.action.script import (
    MAX_STEPS,
    actions_from_keys,
    format_actions,
    parse_action,
    parse_actions,
)
from worldgen.tokenizers.action.spaces import (
    from_space_action,
    schema_from_space,
    to_space_action,
)
from worldgen.tokenizers.action.tokenizer import ActionTokenizer

__all__ = [
    "MAX_STEPS",
    "ActionSchema",
    "ActionTokenizer",
    "Axis",
    "Categorical",
    "actions_from_keys",
    "format_actions",
    "from_space_action",
    "parse_action",
    "parse_actions",
    "schema_from_space",
    "to_space_action",
]
