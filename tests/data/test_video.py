"""Video files: what is written comes back, frame by frame, and bad files are named."""

from pathlib import Path

import av
import numpy as np
import pytest

from worldgen.data.video import (
    at_rate,
    iterate_timed_video,
    num_declared_frames,
    read_video,
    write_video,
)
from worldgen.errors import DataError


def _noise(length: int, height: int = 16, width: int = 24) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (length, height, width, 3), np.uint8)


def test_lossless_video_returns_every_value_of_every_frame(tmp_path: Path) -> None:
    frames = _noise(70)
    write_video(tmp_path / "noise.mp4", frames, 50 / 3, lossless=True)
    assert np.array_equal(read_video(tmp_path / "noise.mp4"), frames)


def test_lossless_video_has_key_frames_at_most_thirty_apart_and_no_reordering(
    tmp_path: Path,
) -> None:
    write_video(tmp_path / "noise.mp4", _noise(70), 20.0, lossless=True)
    with av.open(str(tmp_path / "noise.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        keys = [index for index, packet in enumerate(packets) if packet.is_keyframe]
        assert container.streams.video[0].average_rate == 20
    assert max(np.diff([*keys, 70])) <= 30
    assert all(packet.pts == packet.dts for packet in packets)


def test_lossy_video_of_a_smooth_picture_is_close_and_scaled(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(0, 128, 4, dtype=np.uint8)[:, None, None], (32, 32, 3))
    write_video(tmp_path / "ramp.mp4", (ramp for _ in range(5)), 10.0, scale=2)
    frames = read_video(tmp_path / "ramp.mp4")
    assert frames.shape == (5, 64, 64, 3)
    assert np.abs(frames[:, ::2, ::2].astype(int) - ramp).mean() < 3


def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, _noise(3), 10.0, lossless=True)
    before = path.read_bytes()
    with pytest.raises(DataError, match="change size: first"):
        write_video(path, [_noise(1)[0], _noise(1, 8, 8)[0]], 10.0, lossless=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_frames_make_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no frames to write"):
        write_video(tmp_path / "clip.mp4", [], 10.0)
    assert not list(tmp_path.iterdir())


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no video at .*none\.mp4"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(DataError, match=r"text\.mp4 is damaged or not a video"):
        read_video(tmp_path / "text.mp4")


@pytest.mark.parametrize("function", [read_video, num_declared_frames])
def test_a_codec_that_nobody_knows_is_a_clear_message(tmp_path: Path, function: object) -> None:
    path = tmp_path / "noise.mp4"
    write_video(path, _noise(3), 10.0, lossless=True)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert callable(function)
    with pytest.raises(DataError, match="in a codec unknown here"):
        function(path)


def test_names_in_strange_bytes_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "noise.mp4"
    write_video(path, _noise(3), 10.0, lossless=True)
    content = path.read_bytes()
    assert b"VideoHandler" in content
    path.write_bytes(content.replace(b"VideoHandler", b"\xceideoHandler"))
    assert np.array_equal(read_video(path), _noise(3))
    assert num_declared_frames(path) == 3


def test_frames_come_with_their_times_from_the_key_frame_before_a_start(tmp_path: Path) -> None:
    frames = _noise(70)
    write_video(tmp_path / "noise.mp4", frames, 20.0, lossless=True)
    timed = list(iterate_timed_video(tmp_path / "noise.mp4", start=2.0))
    times = [time for time, _ in timed]
    assert 0 < times[0] <= 2.0
    assert np.allclose(times, times[0] + np.arange(len(timed)) / 20)
    first = round(times[0] * 20)
    assert np.array_equal(np.stack([frame for _, frame in timed]), frames[first:])
    whole = [time for time, _ in iterate_timed_video(tmp_path / "noise.mp4")]
    assert np.allclose(whole, np.arange(70) / 20)


def test_another_rate_takes_the_frames_that_are_nearest_in_time() -> None:
    frames = _noise(4)
    uneven = zip((5.0, 5.1, 5.35, 5.4), frames, strict=True)
    numbers, chosen = zip(*at_rate(uneven, 10.0), strict=True)
    # 0.2 s is nearer to 0.1 s than to 0.35 s.
    assert numbers == (0, 1, 1, 2, 3)
    assert all(
        np.array_equal(frame, frames[number]) for number, frame in zip(numbers, chosen, strict=True)
    )
    even = [(number / 30, frame) for number, frame in enumerate(frames)]
    assert [number for number, _ in at_rate(even, 30.0)] == [0, 1, 2, 3]
    assert [number for number, _ in at_rate(even, 60.0)] == [0, 0, 1, 1, 2, 2, 3]
    assert [number for number, _ in at_rate(even[:1], 7.0)] == [0]
    assert list(at_rate([], 7.0)) == []
