"""Between two frames, before a clip, otherwise from a moment on, round and round."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from worldgen.errors import ActionError, ConfigError, LogError
from worldgen.generation.decoding import Decoder
from worldgen.generation.log import RolloutLog
from worldgen.generation.planning import Segment, reach
from worldgen.generation.session import Session, SessionParts, Start
from worldgen.generation.turns import draw_grids
from worldgen.models.base import TextModel, WorldModel
from worldgen.models.conditions import StepConditions

__all__ = ["edit", "extend_backwards", "first_frame_from", "interpolate", "likelihood", "loop"]


def interpolate(
    session: Session,
    goal_ids: Int[Tensor, " cell"],
    frames: int,
    actions: Iterable[NDArray[Any] | str],
) -> Segment:
    """Fill the frames between the current one of a session and another, in steps told their goal.

    Where the goal is farther away than the model can be told, the first frames go on without it, as
    the actions say, and those within reach are led to it from wherever they are then: the last
    frames show what the world needs to get there, or that it cannot.

    Args:
        session: At the frame to go on from, with the clip before it as its context; it stays as it
            is. A log of its frames would not tell of the goal, so there is none.
        goal_ids: Visual tokens of the frame to be reached, the first one of the second clip.
        frames: Between the two.
        actions: Taken in the current frame and in each one between; those that are missing are
            rest.

    Returns:
        The frames between, without the two.

    Raises:
        ConfigError: If the model can be told no goals, or draws several frames together.
        ActionError: If an action does not fit the world's schema, there are too many, or no frames
            between.
    """
    _, farthest_goal = _check(session.parts)
    if frames < 1:
        raise ActionError(f"between two frames at least 1 is made, got {frames}")
    cells = session.parts.model.layout.num_cells
    if goal_ids.shape != (cells,):
        raise ConfigError(
            f"a frame of world {session.parts.world!r} has {cells} tokens, the goal has the shape "
            f"{list(goal_ids.shape)}"
        )
    taken = _taken(session, actions, frames + 1)
    going = session.fork()
    calls = 0
    for number, action_ids in enumerate(taken[:-1]):
        distance = frames + 1 - number
        turn = going.turn(action_ids[None])
        assert turn is not None
        if distance <= farthest_goal:
            told = turn.conditions or StepConditions()
            goal = dataclasses.replace(
                told, goal_ids=goal_ids[None, None], goal_distance=torch.tensor([[distance]])
            )
            turn = dataclasses.replace(turn, conditions=goal)
        drawn = draw_grids([turn])[0]
        going.take(turn, drawn)
        calls += drawn.calls
    first = session.frame_index + 1
    ids = [torch.from_numpy(going.ids_at(first + number)) for number in range(frames)]
    return Segment(first=first, ids=torch.stack(ids), action_ids=taken[:-1], calls=calls)


def loop(session: Session, frames: int, actions: Iterable[NDArray[Any] | str]) -> Segment:
    """Return frames that lead from the current one back to it, so that they repeat without a seam.

    Args:
        session: At the frame to begin and end with; it stays as it is.
        frames: Of the loop, the current one included, which comes first; at least 2.
        actions: Taken in each of them; those that are missing are rest.

    Raises:
        ConfigError: As `interpolate`.
        ActionError: As `interpolate`.
    """
    if frames < 2:
        raise ActionError(f"a loop has at least 2 frames, got {frames}")
    taken = _taken(session, actions, frames)
    current = torch.from_numpy(session.ids)
    decode = session.parts.action_tokenizer.decode
    between = interpolate(session, current, frames - 1, list(decode(taken.numpy())))
    return Segment(
        first=session.frame_index,
        ids=torch.cat((current[None], between.ids)),
        # The action of the last frame leads to the first one.
        action_ids=taken.roll(1, 0),
        calls=between.calls,
    )


def extend_backwards(
    parts: SessionParts,
    clip: Start,
    frames: int,
    actions: Iterable[NDArray[Any] | str],
    *,
    candidates: Sequence[Start] = (),
    seed: int,
    decoder: Decoder,
) -> Start:
    """Return a clip with frames before it that could have led to it.

    A model of what follows cannot be asked for what was before. So a beginning is looked for: from
    each candidate the world is led to the clip's first frame, and the one is taken whose way is
    the likeliest to a model that is told nothing of the goal, see `likelihood`. What comes out is a
    way to the clip that the world finds plausible, not the clip's own past.

    Args:
        parts: Networks of the world.
        clip: To be led to.
        frames: Before it.
        actions: Taken in these frames; those that are missing are rest.
        candidates: Contexts whose last frame may be the first one made: starts of the world, or a
            text alone, from which a frame is drawn. Always among them is the clip's first frame
            itself: that of a world which came back to where it was.
        seed: Decides every random draw.
        decoder: Draws each frame.

    Returns:
        The longer clip: `frames` frames, then those of the clip as they were.

    Raises:
        ConfigError: As `interpolate`, and if the clip has no frame.
        ActionError: As `interpolate`.
    """
    if not len(clip.visual_ids):
        raise ConfigError("frames can be added before a frame, and the clip has none; give one")
    if frames < 2:
        raise ActionError(f"at least 2 frames are made before a clip, got {frames}")
    given = list(itertools.islice(actions, frames + 1))
    goal = clip.visual_ids[0]
    own = Start(
        visual_ids=goal[None],
        action_ids=clip.action_ids[:0],
        text_ids=clip.text_ids,
    )
    best: tuple[float, Tensor, Tensor] | None = None
    for start in (own, *candidates):
        session = Session(parts, start, seed=seed, decoder=decoder)
        taken = _taken(session, given, frames)
        between = interpolate(session, goal, frames - 1, given)
        context = session.context()
        score = likelihood(
            parts.model,
            torch.cat((context.visual_ids, between.ids, goal[None])),
            torch.cat((context.action_ids, taken)),
            context=len(context.visual_ids),
            text_ids=context.text_ids,
        )
        if best is None or score > best[0]:
            first = torch.from_numpy(session.ids)[None]
            best = score, torch.cat((first, between.ids)), taken
    assert best is not None
    _, ids, taken = best
    return Start(
        visual_ids=torch.cat((ids, clip.visual_ids)),
        action_ids=torch.cat((taken, clip.action_ids)),
        text_ids=clip.text_ids,
    )


@torch.no_grad()
def likelihood(
    model: WorldModel,
    visual_ids: Int[Tensor, "frame cell"],
    action_ids: Int[Tensor, "step slot"],
    *,
    context: int,
    text_ids: Int[Tensor, " token"] | None = None,
) -> float:
    """Return how likely a model finds frames, knowing no goal: nats a cell, 0 for certain.

    Each cell is judged before any other one of its frame is known.

    Args:
        model: To be asked.
        visual_ids: All frames.
        action_ids: Taken in each but the last.
        context: Frames at the beginning that are not judged, at least 1.
        text_ids: What the sequence begins with, in worlds with text.
    """
    cache = model.new_cache(1)
    if text_ids is not None:
        assert isinstance(model, TextModel)
        model.observe_text(cache, text_ids[None])
    cells = torch.arange(visual_ids.shape[1], device=model.device)
    told = []
    for number, action in enumerate(action_ids):
        draft = model.observe(cache, visual_ids[number][None], action[None])
        if number + 1 >= context:
            logarithms = model.predict(draft, cells)[0].float().log_softmax(dim=-1)
            true = visual_ids[number + 1].to(logarithms.device)
            told.append(logarithms.gather(1, true[:, None]).mean())
    return float(torch.stack(told).mean())


def first_frame_from(second: float, frames_per_second: float) -> int:
    """Return the first frame that is not before a second; the actions from it on can be changed.

    Raises:
        ConfigError: If the second is negative or no number.
    """
    if not (math.isfinite(second) and second >= 0):
        raise ConfigError(f"a second to begin from is 0 or more, got {second}")
    # A frame whose time was rounded is at its second all the same.
    return math.ceil(second * frames_per_second - 1e-6)


def edit(session: Session | RolloutLog, frame: int, parts: SessionParts | None = None) -> Session:
    """Return a session at a frame of another one, or of a log: played on, it takes other actions.

    Up to that frame all frames are identical. The other session stays as it is, so both can go on.

    Args:
        session: With the frames that stay, or the log of one, which is generated again up to there.
        frame: From whose action on things change, see `first_frame_from`.
        parts: Networks of the world; only a log needs them.

    Raises:
        SessionLimitError: If there is no such frame.
        LogError: If the log is of another world, or does not come out as it was.

    Example:
        >>> other = edit(session, first_frame_from(3.0, world.frames_per_second))
        >>> frames = list(other.play(["left"] * 40))
    """
    if isinstance(session, Session):
        other = session.fork()
        # Tells of a frame that does not exist.
        other.rewind(other.frame_index - frame)
        return other
    if parts is None:
        raise ConfigError("the log of a session is edited with the parts of its world; give them")
    if not 0 <= frame <= len(session.digests):
        raise LogError(
            f"the log has frames 0 to {len(session.digests)}, there is no frame {frame} to go on from"
        )
    other = Session.from_log(parts, session)
    for number, same in enumerate(itertools.islice(other.replay(session), frame), start=1):
        if not same:
            raise LogError(
                f"frame {number} of the log came out different; it was made by other software or on "
                "another machine, and nothing was edited"
            )
    return other


def _check(parts: SessionParts) -> tuple[int, int]:
    longest_jump, farthest_goal = reach(parts.model)
    if not farthest_goal:
        raise ConfigError(
            f"world {parts.world!r} was not trained to reach goals; train one of the next-frame "
            "family with model.farthest_goal and a share of clips for tasks.goal, as "
            "experiment=crafter_story is"
        )
    if parts.model.layout.frames_per_step > 1:
        raise ConfigError(
            f"world {parts.world!r} draws {parts.model.layout.frames_per_step} frames together; "
            "goals are for worlds whose grids stand for one frame each"
        )
    return longest_jump, farthest_goal


def _taken(
    session: Session, actions: Iterable[NDArray[Any] | str], count: int
) -> Int[Tensor, "step slot"]:
    """Return the tokens of exactly so many actions, those that are missing being rest."""
    given = list(itertools.islice(actions, count + 1))
    if len(given) > count:
        raise ActionError(f"there are {count} steps to take, got more actions; shorten the script")
    rest = session.parts.action_tokenizer.schema.rest()
    filled = [*given, *[rest] * (count - len(given))]
    return torch.stack([session.action_ids(action) for action in filled])
