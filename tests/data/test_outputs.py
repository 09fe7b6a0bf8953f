"""Outputs that grow: what is written comes back, goes on from any mark, and survives a full disk."""

import re
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.full_disk import full_disk
from worldgen.data.outputs import FrameOutput, Mark, open_output
from worldgen.data.video import iterate_timed_video, num_declared_frames, read_video
from worldgen.errors import DataError

RATE = 5.0
"""So that pieces are of five frames, and tests small."""
FILES = ("out.mp4", "out.webm", "out.gif")
OUTPUTS = (*FILES, "out")


def pictures(length: int, height: int = 16, width: int = 12) -> np.ndarray:
    """Return frames of noise, few enough colours for a GIF to keep them all."""
    return np.random.default_rng(0).integers(0, 256, (length, height, width, 3), np.uint8)


def write(path: Path, frames: Iterable[np.ndarray], **options: object) -> None:
    with open_output(path, RATE, lossless=True, **options) as output:  # type: ignore[arg-type]
        for frame in frames:
            output.write(frame)
        output.finish()


def read(path: Path) -> np.ndarray:
    """Return every frame of an output, decoded by others than those that wrote it."""
    if path.is_dir():
        files = sorted(path.iterdir())
        assert [file.name for file in files] == [f"{n:06d}.png" for n in range(len(files))]
        return np.stack([np.asarray(Image.open(file)) for file in files])
    if path.suffix == ".gif":
        with Image.open(path) as picture:
            frames = []
            for number in range(picture.n_frames):  # type: ignore[attr-defined]
                picture.seek(number)
                frames.append(np.asarray(picture.convert("RGB")))
        return np.stack(frames)
    return read_video(path)


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_frame_comes_back_enlarged(tmp_path: Path, name: str) -> None:
    frames = pictures(12)
    write(tmp_path / "new" / name, frames, scale=2)
    expected = frames.repeat(2, axis=1).repeat(2, axis=2)
    assert np.array_equal(read(tmp_path / "new" / name), expected)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("stopped", [3, 5, 11])
def test_going_on_from_a_mark_gives_what_one_go_gives(
    tmp_path: Path, name: str, stopped: int
) -> None:
    frames = pictures(14)
    path = tmp_path / name
    with open_output(path, RATE, lossless=True) as output:
        for frame in frames[:stopped]:
            output.write(frame)
        mark = output.settle()
        # These are lost: the mark is before them.
        for frame in frames[:2]:
            output.write(frame)
    assert mark.frames == stopped
    with open_output(path, RATE, lossless=True, go_on=mark) as output:
        for frame in frames[stopped:]:
            output.write(frame)
        output.finish()
    assert np.array_equal(read(path), frames)


@pytest.mark.parametrize("name", FILES)
def test_times_go_on_too(tmp_path: Path, name: str) -> None:
    frames = pictures(7)
    path = tmp_path / name
    with open_output(path, 50 / 3, lossless=True) as output:
        for frame in frames[:3]:
            output.write(frame)
        mark = output.settle()
    with open_output(path, 50 / 3, lossless=True, go_on=mark) as output:
        for frame in frames[3:]:
            output.write(frame)
        output.finish()
    times = [time for time, _ in iterate_timed_video(path)]
    assert np.allclose(times, np.arange(7) * 0.06, atol=1e-3)


@pytest.mark.parametrize("name", FILES)
def test_what_is_on_disk_can_be_played_while_the_file_grows(tmp_path: Path, name: str) -> None:
    frames = pictures(12)
    path = tmp_path / name
    with open_output(path, RATE, lossless=True) as output:
        for count, frame in enumerate(frames, start=1):
            output.write(frame)
            if count in {6, 10, 12}:
                whole = count // 5 * 5
                assert np.array_equal(read(path)[:whole], frames[:whole])
    assert np.array_equal(read(path), frames)


@pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
def test_a_complete_video_tells_its_length(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, pictures(12))
    with av.open(str(tmp_path / name)) as container:
        assert container.duration == pytest.approx(12 / RATE * 1e6, rel=0.01)
        assert container.streams.video[0].average_rate == RATE
    if name.endswith(".mp4"):
        assert num_declared_frames(tmp_path / name) == 12


@pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
def test_lossy_videos_are_close(tmp_path: Path, name: str) -> None:
    ramp = np.broadcast_to(np.arange(0, 128, 4, dtype=np.uint8)[:, None, None], (32, 32, 3))
    with open_output(tmp_path / name, RATE) as output:
        for _ in range(7):
            output.write(ramp)
        output.finish()
    found = read_video(tmp_path / name)
    assert len(found) == 7
    assert np.abs(found.astype(int) - ramp).mean() < 3


def test_a_gif_of_many_colours_is_close_and_goes_round_for_ever(tmp_path: Path) -> None:
    across = np.linspace(0, 255, 64, dtype=np.uint8)
    frame = np.stack(np.broadcast_arrays(across[:, None], across[None], 90), axis=2)
    write(tmp_path / "out.gif", [frame.astype(np.uint8)] * 2)
    assert np.abs(read(tmp_path / "out.gif").astype(int) - frame).mean() < 6
    with Image.open(tmp_path / "out.gif") as picture:
        assert picture.info["loop"] == 0
        assert picture.info["duration"] == 200


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_error_leaves_what_was_written(tmp_path: Path, name: str) -> None:
    frames = pictures(8)
    with pytest.raises(DataError, match=r"change size: first \(16, 12\), now \(8, 8\)"):
        write(tmp_path / name, [*frames, *pictures(1, 8, 8)])
    assert np.array_equal(read(tmp_path / name), frames)


def refuse(output: FrameOutput, frame: np.ndarray, message: str) -> None:
    with output, pytest.raises(DataError, match=message):
        output.write(frame)


def test_frames_of_wrong_shapes_are_refused(tmp_path: Path) -> None:
    message = r"uint8 \[height, width, 3\], got float64 \(4, 4, 3\)"
    refuse(open_output(tmp_path / "out", RATE), np.zeros((4, 4, 3)), message)
    odd = np.zeros((5, 4, 3), np.uint8)
    refuse(open_output(tmp_path / "out.mp4", RATE), odd, "even sides, got 5x4")
    refuse(open_output(tmp_path / "out.webm", RATE, scale=3), odd, "even sides, got 15x12")
    large = open_output(tmp_path / "out.gif", RATE, scale=20_000)
    refuse(large, odd, "at most 65,535 pixels, got 100000")


def test_outputs_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in '\.avi'; frames go to \.mp4, \.webm, \.gif"):
        open_output(tmp_path / "out.avi", RATE)
    write(tmp_path / "out", pictures(1))
    with pytest.raises(DataError, match="there already and not empty"):
        open_output(tmp_path / "out", RATE)


def test_going_on_needs_the_file_of_the_mark(tmp_path: Path) -> None:
    mark = Mark(frames=3, size=1000)
    with pytest.raises(DataError, match="is not there to go on with"):
        open_output(tmp_path / "out.mp4", RATE, go_on=mark)
    (tmp_path / "out.mp4").write_bytes(b"short")
    with pytest.raises(DataError, match="has 5 bytes, of the 1,000 that were written"):
        open_output(tmp_path / "out.mp4", RATE, go_on=mark)
    assert (tmp_path / "out.mp4").read_bytes() == b"short"
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"has no 000002\.png"):
        open_output(tmp_path / "out", RATE, go_on=mark)
    with open_output(tmp_path / "out.webm", RATE, lossless=True) as output:
        output.write(pictures(1)[0])
        mark = output.settle()
    with pytest.raises(DataError, match="written with other settings"):
        write(tmp_path / "out.webm", pictures(1), scale=2, go_on=mark)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_disk_is_said_and_what_fitted_can_be_played(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    # A picture is a file of its own, and the third one is too large.
    frames = [np.zeros((40, 40, 3), np.uint8)] * 2 + list(pictures(50, 40, 40))
    room = 2000 if name == "out" else 100_000
    with full_disk(room), pytest.raises(DataError, match="the disk is full; these") as told:
        write(path, frames)
    count = int(re.search(r"after (\d+) frames", str(told.value))[1])  # type: ignore[index]
    assert 0 < count < len(frames)
    assert len(read(path)) == count
