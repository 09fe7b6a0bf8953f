"""The driving transformer: next state over time, next token inside the frame, ego motion as tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.models.base import FrameDraft
from worldgen.models.conditions import StepConditions, refuse_conditions
from worldgen.models.driving_blocks import DrivingBlock, carriers, cell_distances, readout
from worldgen.models.driving_config import DrivingConfig
from worldgen.models.driving_context import DrivingContext, place_rotary
from worldgen.nn.attention import attend
from worldgen.nn.blocks import initialise
from worldgen.nn.cache import StepCache

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


class DrivingTransformer(DrivingContext):
    """World model of driving: what happens over time first, then the frame slot by slot.

    The *context* says something about each slot of the next frame. The *within-frame* layers go
    through these slots in order: the action's one by one, then groups of cells. Each begins with
    its state and what was drawn just before it, sees the slots of its own and earlier groups, and
    predicts itself. In raster order that is DrivingWorld. Where many cells are drawn at once,
    `carriers` says who is told which of the cells drawn before.

    The action slots predict the action, so the model is a policy as well.

    Source: DrivingWorld (arXiv:2412.19505) and its released code; groups of cells, the cache and
        positions that survive sliding are ours.
    """

    def __init__(self, config: DrivingConfig) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        width = config.width
        self.within_frame = nn.ModuleList(
            DrivingBlock(width, config.num_heads) for _ in range(config.within_frame_depth)
        )
        self.start = nn.Parameter(0.02 * torch.randn(width))
        # A cell that carries a token says where it was drawn: that is not always the same side.
        self.origin_row = nn.Parameter(0.02 * torch.randn(config.rows, width))
        self.origin_column = nn.Parameter(0.02 * torch.randn(config.columns, width))
        self.cell_head = readout(width, max(config.codebook_size // 2, 1), config.codebook_size)
        self.action_heads = nn.ModuleList(
            readout(width, options, options) for options in config.slot_options
        )
        initialise(self, depth=2 * config.context_depth + config.within_frame_depth)

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
        isolated = self.isolated(known_actions)
        told = self._told(self.apart(self.embed_action(action_ids), isolated))
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

        rotary = place_rotary(self.config, self.device)
        stream = rearrange(stream, "b frame slot width -> (b frame) slot width")
        for block in self.within_frame:
            stream = block(stream, rotary, see)
        return rearrange(stream, "(b frame) slot width -> b frame slot width", b=batch)

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

    @torch.no_grad()
    def observe(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
        conditions: StepConditions | None = None,
    ) -> DrivingDraft:
        """Commit one step (frame and action) to the cache; return the draft of the next frame.

        The context reads the frame with the action that led to it, which the cache has noted. The
        action taken in it is noted for the next frame, and what the draft begins with.

        Raises:
            ConfigError: If there are conditions, of which this family takes none.
        """
        refuse_conditions(conditions, "driving")
        visual_ids, action_ids = visual_ids.to(self.device), action_ids.to(self.device)
        states = self.read_step(cache, visual_ids, remember=True)
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
        isolated = self.isolated(known_actions)
        told = self._told(self.apart(self.row_by_row(self.embed_action, action_ids), isolated))
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
        cosine, sine = place_rotary(self.config, self.device)
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
        states = self.read_step(cache, visual_ids, remember=False)
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
