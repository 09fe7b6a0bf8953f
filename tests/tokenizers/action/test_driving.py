"""Ego motion as tokens: ids of others, bounds, and how much a drive loses."""

import numpy as np
import pytest

from tests.reference_cases import Case, reference_cases
from worldgen.ego_motion import integrate, path_length
from worldgen.errors import ActionError
from worldgen.tokenizers.action import (
    ActionSchema,
    ActionTokenizer,
    Categorical,
    actions_from_keys,
    clip_to_bins,
    driving_schema,
    fit_driving_schema,
    is_driving_schema,
)

VALUES = reference_cases("drivingworld", lambda c: "sets" in c and "yaw_range_width_degrees" in c)
POSES = reference_cases("drivingworld", lambda c: "quaternion_order" in c)


def bins(config: dict[str, int]) -> ActionSchema:
    return driving_schema(
        "drivingworld",
        yaw_bins=config["yaw_vocab_size"],
        x_bins=config["pose_x_vocab_size"],
        y_bins=config["pose_y_vocab_size"],
    )


def indices(motion: np.ndarray, schema: ActionSchema) -> np.ndarray:
    """The bin of each number, as upstream counts: every axis from 0."""
    clipped, _ = clip_to_bins(motion, schema)
    tokenizer = ActionTokenizer(schema)
    return np.asarray(tokenizer.encode(clipped) - [ids[0] for ids in tokenizer.slot_ids])


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("precision", ["", "_f64"])
def test_reference_pose_tokens(case: Case, precision: str) -> None:
    inputs, outputs = case.inputs, case.outputs
    motion = np.concatenate(
        [inputs["yaw" + precision][0].numpy(), inputs["pose" + precision][0].numpy()], -1
    )
    for sizes in case.config["sets"]:
        schema, prefix = bins(sizes), sizes["prefix"]
        found = indices(motion, schema)
        assert np.array_equal(found[:, :1], outputs[prefix + "yaw_idx"][0].numpy())
        assert np.array_equal(found[:, 1:], outputs[prefix + "pose_idx"][0].numpy())
        for index, name in enumerate(("yaw", "x", "y")):
            group = schema.groups[index]
            table = group.from_ids(np.arange(group.size))
            expected = outputs[f"{prefix}{name}_table"].numpy()
            np.testing.assert_allclose(table, expected, rtol=0, atol=1e-6)
            back = outputs[f"{prefix}{name}_back"].numpy().reshape(-1)
            np.testing.assert_allclose(table[found[:, index]], back, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", POSES)
def test_reference_ids_of_ego_motion(case: Case) -> None:
    outputs = case.outputs
    motion = np.concatenate([outputs["yaw"][0].numpy(), outputs["pose"][0].numpy()], -1)
    sizes = {"yaw_vocab_size": 512, "pose_x_vocab_size": 128, "pose_y_vocab_size": 128}
    found = indices(motion, bins(sizes | case.config))
    assert np.array_equal(found[:, :1], outputs["yaw_idx"][0].numpy())
    assert np.array_equal(found[:, 1:], outputs["pose_idx"][0].numpy())


def test_rest_is_the_centre_of_a_bin() -> None:
    for schema in (driving_schema("car_racing"), fit_driving_schema(racing())):
        tokenizer = ActionTokenizer(schema)
        back = tokenizer.decode(tokenizer.encode(schema.rest()))
        np.testing.assert_allclose(back, 0.0, atol=1e-9)
    back = indices(np.zeros((1, 3)), driving_schema("drivingworld"))
    assert back.tolist() == [[255, 0, 63]]


def racing(steps: int = 167) -> np.ndarray:
    """Ten seconds of bends, as car racing drives them."""
    time = np.arange(steps) * 0.06
    random = np.random.default_rng(0)
    return np.stack(
        [
            8 * np.sin(time) + random.normal(0, 1, steps),
            1.6 + 0.8 * np.cos(time / 2),
            0.3 * np.sin(time) + random.normal(0, 0.05, steps),
        ],
        -1,
    )


def test_bins_of_car_racing_lose_little_of_a_drive() -> None:
    motion = racing()
    for schema in (driving_schema("car_racing"), fit_driving_schema(motion)):
        tokenizer = ActionTokenizer(schema)
        clipped, report = clip_to_bins(motion, schema)
        assert report == ()
        there, back = integrate(motion), integrate(tokenizer.decode(tokenizer.encode(clipped)))
        off = np.linalg.norm((there - back)[:, :2], axis=-1).max()
        assert off < 0.01 * path_length(there)


def test_keys_hold_motion() -> None:
    schema = driving_schema("car_racing")
    yaw, x, y = actions_from_keys(["ArrowUp", "ArrowLeft"], schema)
    assert yaw > 0
    assert x > 0
    assert y == 0
    assert actions_from_keys(["KeyS", "KeyD"], schema)[0] == -yaw
    assert actions_from_keys(["KeyS"], schema)[1] < 0
    # Nothing but the keys that a preset can follow.
    assert "back" not in driving_schema("drivingworld").named
    for preset in ("drivingworld", "car_racing"):
        described = driving_schema(preset)
        assert ActionSchema.from_json(described.to_json()) == described
        assert is_driving_schema(described)


def test_clipping_says_where_and_how_much() -> None:
    schema = driving_schema("drivingworld")
    motion = np.zeros((9, 3))
    motion[4] = [0.0, -1.0, 0.0]
    motion[5:8, 0] = [20.0, -30.0, np.inf]
    motion[8, 2] = np.nan
    clipped, report = clip_to_bins(motion, schema)
    ActionTokenizer(schema).encode(clipped)
    text = "\n".join(map(str, report))
    assert "no ego data in step 8" in text
    assert "yaw reaches inf degrees a step; the bins hold -7.984 to 8.016" in text
    assert "clipped in steps 5, 6, 7" in text
    assert "x reaches -1 metres" in text
    assert clipped[8].tolist() == schema.rest().tolist()
    assert np.isnan(motion[8, 2])


def test_fitted_bins_hold_all_of_what_they_are_fitted_to() -> None:
    for motion in (racing(), racing()[:1], np.zeros((3, 3)), racing() * [1.0, -1.0, 1.0]):
        _, report = clip_to_bins(motion, fit_driving_schema(motion))
        assert report == ()
    unknown = racing()
    unknown[3] = np.inf
    assert fit_driving_schema(unknown).groups[1].size <= 123
    with pytest.raises(ActionError, match="no step has ego data"):
        fit_driving_schema(np.full((2, 3), np.nan))


def test_what_is_refused() -> None:
    with pytest.raises(ActionError, match="there are drivingworld, car_racing"):
        driving_schema("mars")
    with pytest.raises(ActionError, match="'x' needs 1 bin"):
        driving_schema("drivingworld", x_bins=0)
    keys = ActionSchema(groups=(Categorical("steering", ("none", "left")),))
    assert not is_driving_schema(keys)
    with pytest.raises(ActionError, match="this one has steering"):
        clip_to_bins(np.zeros((2, 3)), keys)
    with pytest.raises(ActionError, match="rows of yaw, x and y"):
        clip_to_bins(np.zeros((2, 2)), driving_schema("car_racing"))
