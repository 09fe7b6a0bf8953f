"""Actions: what they are made of, their tokens, and how people and environments write them."""

from worldgen.tokenizers.action.driving import (
    clip_to_bins,
    driving_schema,
    fit_driving_schema,
    is_driving_schema,
)
from worldgen.tokenizers.action.groups import Axis, Categorical, MuLawAxis
from worldgen.tokenizers.action.minecraft import (
    minecraft_schema,
    mineworld_schema,
    to_environment_action,
    to_schema_action,
)
from worldgen.tokenizers.action.numbering import GroupIds, Numbering
from worldgen.tokenizers.action.schema import ActionSchema, PointerAxis
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
    "GroupIds",
    "MuLawAxis",
    "Numbering",
    "PointerAxis",
    "actions_from_keys",
    "clip_to_bins",
    "driving_schema",
    "fit_driving_schema",
    "format_actions",
    "from_space_action",
    "is_driving_schema",
    "minecraft_schema",
    "mineworld_schema",
    "parse_action",
    "parse_actions",
    "schema_from_space",
    "to_environment_action",
    "to_schema_action",
    "to_space_action",
]
