"""`worldgen import drivingworld`: whole worlds of upstream's files, and one line for what is amiss."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.reference_cases import Case, reference_cases
from worldgen.cli import main
from worldgen.errors import ConfigError, DataError
from worldgen.generation import SamplingConfig
from worldgen.interop.drivingworld import RELEASED
from worldgen.interop.drivingworld_files import read_demo_clip, read_settings
from worldgen.pipeline import World, load

CASES = reference_cases("drivingworld", lambda config: "world_model" in config)
EVERY_CASE = pytest.mark.parametrize("case", CASES)


def settings_of(case: Case) -> dict[str, Any]:
    return {**case.config["tokenizer"], **case.config["world_model"]}


def write_files(case: Case, folder: Path) -> dict[str, str]:
    """Write upstream's two checkpoints and settings; return the words that name them."""
    torch.save(
        {"model": load_file(case.folder / "weights_tokenizer.safetensors"), "steps": 3},
        folder / "vqvae.pt",
    )
    torch.save(
        {"model_state_dict": load_file(case.folder / "weights_gpt.safetensors")},
        folder / "world_model.pth",
    )
    (folder / "settings.json").write_text(json.dumps(settings_of(case)))
    return {
        "--tokenizer": str(folder / "vqvae.pt"),
        "--model": str(folder / "world_model.pth"),
        "--config": str(folder / "settings.json"),
        "--out": str(folder / "world"),
    }


def write_clip(case: Case, folder: Path) -> Path:
    """Write a case's frames and motion in the layout of upstream's demonstration."""
    folder.mkdir(parents=True)
    frames = rearrange(case.inputs["frames"][0], "t rgb h w -> t h w rgb")
    for number, frame in enumerate(((frames + 1) / 2 * 255).round().to(torch.uint8).numpy()):
        # Names whose order as text is another one.
        Image.fromarray(frame).save(folder / f"{8 + number}.png")
    np.save(folder / "pose.npy", case.inputs["pose"].numpy())
    np.save(folder / "yaw.npy", case.inputs["yaw"].numpy())
    return folder


def run(words: dict[str, str]) -> int:
    return main(["import", "drivingworld", *(word for pair in words.items() for word in pair)])


def imported(case: Case, folder: Path) -> World:
    words = write_files(case, folder)
    words["--starts"] = str(write_clip(case, folder / "clips" / "first"))
    assert run(words) == 0
    return load(folder / "world")


def motion_of(case: Case) -> np.ndarray:
    """Return rows of yaw, x and y; row i leads to frame i."""
    inputs = case.inputs
    return torch.cat((inputs["yaw"], inputs["pose"]), dim=-1)[0].double().numpy()


def test_there_are_cases() -> None:
    assert CASES


@EVERY_CASE
def test_a_world_begins_with_upstreams_tokens_and_goes_on_with_them(
    case: Case, tmp_path: Path
) -> None:
    world = imported(case, tmp_path)
    (start,) = world.starts
    assert torch.equal(start.visual_ids, case.outputs["start_tokens"][0])
    motion = motion_of(case)
    context = len(start.visual_ids)
    ids = world.action_tokenizer.encode(motion)
    assert np.array_equal(start.action_ids.numpy(), ids[1:context])
    # Up to here nothing has slid out of the window, so both must draw the same.
    session = world.session(decoder="raster", sampling=SamplingConfig(temperature=0.0))
    frame = session.step(motion[context])
    drawn = rearrange(case.outputs["long_tokens"][0, 0], "row column -> (row column)")
    assert session.ids.tolist() == drawn.tolist()
    theirs = rearrange(case.outputs["long_frames_u8"][0], "rgb h w -> h w rgb").int().numpy()
    # Upstream drops fractions, the library rounds.
    assert np.abs(frame.astype(int) - theirs).max() <= 1


@EVERY_CASE
def test_an_imported_world_is_played_saved_and_replayed(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = write_files(case, tmp_path)
    assert run(words) == 0
    assert "one frame of plain grey" in capsys.readouterr().out
    world = load(tmp_path / "world")
    assert world.card.frames_per_second == 5.0
    assert world.card.training["imported"]["stored_as"]["transformer"] == "float16"
    assert "tokenizer sha256" in (tmp_path / "world" / "card.md").read_text()
    session = world.session(seed=5)
    for action in ("forward", "forward+left", "nothing", "right", "forward"):
        session.step(action)
    session.save(tmp_path / "log.json")
    assert np.array_equal(world.load_session(tmp_path / "log.json").frame, session.frame)


@EVERY_CASE
def test_every_clip_of_a_folder_is_a_start(case: Case, tmp_path: Path) -> None:
    words = write_files(case, tmp_path)
    for name in ("2", "10"):
        write_clip(case, tmp_path / "clips" / name)
    (tmp_path / "clips" / "notes").mkdir()
    words["--starts"] = str(tmp_path / "clips")
    assert run(words) == 0
    world = load(tmp_path / "world")
    assert [text.split(",")[0] for text in world.card.training["starts"]] == ["2", "10"]
    assert torch.equal(world.starts[0].visual_ids, world.starts[1].visual_ids)


@EVERY_CASE
def test_safetensors_give_the_same_world(case: Case, tmp_path: Path) -> None:
    words = write_files(case, tmp_path)
    words["--tokenizer"] = str(case.folder / "weights_tokenizer.safetensors")
    words["--model"] = str(case.folder / "weights_gpt.safetensors")
    assert run(words) == 0
    first = load(tmp_path / "world")
    assert run({**write_files(case, tmp_path), "--out": str(tmp_path / "second")}) == 0
    assert load(tmp_path / "second").model.config == first.model.config
    ids = first.starts[0].visual_ids.view(1, 1, first.tokenizer.rows, -1)
    second = load(tmp_path / "second")
    assert torch.equal(first.tokenizer.decode(ids), second.tokenizer.decode(ids))


# What is amiss.


def refused(words: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    """Import, and return the one line that says why nothing came of it."""
    capsys.readouterr()
    assert run(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("worldgen: ")
    assert message.count("\n") == 1
    assert not Path(words["--out"]).exists()
    return message


@EVERY_CASE
def test_files_that_do_not_fit_are_refused_in_one_line(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = write_files(case, tmp_path)
    other = {**words, "--tokenizer": words["--model"], "--model": words["--tokenizer"]}
    assert "must hold one codebook" in refused(other, capsys)
    message = refused({**words, "--model": words["--tokenizer"]}, capsys)
    assert message.partition("missing ")[2].startswith(("sos_emb", "time_emb")), message
    assert "no checkpoint at" in refused({**words, "--model": str(tmp_path / "none.pth")}, capsys)

    weights = load_file(case.folder / "weights_gpt.safetensors")
    half = {name: value for name, value in weights.items() if not name.startswith("head.")}
    save_file(half, tmp_path / "half.safetensors")
    message = refused({**words, "--model": str(tmp_path / "half.safetensors")}, capsys)
    assert "missing head.0.weight" in message

    whole = (tmp_path / "vqvae.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    message = refused({**words, "--tokenizer": str(tmp_path / "cut.pt")}, capsys)
    assert "is damaged or not a torch checkpoint" in message

    torch.save({"w": torch.ones(1), "hidden": print}, tmp_path / "code.pth")
    assert "could run code" in refused({**words, "--model": str(tmp_path / "code.pth")}, capsys)

    # Without settings the sizes of the release are expected.
    message = refused({k: v for k, v in words.items() if k != "--config"}, capsys)
    assert "wrong shape" in message


@EVERY_CASE
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embd": 128}, "wrong shape"),
        ({"codebook_size": 32}, "wrong shape"),
        ({"yaw_vocab_size": 65}, "wrong shape"),
        ({"n_head": 7}, "num_heads must divide width"),
        ({"image_size": [6, 11]}, "6 x 11 pixels do not divide"),
        ({"image_size": "6x10"}, "image_size must be a list of 2 whole numbers above 0"),
        ({"n_layer": [1, 1, 1]}, "n_layer must be a list of 2 whole numbers above 0"),
        ({"condition_frames": 0}, "condition_frames must be a number above 0, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    case: Case,
    change: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = write_files(case, tmp_path)
    Path(words["--config"]).write_text(json.dumps(settings_of(case) | change))
    assert message in refused(words, capsys)


def test_settings_are_data(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("image_size: [64, 128]\nsampling_mtd: top_k\n")
    settings = read_settings(path)
    assert settings["image_size"] == [64, 128]
    assert settings["n_embd"] == RELEASED["n_embd"]
    path.write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="no JSON or YAML of plain values"):
        read_settings(path)
    path.write_text("seed = 1234\nimage_size = [256, 512]\n")
    with pytest.raises(ConfigError, match="holds no mapping"):
        read_settings(path)
    with pytest.raises(ConfigError, match="no settings at"):
        read_settings(tmp_path / "none.json")


# Clips of the demonstration.


def plain_clip(folder: Path, frames: int = 3, rows: int = 5) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(frames):
        picture = np.full((20, 30, 3), 40 * number, np.uint8)
        Image.fromarray(picture).save(folder / f"frame_{number}.png")
    np.save(folder / "pose.npy", np.arange(2.0 * rows).reshape(1, rows, 2) / 10)
    np.save(folder / "yaw.npy", np.arange(1.0 * rows).reshape(1, rows, 1))
    return folder


def test_motion_of_a_clip_leads_from_each_frame_to_the_next(tmp_path: Path) -> None:
    frames, motion = read_demo_clip(plain_clip(tmp_path / "clip"), (8, 16), 2)
    assert frames.shape == (2, 8, 16, 3)
    assert frames[1, 0, 0].tolist() == [40] * 3
    # The row that led to the first frame is left out; those behind the last one are kept.
    assert motion[:2].tolist() == [[1.0, 0.2, 0.3], [2.0, 0.4, 0.5]]
    assert len(motion) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda clip: (clip / "yaw.npy").unlink(), "cannot read .*yaw.npy"),
        (lambda clip: (clip / "pose.npy").unlink(), "holds no pose.npy"),
        (lambda clip: np.save(clip / "yaw.npy", np.zeros((1, 4, 1))), "has 5 rows and .* has 4"),
        (lambda clip: np.save(clip / "pose.npy", np.zeros((1, 5, 3))), r"got \[1, 5, 3\]"),
        (lambda clip: np.save(clip / "pose.npy", np.array(["a"])), "no array of numbers"),
        (
            lambda clip: np.save(clip / "pose.npy", np.array([{}]), allow_pickle=True),
            "cannot read .*pose.npy",
        ),
        (
            lambda clip: np.save(clip / "pose.npy", np.full((1, 5, 2), np.inf)),
            "has no ego motion in row 1",
        ),
        (lambda clip: (clip / "frame_1.png").write_bytes(b"no"), "frame_1.png is damaged"),
        (lambda clip: [path.unlink() for path in clip.glob("*.png")], "holds no PNG files"),
        (lambda clip: plain_clip(clip, rows=2), "has 2 rows for 3 frames"),
    ],
)
def test_a_clip_that_is_not_whole_is_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    clip = plain_clip(tmp_path / "clip")
    spoil(clip)
    with pytest.raises(DataError, match=message):
        read_demo_clip(clip, (8, 16), 15)


@EVERY_CASE
def test_starts_that_do_not_fit_are_told(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = write_files(case, tmp_path)
    (tmp_path / "empty").mkdir()
    message = refused({**words, "--starts": str(tmp_path / "empty")}, capsys)
    assert "holds no clips" in message
    assert "no folder at" in refused({**words, "--starts": str(tmp_path / "none")}, capsys)
    clip = write_clip(case, tmp_path / "clip")
    np.save(clip / "pose.npy", case.inputs["pose"].numpy() * 0 - 3)
    assert run({**words, "--starts": str(clip)}) == 0
    note = capsys.readouterr().err
    assert "x reaches -3 metres a step" in note
