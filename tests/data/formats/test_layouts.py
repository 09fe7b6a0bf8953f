"""What all layouts share: finding the right one, cutting into episodes, scaling, our own format."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.data.formats.synthetic import RATE, line, numbers, picture, write_vpt
from worldgen.data.episodes import (
    Column,
    Dataset,
    DatasetMetadata,
    Episode,
    EpisodeInfo,
    EpisodeWriter,
)
from worldgen.data.formats import LAYOUTS, Content, Reading, ReadOptions, open_layout
from worldgen.data.formats.base import CUT, Step, cut_into_episodes
from worldgen.data.formats.frames import resize, video_facts
from worldgen.errors import ConfigError, DataError
from worldgen.tokenizers.action import ActionSchema, Categorical

SCHEMA = ActionSchema(groups=(Categorical("move", ("none", "left", "right")),))


def test_a_folder_that_fits_nothing_is_told_every_known_layout(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "words.jsonl").write_text("no json\n")
    with pytest.raises(DataError) as error:
        open_layout(tmp_path)
    for layout in LAYOUTS:
        assert f"{layout.name}: {layout.looks_like}" in str(error.value)
    with pytest.raises(DataError, match=r"nothing at .*; give a folder"):
        open_layout(tmp_path / "missing")


def _steps(numbers_or_gaps: str) -> Iterator[Step | None]:
    """Yield a step for each digit and a gap for each dash."""
    for sign in numbers_or_gaps:
        if sign == "-":
            yield None
        else:
            number = int(sign)
            yield Step(
                frame=picture(number), action=np.array([number % 3]), values={"number": number}
            )


@pytest.mark.parametrize(
    ("steps", "longest", "expected"),
    [
        ("01234", 9, ["01234"]),
        ("01-34", 9, ["01", "34"]),
        ("--012---5-67", 9, ["012", "67"]),
        ("0123456", 3, ["012", "345"]),
        ("01234567", 3, ["012", "345", "67"]),
        ("0-1-2", 9, []),
        ("", 9, []),
    ],
)
def test_episodes_end_at_gaps_and_at_the_longest_length_and_hold_two_frames(
    steps: str, longest: int, expected: list[str]
) -> None:
    content = Content(
        schema=SCHEMA,
        columns={"number": Column(dtype="int64"), "cut": CUT},
        frames_per_second=RATE,
        frame_size=(36, 64),
    )
    episodes = list(cut_into_episodes(_steps(steps), content, longest, driver="hand"))
    found = ["".join(map(str, episode.columns["number"])) for episode in episodes]
    assert found == expected
    for index, episode in enumerate(episodes):
        assert numbers(episode.frames) == episode.columns["number"].tolist()
        assert episode.actions[:, 0].tolist() == [n % 3 for n in numbers(episode.frames)]
        assert np.flatnonzero(episode.columns["cut"]).tolist() == [episode.info.length - 1]
        assert (episode.info.index, episode.info.driver) == (index, "hand")


def _plain_resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale by the definition: linear weights, as wide as the area that a pixel stands for."""

    def weights(before: int, after: int) -> np.ndarray:
        scale = max(1.0, before / after)
        centres = (np.arange(after) + 0.5) * before / after
        distance = np.abs(np.arange(before) + 0.5 - centres[:, None]) / scale
        rows = np.clip(1 - distance, 0, None)
        normed: np.ndarray = rows / rows.sum(axis=1, keepdims=True)
        return normed

    rows = weights(frame.shape[0], size[0])
    columns = weights(frame.shape[1], size[1])
    scaled: np.ndarray = np.einsum("yh,xw,hwc->yxc", rows, columns, frame.astype(float))
    return scaled


@pytest.mark.parametrize("size", [(22, 38), (12, 48), (72, 128), (36, 64)])
def test_scaling_averages_over_the_area_and_keeps_the_whole_picture(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (36, 64, 3), np.uint8)
    scaled = resize(frame, size, Reading())
    assert scaled.shape == (*size, 3)
    assert np.abs(scaled - _plain_resize(frame, size)).max() <= 1.5


def test_cropping_keeps_the_middle_and_its_proportions() -> None:
    frame = np.zeros((36, 64, 3), np.uint8)
    frame[:, 14:50] = np.random.default_rng(0).integers(0, 256, (36, 36, 3), np.uint8)
    reading = Reading(options=ReadOptions(size=(18, 18), crop=True))
    cropped = resize(frame, (18, 18), reading)
    difference = np.abs(cropped - _plain_resize(frame[:, 14:50], (18, 18)))
    # Pixels at the cut are means with what lies beyond it.
    assert difference[:, 1:-1].max() <= 1.5
    wide = resize(frame, (12, 64), Reading(options=ReadOptions(size=(12, 64), crop=True)))
    assert np.array_equal(wide, frame[12:24])


def test_facts_of_a_video_need_no_decoding(tmp_path: Path) -> None:
    write_vpt(tmp_path / "one", [line()] * 33)
    facts = video_facts(tmp_path / "one.mp4")
    assert (facts.frames, facts.missing, facts.height, facts.width) == (33, 0, 36, 64)
    assert (facts.frames_per_second, facts.codec) == (20.0, "h264")
    (tmp_path / "one.mp4").write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged or not a video"):
        video_facts(tmp_path / "one.mp4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 64)}, "use 1 or more"),
        ({"gui": "blur"}, "use drop or keep"),
        ({"episode_frames": 1}, "use 2 or more"),
        ({"frames_per_second": 0.0}, "use a number above 0"),
        ({"crop": True}, "give height and width"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReadOptions(**options)  # type: ignore[arg-type]


def _native(folder: Path, environment: dict[str, object] | None) -> None:
    DatasetMetadata(
        environment=environment,
        frames_per_second=RATE,
        frame_height=36,
        frame_width=64,
        action_schema=SCHEMA.to_json(),
        columns={"reward": Column(dtype="float32"), "cut": CUT},
    ).write(folder)
    for split, index, first in (("train", 0, 0), ("train", 1, 20), ("test", 0, 40)):
        EpisodeWriter(folder / split, RATE).write(
            Episode(
                frames=np.stack([picture(first + step) for step in range(20)]),
                actions=np.arange(20)[:, None] % 3,
                columns={
                    "reward": np.arange(20, dtype=np.float32),
                    "cut": np.arange(20) == 19,
                },
                info=EpisodeInfo(index=index, seed=7, length=20, driver="hand", split=split),
            )
        )


def test_our_own_episodes_are_a_layout_too(tmp_path: Path) -> None:
    _native(tmp_path, {"id": "toy", "options": {}})
    layout = open_layout(tmp_path)
    assert [recording.split for recording in layout.recordings()] == ["train", "train", "test"]
    reading = Reading(options=ReadOptions(size=(18, 32), episode_frames=12))
    episodes = list(layout.episodes(reading))
    assert [episode.info.length for episode in episodes] == [12, 8] * 3
    assert [number for episode in episodes for number in numbers(episode.frames)] == list(range(60))
    assert np.concatenate([episode.columns["reward"] for episode in episodes]).tolist() == (
        list(range(20)) * 3
    )
    assert episodes[0].frames.shape == (12, 18, 32, 3)
    report = layout.inspect()
    assert report.notes == ("environment: toy",)
    assert report.action_schema == ("move (none, left, right)",)
    assert not report.problems


def test_a_recording_without_an_environment_is_read_back(tmp_path: Path) -> None:
    _native(tmp_path, None)
    assert Dataset(tmp_path).metadata.environment is None
    assert open_layout(tmp_path).inspect().notes == ("environment: none",)


def test_damaged_episodes_of_our_own_are_reported(tmp_path: Path) -> None:
    _native(tmp_path, None)
    (tmp_path / "train/episode_000000.npz").write_bytes(b"nothing")
    (tmp_path / "train/episode_000001.json").unlink()
    report = open_layout(tmp_path).inspect()
    assert [problem.path for problem in report.problems] == ["train/episode_000000.json", "train"]
    assert "1 episodes were begun and not finished" in report.problems[1].message
    reading = Reading()
    assert len(list(open_layout(tmp_path).episodes(reading))) == 1
    assert len(reading.problems) == 1
