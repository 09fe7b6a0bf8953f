"""Prompts of every kind become a start and actions of a world, or say clearly why not."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.factories import tiny_driven_world, tiny_world
from worldgen.data.video import write_video
from worldgen.errors import ActionError, ConfigError, DataError, WorldgenError
from worldgen.generation import Session
from worldgen.pipeline import World, load
from worldgen.prompt import Prompt
from worldgen.records import to_float
from worldgen.tokenizers.text import TextTokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(tiny_world(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose grids stand for four frames."""
    return load(tiny_world(tmp_path_factory.mktemp("world"), frames_per_step=4))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def encoded(world: World, frame: np.ndarray) -> torch.Tensor:
    ids: torch.Tensor = world.tokenizer.encode(to_float(torch.from_numpy(frame))[None, None])
    return ids.flatten()


def taken(prompt: Prompt, world: World, count: int) -> list[list[float]]:
    return [row.tolist() for row in itertools.islice(prompt.actions_of(world), count)]


def test_an_image_of_the_frame_size_is_the_first_frame(world: World, tmp_path: Path) -> None:
    picture = noise(64, 64)
    Image.fromarray(picture).save(tmp_path / "start.png")
    said: list[str] = []
    start = Prompt(image=tmp_path / "start.png").start(world, note=said.append)
    assert torch.equal(start.visual_ids, encoded(world, picture)[None])
    assert start.action_ids.shape == (0, 2)
    assert said == []
    given = Prompt(image=picture).start(world)
    assert torch.equal(given.visual_ids, start.visual_ids)


def test_an_image_of_another_size_is_cropped_or_padded_and_this_is_said(world: World) -> None:
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = noise(64, 64)
    said: list[str] = []
    cropped = Prompt(image=wide).start(world, note=said.append)
    assert torch.equal(cropped.visual_ids[0], encoded(world, wide[:, 32:96]))
    padded = Prompt(image=np.full((64, 128, 3), 200, np.uint8), fit="pad").start(
        world, note=said.append
    )
    expected = np.zeros((64, 64, 3), np.uint8)
    expected[16:48] = 200
    assert torch.equal(padded.visual_ids[0], encoded(world, expected))
    assert "128 x 64" in said[0]
    assert "centred part" in said[0]
    assert "black bars" in said[1]


def test_images_that_say_nothing_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10 x 12 pixels, too few for frames of 64 x 64"):
        Prompt(image=noise(12, 10)).start(world)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="damaged or not an image"):
        Prompt(image=tmp_path / "broken.png").start(world)
    with pytest.raises(DataError, match="no image at"):
        Prompt(image=tmp_path / "missing.png").start(world)
    with pytest.raises(DataError, match=r"uint8 \[height, width, 3\], got float64"):
        Prompt(image=np.zeros((64, 64, 3))).start(world)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [8.0, 16.0, 24.0, 48.0])
def test_a_clip_of_any_rate_is_resampled_by_the_nearest_time(world: World, rate: float) -> None:
    frames = noise(13, 64, 64)
    start = Prompt(clip=frames, clip_frames_per_second=rate).start(world)
    # The world plays 16 frames a second.
    count = int(12 / rate * 16 + 1e-9) + 1
    times = np.arange(count) / 16
    nearest = np.abs(times[:, None] - np.arange(13) / rate).argmin(axis=1)
    expected = torch.stack([encoded(world, frames[index]) for index in nearest])
    assert len(start.visual_ids) <= count
    assert torch.equal(start.visual_ids, expected[-len(start.visual_ids) :])


def test_a_clip_is_cut_to_what_the_layers_see_and_see_through(world: World) -> None:
    frames, said = noise(30, 64, 64), list[str]()
    start = Prompt(clip=frames).start(world, note=said.append)
    # Windows of 2, 1 and 4 frames.
    assert len(start.visual_ids) == 1 + 1 + 0 + 3
    assert "the last 5 of 30 frames" in said[0]
    session = world.session(start=start)
    longer = Prompt(clip=frames).start(world)
    other = world.session(start=longer)
    assert np.array_equal(session.step("left"), other.step("left"))


def test_a_clip_in_a_file_begins_a_session_with_its_actions(world: World, tmp_path: Path) -> None:
    frames = noise(6, 64, 64)
    write_video(tmp_path / "clip.mp4", frames, 16.0, lossless=True)
    np.savez(tmp_path / "clip.npz", action=np.array([[n % 3, 1] for n in range(6)]))
    by_array = Prompt(clip=frames, clip_actions="brake*6").start(world)
    by_file = Prompt(clip=tmp_path / "clip.mp4", clip_actions=tmp_path / "clip.npz").start(world)
    assert torch.equal(by_array.visual_ids, by_file.visual_ids)
    encode = world.action_tokenizer.encode
    assert by_file.action_ids.tolist() == [
        encode(np.array([n % 3, 1])).tolist() for n in range(1, 5)
    ]
    assert by_array.action_ids.tolist() == [encode(np.array([0, 2])).tolist()] * 4
    rest = Prompt(clip=frames).start(world)
    assert rest.action_ids.tolist() == [encode(np.array([0, 0])).tolist()] * 4


def test_actions_of_a_clip_go_with_the_frames_that_are_shown(world: World) -> None:
    actions = np.array([[n % 3, n // 3 % 3] for n in range(9)])
    prompt = Prompt(clip=noise(9, 64, 64), clip_frames_per_second=32.0, clip_actions=actions)
    expected = world.action_tokenizer.encode(actions[[0, 2, 4, 6]])
    assert np.array_equal(prompt.start(world).action_ids.numpy(), expected)
    with pytest.raises(DataError, match="9 frames and actions of 3"):
        Prompt(clip=noise(9, 64, 64), clip_actions=actions[:3]).start(world)


def test_a_clip_of_a_world_of_clips_is_whole_grids(clips: World) -> None:
    start = Prompt(clip=noise(7, 64, 64), clip_actions="left*7").start(clips)
    assert start.visual_ids.shape == (2, 64)
    assert start.action_ids.shape == (1, 8)
    expected = clips.tokenizer.encode(to_float(torch.from_numpy(noise(7, 64, 64)[2:]))[None])
    assert torch.equal(start.visual_ids, expected[0].flatten(1))


def test_an_empty_clip_and_one_that_is_no_video_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no frames"):
        Prompt(clip=noise(0, 64, 64)).start(world)
    with pytest.raises(DataError, match="no video at"):
        Prompt(clip=tmp_path / "missing.mp4").start(world)
    (tmp_path / "text.mp4").write_text("no video", encoding="utf-8")
    with pytest.raises(DataError, match="damaged or not a video"):
        Prompt(clip=tmp_path / "text.mp4").start(world)
    (tmp_path / "text.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match="does not hold the actions of a recorded episode"):
        Prompt(clip=noise(2, 64, 64), clip_actions=tmp_path / "text.npz").start(world)


@pytest.mark.parametrize("name", ["world", "clips"])
def test_a_saved_session_goes_on_as_it_would_have(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    world: World = request.getfixturevalue(name)
    session = world.session(seed=5, start=1)
    list(session.play(["left", "gas", "left", "gas", "gas"]))
    session.save(tmp_path / "session.json")
    again = Prompt(session=tmp_path / "session.json").begin(world)
    assert again.frame_index == 5
    frames = list(again.play(["right", "brake"]))
    assert all(map(np.array_equal, frames, session.play(["right", "brake"])))
    # With another seed it is a new one, with all frames as its context.
    other = Prompt(session=tmp_path / "session.json").begin(world, seed=6)
    assert other.frame_index == 0
    assert len(other.start.visual_ids) == 4 + (5 if name == "world" else 2)
    assert other.seed == 6


def test_without_anything_the_first_start_of_the_world_rests(world: World) -> None:
    prompt = Prompt()
    assert prompt.start(world) is world.starts[0]
    assert prompt.begin(world, seed=1).log().start == 0
    assert Prompt(start_index=1).begin(world).log().start == 1
    assert taken(prompt, world, 3) == [[0, 0]] * 3
    with pytest.raises(ConfigError, match="starts 0 to 1, got 2"):
        Prompt(start_index=2).start(world)


def test_scripts_are_strings_files_and_arrays(world: World, tmp_path: Path) -> None:
    text = "left*2,gas"
    (tmp_path / "script.txt").write_text("# first\nleft*2,\n\ngas\n", encoding="utf-8")
    expected = [[1, 0], [1, 0], [0, 1]]
    for script in (text, tmp_path / "script.txt", str(tmp_path / "script.txt"), np.array(expected)):
        assert taken(Prompt(actions=script), world, 3) == expected


def test_what_follows_a_script_is_stated(world: World) -> None:
    script = "left*2,gas"
    assert taken(Prompt(actions=script), world, 5)[3:] == [[1, 0], [1, 0]]
    assert taken(Prompt(actions=script, after="repeat"), world, 5)[3:] == [[1, 0], [1, 0]]
    assert taken(Prompt(actions=script, after="last"), world, 5)[3:] == [[0, 1], [0, 1]]
    assert taken(Prompt(actions=script, after="rest"), world, 5)[3:] == [[0, 0], [0, 0]]
    assert len(list(Prompt(actions=script).actions_of(world, steps=7))) == 7


def test_scripts_that_do_not_fit_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ActionError, match="there is no action 'fly'"):
        Prompt(actions="left,fly").actions_of(world)
    with pytest.raises(ActionError, match=r"20 steps, 1.25 s, and the video 16, 1 s"):
        Prompt(actions="left*20").actions_of(world, steps=16)
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ActionError, match="holds no actions"):
        Prompt(actions=tmp_path / "empty.txt").actions_of(world)
    with pytest.raises(DataError, match="cannot be read"):
        Prompt(actions="missing.txt").actions_of(world)
    with pytest.raises(ActionError, match=r"\[step, group\]"):
        Prompt(actions=np.zeros(2, np.int64)).actions_of(world)
    with pytest.raises(ActionError):
        Prompt(actions=np.array([[0, 7]])).actions_of(world)


def test_a_function_of_the_session_chooses(world: World) -> None:
    def alternate(session: Session) -> str:
        return "left" if session.frame_index % 2 else "gas"

    session = world.session(seed=2)
    played = list(
        session.play(Prompt(actions=alternate).actions_of(world, steps=4, session=session))
    )
    other = world.session(seed=2)
    assert all(map(np.array_equal, played, other.play(["gas", "left", "gas", "left"])))
    with pytest.raises(ActionError, match="not known beforehand"):
        Prompt(actions=alternate).actions_of(world, steps=4)


def test_frames_that_are_drawn_together_share_what_was_chosen(clips: World) -> None:
    asked: list[int] = []

    def choose(session: Session) -> str:
        asked.append(session.frame_index)
        return "left"

    session = clips.session()
    list(session.play(Prompt(actions=choose).actions_of(clips, steps=8, session=session)))
    assert asked == [0, 4]


def test_a_world_that_predicts_no_actions_says_so(world: World) -> None:
    session = world.session()
    with pytest.raises(ActionError, match="predicts frames and no actions"):
        Prompt(actions="policy").actions_of(world, steps=4, session=session)


def test_a_world_that_drives_follows_its_own_model_and_trajectories(tmp_path: Path) -> None:
    world = load(tiny_driven_world(tmp_path / "driven"))
    session = world.session(seed=1)
    expected = session.predict_action()
    actions = Prompt(actions="policy").actions_of(world, steps=2, session=session)
    assert np.array_equal(next(actions), expected)
    drive = tmp_path / "drive.csv"
    drive.write_text("# steps_per_second: 16\nyaw_deg,x_m,y_m\n0,1,0\n1,1,0\n", encoding="utf-8")
    prompt = Prompt(trajectory=drive)
    script = prompt.script(world)
    assert script is not None
    assert script.shape == (2, 3)
    followed = list(prompt.actions_of(world, steps=4))
    assert all(np.array_equal(row, script[-1]) for row in followed[1:])


def test_a_trajectory_needs_a_world_that_is_driven(world: World, tmp_path: Path) -> None:
    drive = tmp_path / "drive.csv"
    drive.write_text("# steps_per_second: 16\nyaw_deg,x_m,y_m\n0,1,0\n1,1,0\n", encoding="utf-8")
    with pytest.raises(ActionError):
        Prompt(trajectory=drive).actions_of(world)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"image": "a.png", "clip": "b.mp4"}, "begins with one thing, got image and clip"),
        ({"image": "a.png", "start_index": 1}, "image and start_index"),
        ({"session": "a.json", "text": "a tree"}, "goes on with the text that it began with"),
        ({"actions": "left", "trajectory": "a.csv"}, "actions and trajectory both"),
        ({"clip_actions": "left"}, "belong to a clip"),
        ({"clip": "a.mp4", "clip_frames_per_second": 5.0}, "tells its own rate"),
        ({"clip": noise(1, 8, 8), "clip_frames_per_second": 0.0}, "above 0"),
        ({"text": "  "}, "the text is empty"),
        ({"image": "a.png", "fit": "stretch"}, "fit must be one of crop, pad"),
        ({"actions": "left", "after": "loop"}, "after must be one of repeat, last, rest"),
        ({"actions": "policy", "after": "last"}, "without a script leave it out"),
    ],
)
def test_contradictions_are_one_clear_message(parts: dict[str, object], message: str) -> None:
    with pytest.raises(WorldgenError, match=message):
        Prompt(**parts)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that reads text."""
    pytest.importorskip("tokenizers")
    folder = tiny_world(tmp_path_factory.mktemp("told"), text_vocabulary_size=300, sink=1)
    TextTokenizer.train(["water to the north", "beside a tree"], 300).save(folder / "text.json")
    return load(folder)


def test_text_alone_draws_the_first_frame(told: World) -> None:
    prompt = Prompt(text="a tree to the north")
    start = prompt.start(told)
    assert start.visual_ids.shape == (0, 64)
    assert start.text_ids is not None
    assert torch.equal(start.text_ids, told.text_ids("a tree to the north"))
    session = prompt.begin(told, seed=4)
    assert np.array_equal(session.ids, told.session(start=start, seed=4).ids)
    other = Prompt(text="water").begin(told, seed=4)
    assert not np.array_equal(session.ids, other.ids)


def test_text_stands_in_front_of_what_is_given_beside_it(told: World) -> None:
    words = "beside a tree"
    picture = Prompt(image=noise(64, 64), text=words).start(told)
    assert torch.equal(picture.visual_ids, Prompt(image=noise(64, 64)).start(told).visual_ids)
    shipped = Prompt(start_index=1, text=words).start(told)
    assert torch.equal(shipped.visual_ids, told.starts[1].visual_ids)
    for start in (picture, shipped):
        assert start.text_ids is not None
        assert torch.equal(start.text_ids, told.text_ids(words))
    assert Prompt(start_index=1).start(told).text_ids is None
    with pytest.raises(ConfigError, match="there is room for 66"):
        Prompt(text="water " * 70).start(told)


def test_text_needs_a_world_that_was_trained_with_it(world: World) -> None:
    with pytest.raises(ConfigError, match="reads no text"):
        Prompt(text="a tree").start(world)
