"""The bench of decoders: what it reports about worlds and about models without weights."""

import json
from pathlib import Path

import pytest
import torch

from tests.factories import tiny_model_config, tiny_world
from worldgen.cli import main
from worldgen.errors import ConfigError
from worldgen.evaluation.speed.decode_bench import (
    DecodeBench,
    bench_decoders,
    preset_subject,
    world_subject,
)
from worldgen.generation.jacobi import JacobiDecoder
from worldgen.models import NextFrameTransformer, save_world_model
from worldgen.pipeline import load

SPEED = {
    "decoder",
    "trained",
    "calls_per_frame",
    "frames_per_second",
    "frame_ms_p50",
    "frame_ms_p99",
    "model_frames_per_second",
    "model_ms_p50",
    "model_ms_p99",
    "processor_ms",
    "tokens_per_second",
    "cache_bytes",
    "peak_memory_mb",
    "bytes_per_frame",
    "operations_per_frame",
    "bandwidth_floor_ms",
    "arithmetic_floor_ms",
    "floor_ms",
    "share_of_floor",
    "guessed_right",
    "draft_calls_per_frame",
}
SMALL = ["--model", "mineworld_tiny", "--random-weights", "--rows", "3", "--columns", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldgen.evaluation.speed.decode_bench_floor._PROBE_SECONDS", 0.0)


def test_every_decoder_of_a_world_has_all_figures(folder: Path) -> None:
    bench = DecodeBench(frames=3)
    result = bench_decoders(world_subject(load(folder), bench), bench, progress=False)
    assert json.loads(json.dumps(result)) == result
    entries = {entry["decoder"]: entry for entry in result["decoders"]}
    assert {"whole_frame", "raster", "jacobi", "outward", "refine:4", "grouped:64"} <= set(entries)
    for entry in entries.values():
        assert set(entry) == SPEED
        for name in SPEED - {"decoder", "trained", "guessed_right", "draft_calls_per_frame"}:
            assert entry[name] > 0, name
        assert (entry["guessed_right"] is not None) == (entry["decoder"] == "jacobi")
        assert entry["frame_ms_p99"] >= entry["frame_ms_p50"] >= entry["model_ms_p50"]
        assert entry["floor_ms"] <= entry["bandwidth_floor_ms"] + entry["arithmetic_floor_ms"]
    calls = {name: entry["calls_per_frame"] for name, entry in entries.items()}
    assert (calls["raster"], calls["diagonal"], calls["whole_frame"]) == (64, 15, 1)
    assert calls["refine:4"] == 4
    assert 1 <= calls["jacobi"] <= 64
    # Of the fixture: windows (2, 1, 4), 66 tokens a step, one head of 8 channels, float32.
    assert entries["raster"]["cache_bytes"] == 3 * 4 * 66 * 8 * 2 * 4
    assert not entries["outward"]["trained"]
    assert entries["jacobi"]["trained"]
    assert result["pixels_included"]
    assert {"world", "world_hash", "parameters", "machine", "hardware", "versions"} <= set(result)


def test_calls_of_a_data_dependent_decoder_are_those_of_its_frames(folder: Path) -> None:
    world = load(folder)
    bench = DecodeBench(decoders=("jacobi",), frames=4)
    result = bench_decoders(world_subject(world, bench), bench, progress=False)
    # The same frames again, by a session: three of warm-up would be too many, there are two.
    session = world.session(seed=0, decoder="jacobi")
    assert isinstance(session.decoder, JacobiDecoder)
    names = [name for name in world.action_tokenizer.schema.named for _ in range(4)]
    calls = []
    for name in names[:6]:
        session.step(name)
        calls.append(session.calls)
    assert result["warm_up_frames"] == 2
    assert result["decoders"][0]["calls_per_frame"] == sum(calls[2:]) / 4


def test_a_model_that_guesses_for_itself_is_right(folder: Path) -> None:
    """Its draft is the world's own model, in raster order: every guess holds at the first check."""
    names = ("speculative:raster", "raster", "jacobi")
    bench = DecodeBench(decoders=names, frames=3, draft=folder / "model.safetensors")
    result = bench_decoders(world_subject(load(folder), bench), bench, progress=False)
    own, raster, jacobi = result["decoders"]
    assert result["draft_parameters"] == result["parameters"]
    assert (own["guessed_right"], own["calls_per_frame"], own["draft_calls_per_frame"]) == (
        1,
        1,
        64,
    )
    assert (raster["guessed_right"], raster["draft_calls_per_frame"]) == (None, None)
    assert jacobi["guessed_right"] < 1
    assert own["cache_bytes"] == 2 * raster["cache_bytes"]


def test_a_draft_model_of_another_grid_is_refused(folder: Path, tmp_path: Path) -> None:
    model = NextFrameTransformer(tiny_model_config(rows=3))
    save_world_model(tmp_path / "draft.safetensors", model)
    with pytest.raises(ConfigError, match="rows 8 against 3"):
        world_subject(load(folder), DecodeBench(draft=tmp_path / "draft.safetensors"))


def test_frames_that_are_drawn_together_share_their_time_and_calls(tmp_path: Path) -> None:
    world = load(tiny_world(tmp_path / "clips", frames_per_step=4))
    bench = DecodeBench(decoders=("raster",), frames=5)
    result = bench_decoders(world_subject(world, bench), bench, progress=False)
    assert (result["frames"], result["frames_drawn_together"]) == (8, 4)
    assert result["decoders"][0]["calls_per_frame"] == 16


def test_lower_precision_leaves_the_loaded_world_alone(folder: Path) -> None:
    world = load(folder)
    bench = DecodeBench(decoders=("whole_frame",), frames=1, precision="bfloat16")
    result = bench_decoders(world_subject(world, bench), bench, progress=False)
    assert result["precision"] == "bfloat16"
    assert world.model.readout.weight.dtype == torch.float32
    assert result["notes"][0] == "too few frames for a warm-up: the first one counts"


def test_command_measures_a_preset_and_upstreams_design(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["--frames", "2", "--layers", "2", "--decoder", "diagonal", "--decoder", "rows"]
    status = main(["bench", "decode", *SMALL, *words, "--with-upstream", "--json", str(out)])
    assert status == 0
    result = json.loads(out.read_text())
    assert result["model"] == "mineworld_tiny"
    assert result["random_weights"]
    assert (result["layers"], result["rows"], result["columns"]) == (2, 3, 4)
    assert not result["pixels_included"]
    assert [entry["calls_per_frame"] for entry in result["decoders"]] == [6, 3]
    for entry in result["decoders"]:
        assert set(entry) == SPEED
        assert entry["trained"] is None
    (upstream,) = result["upstream"]
    # One call more: the last cell is fed by itself.
    assert (upstream["decoder"], upstream["calls_per_frame"]) == ("diagonal", 7)
    ours = result["decoders"][0]
    assert upstream["times_faster"] == upstream["model_ms_p50"] / ours["model_ms_p50"]
    assert upstream["times_less_work"] == upstream["processor_ms"] / ours["processor_ms"]
    assert upstream["cache_bytes"] == ours["cache_bytes"]


def test_command_without_quality_prints_nothing_but_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--world", str(folder), "--frames", "1", "--clips", "0", "--decoder", "rows"]
    assert main(["bench", "decode", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [entry["decoder"] for entry in result["decoders"]] == ["rows"]
    assert set(result["decoders"][0]) == SPEED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world", "nowhere"], "no world 'nowhere'"),
        (["--world", "WORLD", "--decoder", "spiral"], "unknown decoder or decoding order 'spiral'"),
        (["--world", "WORLD", "--decoder", "jacobi:0"], "needs a positive integer"),
        (["--world", "WORLD", "--decoder", "speculative"], "needs a draft model"),
        (["--model", "driving_small", "--random-weights", "--layers", "9"], "has 3 layers"),
        ([*SMALL, "--draft", "draft.safetensors"], "--draft goes with --world"),
        (["--world", "WORLD", "--rows", "3"], "--rows go with --model"),
        (["--world", "WORLD", "--random-weights"], "--random-weights go with --model"),
        (["--world", "WORLD", "--with-upstream"], "leave out --with-upstream"),
        (["--world", "WORLD", "--json", "/dev/null/x"], "cannot be written"),
        (["--model", "mineworld_tiny"], "add --random-weights"),
        (["--model", "giant", "--random-weights"], "there is no model 'giant'; there are"),
        ([*SMALL, "--layers", "99"], "has 8 layers|has 6 layers"),
        ([*SMALL, "--tokenizer", "blur"], "there is no tokenizer 'blur'"),
        ([*SMALL, "--tokenizer", "omnitokenizer_small"], "takes a convolutional one"),
        ([*SMALL, "--decoder", "grouped"], "groups the codes"),
        ([*SMALL, "--decoder", "rows", "--with-upstream"], "raster and diagonal order alone"),
    ],
)
def test_a_mistake_gives_one_line_and_status_2(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.replace("WORLD", str(folder)) for word in words]
    assert main(["bench", "decode", *filled]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("worldgen: ")
    assert captured.err.count("\n") == 1
    assert any(part in captured.err for part in message.split("|"))


def test_a_tokenizer_of_another_grid_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=r"grid of 14 x 24, the model one of 3 x 4"),
    ):
        preset_subject("mineworld_tiny", DecodeBench(), rows=3, columns=4, tokenizer="vqgan_16x")


def test_a_model_larger_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "worldgen.evaluation.speed.decode_bench.available_memory_megabytes", lambda: 100.0
    )
    with pytest.raises(ConfigError, match=r"take 1,\d{3} MB in float32, and 100 MB"):
        preset_subject("mineworld_300m_16f", DecodeBench())


def test_impossible_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="at least 1 frame"):
        DecodeBench(frames=0)
    with pytest.raises(ConfigError, match="take device cpu"):
        DecodeBench(device="cuda")
