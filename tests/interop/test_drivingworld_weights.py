"""DrivingWorld's world model read into ours: its numbers, losses and gradients; and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tests.interop.drivingworld_numbers import SLOTS, close, model_of, motion_ids
from tests.reference_cases import Case, reference_cases
from worldgen.errors import CheckpointError, ConfigError
from worldgen.interop.drivingworld_weights import (
    drivingworld_config,
    upstream_weights,
    world_model_from_upstream,
)
from worldgen.models import DrivingTransformer

CASES = reference_cases(
    "drivingworld", lambda config: "n_layer" in config and "n_generated_frames" not in config
)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    reference: Case = request.param
    return reference


def losses(model: DrivingTransformer, case: Case, fed: Tensor) -> Tensor:
    """Return the mean over all slots of each clip, those of unknown motion counting 0."""
    motion, known = motion_ids(case, model.config)
    cells, slots = model(fed, motion[:, 1:], known_actions=known, first_action=motion[:, 0])
    targets = motion[:, 1:] - torch.tensor(model.config.first_ids)
    terms = [
        F.cross_entropy(logits.mT, targets[..., slot], reduction="none")[..., None]
        * known[:, None, None]
        for slot, logits in enumerate(slots)
    ]
    image = F.cross_entropy(
        cells.flatten(1, 2).mT, case.inputs["tokens"][:, 1:].flatten(1), reduction="none"
    )
    return torch.cat((*terms, image.unflatten(1, cells.shape[1:3])), dim=-1).mean(dim=(1, 2))


@torch.no_grad()
def test_states_and_logits_of_a_clip_are_upstreams(case: Case) -> None:
    model, outputs, tokens = model_of(case), case.outputs, case.inputs["tokens"]
    motion, known = motion_ids(case, model.config)
    assert motion[0, 0].tolist() == list(model.config.first_action)
    states = model.encode_steps(tokens[:, :-1], motion[:, 1:], known_actions=known)
    close(states, outputs["time_space_out"])
    cells, slots = model(tokens, motion[:, 1:], known_actions=known)
    close(cells, outputs["img_logits"])
    for name, logits in zip(SLOTS, slots, strict=True):
        close(logits, outputs[f"{name}_logits"])


@torch.no_grad()
def test_losses_are_upstreams_with_clean_and_with_spoilt_tokens(case: Case) -> None:
    model, outputs = model_of(case), case.outputs
    close(losses(model, case, case.inputs["tokens"]), outputs["loss"])
    close(losses(model, case, outputs["masked_tokens"]), outputs["loss_masked"])


def test_gradients_are_upstreams(case: Case) -> None:
    model, outputs = model_of(case).requires_grad_(True), case.outputs
    losses(model, case, case.inputs["tokens"])[0].backward()
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        theirs = upstream_weights(name)
        if theirs:
            assert parameter.grad is not None, name
            found |= dict(zip(theirs, parameter.grad.chunk(len(theirs)), strict=True))
    names = case.config["grad_param_names"]
    assert found.keys() == set(names)
    close(torch.stack([found[name].norm() for name in names]), outputs["grad_norm_sample0"])
    close(found["sos_emb"], outputs["grad_sos_emb_sample0"])
    expected = outputs["grad_time_emb_sample0"]
    close(found["time_emb"], expected[: model.config.window])
    # Rows of frames that no window has.
    assert not expected[model.config.window :].any()


def test_names_that_do_not_fit_are_all_told(case: Case) -> None:
    state = load_file(case.weights)
    del state["head.1.weight"]
    state["yaw_head.3.weight"] = state["yaw_head.3.weight"][1:]
    state["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        world_model_from_upstream(
            state, case.config, codebook=case.inputs["codebook"], path=Path("a.pth")
        )
    for part in ("a.pth", "missing head.1.weight", "unexpected extra", "yaw_head.3.weight ("):
        assert part in str(caught.value)


def test_another_tokenizers_codebook_is_refused(case: Case) -> None:
    with pytest.raises(ConfigError, match="the tokenizer that belongs to the model"):
        world_model_from_upstream({}, case.config, codebook=torch.zeros(3, 2))


def test_released_settings_give_a_billion_parameters() -> None:
    config = drivingworld_config({})
    with torch.device("meta"):
        model = DrivingTransformer(config)
    ours = {"codes.weight", "origin_row", "origin_column"}
    theirs = [weight for name, weight in model.state_dict().items() if name not in ours]
    # Upstream has 50 rows of time embedding where its window has 15 frames.
    spare_rows = (50 - config.window) * config.width
    assert sum(weight.numel() for weight in theirs) + spare_rows == 1_002_443_264
    assert config.first_action == (255, 512, 640 + 63)


@pytest.mark.parametrize(
    "changes", [{"n_layer": 12}, {"image_size": "large"}, {"n_embd": None}, {"downsample_size": 0}]
)
def test_settings_of_the_wrong_kind_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="wrong kind"):
        drivingworld_config(changes)
