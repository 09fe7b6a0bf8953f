"""A tiny real world is evaluated whole: complete, reproducible, and shown on one page."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluation import toy_car
from tests.factories import car_schema, tiny_world
from worldgen.cli import main
from worldgen.data.episodes import Dataset
from worldgen.errors import CheckpointError, DataError, EnvironmentMissingError, WorldgenError
from worldgen.evaluation.clips import load_clips, read_clip_specs, write_clip_specs
from worldgen.evaluation.judges.inverse_dynamics import (
    INVERSE_DYNAMICS_FILE,
    InverseDynamicsConfig,
    InverseDynamicsModel,
    save_inverse_dynamics,
)
from worldgen.evaluation.judges.inverse_dynamics_following import follow_actions
from worldgen.evaluation.judges.probes import (
    MotionProbe,
    MotionProbeConfig,
    TileColumn,
    TileProbe,
    TileProbeConfig,
    save_probes,
)
from worldgen.evaluation.pages.report import (
    render_report,
    without_pictures,
    write_json,
    write_report,
)
from worldgen.evaluation.replay import check_replay
from worldgen.evaluation.rollout import Roller
from worldgen.evaluation.speed.play_bench import bench_play
from worldgen.evaluation.summary import summarise, trusted_judge
from worldgen.evaluation.world import evaluate_world
from worldgen.generation import Start
from worldgen.generation.decoding import make_decoder
from worldgen.pipeline import EnvironmentCard, World, load
from worldgen.tokenizers.action import ActionSchema, minecraft_schema


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    toy_car.record(folder, episodes={"test": 2})
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, recording: Path) -> World:
    folder = tiny_world(
        tmp_path_factory.mktemp("world"), environment=EnvironmentCard(id=toy_car.ENVIRONMENT)
    )
    specs = load_clips(Dataset(recording), count=3).specs
    write_clip_specs(folder / "evaluation.json", specs, context=8, horizon=64)
    torch.manual_seed(0)
    probe = MotionProbe(
        MotionProbeConfig(
            frame_height=64, frame_width=64, quantities=("yaw_change", "speed"), width=2
        )
    )
    figures = {
        "samples": 10,
        "yaw_change": {"correlation": 0.99, "root_mean_square_error": 0.01},
        "speed": {"correlation": 0.5, "root_mean_square_error": 1.0},
    }
    save_probes(folder / "probe.safetensors", {"road": probe}, {"road": figures})
    save_inverse_dynamics(folder / INVERSE_DYNAMICS_FILE, reader(car_schema()), {})
    return load(folder)


def reader(schema: ActionSchema) -> InverseDynamicsModel:
    """Return an untrained judge of actions."""
    config = InverseDynamicsConfig(frame_height=16, frame_width=16, channels=(4, 4), width=8)
    return InverseDynamicsModel(config, schema)


@pytest.fixture(scope="module")
def result(world: World) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        # The same measures over fewer frames, for both evaluations below.
        patch.setattr("worldgen.evaluation.world._REPLAY_FRAMES", {False: 20})
        patch.setattr("worldgen.evaluation.world._COST_FRAMES", {False: (5, 20)})
        patch.setattr("worldgen.evaluation.replay._TIMED_STEPS", 10)
        yield evaluate_world(world, clips=2, progress=False)


def test_every_part_of_the_protocol_is_there_and_is_json(result: dict[str, Any]) -> None:
    assert {"tokenizer", "rollout", "tokens", "judges", "motion", "replay", "cost"} <= set(result)
    assert result["protocol"]["clips"] == 2
    assert result["protocol"]["clips_that_differ_from_the_recording"] == 0
    assert json.loads(json.dumps(result)) == result
    assert result["replay"]["identical"]
    assert result["motion"]["held_actions"]["road"]["simulator"]
    names = [row["name"] for row in result["summary"]]
    assert any("holding left turns left" in name for name in names)


def test_actions_read_from_frames_stand_beside_those_taken(
    world: World, result: dict[str, Any]
) -> None:
    judged = result["inverse_dynamics"]
    assert set(judged["frames"]) == {"generated", "real_frames", "tokenizer_reconstruction"}
    specs, _, _ = read_clip_specs(world.folder / "evaluation.json")
    for figures in judged["frames"].values():
        assert figures["steps"] == 2 * 64
        assert list(figures["windows"]) == ["1-16", "17-64"]
        for index, task in enumerate(("steering", "pedals")):
            taken = np.concatenate([spec.actions[-64:, index] for spec in specs[:2]])
            counts = np.array(figures["tasks"][task]["confusion"])
            assert counts.sum(axis=1).tolist() == np.bincount(taken, minlength=3).tolist()
    rows = {row["name"]: row for row in result["summary"]}
    f1 = rows["actions read from dreamt frames, F1"]
    assert f1["value"] == judged["frames"]["generated"]["mean_over_tasks"]["f1_macro"]
    assert set(f1["references"]) == {"real_frames", "tokenizer_reconstruction"}
    assert "shift of the actions that suits real frames best" in rows
    page = render_report(result)
    assert "Actions read from frames" in page
    assert "pedals, dream" in page


def test_minecraft_adds_the_camera_and_its_seven_tasks(result: dict[str, Any]) -> None:
    schema = minecraft_schema("vpt_camera")
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (2, 12, 16, 16, 3), dtype=np.uint8)
    actions = np.zeros((2, 11, schema.num_groups))
    actions[..., schema.group_index("camera_yaw")] = random.uniform(-10, 10, (2, 11))
    clips = dict.fromkeys(("generated", "real_frames", "tokenizer_reconstruction"), frames)
    judged = follow_actions(reader(schema), clips, actions, context=4)
    changed = {**result, "inverse_dynamics": {"held_out": {}, **judged}}
    rows = {row["name"]: row for row in summarise(changed)}
    camera = rows["actions read from dreamt frames, camera error"]
    assert camera["value"] == judged["frames"]["generated"]["camera_error_bins"] > 0
    assert rows["actions read from dreamt frames, error of camera_pitch"]["unit"] == "bins"
    assert "sneak_sprint" in rows["actions read from dreamt frames, F1"]["note"]
    page = render_report(changed)
    assert "camera, 11 bins" in page
    assert "drop: dream" in page


def test_a_judge_of_other_actions_is_refused_before_anything_is_measured(
    world: World, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    save_inverse_dynamics(other, reader(minecraft_schema("mineworld")), {})
    with pytest.raises(CheckpointError, match="but the actions have steering"):
        evaluate_world(world, inverse_dynamics=other, progress=False)


def test_misaligned_actions_are_shouted_about(
    result: dict[str, Any],
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["evaluate", "world", "--world", str(world.folder)]
    for misaligned, status in (([], 0), (["the actions of the real clips lie 1 step too late"], 1)):
        judged = {**result["inverse_dynamics"], "misaligned": misaligned}
        changed = {**result, "inverse_dynamics": judged}
        monkeypatch.setattr(
            "worldgen.evaluation.world.evaluate_world", lambda *_, changed=changed, **__: changed
        )
        assert main(words) == status
        assert ("lie 1 step too late" in capsys.readouterr().err) == (status == 1)
        assert ("lie 1 step too late" in render_report(changed)) == (status == 1)


def test_a_quantity_whose_judge_reads_badly_makes_no_claim(result: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in result["summary"]}
    gas = rows["gas faster than nothing, 10 steps"]
    assert gas["met"] is None
    assert "no claim" in gas["note"]
    assert rows["holding left turns left, 10 steps"]["met"] is not None
    assert trusted_judge({"a": {"x": {"correlation": 0.94}}}, "x") == (None, None)
    judges = {"a": {"x": {"correlation": None}}, "b": {"x": {"correlation": 0.96}}}
    assert trusted_judge(judges, "x") == ("b", 0.96)


def test_a_recording_and_the_environment_that_made_it_give_the_same_figures(
    world: World, recording: Path, result: dict[str, Any]
) -> None:
    again = evaluate_world(world, clips=2, data=recording, progress=False)
    again["protocol"]["source"] = result["protocol"]["source"]
    timed = {"cost", "hardware", "summary"}
    same = [key for key in result if key not in timed and again[key] == result[key]]
    # Two clips of a recording are placed like the first two of three.
    assert set(result) - timed - set(same) == set()


def test_the_page_holds_figures_curves_and_strips_and_nothing_foreign(
    result: dict[str, Any], tmp_path: Path
) -> None:
    write_report(result, tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page == render_report(result)
    assert page.count("data:image/png;base64,") == 3
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http-equiv", "")
    write_json(result, tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written == without_pictures(result)
    assert "film_strips" not in written


def test_the_page_of_results_is_filled_between_its_marks(
    result: dict[str, Any], tmp_path: Path
) -> None:
    from scripts.results import main as fill

    page = tmp_path / "results.md"
    page.write_text("top\n<!-- results: begin -->\nbefore\n<!-- results: end -->\nend\n")
    write_json(result, tmp_path / "figures.json")
    fill([str(tmp_path / "figures.json"), "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("top\n<!-- results: begin -->\n## tiny\n")
    assert text.endswith("<!-- results: end -->\nend\n")
    assert "\nbefore\n" not in text
    assert text.count("\n| ") == len(result["summary"]) + 1


def test_a_world_without_clips_or_environment_says_what_to_do(tmp_path: Path) -> None:
    bare = load(tiny_world(tmp_path / "bare"))
    with pytest.raises(DataError, match="no test clips at"):
        evaluate_world(bare, progress=False)
    specs_of_nothing = tmp_path / "bare" / "evaluation.json"
    write_clip_specs(specs_of_nothing, [], context=8, horizon=64)
    with pytest.raises(EnvironmentMissingError, match="names no environment"):
        evaluate_world(bare, progress=False)


def test_tiles_are_judged_where_a_world_has_a_judge_of_tiles(world: World) -> None:
    from worldgen.evaluation.judges.tile_following import MOVES

    config = TileProbeConfig(
        columns=(
            TileColumn(
                name="tiles",
                rows=8,
                classes=("grass", "tree", *(f"player-{move}" for move in MOVES)),
            ),
        ),
        width=2,
    )
    assert TileProbe(config).read(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 8, 8)


def test_a_row_of_a_batched_rollout_is_what_a_session_shows(world: World) -> None:
    random = np.random.default_rng(0)
    schema = world.action_tokenizer.schema
    context = np.stack([random.integers(0, 64, (3, 64)) for _ in range(2)])
    actions = random.integers(0, 3, (2, 2 + 5, schema.num_groups))
    roller = Roller(
        model=world.model,
        visual_tokenizer=world.tokenizer,
        action_tokenizer=world.action_tokenizer,
        decoder=make_decoder("strided:4", world.model.layout, world.card.sampling),
        seeds=[4, 9],
    )
    dreamt = roller.roll_out(context, actions)
    assert dreamt.shape == (2, 5, 64)
    for row, seed in enumerate((4, 9)):
        start = Start(
            visual_ids=torch.from_numpy(context[row]),
            action_ids=torch.from_numpy(world.action_tokenizer.encode(actions[row, :2])),
        )
        session = world.session(seed=seed, start=start, decoder="strided:4")
        for step in range(5):
            session.step(actions[row, 2 + step])
            assert (session.ids == dreamt[row, step]).mean() > 0.98


def test_predicting_one_step_ahead_starts_every_frame_from_the_true_past(world: World) -> None:
    random = np.random.default_rng(0)
    ids = random.integers(0, 64, (2, 7, 64))
    actions = random.integers(0, 3, (2, 6, 2))
    roller = Roller(
        model=world.model,
        visual_tokenizer=world.tokenizer,
        action_tokenizer=world.action_tokenizer,
        decoder=make_decoder("whole_frame", world.model.layout, world.card.sampling),
        seeds=[0, 1],
    )
    predicted = roller.predict_next(ids, actions, context=3)
    assert predicted.shape == (2, 4, 64)
    first = roller.roll_out(ids[:, :3], actions[:, :3])
    assert np.array_equal(predicted[:, 0], first[:, 0])


def test_replay_is_checked_through_forks_rewinds_and_a_new_process(world: World) -> None:
    replay = check_replay(world, frames=60)
    assert replay["identical"]
    assert replay["same_after_rewinds"]
    assert replay["equal_frames_in_a_new_process"] == 60


@pytest.mark.slow
def test_bench_through_the_socket_reports_rate_latency_and_machine(world: World) -> None:
    figures = bench_play(world, 20, browser=False)
    assert figures["browser"] is False
    assert figures["frames_per_second"] > 0
    assert 0 < figures["latency_ms_p50"] <= figures["latency_ms_p95"]
    assert {"world", "hardware", "versions"} <= set(figures)


@pytest.mark.browser
@pytest.mark.slow
def test_bench_in_a_browser_counts_painted_frames(world: World, chromium: Path) -> None:
    figures = bench_play(world, 30, browser=True)
    assert figures["browser"] is True
    assert figures["frames_per_second"] > 0
    assert figures["frame_latency_ms_p50"] <= figures["latency_ms_p95"]


def test_bench_without_a_browser_is_refused_where_one_is_demanded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", "/nowhere")
    with pytest.raises(WorldgenError, match="install Chromium"):
        bench_play(world, 5, browser=True)
