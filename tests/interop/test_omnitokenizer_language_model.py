"""The class-conditional language model against numbers that OmniTokenizer's own code computed."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import reference_cases
from worldgen.errors import CheckpointError
from worldgen.generation.class_conditional import (
    ClassConditionalSamplingConfig,
    sample_tokens,
)
from worldgen.generation.sampling import SamplingConfig, distribution
from worldgen.interop.files import ForeignState
from worldgen.interop.omnitokenizer_language_model import (
    class_conditional_config,
    read_class_conditional,
)
from worldgen.models.class_conditional import ClassConditionalTransformer

# A language model is known by its arguments; the other cases are tokenizers.
CASES = reference_cases.reference_cases("omnitokenizer", lambda config: "n_layer" in config["args"])


@dataclass(frozen=True, kw_only=True)
class Case:
    arguments: dict[str, Any]
    model: ClassConditionalTransformer
    codes: Tensor
    labels: Tensor
    sequence: Tensor
    outputs: dict[str, Tensor]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    reference: reference_cases.Case = request.param
    arguments = reference.config["args"]
    path = reference.weights
    model = read_class_conditional(
        ForeignState(load_file(path), path), class_conditional_config(arguments)
    )
    inputs = reference.inputs
    return Case(
        arguments=arguments,
        model=model,
        codes=inputs["codes"],
        labels=inputs["labels"][:, 0],
        sequence=inputs["sequence"],
        outputs=reference.outputs,
    )


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    # The tolerance that the reference numbers are published with.
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_sequence_logits_and_loss_are_upstreams(case: Case) -> None:
    tokens, positions = case.model.sequence(case.codes, case.labels)
    assert torch.equal(tokens, case.sequence)
    assert_close(case.model(tokens[:, :-1], positions[:-1]), case.outputs["logits"])
    assert_close(case.model.loss(case.codes, case.labels), case.outputs["loss"])


@torch.no_grad()
def test_cached_logits_are_upstreams(case: Case) -> None:
    cache = case.model.new_cache(len(case.sequence))
    logits = [
        case.model.observe(cache, case.sequence[:, place], place)
        for place in range(case.sequence.shape[1] - 1)
    ]
    assert_close(torch.stack(logits, dim=1), case.outputs["logits"])


def test_greedy_decoding_is_upstreams_with_and_without_guidance(case: Case) -> None:
    for name, guidance in (("greedy", 0.0), ("greedy_cfg", case.arguments["cfg_ratio"])):
        assert torch.equal(greedy(case, name, guidance, growing=False), case.outputs[name]), name


def test_growing_guidance_is_upstreams(case: Case) -> None:
    # The reference tells the tokens and not the strength: it is read off the tokens, which a wrong
    # law of growth or a wrong stream without class would fit at no strength.
    theirs = case.outputs["greedy_cfg_scaled"]
    codes, length = theirs - case.model.config.first_code, theirs.shape[1]
    strengths = case.arguments["cfg_ratio"] * torch.linspace(0.001, 1.0, 1000)
    logits = []
    with torch.no_grad():
        for labels in (case.labels, None):
            tokens, positions = case.model.sequence(codes, labels)
            logits.append(case.model(tokens[:, :-1], positions[:-1])[:, -length:])
    growing = torch.outer(strengths, torch.arange(length))[:, None, :, None]
    guided = (1 + growing) * logits[0] - growing * logits[1]
    fits = (guided.argmax(dim=-1) == theirs).flatten(1).all(dim=1)
    assert fits.any()
    strength = strengths[fits][int(fits.sum()) // 2].item()
    assert torch.equal(greedy(case, "greedy_cfg_scaled", strength, growing=True), theirs)


def greedy(case: Case, name: str, guidance: float, *, growing: bool) -> Tensor:
    config = ClassConditionalSamplingConfig(
        sampling=SamplingConfig(temperature=0.0),
        guidance=guidance,
        growing_guidance=growing,
        codes_only=False,
    )
    unused = torch.zeros(case.outputs[name].shape, dtype=torch.float64)
    return sample_tokens(case.model, case.labels, unused, config)


def test_filtered_probabilities_are_upstreams(case: Case) -> None:
    compared = 0
    for name, theirs in case.outputs.items():
        if found := re.fullmatch(r"filtered\.k(\d+)\.p(\d+)", name):
            config = SamplingConfig(top_k=int(found[1]), top_p=int(found[2]) / 100)
            kept = distribution(case.outputs["logits"][:, -1], config)
            assert_close((kept / kept.sum(dim=-1, keepdim=True)).float(), theirs)
            compared += 1
    assert compared


def test_models_of_another_kind_are_refused() -> None:
    with pytest.raises(CheckpointError, match="read with n_unmasked 0, got 3"):
        class_conditional_config({"n_unmasked": 3})
    with pytest.raises(CheckpointError, match="lack 'first_stage_vocab_size'"):
        class_conditional_config({})


def test_foreign_and_missing_entries_are_listed(case: Case) -> None:
    state = ForeignState({"transformer.blocks.0.attn.mask": torch.ones(1)}, Path("a.ckpt"))
    with pytest.raises(CheckpointError, match=r"missing .*transformer\.tok_emb\.weight.*nothing"):
        read_class_conditional(state, case.model.config)
