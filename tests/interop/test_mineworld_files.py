"""`worldgen import mineworld`: whole worlds of upstream's files, and one line for what is amiss."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.reference_cases import Case, reference_cases
from worldgen.checkpoint import load_tensors
from worldgen.cli import main
from worldgen.data.video import write_video
from worldgen.generation import SamplingConfig
from worldgen.pipeline import World, load
from worldgen.tokenizers.action.minecraft import to_schema_action

CASES = reference_cases("mineworld", lambda config: config.get("kind") == "session")
EVERY_CASE = pytest.mark.parametrize("case", CASES)


def write_config(case: Case, folder: Path) -> Path:
    """Write upstream's YAML of a case, and the tokenizer's settings where the YAML says."""
    model = copy.deepcopy(case.config["model"])
    model["params"]["tokenizer_config"]["params"] = {
        "config_path": "checkpoints/vae/config.json",
        "ckpt_path": "checkpoints/vae/vae.ckpt",
    }
    (folder / "checkpoints" / "vae").mkdir(parents=True)
    settings = json.dumps(case.config["vae_config"])
    (folder / "checkpoints" / "vae" / "config.json").write_text(settings)
    (folder / "configs").mkdir()
    path = folder / "configs" / "tiny.yaml"
    path.write_text(yaml.safe_dump({"model": model}))
    return path


def frame_size(case: Case) -> list[str]:
    height, width = case.config["image_size"]
    return ["--height", str(height), "--width", str(width)]


def run(*words: str | Path) -> int:
    return main(["import", "mineworld", *map(str, words)])


def imported(case: Case, folder: Path, *words: str | Path, checkpoint: Path | None = None) -> World:
    config = write_config(case, folder)
    given = checkpoint or case.folder / "checkpoint.ckpt"
    out = folder / "world"
    files: list[str | Path] = ["--config", config, "--checkpoint", given, "--out", out]
    assert run(*files, *frame_size(case), *words) == 0
    return load(out)


def recorded_start(case: Case, folder: Path) -> list[str | Path]:
    """Write the case's first frames and their actions; return the words that name them."""
    video, lines = folder / "first.mp4", folder / "first.jsonl"
    frames = case.inputs["reference_images_u8"].numpy()
    write_video(video, frames, 20.0, lossless=True)
    actions = json.loads((case.folder / "session.json").read_text())["reference_actions"]
    # As JSON or as Python prints it: upstream's files have both.
    written = [
        json.dumps(action) if number % 2 else str(action) for number, action in enumerate(actions)
    ]
    lines.write_text("".join(line + "\n" for line in written))
    return ["--start", video, "--start-actions", lines]


def played_actions(case: Case, world: World) -> list[Any]:
    schema = world.action_tokenizer.schema
    steps = json.loads((case.folder / "session.json").read_text())["steps"]
    return [
        to_schema_action(
            dict.fromkeys(step["buttons"], 1) | {"camera": [step["camera_y"], step["camera_x"]]},
            schema,
        )
        for step in steps
    ]


def test_there_are_cases() -> None:
    assert CASES


@EVERY_CASE
def test_a_world_begins_and_goes_on_with_upstreams_tokens(case: Case, tmp_path: Path) -> None:
    world = imported(case, tmp_path, *recorded_start(case, tmp_path))
    outputs = case.outputs
    (start,) = world.starts
    assert torch.equal(start.visual_ids, outputs["reference_ids"])
    offset = case.config["grid"]["action_vocab_offset"]
    assert torch.equal(start.action_ids + offset, outputs["reference_action_ids"])

    # In raster order nothing is drawn from places that are not written yet, so until upstream
    # computes its context anew both must draw the same.
    actions = played_actions(case, world)
    ids = torch.from_numpy(np.stack([world.action_tokenizer.encode(each) for each in actions]))
    assert torch.equal(ids + offset, outputs["raster.action_ids"])
    session = world.session(decoder="raster", sampling=SamplingConfig(temperature=0.0))
    slid = outputs["raster.context_slid"].tolist()
    same = slid.index(1) if 1 in slid else len(slid)
    assert same
    for action, drawn in zip(actions[:same], outputs["raster.frame_ids"][:same], strict=True):
        session.step(action)
        assert session.ids.tolist() == drawn.tolist()


@EVERY_CASE
def test_pixels_are_upstreams_within_one_level(case: Case, tmp_path: Path) -> None:
    tokenizer = imported(case, tmp_path).tokenizer
    for name in ("raster", f"diag_w{case.config['diag_windowsize']}"):
        ids = case.outputs[f"{name}.frame_ids"].unflatten(1, (tokenizer.rows, -1))
        decoded = rearrange(tokenizer.decode(ids[:, None]), "t 1 rgb h w -> t h w rgb")
        # Upstream drops fractions, the library rounds.
        levels = ((decoded + 1) / 2 * 255).round().int()
        assert int((levels - case.outputs[f"{name}.frames_u8"].int()).abs().max()) <= 1


@EVERY_CASE
def test_an_imported_world_is_played_saved_and_replayed(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = imported(case, tmp_path)
    assert "one frame of plain grey" in capsys.readouterr().out
    assert world.card.name == "world"
    assert world.card.frames_per_second == 20.0
    assert world.card.training["imported"]["stored_as"]["transformer"] == "float32"
    assert "checkpoint_sha256" in world.card.training["imported"]
    assert "plain grey" in (world.folder / "card.md").read_text()
    session = world.session(seed=5)
    first = session.frame
    assert first.shape == (*case.config["image_size"], 3)
    for action in ("forward+jump", "look_left+attack", "hotbar.3+sprint+forward"):
        session.step(action)
    session.save(tmp_path / "log.json")
    again = world.load_session(tmp_path / "log.json")
    assert np.array_equal(again.frame, session.frame)
    assert not np.array_equal(session.frame, first)
    assert world.card.decoders == ("diagonal", "diagonal:2", "diagonal:4", "raster")
    for decoder in world.card.decoders[1:3]:
        world.session(seed=5, decoder=decoder).step("forward+jump")
    # The schema's page: keys, mouse buttons and pointer are on the card.
    assert {"KeyW", "Mouse0"} <= world.action_tokenizer.schema.keys.keys()
    assert set(world.action_tokenizer.schema.pointer) == {"x", "y"}


@EVERY_CASE
def test_transformer_and_tokenizer_may_lie_in_two_files(case: Case, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    whole = imported(case, tmp_path / "one")
    parts = split(case)
    (tmp_path / "two").mkdir()
    torch.save(parts["transformer."], tmp_path / "two" / "pytorch_model.bin")
    vae = tmp_path / "two" / "vae.safetensors"
    save_file({f"model.{name}": value for name, value in parts["tokenizer.model."].items()}, vae)
    words: list[str | Path] = ["--tokenizer", vae]
    model = tmp_path / "two" / "pytorch_model.bin"
    two = imported(case, tmp_path / "two", *words, checkpoint=model)
    assert two.card.training["imported"]["tokenizer"] == "vae.safetensors"
    for name in ("tokenizer", "model"):
        ours, theirs = (
            load_tensors(world.folder / f"{name}.safetensors")[0] for world in (whole, two)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def split(case: Case) -> dict[str, dict[str, Tensor]]:
    """Return the transformer's weights by their whole names, the tokenizer's without prefix."""
    tensors = load_file(case.weights)
    prefix = "tokenizer.model."
    return {
        "transformer.": {name: value for name, value in tensors.items() if prefix not in name},
        prefix: {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        },
    }


@EVERY_CASE
def test_files_that_the_yaml_names_are_found_from_its_folder(case: Case, tmp_path: Path) -> None:
    parts = split(case)
    model = tmp_path / "300M.safetensors"
    save_file(parts["transformer."], model)
    config = write_config(case, tmp_path)
    torch.save({"state_dict": parts["tokenizer.model."]}, tmp_path / "checkpoints/vae/vae.ckpt")
    out = tmp_path / "world"
    words: list[str | Path] = ["--config", config, "--checkpoint", model, "--out", out]
    assert run(*words, *frame_size(case)) == 0
    assert load(out).card.training["imported"]["tokenizer"] == "vae.ckpt"


@EVERY_CASE
def test_weights_keep_the_precision_that_they_came_in(case: Case, tmp_path: Path) -> None:
    tensors = load_file(case.weights)
    half = {
        name: value.bfloat16() if name.startswith("transformer.") else value.half()
        for name, value in tensors.items()
    }
    save_file(half, tmp_path / "half.safetensors")
    world = imported(case, tmp_path, checkpoint=tmp_path / "half.safetensors")
    record = world.card.training["imported"]["stored_as"]
    assert record == {"tokenizer": "float16", "transformer": "bfloat16"}
    for name, kind in (("tokenizer", torch.float16), ("model", torch.bfloat16)):
        stored, _ = load_tensors(world.folder / f"{name}.safetensors")
        assert {value.dtype for value in stored.values()} == {kind}
    # Computed with in float32, and exactly what was given.
    embedding = half["transformer.model.embed_tokens.weight"].float()
    assert torch.equal(world.model.embedding.weight, embedding)


def test_a_cases_own_configuration_says_how_large_frames_are(tmp_path: Path) -> None:
    case = first_case()
    words: list[str | Path] = ["--checkpoint", case.weights, "--out", tmp_path / "world"]
    assert run("--config", case.folder / "config.json", *words) == 0
    tokenizer = load(tmp_path / "world").tokenizer
    assert [tokenizer.frame_height, tokenizer.frame_width] == case.config["image_size"]


def test_a_picture_of_any_size_is_a_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = first_case()
    frame = case.inputs["reference_images_u8"][0].numpy()
    # Each pixel three times, so that shrinking gives it back.
    Image.fromarray(frame.repeat(3, axis=0).repeat(3, axis=1)).save(tmp_path / "large.png")
    Image.fromarray(frame).save(tmp_path / "exact.png")
    for name in ("exact", "large"):
        (tmp_path / name).mkdir()
        world = imported(case, tmp_path / name, "--start", tmp_path / f"{name}.png")
        assert f"begins with {name}.png, the first 1 frame\n" in capsys.readouterr().out
        (start,) = world.starts
        assert start.visual_ids.shape == (1, world.tokenizer.rows * world.tokenizer.columns)
        assert len(start.action_ids) == 0
        if name == "exact":
            assert torch.equal(start.visual_ids, case.outputs["reference_ids"][:1])
        world.session().step("forward")


def first_case() -> Case:
    case = CASES[0].values[0]
    assert isinstance(case, Case)
    return case


# What is amiss.


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch hacked",))


def set_size(folder: Path, key: str, value: object) -> None:
    path = folder / "configs" / "tiny.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["model"]["params"]["transformer_config"]["params"][key] = value
    path.write_text(yaml.safe_dump(tree))


def replace_in_config(folder: Path, old: str, new: str) -> None:
    path = folder / "configs" / "tiny.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def write_yaml(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "configs" / "tiny.yaml").write_text(text)


def write_settings(change: dict[str, object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        path = folder / "checkpoints" / "vae" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return write


def drop_tokenizer(folder: Path) -> None:
    torch.save(split(first_case())["transformer."], folder / "x.ckpt")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "other width": (
        lambda folder: set_size(folder, "intermediate_size", 40),
        "x.ckpt does not fit the configuration given with it: missing nothing, unexpected nothing, "
        "wrong shape transformer.model.layers.0.mlp.gate_proj.weight (96, 48) instead of (40, 48)",
    ),
    "fewer layers": (
        lambda folder: set_size(folder, "num_hidden_layers", 1),
        "unexpected transformer.model.layers.1.input_layernorm.weight,",
    ),
    "more layers": (
        lambda folder: set_size(folder, "num_hidden_layers", 3),
        "missing transformer.model.layers.2.input_layernorm.weight, transformer.model.layers.2.self_attn",
    ),
    "another class": (
        lambda folder: replace_in_config(folder, "lvm.LlamaLVM", "os.system"),
        "tiny.yaml: model.target must be 'lvm.LlamaLVM', got 'os.system'",
    ),
    "another tokenizer": (
        lambda folder: replace_in_config(folder, "vae.VAE", "subprocess.run"),
        "tokenizer_config.target must be 'vae.VAE', got 'subprocess.run'",
    ),
    "a list": (write_yaml("[1, 2]"), "tiny.yaml holds no mapping"),
    "nothing": (write_yaml(""), "tiny.yaml holds no mapping"),
    "another mapping": (write_yaml("a: 1"), "tiny.yaml: model must be a mapping with target"),
    "broken": (write_yaml("model:\n  - a\n b: ]"), "tiny.yaml is no YAML of plain values"),
    "code": (
        write_yaml("model: !!python/object/apply:os.system ['touch hacked']"),
        "tiny.yaml is no YAML of plain values (could not determine a constructor for the tag",
    ),
    "no configuration": (
        lambda folder: (folder / "configs" / "tiny.yaml").unlink(),
        "no configuration at",
    ),
    "few ids": (
        lambda folder: set_size(folder, "vocab_size", 100),
        "vocab_size must be at least 116: 48 visual ids and 68 of actions, got 100",
    ),
    "no settings": (
        lambda folder: (folder / "checkpoints/vae/config.json").unlink(),
        "give upstream's checkpoints/vae/config.json with --tokenizer-config",
    ),
    "other settings": (
        write_settings({"_class_name": "AutoencoderKL"}),
        "config.json: _class_name must be 'VQModel', got 'AutoencoderKL'",
    ),
    "senseless settings": (
        write_settings({"block_out_channels": "wide", "down_block_types": None}),
        "config.json: ",
    ),
    "other codes": (
        write_settings({"num_vq_embeddings": 47}),
        "wrong shape tokenizer.model.quantize.embedding.weight (48, 6) instead of (47, 6)",
    ),
    "no tokenizer": (drop_tokenizer, "holds no visual tokenizer"),
    "no checkpoint": (lambda folder: (folder / "x.ckpt").unlink(), "no checkpoint at"),
    "cut checkpoint": (
        lambda folder: (folder / "x.ckpt").write_bytes((folder / "x.ckpt").read_bytes()[:999]),
        "x.ckpt is damaged or not a torch checkpoint",
    ),
    "pickled code": (
        lambda folder: torch.save({"state_dict": {"a": Payload()}}, folder / "x.ckpt"),
        "loading that could run code hidden in the file",
    ),
    "no start": (lambda folder: (folder / "first.mp4").unlink(), "no video at"),
    "no actions": (lambda folder: (folder / "first.jsonl").unlink(), "cannot read the actions in"),
    "a line that is no JSON": (
        lambda folder: (folder / "first.jsonl").write_text("{'forward': 1\n"),
        "first.jsonl, line 1: ",
    ),
    "a line that is no action": (
        lambda folder: (folder / "first.jsonl").write_text("[1]\n"),
        "first.jsonl, line 1: an action is an object, got list",
    ),
    "an unknown key": (
        lambda folder: (folder / "first.jsonl").write_text('{"fly": 1}\n'),
        "first.jsonl, line 1: a Minecraft action has no key 'fly'",
    ),
    "a folder in use": (
        lambda folder: (folder / "world" / "mine").mkdir(parents=True),
        "world is there already and not empty; choose another folder",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_amiss_is_said_in_a_line_and_nothing_is_written(
    spoil: Callable[[Path], object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    case = small_case()
    config = write_config(case, tmp_path)
    start = recorded_start(case, tmp_path)
    (tmp_path / "x.ckpt").write_bytes((case.folder / "checkpoint.ckpt").read_bytes())
    spoil(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    files: list[str | Path] = ["--config", config, "--checkpoint", tmp_path / "x.ckpt"]
    assert run(*files, *start, *frame_size(case), "--out", tmp_path / "world") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("worldgen: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def small_case() -> Case:
    """Return the case that the messages above are about."""
    case = next(each.values[0] for each in CASES if each.id == "session_4x6")
    assert isinstance(case, Case)
    return case


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = first_case()
    config = write_config(case, tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    # The starts are written after both networks.
    monkeypatch.setattr("worldgen.pipeline.save_starts", full)
    before = sorted(tmp_path.rglob("*"))
    words: list[str | Path] = [
        "--config",
        config,
        "--checkpoint",
        case.weights,
        "--out",
        tmp_path / "world",
    ]
    assert run(*words, *frame_size(case)) == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
