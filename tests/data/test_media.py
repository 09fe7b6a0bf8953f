"""A folder of images and videos: what is listed, how it is read, and what becomes of bad files."""

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.factories import car_schema
from worldgen.data.episodes import (
    Column,
    DatasetMetadata,
    Episode,
    EpisodeInfo,
    EpisodeWriter,
)
from worldgen.data.media import MediaFolder, fit, pad
from worldgen.data.video import iterate_video, num_declared_frames, write_video
from worldgen.errors import DataError


def numbered(length: int, height: int = 16, width: int = 24) -> np.ndarray:
    """Return frames of noise, each with its number in the first pixel."""
    frames = np.random.default_rng(0).integers(0, 256, (length, height, width, 3), np.uint8)
    frames[:, 0, 0] = np.arange(length, dtype=np.uint8)[:, None]
    return frames


def numbers(clips: Iterator[np.ndarray]) -> list[list[int]]:
    """Return the numbers that `numbered` wrote into the frames of each clip."""
    return [clip[:, 0, 0, 0].tolist() for clip in clips]


def write_image(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def write_cut_video(path: Path, frames: np.ndarray, share: float, container: str = "mp4") -> None:
    """Write a lossless video whose index stands in front, and cut its end off."""
    buffer = io.BytesIO()
    options = {"movflags": "faststart"} if container == "mp4" else {}
    whole = path.with_name("whole." + container)
    with av.open(str(whole), "w", format=container, options=options) as file:
        stream = file.add_stream("libx264rgb", rate=10, options={"crf": "0", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    buffer.write(whole.read_bytes())
    whole.unlink()
    path.write_bytes(buffer.getvalue()[: int(share * buffer.tell())])


def write_recording(folder: Path, lengths: dict[str, list[int]]) -> None:
    DatasetMetadata(
        environment={"id": "none"},
        frames_per_second=10.0,
        frame_height=16,
        frame_width=24,
        action_schema=car_schema().to_json(),
        columns={"reward": Column(dtype="float32")},
    ).write(folder)
    for split, split_lengths in lengths.items():
        writer = EpisodeWriter(folder / split, 10.0)
        for index, length in enumerate(split_lengths):
            writer.write(
                Episode(
                    frames=numbered(length),
                    actions=np.zeros((length, 2), np.int64),
                    columns={"reward": np.zeros(length, np.float32)},
                    info=EpisodeInfo(index=index, seed=index, length=length, driver="none"),
                )
            )


def test_a_folder_lists_images_and_videos_of_all_its_folders_by_name(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "deep/er/c.webp", "d.bmp", ".hidden.png", ".cache/e.png"):
        write_image(tmp_path / name, numbered(1)[0])
    (tmp_path / "notes.txt").write_text("no picture")
    write_video(tmp_path / "deep" / "clip.mp4", numbered(2), 10.0)
    folder = MediaFolder(tmp_path)
    assert [folder.name(path) for path in folder.images] == [
        "a.jpg",
        "b.PNG",
        "d.bmp",
        "deep/er/c.webp",
    ]
    assert [folder.name(path) for path in folder.videos] == ["deep/clip.mp4"]
    assert folder.skipped == []


def test_recordings_give_the_videos_of_the_complete_episodes_of_a_split(tmp_path: Path) -> None:
    write_recording(tmp_path / "one", {"train": [3], "test": [4, 5]})
    write_recording(tmp_path / "two", {"test": [2]})
    (tmp_path / "one" / "test" / "episode_000000.json").unlink()
    folder = MediaFolder(tmp_path, split="test")
    assert [folder.name(path) for path in folder.videos] == [
        "one/test/episode_000001.mp4",
        "two/test/episode_000000.mp4",
    ]
    assert MediaFolder(tmp_path / "one", split="train").videos[0].parent.name == "train"
    with pytest.raises(DataError, match="name the split to take, one of train, validation, test"):
        MediaFolder(tmp_path / "one")


def test_a_plain_folder_with_a_folder_of_the_split_gives_only_that(tmp_path: Path) -> None:
    for name in ("train/a.png", "test/b.png", "c.png"):
        write_image(tmp_path / name, numbered(1)[0])
    assert [path.name for path in MediaFolder(tmp_path, split="test").images] == ["b.png"]
    assert len(MediaFolder(tmp_path).images) == 3
    assert len(MediaFolder(tmp_path, split="validation").images) == 3


def test_a_missing_an_empty_and_a_split_nobody_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        MediaFolder(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"holds no images and no videos; .*\.bmp, .*\.webp"):
        MediaFolder(tmp_path)
    with pytest.raises(DataError, match="no split 'tset'; there are train, validation, test"):
        MediaFolder(tmp_path, split="tset")


def test_clips_hold_the_frames_in_order_and_drop_what_fills_no_clip(tmp_path: Path) -> None:
    frames = numbered(11)
    write_video(tmp_path / "clip.mp4", frames, 10.0, lossless=True)
    folder = MediaFolder(tmp_path)
    path = folder.videos[0]
    clips = list(folder.read_clips(path, 4))
    assert np.array_equal(np.concatenate(clips), frames[:8])
    assert numbers(folder.read_clips(path, 4, stride=3)) == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
    ]
    assert numbers(folder.read_clips(path, 2, stride=5)) == [[0, 1], [5, 6]]
    assert np.array_equal(np.stack(list(folder.read_frames(path))), frames)
    assert folder.skipped == []


def test_a_video_shorter_than_a_clip_is_listed_with_both_lengths(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", numbered(3), 10.0, lossless=True)
    folder = MediaFolder(tmp_path)
    with pytest.raises(DataError, match="has 3 frames, a clip needs 17"):
        list(folder.read_clips(folder.videos[0], 17))
    assert [entry.reason for entry in folder.skipped] == [
        "has 3 frames, a clip needs 17; ask for shorter clips"
    ]


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_video_that_ends_early_gives_its_whole_clips_and_is_listed(
    tmp_path: Path, container: str
) -> None:
    path = tmp_path / "clip.mp4"
    write_cut_video(path, numbered(40), 0.5, container)
    folder = MediaFolder(tmp_path)
    clips = numbers(folder.try_clips(path, 5))
    assert 2 <= len(clips) <= 4
    assert np.concatenate(clips).tolist() == list(range(5 * len(clips)))
    assert [entry.path for entry in folder.skipped] == [path]
    assert "ends early" in folder.skipped[0].reason or "damaged" in folder.skipped[0].reason
    with pytest.raises(DataError, match=r"ends early|damaged"):
        list(iterate_video(path))


def test_a_video_announces_its_frames_without_being_decoded(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", numbered(11), 10.0, lossless=True)
    assert num_declared_frames(tmp_path / "clip.mp4") == 11
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError, match="damaged or not a video"):
        num_declared_frames(tmp_path / "broken.mp4")


def test_unreadable_files_among_others_are_listed_once_with_their_reason(tmp_path: Path) -> None:
    picture = numbered(1)[0]
    for number in range(5):
        write_image(tmp_path / f"{number}.png", picture)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "z.mp4").write_bytes(b"no video either")
    folder = MediaFolder(tmp_path)
    read = [folder.try_image(path) for path in folder.images for _ in range(2)]
    assert sum(image is not None for image in read) == 6
    assert list(folder.try_clips(folder.videos[0], 1)) == []
    assert [folder.name(entry.path) for entry in folder.skipped] == ["1.png", "3.png", "z.mp4"]
    assert all("damaged or not" in entry.reason for entry in folder.skipped)
    with pytest.raises(DataError, match=r"3\.png is damaged or not an image"):
        folder.read_image(tmp_path / "3.png")


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_images_come_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    picture = numbered(1)[0]
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}", lossless=True)
    folder = MediaFolder(tmp_path)
    read = folder.read_image(folder.images[0])
    assert read.dtype == np.uint8
    assert np.array_equal(read, picture)


def test_grey_palette_sixteen_bit_and_turned_images_become_upright_rgb(tmp_path: Path) -> None:
    ramp = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(ramp).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(ramp.astype(np.uint16) * 256).save(tmp_path / "sixteen.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held on its side: turn right to see it upright
    Image.fromarray(np.rot90(ramp)).save(tmp_path / "turned.png", exif=turned)
    folder = MediaFolder(tmp_path)
    for path in folder.images:
        assert np.array_equal(folder.read_image(path), ramp[..., None].repeat(3, axis=2)), path


def test_fitting_cuts_the_centre_and_scales_without_aliases() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 255
    assert (fit(picture, (40, 40)) == 255).all()
    assert (fit(picture, (10, 10))[:, 1:-1] == 255).all()
    checkered = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    small = fit(checkered[..., None].repeat(3, axis=2).astype(np.uint8), (8, 8))
    assert small.shape == (8, 8, 3)
    assert np.abs(small.astype(int) - 127).max() <= 2
    assert fit(picture, (40, 80)) is picture
    assert fit(picture, (100, 90)).shape == (100, 90, 3)


def test_frames_of_videos_are_fitted_like_images(tmp_path: Path) -> None:
    frames = numbered(3, 20, 30)
    write_video(tmp_path / "clip.mp4", frames, 10.0, lossless=True)
    folder = MediaFolder(tmp_path)
    (clip,) = folder.read_clips(folder.videos[0], 3, (8, 8))
    assert np.array_equal(clip, np.stack([fit(frame, (8, 8)) for frame in frames]))


def test_padding_shows_the_whole_picture_between_bars() -> None:
    picture = np.full((30, 60, 3), 200, np.uint8)
    padded = pad(picture, (64, 64))
    assert padded.shape == (64, 64, 3)
    assert (padded[16:48] == 200).all()
    assert not padded[:16].any()
    assert not padded[48:].any()
    assert np.array_equal(pad(picture, (30, 60)), picture)
    assert pad(picture[:1], (8, 8)).any()
