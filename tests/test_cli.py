"""The command line: what it writes, its exit statuses, and one clear line for every mistake."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.factories import tiny_world
from worldgen.cli import main
from worldgen.data.video import read_video
from worldgen.evaluation.clips import ClipSpec, write_clip_specs
from worldgen.generation import RolloutLog, Session
from worldgen.pipeline import EnvironmentCard, load
from worldgen.tokenizers.action import parse_actions

PATIENCE = 120.0
"""Seconds until a test gives up waiting."""


@pytest.fixture
def world(tmp_path: Path) -> str:
    """Return the folder of a tiny world."""
    return str(tiny_world(tmp_path / "world"))


def record(world: str, log: Path, *more: str) -> None:
    """Roll out a few steps and log them."""
    actions = ["--actions", "left*2,gas*4", "--seed", "3", "--log", str(log)]
    assert main(["rollout", "--world", world, *actions, *more]) == 0


def test_a_rollout_writes_a_video_of_every_frame_and_a_log(world: str, tmp_path: Path) -> None:
    video, log = tmp_path / "rollout.mp4", tmp_path / "rollout.json"
    record(world, log, "--out", str(video), "--scale", "2")
    assert read_video(video).shape == (7, 128, 128, 3)
    session = load(world).session(seed=3)
    for action in ["left"] * 2 + ["gas"] * 4:
        session.step(action)
    assert RolloutLog.read(log) == session.log()


def test_repeating_a_list_of_actions_is_writing_it_several_times(
    world: str, tmp_path: Path
) -> None:
    once, thrice = tmp_path / "once.json", tmp_path / "thrice.json"
    base = ["rollout", "--world", world]
    assert main([*base, "--actions", "left,gas", "--repeat", "3", "--log", str(thrice)]) == 0
    assert main([*base, "--actions", "left,gas,left,gas,left,gas", "--log", str(once)]) == 0
    assert RolloutLog.read(once) == RolloutLog.read(thrice)


def test_sampling_decoder_and_start_are_those_of_the_options(world: str, tmp_path: Path) -> None:
    log = tmp_path / "rollout.json"
    options = ["--temperature", "0.5", "--top-p", "0.9", "--decoder", "raster", "--start", "1"]
    record(world, log, *options)
    written = RolloutLog.read(log)
    assert (written.sampling.temperature, written.sampling.top_p) == (0.5, 0.9)
    assert (written.decoder, written.start) == ("raster", 1)


def test_replaying_a_log_prints_its_hash_and_writes_the_same_video(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, log = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "rollout.json"
    record(world, log, "--out", str(first))
    capsys.readouterr()
    assert main(["replay", str(log), "--verify", "--world", world, "--out", str(again)]) == 0
    assert f"identical: 6 frames, hash {RolloutLog.read(log).total_hash}" in capsys.readouterr().out
    assert (read_video(first) == read_video(again)).all()


def test_verifying_names_the_first_frame_that_differs(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "rollout.json"
    record(world, log)
    written = RolloutLog.read(log)
    digests = list(written.digests)
    digests[3] = digests[5] = "0" * 16
    changed = RolloutLog(**{**vars(written), "digests": tuple(digests)})
    changed.write(log)
    capsys.readouterr()
    assert main(["replay", str(log), "--verify", "--world", world]) == 1
    assert "different from frame 4 of 6 on: the log says 0000" in capsys.readouterr().out
    video = tmp_path / "replay.mp4"
    assert main(["replay", str(log), "--world", world, "--out", str(video)]) == 0
    assert len(read_video(video)) == 7


def test_a_log_of_another_world_is_refused(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "rollout.json"
    record(world, log)
    assert main(["replay", str(log)]) == 2
    assert "made by world 'tiny', which is not among the shipped" in capsys.readouterr().err
    other = tiny_world(tmp_path / "other", seed=1)
    assert main(["replay", str(log), "--world", str(other)]) == 2
    assert "the log was made by world" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollout", "--world", "nowhere", "--actions", "left"], "no world 'nowhere'"),
        (["rollout", "--world", "WORLD", "--actions", "lefft"], r"no action 'lefft' \(did you"),
        (["rollout", "--world", "WORLD", "--actions", "left*0"], "whole number from 1"),
        (
            ["rollout", "--world", "WORLD", "--actions", "left*9999", "--repeat", "9999"],
            "more than 1,000,000",
        ),
        (["rollout", "--world", "WORLD", "--actions", "gas", "--start", "9"], "starts 0 to 1"),
        (["rollout", "--world", "WORLD", "--actions", "gas", "--decoder", "x"], "decoding order"),
        (["rollout", "--world", "WORLD", "--actions", "gas", "--temperature", "-1"], "temperature"),
        (["rollout", "--world", "WORLD", "--actions", "gas", "--out", "WORLD"], "not empty"),
        (["rollout", "--world", "WORLD", "--actions", "gas", "--out", "a.avi"], "ends in '.avi'"),
        (["rollout", "--world", "WORLD", "--actions", "gas", "--log", "WORLD"], "it is a folder"),
        (["rollout", "--world", "WORLD", "--actions", "gas", "--log", "/dev/null/x"], "cannot be"),
        (["replay", "WORLD/nothing.json"], "cannot read the log"),
        (["replay", "WORLD/world.json"], "not a rollout log"),
        (["info", "nowhere"], "no world 'nowhere'"),
        (["bench", "play", "--world", "nowhere"], "no world 'nowhere'"),
        (["evaluate", "world", "--world", "nowhere"], "no world 'nowhere'"),
        (["play", "--world", "nowhere", "--no-browser"], "no world 'nowhere'"),
    ],
)
def test_a_mistake_gives_one_line_and_status_2(
    world: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("WORLD", world) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("worldgen: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert re.search(message, captured.err)


def test_a_taken_port_gives_one_line(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["play", "--world", world, "--port", port, "--no-browser"]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


def test_playing_serves_the_page_until_ctrl_c(world: str) -> None:
    words = ["play", "--world", world, "--port", "0", "--no-browser"]
    with subprocess.Popen(
        [sys.executable, "-m", "worldgen", *words], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r"http://\S+", line)
        assert address, line
        with urllib.request.urlopen(address[0], timeout=PATIENCE) as page:
            assert b"<html" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 0
        assert "Traceback" not in process.stderr.read()


def test_damaged_weights_give_one_line(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path(world, "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(["info", world]) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_words_that_the_parser_does_not_know_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (["fly"], ["play", "--port", "70000"], ["bench", "play"], []):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
    with pytest.raises(SystemExit):
        main(["play", "--port", "70000"])
    assert "needs a whole number, 0 to 65535, got '70000'" in capsys.readouterr().err


def test_info_tells_sizes_actions_and_keys(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", world]) == 0
    text = capsys.readouterr().out
    assert "visual tokens per frame: 64" in text
    assert "steering: none, left, right" in text
    assert "left: ArrowLeft" in text
    assert main(["info", world, "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    model = load(world).model
    assert description["parameters"]["world_model"] == sum(p.numel() for p in model.parameters())
    assert description["hash"] == load(world).hash


def test_an_interrupted_rollout_keeps_what_it_has(
    world: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    video, log = tmp_path / "rollout.mp4", tmp_path / "rollout.json"
    words = ["--actions", "left*100000", "--out", str(video), "--log", str(log)]
    advance, taken = Session.advance, itertools.count(1)

    def advance_until_ctrl_c(*arguments: Any) -> None:
        if next(taken) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        advance(*arguments)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(Session, "advance", advance_until_ctrl_c)
        assert main(["rollout", "--world", world, *words]) == 130
    assert "of 100000 steps; all of these are written" in capsys.readouterr().err
    steps = len(RolloutLog.read(log).actions)
    assert steps >= 20
    assert len(read_video(video)) == steps + 1
    assert main(["replay", str(log), "--verify", "--world", world]) == 0


def test_help_answers_without_importing_torch() -> None:
    code = (
        "import sys, worldgen.cli as cli\n"
        "try:\n    cli.main(['rollout', '--help'])\n"
        "except SystemExit:\n    sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0
    assert "--actions" in result.stdout


def test_a_reader_that_leaves_is_no_error(world: str) -> None:
    command = [sys.executable, "-m", "worldgen", "info", world]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.slow
def test_evaluating_writes_figures_and_a_report_and_prints_a_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("Box2D")
    environment = EnvironmentCard(id="envs.car_racing:worldgen/CarRacing-v0")
    world = tiny_world(tmp_path / "world", environment=environment)
    actions = parse_actions("gas*40,left+gas*40", load(world).action_tokenizer.schema)
    specs = [ClipSpec(seed=seed, context_end=16, actions=actions) for seed in (3, 4)]
    write_clip_specs(world / "evaluation.json", specs, context=8, horizon=64)
    figures, report = tmp_path / "out.json", tmp_path / "out.html"
    words = ["--world", str(world), "--clips", "2", "--json", str(figures), "--html", str(report)]
    assert main(["evaluate", "world", *words]) == 0
    assert json.loads(figures.read_text())["world"] == "tiny"
    assert "<html" in report.read_text()
    assert re.search(r"PSNR on test frames: \d", capsys.readouterr().out)


@pytest.mark.slow
def test_the_benchmark_prints_nothing_but_json(
    world: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "play", "--world", world, "--frames", "8", "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    wanted = {"world", "frames_per_second", "latency_ms_p50", "latency_ms_p95"}
    assert wanted | {"hardware", "versions"} <= set(figures)
