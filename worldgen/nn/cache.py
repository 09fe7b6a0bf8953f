"""Keys and values of past frames: preallocated, a ring over frames, rewound by moving a pointer."""

from typing import NamedTuple, Protocol
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError, SessionLimitError
from worldgen.nn.cache_storage import CacheConfig, VectorStore

__all__ = ["FrameCache", "SeenFrames", "StepCache"]

_ALL = slice(None)


class SeenFrames(NamedTuple):
    """What a layer sees of the frames in a cache, in the order of time."""

    keys: Float[Tensor, "batch head token width"]
    values: Float[Tensor, "batch head token width"]


class StepCache(Protocol):
    """What a transformer needs of a cache: sequences, one per row, that a step is added to."""

    @property
    def windows(self) -> tuple[int, ...]:
        """For each layer, how many frames (the current one included) it looks at."""

    @property
    def frame_numbers(self) -> Int[Tensor, " batch"]:
        """Number of the frame that each sequence writes next."""

    def write_and_read(
        self,
        layer: int,
        key: Float[Tensor, "batch head token width"],
        value: Float[Tensor, "batch head token width"],
    ) -> SeenFrames:
        """Store the current frame's keys and values and return those in the layer's window."""

    def read_before(self, layer: int) -> SeenFrames:
        """Return the keys and values that the frame to come sees, itself not included."""

    def note(self, ids: Int[Tensor, "batch note"]) -> None:
        """Keep whole numbers beside the current frame."""

    def noted_before(self) -> Int[Tensor, "batch note"] | None:
        """Return what was noted beside the last frame; None before the first one."""

    def advance(self) -> None:
        """Close the current frame."""


class FrameCache:
    """Ring buffer of keys and values, one slot per frame, for all layers of a transformer.

    Positions are part of the keys (rotary, absolute frame number), so sliding the window moves
    nothing and computes nothing. Frames behind the window stay until the ring overwrites them:
    that is how far `rewind_to` reaches without computing anything.

    The first `sink` frames lie before the ring and never leave: every layer sees them beside its
    window. Source: attention sinks, StreamingLLM, arXiv:2309.17453, section 3.2; unlike there, keys
    keep the positions at which they were computed.

    Forks share their memory until one of them writes. What is read may be a view of the cache; it
    stays as it is until this very cache is written to again, whatever its forks do.

    All sequences of the batch are equally long and go on together; those that go their own ways have
    a cache each, see `worldgen.generation.turns.CacheRows`.

    Args:
        config: What is kept of a sequence.
        batch: Sequences that advance together.
        device: Where the buffers live.

    Raises:
        ConfigError: If there is no sequence.
    """

    def __init__(
        self, config: CacheConfig, *, batch: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        if batch < 1:
            raise ConfigError(f"a cache needs at least 1 sequence, got {batch}")
        self.config = config
        self.batch = batch
        self.device = torch.device(device)
        self.num_frames = 0
        self._oldest = 0
        self._capacity = config.capacity
        num_tokens = (config.sink + config.capacity) * config.tokens
        shape = (len(config.windows), batch, config.heads, num_tokens, config.head_width)
        notes = torch.zeros(
            (batch, config.sink + config.capacity, config.notes), dtype=torch.int64, device=device
        )
        self._buffers = _Buffers(
            VectorStore(shape, config, device), VectorStore(shape, config, device), notes
        )
        self._buffers.owners.add(self)

    @staticmethod
    def predicted_bytes(config: CacheConfig, *, batch: int = 1) -> int:
        """Return the memory of a cache: frames kept, times the memory of one, times sequences."""
        return batch * (config.sink + config.capacity) * config.bytes_per_frame

    @property
    def windows(self) -> tuple[int, ...]:
        """For each layer, how many frames (the current one included) it looks at."""
        return self.config.windows

    @property
    def frame_numbers(self) -> Int[Tensor, " batch"]:
        """Number of the frame that each sequence writes next."""
        return torch.full((self.batch,), self.num_frames, device=self.device)

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers; constant over time, shared with forks until one writes."""
        notes = self._buffers.notes
        vectors = self._buffers.key.num_bytes + self._buffers.value.num_bytes
        return vectors + notes.numel() * notes.element_size()

    def write_and_read(
        self,
        layer: int,
        key: Float[Tensor, "batch head token width"],
        value: Float[Tensor, "batch head token width"],
    ) -> SeenFrames:
        """Store the current frame's keys and values and return those in the layer's window.

        The frames come back in the order of time, so results do not depend on where in the
        ring they lie. The pointer moves by `advance`, once all layers have written.

        Raises:
            ConfigError: If the layer or a shape is not one that the cache was made for.
        """
        self.config.check(key, value, layer, self.batch)
        self._begin_writing()
        start, stop = self._spans(self.num_frames, self.num_frames + 1)[0]
        place = (layer, _ALL, _ALL, slice(start, stop))
        self._buffers.key.put(place, key)
        self._buffers.value.put(place, value)
        return self._read(layer, self.num_frames + 1)

    def read_before(self, layer: int) -> SeenFrames:
        """Return the keys and values that the frame after the last one sees, itself not included.

        As of `write_and_read`; may share memory with the cache.
        """
        return self._read(layer, self.num_frames)

    def _read(self, layer: int, stop: int) -> SeenFrames:
        first = max(0, self.num_frames + 1 - self.windows[layer])
        if first <= self.config.sink:
            spans = self._spans(0, stop)
        else:
            spans = self._spans(0, self.config.sink) + self._spans(first, stop)
        return SeenFrames(
            _take(self._buffers.key, layer, spans), _take(self._buffers.value, layer, spans)
        )

    def _spans(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Return where the tokens of frames `first` to `stop - 1` lie, in the order of time."""
        sink, tokens = self.config.sink, self.config.tokens
        end = sink + self._capacity
        spans = []
        while first < stop:
            slot = self._slot(first)
            length = min(stop - first, end - slot)
            spans.append((slot * tokens, (slot + length) * tokens))
            first += length
        return spans

    def note(self, ids: Int[Tensor, "batch note"]) -> None:
        """Keep whole numbers beside the current frame, for as long as its keys and values.

        Raises:
            ConfigError: If the shape is not the one that the cache was made for.
        """
        shape = (self.batch, self.config.notes)
        if ids.shape != shape:
            raise ConfigError(
                f"this cache takes notes of shape [batch, note] = {list(shape)}, got "
                f"{list(ids.shape)}; a cache fits one model and one number of sequences"
            )
        self._begin_writing()
        self._buffers.notes[:, self._slot(self.num_frames)] = ids.to(self._buffers.notes)

    def noted_before(self) -> Int[Tensor, "batch note"] | None:
        """Return what was noted beside the last frame; None before the first one."""
        if not self.num_frames:
            return None
        return self._buffers.notes[:, self._slot(self.num_frames - 1)].clone()

    def _slot(self, frame: int) -> int:
        """Return where a frame lies."""
        sink = self.config.sink
        return frame if frame < sink else sink + (frame - sink) % self._capacity

    def _begin_writing(self) -> None:
        """Make room for the current frame, in memory that is this cache's own."""
        shared = self._buffers
        if len(shared.owners) > 1:
            # Copied before it is left: another thread that plays a fork must not write meanwhile.
            self._buffers = _Buffers(shared.key.clone(), shared.value.clone(), shared.notes.clone())
            self._buffers.owners.add(self)
            shared.owners.discard(self)
        self._oldest = max(self._oldest, self.num_frames + 1 - self._capacity)

    def advance(self) -> None:
        """Close the current frame."""
        self.num_frames += 1

    def can_rewind_to(self, num_frames: int) -> bool:
        """Whether everything that frame `num_frames` will look at is still there."""
        if not 0 <= num_frames <= self.num_frames:
            return False
        first = max(self.config.sink, num_frames + 1 - self.config.reach)
        return num_frames <= self.config.sink or first >= self._oldest

    def rewind_to(self, num_frames: int) -> None:
        """Forget every frame from number `num_frames` on.

        Raises:
            SessionLimitError: If the ring has overwritten a frame that would be needed again.
        """
        if not self.can_rewind_to(num_frames):
            raise SessionLimitError(
                f"cannot rewind from {self.num_frames} to {num_frames} frames: only "
                f"{self._capacity} frames are kept; replay the log instead"
            )
        self.num_frames = num_frames
        if num_frames <= self.config.sink:
            # Nothing is left in the ring that could be overwritten.
            self._oldest = 0

    @property
    def receptive_field(self) -> int:
        """Frames before the one to come on which its prediction depends, those of the sink aside."""
        return self.config.receptive_field

    def skip_to(self, num_frames: int) -> None:
        """Leave frames out: the next one gets this number, those between hold zeros.

        What the model makes of the frames that follow is wrong for the next `receptive_field` of
        them, and then what it would be if none had been left out, to the last bit: they lie where
        they would lie. So a long sequence is remembered again from its end. It cannot be rewound to
        a frame that would see what is wrong.

        Raises:
            SessionLimitError: If the frames of the sink are not all there, or frames lie behind
                the number already.
        """
        if not self.config.sink <= self.num_frames <= num_frames:
            raise SessionLimitError(
                f"frames can be left out behind the {self.config.sink} of the sink and those that "
                f"are there, not from {self.num_frames} to {num_frames}"
            )
        self.num_frames = num_frames
        self._oldest = num_frames + self.receptive_field + 1 - self.config.reach

    def fork(self) -> "FrameCache":
        """Return an independent cache; the memory is copied when one of the two is written to."""
        copy = object.__new__(FrameCache)
        copy.__dict__.update(self.__dict__)
        copy._buffers.owners.add(copy)
        return copy


class _Buffers:
    """Keys and values `[layer, batch, head, slot and token, width]`, notes `[batch, slot, note]`.

    It knows the caches that use it. Caches that are dropped leave by themselves.
    """

    def __init__(self, key: VectorStore, value: VectorStore, notes: Tensor) -> None:
        self.key = key
        self.value = value
        self.notes = notes
        self.owners: WeakSet[FrameCache] = WeakSet()


def _take(store: VectorStore, layer: int, spans: list[tuple[int, int]]) -> Tensor:
    pieces = [store.get((layer, _ALL, _ALL, slice(*span))) for span in spans or [(0, 0)]]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
