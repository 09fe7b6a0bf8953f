"""DrivingWorld's decoding: the numbers of its own code, and where ours differs from it."""

from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.interop.drivingworld_numbers import SLOTS, close, model_of, motion_ids
from tests.reference_cases import Case, reference_cases
from worldgen.errors import ConfigError
from worldgen.generation import SamplingConfig, make_decoder
from worldgen.generation.drivingworld import DrivingWorldSampling, draw_frames, read_window
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import distribution
from worldgen.models import DrivingConfig, DrivingTransformer

GREEDY = DrivingWorldSampling(method="greedy")
GENERATE = reference_cases(
    "drivingworld", lambda config: "n_layer" in config and "n_generated_frames" in config
)
SAMPLE = reference_cases("drivingworld", lambda config: "variants" in config)


@pytest.mark.parametrize("case", GENERATE)
def test_greedy_frames_are_upstreams(case: Case) -> None:
    model, outputs = model_of(case), case.outputs
    motion, known = motion_ids(case, model.config)
    tokens, frames = case.inputs["tokens"], case.config["n_generated_frames"]
    actions = motion[:, 1 : tokens.shape[1] + frames]
    uniforms = torch.zeros(len(tokens), frames, model.layout.num_cells)
    ids = draw_frames(model, tokens, actions, uniforms, GREEDY, known)
    grid = rearrange(ids, "b frame (row column) -> b frame row column", row=model.layout.rows)
    assert torch.equal(grid, outputs["generated"])


@torch.no_grad()
@pytest.mark.parametrize("case", GENERATE)
def test_every_logit_on_the_way_is_upstreams(case: Case) -> None:
    model, outputs = model_of(case), case.outputs
    motion, known = motion_ids(case, model.config)
    cells, window = model.layout.num_cells, model.config.window
    clip = torch.cat((case.inputs["tokens"], outputs["generated"].flatten(2)), dim=1)
    for number in range(case.config["n_generated_frames"]):
        seen = slice(number, number + window)
        draft = read_window(
            model, clip[:, seen], motion[:, number + 1 : number + 1 + window], known
        )
        if number == 0:
            close(draft.states, outputs["context_embedding"])
        for cell in torch.arange(cells).split(1):
            logits = model.predict(draft, cell)
            close(logits[:, 0], outputs["step_logits"][:, number, cell])
            model.reveal(draft, cell, clip[:, number + window, cell])
    states = model.encode_steps(clip[:, :window], motion[:, 1:], known_actions=known)[:, -1:]
    frame, action = clip[:, window, None], motion[:, window, None]
    order = torch.arange(cells)
    image, slots = model.refine(states, frame, action, order, known_actions=known)
    close(image[:, 0, :1], outputs["first_img_logits"])
    for name, logits in zip(SLOTS, slots, strict=True):
        close(logits[:, 0], outputs[f"{name}_logits"])
    if "pose_y_logits_upstream_bug" in outputs:
        # Upstream's path for one slot at a time asks the wrong head.
        model.action_heads[2] = model.action_heads[1]
        wrong = model.refine(states, frame, action, order, known_actions=known)[1][2]
        close(wrong[:, 0], outputs["pose_y_logits_upstream_bug"])


@pytest.mark.parametrize("case", SAMPLE)
def test_probabilities_are_upstreams_with_its_mistakes(case: Case) -> None:
    logits, outputs = case.inputs["logits"][:, 0], case.outputs
    fields = ("top_k", "temperature_k", "top_p", "temperature_p")
    for variant in case.config["variants"]:
        given = {name: variant[name] for name in fields if name in variant}
        sampling = DrivingWorldSampling(method=variant["sampling_mtd"], **given)
        ours, theirs = sampling.probabilities(logits), outputs[f"{variant['name']}.probs"]
        if sampling.method == "pk":
            # Ids that top_k ruled out are equal; which of them come back depends on the machine's
            # sort.
            largest = logits.topk(sampling.top_k).indices
            pairs = [(part.gather(-1, largest), part.sort().values) for part in (ours, theirs)]
            for mine, reference in zip(*pairs, strict=True):
                torch.testing.assert_close(mine, reference, rtol=0, atol=1e-6)
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        if "upstream_bug" not in variant:
            right = SamplingConfig(
                top_k=given.get("top_k"),
                top_p=given.get("top_p", 1.0),
                temperature=given.get("temperature_k", given.get("temperature_p", 1.0)),
            )
            probabilities = distribution(logits, right)
            probabilities /= probabilities.sum(dim=-1, keepdim=True)
            torch.testing.assert_close(ours.double(), probabilities, rtol=0, atol=1e-6)


def test_upstreams_top_k_keeps_another_number_of_ids_at_other_temperatures() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, -1.0]])

    def kept(temperature: float) -> int:
        sampling = DrivingWorldSampling(top_k=2, temperature_k=temperature)
        return int((sampling.probabilities(logits) > 0).sum())

    assert [kept(1.0), kept(0.5), kept(1.3)] == [2, 3, 1]
    with pytest.raises(ConfigError, match=r"keeps no id at temperature_k 2\.0"):
        kept(2.0)


@pytest.fixture
def model() -> DrivingTransformer:
    torch.manual_seed(0)
    config = DrivingConfig(
        rows=3,
        columns=4,
        codebook_size=24,
        num_action_tokens=2,
        action_vocabulary_size=9,
        slot_options=(4, 5),
        first_action=(1, 6),
        width=16,
        num_heads=2,
        context_depth=2,
        within_frame_depth=1,
        window=3,
        motion_width=8,
        code_width=8,
        time_positions="window",
        cell_positions="folded",
    )
    return DrivingTransformer(config).eval()


def clip_of(model: DrivingTransformer, frames: int) -> tuple[Tensor, Tensor]:
    visual_ids = torch.randint(0, model.codebook_size, (2, frames, model.layout.num_cells))
    actions = torch.stack((torch.randint(0, 4, (2, frames)), torch.randint(4, 9, (2, frames))), -1)
    return visual_ids, actions


def test_until_the_window_slides_both_modes_draw_the_same(model: DrivingTransformer) -> None:
    (visual_ids, actions), frames = clip_of(model, 12), 4
    uniforms = torch.stack([frame_uniforms([n] * frames, range(frames), 12) for n in (0, 1)])
    sampling = DrivingWorldSampling(top_k=5)
    theirs = draw_frames(model, visual_ids[:, :3], actions[:, : 2 + frames], uniforms, sampling)
    cache, ours = model.new_cache(2), [*visual_ids[:, :3].unbind(1)]
    decoder = make_decoder("raster", model.layout, SamplingConfig(top_k=5))
    for number in range(2 + frames):
        draft = model.observe(cache, ours[number], actions[:, number])
        if number >= 2:
            ours.append(decoder.draw_frame(model, draft, uniforms[:, number - 2]))
    assert torch.equal(theirs[:, 0], ours[3])
    assert not torch.equal(theirs, torch.stack(ours[3:], dim=1))


def test_numbers_of_frames_and_actions_must_fit(model: DrivingTransformer) -> None:
    visual_ids, actions = clip_of(model, 6)
    uniforms = torch.zeros(2, 2, 12)
    with pytest.raises(ConfigError, match="a whole window of 3 frames, got 2"):
        draw_frames(model, visual_ids[:, :2], actions[:, :3], uniforms, GREEDY)
    with pytest.raises(ConfigError, match="need 4 actions"):
        draw_frames(model, visual_ids[:, :3], actions[:, :3], uniforms, GREEDY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "beam"}, "method must be one of"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p above 0"),
        ({"temperature_p": 0.0}, "temperatures must be above 0"),
    ],
)
def test_samplers_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DrivingWorldSampling(**changes)
