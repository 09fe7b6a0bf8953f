"""Keys and values of past frames: preallocated, a ring over frames, rewound by moving a pointer."""

import torch
from jaxtyping import Float
from torch import Tensor

from worldgen.errors import SessionLimitError

__all__ = ["FrameCache"]


class FrameCache:
    """Ring buffer of keys and values, one slot per frame, for all layers of a transformer.

    Positions are part of the keys (rotary, absolute frame number), so sliding the window moves
    nothing and computes nothing. Frames behind the window stay until the ring overwrites them:
    that is how far `rewind` reaches without computing anything.

    Args:
        batch: Sequences that advance together.
        heads: Key-value heads of a layer.
        tokens: Tokens of a step.
        head_width: Channels of a head.
        windows: For each layer, how many frames (the current one included) it looks at.
        spare: Frames kept behind the longest window, so that they can be rewound.
        dtype: Of the stored keys and values.
        device: Where the buffers live.
    """

    def __init__(
        self,
        *,
        batch: int,
        heads: int,
        tokens: int,
        head_width: int,
        windows: tuple[int, ...],
        spare: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.windows = windows
        self.tokens = tokens
        self.spare = spare
        self.capacity = max(windows) + spare
        self.num_frames = 0
        self._oldest = 0
        shape = (len(windows), batch, heads, self.capacity * tokens, head_width)
        self._key = torch.zeros(shape, dtype=dtype, device=device)
        self._value = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def batch(self) -> int:
        """Sequences that advance together."""
        return self._key.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers; constant over time."""
        return 2 * self._key.numel() * self._key.element_size()

    def write_and_read(
        self,
        layer: int,
        key: Float[Tensor, "batch head token width"],
        value: Float[Tensor, "batch head token width"],
    ) -> tuple[Tensor, Tensor]:
        """Store the current frame's keys and values and return those in the layer's window.

        The frames come back in the order of time, so results do not depend on where in the
        ring they lie. The pointer moves by `advance`, once all layers have written.
        """
        slot = self.num_frames % self.capacity * self.tokens
        self._key[layer, :, :, slot : slot + self.tokens] = key
        self._value[layer, :, :, slot : slot + self.tokens] = value
        first = max(0, self.num_frames + 1 - self.windows[layer])
        return (
            self._frames(self._key[layer], first, self.num_frames),
            self._frames(self._value[layer], first, self.num_frames),
        )

    def read_before(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values that the frame after the last one sees, itself not included.

        In the order of time, `[batch, head, token, width]`; may share memory with the cache.
        """
        first = max(0, self.num_frames + 1 - self.windows[layer])
        if first == self.num_frames:
            nothing = self._key[layer, :, :, :0]
            return nothing, nothing
        return (
            self._frames(self._key[layer], first, self.num_frames - 1),
            self._frames(self._value[layer], first, self.num_frames - 1),
        )

    def _frames(self, buffer: Tensor, first: int, last: int) -> Tensor:
        start = first % self.capacity * self.tokens
        stop = last % self.capacity * self.tokens + self.tokens
        if start < stop:
            return buffer[:, :, start:stop]
        return torch.cat((buffer[:, :, start:], buffer[:, :, :stop]), dim=2)

    def advance(self) -> None:
        """Close the current frame."""
        self.num_frames += 1
        self._oldest = max(self._oldest, self.num_frames - self.capacity)

    def can_rewind_to(self, num_frames: int) -> bool:
        """Whether everything that frame `num_frames` will look at is still in the ring."""
        first = max(0, num_frames + 1 - max(self.windows))
        return 0 <= num_frames <= self.num_frames and first >= self._oldest

    def rewind_to(self, num_frames: int) -> None:
        """Forget every frame from number `num_frames` on.

        Raises:
            SessionLimitError: If the ring has overwritten a frame that would be needed again.
        """
        if not self.can_rewind_to(num_frames):
            raise SessionLimitError(
                f"cannot rewind from {self.num_frames} to {num_frames} frames: only "
                f"{self.capacity} frames are kept; replay the log instead"
            )
        self.num_frames = num_frames

    def fork(self) -> "FrameCache":
        """Return an independent copy."""
        copy = object.__new__(FrameCache)
        copy.__dict__.update(self.__dict__)
        copy._key = self._key.clone()
        copy._value = self._value.clone()
        return copy
