"""The interleaved transformer: visual and action tokens in one sequence, causal over frames.

This is what its two kinds share: the blocks, the cache, the windows over frames. They differ in how
they are asked for a frame. `worldgen.models.next_frame` asks every cell of a frame for the same cell
one frame later; `worldgen.models.next_token` asks every token for the one after it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from worldgen.errors import ConfigError
from worldgen.layout import SequenceLayout
from worldgen.models.base import FrameDraft
from worldgen.nn.attention import AttentionConfig, attend, frame_causal_attention
from worldgen.nn.blocks import Attend, Block, BlockConfig, RMSNorm
from worldgen.nn.cache import FrameCache, StepCache
from worldgen.nn.cache_storage import CacheConfig, CacheStorage
from worldgen.nn.far import FarPooling, FarTokens
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
    far_frames: int = 0
    """Frames behind the longest window that the layers which have it see as few tokens."""
    far_patch: tuple[int, int] = (4, 4)
    """Rows and columns of the cells of a far frame that become one token."""
    time_decay: float = 0.0
    """A frame `n` steps back weighs `exp(-time_decay * n)` times what it would, whatever times the
    steps are told; those of the sink weigh in full. See `frame_causal_attention`."""
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
        if self.far_frames < 0:
            raise ConfigError(f"far_frames must be 0 or more, got {self.far_frames}")
        if not 0 <= self.time_decay < inf:
            raise ConfigError(f"time_decay must be a number from 0 on, got {self.time_decay}")
        high, wide = self.far_patch
        if min(high, wide) < 1 or (self.far_frames and (self.rows % high or self.columns % wide)):
            raise ConfigError(
                f"far_patch must divide the {self.rows} x {self.columns} cells of a frame, got "
                f"{high} x {wide}; choose divisors of both"
            )
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
        self.far_frames = config.far_frames
        self.time_decay = config.time_decay
        grid = config.rows, config.columns
        self.far_tokens = self.layout.num_cells // (config.far_patch[0] * config.far_patch[1])
        self.far_pools = nn.ModuleDict()
        self.norm = RMSNorm(config.width, config.block.norm_epsilon)
        self.readout = nn.Linear(config.width, vocabulary_size, bias=False)
        for layer in self.cache_config().far_layers:
            self.far_pools[str(layer)] = FarPooling(config.width, grid, config.far_patch)

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
            far_frames=self.far_frames,
            far_tokens=self.far_tokens if self.far_frames else 0,
            storage=self.cache_storage,
            dtype=self.readout.weight.dtype,
        )

    def run_blocks(
        self,
        stream: Float[Tensor, "batch token width"],
        rotary: RotaryTable,
        see: Attend,
        before: Callable[[int, Tensor], None] | None = None,
    ) -> Float[Tensor, "batch token width"]:
        """Return the stream after all blocks.

        Args:
            stream: Embedded tokens.
            rotary: Of the tokens.
            see: Decides what the tokens of each layer see.
            before: Gets the number of each layer and the stream in front of it.
        """
        for layer, block in enumerate(self.blocks):
            if before is not None:
                before(layer, stream)
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
        far = _FarFrames(self, num_frames, rotary)

        def see_frames(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            far_tokens = far.of_layer.get(layer)
            return frame_causal_attention(
                query,
                key,
                value,
                num_frames,
                self.windows[layer],
                own,
                remembered,
                sink=self.sink,
                far=far_tokens,
                far_frames=self.far_frames if far_tokens is not None else 0,
                time_decay=self.time_decay,
            )

        stream = rearrange(steps, "b frame token width -> b (frame token) width")
        return rearrange(
            self.run_blocks(stream, rotary, see_frames, far.read),
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
        far = _FarFrames(self, 1, rotary)

        def see_cache(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            bias = self.decay(cache, layer, key.shape[2])
            keys, values = cache.write_and_read(layer, key, value, far.of_layer.get(layer))
            mask = None
            if own is not None:
                past = own.new_ones(len(own), keys.shape[2] - len(own))
                mask = torch.cat((past, own), dim=1)
            return attend(query, keys, values, mask, bias=bias)

        stream = self.run_blocks(step, rotary, see_cache, far.read)
        cache.advance()
        return stream

    def decay(self, cache: StepCache, layer: int, num_own: int) -> Float[Tensor, " token"] | None:
        """Return what age adds to the scores of the keys that the frame to come sees.

        Args:
            cache: Of the frames before.
            layer: That attends.
            num_own: Tokens of the frame itself, which stand behind those.

        Returns:
            None if scores do not fall with time, or the layer sees nothing that has aged.
        """
        ageless = self.windows[layer] == 1 and str(layer) not in self.far_pools
        if not self.time_decay or ageless:
            return None
        return -self.time_decay * functional.pad(cache.ages_before(layer), (0, num_own))

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


class _FarFrames:
    """Frames as few tokens, layer by layer, while their steps pass the blocks.

    A token is a patch of cells, pooled from the stream in front of a layer and read with that
    layer's own norm and projection. It stands at the cell in the middle of its patch.

    Args:
        model: Gives pools and blocks.
        num_frames: Whose steps pass.
        rotary: Of the tokens of all steps.
    """

    def __init__(self, model: InterleavedTransformer, num_frames: int, rotary: RotaryTable) -> None:
        self._model, self._num_frames, self._rotary = model, num_frames, rotary
        self.of_layer: dict[int, FarTokens] = {}
        """Those of the layers that see far frames, once their turn has come."""

    def read(self, layer: int, stream: Float[Tensor, "batch token width"]) -> None:
        """Read the stream in front of a layer."""
        model = self._model
        if str(layer) not in model.far_pools:
            return
        pool, block = model.far_pools[str(layer)], model.blocks[layer]
        assert isinstance(pool, FarPooling)
        assert isinstance(block, Block)
        steps = rearrange(
            stream, "b (frame token) width -> b frame token width", frame=self._num_frames
        )
        pooled = pool(steps[:, :, model.layout.visual_slice])
        places = model.layout.visual_slice.start + pool.middle_cells
        first = torch.arange(self._num_frames)[:, None] * steps.shape[2]
        middles = (first + places).flatten().to(stream.device)
        cosine, sine = self._rotary
        _, keys, values = block.attention.project(
            block.attention_norm(rearrange(pooled, "b frame patch width -> b (frame patch) width")),
            (cosine[..., middles, :], sine[..., middles, :]),
        )
        self.of_layer[layer] = FarTokens(keys, values)
