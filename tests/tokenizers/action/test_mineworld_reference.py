"""Minecraft's actions against the numbers of MineWorld's own code."""

import json
from typing import Any

import numpy as np
import pytest

from tests.reference_cases import Case, reference_cases
from worldgen.errors import ActionError
from worldgen.tokenizers.action import (
    ActionSchema,
    ActionTokenizer,
    MuLawAxis,
    mineworld_schema,
    to_environment_action,
    to_schema_action,
)
from worldgen.tokenizers.action.minecraft import ENVIRONMENT_KEYS, mineworld_vocabulary

CASES = reference_cases("mineworld", lambda config: config.get("kind") == "action_tokenizer")

# Upstream calls the camera's components by the axis of the screen, and spells one slot otherwise.
OUR_NAMES = {"camera_y": "camera_pitch", "camera_x": "camera_yaw", "drop_pickItem": "drop_pick"}


def numbers(case: Case) -> Any:
    """Return what upstream computed."""
    return json.loads((case.folder / "actions.json").read_text())


def schema_of(config: dict[str, Any]) -> ActionSchema:
    """Return the schema that a case's configuration describes."""
    return mineworld_schema(
        camera_limit=config["camera_maxval"],
        camera_bin_width=config["camera_binsize"],
        mu=mu_of(config, config.get("camera_mu")),
        vocabulary_size=config["vocab_size"] - config["action_vocab_offset"],
    )


def mu_of(config: dict[str, Any], mu: float | None) -> float:
    """Return the mu of a scheme; equal bins are those of none."""
    if config["quantization_scheme"] == "linear":
        return 0.0
    assert mu is not None
    return mu


def environment_actions(case: Case) -> list[dict[str, Any]]:
    """Return the environment's dictionary of each item."""
    return [
        item["action"] if item["kind"] == "env" else item["env_action"]
        for item in numbers(case)["items"]
    ]


@pytest.mark.parametrize("case", CASES)
def test_the_vocabulary_is_upstreams(case: Case) -> None:
    vocabulary = mineworld_vocabulary(case.config["num_cam_bins"])
    offset = case.config["action_vocab_offset"]
    assert {name: offset + index for name, index in vocabulary.items()} == numbers(case)["vocab"]


@pytest.mark.parametrize("case", CASES)
def test_the_slots_are_upstreams(case: Case) -> None:
    upstream = numbers(case)
    tokenizer = ActionTokenizer(schema_of(case.config))
    assert tokenizer.num_slots == case.config["action_length"]
    names = [
        "constant" if name in ("begin", "end") else OUR_NAMES.get(name, name)
        for name in upstream["slots"]
    ]
    with pytest.raises(ActionError) as error:
        tokenizer.decode(np.zeros(1, dtype=np.int64))
    assert f"({', '.join(names)})" in str(error.value)
    # The ids of a slot are those that upstream's vocabulary has for it.
    offset, vocab = case.config["action_vocab_offset"], upstream["vocab"]
    for slot, name in enumerate(upstream["slots"]):
        ids = (tokenizer.slot_ids[slot] + offset).tolist()
        if name in ("begin", "end"):
            assert ids == [vocab["<act_bos>" if name == "begin" else "<act_eos>"]]
        elif name.startswith("camera"):
            axis = 0 if name == "camera_y" else 1
            bins = case.config["num_cam_bins"]
            assert ids == [vocab[f"cam_{axis}_{index}"] for index in range(bins)]
        else:
            keys = [f"hotbar.{n}" for n in range(1, 10)] if name == "hotbar" else name.split("_")
            assert sorted(ids) == sorted(vocab[key] for key in ["<null_act>", *keys])


@pytest.mark.parametrize("case", CASES)
def test_every_id_is_upstreams(case: Case) -> None:
    schema, offset = schema_of(case.config), case.config["action_vocab_offset"]
    tokenizer = ActionTokenizer(schema)
    expected = [item["ids"] for item in numbers(case)["items"]]
    actions = environment_actions(case)
    assert [
        (tokenizer.encode(to_schema_action(action, schema)) + offset).tolist() for action in actions
    ] == expected
    # All at once.
    together = {
        key: np.array([action.get(key, 0) for action in actions]) for key in ENVIRONMENT_KEYS
    }
    together["camera"] = np.array([action["camera"] for action in actions])
    ids = tokenizer.encode(to_schema_action(together, schema)) + offset
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("case", CASES)
def test_every_id_decodes_to_upstreams_keys_and_camera(case: Case) -> None:
    schema, offset = schema_of(case.config), case.config["action_vocab_offset"]
    tokenizer = ActionTokenizer(schema)
    pitch, yaw = schema.group_index("camera_pitch"), schema.group_index("camera_yaw")
    for item in numbers(case)["items"]:
        action = tokenizer.decode(np.array(item["ids"]) - offset)
        environment = to_environment_action(action, schema)
        decoded = item["decoded"]
        pressed = {key for key in ENVIRONMENT_KEYS if environment[key]}
        assert pressed == set(decoded["pressed"])
        np.testing.assert_allclose(environment["camera"], decoded["camera"], rtol=0, atol=1e-9)
        bins = [int(schema.groups[index].to_ids(action[index])) for index in (pitch, yaw)]
        assert bins == decoded["camera_bins"]
        # What was decoded says the same again.
        again = tokenizer.encode(to_schema_action(environment, schema)) + offset
        assert again.tolist() == item["ids"]


@pytest.mark.parametrize("case", CASES)
def test_every_camera_quantizer_is_upstreams(case: Case) -> None:
    quantizers = numbers(case)["camera_quantizers"]
    for name, quantizer in quantizers.items():
        params = quantizer["params"]
        bins = len(quantizer["bin_to_angle"])
        axis = MuLawAxis(name, params["camera_maxval"], bins, mu_of(params, params.get("mu")))
        assert axis.to_ids(np.array(quantizer["angles"])).tolist() == quantizer["bins"]
        centres = axis.from_ids(np.arange(bins))
        np.testing.assert_allclose(centres, quantizer["bin_to_angle"], rtol=0, atol=1e-9)
        # The schema's own way from a width to a number of bins.
        schema = mineworld_schema(
            camera_limit=params["camera_maxval"], camera_bin_width=params["camera_binsize"]
        )
        assert schema.group("camera_yaw").size == bins
