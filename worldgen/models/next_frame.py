"""An interleaved transformer that asks every cell of a frame for the same cell one frame later."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from worldgen.errors import ConfigError
from worldgen.models.base import FrameDraft
from worldgen.models.interleaved import InterleavedConfig, InterleavedTransformer
from worldgen.nn.attention import attend
from worldgen.nn.blocks import Block, initialise
from worldgen.nn.cache import StepCache
from worldgen.nn.rotary import RotaryTable, rotary_table

__all__ = ["NextFrameConfig", "NextFrameDraft", "NextFrameTransformer", "group_masks"]


@dataclass(frozen=True, kw_only=True)
class NextFrameConfig(InterleavedConfig):
    """Sizes of a next-frame transformer."""

    actions_first: ClassVar[bool] = True

    within_frame_depth: int = 2
    """Layers of the stack that ties the cells of the frame being drawn to each other."""
    token_embedding_width: int = 64
    """Width of a visual token's embedding before its 3 x 3 neighbourhood is read."""
    rotary_base: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within_frame_depth < 1:
            raise ConfigError(
                f"within_frame_depth must be at least 1, got {self.within_frame_depth}"
            )


@dataclass(kw_only=True)
class NextFrameDraft(FrameDraft):
    """What is known of the next frame."""

    hidden: Float[Tensor, "batch cell width"]
    """What the pass over the last step says about each cell of the next frame."""
    logits: Float[Tensor, "batch cell codebook"]
    """Prediction of every cell before any cell of the frame is known."""
    keys_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values of the revealed cells, a pair per layer of the within-frame stack."""


class StepEmbedding(nn.Module):
    """Embeds the tokens of a step: actions by table, frames by table and 3 x 3 neighbourhood."""

    def __init__(self, config: NextFrameConfig) -> None:
        super().__init__()
        self.rows = config.rows
        self.action_vocabulary_size = config.action_vocabulary_size
        self.frames_per_step = config.frames_per_step
        self.visual = nn.Embedding(config.codebook_size, config.token_embedding_width)
        self.neighbourhood = nn.Conv2d(config.token_embedding_width, config.width, 3, padding=1)
        num_actions = config.action_vocabulary_size * config.frames_per_step
        self.action = nn.Embedding(max(num_actions, 1), config.width)
        self.action_to_cells = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self,
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch frame slot"],
    ) -> Float[Tensor, "batch frame token width"]:
        """Return the embedded steps, tokens in the order of the layout."""
        batch = visual_ids.shape[0]
        grid = rearrange(
            self.visual(visual_ids),
            "b frame (row column) channel -> (b frame) channel row column",
            row=self.rows,
        )
        cells = rearrange(
            self.neighbourhood(grid),
            "(b frame) channel row column -> b frame (row column) channel",
            b=batch,
        )
        actions = self.action(self._numbered(action_ids))
        # Attention could bring the action to every cell; giving it outright makes a short
        # training follow it, which is what a player notices first.
        cells = cells + self.action_to_cells(actions.sum(dim=2, keepdim=True))
        return torch.cat((actions, cells), dim=2)

    def _numbered(
        self, action_ids: Int[Tensor, "batch frame slot"]
    ) -> Int[Tensor, "batch frame slot"]:
        """Return ids that differ for the same action in different frames of a step.

        The cells get the sum of the embedded actions, which would forget their order.
        """
        frames = torch.arange(self.frames_per_step, device=action_ids.device)
        slots = action_ids.shape[-1] // self.frames_per_step
        return (
            action_ids + repeat(frames, "q -> (q slot)", slot=slots) * self.action_vocabulary_size
        )


class WithinFrame(nn.Module):
    """Ties cells of one frame to the cells already drawn, for any schedule.

    Two streams pass the same blocks: *content* tokens carry the ids of drawn cells and see the
    content of their own and earlier groups; *queries* carry what the sequence says about a cell
    and see the content of earlier groups and the queries of their own group.

    Source: two-stream attention, XLNet (arXiv:1906.08237), section 2.3.
    """

    def __init__(self, config: NextFrameConfig) -> None:
        super().__init__()
        self.content = nn.Embedding(config.codebook_size, config.width)
        self.content_context = nn.Linear(config.width, config.width, bias=False)
        self.query_mark = nn.Parameter(torch.zeros(config.width))
        self.blocks = nn.ModuleList(Block(config.block) for _ in range(config.within_frame_depth))

    def embed_content(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return content tokens `[batch, cell, width]` of drawn cells."""
        embedded: Tensor = self.content(ids) + self.content_context(hidden)
        return embedded

    def embed_query(self, hidden: Tensor) -> Tensor:
        """Return query tokens `[batch, cell, width]` of cells to draw."""
        return hidden + self.query_mark


class NextFrameTransformer(InterleavedTransformer):
    """World model over one sequence of steps `[action tokens | visual tokens of the frame]`.

    One pass over a step both remembers it and predicts the next frame: the output at a cell is
    the prediction of that cell one frame later (the previous frame's tokens are the queries).
    That draws the first group of any schedule; later groups are drawn by a light stack within
    the frame, which knows the cells drawn so far. A whole-frame schedule thus costs one call a
    frame, raster one and a light one per further cell.

    A frame sees itself and earlier frames as a whole, never a later one.
    """

    def __init__(self, config: NextFrameConfig) -> None:
        super().__init__(config, config.codebook_size)
        self.config = config
        self.embedding = StepEmbedding(config)
        self.within_frame = WithinFrame(config)
        initialise(self, depth=len(config.windows) + config.within_frame_depth)

    # The pass over the sequence

    def _sequence_rotary(self, frames: Int[Tensor, "*batch frame"]) -> RotaryTable:
        """Return the rotary table of whole steps, given the number of each one's frame."""
        places = self.layout.step_positions.to(frames.device)
        times = repeat(frames, "... frame -> ... frame token 1", token=len(places))
        places = places.expand(*times.shape[:-1], -1)
        positions = torch.cat((times, places), dim=-1)
        return self._rotary(
            rearrange(positions, "... frame token coordinate -> ... (frame token) coordinate")
        )

    def _rotary(self, positions: Int[Tensor, "*batch token coordinate"]) -> RotaryTable:
        # A quarter of the channels tell time, the rest place: frames are few, cells are many.
        width = self.config.block.attention.head_width
        frame = width // 8 * 2
        row = (width - frame) // 4 * 2
        cosine, sine = rotary_table(
            positions, (frame, row, width - frame - row), self.config.rotary_base
        )
        return cosine.to(self.device), sine.to(self.device)

    def encode_steps(
        self,
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch frame slot"],
    ) -> Float[Tensor, "batch frame cell width"]:
        """Return for every step what it says about the cells of the next frame.

        The whole clip in one pass: for training, and the oracle of the cached path.

        Args:
            visual_ids: Ids in `[0, codebook_size)`.
            action_ids: Ids in `[0, action_vocabulary_size)`; the action taken in each frame.
        """
        rotary = self._sequence_rotary(torch.arange(visual_ids.shape[1]))
        steps = self.run_clip(self.embedding(visual_ids, action_ids), rotary)
        return steps[:, :, self.layout.visual_slice]

    def forward(
        self,
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch frame slot"],
    ) -> Float[Tensor, "batch frame cell codebook"]:
        """Return logits of the frame that follows each step, before any of its cells is known."""
        return self.read(self.encode_steps(visual_ids, action_ids))

    # The frame being drawn

    def refine(
        self,
        hidden: Float[Tensor, "batch cell width"],
        visual_ids: Int[Tensor, "batch cell"],
        visible: Bool[Tensor, "batch cell cell"],
        same_group: Bool[Tensor, "batch cell cell"],
    ) -> Float[Tensor, "batch cell codebook"]:
        """Return logits of every cell given the true cells of earlier groups; for training.

        Args:
            hidden: Of the step before the frame, from `encode_steps`.
            visual_ids: True ids of the frame.
            visible: Whether a cell (last axis) is drawn in an earlier group than another.
            same_group: Whether two cells are drawn at once; includes each cell itself.
        """
        cells = visual_ids.shape[1]
        content = self.within_frame.embed_content(hidden, visual_ids)
        query = self.within_frame.embed_query(hidden)
        upper = torch.cat((visible | same_group, torch.zeros_like(visible)), dim=-1)
        lower = torch.cat((visible, same_group), dim=-1)
        mask = torch.cat((upper, lower), dim=-2)
        rotary = self._cell_rotary(torch.arange(cells).repeat(2))

        def see_drawn(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(query, key, value, mask)

        stream = torch.cat((content, query), dim=1)
        for layer, block in enumerate(self.within_frame.blocks):
            stream = block(stream, rotary, layer, see_drawn)
        return self.read(stream[:, cells:])

    def _cell_rotary(self, cells: Int[Tensor, " token"]) -> RotaryTable:
        places = self.layout.cell_positions[cells.cpu()]
        return self._rotary(torch.cat((torch.zeros_like(places[:, :1]), places), dim=-1))

    # Cached generation

    @torch.no_grad()
    def observe(
        self,
        cache: StepCache,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
    ) -> NextFrameDraft:
        """Commit one step (frame and action) to the cache; return the draft of the next frame."""
        visual_ids, action_ids = visual_ids.to(self.device), action_ids.to(self.device)
        step = self._embed_step(visual_ids, action_ids)
        stream = self.run_step(cache, step, self._sequence_rotary(cache.frame_numbers[:, None]))
        hidden = stream[:, self.layout.visual_slice]
        return NextFrameDraft(previous_ids=visual_ids, hidden=hidden, logits=self.read(hidden))

    def _embed_step(
        self, visual_ids: Int[Tensor, "batch cell"], action_ids: Int[Tensor, "batch slot"]
    ) -> Float[Tensor, "batch token width"]:
        # On CPU a convolution of one picture, and a product with one vector, are rounded otherwise
        # than those of many. One by one, a row's numbers do not depend on who else is in the batch.
        rows = 1 if self.device.type == "cpu" else len(visual_ids)
        pieces = zip(visual_ids[:, None].split(rows), action_ids[:, None].split(rows), strict=True)
        return torch.cat([self.embedding(*piece)[:, 0] for piece in pieces])

    @torch.no_grad()
    def predict(
        self, draft: FrameDraft, cells: Int[Tensor, " group"]
    ) -> Float[Tensor, "batch group codebook"]:
        """Return logits of `cells`, to be drawn at once, given the cells revealed so far."""
        assert isinstance(draft, NextFrameDraft)
        draft.calls += 1
        if draft.pending is None and not draft.keys_values:
            return draft.logits[:, cells]
        query = self.within_frame.embed_query(draft.hidden[:, cells])
        if draft.pending is None:
            stream, places = query, cells
        else:
            fresh, ids = draft.pending
            content = self.within_frame.embed_content(draft.hidden[:, fresh], ids)
            stream, places = (
                torch.cat((content, query), dim=1),
                torch.cat((fresh, cells)),
            )
        num_fresh = len(places) - len(cells)
        num_known = draft.keys_values[0][0].shape[2] if draft.keys_values else 0
        # Fresh content must not see the queries; queries see everything that is there.
        mask = torch.ones(len(places), num_known + len(places), dtype=torch.bool)
        mask[:num_fresh, num_known + num_fresh :] = False
        mask = mask.to(self.device)
        known = draft.keys_values
        grown: list[tuple[Tensor, Tensor]] = []

        def see_drawn(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            if known:
                key = torch.cat((known[layer][0], key), dim=2)
                value = torch.cat((known[layer][1], value), dim=2)
            kept = num_known + num_fresh
            grown.append((key[:, :, :kept], value[:, :, :kept]))
            return attend(query, key, value, mask)

        rotary = self._cell_rotary(places)
        for layer, block in enumerate(self.within_frame.blocks):
            stream = block(stream, rotary, layer, see_drawn)
        draft.keys_values, draft.pending = grown, None
        return self.read(stream[:, num_fresh:])

    @torch.no_grad()
    def score(
        self,
        draft: FrameDraft,
        ids: Int[Tensor, "batch cell"],
        group_of_cell: Int[Tensor, "batch cell"],
    ) -> Float[Tensor, "batch cell codebook"]:
        """Return logits of every cell given the ids of all cells of earlier groups, in one call."""
        assert isinstance(draft, NextFrameDraft)
        draft.calls += 1
        groups = group_of_cell.to(self.device)
        logits = self.refine(draft.hidden, ids.to(self.device), *group_masks(groups))
        first = groups == groups.amin(dim=-1, keepdim=True)
        return torch.where(first[..., None], draft.logits, logits)


def group_masks(
    group_of_cell: Int[Tensor, "batch cell"],
) -> tuple[Bool[Tensor, "batch cell cell"], Bool[Tensor, "batch cell cell"]]:
    """Return `visible` and `same_group` of `NextFrameTransformer.refine` for given groups."""
    key, query = group_of_cell[:, None, :], group_of_cell[:, :, None]
    return key < query, key == query
