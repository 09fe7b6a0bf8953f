"""The context of the driving transformer: what the frames so far say about the next one."""

import functools
from collections.abc import Callable

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.models.driving_blocks import DrivingBlock, MotionEmbedding
from worldgen.models.driving_config import DrivingConfig
from worldgen.nn.attention import attend
from worldgen.nn.cache import FrameCache, StepCache
from worldgen.nn.cache_storage import CacheConfig
from worldgen.nn.rotary import RotaryTable, rotary_table

__all__ = ["DrivingContext", "place_rotary"]


class DrivingContext(nn.Module):
    """Tokens of steps, and layers over them: by turns along time and over space.

    A step has *slots*: those of the action that led to its frame, then the frame's cells. Along
    time each slot sees itself in the frames of the window; over space each slot sees its frame. The
    output at a slot, its *state*, is what the frames so far say about that slot one frame later.

    Source: DrivingWorld (arXiv:2412.19505) and its released code.
    """

    def __init__(self, config: DrivingConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout
        width, slots = config.width, config.num_action_tokens
        self.codes = nn.Embedding(config.codebook_size, config.code_width)
        self.code_projector = nn.Sequential(
            nn.Linear(config.code_width, width // 2, bias=False),
            nn.GELU(),
            nn.Linear(width // 2, width, bias=False),
            nn.LayerNorm(width),
        )
        self.motion = nn.ModuleList(
            MotionEmbedding(options, config.motion_width, width) for options in config.slot_options
        )
        depth = range(config.context_depth)
        self.time_blocks = nn.ModuleList(DrivingBlock(width, config.num_heads) for _ in depth)
        self.space_blocks = nn.ModuleList(DrivingBlock(width, config.num_heads) for _ in depth)
        if config.time_positions == "window":
            self.time_embedding = nn.Parameter(0.02 * torch.randn(config.window, width))
        if slots and not config.first_action:
            self.unknown_motion = nn.Parameter(torch.randn(slots, width))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.codes.weight.device

    # Tokens

    def embed_cells(self, visual_ids: Int[Tensor, "*leading"]) -> Float[Tensor, "*leading width"]:
        """Return embedded visual tokens."""
        embedded: Tensor = self.code_projector(self.codes(visual_ids))
        return embedded

    def embed_action(
        self, action_ids: Int[Tensor, "*leading slot"]
    ) -> Float[Tensor, "*leading slot width"]:
        """Return embedded action tokens, given as ids in `[0, action_vocabulary_size)`."""
        pairs = zip(self.motion, self.config.first_ids, strict=True)
        embedded = [
            motion(action_ids[..., slot] - first) for slot, (motion, first) in enumerate(pairs)
        ]
        if not embedded:
            return self.codes.weight.new_zeros(*action_ids.shape, self.config.width)
        return torch.stack(embedded, dim=-2)

    def _embed_step(
        self,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"] | None,
    ) -> Float[Tensor, "batch slot width"]:
        """Return the embedded slots of a frame; the action that led there None for the first."""
        batch = len(visual_ids)
        if action_ids is None:
            motion = repeat(self._first_motion(), "slot width -> b slot width", b=batch)
        else:
            motion = self.row_by_row(self.embed_action, action_ids)
        return torch.cat((motion, self.embed_cells(visual_ids)), dim=1)

    def _first_motion(self) -> Float[Tensor, "slot width"]:
        """Return what the action slots of a sequence's first frame are fed."""
        if self.config.first_action or not self.config.num_action_tokens:
            ids = torch.tensor(self.config.first_action, dtype=torch.int64, device=self.device)
            return self.embed_action(ids)
        return self.unknown_motion

    def row_by_row(self, embed: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        """Return embedded ids such that a row does not depend on who else is in the batch.

        On CPU a product with one vector is rounded otherwise than those of many.
        """
        rows = 1 if self.device.type == "cpu" else len(ids)
        return torch.cat([embed(piece) for piece in ids.split(rows)])

    def apart(
        self,
        motion: Float[Tensor, "batch *frame slot width"],
        isolated: Bool[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch *frame slot width"]:
        """Return embedded actions, in isolated rows those of the last options instead.

        DrivingWorld marks what it does not know by infinite numbers, which fall there.
        """
        if isolated is None:
            return motion
        pairs = zip(self.config.first_ids, self.config.slot_options, strict=True)
        last = torch.tensor([first + options - 1 for first, options in pairs], device=self.device)
        rows = isolated.reshape(-1, *[1] * (motion.ndim - 1))
        return torch.where(rows, self.embed_action(last), motion)

    def isolated(
        self, known_actions: Bool[Tensor, " batch"] | None
    ) -> Bool[Tensor, " batch"] | None:
        """Return which rows are apart from their actions; None if there are none."""
        if known_actions is None or not self.config.num_action_tokens or bool(known_actions.all()):
            return None
        return ~known_actions.to(self.device)

    # The layers

    def _run_context(
        self,
        stream: Float[Tensor, "steps slot width"],
        numbers: Int[Tensor, " steps"],
        see_time: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        isolated: Bool[Tensor, " steps"] | None = None,
    ) -> Float[Tensor, "steps slot width"]:
        """Return embedded steps after all context layers.

        Args:
            stream: Steps of all sequences.
            numbers: Of their frames.
            see_time: What a layer over time reads.
            isolated: Steps whose action slots see themselves alone and are seen by no cell.
        """
        config = self.config
        time_rotary = None
        if config.time_positions == "window":
            rows = numbers.clamp(max=config.window - 1)
            stream = stream + self.time_embedding[rows][:, None]
        else:
            places = rearrange(numbers, "steps -> steps 1 1")
            cosine, sine = rotary_table(places, (config.head_width,), config.rotary_base)
            time_rotary = cosine.to(self.device), sine.to(self.device)
        mask = None
        if isolated is not None:
            slot = torch.arange(stream.shape[1], device=stream.device)
            is_cell = slot >= config.num_action_tokens
            apart = (is_cell[:, None] & is_cell) | (slot[:, None] == slot)
            mask = apart | ~rearrange(isolated, "steps -> steps 1 1")

        def see_space(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(query, key, value, mask)

        space_rotary = place_rotary(config, self.device)
        for layer, (time, space) in enumerate(
            zip(self.time_blocks, self.space_blocks, strict=True)
        ):

            def see_past(query: Tensor, key: Tensor, value: Tensor, layer: int = layer) -> Tensor:
                return see_time(layer, query, key, value)

            stream = space(time(stream, time_rotary, see_past), space_rotary, see_space)
        return stream

    def encode_steps(
        self,
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch step slot"],
        *,
        known_actions: Bool[Tensor, " batch"] | None = None,
        first_action: Int[Tensor, "batch slot"] | None = None,
    ) -> Float[Tensor, "batch frame slot width"]:
        """Return the states of every frame: what the frames up to it say about the next one.

        The whole clip in one pass: for training, and the oracle of the cached path.

        Args:
            visual_ids: Ids in `[0, codebook_size)`.
            action_ids: Ids in `[0, action_vocabulary_size)`; the action taken in each frame, which
                led to the next. That of the last frame is not looked at and may be missing.
            known_actions: Which clips have actions; None: all.
            first_action: What led to the first frame; None: that of the configuration.
        """
        batch, frames = visual_ids.shape[:2]
        isolated = self.isolated(known_actions)
        if first_action is None:
            first = repeat(self._first_motion(), "slot width -> b 1 slot width", b=batch)
        else:
            first = self.embed_action(first_action)[:, None]
        motion = torch.cat((first, self.embed_action(action_ids[:, : frames - 1])), dim=1)
        motion = self.apart(motion, isolated)
        steps = torch.cat((motion, self.embed_cells(visual_ids)), dim=2)
        number = torch.arange(frames, device=steps.device)
        age = number[:, None] - number
        in_window = (age >= 0) & (age < self.config.window)
        fold = "(b frame) head slot width -> (b slot) head frame width"
        unfold = "(b slot) head frame width -> (b frame) head slot width"

        def see_window(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (rearrange(p, fold, frame=frames) for p in (query, key, value))
            return rearrange(attend(query, key, value, in_window), unfold, b=batch)

        stream = self._run_context(
            rearrange(steps, "b frame slot width -> (b frame) slot width"),
            repeat(number, "frame -> (b frame)", b=batch),
            see_window,
            None if isolated is None else repeat(isolated, "b -> (b frame)", frame=frames),
        )
        return rearrange(stream, "(b frame) slot width -> b frame slot width", b=batch)

    def new_cache(self, batch: int, *, spare: int = 0) -> FrameCache:
        """Return an empty cache.

        Args:
            batch: Sequences that advance together.
            spare: Frames kept beyond the window, so that they can be rewound.
        """
        return FrameCache(self.cache_config(spare=spare), batch=batch, device=self.device)

    def cache_config(self, *, spare: int = 0) -> CacheConfig:
        """Return what a cache keeps of one sequence: the layers over time, and actions.

        Args:
            spare: Frames kept beyond the window, so that they can be rewound.
        """
        config = self.config
        return CacheConfig(
            heads=config.num_heads,
            tokens=self.layout.tokens_per_step,
            head_width=config.head_width,
            windows=(config.window,) * config.context_depth,
            spare=spare,
            notes=config.num_action_tokens,
            storage=config.cache_storage,
            dtype=self.codes.weight.dtype,
        )

    def read_step(
        self, cache: StepCache, visual_ids: Int[Tensor, "batch cell"], *, remember: bool
    ) -> Float[Tensor, "batch slot width"]:
        """Return the states of the frame after those in the cache.

        It is read with the action that led to it, which the cache has noted.

        Args:
            cache: Of the frames before.
            visual_ids: Of the frame.
            remember: Whether keys and values are written to the cache; it is not advanced.
        """

        def see_cache(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            if remember:
                return _see_past(query, *cache.write_and_read(layer, key, value))
            keys, values = cache.read_before(layer)
            return _see_past(
                query, torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
            )

        step = self._embed_step(visual_ids, cache.noted_before())
        return self._run_context(step, cache.frame_numbers, see_cache)


@functools.lru_cache(maxsize=16)
def place_rotary(config: DrivingConfig, device: torch.device) -> RotaryTable:
    """Return the rotary table of the slots of a frame; those of the action are not turned."""
    cells = torch.arange(config.layout.num_cells)
    length = config.columns if config.cell_positions == "grid" else config.rows
    positions = torch.stack((cells % length, cells // length), dim=-1)
    positions = F.pad(positions, (0, 0, config.num_action_tokens, 0))
    half = config.head_width // 2
    cosine, sine = rotary_table(positions, (half, half), config.rotary_base)
    return cosine.to(device), sine.to(device)


def _see_past(
    query: Float[Tensor, "batch head slot width"],
    keys: Float[Tensor, "batch head frame_slot width"],
    values: Float[Tensor, "batch head frame_slot width"],
) -> Float[Tensor, "batch head slot width"]:
    """Return attention in which every slot sees itself in all frames."""
    batch, _, slots, _ = query.shape
    fold = "b head (frame slot) width -> (b slot) head frame width"
    query, keys, values = (rearrange(part, fold, slot=slots) for part in (query, keys, values))
    mixed = attend(query, keys, values)
    return rearrange(mixed, "(b slot) head 1 width -> b head slot width", b=batch)
