"""Keys and values of past frames: preallocated, a ring over frames, rewound by moving a pointer."""

from typing import NamedTuple, Protocol
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldgen.errors import ConfigError, SessionLimitError
from worldgen.nn.cache_storage import CacheConfig, VectorStore
from worldgen.nn.far import FarTokens, VisibleFrames, visible_frames

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
        far: FarTokens | None = None,
    ) -> SeenFrames:
        """Store the current frame's keys and values and return those that it sees in a layer."""

    def read_before(self, layer: int) -> SeenFrames:
        """Return the keys and values that the frame to come sees, itself not included."""

    def ages_before(self, layer: int) -> Int[Tensor, " token"]:
        """Return how many frames each token of `read_before` lies behind the frame to come."""

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

    Far frames lie as few tokens in a ring of their own, written along with the frame.

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
        num_far = config.far_capacity * config.far_tokens
        far_shape = (len(config.far_layers), batch, config.heads, num_far, config.head_width)
        self._buffers = _Buffers(
            VectorStore(shape, config, device),
            VectorStore(shape, config, device),
            VectorStore(far_shape, config, device),
            VectorStore(far_shape, config, device),
            notes,
        )
        self._buffers.owners.add(self)

    @staticmethod
    def predicted_bytes(config: CacheConfig, *, batch: int = 1) -> int:
        """Return the memory of a cache: frames kept, times the memory of one, times sequences."""
        whole = (config.sink + config.capacity) * config.bytes_per_frame
        return batch * (whole + config.far_capacity * config.bytes_per_far_frame)

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
        vectors = sum(store.num_bytes for store in self._buffers.stores)
        return vectors + notes.numel() * notes.element_size()

    def write_and_read(
        self,
        layer: int,
        key: Float[Tensor, "batch head token width"],
        value: Float[Tensor, "batch head token width"],
        far: FarTokens | None = None,
    ) -> SeenFrames:
        """Store the current frame's keys and values and return those that it sees in a layer.

        The frames come back in the order of time, so results do not depend on where in the
        ring they lie. The pointer moves by `advance`, once all layers have written.

        Args:
            layer: That attends.
            key: Of the frame's tokens.
            value: Of the frame's tokens.
            far: The frame as few tokens, in the layers that see far frames.

        Raises:
            ConfigError: If the layer or a shape is not one that the cache was made for.
        """
        self.config.check(key, value, layer, self.batch, far)
        self._begin_writing()
        number, buffers = self.num_frames, self._buffers
        start, stop = self._spans(number, number + 1)[0]
        place = (layer, _ALL, _ALL, slice(start, stop))
        buffers.key.put(place, key)
        buffers.value.put(place, value)
        if far is not None and number >= self.config.sink:
            start, stop = self._far_spans(number, number + 1)[0]
            place = (self.config.far_layers.index(layer), _ALL, _ALL, slice(start, stop))
            buffers.far_key.put(place, far.keys)
            buffers.far_value.put(place, far.values)
        return self._read(layer, number + 1)

    def read_before(self, layer: int) -> SeenFrames:
        """Return the keys and values that the frame after the last one sees, itself not included.

        As of `write_and_read`; may share memory with the cache.
        """
        return self._read(layer, self.num_frames)

    def ages_before(self, layer: int) -> Int[Tensor, " token"]:
        """Return how many frames each token of `read_before` lies back; see `VisibleFrames.ages`."""
        config = self.config
        ages = self._visible(layer).ages(config.sink, config.tokens, config.far_tokens)
        return ages[: len(ages) - config.tokens].to(self.device)

    def _visible(self, layer: int) -> VisibleFrames:
        """Return which frames the one after the last sees."""
        config = self.config
        far_frames = config.far_frames if layer in config.far_layers else 0
        return visible_frames(self.num_frames, self.windows[layer], config.sink, far_frames)

    def _read(self, layer: int, stop: int) -> SeenFrames:
        seen, buffers = self._visible(layer), self._buffers
        if len(seen.kept) == seen.near.start:
            kept, near = [], self._spans(0, stop)
        else:
            kept, near = self._spans(0, len(seen.kept)), self._spans(seen.near.start, stop)
        far: list[tuple[int, int]] = []
        far_layer = 0
        if seen.far:
            far = self._far_spans(seen.far.start, seen.far.stop)
            far_layer = self.config.far_layers.index(layer)
        pairs = ((buffers.key, buffers.far_key), (buffers.value, buffers.far_value))
        keys, values = (
            _joined(
                _pieces(whole, layer, kept)
                + _pieces(few, far_layer, far)
                + _pieces(whole, layer, near if near or kept else [(0, 0)])
            )
            for whole, few in pairs
        )
        return SeenFrames(keys, values)

    def _spans(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Return where the tokens of frames `first` to `stop - 1` lie, in the order of time."""
        return _ring_spans(first, stop, self.config.sink, self._capacity, self.config.tokens)

    def _far_spans(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Return where their few tokens lie; there are none of the sink."""
        sink, config = self.config.sink, self.config
        return _ring_spans(first - sink, stop - sink, 0, config.far_capacity, config.far_tokens)

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
        return _ring_slot(frame, self.config.sink, self._capacity)

    def _begin_writing(self) -> None:
        """Make room for the current frame, in memory that is this cache's own."""
        shared = self._buffers
        if len(shared.owners) > 1:
            # Copied before it is left: another thread that plays a fork must not write meanwhile.
            self._buffers = shared.clone()
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
    def sink(self) -> int:
        """Frames at the beginning that every later one sees."""
        return self.config.sink

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

    def __init__(
        self,
        key: VectorStore,
        value: VectorStore,
        far_key: VectorStore,
        far_value: VectorStore,
        notes: Tensor,
    ) -> None:
        self.key = key
        self.value = value
        self.far_key = far_key
        self.far_value = far_value
        self.notes = notes
        self.owners: WeakSet[FrameCache] = WeakSet()

    @property
    def stores(self) -> tuple[VectorStore, VectorStore, VectorStore, VectorStore]:
        """All vectors."""
        return self.key, self.value, self.far_key, self.far_value

    def clone(self) -> "_Buffers":
        """Return an independent copy that no cache uses yet."""
        key, value, far_key, far_value = (store.clone() for store in self.stores)
        return _Buffers(key, value, far_key, far_value, self.notes.clone())


def _ring_slot(frame: int, sink: int, capacity: int) -> int:
    """Return where a frame lies: the first ones in front of a ring, the others in it."""
    return frame if frame < sink else sink + (frame - sink) % capacity


def _ring_spans(
    first: int, stop: int, sink: int, capacity: int, tokens: int
) -> list[tuple[int, int]]:
    """Return where the tokens of frames `first` to `stop - 1` lie, in the order of time."""
    spans = []
    while first < stop:
        slot = _ring_slot(first, sink, capacity)
        length = min(stop - first, sink + capacity - slot)
        spans.append((slot * tokens, (slot + length) * tokens))
        first += length
    return spans


def _pieces(store: VectorStore, layer: int, spans: list[tuple[int, int]]) -> list[Tensor]:
    return [store.get((layer, _ALL, _ALL, slice(*span))) for span in spans]


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
