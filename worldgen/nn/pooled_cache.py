"""Keys and values of many sequences of different lengths, read and written in any combination."""

from collections.abc import Sequence
from types import TracebackType

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from worldgen.errors import ConfigError, SessionLimitError
from worldgen.nn.cache import SeenFrames
from worldgen.nn.cache_storage import CacheConfig, VectorStore

__all__ = ["CacheBatch", "PooledFrameCache"]


class PooledFrameCache:
    """Frames of up to `slots` sequences, each at its own time, in memory taken once.

    Keys and values of a frame, all layers together, are a *page*. A sequence is a list of pages: it
    slides by returning the oldest, rewinds by returning the latest, and forks by naming the
    same pages once more, without a copy; a page is written once and never while two name it.

    What a model reads and writes is a `CacheBatch` of some of the slots:

        with pool.batch([slot, other]) as cache:
            draft = model.observe(cache, visual_ids, action_ids)

    Source: pages as in PagedAttention, arXiv:2309.06180, section 4, of one frame each.

    Args:
        config: What is kept of a sequence.
        slots: Sequences that there is room for.
        device: Where the buffers live.

    Raises:
        ConfigError: If there is no slot.
    """

    def __init__(
        self, config: CacheConfig, *, slots: int, device: torch.device | str = "cpu"
    ) -> None:
        if slots < 1:
            raise ConfigError(f"a cache needs at least 1 slot, got {slots}")
        self.config = config
        self.num_slots = slots
        self.device = torch.device(device)
        self._slots: dict[int, _Slot] = {}
        num_pages = _num_pages(config, slots)
        # The last page stays zero: it stands for frames that a sequence does not have.
        self._no_page = num_pages - 1
        self._free = list(range(num_pages - 1))
        self._references = [0] * num_pages
        shape = (len(config.windows), config.heads, num_pages, config.tokens, config.head_width)
        self._key = VectorStore(shape, config, device)
        self._value = VectorStore(shape, config, device)

    @staticmethod
    def predicted_bytes(config: CacheConfig, *, slots: int) -> int:
        """Return the memory of a pool: of every slot's frames, the one being made, and an empty one."""
        return _num_pages(config, slots) * config.bytes_per_frame

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers; constant over time."""
        return self._key.num_bytes + self._value.num_bytes

    @property
    def slots_left(self) -> int:
        """Sequences that can still join."""
        return self.num_slots - len(self._slots)

    def join(self) -> int:
        """Return the number of a slot with an empty sequence.

        Raises:
            SessionLimitError: If no slot is left.
        """
        if not self.slots_left:
            raise SessionLimitError(
                f"the cache is full: all {self.num_slots} slots are taken; wait until a session "
                f"leaves, or make a cache with more slots"
            )
        number = next(n for n in range(self.num_slots) if n not in self._slots)
        self._slots[number] = _Slot()
        return number

    def leave(self, slot: int) -> None:
        """Give a slot back; one that is in a batch is free when the batch ends."""
        taken = self._slot(slot)
        if taken.held:
            taken.leaving = True
            return
        for page in taken.pages + taken.sink_pages:
            self._release(page)
        del self._slots[slot]

    def fork(self, slot: int) -> int:
        """Return the number of a new slot with the frames of another; nothing is copied.

        Raises:
            SessionLimitError: If no slot is left.
        """
        source = self._slot(slot)
        number = self.join()
        fork = self._slots[number]
        fork.pages, fork.sink_pages = list(source.pages), list(source.sink_pages)
        fork.num_frames = source.num_frames
        for page in fork.pages + fork.sink_pages:
            self._references[page] += 1
        return number

    def num_frames(self, slot: int) -> int:
        """Frames that the sequence of a slot has had."""
        return self._slot(slot).num_frames

    def can_rewind_to(self, slot: int, num_frames: int) -> bool:
        """Whether everything that frame `num_frames` will look at is still there."""
        taken = self._slot(slot)
        if not 0 <= num_frames <= taken.num_frames:
            return False
        first = max(self.config.sink, num_frames + 1 - max(self.config.windows))
        return num_frames <= self.config.sink or first >= taken.oldest

    def rewind_to(self, slot: int, num_frames: int) -> None:
        """Forget every frame of a slot from number `num_frames` on.

        Raises:
            SessionLimitError: If a frame that would be needed again is no longer there, or the slot
                is in a batch at the moment.
        """
        taken = self._slot(slot)
        if taken.held:
            raise SessionLimitError(
                f"cannot rewind slot {slot} while it is in a batch; rewind it between two frames"
            )
        if not self.can_rewind_to(slot, num_frames):
            raise SessionLimitError(
                f"cannot rewind slot {slot} from {taken.num_frames} to {num_frames} frames: only "
                f"{self.config.capacity} frames are kept; replay the log instead"
            )
        for page in taken.cut(num_frames, self.config.sink):
            self._release(page)

    def batch(self, slots: Sequence[int], *, fixed: bool = False) -> "CacheBatch":
        """Return the cache of a batch whose rows are the sequences of some slots.

        Args:
            slots: Of the rows, each at most once.
            fixed: Whether shapes never change: windows are always read as a whole, with a mask.
                Then a row's numbers do not depend on how long the others are, and a CUDA graph
                that was captured with the batch serves other slots after `CacheBatch.select`.
                Otherwise as few frames are read as the rows have, without a mask if it can be.

        Raises:
            ConfigError: If there are no slots, or one is named twice.
            SessionLimitError: If a slot is empty, or in another batch.
        """
        return CacheBatch(self, slots, fixed=fixed)

    def _slot(self, number: int) -> "_Slot":
        taken = self._slots.get(number)
        if taken is None or taken.leaving:
            raise SessionLimitError(
                f"there is no sequence in slot {number}; slots {sorted(self._slots)} of "
                f"{self.num_slots} are taken"
            )
        return taken

    def _take(self) -> int:
        # Sequences hold no more pages than there are: see `_num_pages`.
        page = self._free.pop()
        self._references[page] = 1
        return page

    def _release(self, page: int) -> None:
        self._references[page] -= 1
        if not self._references[page]:
            self._free.append(page)


class CacheBatch:
    """The sequences of some slots as rows of one batch; see `worldgen.nn.cache.StepCache`.

    Made by `PooledFrameCache.batch`. A context manager: its slots are held until its end. Any
    number of frames may be made in it. What is read is a copy that nobody writes to.
    """

    def __init__(self, pool: PooledFrameCache, slots: Sequence[int], *, fixed: bool) -> None:
        self._pool = pool
        self._fixed = fixed
        self.slots: tuple[int, ...] = ()
        self._pages: list[int] = []
        self._tables: dict[int, _Table] = {}
        self._targets = torch.zeros(len(slots), dtype=torch.int64, device=pool.device)
        self._numbers = torch.zeros_like(self._targets)
        self.select(slots)

    def select(self, slots: Sequence[int]) -> None:
        """Turn to other slots, as many as before; the tensors read from stay where they are."""
        self.close()
        if not slots or len(set(slots)) != len(slots) or len(slots) != len(self._targets):
            raise ConfigError(
                f"a batch needs slots, each once, and keeps its size ({len(self._targets)}); got "
                f"{list(slots)}"
            )
        taken = [self._pool._slot(slot) for slot in slots]
        for slot, each in zip(slots, taken, strict=True):
            if each.held:
                raise SessionLimitError(f"slot {slot} is in another batch; wait until that ends")
        for each in taken:
            each.held = True
        self.slots = tuple(slots)
        self._open_frame()

    def close(self) -> None:
        """Let the slots go; a frame that was not closed by `advance` is forgotten."""
        slots, self.slots = self.slots, ()
        for page in self._pages:
            self._pool._release(page)
        self._pages = []
        for slot in slots:
            taken = self._pool._slots[slot]
            taken.held = False
            if taken.leaving:
                taken.leaving = False
                self._pool.leave(slot)

    def __enter__(self) -> "CacheBatch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def windows(self) -> tuple[int, ...]:
        """For each layer, how many frames (the current one included) it looks at."""
        return self._pool.config.windows

    @property
    def frame_numbers(self) -> Int[Tensor, " batch"]:
        """Number of the frame that each row writes next."""
        return self._numbers

    def write_and_read(
        self,
        layer: int,
        key: Float[Tensor, "batch head token width"],
        value: Float[Tensor, "batch head token width"],
    ) -> SeenFrames:
        """Store the current frame's keys and values and return those in the layer's window.

        In the order of time, the current frame last; rows with fewer frames begin with tokens that
        the mask leaves out.

        Raises:
            ConfigError: If the layer or a shape is not one that the cache was made for.
        """
        pool = self._pool
        pool.config.check(key, value, layer, len(self.slots))
        for store, vectors in ((pool._key, key), (pool._value, value)):
            pages = rearrange(vectors, "b head token width -> head b token width")
            for part, code in zip(store.parts, store.encode(pages), strict=True):
                part[layer].index_copy_(1, self._targets, code.to(part.dtype))
        return self._read(layer, own=True)

    def read_before(self, layer: int) -> SeenFrames:
        """Return the keys and values that the frame to come sees, itself not included."""
        return self._read(layer, own=False)

    def _read(self, layer: int, *, own: bool) -> SeenFrames:
        table = self._tables[self.windows[layer]]
        pages, mask = table.pages, table.mask
        if not own:
            pages = pages[:, :-1]
            mask = None if mask is None else mask[:, : -self._pool.config.tokens]
        keys, values = (
            _gather(store, layer, pages) for store in (self._pool._key, self._pool._value)
        )
        return SeenFrames(keys, values, mask)

    def advance(self) -> None:
        """Close the current frame of every row.

        This moves numbers on the host: it has no place in a CUDA graph, but after each replay.
        """
        pages, self._pages = self._pages, []
        config = self._pool.config
        for slot, page in zip(self.slots, pages, strict=True):
            for old in self._pool._slots[slot].append(page, config.sink, config.capacity):
                self._pool._release(old)
        self._open_frame()

    def _open_frame(self) -> None:
        pool, sink = self._pool, self._pool.config.sink
        rows = [pool._slots[slot] for slot in self.slots]
        self._pages = [pool._take() for _ in rows]
        counts = np.array([row.num_frames for row in rows])
        self._targets.copy_(torch.tensor(self._pages))
        self._numbers.copy_(torch.from_numpy(counts))
        longest = max(self.windows)
        pages = np.full((len(rows), sink + longest), -1)
        for row, taken, page in zip(pages, rows, self._pages, strict=True):
            row[: len(taken.sink_pages)] = taken.sink_pages
            recent = taken.last_pages(longest - 1)
            row[-1] = page
            row[-1 - len(recent) : -1] = recent
        for window in set(self.windows):
            seen = np.concatenate((pages[:, :sink], pages[:, sink + longest - window :]), axis=1)
            # Frames of the sink that are in the window are not seen twice.
            seen[:, :sink][np.arange(sink) > counts[:, None] - window] = -1
            self._fill(window, seen)

    def _fill(self, window: int, pages: NDArray[np.int64]) -> None:
        real = pages >= 0
        if not self._fixed:
            used = real.any(axis=0)
            pages, real = pages[:, used], real[:, used]
        seen = torch.from_numpy(np.where(real, pages, self._pool._no_page))
        mask = torch.from_numpy(np.repeat(real, self._pool.config.tokens, axis=1))
        known = self._tables.get(window)
        if self._fixed and known is not None and known.mask is not None:
            known.pages.copy_(seen)
            known.mask.copy_(mask)
            return
        device = self._pool.device
        whole = not self._fixed and bool(real.all())
        self._tables[window] = _Table(seen.to(device), None if whole else mask.to(device))


class _Table:
    """Pages `[row, frame]` that a window looks at, and which of their tokens `[row, token]` are."""

    def __init__(self, pages: Tensor, mask: Tensor | None) -> None:
        self.pages = pages
        self.mask = mask


class _Slot:
    """Pages of one sequence: those of the sink, and the latest of the others in order of time."""

    def __init__(self) -> None:
        self.sink_pages: list[int] = []
        self.pages: list[int] = []
        self.num_frames = 0
        self.held = False
        self.leaving = False

    @property
    def oldest(self) -> int:
        """Number of the first frame behind the sink that is still there."""
        return self.num_frames - len(self.pages)

    def append(self, page: int, sink: int, capacity: int) -> list[int]:
        """Add a frame; return pages that are no longer needed."""
        (self.sink_pages if self.num_frames < sink else self.pages).append(page)
        self.num_frames += 1
        return [self.pages.pop(0)] if len(self.pages) > capacity else []

    def cut(self, num_frames: int, sink: int) -> list[int]:
        """Forget the frames from a number on; return their pages."""
        kept = max(0, num_frames - self.oldest)
        if num_frames <= sink:
            kept = 0
        gone = self.pages[kept:] + self.sink_pages[num_frames:]
        del self.pages[kept:], self.sink_pages[num_frames:]
        self.num_frames = num_frames
        return gone

    def last_pages(self, count: int) -> list[int]:
        """Return the pages of the latest frames, at most `count`."""
        pages = self.pages[max(0, len(self.pages) - count) :]
        missing = min(count, self.num_frames) - len(pages)
        return self.sink_pages[len(self.sink_pages) - missing :] + pages


def _gather(store: VectorStore, layer: int, pages: Int[Tensor, "batch frame"]) -> Tensor:
    parts = tuple(
        rearrange(
            part[layer].index_select(1, pages.flatten()),
            "head (b frame) token width -> b head (frame token) width",
            b=len(pages),
        )
        for part in store.parts
    )
    return store.decode(parts)


def _num_pages(config: CacheConfig, slots: int) -> int:
    return slots * (config.sink + config.capacity + 1) + 1
