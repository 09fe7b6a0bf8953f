"""Actions to a fixed number of token ids per step, and exactly back."""

from functools import cached_property

import numpy as np
from jaxtyping import Int, Num

from worldgen.errors import ActionError
from worldgen.tokenizers.action.numbering import GroupIds, consecutive_numbering
from worldgen.tokenizers.action.schema import ActionSchema

__all__ = ["ActionTokenizer"]


class ActionTokenizer:
    """One token for each slot of a schema's numbering.

    Without a numbering there is one slot for each group, with ids of its own: those of slot `k`
    begin where those of slot `k - 1` end. One embedding table of `vocabulary_size` rows serves all
    slots.

    Args:
        schema: What an action is made of.

    Example:
        >>> tokenizer = ActionTokenizer(schema)
        >>> ids = tokenizer.encode(parse_actions("left*20,gas*40", schema))  # [60, num_slots]
    """

    def __init__(self, schema: ActionSchema) -> None:
        self.schema = schema
        self.numbering = schema.numbering or consecutive_numbering(schema.groups)

    @property
    def num_slots(self) -> int:
        """Action tokens of a step."""
        return len(self.numbering.slots)

    @property
    def vocabulary_size(self) -> int:
        """Number of different ids over all slots, with those that no slot holds."""
        return self.numbering.vocabulary_size

    @cached_property
    def slot_ids(self) -> tuple[Int[np.ndarray, " option"], ...]:
        """The ids that each slot may hold, int64: one for each option or bin, or a single one."""
        return tuple(
            np.array(slot.ids if isinstance(slot, GroupIds) else [slot], dtype=np.int64)
            for slot in self.numbering.slots
        )

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
        names = [group.name for group in self.schema.groups]
        _check_last_axis("actions", actions, names, "groups")
        ids = np.empty((*actions.shape[:-1], self.num_slots), dtype=np.int64)
        for slot, index in enumerate(self._slot_groups):
            places: np.ndarray | int = 0
            if index is not None:
                places = self.schema.groups[index].to_ids(actions[..., index])
            ids[..., slot] = self.slot_ids[slot][places]
        return ids

    def decode(self, ids: Num[np.ndarray, "*leading slot"]) -> Num[np.ndarray, "*leading group"]:
        """Return actions: the option that each id stands for, or the centre of its bin.

        `encode(decode(ids))` is `ids`; `decode(encode(actions))` is `actions` for categorical
        groups and the centre of its bin on an axis.

        Raises:
            ActionError: If the last axis is not `num_slots` long, or an id is not one of its slot.
        """
        ids = np.asarray(ids)
        _check_last_axis("action ids", ids, self._slot_names, "slots")
        if not np.issubdtype(ids.dtype, np.integer):
            raise ActionError(f"action ids must be whole numbers, got {ids.dtype}")
        actions = np.empty((*ids.shape[:-1], self.schema.num_groups), dtype=self.schema.dtype)
        for slot, index in enumerate(self._slot_groups):
            places = self._places(slot, ids[..., slot])
            if index is not None:
                actions[..., index] = self.schema.groups[index].from_ids(places)
        return actions

    @cached_property
    def _slot_groups(self) -> tuple[int | None, ...]:
        """Index of each slot's group; none for a slot whose id never changes."""
        return tuple(
            self.schema.group_index(slot.group) if isinstance(slot, GroupIds) else None
            for slot in self.numbering.slots
        )

    @cached_property
    def _slot_names(self) -> list[str]:
        return [
            slot.group if isinstance(slot, GroupIds) else "constant"
            for slot in self.numbering.slots
        ]

    @cached_property
    def _slot_tables(self) -> tuple[Int[np.ndarray, " id"], ...]:
        """For each slot: the place of every id of the vocabulary in it, or -1."""
        tables = []
        for ids in self.slot_ids:
            table = np.full(self.vocabulary_size, -1, dtype=np.int64)
            table[ids] = np.arange(len(ids))
            tables.append(table)
        return tuple(tables)

    def _places(self, slot: int, ids: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Return the option or bin of each id of a slot."""
        inside = (ids >= 0) & (ids < self.vocabulary_size)
        places = np.where(inside, self._slot_tables[slot][np.where(inside, ids, 0)], -1)
        wrong = places < 0
        if wrong.any():
            raise ActionError(
                f"action id {int(ids[wrong].flat[0])} does not belong to slot {slot} "
                f"({self._slot_names[slot]!r}), whose ids are {_runs(self.slot_ids[slot])}"
            )
        return places


def _check_last_axis(what: str, values: np.ndarray, names: list[str], unit: str) -> None:
    if values.ndim == 0 or values.shape[-1] != len(names):
        raise ActionError(
            f"{what} must end in an axis of {len(names)} {unit} ({', '.join(names)}), "
            f"got shape {values.shape}"
        )


def _runs(ids: Int[np.ndarray, " option"]) -> str:
    """Return ids as text, those that follow each other as "3 to 9"."""
    ordered = np.sort(ids)
    runs = np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1)
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
