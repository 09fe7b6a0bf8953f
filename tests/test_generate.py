"""`worldgen generate`: what a video begins with, how it ends, and that it goes on as if never stopped."""

import functools
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.factories import tiny_driven_world, tiny_world
from tests.full_disk import full_disk
from worldgen.cli import main
from worldgen.commands.unfinished import Unfinished
from worldgen.data.outputs import FrameOutput
from worldgen.data.video import iterate_video, read_video, write_video
from worldgen.errors import DataError
from worldgen.generation import RolloutLog
from worldgen.generation.editing import extend_backwards
from worldgen.generation.pixels import SessionPixels
from worldgen.pipeline import load
from worldgen.prompt import Prompt

PATIENCE = 300.0
"""Seconds until a test gives up waiting."""
RATE = 16
SCRIPT = "left*3,gas*2,right,nothing*5"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a world that can plan and be led to goals."""
    folder = tmp_path_factory.mktemp("worlds") / "world"
    return str(tiny_world(folder, longest_jump=4, farthest_goal=6))


def generate(world: str | None, out: Path, *words: str) -> int:
    named = () if world is None else ("--world", world)
    return main(["generate", *named, "--out", str(out), "--scale", "1", *words])


def resume(out: Path, *words: str) -> int:
    return main(["generate", "--resume", "--out", str(out), *words])


def pictures(folder: Path) -> np.ndarray:
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{n:06d}.png" for n in range(len(files))]
    return np.stack([np.asarray(Image.open(file)) for file in files])


def frames_of(out: Path) -> np.ndarray:
    return pictures(out) if out.is_dir() else read_video(out)


def nearest(frames: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> list[int]:
    """Return for each frame which of the others is most like it."""
    candidates = np.stack(list(others)).astype(np.int32)
    return [int(np.abs(candidates - frame).mean(axis=(1, 2, 3)).argmin()) for frame in frames]


Whole = Callable[..., Path]


@pytest.fixture(scope="module")
def whole(world: str, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return what gives a video that was never stopped, and is made once; beside it lies its log."""

    @functools.cache
    def made(name: str, *words: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / name
        log = () if "--plan" in words else ("--log", str(out.parent / "log.json"))
        assert generate(world, out, *words, *log) == 0
        return out

    return made


def press_ctrl_c(patch: pytest.MonkeyPatch, frames: int) -> None:
    """Let Ctrl-C come while an output gets that frame, counted from when it was opened."""
    write, written = FrameOutput.write, itertools.count(1)

    def write_until_ctrl_c(*arguments: Any) -> None:
        write(*arguments)
        if next(written) == frames:
            os.kill(os.getpid(), signal.SIGINT)

    patch.setattr(FrameOutput, "write", write_until_ctrl_c)


def test_a_script_is_played_from_a_start(world: str, tmp_path: Path) -> None:
    words = ("--actions", SCRIPT, "--seconds", "1", "--seed", "7", "--start", "1")
    log = tmp_path / "log.json"
    assert generate(world, tmp_path / "out", *words, "--log", str(log)) == 0
    loaded = load(world)
    session = loaded.session(seed=7, start=1)
    script = (["left"] * 3 + ["gas"] * 2 + ["right"] + ["nothing"] * 5) * 2
    expected = [session.frame, *session.play(script[:RATE])]
    assert np.array_equal(pictures(tmp_path / "out"), expected)
    assert RolloutLog.read(log) == session.log()
    # Nothing is left of what it could have gone on from.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.json", "out"]


def test_a_picture_of_any_size_is_the_first_frame(world: str, tmp_path: Path) -> None:
    ramp = np.tile(np.arange(120, dtype=np.uint8)[:, None, None] * 2, (1, 90, 3))
    Image.fromarray(ramp).save(tmp_path / "start.png")
    for fit in ("crop", "pad"):
        words = ("--image", str(tmp_path / "start.png"), "--fit", fit, "--seconds", "0.25")
        assert generate(world, tmp_path / fit, *words) == 0
    cropped, padded = pictures(tmp_path / "crop"), pictures(tmp_path / "pad")
    assert cropped.shape == padded.shape == (5, 64, 64, 3)
    assert not np.array_equal(cropped[0], padded[0])


def test_a_clip_is_gone_on_from(world: str, tmp_path: Path) -> None:
    assert generate(world, tmp_path / "clip.mp4", "--actions", "gas*9", "--scale", "2") == 0
    words = ("--clip", str(tmp_path / "clip.mp4"), "--clip-actions", "gas*9", "--actions", "left*3")
    assert generate(world, tmp_path / "out", *words) == 0
    assert len(pictures(tmp_path / "out")) == 4


def test_a_session_goes_on_as_it_would_have(world: str, tmp_path: Path) -> None:
    session = load(world).session(seed=5)
    frames = list(session.play(["gas"] * 12))
    log = tmp_path / "session.json"
    session.rewind(8)
    session.save(log)
    words = ("--session", str(log), "--actions", "gas*8")
    assert generate(world, tmp_path / "out", *words) == 0
    assert np.array_equal(pictures(tmp_path / "out"), frames[3:])


@pytest.mark.parametrize("name", ["session.json", "session.safetensors"])
def test_a_session_that_was_written_goes_on(world: str, tmp_path: Path, name: str) -> None:
    script, log = ("--actions", "gas*8"), tmp_path / name
    assert generate(world, tmp_path / "first", *script, "--log", str(log)) == 0
    assert generate(world, tmp_path / "second", *script, "--session", str(log)) == 0
    assert generate(world, tmp_path / "whole", "--actions", "gas*16") == 0
    parts = [*pictures(tmp_path / "first"), *pictures(tmp_path / "second")[1:]]
    assert np.array_equal(pictures(tmp_path / "whole"), parts)


def test_an_edit_keeps_every_frame_before_it(world: str, tmp_path: Path) -> None:
    session = load(world).session(seed=5)
    before = [session.frame, *session.play(["gas"] * 20)]
    session.save_state(tmp_path / "session.safetensors")
    words = ("--session", str(tmp_path / "session.safetensors"), "--from-second", "0.5")
    assert generate(world, tmp_path / "out", *words, "--actions", "left*10") == 0
    other = load(world).session(seed=5)
    expected = [*before[:9], *list(other.play(["gas"] * 8 + ["left"] * 10))[8:]]
    edited = pictures(tmp_path / "out")
    assert np.array_equal(edited, expected)
    assert not np.array_equal(edited[9:], before[9:19])


def test_the_way_to_a_picture_ends_with_it_and_a_loop_with_its_beginning(
    world: str, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "end.png")
    words = ("--to", str(tmp_path / "end.png"), "--actions", "gas*6")
    assert generate(world, tmp_path / "way", *words) == 0
    way = pictures(tmp_path / "way")
    assert generate(world, tmp_path / "end", "--image", str(tmp_path / "end.png"), *words[2:]) == 0
    assert len(way) == 7
    assert np.array_equal(way[0], load(world).session().frame)
    assert np.array_equal(way[-1], pictures(tmp_path / "end")[0])
    assert generate(world, tmp_path / "loop", "--loop", "--actions", "gas*6") == 0
    assert len(pictures(tmp_path / "loop")) == 6
    assert np.array_equal(pictures(tmp_path / "loop")[0], way[0])


def test_frames_before_a_clip_lead_to_it(world: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", noise, RATE, lossless=True)
    words = ("--clip", str(tmp_path / "clip.mp4"), "--before", "0.25", "--actions", "gas*4")
    assert generate(world, tmp_path / "out", *words, "--seed", "3") == 0
    loaded = load(world)
    # All of the clip follows, and not only what the world can see.
    clip = Prompt(clip=noise).start(loaded, whole_clip=True)
    assert len(clip.visual_ids) == 9
    expected = extend_backwards(
        loaded.parts,
        clip,
        4,
        ["gas"] * 4,
        candidates=loaded.starts,
        seed=3,
        decoder=loaded.session().decoder,
    )
    shown = SessionPixels(loaded.tokenizer)
    ids = expected.visual_ids
    frames = [shown.frame(number, 0, lambda grid: ids[grid]) for number in range(13)]
    assert np.array_equal(pictures(tmp_path / "out"), frames)


def test_what_follows_a_script_is_chosen(world: str, tmp_path: Path) -> None:
    words = ("--actions", "left*2,gas", "--seconds", "0.5")
    assert generate(world, tmp_path / "out", *words, "--after", "rest") == 0
    session = load(world).session()
    expected = [session.frame, *session.play(["left"] * 2 + ["gas"] + ["nothing"] * 5)]
    assert np.array_equal(pictures(tmp_path / "out"), expected)


def test_the_model_drives_itself(tmp_path: Path) -> None:
    world = str(tiny_driven_world(tmp_path / "world"))
    words = ("--actions", "policy", "--seconds", "0.5", "--seed", "7")
    assert generate(world, tmp_path / "out", *words) == 0
    session = load(world).session(seed=7)
    expected = [session.frame]
    expected += [session.step(session.predict_action()) for _ in range(8)]
    assert np.array_equal(pictures(tmp_path / "out"), expected)


@pytest.mark.parametrize(
    ("name", "stopped"),
    [("long", 1), ("long", 20), ("long", 33), ("long.mp4", 20), ("long.gif", 20)],
)
def test_going_on_gives_the_video_that_was_never_stopped(
    world: str,
    whole: Whole,
    tmp_path: Path,
    name: str,
    stopped: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--actions", SCRIPT, "--seconds", "3", "--seed", "3")
    never_stopped, out = whole(name, *words), tmp_path / "parts" / name
    log = tmp_path / "parts.json"
    with pytest.MonkeyPatch.context() as patch:
        press_ctrl_c(patch, stopped)
        assert generate(world, out, *words, "--log", str(log)) == 130
    assert f"go on with: worldgen generate --resume --out {out}" in capsys.readouterr().err
    # What is there can be played, and its log replayed.
    assert len(frames_of(out)) == len(RolloutLog.read(log).digests) + 1 == stopped
    with pytest.MonkeyPatch.context() as patch:
        press_ctrl_c(patch, 7)
        assert resume(out) == 130
    assert resume(out) == 0
    assert RolloutLog.read(log) == RolloutLog.read(never_stopped.parent / "log.json")
    found, expected = frames_of(out), frames_of(never_stopped)
    assert found.shape == expected.shape == (3 * RATE + 1, 64, 64, 3)
    if name == "long.mp4":
        # Pieces begin at other frames, and the codec loses other details: each is like none but its
        # own.
        assert nearest(found, expected) == list(range(len(expected)))
    else:
        assert np.array_equal(found, expected)
    assert [path.name for path in out.parent.iterdir()] == [name]


@pytest.mark.parametrize("stopped", [1, 20, 33])
def test_plans_go_on_too(world: str, whole: Whole, tmp_path: Path, stopped: int) -> None:
    # Two segments of 32 frames, and the beginning of a third one.
    words = ("--actions", SCRIPT, "--seconds", "4.25", "--plan", "4")
    with pytest.MonkeyPatch.context() as patch:
        press_ctrl_c(patch, stopped)
        assert generate(world, tmp_path / "parts", *words) == 130
    # A segment is made to its end.
    assert len(pictures(tmp_path / "parts")) == {1: 1, 20: 33, 33: 33}[stopped]
    assert resume(tmp_path / "parts") == 0
    assert np.array_equal(pictures(tmp_path / "parts"), pictures(whole("planned", *words)))


def test_an_edit_stopped_before_its_second_goes_on(world: str, tmp_path: Path) -> None:
    session = load(world).session(seed=5)
    list(session.play(["gas"] * 20))
    session.save_state(tmp_path / "session.safetensors")
    session_file = str(tmp_path / "session.safetensors")
    words = ("--session", session_file, "--from-second", "1", "--actions", "left*10")
    assert generate(world, tmp_path / "whole", *words) == 0
    with pytest.MonkeyPatch.context() as patch:
        press_ctrl_c(patch, 6)
        assert generate(world, tmp_path / "parts", *words) == 130
    assert len(pictures(tmp_path / "parts")) == 6
    assert resume(tmp_path / "parts") == 0
    assert np.array_equal(pictures(tmp_path / "parts"), pictures(tmp_path / "whole"))


def test_frames_drawn_together_go_on_from_any_of_them(tmp_path: Path) -> None:
    world = str(tiny_world(tmp_path / "world", frames_per_step=4))
    words = ("--actions", SCRIPT, "--seconds", "1")
    assert generate(world, tmp_path / "whole", *words) == 0
    with pytest.MonkeyPatch.context() as patch:
        press_ctrl_c(patch, 7)
        assert generate(world, tmp_path / "parts", *words) == 130
    assert len(pictures(tmp_path / "parts")) == 7
    assert resume(tmp_path / "parts") == 0
    assert np.array_equal(pictures(tmp_path / "parts"), pictures(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "how long with --seconds"),
        (("--image", "TMP/none.png", "--seconds", "1"), r"no image at .*none\.png"),
        (("--image", "TMP/text.png", "--seconds", "1"), "damaged or not an image"),
        (("--image", "TMP/tiny.png", "--seconds", "1"), "2 x 2 pixels, too few"),
        (("--clip", "TMP/text.png", "--seconds", "1"), "damaged or not a video"),
        (("--text", " ", "--seconds", "1"), "the text is empty"),
        (("--text", "a tree", "--seconds", "1"), "reads no text"),
        (("--actions", "fly"), "no action 'fly'"),
        (("--actions", "TMP/none.txt"), "none.txt cannot be read"),
        (("--actions", "gas*99", "--seconds", "1"), "the script has 99 steps"),
        (("--actions", "policy", "--seconds", "1"), "predicts frames and no actions"),
        (("--seconds", "1e9"), "more than 1,000,000"),
        (("--trajectory", "TMP/none.csv"), "no trajectory at"),
        (("--session", "TMP/none.json", "--seconds", "1"), "cannot read the log"),
        (("--session", "TMP/other.json", "--seconds", "1"), "was made by world"),
        (("--start", "9", "--seconds", "1"), "starts 0 to 1"),
        (("--start", "1", "--image", "TMP/tiny.png", "--seconds", "1"), "begins with one thing"),
        (("--seconds", "1", "--out", "TMP/out.avi"), "ends in '.avi'"),
        (("--seconds", "1", "--out", "TMP/full"), "not empty"),
        (("--seconds", "1", "--out", "/dev/null/x.mp4"), "cannot be written to"),
        (("--seconds", "1", "--plan", "9"), "stride must lie in 2 ... 4"),
        (("--seconds", "1", "--plan", "4", "--loop"), "--plan and --loop do not go together"),
        (("--seconds", "1", "--plan", "4", "--log", "TMP/log.json"), "leave --log out"),
        (("--seconds", "1", "--from-second", "1"), "name it with --session"),
        (("--seconds", "1", "--to", "TMP/none.png"), r"no image at .*none\.png"),
        (("--seconds", "1", "--decoder", "x"), "decoding order"),
        (("--seconds", "1", "--out", "."), "a video needs a name"),
        (("--seconds", "1", "--log", "TMP/out.mp4"), "--log and --out both name"),
        (("--clip", "TMP/out.mp4", "--seconds", "1"), "--out and --clip both name"),
        (("--clip", "TMP/sound.wav", "--seconds", "1"), "no pictures in it"),
        (("--image", "TMP/long.png", "--fit", "pad", "--seconds", "1"), "strip of less than 8"),
        (("--actions", "TMP/script.txt"), "script.txt, line 3: part 2 of the actions, 'fly'"),
        (("--session", "TMP/deep.json", "--seconds", "1"), "deep.json is not JSON"),
        (("--session", "TMP/empty.json", "--seconds", "1"), "empty.json: not a rollout log"),
        (("--before", "1"), "needs what comes after it"),
        (("--before", "1", "--image", "TMP/tiny.png", "--loop"), "--loop and --before do not"),
        (("--before", "1", "--image", "TMP/tiny.png", "--seconds", "1"), "and so does --seconds"),
        (("--after", "last", "--seconds", "1"), "after says what follows a script's end"),
        (("--resume",), "nothing to go on with"),
    ],
)
def test_a_mistake_gives_one_line_and_no_file(
    world: str,
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "tiny.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    Image.fromarray(np.zeros((20, 2000, 3), np.uint8)).save(tmp_path / "long.png")
    (tmp_path / "script.txt").write_text("left*3\n\ngas,fly\n")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "empty.json").write_text("{}")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(800))
    if "TMP/other.json" in words:
        load(tiny_world(tmp_path / "other", seed=1)).session().save(tmp_path / "other.json")
    before = sorted(tmp_path.rglob("*"))
    placed = [word.replace("TMP", str(tmp_path)) for word in words]
    assert generate(world, tmp_path / "out.mp4", *placed) == 2
    told = capsys.readouterr()
    assert re.search(message, told.err)
    assert told.err.startswith("worldgen: ")
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_world_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(None, tmp_path / "out.mp4", "--seconds", "1") == 2
    assert "name it with --world" in capsys.readouterr().err


@pytest.fixture
def stopped(world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Return a video that was stopped."""
    with pytest.MonkeyPatch.context() as patch:
        press_ctrl_c(patch, 20)
        words = ("--actions", SCRIPT, "--seconds", "3", "--seed", "3")
        assert generate(world, tmp_path / "out.mp4", *words) == 130
    capsys.readouterr()
    return tmp_path / "out.mp4"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", "0"), "was begun with --seed 3"),
        (("--decoder", "raster"), "was begun without --decoder"),
        (("--actions", "gas"), "was begun with --actions left"),
        (("--world", "crafter"), "was begun with --world"),
    ],
)
def test_a_video_goes_on_as_it_was_begun(
    stopped: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stopped.read_bytes()
    assert resume(stopped, *words) == 2
    assert message in capsys.readouterr().err
    assert stopped.read_bytes() == before
    # To say the same again is no mistake.
    assert resume(stopped, "--seed", "3", "--actions", SCRIPT) == 0


def test_what_cannot_go_on_is_said(
    world: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(world, stopped, "--seconds", "1") == 2
    assert "is not complete; go on with --resume, or remove" in capsys.readouterr().err
    content = stopped.read_bytes()
    stopped.write_bytes(content[:1000])
    assert resume(stopped) == 2
    assert "it was cut or replaced" in capsys.readouterr().err
    stopped.write_bytes(b"x" * len(content))
    assert resume(stopped) == 2
    assert "was written with other settings" in capsys.readouterr().err
    stopped.unlink()
    assert resume(stopped) == 2
    assert "is not there to go on with" in capsys.readouterr().err
    Unfinished(stopped).session.write_bytes(b"damaged")
    assert resume(stopped) == 2
    assert re.search(r"session\.safetensors", capsys.readouterr().err)


def test_a_world_that_has_changed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = str(tiny_world(tmp_path / "world"))
    with pytest.MonkeyPatch.context() as patch:
        press_ctrl_c(patch, 3)
        assert generate(world, tmp_path / "out.mp4", "--seconds", "1") == 130
    tiny_world(tmp_path / "world", seed=1)
    capsys.readouterr()
    assert resume(tmp_path / "out.mp4") == 2
    assert "was made by world" in capsys.readouterr().err


def start(*words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "worldgen", "generate", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait until something has happened, and no longer than the process that lets it happen."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def playable(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a video whose last piece may be cut."""
    try:
        yield from iterate_video(path)
    except DataError:
        return


@pytest.mark.slow
def test_ctrl_c_and_a_kill_leave_a_video_that_plays_and_goes_on(world: str, tmp_path: Path) -> None:
    out = tmp_path / "long.mp4"
    unfinished = Unfinished(out)
    mark_file = unfinished.folder / "mark.json"
    # Longer than anybody waits.
    words = ("--world", world, "--actions", SCRIPT, "--seconds", "50000", "--out", str(out))
    with start(*words) as process:
        wait_for(mark_file.is_file, process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    first = unfinished.mark()
    assert len(read_video(out)) == first.frames
    with start("--resume", "--out", str(out)) as process:
        wait_for(lambda: unfinished.mark().frames > first.frames, process)
        process.kill()
        process.communicate(timeout=PATIENCE)
    mark = unfinished.mark()
    frames = list(itertools.islice(playable(out), mark.frames))
    assert len(frames) == mark.frames
    # And all of it is what a session gives that was never stopped.
    loaded = load(world)
    session = loaded.load_session(unfinished.session)
    again = loaded.session()
    list(again.play(itertools.islice(_script(), session.frame_index)))
    assert session.frame_index >= mark.frames - 1 > first.frames - 1
    assert session.log() == again.log()
    small = [frame[2::4, 2::4] for frame in frames]
    expected = [again.frame_at(number) for number in range(mark.frames)]
    assert nearest(small, expected) == list(range(mark.frames))


def _script() -> Iterator[str]:
    return itertools.cycle(["left"] * 3 + ["gas"] * 2 + ["right"] + ["nothing"] * 5)


def test_a_full_disk_is_said_and_the_video_goes_on_when_there_is_room(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "long.mp4"
    words = ("--actions", SCRIPT, "--seconds", "8", "--scale", "4")
    with full_disk(400_000):
        assert generate(world, out, *words) == 2
    told = capsys.readouterr().err
    message = r"worldgen: cannot write .*long\.mp4 on after \d+ frames: the disk is full.*\n"
    assert re.fullmatch(message, told), told
    assert 0 < len(read_video(out)) < 8 * RATE + 1
    # Nor does it matter what there is no room for.
    with full_disk(600):
        assert resume(out) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert resume(out) == 0
    assert len(read_video(out)) == 8 * RATE + 1


def test_no_room_for_the_state_is_one_line(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(600):
        assert generate(world, tmp_path / "long", "--seconds", "8") == 2
    assert re.fullmatch(r"worldgen: cannot write .*\n", capsys.readouterr().err)
