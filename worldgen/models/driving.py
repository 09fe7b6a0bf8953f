"""The driving transformer: next state over time, next token inside the frame, ego motion as tokens."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.models.base import FrameDraft
from worldgen.models.driving_blocks import (
    DrivingBlock,
    MotionEmbedding,
    carriers,
    cell_distances,
    readout,
)
from worldgen.models.driving_config import DrivingConfig
from worldgen.nn.attention import attend
from worldgen.nn.blocks import initialise
from worldgen.nn.cache import FrameCache, StepCache
from worldgen.nn.cache_storage import CacheConfig
from worldgen.nn.rotary import RotaryTable, rotary_table

__all__ = ["DrivingConfig", "DrivingDraft", "DrivingTransformer"]


@dataclass(kw_only=True)
class DrivingDraft(FrameDraft):
    """What is known of the next frame."""

    states: Float[Tensor, "batch slot width"]
    """What the steps so far say about each slot of the frame: those of its action, then cells."""
    told: Float[Tensor, "batch place width"]
    """What each action slot is told, and behind it what the first cells are: what came before."""
    isolated: Bool[Tensor, " batch"] | None = None
    """Rows whose action is not known; None: it is, everywhere."""
    before: tuple[Tensor, Tensor] | None = None
    """Cells of the group revealed last, and what its tokens tell, once the model has read them."""
    asked: Int[Tensor, " group"] | None = None
    """Cells of the last prediction, whose keys and values stand behind those kept."""
    places: Int[Tensor, " kept"]
    """Slots whose keys and values are kept."""
    hidden: Bool[Tensor, " slot"]
    """Slots that nobody sees in an isolated row."""
    keys_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """A pair for each layer within the frame, `[batch, head, slot, width]`, in the order of
    `places`, with room behind."""


class DrivingTransformer(nn.Module):
    """World model of driving: what happens over time first, then the frame slot by slot.

    A step has *slots*: those of the action that led to its frame, then the frame's cells. The
    *context* layers pass over steps, by turns along time (each slot sees itself in the frames of
    the window) and over space (each slot sees its frame). Their output at a slot, the *state*, is
    what they say about that slot one frame later. The *within-frame* layers go through the slots
    of the next frame in order: the action's slots one by one, then groups of cells. Each slot
    begins with its state and what was drawn just before it, sees the slots of its own and earlier
    groups, and predicts itself. In raster order that is DrivingWorld. Where many cells are drawn
    at once, `carriers` says who is told which of the cells drawn before.

    The action slots predict the action, so the model is a policy as well.

    Source: DrivingWorld (arXiv:2412.19505), sections 3.2 and 3.3, and its released code; groups of
        cells, the order of tokens in the cache and positions that survive sliding are ours.
    """

    def __init__(self, config: DrivingConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout
        self.codebook_size = config.codebook_size
        width, slots = config.width, config.num_action_tokens

        def block() -> DrivingBlock:
            return DrivingBlock(width, config.num_heads)

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
        self.time_blocks = nn.ModuleList(block() for _ in range(config.context_depth))
        self.space_blocks = nn.ModuleList(block() for _ in range(config.context_depth))
        self.within_frame = nn.ModuleList(block() for _ in range(config.within_frame_depth))
        self.start = nn.Parameter(0.02 * torch.randn(width))
        # A cell that carries a token says where it was drawn: that is not always the same side.
        self.origin_row = nn.Parameter(0.02 * torch.randn(config.rows, width))
        self.origin_column = nn.Parameter(0.02 * torch.randn(config.columns, width))
        if config.time_positions == "window":
            self.time_embedding = nn.Parameter(0.02 * torch.randn(config.window, width))
        if slots and not config.first_action:
            self.unknown_motion = nn.Parameter(torch.randn(slots, width))
        self.cell_head = readout(width, max(config.codebook_size // 2, 1), config.codebook_size)
        self.action_heads = nn.ModuleList(
            readout(width, options, options) for options in config.slot_options
        )
        initialise(self, depth=2 * config.context_depth + config.within_frame_depth)

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
            return self.start.new_zeros(*action_ids.shape, self.config.width)
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
            motion = self._row_by_row(self.embed_action, action_ids)
        return torch.cat((motion, self.embed_cells(visual_ids)), dim=1)

    def _first_motion(self) -> Float[Tensor, "slot width"]:
        """Return what the action slots of a sequence's first frame are fed."""
        if self.config.first_action or not self.config.num_action_tokens:
            ids = torch.tensor(self.config.first_action, dtype=torch.int64, device=self.device)
            return self.embed_action(ids)
        return self.unknown_motion

    def _row_by_row(self, embed: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        # On CPU a product with one vector is rounded otherwise than those of many. One by one, a
        # row's numbers do not depend on who else is in the batch.
        rows = 1 if self.device.type == "cpu" else len(ids)
        return torch.cat([embed(piece) for piece in ids.split(rows)])

    def _told(
        self, motion: Float[Tensor, "*batch slot width"]
    ) -> Float[Tensor, "*batch place width"]:
        """Return what each action slot is told, and the first cells: what was drawn just before.

        The first slot is told the start vector, each other one the slot before it, the first group
        of cells the last slot.

        Args:
            motion: Embedded action of the frame.
        """
        return torch.cat((self.start.expand(*motion.shape[:-2], 1, -1), motion), dim=-2)

    def _apart(
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

    def _isolated(
        self, known_actions: Bool[Tensor, " batch"] | None
    ) -> Bool[Tensor, " batch"] | None:
        """Return which rows are apart from their actions; None if there are none."""
        if known_actions is None or not self.config.num_action_tokens or bool(known_actions.all()):
            return None
        return ~known_actions.to(self.device)

    # The context

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

        space_rotary = _place_rotary(config, self.device)
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
        isolated = self._isolated(known_actions)
        if first_action is None:
            first = repeat(self._first_motion(), "slot width -> b 1 slot width", b=batch)
        else:
            first = self.embed_action(first_action)[:, None]
        motion = torch.cat((first, self.embed_action(action_ids[:, : frames - 1])), dim=1)
        motion = self._apart(motion, isolated)
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

    # The frame, all slots at once

    def refine(
        self,
        states: Float[Tensor, "batch frame slot width"],
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch frame slot"],
        group_of_cell: Int[Tensor, "*batch cell"],
        *,
        known_actions: Bool[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch frame cell codebook"], tuple[Tensor, ...]]:
        """Return logits of every slot of frames given the true slots of earlier groups.

        Args:
            states: Of the frame before each, from `encode_steps`.
            visual_ids: Of the frames themselves.
            action_ids: What led to each of them.
            group_of_cell: Groups are drawn in the order of their numbers, the cells of one at once;
                one order for all clips, or one for each.
            known_actions: Which clips have actions; None: all.

        Returns:
            Logits of the cells, and for each action slot those of its options,
            `[batch, frame, option]`.
        """
        isolated = self._isolated(known_actions)
        told = self._told(self._apart(self.embed_action(action_ids), isolated))
        stream = self._run_frames(states, visual_ids, told, group_of_cell, isolated)
        slots = self.config.num_action_tokens
        actions = tuple(head(stream[:, :, slot]) for slot, head in enumerate(self.action_heads))
        return self.cell_head(stream[:, :, slots:]), actions

    def _run_frames(
        self,
        states: Float[Tensor, "batch frame slot width"],
        visual_ids: Int[Tensor, "batch frame cell"],
        told: Float[Tensor, "batch frame place width"],
        group_of_cell: Int[Tensor, "*batch cell"],
        isolated: Bool[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch frame slot width"]:
        """Return all slots of frames after the layers within the frame."""
        batch, frames = visual_ids.shape[:2]
        slots, rank = self.config.num_action_tokens, _ranks(group_of_cell.to(self.device))
        distance = cell_distances(self.config.rows, self.config.columns, rank.device)
        shares = _shares(carriers(distance, rank[..., None, :] + 1 == rank[..., None]))
        content = self._content(visual_ids, torch.arange(visual_ids.shape[2], device=rank.device))
        carried = shares.to(content).unsqueeze(-3) @ content
        first = rearrange(rank == 0, "... cell -> ... 1 cell 1")
        carried = torch.where(first, told[:, :, slots:], carried)
        stream = states + torch.cat((told[:, :, :slots], carried), dim=2)

        # Action slots stand before the first group, one after the other.
        ahead = torch.arange(-slots, 0, device=rank.device).expand(*rank.shape[:-1], -1)
        order = torch.cat((ahead, rank), dim=-1)
        mask = order[..., None, :] <= order[..., None]
        if isolated is not None:
            hidden = torch.cat((ahead > -slots, rank == 0), dim=-1)
            mask = mask & ~(hidden & isolated[:, None])[:, None]
        if mask.ndim == 3:
            mask = repeat(mask, "b query key -> (b frame) query key", frame=frames)

        def see(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(query, key, value, mask)

        rotary = _place_rotary(self.config, self.device)
        stream = rearrange(stream, "b frame slot width -> (b frame) slot width")
        for block in self.within_frame:
            stream = block(stream, rotary, see)
        return rearrange(stream, "(b frame) slot width -> b frame slot width", b=batch)

    def _content(
        self, ids: Int[Tensor, "*batch group"], cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "*batch group width"]:
        """Return what drawn cells tell: their tokens, and where they are."""
        row, column = cells // self.config.columns, cells % self.config.columns
        return self.embed_cells(ids) + self.origin_row[row] + self.origin_column[column]

    def forward(
        self,
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch frame slot"],
        group_of_cell: Int[Tensor, "*batch cell"] | None = None,
        *,
        known_actions: Bool[Tensor, " batch"] | None = None,
        first_action: Int[Tensor, "batch slot"] | None = None,
    ) -> tuple[Float[Tensor, "batch later_frame cell codebook"], tuple[Tensor, ...]]:
        """Return logits of every slot of all frames but the first, from the true slots before it.

        Args:
            visual_ids: Of the clip; each frame is context, and what its later cells are told.
            action_ids: The action taken in each frame; that of the last is not looked at.
            group_of_cell: As of `refine`; None for raster order.
            known_actions: As of `refine`.
            first_action: As of `encode_steps`.

        Returns:
            As `refine`; the logits of action slots are about the actions of all frames but the
            last.
        """
        if group_of_cell is None:
            group_of_cell = torch.arange(self.layout.num_cells)
        actions = action_ids[:, : visual_ids.shape[1] - 1]
        states = self.encode_steps(
            visual_ids[:, :-1], actions, known_actions=known_actions, first_action=first_action
        )
        return self.refine(
            states, visual_ids[:, 1:], actions, group_of_cell, known_actions=known_actions
        )

    # Cached generation

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

    @torch.no_grad()
    def observe(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
    ) -> DrivingDraft:
        """Commit one step (frame and action) to the cache; return the draft of the next frame.

        The context reads the frame with the action that led to it, which the cache has noted. The
        action taken in it is noted for the next frame, and what the draft begins with.
        """
        visual_ids, action_ids = visual_ids.to(self.device), action_ids.to(self.device)

        def see_cache(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.write_and_read(layer, key, value)
            return _see_past(query, keys, values)

        step = self._embed_step(visual_ids, cache.noted_before())
        states = self._run_context(step, cache.frame_numbers, see_cache)
        cache.note(action_ids)
        cache.advance()
        return self.draft(states, visual_ids, action_ids)

    def draft(
        self,
        states: Float[Tensor, "batch slot width"],
        previous_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
        *,
        known_actions: Bool[Tensor, " batch"] | None = None,
    ) -> DrivingDraft:
        """Return the draft of a frame of which nothing is drawn yet.

        Args:
            states: Of the frame before, from `encode_steps`.
            previous_ids: Of the frame before.
            action_ids: Taken in it.
            known_actions: Which rows have actions; None: all.
        """
        isolated = self._isolated(known_actions)
        told = self._told(self._apart(self._row_by_row(self.embed_action, action_ids), isolated))
        return self._new_draft(states, previous_ids, told, isolated)

    def _new_draft(
        self, states: Tensor, previous_ids: Tensor, told: Tensor, isolated: Tensor | None = None
    ) -> DrivingDraft:
        slot = torch.arange(self.layout.tokens_per_step, device=self.device)
        return DrivingDraft(
            previous_ids=previous_ids,
            states=states,
            told=told,
            isolated=isolated,
            places=slot[:0],
            hidden=(slot > 0) & (slot < self.config.num_action_tokens),
        )

    @torch.no_grad()
    def predict(
        self, draft: FrameDraft, cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return logits of `cells`, to be drawn at once, given the cells revealed so far.

        Only these cells are computed, and before the first ones the action's slots. What is kept
        of them is used again if just they are revealed; if others are, those are computed anew.
        """
        assert isinstance(draft, DrivingDraft)
        draft.calls += 1
        cells, slots = cells.to(self.device), self.config.num_action_tokens
        parts: list[tuple[Tensor, Tensor]] = []
        if not len(draft.places) and slots:
            ahead = torch.arange(slots, device=self.device)
            parts += [(ahead[s : s + 1], draft.told[:, s : s + 1]) for s in range(slots)]
        if draft.pending is not None:
            fresh, ids = (each.to(self.device) for each in draft.pending)
            if draft.asked is not None and _same_cells(draft.asked, fresh):
                draft.places = torch.cat((draft.places, draft.asked + slots))
            else:
                parts.append((fresh + slots, self._carried(draft, fresh)))
            draft.before, draft.pending = (fresh, self._content(ids, fresh)), None
        parts.append((cells + slots, self._carried(draft, cells)))
        draft.asked = cells
        stream = self._feed(draft, parts, keep=len(parts) - 1)
        logits: Tensor = self.cell_head(stream[:, stream.shape[1] - len(cells) :])
        return logits

    def reveal(
        self, draft: FrameDraft, cells: Int[Tensor, " group"], ids: Int[Tensor, "batch group"]
    ) -> None:
        """Tell the model the drawn ids of `cells`.

        Cells revealed in one call form a group. Reveal a group, then ask for the next one.
        """
        if draft.pending is not None:
            raise AssertionError("reveal() twice without predict() would merge two groups")
        draft.pending = (cells, ids)

    def _carried(
        self, draft: DrivingDraft, cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group width"]:
        """Return what the cells of a group are told: of the group before, or of the action."""
        if draft.before is None:
            draft.hidden[self.config.num_action_tokens :] = False
            draft.hidden[self.config.num_action_tokens + cells] = True
            return draft.told[:, -1:].expand(-1, len(cells), -1)
        before, content = draft.before
        distance = cell_distances(self.config.rows, self.config.columns, cells.device)
        return _shares(carriers(distance[cells][:, before])).to(content) @ content

    def _feed(
        self, draft: DrivingDraft, parts: Sequence[tuple[Tensor, Tensor]], keep: int
    ) -> Float[Tensor, "batch slot width"]:
        """Return slots of the frame after the layers within it.

        Args:
            draft: What is kept of it grows.
            parts: Slots that see each other and earlier ones: their places, and what they are told.
            keep: How many of the parts are seen later.
        """
        num_kept = len(draft.places)
        places = torch.cat([part for part, _ in parts])
        stop = num_kept + len(places)
        seen = torch.cat((draft.places, places))
        mask = None
        if len(parts) > 1:
            sizes = torch.tensor([len(part) for part, _ in parts])
            order = torch.arange(len(parts)).repeat_interleave(sizes)
            among = order <= order[:, None]
            mask = torch.cat((among.new_ones(len(places), num_kept), among), dim=1).to(self.device)
        if draft.isolated is not None:
            visible = ~(draft.isolated[:, None] & draft.hidden[seen])
            own = visible[:, None].expand(-1, len(places), -1)
            mask = own if mask is None else own & mask
        stream = draft.states[:, places] + torch.cat([told for _, told in parts], dim=1)
        cosine, sine = _place_rotary(self.config, self.device)
        rotary = cosine[places], sine[places]
        for layer, block in enumerate(self.within_frame):

            def see(query: Tensor, key: Tensor, value: Tensor, layer: int = layer) -> Tensor:
                if layer == len(draft.keys_values):
                    room = (*key.shape[:2], self.layout.tokens_per_step, key.shape[3])
                    draft.keys_values.append((key.new_empty(room), value.new_empty(room)))
                keys, values = draft.keys_values[layer]
                keys[:, :, num_kept:stop], values[:, :, num_kept:stop] = key, value
                return attend(query, keys[:, :, :stop], values[:, :, :stop], mask)

            stream = block(stream, rotary, see)
        draft.places = seen[: num_kept + sum(len(part) for part, _ in parts[:keep])]
        return stream

    @torch.no_grad()
    def score(
        self,
        draft: FrameDraft,
        ids: Int[Tensor, "batch cell"],
        group_of_cell: Int[Tensor, "batch cell"],
    ) -> Float[Tensor, "batch cell codebook"]:
        """Return logits of every cell given the ids of all cells of earlier groups, in one call."""
        assert isinstance(draft, DrivingDraft)
        draft.calls += 1
        clips = draft.states[:, None], ids.to(self.device)[:, None], draft.told[:, None]
        stream = self._run_frames(*clips, group_of_cell, draft.isolated)
        logits: Tensor = self.cell_head(stream[:, 0, self.config.num_action_tokens :])
        return logits

    @torch.no_grad()
    def predict_action(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        slot_ids: Sequence[Int[Tensor, " option"]],
        choose: Callable[[int, Float[Tensor, "batch option"]], Int[Tensor, " batch"]],
    ) -> Int[Tensor, "batch slot"]:
        """Return the action that the model itself would take in a frame; see `Policy`."""
        visual_ids = visual_ids.to(self.device)

        def see_cache(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.read_before(layer)
            return _see_past(
                query, torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
            )

        step = self._embed_step(visual_ids, cache.noted_before())
        states = self._run_context(step, cache.frame_numbers, see_cache)
        told = self.start.expand(len(states), 1, -1)
        draft = self._new_draft(states, visual_ids, told)
        drawn: list[Tensor] = []
        for slot, (first, head) in enumerate(
            zip(self.config.first_ids, self.action_heads, strict=True)
        ):
            place = torch.tensor([slot], device=self.device)
            stream = self._feed(draft, [(place, told)], keep=1)
            allowed = slot_ids[slot].to(self.device)
            logits = head(stream[:, 0])[:, allowed - first]
            drawn.append(allowed[choose(slot, logits)])
            told = self.motion[slot](drawn[-1] - first)[:, None]
        return torch.stack(drawn, dim=1)


@functools.lru_cache(maxsize=16)
def _place_rotary(config: DrivingConfig, device: torch.device) -> RotaryTable:
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


def _ranks(group_of_cell: Int[Tensor, "*batch cell"]) -> Int[Tensor, "*batch cell"]:
    """Return groups numbered from 0 without gaps."""
    numbers, order = group_of_cell.sort(dim=-1)
    begins = F.pad((numbers[..., 1:] != numbers[..., :-1]).long(), (1, 0))
    return torch.empty_like(group_of_cell).scatter(-1, order, begins.cumsum(dim=-1))


def _shares(
    carried_by: Bool[Tensor, "*batch now before"],
) -> Float[Tensor, "*batch now before"]:
    """Return how much a cell takes of each that it carries: together as much as of one."""
    count = carried_by.sum(dim=-1, keepdim=True).clamp(min=1)
    return carried_by / count.sqrt()


def _same_cells(some: Int[Tensor, " some"], others: Int[Tensor, " other"]) -> bool:
    # The plain case first: comparing waits for the accelerator.
    if some is others:
        return True
    return len(some) == len(others) and torch.equal(some.sort().values, others.sort().values)
