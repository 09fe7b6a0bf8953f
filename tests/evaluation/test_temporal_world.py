"""A world that draws four frames at a time is evaluated, timed and rolled out like any other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluation import toy_car
from tests.factories import tiny_world
from worldgen.cli import main
from worldgen.data.episodes import Dataset
from worldgen.data.video import read_video
from worldgen.errors import DataError
from worldgen.evaluation.clips import load_clips, write_clip_specs
from worldgen.evaluation.judges.probes import MotionProbe, MotionProbeConfig, save_probes
from worldgen.evaluation.pages.report import render_report
from worldgen.evaluation.replay import check_replay, measure_cost
from worldgen.evaluation.rollout import Roller
from worldgen.evaluation.speed.play_bench import bench_play
from worldgen.evaluation.world import evaluate_world
from worldgen.generation import RolloutLog, Start
from worldgen.generation.decoding import make_decoder
from worldgen.pipeline import EnvironmentCard, World, load
from worldgen.records import to_float

TOGETHER = 4


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    toy_car.record(folder, episodes={"test": 2})
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, recording: Path) -> World:
    folder = tiny_world(
        tmp_path_factory.mktemp("world"),
        environment=EnvironmentCard(id=toy_car.ENVIRONMENT),
        frames_per_step=TOGETHER,
    )
    specs = load_clips(Dataset(recording), count=2).specs
    write_clip_specs(folder / "evaluation.json", specs, context=8, horizon=64)
    torch.manual_seed(0)
    probes = {
        name: MotionProbe(
            MotionProbeConfig(
                frame_height=64,
                frame_width=64,
                quantities=("yaw_change", "speed"),
                num_frames=num_frames,
                width=2,
            )
        )
        for name, num_frames in (("road", 3), ("long", 6))
    }
    figures = {
        name: {"correlation": reached, "root_mean_square_error": 1.0}
        for name, reached in (("yaw_change", 0.99), ("speed", 0.5))
    }
    save_probes(folder / "probe.safetensors", probes, dict.fromkeys(probes, figures))
    return load(folder)


def roller(world: World, seeds: list[int]) -> Roller:
    return Roller(
        model=world.model,
        visual_tokenizer=world.tokenizer,
        action_tokenizer=world.action_tokenizer,
        decoder=make_decoder("whole_frame", world.model.layout, world.card.sampling),
        seeds=seeds,
        clips_at_once=2,
    )


def frames_and_actions(count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (count, length, 64, 64, 3)).astype(np.uint8)
    return frames, random.integers(0, 3, (count, length - 1, 2))


def test_every_part_of_the_protocol_is_measured_in_frames(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldgen.evaluation.world._REPLAY_FRAMES", {False: 20})
    monkeypatch.setattr("worldgen.evaluation.world._COST_FRAMES", {False: (5, 20)})
    monkeypatch.setattr("worldgen.evaluation.replay._TIMED_STEPS", 4)
    result: dict[str, Any] = evaluate_world(world, clips=2, progress=False)
    assert json.loads(json.dumps(result)) == result
    protocol = result["protocol"]
    # Of the eight frames of context 1 + 4 are a whole number of grids.
    assert protocol["context_frames"] == 5
    assert protocol["predicted_frames"] == 64
    assert protocol["frames_drawn_together"] == TOGETHER
    assert protocol["clips_that_differ_from_the_recording"] == 0
    assert result["tokenizer"]["frames"] == 2 * 69
    assert len(result["rollout"]["every_step"]["psnr"]["generated"]) == 64
    assert result["replay"]["identical"]
    assert result["motion"]["held_actions"]["road"]["simulator"]
    # A judge of six frames cannot read the first one after five frames of context.
    assert list(result["motion"]["tracking"]) == ["road"]
    # This world has no judge that reads actions, and says so.
    assert "no inverse_dynamics.safetensors" in result["inverse_dynamics"]["absent"]
    rows = {row["name"]: row for row in result["summary"]}
    assert rows["actions read from dreamt frames, F1"]["value"] is None
    assert "train one with" in rows["actions read from dreamt frames, F1"]["note"]
    assert "Not measured: the world has no inverse_dynamics.safetensors" in render_report(result)


def test_clips_with_less_context_are_the_same_afterwards(recording: Path) -> None:
    clips = load_clips(Dataset(recording), count=2, context=8, horizon=12)
    shorter = clips.with_context(5)
    assert (shorter.context, shorter.horizon) == (5, 12)
    assert np.array_equal(shorter.frames, clips.frames[:, 3:])
    assert np.array_equal(shorter.actions, clips.actions[:, 3:])
    assert shorter.columns["yaw"].shape == (2, 17)
    with pytest.raises(DataError, match="cannot have 9"):
        clips.with_context(9)


def test_a_row_of_a_batched_rollout_is_what_a_session_shows(world: World) -> None:
    frames, actions = frames_and_actions(3, 5 + 10)
    several = roller(world, [4, 9, 2])
    ids = several.encode(frames[:, :5])
    assert ids.shape == (3, 2, 64)
    dreamt = several.roll_out(ids, actions)
    # Ten frames more are two grids and half of one.
    assert dreamt.shape == (3, 3, 64)
    pixels = several.decode_after(ids, dreamt)
    assert pixels.shape == (3, 12, 64, 64, 3)
    layout, tokenizer = world.model.layout, world.action_tokenizer
    for row, seed in enumerate((4, 9, 2)):
        taken = torch.from_numpy(tokenizer.encode(actions[row, :4]))
        start = Start(
            visual_ids=torch.from_numpy(ids[row]), action_ids=layout.actions_of_steps(taken)
        )
        session = world.session(seed=seed, start=start)
        shown = list(session.play(list(actions[row, 4:])))
        for step, frame in enumerate(shown):
            same = session.ids_at(step + 1) == dreamt[row, step // TOGETHER]
            # Batched sums may round otherwise, and a grid that differs changes those after it.
            assert same.mean() > 0.95
            if same.all() and step < TOGETHER:
                assert np.abs(frame.astype(int) - pixels[row, step]).max() <= 1


def test_clips_are_encoded_and_decoded_as_the_tokenizer_does(world: World) -> None:
    frames, _ = frames_and_actions(3, 7)
    several = roller(world, [0, 1, 2])
    ids = several.encode(frames)
    # The missing two frames are the last one again.
    filled = np.concatenate((frames, frames[:, -1:], frames[:, -1:]), axis=1)
    expected = world.tokenizer.encode(to_float(torch.from_numpy(filled))).flatten(2)
    assert (torch.from_numpy(ids) == expected).float().mean() > 0.99
    assert several.decode(ids).shape == (3, 9, 64, 64, 3)


def test_predictions_one_step_ahead_are_decoded_after_the_true_past(world: World) -> None:
    frames, actions = frames_and_actions(3, 13)
    several = roller(world, [0, 1, 2])
    ids = several.encode(frames)
    predicted = several.predict_next(ids, actions, context=5)
    assert predicted.shape == (3, 2, 64)
    assert np.array_equal(predicted[:, :1], several.roll_out(ids[:, :2], actions[:, :8]))
    shown = several.decode_each_after(ids, predicted)
    for step in range(2):
        alone = several.decode_after(ids[:, : 2 + step], predicted[:, step : step + 1])
        assert np.array_equal(shown[:, 4 * step : 4 * step + 4], alone)


def test_replay_is_checked_through_forks_rewinds_and_a_new_process(world: World) -> None:
    replay = check_replay(world, frames=53)
    assert replay["identical"]
    assert replay["equal_frames_in_a_new_process"] == 53


def test_the_cost_of_a_frame_is_a_share_of_what_is_drawn_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldgen.evaluation.replay._TIMED_STEPS", 2)
    cost = measure_cost(world, early=5, late=9)
    assert (cost["early_frame"], cost["late_frame"]) == (8, 12)
    assert cost["late_milliseconds"] > 0


@pytest.mark.slow
def test_bench_says_how_many_frames_are_drawn_together(world: World) -> None:
    figures = bench_play(world, 12, browser=False)
    assert figures["frames_drawn_together"] == TOGETHER
    assert figures["frames_per_second"] > 0


def test_a_rollout_heeds_every_action_of_its_script_and_replays(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, log = tmp_path / "rollout.mp4", tmp_path / "rollout.json"
    folder = str(world.folder)
    words = ["rollout", "--world", folder, "--actions", "left,gas,right*3,brake", "--seed", "3"]
    assert main([*words, "--out", str(video), "--log", str(log)]) == 0
    assert len(read_video(video)) == 7
    assert capsys.readouterr().out.startswith("6 frames, ")
    written = RolloutLog.read(log)
    assert len(written.digests) == 6
    names = ["left", "gas", "right", "right", "right", "brake"]
    schema = world.action_tokenizer.schema
    expected = np.stack([schema.action(schema.named[name]) for name in names])
    assert np.array_equal(world.load_session(log).actions, expected)
    assert main(["replay", str(log), "--world", folder, "--verify"]) == 0
    assert capsys.readouterr().out.startswith("identical: 6 frames")
    changed = json.loads(log.read_text()) | {"seed": 4}
    log.write_text(json.dumps(changed))
    assert main(["replay", str(log), "--world", folder, "--verify"]) == 1
    assert "different from frame 1 of 6 on" in capsys.readouterr().out


def test_info_tells_frames_and_grids_apart(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(world.folder), "--json"]) == 0
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    assert tokens["frames_drawn_together"] == TOGETHER
    assert tokens["visual_tokens_per_frame"] == 16
    assert tokens["action_tokens_per_frame"] == 2
