"""Sessions that go on from the contexts of test clips, all at once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from worldgen.evaluation.clips import Clips
from worldgen.evaluation.material import roller_of
from worldgen.generation import Session, Start
from worldgen.generation.batch import advance_together
from worldgen.pipeline import World

__all__ = ["frames_of", "play_together", "sessions_after", "step_together"]


def sessions_after(
    world: World, clips: Clips, *, decoder: str | None = None, first_seed: int = 0
) -> list[Session]:
    """Return a session for each clip, whose frame 0 is the last one of the clip's context.

    Args:
        world: World that dreams.
        clips: Their contexts are what the sessions have seen.
        decoder: Name of a decoder; the first one on the world's card by default.
        first_seed: Seed of the first session; each has its own.
    """
    ids = roller_of(world, len(clips)).encode(clips.frames[:, : clips.context])
    action_ids = world.model.layout.actions_of_steps(
        torch.from_numpy(world.action_tokenizer.encode(clips.actions[:, : clips.context - 1]))
    )
    return [
        world.session(
            seed=first_seed + row,
            start=Start(visual_ids=torch.from_numpy(ids[row]), action_ids=action_ids[row]),
            decoder=decoder,
        )
        for row in range(len(clips))
    ]


def frames_of(sessions: Sequence[Session]) -> UInt8[np.ndarray, "session height width 3"]:
    """Return the current frame of each session."""
    return np.stack([session.frame for session in sessions])


def step_together(sessions: Sequence[Session], known: np.ndarray) -> None:
    """Let each session take one step.

    Args:
        sessions: Of one world.
        known: [session, action, group]: the action of the step, and those after it that are known,
            for frames that are drawn together.
    """
    ids = torch.from_numpy(sessions[0].parts.action_tokenizer.encode(known))
    advance_together(sessions, list(ids))


def play_together(
    sessions: Sequence[Session], actions: np.ndarray, tell: Callable[[int], object]
) -> UInt8[np.ndarray, "session time height width 3"]:
    """Return the frames of sessions that take all their actions, their current frames first.

    Args:
        sessions: Of one world.
        actions: [session, step, group].
        tell: Told how many frames were drawn.
    """
    frames = [frames_of(sessions)]
    for step in range(actions.shape[1]):
        step_together(sessions, actions[:, step : step + sessions[0].frames_per_step])
        frames.append(frames_of(sessions))
        tell(len(sessions))
    return np.stack(frames, axis=1)
