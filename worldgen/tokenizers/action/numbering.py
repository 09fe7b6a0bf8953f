"""Which id each slot of an action may hold: any layout of a vocabulary, such as one of others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worldgen.errors import ActionError
from worldgen.tokenizers.action.checks import json_fields
from worldgen.tokenizers.action.groups import Group

__all__ = ["GroupIds", "Numbering", "consecutive_numbering"]


@dataclass(frozen=True)
class GroupIds:
    """The slot of a group: the id of each of its options or bins, in their order."""

    group: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Numbering:
    """The slots of an action in their order, and the vocabulary that they share.

    Slots may share ids (one id for "none" in all of them, say); within a slot ids differ, so a slot
    and an id always name one option. Ids that no slot holds are unused.
    """

    slots: tuple[int | GroupIds, ...]
    """A number is an id that stands in its slot whatever the action."""
    vocabulary_size: int
    """Ids are 0 to `vocabulary_size - 1`."""

    def __post_init__(self) -> None:
        if not self.slots:
            raise ActionError("an action numbering needs at least one slot, got none")
        for number, slot in enumerate(self.slots):
            place = f"slot {number} of the action numbering"
            ids: tuple[object, ...] = (slot,)
            if isinstance(slot, GroupIds):
                place, ids = f"{place} (group {slot.group!r})", slot.ids
            for each in ids:
                # A bool is an int to Python, but not an id to anybody.
                if type(each) is not int or not 0 <= each < self.vocabulary_size:
                    raise ActionError(
                        f"{place} holds the id {each!r}; ids are whole numbers from 0 to "
                        f"{self.vocabulary_size - 1}, one below vocabulary_size"
                    )
            repeated = [each for each in ids if ids.count(each) > 1]
            if repeated:
                raise ActionError(
                    f"{place} repeats the id {repeated[0]}; the ids of one slot must differ"
                )

    def check(self, groups: Sequence[Group]) -> None:
        """Check that every group has one slot and one id for each of its options or bins.

        Raises:
            ActionError: If a group is missing, unknown, has two slots, or too many or few ids.
        """
        numbered = [slot for slot in self.slots if isinstance(slot, GroupIds)]
        names, wanted = [slot.group for slot in numbered], [group.name for group in groups]
        if sorted(names) != sorted(wanted):
            raise ActionError(
                "an action numbering needs exactly one slot for each group; "
                f"groups are {', '.join(wanted)}, slots are for {', '.join(names) or 'none'}"
            )
        sizes = {group.name: group.size for group in groups}
        for slot in numbered:
            if len(slot.ids) != sizes[slot.group]:
                raise ActionError(
                    f"the action numbering gives group {slot.group!r} {len(slot.ids)} ids; it "
                    f"needs {sizes[slot.group]}, one for each option or bin"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the numbering as plain JSON values; `from_json` is the inverse."""
        return {
            "slots": [
                {"group": slot.group, "ids": list(slot.ids)} if isinstance(slot, GroupIds) else slot
                for slot in self.slots
            ],
            "vocabulary_size": self.vocabulary_size,
        }

    @classmethod
    def from_json(cls, value: object) -> "Numbering":
        """Return the numbering that `to_json` described.

        Raises:
            ActionError: If a key is missing or unknown, or a value has the wrong type.
        """
        what = "action numbering"
        fields = json_fields(value, what, {"slots": list, "vocabulary_size": int})
        return cls(
            slots=tuple(_slot_from_json(slot) for slot in fields["slots"]),
            vocabulary_size=fields["vocabulary_size"],
        )


def consecutive_numbering(groups: Sequence[Group]) -> Numbering:
    """Return the numbering in which the ids of each slot begin where those of the last one end."""
    slots, first = [], 0
    for group in groups:
        slots.append(GroupIds(group.name, tuple(range(first, first + group.size))))
        first += group.size
    return Numbering(tuple(slots), first)


def _slot_from_json(value: object) -> int | GroupIds:
    if type(value) is int:
        return value
    fields = json_fields(value, "slot of an action numbering", {"group": str, "ids": list})
    return GroupIds(fields["group"], tuple(fields["ids"]))
