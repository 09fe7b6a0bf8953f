"""Decoders by speed and quality: every figure of every decoder, and the page that shows them."""

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
from worldgen.evaluation.clips import load_clips, write_clip_specs
from worldgen.evaluation.judges.probes import MotionProbe, MotionProbeConfig, save_probes
from worldgen.evaluation.pages.curves import scatter_chart
from worldgen.evaluation.pages.pareto_page import render_page
from worldgen.evaluation.pareto import compare_decoders, format_lines, on_the_front
from worldgen.evaluation.pareto_quality import QUALITIES, ScoredDecoder
from worldgen.evaluation.speed.decode_bench import DecodeBench
from worldgen.generation.decoding import make_decoder
from worldgen.generation.random import frame_uniforms
from worldgen.pipeline import EnvironmentCard, World, load

DECODERS = ("raster", "jacobi", "rows")


@pytest.fixture(autouse=True, scope="module")
def _short_probe() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worldgen.evaluation.speed.decode_bench_floor._PROBE_SECONDS", 0.0)
        patch.setattr("worldgen.evaluation.pareto_quality.HELD_STEPS", 1)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    recording = tmp_path_factory.mktemp("recording")
    toy_car.record(recording, episodes={"test": 1})
    folder = tiny_world(
        tmp_path_factory.mktemp("world"), environment=EnvironmentCard(id=toy_car.ENVIRONMENT)
    )
    specs = load_clips(Dataset(recording), count=2).specs
    write_clip_specs(folder / "evaluation.json", specs, context=8, horizon=64)
    torch.manual_seed(0)
    config = MotionProbeConfig(
        frame_height=64, frame_width=64, quantities=("yaw_change", "speed"), width=2
    )
    figures = {"yaw_change": {"correlation": 0.99}, "speed": {"correlation": 0.99}}
    save_probes(folder / "probe.safetensors", {"road": MotionProbe(config)}, {"road": figures})
    return load(folder)


@pytest.fixture(scope="module")
def result(world: World, _short_probe: None) -> dict[str, Any]:
    bench = DecodeBench(decoders=DECODERS, frames=1)
    return compare_decoders(world, bench, clips=1, horizon=2, progress=False)


def test_every_decoder_has_every_figure_of_quality(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    assert [entry["decoder"] for entry in result["decoders"]] == list(DECODERS)
    assert set(result["quality"]["figures"]) == set(QUALITIES)
    assert result["quality"]["clips"] == 1
    assert result["quality"]["note"] is None
    for entry in result["decoders"]:
        for name in (*QUALITIES, "calls_per_frame", "frames_per_second"):
            assert isinstance(entry[name], float), name
        assert entry["log_likelihood"] < 0
        assert 0 < entry["psnr_of_mean_error"] <= entry["psnr"]
        assert 0 <= entry["action_following"] <= 1
        assert set(entry["action_following_by_kind"]) == {
            "left_turns_left",
            "right_turns_right",
            "gas_faster_than_nothing",
            "brake_slower_than_nothing",
        }


def test_an_exact_decoder_has_rasters_very_figures(result: dict[str, Any]) -> None:
    raster, jacobi, rows = result["decoders"]
    for name in (*QUALITIES, "action_following_by_kind"):
        assert jacobi[name] == raster[name], name
    assert jacobi["calls_per_frame"] < raster["calls_per_frame"]
    assert any(rows[name] != raster[name] for name in QUALITIES)


def test_likelihood_is_that_of_asking_cell_by_cell(world: World) -> None:
    model = world.model
    ids = torch.randint(0, 64, (2, 64), generator=torch.Generator().manual_seed(0))
    actions = torch.tensor([[0, 3], [1, 5]])
    scored = ScoredDecoder(make_decoder("rows", model.layout, world.card.sampling))
    uniforms = frame_uniforms([1, 2], [1, 1], 64)
    drawn = scored.draw_frame(model, model.observe(model.new_cache(2), ids, actions), uniforms)
    draft = model.observe(model.new_cache(2), ids, actions)
    total = np.zeros(2)
    for cell in range(64):
        place = torch.tensor([cell])
        log_probability = model.predict(draft, place).double().log_softmax(dim=-1)[:, 0]
        total += log_probability.gather(1, drawn[:, place])[:, 0].numpy()
        model.reveal(draft, place, drawn[:, place])
    np.testing.assert_allclose(scored.log_likelihoods, total / 64, atol=1e-5)


def test_without_test_clips_the_likelihood_is_known_and_the_rest_is_not(tmp_path: Path) -> None:
    world = load(tiny_world(tmp_path / "bare"))
    bench = DecodeBench(decoders=("rows", "jacobi"), frames=1)
    result = compare_decoders(world, bench, clips=1, horizon=4, progress=False)
    assert "no test clips" in result["quality"]["note"]
    for entry in result["decoders"]:
        assert entry["log_likelihood"] < 0
        assert entry["psnr"] is entry["action_following"] is entry["drift_db"] is None
    page = render_page(result)
    assert "no test clips" in page
    assert "log likelihood under raster order" in page
    assert "PSNR against the truth, dB" not in page


def test_page_shows_every_decoder_and_fetches_nothing(result: dict[str, Any]) -> None:
    page = render_page(result)
    for name in DECODERS:
        # Four charts, two tables.
        assert page.count(f">{name}") == 6, name
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 4
    lines = format_lines(result)
    assert [line.partition(",")[0].partition(": ")[0] for line in lines[:3]] == list(DECODERS)


def test_front_is_what_nothing_surpasses() -> None:
    def entry(name: str, speed: float, quality: float | None) -> dict[str, Any]:
        return {"decoder": name, "frames_per_second": speed, "psnr": quality}

    entries = [
        entry("slow and good", 1.0, 30.0),
        entry("slower and as good", 0.5, 30.0),
        entry("fast and poor", 10.0, 20.0),
        entry("between", 5.0, 25.0),
        entry("surpassed", 4.0, 24.0),
        entry("unknown", 99.0, None),
    ]
    assert on_the_front(entries, "psnr") == ["fast and poor", "between", "slow and good"]


def test_points_stand_in_the_order_of_their_values_and_names_are_escaped() -> None:
    chart = scatter_chart(
        {"a<b": (1.0, 2.0), "c": (100.0, 4.0)},
        front=["c", "a<b"],
        title="t",
        x_label="x",
        y_label="y",
    )
    places = [
        (float(part.split('cx="')[1].split('"')[0]), float(part.split('cy="')[1].split('"')[0]))
        for part in chart.split("<circle")[1:]
    ]
    (left, low), (right, high) = places
    assert left < right
    assert low > high
    assert "a&lt;b" in chart
    assert chart.count("front") == 2


def test_equal_points_make_a_chart_with_names_apart() -> None:
    chart = scatter_chart(
        {"one": (3.0, 1.0), "two": (3.0, 1.0)}, title="t", x_label="x", y_label="y"
    )
    heights = [part.split('y="')[1].split('"')[0] for part in chart.split("<text")[-2:]]
    assert heights[0] != heights[1]


def test_command_writes_page_and_json(world: World, tmp_path: Path) -> None:
    page, out = tmp_path / "out.html", tmp_path / "out.json"
    words = ["--clips", "1", "--horizon", "4", "--frames", "1", "--decoder", "rows"]
    files = ["--html", str(page), "--json", str(out)]
    assert main(["pareto", "--world", str(world.folder), *words, *files]) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert json.loads(out.read_text())["decoders"][0]["decoder"] == "rows"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world", "nowhere", "--html", "OUT"], "no world 'nowhere'"),
        (["--world", "WORLD", "--html", "/dev/null/x"], "cannot be written"),
        (["--world", "WORLD", "--html", "OUT", "--decoder", "spiral"], "unknown decoder"),
    ],
)
def test_a_mistake_gives_one_line_and_status_2(
    world: World,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"WORLD": str(world.folder), "OUT": str(tmp_path / "out.html")}
    assert main(["pareto", *(places.get(word, word) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "out.html").exists()
