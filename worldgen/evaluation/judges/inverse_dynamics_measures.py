"""How well actions read from frames agree with those taken: key groups as tasks, axes, camera."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from worldgen.evaluation.judges.inverse_dynamics import group_ids
from worldgen.tokenizers.action import ActionSchema, Categorical, MuLawAxis

__all__ = [
    "SCORES",
    "VPT_CAMERA",
    "Task",
    "classification_scores",
    "confusion",
    "measure_actions",
    "tasks_of",
]

SCORES = tuple(
    f"{score}_{mean}" for mean in ("macro", "micro") for score in ("precision", "recall", "f1")
)
"""Names of the figures of a task."""

VPT_CAMERA = MuLawAxis("camera", limit=10.0, bins=11, mu=10.0)
"""Degrees of camera movement a step in the bins of Video PreTraining, in which upstream compares.

Source: Baker et al. 2022, Video PreTraining (arXiv:2206.11795), appendix on the action space.
"""


@dataclass(frozen=True)
class Task:
    """A question about one group of an action with a few answers; the first is that of rest."""

    name: str
    group: str
    answers: tuple[str, ...]
    answer_of_option: tuple[int, ...]
    """For each option of the group the number of its answer."""


# Upstream's seven tasks: three of three answers, four of two. Both keys of a task down are none, as
# neither is.
_MINECRAFT_TASKS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("back_forward", "forward_back", ("back", "forward")),
    ("left_right", "left_right", ("left", "right")),
    ("sneak_sprint", "sprint_sneak", ("sneak", "sprint")),
    ("use", "use_attack", ("use",)),
    ("attack", "use_attack", ("attack",)),
    ("jump", "jump", ("jump",)),
    ("drop", "drop_pick", ("drop",)),
)


def tasks_of(schema: ActionSchema) -> tuple[Task, ...]:
    """Return the tasks of a schema: upstream's seven for Minecraft, else one for each key group.

    A group of named options is a key group if it has two options or more; axes are none. The tasks
    of Minecraft leave out the hotbar and what else has a group of its own, as upstream does.

    Source: Guo et al. 2025, MineWorld (arXiv:2504.08388), evaluation of controllability.
    """
    groups = {group.name: group for group in schema.groups if isinstance(group, Categorical)}
    if all(group in groups for _, group, _ in _MINECRAFT_TASKS):
        return tuple(
            Task(
                name=name,
                group=group,
                answers=("none", *wanted),
                answer_of_option=tuple(_answer(option, wanted) for option in groups[group].options),
            )
            for name, group, wanted in _MINECRAFT_TASKS
        )
    return tuple(
        Task(name, name, group.options, tuple(range(group.size)))
        for name, group in groups.items()
        if group.size > 1
    )


def _answer(option: str, wanted: tuple[str, ...]) -> int:
    # Keys that are down together are joined in the names of Minecraft's options.
    down = [1 + wanted.index(key) for key in option.split("&") if key in wanted]
    return down[0] if len(down) == 1 else 0


def confusion(
    true: Int[np.ndarray, "..."], read: Int[np.ndarray, "..."], answers: int
) -> Int[np.ndarray, "answer answer"]:
    """Return how often each true answer (row) was read as each answer (column)."""
    pairs = np.asarray(true).ravel() * answers + np.asarray(read).ravel()
    counts: Int[np.ndarray, "answer answer"] = np.bincount(pairs, minlength=answers**2).reshape(
        answers, answers
    )
    return counts


def classification_scores(counts: Int[np.ndarray, "answer answer"]) -> dict[str, float]:
    """Return precision, recall and F1 of a confusion matrix: macro and micro averages.

    The macro average is over the answers that were given or read at least once, rest among them;
    an answer that was never read has precision 0, one that was never given recall 0. With one
    answer a step all three micro averages are the share of right answers. These are the
    conventions of scikit-learn with `zero_division=0`, which upstream's figures follow.

    Args:
        counts: True answers in rows, read ones in columns.
    """
    right = np.diag(counts).astype(np.float64)
    given, read = counts.sum(axis=1), counts.sum(axis=0)
    occurs = (given + read) > 0
    precision = right / np.maximum(read, 1)
    recall = right / np.maximum(given, 1)
    f1 = 2.0 * right / np.maximum(given + read, 1)
    micro = float(right.sum() / max(counts.sum(), 1))
    macro = [
        float(score[occurs].mean()) if occurs.any() else 0.0 for score in (precision, recall, f1)
    ]
    return dict(zip(SCORES, (*macro, micro, micro, micro), strict=True))


def measure_actions(
    schema: ActionSchema,
    actions: Num[np.ndarray, "clip step group"],
    read: Int[np.ndarray, "clip step group"],
) -> dict[str, Any]:
    """Return how well the actions read from frames agree with those taken.

    `tasks` has a confusion matrix and the scores of each task, `mean_over_tasks` their plain means
    (None where the schema has no key groups). `axes` has the mean absolute difference in bins of
    each axis, and `camera_error_bins` that of the mu-law axes, which turn a camera, together and
    in the bins of Video PreTraining.

    Args:
        schema: Of both.
        actions: Those taken, as recorded.
        read: Options and bins, as `InverseDynamicsModel.label` returns them.
    """
    true = group_ids(schema, actions)
    tasks: dict[str, Any] = {}
    for task in tasks_of(schema):
        index = schema.group_index(task.group)
        answer = np.array(task.answer_of_option)
        counts = confusion(answer[true[..., index]], answer[read[..., index]], len(task.answers))
        tasks[task.name] = {
            "answers": list(task.answers),
            "confusion": counts.tolist(),
            **classification_scores(counts),
        }
    axes = {
        group.name: {
            "bins": group.size,
            "mean_absolute_difference": float(np.abs(true[..., index] - read[..., index]).mean()),
        }
        for index, group in enumerate(schema.groups)
        if not isinstance(group, Categorical)
    }
    return {
        "clips": true.shape[0],
        "steps": int(np.prod(true.shape[:2])),
        "tasks": tasks,
        "mean_over_tasks": {
            score: float(np.mean([figures[score] for figures in tasks.values()]))
            for score in SCORES
        }
        if tasks
        else None,
        "axes": axes,
        "camera_error_bins": _camera_error(schema, actions, read),
    }


def _camera_error(
    schema: ActionSchema,
    actions: Num[np.ndarray, "clip step group"],
    read: Int[np.ndarray, "clip step group"],
) -> float | None:
    """Return the mean over clips of the mean absolute difference over steps and camera axes."""
    differences = [
        VPT_CAMERA.to_ids(actions[..., index]) - VPT_CAMERA.to_ids(group.from_ids(read[..., index]))
        for index, group in enumerate(schema.groups)
        if isinstance(group, MuLawAxis)
    ]
    return float(np.abs(np.stack(differences)).mean()) if differences else None
