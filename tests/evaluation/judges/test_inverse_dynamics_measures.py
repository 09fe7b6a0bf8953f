"""Figures of action following, by hand and against a second implementation that counts one by one."""

import numpy as np
import pytest

from tests.evaluation import toy_clicks
from worldgen.evaluation.judges.inverse_dynamics import group_ids
from worldgen.evaluation.judges.inverse_dynamics_measures import (
    SCORES,
    VPT_CAMERA,
    classification_scores,
    confusion,
    measure_actions,
    tasks_of,
)
from worldgen.tokenizers.action import (
    ActionSchema,
    Axis,
    Categorical,
    minecraft_schema,
    to_schema_action,
)


def plain_scores(true: list[int], read: list[int]) -> dict[str, float]:
    """Count answer by answer, as scikit-learn defines its averages with `zero_division=0`."""
    precisions, recalls, f1s = [], [], []
    for answer in sorted({*true, *read}):
        hits = sum(t == r == answer for t, r in zip(true, read, strict=True))
        precision = hits / read.count(answer) if answer in read else 0.0
        recall = hits / true.count(answer) if answer in true else 0.0
        precisions.append(precision)
        recalls.append(recall)
        f1s.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    right = sum(t == r for t, r in zip(true, read, strict=True)) / len(true)
    means = {
        "precision_macro": sum(precisions) / len(precisions),
        "recall_macro": sum(recalls) / len(recalls),
        "f1_macro": sum(f1s) / len(f1s),
    }
    return means | dict.fromkeys(("precision_micro", "recall_micro", "f1_micro"), right)


def test_scores_of_a_confusion_matrix_by_hand() -> None:
    # none read as none 6 times and as back once; forward read as none twice; back right 3 of 4.
    counts = np.array([[6, 0, 1], [2, 0, 0], [0, 1, 3]])
    scores = classification_scores(counts)
    assert scores["precision_macro"] == pytest.approx((6 / 8 + 0 / 1 + 3 / 4) / 3)
    assert scores["recall_macro"] == pytest.approx((6 / 7 + 0 + 3 / 4) / 3)
    assert scores["f1_macro"] == pytest.approx((12 / 15 + 0 + 6 / 8) / 3)
    assert scores["f1_micro"] == scores["precision_micro"] == pytest.approx(9 / 13)


def test_answers_that_never_occur_are_left_out_of_the_macro_average() -> None:
    # The third answer is neither given nor read; the second is read, but never given.
    scores = classification_scores(np.array([[4, 1, 0], [0, 0, 0], [0, 0, 0]]))
    assert scores["precision_macro"] == pytest.approx((1.0 + 0.0) / 2)
    assert scores["recall_macro"] == pytest.approx((0.8 + 0.0) / 2)
    assert classification_scores(np.zeros((2, 2), int)) == dict.fromkeys(SCORES, 0.0)


def test_scores_agree_with_counting_one_by_one() -> None:
    random = np.random.default_rng(0)
    for answers in (2, 3, 7):
        for length in (1, 5, 60):
            true, read = random.integers(0, answers, (2, length)) * random.integers(0, 2, length)
            counts = confusion(true, read, answers)
            assert counts.sum() == length
            expected = plain_scores(true.tolist(), read.tolist())
            assert classification_scores(counts) == pytest.approx(expected)


def test_every_key_group_is_a_task_and_axes_are_compared_in_bins() -> None:
    schema = ActionSchema(
        groups=(
            Categorical("steering", ("none", "left", "right")),
            Axis("gas", low=0.0, high=1.0, bins=11),
            Categorical("horn", ("off", "on")),
            Categorical("constant", ("only",)),
        )
    )
    actions = np.array([[[0, 0.0, 0, 0], [1, 0.5, 1, 0], [1, 1.0, 0, 0], [2, 0.0, 0, 0]]])
    read = np.array([[[0, 0, 0, 0], [1, 6, 0, 0], [2, 10, 0, 0], [2, 3, 0, 0]]])
    figures = measure_actions(schema, actions, read)
    assert (figures["clips"], figures["steps"]) == (1, 4)
    assert list(figures["tasks"]) == ["steering", "horn"]
    assert figures["tasks"]["steering"]["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert figures["tasks"]["horn"]["answers"] == ["off", "on"]
    assert figures["tasks"]["horn"]["f1_macro"] == pytest.approx((6 / 7 + 0) / 2)
    for score in SCORES:
        mean = np.mean([figures["tasks"][name][score] for name in ("steering", "horn")])
        assert figures["mean_over_tasks"][score] == pytest.approx(mean)
    assert figures["axes"] == {"gas": {"bins": 11, "mean_absolute_difference": (0 + 1 + 0 + 3) / 4}}
    assert figures["camera_error_bins"] is None


def test_a_schema_of_axes_alone_has_no_mean_over_tasks() -> None:
    schema = ActionSchema(groups=(Axis("wheel", low=-1.0, high=1.0, bins=3),))
    figures = measure_actions(schema, np.zeros((1, 4, 1)), np.ones((1, 4, 1), np.int64))
    assert figures["mean_over_tasks"] is None
    assert figures["tasks"] == {}
    assert figures["axes"]["wheel"]["mean_absolute_difference"] == 0.0


@pytest.mark.parametrize("preset", ["mineworld", "vpt_camera", "minecraft"])
def test_minecraft_has_upstreams_seven_tasks(preset: str) -> None:
    answers = {task.name: task.answers for task in tasks_of(minecraft_schema(preset))}
    assert answers == {
        "back_forward": ("none", "back", "forward"),
        "left_right": ("none", "left", "right"),
        "sneak_sprint": ("none", "sneak", "sprint"),
        "use": ("none", "use"),
        "attack": ("none", "attack"),
        "jump": ("none", "jump"),
        "drop": ("none", "drop"),
    }


def upstream_labels(actions: list[dict[str, int]]) -> dict[str, list[int]]:
    """Label dictionaries of keys by the words of the protocol: pairs, both down is none; keys."""
    labels = {}
    for name, (first, second) in {
        "back_forward": ("back", "forward"),
        "left_right": ("left", "right"),
        "sneak_sprint": ("sneak", "sprint"),
    }.items():
        states = [(action.get(first, 0), action.get(second, 0)) for action in actions]
        labels[name] = [{(1, 0): 1, (0, 1): 2}.get(state, 0) for state in states]
    for name in ("use", "attack", "jump", "drop"):
        labels[name] = [action.get(name, 0) for action in actions]
    return labels


KEYS = (
    *("back", "forward", "left", "right", "sneak", "sprint", "use", "attack"),
    *("jump", "drop", "pickItem", "hotbar.3"),
)


def random_keys(random: np.random.Generator, *, exclusive: bool) -> dict[str, int]:
    action = {key: int(random.random() < 0.4) for key in KEYS}
    if exclusive:
        # Only what the eleven slots can say: of use and attack, and of drop and pick, one.
        for first, second in (("use", "attack"), ("drop", "pickItem")):
            action[second] *= 1 - action[first]
    return action


@pytest.mark.parametrize("preset", ["mineworld", "vpt_camera", "minecraft"])
def test_the_seven_tasks_are_scored_as_the_dictionaries_of_keys_would_be(preset: str) -> None:
    schema = minecraft_schema(preset)
    random = np.random.default_rng(1)
    exclusive = preset != "minecraft"
    taken, seen = ([random_keys(random, exclusive=exclusive) for _ in range(200)] for _ in range(2))
    actions, read = (
        np.stack([to_schema_action(action, schema) for action in each])[None]
        for each in (taken, seen)
    )
    figures = measure_actions(schema, actions, group_ids(schema, read))
    expected_true, expected_read = upstream_labels(taken), upstream_labels(seen)
    for name, task in figures["tasks"].items():
        scores = plain_scores(expected_true[name], expected_read[name])
        assert {score: task[score] for score in SCORES} == pytest.approx(scores), name


def test_the_camera_is_compared_in_the_bins_of_video_pretraining() -> None:
    # The published centres of the eleven bins, in degrees.
    centres = [0.0, 0.615, 1.61, 3.22, 5.81, 10.0]
    assert VPT_CAMERA.from_ids(np.arange(5, 11)) == pytest.approx(centres, abs=0.02)
    schema = minecraft_schema("minecraft")
    pitch, yaw = schema.group_index("camera_pitch"), schema.group_index("camera_yaw")
    degrees = [[[0.0, 0.7], [-3.0, 45.0]], [[10.0, 0.1], [0.0, -6.0]]]
    seen = [[[0.0, 0.0], [-1.5, 8.9]], [[-10.0, 0.1], [0.2, -6.1]]]
    actions = np.zeros((2, 2, schema.num_groups))
    other = np.zeros((2, 2, schema.num_groups))
    actions[..., [pitch, yaw]] = degrees
    other[..., [pitch, yaw]] = seen
    figures = measure_actions(schema, actions, group_ids(schema, other))
    # Bins taken: 5 and 6, 2 and 10 (clipped), 10 and 5, 5 and 1; read: 5 5, 3 10, 0 5, 5 1.
    assert figures["camera_error_bins"] == pytest.approx((0 + 1 + 1 + 0 + 10 + 0 + 0 + 0) / 8)
    assert set(figures["axes"]) == {"camera_pitch", "camera_yaw"}


def test_perfect_reading_is_perfect_in_every_figure() -> None:
    schema = toy_clicks.clicks_schema()
    actions = toy_clicks.random_actions(np.random.default_rng(2), 30)[None]
    figures = measure_actions(schema, actions, group_ids(schema, actions))
    assert set(figures["mean_over_tasks"].values()) == {1.0}
    assert figures["axes"]["turn"]["mean_absolute_difference"] == 0.0
