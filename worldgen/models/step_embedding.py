"""How the steps of a next-frame transformer are embedded, with everything that they are told."""

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from worldgen.errors import ConfigError
from worldgen.models.conditions import StepConditions
from worldgen.models.next_frame_config import NextFrameConfig

__all__ = ["StepEmbedding", "check_conditions"]


class StepEmbedding(nn.Module):
    """Embeds the tokens of a step: actions by table, frames by table and 3 x 3 neighbourhood.

    What a step is told beside them is added: the actions of skipped frames to its action tokens,
    all else to its cells. These parts exist only where the configuration has them, and begin with
    weights of zero: a new one says nothing until it is trained, so that weights of a world without
    it can start a training with it. A step that is told nothing of a kind gets nothing added,
    after training too. Source of the zeros: ControlNet, arXiv:2302.05543, section 3.1.
    """

    def __init__(self, config: NextFrameConfig) -> None:
        super().__init__()
        self.rows = config.rows
        self.action_vocabulary_size = config.action_vocabulary_size
        self.frames_per_step = config.frames_per_step
        self.visual = nn.Embedding(config.codebook_size, config.token_embedding_width)
        self.neighbourhood = nn.Conv2d(config.token_embedding_width, config.width, 3, padding=1)
        self.num_actions = max(config.action_vocabulary_size * config.frames_per_step, 1)
        self.action = nn.Embedding(self.num_actions, config.width)
        self.action_to_cells = nn.Linear(config.width, config.width, bias=False)
        # Tables of zeros are parameters: embeddings would be filled when all weights are drawn.
        if config.longest_jump > 1:
            later = (config.longest_jump - 1) * self.num_actions
            self.later_action = nn.Parameter(torch.zeros(later, config.width))
        if config.farthest_goal:
            self.goal = _silent_neighbourhood(config)
            self.goal_distance = nn.Parameter(torch.zeros(config.farthest_goal, config.width))
        if config.recall_after:
            self.recalled = nn.ModuleList(_silent_neighbourhood(config) for _ in range(3))
        if config.noise_levels:
            self.noise_level = nn.Parameter(torch.zeros(config.noise_levels - 1, config.width))

    def forward(
        self,
        visual_ids: Int[Tensor, "batch frame cell"],
        action_ids: Int[Tensor, "batch frame slot"],
        conditions: StepConditions | None = None,
    ) -> Float[Tensor, "batch frame token width"]:
        """Return the embedded steps, tokens in the order of the layout.

        Args:
            visual_ids: Ids in `[0, codebook_size)`.
            action_ids: Ids in `[0, action_vocabulary_size)`.
            conditions: As `check_conditions` lets them pass; `times` is not embedded.
        """
        cells = self._read_frames(self.neighbourhood, self.visual(visual_ids))
        actions = self.action(self._numbered(action_ids))
        if conditions is not None:
            if conditions.later_actions is not None:
                actions = actions + self._skipped(conditions.later_actions)
            cells = self._tell(cells, conditions)
        # Attention could bring the action to every cell; giving it outright makes a short
        # training follow it, which is what a player notices first.
        cells = cells + self.action_to_cells(actions.sum(dim=2, keepdim=True))
        return torch.cat((actions, cells), dim=2)

    def _read_frames(
        self, neighbourhood: nn.Module, embedded: Float[Tensor, "batch frame cell channel"]
    ) -> Float[Tensor, "batch frame cell width"]:
        grid = rearrange(
            embedded, "b frame (row column) channel -> (b frame) channel row column", row=self.rows
        )
        read: Tensor = neighbourhood(grid)
        return rearrange(
            read, "(b frame) channel row column -> b frame (row column) channel", b=len(embedded)
        )

    def _where_given(
        self, ids: Int[Tensor, "batch frame cell"]
    ) -> Float[Tensor, "batch frame cell channel"]:
        """Return embedded cells, zeros for ids below 0."""
        embedded: Tensor = self.visual(ids.clamp(min=0)) * (ids >= 0)[..., None]
        return embedded

    def _numbered(self, action_ids: Int[Tensor, "*leading slot"]) -> Int[Tensor, "*leading slot"]:
        """Return ids that differ for the same action in different frames of a step.

        The cells get the sum of the embedded actions, which would forget their order.
        """
        frames = torch.arange(self.frames_per_step, device=action_ids.device)
        slots = action_ids.shape[-1] // self.frames_per_step
        return (
            action_ids + repeat(frames, "q -> (q slot)", slot=slots) * self.action_vocabulary_size
        )

    def _skipped(
        self, later_actions: Int[Tensor, "batch frame later slot"]
    ) -> Float[Tensor, "batch frame slot width"]:
        """Return what the actions of skipped frames add to the action tokens."""
        skips = torch.arange(later_actions.shape[2], device=later_actions.device)
        numbered = self._numbered(later_actions.clamp(min=0))
        embedded = F.embedding(numbered + skips[:, None] * self.num_actions, self.later_action)
        return (embedded * (later_actions >= 0)[..., None]).sum(dim=2)

    def _tell(
        self, cells: Float[Tensor, "batch frame cell width"], conditions: StepConditions
    ) -> Float[Tensor, "batch frame cell width"]:
        """Return the cells with all that is added to them but actions."""
        if conditions.goal_ids is not None and conditions.goal_distance is not None:
            distance = conditions.goal_distance[..., None]
            goal = torch.where(distance > 0, conditions.goal_ids, -1)
            cells = cells + self._read_frames(self.goal, self._where_given(goal))
            cells = cells + _from_second(self.goal_distance, distance)
        if conditions.recalled_ids is not None:
            for role, neighbourhood in enumerate(self.recalled):
                recalled = self._where_given(conditions.recalled_ids[:, :, role])
                cells = cells + self._read_frames(neighbourhood, recalled)
        if conditions.noise_level is not None:
            cells = cells + _from_second(self.noise_level, conditions.noise_level[..., None])
        return cells


def _silent_neighbourhood(config: NextFrameConfig) -> nn.Conv2d:
    # Without a bias, a frame that is not there adds nothing.
    reader = nn.Conv2d(config.token_embedding_width, config.width, 3, padding=1, bias=False)
    nn.init.zeros_(reader.weight)
    return reader


def _from_second(
    table: Float[Tensor, "number width"], numbers: Int[Tensor, "*leading"]
) -> Float[Tensor, "*leading width"]:
    """Return rows of a table that begins with number 1; 0 gets zeros."""
    return F.embedding((numbers - 1).clamp(min=0), table) * (numbers > 0)[..., None]


def check_conditions(
    config: NextFrameConfig, conditions: StepConditions, batch: int, frames: int
) -> None:
    """Do nothing if steps of a world can be told this.

    Args:
        config: Of the world.
        conditions: To be checked.
        batch: Sequences that there are.
        frames: Steps that there are in each.

    Raises:
        ConfigError: If the world takes no conditions of a kind, or one has the wrong shape or a
            value out of its range; says which.
    """
    shape = conditions.shape
    if shape is not None and shape != (batch, frames):
        raise ConfigError(
            f"conditions must be of the same steps as the frames, [batch, frame] = "
            f"{[batch, frames]}; got {list(shape)}"
        )
    cells, slots = config.layout.num_cells, config.num_action_tokens
    later = config.longest_jump - 1
    jumps = conditions.later_actions
    _check_part("later_actions", jumps, later, "longest_jump", 2)
    _check_shape("later_actions", jumps, (later, slots))
    _check_range("later_actions", jumps, -1, config.action_vocabulary_size - 1)
    if jumps is not None:
        skipped = jumps >= 0
        whole, any_slot = skipped.all(dim=-1), skipped.any(dim=-1)
        if not bool((whole == any_slot).all() and (whole[..., :-1] | ~whole[..., 1:]).all()):
            raise ConfigError(
                "later_actions must name whole actions of consecutive frames: a frame has all of "
                "its slots or -1 in all of them, and none is skipped after one with -1"
            )
    goals, distance = conditions.goal_ids, conditions.goal_distance
    _check_part("goal_ids", goals, config.farthest_goal, "farthest_goal", 1)
    _check_shape("goal_ids", goals, (cells,))
    _check_range("goal_distance", distance, 0, config.farthest_goal)
    if goals is not None and distance is not None:
        given = torch.where(distance[..., None] > 0, goals, 0)
        _check_range("goal_ids", given, 0, config.codebook_size - 1)
    recalled = conditions.recalled_ids
    _check_part("recalled_ids", recalled, config.recall_after, "recall_after", 1)
    _check_shape("recalled_ids", recalled, (3, cells))
    _check_range("recalled_ids", recalled, -1, config.codebook_size - 1)
    levels = conditions.noise_level
    _check_part("noise_level", levels, config.noise_levels, "noise_levels", 2)
    _check_range("noise_level", levels, 0, config.noise_levels - 1)


def _check_part(name: str, part: Tensor | None, size: int, field: str, least: int) -> None:
    if part is not None and not size:
        raise ConfigError(
            f"this world was not made for {name}; leave it out, or train a world whose model has "
            f"{field} of at least {least}"
        )


def _check_shape(name: str, part: Tensor | None, shape: tuple[int, ...]) -> None:
    if part is not None and part.shape[2:] != shape:
        raise ConfigError(
            f"{name} must have the shape [batch, frame, {', '.join(map(str, shape))}] in this "
            f"world, got {list(part.shape)}"
        )


def _check_range(name: str, part: Tensor | None, least: int, most: int) -> None:
    if part is None or not part.numel():
        return
    lowest, highest = torch.stack(part.aminmax()).tolist()
    if lowest < least or highest > most:
        raise ConfigError(
            f"{name} must lie between {least} and {most} in this world, got {lowest} to {highest}"
        )
