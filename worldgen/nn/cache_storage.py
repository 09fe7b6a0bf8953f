"""How keys and values of past frames are kept: their number, their bits, their memory."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.nn.far import FarTokens

__all__ = ["CacheConfig", "CacheStorage", "VectorStore"]

CacheStorage = Literal["exact", "bfloat16", "int8"]
"""Kept as they are computed, rounded to bfloat16, or to 8 bits with a scale per head and token."""

_SCALE_DTYPE = torch.float32


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What a cache keeps of one sequence."""

    heads: int
    """Key-value heads of a layer."""
    tokens: int
    """Tokens of a frame (with its actions: of a step)."""
    head_width: int
    """Channels of a head."""
    windows: tuple[int, ...]
    """For each layer, how many frames (the current one included) it looks at."""
    spare: int = 0
    """Frames kept behind the longest window, so that they can be rewound."""
    sink: int = 0
    """Frames at the beginning that every layer sees for ever, beside its window."""
    far_frames: int = 0
    """Frames behind their window that the layers with the longest one see as few tokens."""
    far_tokens: int = 0
    """Of a frame that is far."""
    notes: int = 0
    """Whole numbers kept beside each frame, for the frame after it."""
    storage: CacheStorage = "exact"
    dtype: torch.dtype = torch.float32
    """Of keys and values as they are computed and read."""

    def __post_init__(self) -> None:
        for name in ("heads", "tokens", "head_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"a cache needs {name} of at least 1, got {getattr(self, name)}")
        if not self.windows or min(self.windows) < 1:
            raise ConfigError(
                f"a cache needs the window of at least one layer, each of at least 1 frame; got "
                f"{self.windows}"
            )
        if self.spare < 0 or self.sink < 0 or self.notes < 0:
            raise ConfigError(
                f"a cache cannot keep fewer than 0 frames or notes, got spare {self.spare}, sink "
                f"{self.sink}, notes {self.notes}"
            )
        if min(self.far_frames, self.far_tokens) < 0 or (self.far_frames and not self.far_tokens):
            raise ConfigError(
                f"far frames are 0 or more, each of at least 1 token; got far_frames "
                f"{self.far_frames}, far_tokens {self.far_tokens}"
            )
        if self.storage not in get_args(CacheStorage):
            raise ConfigError(
                f"unknown cache storage {self.storage!r}; allowed are "
                f"{', '.join(get_args(CacheStorage))}"
            )
        if not self.dtype.is_floating_point:
            raise ConfigError(f"keys and values are floating-point numbers, not {self.dtype}")

    @property
    def reach(self) -> int:
        """Frames that the current one looks at, itself included."""
        # What is noted is read one frame later, whatever the windows are.
        return max(*self.windows, 2 if self.notes else 1)

    @property
    def receptive_field(self) -> int:
        """Frames before the current one on which its prediction depends, those of the sink aside.

        A layer sees frames that have seen frames before them.
        """
        near = sum(window - 1 for window in self.windows)
        return near + len(self.far_layers) * self.far_frames + (1 if self.notes else 0)

    @property
    def far_layers(self) -> tuple[int, ...]:
        """Layers that see far frames: those whose window is the longest."""
        if not self.far_frames:
            return ()
        longest = max(self.windows)
        return tuple(layer for layer, window in enumerate(self.windows) if window == longest)

    @property
    def capacity(self) -> int:
        """Frames kept behind the sink."""
        return self.reach + self.spare

    @property
    def far_capacity(self) -> int:
        """Frames kept as few tokens: while they are far, and before, when they are near yet."""
        return self.far_frames + self.capacity if self.far_frames else 0

    @property
    def bytes_per_frame(self) -> int:
        """Memory of the keys and values of one frame, all layers together, and of its notes."""
        note = self.notes * torch.int64.itemsize
        return len(self.windows) * self.heads * self.tokens * self._bytes_per_token + note

    @property
    def bytes_per_far_frame(self) -> int:
        """Memory of the few keys and values of one far frame, all layers together."""
        return len(self.far_layers) * self.heads * self.far_tokens * self._bytes_per_token

    @property
    def _bytes_per_token(self) -> int:
        """Memory of the key and the value of one token in one head."""
        vector = {
            "exact": self.head_width * self.dtype.itemsize,
            "bfloat16": self.head_width * torch.bfloat16.itemsize,
            "int8": self.head_width + _SCALE_DTYPE.itemsize,
        }[self.storage]
        return 2 * vector

    def frame_shape(self, batch: int) -> tuple[int, int, int, int]:
        """Shape `[batch, head, token, width]` of a frame's keys, and of its values."""
        return batch, self.heads, self.tokens, self.head_width

    def check(
        self, key: Tensor, value: Tensor, layer: int, batch: int, far: FarTokens | None = None
    ) -> None:
        """Refuse keys and values that do not fit.

        Raises:
            ConfigError: If the layer or a shape is not one that the cache was made for, or if far
                tokens are missing or too much.
        """
        if not 0 <= layer < len(self.windows):
            raise ConfigError(
                f"the cache has layers 0 to {len(self.windows) - 1}, there is no layer {layer}"
            )
        shape = self.frame_shape(batch)
        if key.shape != shape or value.shape != shape:
            raise ConfigError(
                f"this cache takes keys and values of shape [batch, head, token, width] = "
                f"{list(shape)}, got keys {list(key.shape)} and values {list(value.shape)}; a "
                f"cache fits one model and one number of sequences"
            )
        wanted = (batch, self.heads, self.far_tokens, self.head_width)
        shapes = {tuple(part.shape) for part in far or ()}
        if shapes != ({wanted} if layer in self.far_layers else set()):
            needs = f"[batch, head, token, width] = {list(wanted)}"
            raise ConfigError(
                f"layer {layer} of this cache takes "
                f"{needs if layer in self.far_layers else 'no tokens'} for a far frame, got "
                f"{sorted(shapes) or 'none'}"
            )


class VectorStore:
    """A buffer of vectors, perhaps in fewer bits than they are computed in.

    It is made of one tensor, or of two where each vector has a scale. All have the same axes but
    for the last, so that what picks vectors of one picks those of the other.

    Args:
        shape: Of the buffer, vectors last.
        config: Says how a vector is kept and in which type it is read.
        device: Where the buffer lives.
    """

    def __init__(
        self, shape: tuple[int, ...], config: CacheConfig, device: torch.device | str
    ) -> None:
        self.dtype = config.dtype
        self.storage = config.storage
        if config.storage == "int8":
            self.parts: tuple[Tensor, ...] = (
                torch.zeros(shape, dtype=torch.int8, device=device),
                torch.zeros((*shape[:-1], 1), dtype=_SCALE_DTYPE, device=device),
            )
        else:
            dtype = torch.bfloat16 if config.storage == "bfloat16" else config.dtype
            self.parts = (torch.zeros(shape, dtype=dtype, device=device),)

    @property
    def num_bytes(self) -> int:
        """Memory of the buffer."""
        return sum(part.numel() * part.element_size() for part in self.parts)

    def clone(self) -> "VectorStore":
        """Return an independent copy."""
        copy = object.__new__(VectorStore)
        copy.__dict__.update(self.__dict__)
        copy.parts = tuple(part.clone() for part in self.parts)
        return copy

    def put(self, place: tuple[int | slice, ...], vectors: Tensor) -> None:
        """Keep vectors at a place, which indexes the axes before the last."""
        if self.storage != "int8":
            self.parts[0][place] = vectors
            return
        for part, code in zip(self.parts, self.encode(vectors), strict=True):
            part[place] = code

    def get(self, place: tuple[int | slice, ...]) -> Tensor:
        """Return the vectors at a place; a view of the buffer where they are kept exactly."""
        if self.storage == "exact":
            return self.parts[0][place]
        return self.decode(tuple(part[place] for part in self.parts))

    def encode(self, vectors: Float[Tensor, "*leading width"]) -> tuple[Tensor, ...]:
        """Return what is kept of vectors, a tensor for each part.

        In 8 bits a vector is divided by a 127th of its largest magnitude and rounded, so that no
        channel is off by more than a 254th of that magnitude.
        """
        if self.storage != "int8":
            return (vectors,)
        vectors = vectors.to(_SCALE_DTYPE)
        scale = vectors.abs().amax(dim=-1, keepdim=True) / 127
        tiny = torch.finfo(_SCALE_DTYPE).tiny
        return (vectors / scale.clamp(min=tiny)).round().to(torch.int8), scale

    def decode(self, parts: tuple[Tensor, ...]) -> Float[Tensor, "*leading width"]:
        """Return the vectors of what was kept, in the type of the computation."""
        if self.storage != "int8":
            return parts[0].to(self.dtype)
        return (parts[0] * parts[1]).to(self.dtype)
