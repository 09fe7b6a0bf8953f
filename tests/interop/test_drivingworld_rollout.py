"""DrivingWorld end to end: frames, ids, frames drawn one after the other, and their pictures."""

from dataclasses import dataclass

import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor

from tests.reference_cases import Case, reference_cases
from worldgen.generation.drivingworld import DrivingWorldSampling, draw_frames, read_window
from worldgen.interop.drivingworld import import_drivingworld_tokenizer
from worldgen.interop.drivingworld_weights import world_model_from_upstream
from worldgen.interop.files import read_checkpoint
from worldgen.models import DrivingTransformer
from worldgen.tokenizers.action import ActionTokenizer
from worldgen.tokenizers.action.driving import driving_schema
from worldgen.tokenizers.visual import TemporalTokenizer

CASES = reference_cases("drivingworld", lambda config: "world_model" in config)
EVERY_RUN = pytest.mark.parametrize("case", CASES)
RUNS = pytest.mark.parametrize("run", ["long", "ctrl"])


@dataclass(frozen=True)
class Rollout:
    """A case, ready to run."""

    tokenizer: TemporalTokenizer
    model: DrivingTransformer
    given: Tensor
    """Ids of the frames that it begins with `[batch, frame, cell]`."""
    actions: Tensor
    """Ids of the action in every frame but the last `[batch, frame, slot]`."""
    drawn: Tensor
    """Upstream's ids `[batch, frame, cell]`."""
    logits: Tensor
    """Upstream's, from which it drew."""
    frames: Tensor
    """Upstream's, `[frame, rgb, height, width]` in [0, 1]."""


def load(case: Case, run: str) -> Rollout:
    config, outputs = case.config, case.outputs
    tokenizer = import_drivingworld_tokenizer(
        read_checkpoint(case.folder / "weights_tokenizer.safetensors"), config["tokenizer"]
    ).tokenizer
    path = case.folder / "weights_gpt.safetensors"
    model = world_model_from_upstream(
        read_checkpoint(path).tensors,
        config["world_model"],
        codebook=tokenizer.get_parameter("quantizer.codebook"),
        path=path,
    )
    drawn = outputs[f"{run}_tokens"].flatten(2)
    motion = motion_of(case, run, model.config.window + drawn.shape[1])
    sizes = config["world_model"]
    schema = driving_schema(
        "drivingworld",
        yaw_bins=sizes["yaw_vocab_size"],
        x_bins=sizes["pose_x_vocab_size"],
        y_bins=sizes["pose_y_vocab_size"],
    )
    return Rollout(
        tokenizer=tokenizer,
        model=model,
        given=outputs["start_tokens"],
        # Upstream's row i leads to frame i, an action leads from its frame to the next.
        actions=torch.from_numpy(ActionTokenizer(schema).encode(motion[:, 1:].double().numpy())),
        drawn=drawn,
        logits=outputs[f"{run}_step_logits"],
        frames=outputs[f"{run}_frames"],
    )


def motion_of(case: Case, run: str, length: int) -> Tensor:
    """Return rows of yaw, x and y: those given, and what a run of upstream goes on with."""
    given = torch.cat((case.inputs["yaw"], case.inputs["pose"]), dim=-1)
    if run == "long":
        last = repeat(given[:, -1], "b number -> b t number", t=length - given.shape[1])
        return torch.cat((given, last), dim=1)
    config = case.config
    rows = torch.tensor(
        [[yaw, config["control_x"], config["control_y"]] for yaw in config["control_yaw"]]
    )
    rows = repeat(rows, "t number -> b t number", b=len(given))
    return torch.cat((given[:, : config["condition_frames"]], rows), dim=1)


def assert_near(found: Tensor, expected: Tensor) -> None:
    tolerance = 2e-4 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def grids(ids: Tensor, tokenizer: TemporalTokenizer) -> Tensor:
    return rearrange(ids, "b t (row column) -> b t row column", row=tokenizer.rows)


def test_there_are_cases() -> None:
    assert CASES


@EVERY_RUN
def test_frames_become_upstreams_ids_with_and_without_a_frame_behind(case: Case) -> None:
    rollout = load(case, "long")
    frames = case.inputs["frames"]
    assert torch.equal(rollout.tokenizer.encode(frames).flatten(2), rollout.given)
    # Upstream fills its clip up with an empty frame and drops the ids of that.
    filled = torch.cat((frames, torch.zeros_like(frames[:, :1])), dim=1)
    assert torch.equal(rollout.tokenizer.encode(filled)[:, :-1].flatten(2), rollout.given)


@EVERY_RUN
@RUNS
def test_the_most_likely_ids_are_upstreams(case: Case, run: str) -> None:
    rollout = load(case, run)
    drawn = draw_frames(
        rollout.model,
        rollout.given,
        rollout.actions,
        torch.zeros(rollout.drawn.shape),
        DrivingWorldSampling(method="greedy"),
    )
    assert torch.equal(drawn, rollout.drawn)


@EVERY_RUN
@RUNS
@torch.no_grad()
def test_each_id_is_drawn_from_upstreams_logits(case: Case, run: str) -> None:
    rollout = load(case, run)
    model, window = rollout.model, rollout.model.config.window
    ids = torch.cat((rollout.given, rollout.drawn), dim=1)
    for number in range(rollout.drawn.shape[1]):
        seen = slice(number, number + window)
        draft = read_window(model, ids[:, seen], rollout.actions[:, seen])
        for cell in torch.arange(model.layout.num_cells).split(1):
            logits = model.predict(draft, cell)
            assert_near(logits[:, 0], rollout.logits[:, number, int(cell)])
            model.reveal(draft, cell, rollout.drawn[:, number, cell])


@EVERY_RUN
@RUNS
def test_a_stream_shows_what_upstream_shows(case: Case, run: str) -> None:
    rollout = load(case, run)
    tokenizer, context = rollout.tokenizer, rollout.given.shape[1]
    ids = grids(torch.cat((rollout.given, rollout.drawn), dim=1), tokenizer)
    stream = tokenizer.decoder_stream()
    stream.push(ids[:1, :context])
    shown = torch.cat([stream.push(grid) for grid in ids[:1, context:].split(1, dim=1)], dim=1)
    assert_near(shown[0] / 2 + 0.5, rollout.frames)
    # Upstream's way: a clip of the window and the new frame, of which the last picture is kept.
    for number in range(rollout.drawn.shape[1]):
        clip = tokenizer.decode(ids[:1, number : number + context + 1])
        assert_near(clip[0, -1] / 2 + 0.5, rollout.frames[number])
    if run == "long":
        levels = (shown[0] / 2 + 0.5).mul(255).to(torch.uint8).int()
        assert int((levels - case.outputs["long_frames_u8"].int()).abs().max()) <= 1
