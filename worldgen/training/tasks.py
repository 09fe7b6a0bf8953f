"""Tasks of training clips: to go on, to plan in jumps, to fill between key frames, to reach a goal."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Int
from torch import Tensor

from worldgen.data.token_cache import TokenCache
from worldgen.errors import ConfigError
from worldgen.models import NextFrameConfig, TransformerConfig
from worldgen.models.conditions import StepConditions

__all__ = ["TASKS", "TaskClips", "TasksConfig", "TrainingClips"]

TASKS = ("forward", "plan", "fill", "goal")
"""Names of the tasks, in the order in which their shares are drawn from."""


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """What the clips of a training ask of a model, and what they are told.

    - `forward`: one step after another.
    - `plan`: every `stride`-th frame. A step is told all actions up to the next frame of the clip.
    - `fill`: frames of a plan, then single steps from the last of them to the next one, which is
      told as their goal.
    - `goal`: single steps that are told a frame to be reached, which may lie beyond the clip.

    Source: MMPL (arXiv:2508.03334), section 3, for key frames first and the frames between them
        next; that both are steps of one sequence, told apart by what they are told, is ours.
    """

    forward: float = 1.0
    """Share of clips, as are `plan`, `fill` and `goal`; together they are 1."""
    plan: float = 0.0
    fill: float = 0.0
    goal: float = 0.0
    stride: int = 1
    """Frames from one key frame to the next."""
    sentences: int = 0
    """Further frames in a batch, each with its caption and nothing else. Texts are many and say
    little about a clip but its first frame: this is what teaches them at the price of that frame."""
    null_text: float = 0.2
    """Share of clips that begin with the null prompt instead of their caption, for guidance."""
    farthest_text: int = 1024
    """Half of the clips begin at frame 1, right behind the text, as sessions do; the others at a
    frame drawn from 1 to this, since the text stays in sight however long a session lasts."""
    first_frame: float = 1.0
    """Weight of the first frame of a clip, drawn from its text, where the mean of all others has 1."""
    no_recall: float = 0.2
    """Share of clips that are told nothing of earlier frames like theirs."""

    def __post_init__(self) -> None:
        shares = self.shares
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"the shares of the tasks {', '.join(TASKS)} must be 0 or more and 1 together, got "
                f"{', '.join(str(share) for share in shares)}"
            )
        if self.stride < 1 or self.farthest_text < 1:
            raise ConfigError(
                f"stride and farthest_text must be at least 1 frame, got {self.stride} and "
                f"{self.farthest_text}"
            )
        if self.jumps and self.stride < 2:
            raise ConfigError(
                f"tasks plan and fill need a stride of 2 frames or more, got {self.stride}"
            )
        if not 0 <= self.null_text <= 1 or not 0 <= self.no_recall <= 1:
            raise ConfigError(
                f"null_text and no_recall must lie in [0, 1], got {self.null_text} and "
                f"{self.no_recall}"
            )
        if self.first_frame < 0 or self.sentences < 0:
            raise ConfigError(
                f"the weight first_frame and the number of sentences must not be negative: "
                f"{self.first_frame} and {self.sentences}"
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares in the order of `TASKS`."""
        return (self.forward, self.plan, self.fill, self.goal)

    @property
    def jumps(self) -> bool:
        """Whether any clip has steps that skip frames."""
        return self.plan + self.fill > 0


@dataclass(frozen=True, kw_only=True)
class TrainingClips:
    """A batch of clips of one length, whatever their tasks, and what is told beside them."""

    visual_ids: Int[Tensor, "batch frame cell"]
    """One frame more than there are steps: what follows each step is predicted."""
    action_ids: Int[Tensor, "batch frame slot"]
    conditions: StepConditions | None = None
    """Of the steps, that is of all frames but the last; None: nothing."""
    text_ids: Int[Tensor, "batch token"] | None = None
    """What stands before the first frame; None in worlds without text."""
    sentence_ids: Int[Tensor, "sentence token"] | None = None
    """Further texts; None: there are none."""
    described_ids: Int[Tensor, "sentence cell"] | None = None
    """The frame that each of them is about."""

    def to(self, device: torch.device) -> "TrainingClips":
        """Return the clips on a device."""
        moved = {
            entry.name: value.to(device)
            for entry in fields(self)
            if (value := getattr(self, entry.name)) is not None
        }
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Where the frames of one clip lie in its span; -1 stands for none."""

    frames: Int[Tensor, " frame"]
    """One more than there are steps."""
    later: Int[Tensor, "step later"]
    """Frames that each step skips."""
    goal: int
    """Frame to be reached; any frame where no step has a goal."""
    distance: Int[Tensor, " step"]
    """Frames from each step to the goal; 0 where it has none."""


class TaskClips:
    """Cuts the clips of a training out of a recording's tokens, each for a task of its own.

    Args:
        tokens: Of a split.
        config: Shares of the tasks.
        model: What the model can be told; tasks ask for it.
        steps: Of every clip, whatever its task.
        recalled: For each step of `tokens` the step that is recalled in it, or -1; None: nothing is.
        text_ids: Tokens of each caption, the null prompt in the last row; None: no text.
        caption_of_step: For each step of `tokens` the row of its caption, -1 for none.

    Raises:
        ConfigError: If the model cannot be told what a task tells, or the clips are too short.
    """

    def __init__(
        self,
        tokens: TokenCache,
        config: TasksConfig,
        model: TransformerConfig,
        steps: int,
        *,
        recalled: Int[np.ndarray, " step"] | None = None,
        text_ids: Int[Tensor, "caption token"] | None = None,
        caption_of_step: Int[np.ndarray, " step"] | None = None,
    ) -> None:
        _check(config, model, steps)
        self.tokens = tokens
        self.config = config
        self.steps = steps
        self.recalled = recalled
        self.text_ids = text_ids
        self.caption_of_step = caption_of_step
        self._longest_jump = model.longest_jump if isinstance(model, NextFrameConfig) else 1
        self._farthest_goal = model.farthest_goal if isinstance(model, NextFrameConfig) else 0

    @property
    def span(self) -> int:
        """Steps of the recording that a clip is cut from."""
        span = self.steps + 1
        if self.config.jumps:
            span = self.config.stride * self.steps + 1
        if self.config.goal > 0:
            span = max(span, self._farthest_goal + 1)
        return span

    @property
    def starts(self) -> Bool[np.ndarray, " step"]:
        """Where clips may begin."""
        return self.tokens.clip_starts(self.span)

    def clips(self, starts: Int[np.ndarray, " clip"], generator: torch.Generator) -> TrainingClips:
        """Return the clips that begin at given steps, with tasks drawn for them.

        Args:
            starts: Of those that `starts` allows.
            generator: On the CPU; all randomness comes from it.
        """
        shares = torch.tensor(self.config.shares)
        numbers = torch.multinomial(shares, len(starts), replacement=True, generator=generator)
        return self.clips_of([TASKS[number] for number in numbers], starts, generator)

    def clips_of(
        self, tasks: list[str], starts: Int[np.ndarray, " clip"], generator: torch.Generator
    ) -> TrainingClips:
        """Return the clips that begin at given steps, for given tasks.

        Args:
            tasks: One of `TASKS` for each clip.
            starts: Of those that `starts` allows.
            generator: On the CPU; goals, null prompts, frame numbers and what is recalled come
                from it.
        """
        visual, actions = self.tokens.clips(starts, self.span)
        cuts = [self._cut(task, generator) for task in tasks]
        frames = torch.stack([cut.frames for cut in cuts])
        clip = torch.arange(len(starts))[:, None]
        conditions = StepConditions(
            times=self._times(frames[:, :-1], generator),
            later_actions=self._later_actions(actions, cuts),
            recalled_ids=self._recalled_ids(tasks, starts, generator),
        )
        if self._farthest_goal > 0:
            goal_ids = visual[clip[:, 0], torch.tensor([cut.goal for cut in cuts])]
            conditions = replace(
                conditions,
                goal_ids=repeat(goal_ids, "clip cell -> clip step cell", step=self.steps),
                goal_distance=torch.stack([cut.distance for cut in cuts]),
            )
        text_ids = self._text_ids(starts, generator)
        sentence_ids = described_ids = None
        if self.config.sentences and self.text_ids is not None:
            chosen = self._described_steps(generator)
            sentence_ids = self._text_ids(chosen, generator)
            described_ids = self.tokens.clips(chosen, 1)[0][:, 0]
        return TrainingClips(
            visual_ids=visual[clip, frames],
            action_ids=actions[clip, frames],
            conditions=None if conditions.shape is None else conditions,
            text_ids=text_ids,
            sentence_ids=sentence_ids,
            described_ids=described_ids,
        )

    def _described_steps(self, generator: torch.Generator) -> Int[np.ndarray, " sentence"]:
        """Return steps of the recording, any with the same chance."""
        chosen = torch.randint(
            0, len(self.tokens.visual_ids), (self.config.sentences,), generator=generator
        )
        return chosen.numpy()

    def _cut(self, task: str, generator: torch.Generator) -> _Cut:
        steps, stride = self.steps, self.config.stride
        single = torch.arange(steps + 1)
        later = torch.full((steps, self._longest_jump - 1), -1)
        distance = torch.zeros(steps, dtype=torch.long)
        if task == "forward":
            return _Cut(frames=single, later=later, goal=0, distance=distance)
        if task == "goal":
            goal = int(torch.randint(1, self._farthest_goal + 1, (), generator=generator))
            distance = (goal - single[:-1]).clamp(min=0)
            return _Cut(frames=single, later=later, goal=goal, distance=distance)
        # As many jumps as leave room for the single steps that fill one gap.
        jumps = steps if task == "plan" else steps - stride
        keys = stride * torch.arange(jumps + 1)
        later[:jumps, : stride - 1] = keys[:-1, None] + torch.arange(1, stride)
        if task == "plan":
            return _Cut(frames=keys, later=later, goal=0, distance=distance)
        goal = (jumps + 1) * stride
        # The step beside the goal is trained like the others, though it only has to repeat what
        # it is told: nothing teaches sooner that a goal is to be reached exactly.
        distance[jumps:] = torch.arange(stride, 0, -1)
        frames = torch.cat((keys, jumps * stride + torch.arange(1, stride + 1)))
        return _Cut(frames=frames, later=later, goal=goal, distance=distance)

    def _times(
        self, frames: Int[Tensor, "clip step"], generator: torch.Generator
    ) -> Int[Tensor, "clip step"] | None:
        if self.text_ids is None:
            return frames if self.config.jumps else None
        shape = (len(frames), 1)
        anywhere = torch.randint(1, self.config.farthest_text + 1, shape, generator=generator)
        at_once = torch.rand(shape, generator=generator) < 0.5
        return frames + torch.where(at_once, 1, anywhere)

    def _later_actions(
        self, actions: Int[Tensor, "clip span slot"], cuts: list[_Cut]
    ) -> Int[Tensor, "clip step later slot"] | None:
        if self._longest_jump == 1:
            return None
        later = torch.stack([cut.later for cut in cuts])
        taken = actions[torch.arange(len(cuts))[:, None, None], later.clamp(min=0)]
        return torch.where(later[..., None] < 0, -1, taken)

    def _recalled_ids(
        self, tasks: list[str], starts: Int[np.ndarray, " clip"], generator: torch.Generator
    ) -> Int[Tensor, "clip step 3 cell"] | None:
        if self.recalled is None:
            return None
        matches = self.recalled[starts[:, None] + np.arange(self.steps)]
        dropped = torch.rand(len(starts), generator=generator).numpy() < self.config.no_recall
        jumping = np.isin(tasks, ("plan", "fill"))
        matches = np.where((dropped | jumping)[:, None], -1, matches)
        return torch.from_numpy(_with_neighbours(self.tokens, matches))

    def captions(self, starts: Int[np.ndarray, " clip"]) -> Int[Tensor, "clip token"] | None:
        """Return the caption of the frame at each of some steps; None without text."""
        if self.text_ids is None or self.caption_of_step is None:
            return None
        # Row -1 is the last one, the null prompt.
        return self.text_ids[torch.from_numpy(self.caption_of_step[starts]).long()].long()

    def _text_ids(
        self, starts: Int[np.ndarray, " clip"], generator: torch.Generator
    ) -> Int[Tensor, "clip token"] | None:
        captions = self.captions(starts)
        if captions is None or self.text_ids is None:
            return None
        dropped = torch.rand(len(starts), 1, generator=generator) < self.config.null_text
        return torch.where(dropped, self.text_ids[-1].long(), captions)


def _with_neighbours(
    tokens: TokenCache, matches: Int[np.ndarray, "clip step"]
) -> Int[np.ndarray, "clip step 3 cell"]:
    """Return the ids of the frames before, at and after each match; -1 where there is none."""
    # The match stands for a frame before the first one of its episode. The one after it is there:
    # a match is earlier than the frame that recalls it.
    first = np.isin(matches, tokens.episode_starts[:-1])
    rows = np.stack((np.where(first, matches, matches - 1), matches, matches + 1), axis=-1)
    ids = tokens.visual_ids[np.where(matches[..., None] < 0, 0, rows)].astype(np.int64)
    return np.where(rearrange(matches, "clip step -> clip step 1 1") < 0, -1, ids)


def _check(config: TasksConfig, model: TransformerConfig, steps: int) -> None:
    if not isinstance(model, NextFrameConfig):
        if config.forward < 1:
            raise ConfigError(
                f"only models of family interleaved can be told goals and jumps; choose "
                f"tasks=forward, or model=small instead of a {type(model).__name__}"
            )
        return
    if config.jumps and config.stride > model.longest_jump:
        raise ConfigError(
            f"tasks plan and fill jump {config.stride} frames, model.longest_jump is "
            f"{model.longest_jump}; set both to the same number"
        )
    if config.fill > 0 and config.stride > model.farthest_goal:
        raise ConfigError(
            f"task fill has goals {config.stride} frames away, model.farthest_goal is "
            f"{model.farthest_goal}; raise it to {config.stride} or more"
        )
    if config.goal > 0 and model.farthest_goal < 1:
        raise ConfigError("task goal needs model.farthest_goal of 1 frame or more, got 0")
    if config.fill > 0 and steps < config.stride:
        raise ConfigError(
            f"clips of {steps} steps cannot fill a gap of {config.stride} frames; raise "
            f"data.clip_frames or lower tasks.stride"
        )
