"""An interleaved transformer that asks every token for the one after it, as language models do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from worldgen.errors import ConfigError
from worldgen.models.base import FrameDraft
from worldgen.models.conditions import StepConditions, refuse_conditions
from worldgen.models.interleaved import InterleavedConfig, InterleavedTransformer
from worldgen.nn.attention import AttentionConfig, attend
from worldgen.nn.blocks import BlockConfig, initialise
from worldgen.nn.cache import SeenFrames, StepCache
from worldgen.nn.rotary import RotaryTable, rotary_table
from worldgen.schedule import DecodeSchedule, make_schedule

__all__ = ["NextTokenConfig", "NextTokenDraft", "NextTokenTransformer"]


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig(InterleavedConfig):
    """Sizes of a next-token transformer."""

    actions_first: ClassVar[bool] = False

    mask: str = "raster"
    """Decoding order that tells who sees whom inside a frame: a visual token sees those of its own
    group and of earlier ones. `raster` is the plain causal mask; `diagonal` what is trained for
    diagonal decoding."""
    rotary_base: float = 10000.0
    attention_bias: bool = False
    feed_forward_bias: bool = False
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.num_action_tokens:
            raise ConfigError(
                "a next-token transformer predicts the first cell of a frame from the last action "
                "token before it, so it needs at least one action token a step"
            )
        _ = self.order

    @property
    def order(self) -> DecodeSchedule:
        """The schedule that `mask` names."""
        return make_schedule(self.mask, self.rows, self.columns)

    @property
    def block(self) -> BlockConfig:
        """Sizes of every block."""
        return BlockConfig(
            attention=AttentionConfig(
                width=self.width,
                num_heads=self.num_heads,
                num_key_value_heads=self.num_key_value_heads,
                bias=self.attention_bias,
            ),
            feed_forward_width=self.feed_forward_width,
            feed_forward_bias=self.feed_forward_bias,
            norm_epsilon=self.norm_epsilon,
        )

    @property
    def vocabulary_size(self) -> int:
        """Visual tokens and, after them, action tokens."""
        return self.codebook_size + self.action_vocabulary_size


@dataclass(kw_only=True)
class NextTokenDraft(FrameDraft):
    """What is known of the next frame."""

    step: "StepInTheMaking"
    last: Float[Tensor, "batch width"]
    """Output at the last token before the frame, which predicts its first cell."""
    before: Int[Tensor, "batch token"]
    """Ids of the step before the frame, action tokens behind the codebook."""
    ids: Int[Tensor, "batch cell"]
    """Ids revealed so far; anything elsewhere."""
    known: Bool[Tensor, " cell"]
    """Which cells the model has read, on the CPU."""


class NextTokenTransformer(InterleavedTransformer):
    """World model over one sequence of steps `[visual tokens of the frame | action tokens]`.

    Every token predicts the one after it, on rotary positions that count tokens. So the model is a
    policy as well: after the visual tokens of a frame it predicts its action.

    To draw many cells at once, a cell is asked for by the token before it where that one has just
    been drawn (its output is at hand, and nothing is computed twice), and by a *stand-in* where
    not: the token that the frame before has at that place, marked by a learned vector. Stand-ins
    are seen by nobody but themselves. Once a frame is drawn, `observe` reads it in one pass with
    its action: what is remembered is exactly what was drawn, whatever the order was.

    Source: MineWorld (arXiv:2504.08388), section 3, for sequence, objective and diagonal order
        (also arXiv:2503.14070); the stand-ins' rule is ours: the release keeps those of a
        frame's row ends in memory, see `worldgen.generation.mineworld`.
    """

    def __init__(self, config: NextTokenConfig) -> None:
        super().__init__(config, config.vocabulary_size)
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.stand_in = nn.Parameter(torch.zeros(config.width))
        initialise(self, depth=len(config.windows))

    # Tokens and their places

    def step_ids(
        self, visual_ids: Int[Tensor, "*leading cell"], action_ids: Int[Tensor, "*leading slot"]
    ) -> Int[Tensor, "*leading token"]:
        """Return the ids of whole steps, action tokens behind the codebook."""
        return torch.cat((visual_ids, action_ids + self.codebook_size), dim=-1).to(self.device)

    def rotary(self, positions: Int[Tensor, "*batch token"]) -> RotaryTable:
        """Return the rotary table of tokens at places of the sequence, counted from its start."""
        head_width = self.block_config.attention.head_width
        cosine, sine = rotary_table(positions[..., None], (head_width,), self.config.rotary_base)
        return cosine.to(self.device), sine.to(self.device)

    @cached_property
    def _order(self) -> "_Order":
        return _Order(self.config.order, self.layout.num_action_tokens)

    # The whole clip

    def forward(
        self,
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch frame slot"],
    ) -> tuple[
        Float[Tensor, "batch later_frame cell vocabulary"],
        Float[Tensor, "batch frame slot vocabulary"],
    ]:
        """Return logits of every cell of all frames but the first, and of every action token.

        For training, and the oracle of the cached path: each cell is predicted from what is known
        when its turn comes in the order of the model's mask.

        Args:
            visual_ids: Ids in `[0, codebook_size)`.
            action_ids: Ids in `[0, action_vocabulary_size)`; the action taken in each frame.
        """
        hidden = self.encode_clip(visual_ids, action_ids)
        cells, slots = self.layout.num_cells, self.layout.num_action_tokens
        order = self._order
        before = hidden[:, :-1, cells + slots - 1 : cells + slots]
        known = torch.cat((before, hidden[:, 1:]), dim=2)
        asked_by = order.asked_by.to(self.device)
        actions = self.read(hidden[:, :, cells - 1 : cells - 1 + slots])
        return self.read(known[:, :, asked_by]), actions

    def encode_clip(
        self,
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch frame slot"],
    ) -> Float[Tensor, "batch frame token width"]:
        """Return the output at every token of every step, stand-ins behind those of the layout."""
        order, frames = self._order, visual_ids.shape[1]
        ids = self.step_ids(visual_ids, action_ids)
        # That of the first frame is wrong, and nobody looks at what it asks for.
        before = ids.roll(1, dims=1)
        steps = torch.cat(
            (self.embedding(ids), self._stand_ins(order.asking, ids, before, order.predecessor)),
            dim=2,
        )
        first = torch.arange(frames)[:, None] * self.layout.tokens_per_step
        rotary = self.rotary((first + order.places).flatten())
        own, remembered = order.own.to(self.device), order.remembered.to(self.device)
        return self.run_clip(steps, rotary, own, remembered)

    def _stand_ins(
        self,
        cells: Sequence[int],
        ids: Int[Tensor, "*leading cell"],
        before: Int[Tensor, "*leading token"],
        known: Bool[Tensor, "*leading cell"],
    ) -> Float[Tensor, "*leading asking width"]:
        """Return what asks for `cells`: the token before each, or its stand-in if not known.

        Args:
            cells: To ask for.
            ids: Of the frame; entries that are not known do not matter.
            before: Of the step before.
            known: For each cell whether the token before it may be used.
        """
        index = torch.tensor(cells, dtype=torch.int64, device=self.device) - 1
        usable = known.to(self.device)[..., index + 1]
        # The token before the first cell is the last one of the step before.
        index = torch.where(index < 0, before.shape[-1] - 1, index)
        usable_ids = ids[..., index.clamp(max=ids.shape[-1] - 1)]
        asking = torch.where(usable, usable_ids, before[..., index])
        first = index == before.shape[-1] - 1
        marked = (~usable & ~first)[..., None].to(self.stand_in.dtype)
        embedded: Tensor = self.embedding(asking) + marked * self.stand_in
        return embedded

    # Cached generation

    @torch.no_grad()
    def observe(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
        conditions: StepConditions | None = None,
    ) -> NextTokenDraft:
        """Commit one step (frame and action) to the cache; return the draft of the next frame.

        Raises:
            ConfigError: If there are conditions, of which this family takes none.
        """
        refuse_conditions(conditions, "interleaved_next_token")
        ids = self.step_ids(visual_ids, action_ids)
        tokens = ids.shape[1]
        numbers = cache.frame_numbers[:, None]
        places = torch.arange(tokens, device=numbers.device) + numbers * tokens
        own = self._order.own[:tokens, :tokens].to(self.device)
        stream = self.run_step(cache, self.embedding(ids), self.rotary(places), own)
        return NextTokenDraft(
            previous_ids=ids[:, : self.layout.num_cells],
            step=StepInTheMaking(self, cache, self.layout.num_cells),
            last=stream[:, -1],
            before=ids,
            ids=ids[:, : self.layout.num_cells].clone(),
            known=torch.zeros(self.layout.num_cells, dtype=torch.bool),
        )

    @torch.no_grad()
    def predict(
        self, draft: FrameDraft, cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return logits of `cells`, to be drawn at once, given the cells revealed so far."""
        assert isinstance(draft, NextTokenDraft)
        draft.calls += 1
        order, wanted = self._order, cells.tolist()
        fresh: list[int] = []
        if draft.pending is not None:
            fresh = draft.pending[0].tolist()
            draft.ids[:, fresh] = draft.pending[1].to(draft.ids)
            draft.known[fresh] = True
            draft.pending = None
        # Where each wanted cell's prediction comes from: a place among the tokens fed now.
        place_of = {cell: place for place, cell in enumerate(fresh)}
        begins = not bool(draft.known.any())
        asking = [
            cell
            for cell in wanted
            if not (cell == 0 and begins) and not (order.continues[cell] and (cell - 1) in place_of)
        ]
        hidden = draft.last[:, None]
        if fresh or asking:
            seen = order.visible_now(draft.known, fresh, asking)
            usable = draft.known.roll(1)
            usable[0] = False
            tokens = torch.cat(
                (
                    self.embedding(draft.ids[:, fresh]),
                    self._stand_ins(asking, draft.ids, draft.before, usable),
                ),
                dim=1,
            )
            offsets = torch.tensor([*fresh, *(cell - 1 for cell in asking)])
            fed = draft.step.feed(self, tokens, offsets, fresh, seen)
            hidden = torch.cat((hidden, fed), dim=1)
        asked_at = {cell: 1 + len(fresh) + place for place, cell in enumerate(asking)}
        sources = [
            asked_at.get(cell, 0 if cell == 0 else 1 + place_of.get(cell - 1, -1))
            for cell in wanted
        ]
        logits = self.read(hidden[:, sources])
        return logits[..., : self.codebook_size]

    @torch.no_grad()
    def score(
        self,
        draft: FrameDraft,
        ids: Int[Tensor, "batch cell"],
        group_of_cell: Int[Tensor, "batch cell"],
    ) -> Float[Tensor, "batch cell codebook"]:
        """Return logits of every cell given the ids of all cells of earlier groups, in one call."""
        assert isinstance(draft, NextTokenDraft)
        draft.calls += 1
        drawn, mask = group_of_cell.cpu(), self._order.group
        ids, cells = ids.to(self.device), range(self.layout.num_cells)
        usable = torch.zeros_like(drawn, dtype=torch.bool)
        usable[:, 1:] = drawn[:, :-1] < drawn[:, 1:]
        tokens = torch.cat(
            (self.embedding(ids), self._stand_ins(cells, ids, draft.before, usable)), dim=1
        )
        content = (drawn[:, None] <= drawn[..., None]) & (mask[None] <= mask[:, None])
        query = (drawn[:, None] < drawn[..., None]) & (mask[None] < mask[:, None])
        # What asks for a cell takes the place of the cell before it.
        query[:, cells[1:], cells[:-1]] = False
        nothing = torch.zeros_like(content)
        alone = torch.eye(len(cells), dtype=torch.bool).expand_as(content)
        among = torch.cat(
            (torch.cat((content, nothing), dim=-1), torch.cat((query, alone), dim=-1)), dim=-2
        )
        places = torch.tensor(cells)
        offsets = torch.cat((places, places - 1))
        hidden = draft.step.feed(self, tokens, offsets, among=among)[:, len(cells) :]
        begins = (drawn[:, 0] == drawn.amin(dim=-1)).to(self.device)
        first = torch.where(begins[:, None], draft.last, hidden[:, 0])
        hidden = torch.cat((first[:, None], hidden[:, 1:]), dim=1)
        return self.read(hidden)[..., : self.codebook_size]

    @torch.no_grad()
    def predict_action(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        slot_ids: Sequence[Int[Tensor, " option"]],
        choose: Callable[[int, Float[Tensor, "batch option"]], Int[Tensor, " batch"]],
    ) -> Int[Tensor, "batch slot"]:
        """Return the action that the model itself would take in a frame; see `Policy`."""
        cells, slots = self.layout.num_cells, self.layout.num_action_tokens
        step = StepInTheMaking(self, cache, self.layout.tokens_per_step)
        own = self._order.own[: cells + slots, : cells + slots]
        ids = visual_ids.to(self.device)
        fed = list(range(cells))
        actions: list[Tensor] = []
        for slot in range(slots):
            seen = own[fed]
            output = step.feed(self, self.embedding(ids), torch.tensor(fed), fed, seen)[:, -1]
            allowed = slot_ids[slot].to(self.device)
            logits = self.read(output)[:, self.codebook_size + allowed]
            actions.append(allowed[choose(slot, logits)])
            ids = actions[-1][:, None] + self.codebook_size
            fed = [cells + slot]
        return torch.stack(actions, dim=1)


class StepInTheMaking:
    """Keys and values of a step that is not in the cache yet, behind those of the frames before.

    Args:
        model: Gives sizes and blocks.
        cache: Of the frames before; must not move while the step is made.
        num_places: Tokens of the step that are kept.
    """

    def __init__(self, model: NextTokenTransformer, cache: StepCache, num_places: int) -> None:
        self._cache = cache
        # A copy: a batch of a pool counts in the tensor that it shows.
        self._frame_numbers = cache.frame_numbers.clone()
        self._num_places = num_places
        self._first_positions = self._frame_numbers[:, None] * model.layout.tokens_per_step

    def feed(
        self,
        model: NextTokenTransformer,
        tokens: Float[Tensor, "batch token width"],
        offsets: Int[Tensor, " token"],
        kept: Sequence[int] = (),
        seen: Bool[Tensor, "token place"] | None = None,
        among: Bool[Tensor, "*batch passing passing"] | None = None,
    ) -> Float[Tensor, "batch token width"]:
        """Return the output at some tokens of the step; all see the steps before.

        Args:
            model: That of the step.
            tokens: Embedded.
            offsets: Of their positions from the start of the step.
            kept: Places at which the first tokens are kept; the others pass and are forgotten.
            seen: Which kept places each token sees, those kept now among them; None for none.
            among: Which of each other the passing tokens see, where nothing is kept now; None:
                each sees itself.
        """
        num_passing = tokens.shape[1] - len(kept)
        rotary = model.rotary(offsets.to(model.device) + self._first_positions)
        if seen is None:
            seen = torch.zeros(tokens.shape[1], self._num_places, dtype=torch.bool)
        if among is None:
            among = torch.eye(num_passing, dtype=torch.bool)
            among = torch.cat((among.new_zeros(len(kept), num_passing), among))
        seen = seen.expand(*among.shape[:-2], *seen.shape)
        inside = torch.cat((seen, among), dim=-1).to(model.device)
        index = torch.tensor(list(kept), dtype=torch.int64, device=model.device)
        behind = torch.arange(num_passing, device=model.device) + self._num_places
        places = torch.cat((index, behind))

        def see(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self._buffers[layer]
            num_past = keys.shape[2] - 3 * self._num_places
            keys[:, :, num_past + places] = key
            values[:, :, num_past + places] = value
            stop = num_past + inside.shape[-1]
            past = inside.new_ones(*inside.shape[:-1], num_past)
            mask = torch.cat((past, inside), dim=-1)
            bias = model.decay(self._cache, layer, inside.shape[-1])
            return attend(query, keys[:, :, :stop], values[:, :, :stop], mask, bias=bias)

        return model.run_blocks(tokens, rotary, see)

    @cached_property
    def _buffers(self) -> list[SeenFrames]:
        """Copies of what the frames before left, with room for every token of the step behind it.

        Made once a step, and only if it is needed: a frame that is drawn at once needs none.
        """
        if not torch.equal(self._cache.frame_numbers, self._frame_numbers):
            raise AssertionError("the cache moved while a step was being made")
        buffers = []
        for layer in range(len(self._cache.windows)):
            pair = []
            seen = self._cache.read_before(layer)
            for past in (seen.keys, seen.values):
                batch, heads, num_past, head_width = past.shape
                shape = (batch, heads, num_past + 3 * self._num_places, head_width)
                buffer = past.new_zeros(shape)
                buffer[:, :, :num_past] = past
                pair.append(buffer)
            buffers.append(SeenFrames(*pair))
        return buffers


class _Order:
    """What the order of a model's mask says about the tokens of a step.

    Tokens are numbered: cells, action tokens, then one *asking* token for each cell that is not
    asked for by the cell before it.
    """

    def __init__(self, schedule: DecodeSchedule, num_action_tokens: int) -> None:
        cells = schedule.num_cells
        group = schedule.group_of_cell
        self.group = group
        before = group.roll(1)
        self.continues: list[bool] = (group == before + 1).tolist()
        """For each cell whether the cell before it is of the group just before, and can ask."""
        self.continues[0] = False
        self.predecessor = before < group
        """For each cell whether the cell before it is drawn earlier."""
        self.predecessor[0] = False
        self.asking = [
            cell
            for cell in range(cells)
            if not self.continues[cell] and not (cell == 0 and group[0] == 0)
        ]
        tokens = cells + num_action_tokens
        places = torch.arange(tokens)
        self.places = torch.cat((places, torch.tensor(self.asking, dtype=torch.int64) - 1))
        """Offset of each token's position from the start of the step."""
        self.remembered = torch.arange(len(self.places)) < tokens
        """Later steps see cells and action tokens."""
        own = torch.zeros(len(self.places), len(self.places), dtype=torch.bool)
        own[:cells, :cells] = group[None] <= group[:, None]
        own[cells:tokens, :tokens] = places[None] <= places[cells:, None]
        everything = torch.ones(cells, dtype=torch.bool)
        own[tokens:, :cells] = self.visible_now(everything, [], self.asking)
        own[tokens:, tokens:] = torch.eye(len(self.asking), dtype=torch.bool)
        self.own = own
        """Which tokens (last axis) of its step a token sees."""
        asked_at = {cell: 1 + tokens + number for number, cell in enumerate(self.asking)}
        self.asked_by = torch.tensor([asked_at.get(cell, cell) for cell in range(cells)])
        """For each cell the token whose output predicts it: 0 is the last one of the step before,
        the others are numbered from 1."""

    def visible_now(
        self, known: Bool[Tensor, " cell"], fresh: Sequence[int], asking: Sequence[int]
    ) -> Bool[Tensor, "token cell"]:
        """Return which known cells are seen by the cells just drawn and by those that are asked for.

        A token that asks for a cell takes the place of the cell before it, which it does not see.
        """
        content = known & (self.group[None] <= self.group[list(fresh), None])
        query = known & (self.group[None] < self.group[list(asking), None])
        for number, cell in enumerate(asking):
            if cell:
                query[number, cell - 1] = False
        return torch.cat((content, query))
