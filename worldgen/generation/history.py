"""Rows of ids that grow one at a time: what a session keeps of every step, for hours."""

import threading
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int, Num
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["IdHistory"]

_LEAST_ROOM = 256


class _Tape:
    """Memory of rows, of which the first ones are written and never change."""

    def __init__(self, rows: NDArray[np.integer], room: int) -> None:
        self.rows = np.empty((room, rows.shape[1]), rows.dtype)
        self.rows[: len(rows)] = rows
        self.written = len(rows)
        self.lock = threading.Lock()


class IdHistory:
    """Ids of the steps of one session, `[row, id]`, in two bytes each where they fit.

    Copies share their memory for as far as they agree: the first one to go on writes behind what is
    there, the others copy what they have before they do. So a copy costs nothing, however long the
    history is, and nobody writes over a row that another may read.

    Args:
        rows: The first ones.
        vocabulary_size: Ids are in `[0, vocabulary_size)`.
    """

    def __init__(self, rows: Num[NDArray[np.integer], "row id"], vocabulary_size: int) -> None:
        dtype = np.uint16 if vocabulary_size <= 2**16 else np.int32
        self._tape = _Tape(rows.astype(dtype), len(rows) + _LEAST_ROOM)
        self._length = len(rows)

    def __len__(self) -> int:
        return self._length

    @property
    def rows(self) -> Num[NDArray[np.integer], "row id"]:
        """All rows, as they are kept: uint16 or int32; not to be written to."""
        view = self._tape.rows[: self._length]
        view.flags.writeable = False
        return view

    @property
    def num_bytes(self) -> int:
        """Memory of the rows, with the room for more."""
        return self._tape.rows.nbytes

    def __getitem__(self, number: int) -> Int[Tensor, " id"]:
        """Return a row as int64; negative numbers count from the end."""
        if not -self._length <= number < self._length:
            raise IndexError(f"there are {self._length} rows, there is no row {number}")
        return torch.from_numpy(self._tape.rows[number % self._length].astype(np.int64))

    def append(self, ids: Int[Tensor, " id"]) -> None:
        """Add a row at the end."""
        row = ids.cpu().numpy()
        if not self._claim(row):
            # A quarter more than there is: room for all that is written costs little to find.
            own = self._tape.rows[: self._length]
            self._tape = _Tape(own, self._length + max(self._length // 4, _LEAST_ROOM))
            self._claim(row)
        self._length += 1

    def cut(self, length: int) -> None:
        """Forget all rows but the first ones."""
        self._length = min(self._length, length)

    def copy(self) -> "IdHistory":
        """Return an independent history of the same rows."""
        copy = object.__new__(IdHistory)
        copy.__dict__.update(self.__dict__)
        return copy

    def extend(self, rows: Iterable[Int[Tensor, " id"]]) -> None:
        """Add rows at the end."""
        for row in rows:
            self.append(row)

    def _claim(self, row: NDArray[np.int64]) -> bool:
        """Write behind the last row, if nobody has done so and there is room."""
        tape = self._tape
        # Copies may be played by other threads.
        with tape.lock:
            if tape.written != self._length or tape.written == len(tape.rows):
                return False
            tape.rows[self._length] = row
            tape.written += 1
            return True
