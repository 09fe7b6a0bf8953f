"""The interleaved transformer: visual and action tokens in one sequence, causal over frames.

This is what its two kinds share: the blocks, the cache, the windows over frames. They differ in how
they are asked for a frame. `worldgen.models.next_frame` asks every cell of a frame for the same cell
one frame later; `worldgen.models.next_token` asks every token for the one after it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from worldgen.errors import ConfigError
from worldgen.layout import SequenceLayout
from worldgen.models.base import FrameDraft
from worldgen.nn.attention import AttentionConfig, attend, frame_causal_attention
from worldgen.nn.blocks import Attend, Block, BlockConfig, RMSNorm
from worldgen.nn.cache import FrameCache, StepCache
from worldgen.nn.cache_storage import CacheConfig, CacheStorage
from worldgen.nn.rotary import RotaryTable

__all__ = ["InterleavedConfig", "InterleavedTransformer"]


@dataclass(frozen=True, kw_only=True)
class InterleavedConfig:
    """Sizes that both kinds of interleaved transformer have."""

    actions_first: ClassVar[bool]
    """Whether a step begins with its action tokens or with its visual tokens."""

    rows: int
    columns: int
    codebook_size: int
    num_action_tokens: int
    """Of all frames of a step together."""
    action_vocabulary_size: int
    frames_per_step: int = 1
    """Frames that a grid of visual tokens stands for; see `SequenceLayout`."""
    width: int = 256
    num_heads: int = 8
    num_key_value_heads: int = 4
    feed_forward_width: int = 640
    windows: tuple[int, ...] = (2, 1, 8, 1, 4, 1)
    """For each layer over the sequence: how many frames, the current one included, it sees."""
    sink: int = 0
    """Frames at the beginning of a sequence that every layer sees for ever, beside its window."""
    cache_storage: CacheStorage = "exact"
    """How sessions keep keys and values; of the model, so that its logs replay."""

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 1:
            raise ConfigError(
                f"windows must name at least one layer, each of at least 1 frame; "
                f"got {self.windows}"
            )
        if self.sink < 0:
            raise ConfigError(f"sink must be 0 frames or more, got {self.sink}")
        # It checks itself.
        _ = self.layout
        if self.block.attention.head_width % 2:
            raise ConfigError(f"the head width must be even, got {self.block.attention.head_width}")

    @property
    def layout(self) -> SequenceLayout:
        """Where the tokens of a step are."""
        return SequenceLayout(
            rows=self.rows,
            columns=self.columns,
            num_action_tokens=self.num_action_tokens,
            frames_per_step=self.frames_per_step,
            actions_first=self.actions_first,
        )

    @property
    def block(self) -> BlockConfig:
        """Sizes of every block."""
        return BlockConfig(
            attention=AttentionConfig(
                width=self.width,
                num_heads=self.num_heads,
                num_key_value_heads=self.num_key_value_heads,
            ),
            feed_forward_width=self.feed_forward_width,
        )


class InterleavedTransformer(nn.Module):
    """Blocks over one sequence of steps; a frame never sees a later one.

    A kind adds the embedding of tokens, their rotary positions, and how a frame is drawn.
    """

    def __init__(self, config: InterleavedConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.layout = config.layout
        self.codebook_size = config.codebook_size
        self.windows = config.windows
        self.sink = config.sink
        self.cache_storage: CacheStorage = config.cache_storage
        self.block_config = config.block
        self.blocks = nn.ModuleList(Block(config.block) for _ in config.windows)
        self.norm = RMSNorm(config.width, config.block.norm_epsilon)
        self.readout = nn.Linear(config.width, vocabulary_size, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.readout.weight.device

    def read(self, hidden: Float[Tensor, "*leading width"]) -> Float[Tensor, "*leading vocabulary"]:
        """Return logits over the tokens that can be drawn."""
        logits: Tensor = self.readout(self.norm(hidden))
        return logits

    def new_cache(self, batch: int, *, spare: int = 0) -> FrameCache:
        """Return an empty cache.

        Args:
            batch: Sequences that advance together.
            spare: Frames kept beyond the longest window, so that they can be rewound.
        """
        return FrameCache(self.cache_config(spare=spare), batch=batch, device=self.device)

    def cache_config(self, *, spare: int = 0) -> CacheConfig:
        """Return what a cache keeps of one sequence.

        Args:
            spare: Frames kept beyond the longest window, so that they can be rewound.
        """
        attention = self.block_config.attention
        return CacheConfig(
            heads=attention.num_key_value_heads,
            tokens=self.layout.tokens_per_step,
            head_width=attention.head_width,
            windows=self.windows,
            spare=spare,
            sink=self.sink,
            storage=self.cache_storage,
            dtype=self.readout.weight.dtype,
        )

    def run_blocks(
        self, stream: Float[Tensor, "batch token width"], rotary: RotaryTable, see: Attend
    ) -> Float[Tensor, "batch token width"]:
        """Return the stream after all blocks; `see` decides what the tokens of each layer see."""
        for layer, block in enumerate(self.blocks):
            stream = block(stream, rotary, layer, see)
        return stream

    def run_clip(
        self,
        steps: Float[Tensor, "batch frame token width"],
        rotary: RotaryTable,
        own: Bool[Tensor, "token token"] | None = None,
        remembered: Bool[Tensor, " token"] | None = None,
    ) -> Float[Tensor, "batch frame token width"]:
        """Return a whole clip after all blocks: for training, and the oracle of the cached path.

        Args:
            steps: Embedded tokens.
            rotary: Of the tokens of all steps.
            own: Which tokens (last axis) of its own step a token sees; None for all.
            remembered: Which tokens of a step later steps see; None for all.
        """
        num_frames = steps.shape[1]

        def see_frames(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return frame_causal_attention(
                query, key, value, num_frames, self.windows[layer], own, remembered, sink=self.sink
            )

        stream = rearrange(steps, "b frame token width -> b (frame token) width")
        return rearrange(
            self.run_blocks(stream, rotary, see_frames),
            "b (frame token) width -> b frame token width",
            frame=num_frames,
        )

    def run_step(
        self,
        cache: StepCache,
        step: Float[Tensor, "batch token width"],
        rotary: RotaryTable,
        own: Bool[Tensor, "token token"] | None = None,
    ) -> Float[Tensor, "batch token width"]:
        """Return one step after all blocks, and remember it: the cache is a frame longer.

        Args:
            cache: Of the frames before.
            step: Embedded tokens.
            rotary: Of its tokens.
            own: Which tokens (last axis) of the step a token sees; None for all.
        """

        def see_cache(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.write_and_read(layer, key, value)
            mask = None
            if own is not None:
                past = own.new_ones(len(own), keys.shape[2] - len(own))
                mask = torch.cat((past, own), dim=1)
            return attend(query, keys, values, mask)

        stream = self.run_blocks(step, rotary, see_cache)
        cache.advance()
        return stream

    # What a kind says about drawing a frame; see `worldgen.models.base.WorldModel`.

    def observe(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
    ) -> FrameDraft:
        """Commit one step (frame and action) to the cache; return the draft of the next frame."""
        raise NotImplementedError

    def predict(
        self, draft: FrameDraft, cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return logits of `cells`, to be drawn at once, given the cells revealed so far."""
        raise NotImplementedError

    def reveal(
        self, draft: FrameDraft, cells: Int[Tensor, " group"], ids: Int[Tensor, "batch group"]
    ) -> None:
        """Tell the model the drawn ids of `cells`.

        Cells revealed in one call form a group: they see each other. Reveal a group, then ask
        for the next one.
        """
        if draft.pending is not None:
            raise AssertionError("reveal() twice without predict() would merge two groups")
        draft.pending = (cells, ids)

    def score(
        self,
        draft: FrameDraft,
        ids: Int[Tensor, "batch cell"],
        group_of_cell: Int[Tensor, "batch cell"],
    ) -> Float[Tensor, "batch cell codebook"]:
        """Return logits of every cell given the ids of all cells of earlier groups, in one call."""
        raise NotImplementedError
