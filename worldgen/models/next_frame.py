"""An interleaved transformer that asks every cell of a frame for the same cell one frame later."""

from dataclasses import dataclass, field

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from worldgen.errors import ConfigError
from worldgen.models.base import FrameDraft
from worldgen.models.conditions import StepConditions
from worldgen.models.interleaved import InterleavedTransformer
from worldgen.models.next_frame_config import NextFrameConfig
from worldgen.models.step_embedding import StepEmbedding, check_conditions
from worldgen.nn.attention import attend
from worldgen.nn.blocks import Block, initialise
from worldgen.nn.cache import StepCache
from worldgen.nn.rotary import RotaryTable, rotary_table

__all__ = ["NextFrameDraft", "NextFrameTransformer", "group_masks"]


@dataclass(kw_only=True)
class NextFrameDraft(FrameDraft):
    """What is known of the next frame."""

    hidden: Float[Tensor, "batch cell width"]
    """What the pass over the last step says about each cell of the next frame."""
    logits: Float[Tensor, "batch cell codebook"]
    """Prediction of every cell before any cell of the frame is known."""
    keys_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values of the revealed cells, a pair per layer of the within-frame stack."""


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

    Where the configuration has text, every sequence begins with a *text step*: ids of a text at the
    places of a step, at time 0, remembered for ever by the sink. What it says about the cells is
    the prediction of the first frame. A sequence that is not given a text begins with the null
    prompt, the text of padding alone, and so does a trained share of sequences.
    """

    def __init__(self, config: NextFrameConfig) -> None:
        super().__init__(config, config.codebook_size)
        self.config = config
        self.embedding = StepEmbedding(config)
        if config.text_vocabulary_size:
            self.text = nn.Embedding(config.text_vocabulary_size, config.width)
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
        conditions: StepConditions | None = None,
        text_ids: Int[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch step cell width"]:
        """Return for every step what it says about the cells of the next frame.

        The whole clip in one pass: for training, and the oracle of the cached path.

        Args:
            visual_ids: Ids in `[0, codebook_size)`.
            action_ids: Ids in `[0, action_vocabulary_size)`; the action taken in each frame.
            conditions: What the steps are told beside frame and action. Without times a frame's is
                its number, counted from 0, or from 1 in worlds with text.
            text_ids: Ids in `[0, text_vocabulary_size)`, as many as a step has tokens, padded with
                0. With a text the first step returned is what it says about the first frame.

        Raises:
            ConfigError: If the world takes no text or not such conditions, or their shapes or
                values are wrong.
        """
        batch, frames = visual_ids.shape[:2]
        steps = self._embed(visual_ids, action_ids, conditions)
        with_text = self.config.text_vocabulary_size > 0
        times = torch.arange(frames) + with_text
        if conditions is not None and conditions.times is not None:
            times = conditions.times
        if with_text or text_ids is not None:
            steps = torch.cat((self._text_step(text_ids, batch)[:, None], steps), dim=1)
            times = torch.cat((times.new_zeros(*times.shape[:-1], 1), times), dim=-1)
        told = self.run_clip(steps, self._sequence_rotary(times))[:, :, self.layout.visual_slice]
        return told[:, 1:] if with_text and text_ids is None else told

    def forward(
        self,
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch frame slot"],
        conditions: StepConditions | None = None,
        text_ids: Int[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch step cell codebook"]:
        """Return logits of the frame that follows each step, before any of its cells is known.

        Arguments, and what they raise, as of `encode_steps`.
        """
        return self.read(self.encode_steps(visual_ids, action_ids, conditions, text_ids))

    def _embed(
        self,
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch frame slot"],
        conditions: StepConditions | None,
    ) -> Float[Tensor, "batch frame token width"]:
        if conditions is not None:
            check_conditions(self.config, conditions, *visual_ids.shape[:2])
            conditions = conditions.to(self.device)
        embedded: Tensor = self.embedding(visual_ids, action_ids, conditions)
        return embedded

    def _text_step(
        self, text_ids: Int[Tensor, "batch token"] | None, batch: int
    ) -> Float[Tensor, "batch token width"]:
        """Return the embedded text step; None: of the null prompt."""
        vocabulary, tokens = self.config.text_vocabulary_size, self.layout.tokens_per_step
        if not vocabulary:
            raise ConfigError(
                "this world takes no text; leave it out, or train a world whose model has "
                "text_vocabulary_size"
            )
        if text_ids is None:
            text_ids = torch.zeros(batch, tokens, dtype=torch.int64)
        if text_ids.shape != (batch, tokens):
            raise ConfigError(
                f"a text must have as many ids as a step has tokens, padded with 0: [batch, token] "
                f"= {[batch, tokens]}; got {list(text_ids.shape)}"
            )
        if int(text_ids.amin()) < 0 or int(text_ids.amax()) >= vocabulary:
            raise ConfigError(
                f"ids of a text must lie in [0, {vocabulary}) in this world, got "
                f"{int(text_ids.amin())} to {int(text_ids.amax())}; is it another tokenizer's?"
            )
        embedded: Tensor = self.text(text_ids.to(self.device))
        return embedded

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
        conditions: StepConditions | None = None,
    ) -> NextFrameDraft:
        """Commit one step (frame and action) to the cache; return the draft of the next frame.

        In a world with text an empty cache is given the null prompt first.

        Args:
            cache: Of the steps before.
            visual_ids: Of the frame.
            action_ids: The action taken in it.
            conditions: What the step is told beside them; one step for each sequence.

        Raises:
            ConfigError: If the world does not take such conditions, or their shapes or values are
                wrong.
        """
        visual_ids, action_ids = visual_ids.to(self.device), action_ids.to(self.device)
        if conditions is not None:
            check_conditions(self.config, conditions, len(visual_ids), 1)
            conditions = conditions.to(self.device)
        step = self._embed_step(visual_ids, action_ids, conditions)
        if self.config.text_vocabulary_size and not bool(cache.frame_numbers.any()):
            self._run(cache, self._text_step(None, len(visual_ids)))
        times = None if conditions is None else conditions.times
        return self._run(cache, step, times, visual_ids)

    @torch.no_grad()
    def observe_text(
        self, cache: StepCache, text_ids: Int[Tensor, "batch token"]
    ) -> NextFrameDraft:
        """Commit the text that sequences begin with; return the draft of their first frame.

        The cache counts the text as its frame 0.

        Args:
            cache: Empty.
            text_ids: Ids in `[0, text_vocabulary_size)`, as many as a step has tokens, padded with
                0; all 0: the null prompt.

        Raises:
            ConfigError: If the world takes no text, there are steps in the cache already, or the
                shape or the ids are wrong.
        """
        step = self._text_step(text_ids, len(text_ids))
        if bool(cache.frame_numbers.any()):
            raise ConfigError(
                f"a text stands in front of the first frame, and there are "
                f"{int(cache.frame_numbers.max())} steps already; begin a new sequence with it"
            )
        return self._run(cache, step)

    def _run(
        self,
        cache: StepCache,
        step: Float[Tensor, "batch token width"],
        times: Int[Tensor, "batch 1"] | None = None,
        previous_ids: Int[Tensor, "batch cell"] | None = None,
    ) -> NextFrameDraft:
        times = cache.frame_numbers[:, None] if times is None else times
        stream = self.run_step(cache, step, self._sequence_rotary(times))
        hidden = stream[:, self.layout.visual_slice]
        if previous_ids is None:
            previous_ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=self.device)
        return NextFrameDraft(previous_ids=previous_ids, hidden=hidden, logits=self.read(hidden))

    def _embed_step(
        self,
        visual_ids: Int[Tensor, "batch cell"],
        action_ids: Int[Tensor, "batch slot"],
        conditions: StepConditions | None,
    ) -> Float[Tensor, "batch token width"]:
        # On CPU a convolution of one picture, and a product with one vector, are rounded otherwise
        # than those of many. One by one, a row's numbers do not depend on who else is in the batch.
        batch = len(visual_ids)
        size = 1 if self.device.type == "cpu" else batch
        pieces = []
        for first in range(0, batch, size):
            rows = slice(first, first + size)
            told = None if conditions is None else conditions.rows(rows)
            pieces.append(self.embedding(visual_ids[rows, None], action_ids[rows, None], told))
        return torch.cat(pieces)[:, 0]

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
