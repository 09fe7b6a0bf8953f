"""Actions to a fixed number of token ids per step, and exactly back."""

from functools import cached_property

import numpy as np
from jaxtyping import Int, Num

from worldgen.errors import ActionError
from worldgen.tokenizers.action.schema import ActionSchema

__all__ = ["ActionTokenizer"]


class ActionTokenizer:
    """One token for each group of a schema, each slot with ids of its own.

    The ids of slot `k` begin where those of slot `k - 1` end, so one embedding table of
    `vocabulary_size` rows serves all slots.

    Args:
        schema: What an action is made of.

    Example:
        >>> tokenizer = ActionTokenizer(schema)
        >>> ids = tokenizer.encode(parse_actions("left*20,gas*40", schema))  # [60, num_slots]
    """

    def __init__(self, schema: ActionSchema) -> None:
        self.schema = schema
        self.slot_sizes: tuple[int, ...] = tuple(group.size for group in schema.groups)

    @property
    def num_slots(self) -> int:
        """Action tokens of a step."""
        return len(self.slot_sizes)

    @property
    def vocabulary_size(self) -> int:
        """Number of different ids over all slots."""
        return sum(self.slot_sizes)

    @cached_property
    def slot_offsets(self) -> Int[np.ndarray, " slot"]:
        """First id of each slot."""
        return np.cumsum((0, *self.slot_sizes[:-1]), dtype=np.int64)

    def encode(
        self, actions: Num[np.ndarray, "*leading group"]
    ) -> Int[np.ndarray, "*leading slot"]:
        """Return ids, int64 in [0, vocabulary_size).

        Args:
            actions: Option indices and axis values, any number of leading axes.

        Raises:
            ActionError: If the last axis is not `num_groups` long, or a value is not allowed.
        """
        actions = np.asarray(actions)
        self._check_last_axis("actions", actions, self.schema.num_groups, "groups")
        slots = [
            group.to_ids(actions[..., index]) for index, group in enumerate(self.schema.groups)
        ]
        ids: np.ndarray = np.stack(slots, axis=-1) + self.slot_offsets
        return ids

    def decode(self, ids: Num[np.ndarray, "*leading slot"]) -> Num[np.ndarray, "*leading group"]:
        """Return actions: the option that each id stands for, or the centre of its bin.

        `encode(decode(ids))` is `ids`; `decode(encode(actions))` is `actions` for categorical
        groups and at most half a bin away on an axis.

        Raises:
            ActionError: If the last axis is not `num_slots` long, or an id is not one of its slot.
        """
        ids = np.asarray(ids)
        self._check_last_axis("action ids", ids, self.num_slots, "slots")
        if not np.issubdtype(ids.dtype, np.integer):
            raise ActionError(f"action ids must be whole numbers, got {ids.dtype}")
        indices = ids.astype(np.int64) - self.slot_offsets
        wrong = (indices < 0) | (indices >= np.asarray(self.slot_sizes))
        if wrong.any():
            slot = int(np.argwhere(wrong)[0][-1])
            first = int(self.slot_offsets[slot])
            raise ActionError(
                f"action id {int(ids[wrong][0])} does not belong to slot {slot} "
                f"({self.schema.groups[slot].name!r}), whose ids are {first} to "
                f"{first + self.slot_sizes[slot] - 1}"
            )
        groups = [
            group.from_ids(indices[..., slot]) for slot, group in enumerate(self.schema.groups)
        ]
        return np.stack(groups, axis=-1).astype(self.schema.dtype)

    def _check_last_axis(self, what: str, values: np.ndarray, length: int, unit: str) -> None:
        if values.ndim == 0 or values.shape[-1] != length:
            names = ", ".join(group.name for group in self.schema.groups)
            raise ActionError(
                f"{what} must end in an axis of {length} {unit} ({names}), got shape {values.shape}"
            )
