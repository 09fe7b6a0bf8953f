"""The training script from recording to tokenizer: resuming, stopping, and what it leaves."""

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.recordings import write_recording
from train.visual_tokenizer import RunConfig, run
from worldgen.checkpoint import load_tensors
from worldgen.config import build, load_config
from worldgen.data.video import write_video
from worldgen.errors import CheckpointError, ConfigError, DataError
from worldgen.tokenizers.visual import TemporalTokenizer, load_visual_tokenizer
from worldgen.training import DivergedError, OptimiserConfig, RunFolder, learning_rate


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("recording"))


JOINT = (
    "tokenizer.patch=8",
    "tokenizer.frames_per_latent=2",
    *(
        f"tokenizer.{part}.{size}"
        for part in ("encoder", "decoder")
        for size in (
            "width=8",
            "num_heads=2",
            "head_width=4",
            "feed_forward_width=8",
            "spatial_blocks=w",
            "temporal_depth=1",
        )
    ),
    "training.length.steps=6",
    "stages=[{image_batch_size:3},{image_batch_size:2,video_share:0.7,clip_frames:5,"
    "clip_batch_size:2,resolutions:[[16,16],[8,16]]}]",
)
"""Three steps of images, then three of images and clips, in a network of a few hundred weights."""


TEMPORAL = (
    *(
        f"tokenizer.{part}.{size}"
        for part in ("encoder", "decoder")
        for size in ("widths=[4,4,8]", "blocks=1", "latent_width=8", "attention_levels=[2]")
    ),
    "+tokenizer.encoder.groups=2",
    "+tokenizer.decoder.groups=2",
    "tokenizer.num_heads=2",
    "tokenizer.feed_forward_width=8",
    "tokenizer.window=3",
    "tokenizer.quantizer.codebook_size=16",
    "training.length.steps=2",
    "stages=[{image_batch_size:2,video_share:0.7,clip_frames:5,clip_batch_size:2}]",
)
"""As small as `JOINT`, with a grid for each frame and blocks over time."""

EVERY_STEP = "training.log_steps=1"

OPPOSED = (
    "adversarial=image_and_video",
    "adversaries=[{discriminator:{dimensions:2,base_width:2,num_halvings:1},"
    "losses:{adaptive:true,lecam:0.1,zero_centred_penalty:1.0,penalty_period:2,start_step:1}},"
    "{discriminator:{dimensions:3,base_width:2,num_halvings:1,input_noise:true},"
    "losses:{feature_matching:0.1,unit_gradient_penalty:1.0}}]",
    "adversary_optimiser.final_share=1.0",
    "perturbation_share=0.3",
)
"""Two discriminators with all that their losses know, Gram matrices, and wrong codes."""


def train(
    recording: Path, folder: Path, *changes: str, experiment: str = "car_racing"
) -> RunFolder:
    """Run the script at a size that takes a second."""
    tiny = [
        f"experiment={experiment}",
        f"run_folder={folder}",
        f"data.folders=[{recording}]",
        "tokenizer.frame_height=16",
        "tokenizer.frame_width=16",
        "training.batch_size=2",
        "training.length.max_minutes=null",
        "training.length.steps=4",
        # Curves of every figure would take most of the time.
        "training.log_steps=1000",
        "training.mixed_precision=false",
        # A constant rate, so that a longer training begins like a shorter one.
        "training.optimiser.warmup_share=0.0",
        "training.optimiser.final_share=1.0",
    ]
    if experiment == "omnitokenizer_small":
        tiny += JOINT
    elif experiment == "drivingworld_tokenizer":
        tiny += TEMPORAL
    elif experiment == "car_racing":
        tiny += ["tokenizer.encoder.base_width=2", "tokenizer.decoder.base_width=2"]
    else:
        tiny += ["tokenizer.encoder.width=8", "tokenizer.decoder.width=8"]
    return run(load_config("visual_tokenizer", [*tiny, *changes]))


@pytest.mark.parametrize("experiment", ["car_racing", "crafter"])
def test_a_training_leaves_tokenizer_summary_curves_and_pictures(
    recording: Path, tmp_path: Path, experiment: str
) -> None:
    folder = train(recording, tmp_path / "run", EVERY_STEP, experiment=experiment)
    tokenizer = load_visual_tokenizer(folder.path / "tokenizer.safetensors")
    assert (tokenizer.rows, tokenizer.columns) == (2, 2)
    figures = json.loads((folder.path / "summary.json").read_text())["figures"]
    for split in ("validation", "test"):
        assert list(figures[split]) == [recording.name]
        of_images = figures[split][recording.name]["images"]
        assert {"psnr", "ssim", "codes_used", "perplexity"} <= of_images.keys()
        assert (of_images["frames"], of_images["tokens_per_frame"]) == (24, 4)
    assert (folder.path / "curves.png").exists()
    assert (folder.path / "reconstructions_0000004.png").exists()
    assert [line["step"] for line in folder.read_metrics() if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize("experiment", ["car_racing", "crafter"])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    recording: Path, tmp_path: Path, experiment: str
) -> None:
    whole = train(recording, tmp_path / "whole", experiment=experiment)
    train(recording, tmp_path / "parts", "training.length.steps=2", experiment=experiment)
    parts = train(recording, tmp_path / "parts", experiment=experiment)
    expected, _ = load_tensors(whole.checkpoint)
    got, metadata = load_tensors(parts.checkpoint)
    assert metadata["step"] == 4
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name


def test_images_and_clips_of_two_recordings_train_one_tokenizer(
    recording: Path, tmp_path: Path
) -> None:
    other = write_recording(tmp_path / "other", size=32)
    folder = train(
        recording,
        tmp_path / "run",
        f"data.folders=[{recording},{other}]",
        EVERY_STEP,
        experiment="omnitokenizer_small",
    )
    lines = folder.read_metrics()
    stages = {line["step"]: line["stage"] for line in lines if "stage" in line}
    assert stages == {1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1}
    assert not any("batch_psnr_videos" in line for line in lines if line["step"] <= 3)
    assert any("batch_psnr_videos" in line for line in lines)
    figures = json.loads((folder.path / "summary.json").read_text())["figures"]["test"]
    assert list(figures) == [recording.name, "other"]
    for of_folder in figures.values():
        # Two clips of five frames in each of two episodes of twelve; three grids for each clip.
        assert of_folder["videos"]["frames"] == 20
        assert of_folder["videos"]["tokens_per_frame"] == 4 * 3 / 5
        assert of_folder["images"]["frames"] == 24
    validated = {name for line in lines for name in line if name.startswith("validation_psnr")}
    assert validated == {
        f"validation_psnr_{kind}_{name}"
        for kind in ("images", "videos")
        for name in (recording.name, "other")
    }
    assert (folder.path / "reconstructions_0000006.png").exists()
    assert (folder.path / "clips_0000006.png").exists()


@pytest.mark.parametrize(
    "changes",
    [pytest.param((), id="alone", marks=pytest.mark.slow), pytest.param(OPPOSED, id="opposed")],
)
def test_a_joint_training_interrupted_between_stages_goes_on_bit_for_bit(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: tuple[str, ...]
) -> None:
    whole = train(recording, tmp_path / "whole", *changes, experiment="omnitokenizer_small")

    def learning_rate_and_control_c(config: OptimiserConfig, progress: float) -> float:
        # During the second of six steps; the first stage ends with the third.
        if progress == pytest.approx(1 / 6):
            os.kill(os.getpid(), signal.SIGINT)
        return learning_rate(config, progress)

    with monkeypatch.context() as patched:
        patched.setattr("train.visual_tokenizer.learning_rate", learning_rate_and_control_c)
        parts = train(recording, tmp_path / "parts", *changes, experiment="omnitokenizer_small")
    assert load_tensors(parts.checkpoint)[1]["step"] == 2
    train(recording, tmp_path / "parts", *changes, experiment="omnitokenizer_small")
    expected, got = load_tensors(whole.checkpoint), load_tensors(parts.checkpoint)
    assert got[1]["step"] == 6
    assert expected[0].keys() == got[0].keys()
    for name, tensor in expected[0].items():
        assert torch.equal(tensor, got[0][name]), name
    assert any(name.startswith("adversaries.") for name in expected[0]) == bool(changes)


def test_clips_train_a_tokenizer_that_looks_back(recording: Path, tmp_path: Path) -> None:
    folder = train(recording, tmp_path / "run", experiment="drivingworld_tokenizer")
    figures = json.loads((folder.path / "summary.json").read_text())["figures"]["test"]
    of_videos = figures[recording.name]["videos"]
    assert (of_videos["frames"], of_videos["tokens_per_frame"]) == (20, 16)
    tokenizer = load_visual_tokenizer(folder.path / "tokenizer.safetensors")
    assert isinstance(tokenizer, TemporalTokenizer)
    assert not tokenizer.single_frames


def test_discriminators_take_part_from_their_first_step_on(recording: Path, tmp_path: Path) -> None:
    folder = train(recording, tmp_path, *OPPOSED, EVERY_STEP, experiment="omnitokenizer_small")
    lines = [line for line in folder.read_metrics() if "loss" in line]
    judged = {"loss_image_discriminator", "loss_image_adversarial", "loss_image_lecam", "loss_gram"}
    assert not judged & lines[0].keys()
    for line in lines[1:]:
        assert judged <= line.keys()
    # Steps 1, 3 and 5 of a period of two; clips come in the second stage and are judged as such.
    penalised = [line["step"] for line in lines if "loss_image_zero_centred_penalty" in line]
    assert penalised == [2, 4, 6]
    for line in lines:
        of_clips = {"loss_video_adversarial", "loss_video_unit_gradient_penalty"} <= line.keys()
        assert of_clips == ("batch_psnr_videos" in line)
    assert any("batch_psnr_videos" in line for line in lines)


def test_wrong_codes_in_training_change_what_the_decoder_learns(
    recording: Path, tmp_path: Path
) -> None:
    right = train(recording, tmp_path / "right", "training.length.steps=1")
    wrong = train(
        recording, tmp_path / "wrong", "training.length.steps=1", "perturbation_share=0.5"
    )
    first, second = (load_tensors(folder.checkpoint)[0] for folder in (right, wrong))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert any(name.startswith("module.decoder.") for name in changed)
    with pytest.raises(ConfigError, match=r"perturbation_share must lie in \[0, 1\], got 1.5"):
        train(recording, tmp_path / "refused", "perturbation_share=1.5")


def test_a_discriminator_out_of_hand_stops_the_training_with_its_name(
    recording: Path, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match=r"'image_discriminator' is (nan|inf)"):
        train(
            recording,
            tmp_path,
            *OPPOSED,
            "adversary_optimiser.learning_rate=1e30",
            "adversary_optimiser.gradient_clip=1e30",
            experiment="omnitokenizer_small",
        )


def test_a_folder_of_images_and_videos_trains_and_what_is_damaged_is_listed(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media = tmp_path / "media"
    (media / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(20):
        picture = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(picture).save(media / f"{number:02d}.png")
    video = random.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    write_video(media / "more" / "film.mp4", video, 10.0, lossless=True)
    damaged = [media / "07.png", media / "more" / "torn.mp4"]
    for path in damaged:
        path.write_bytes(b"neither image nor video")
    folder = train(
        recording,
        tmp_path / "run",
        f"data.folders=[{media},{recording}]",
        experiment="omnitokenizer_small",
    )
    skipped = json.loads((folder.path / "skipped.json").read_text())
    assert sorted(skipped) == sorted(map(str, damaged))
    assert "2 files cannot be read and are left out" in capsys.readouterr().out
    figures = json.loads((folder.path / "summary.json").read_text())["figures"]
    # Two of twenty pictures are held out for each split; the only good video is in all of them.
    assert figures["test"]["media"]["images"]["frames"] == 2 + 12
    assert figures["test"]["media"]["videos"]["frames"] == 10


def test_a_training_can_start_from_another_tokenizer(recording: Path, tmp_path: Path) -> None:
    first = train(recording, tmp_path / "first")
    file = first.path / "tokenizer.safetensors"
    folder = train(
        recording,
        tmp_path / "second",
        f"initial_weights={file}",
        "training.length.steps=1",
        "training.optimiser.learning_rate=1e-12",
    )
    before = load_visual_tokenizer(file).state_dict()
    after = load_visual_tokenizer(folder.path / "tokenizer.safetensors").state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)
    with pytest.raises(CheckpointError, match="does not fit"):
        train(
            recording,
            tmp_path / "third",
            f"initial_weights={file}",
            "tokenizer.encoder.base_width=4",
        )


def test_clips_that_the_tokenizer_cannot_take_are_refused_before_training(
    recording: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="takes clips of 1 \\+ k x 2 frames, got 4"):
        train(
            recording,
            tmp_path,
            "stages=[{image_batch_size:2,video_share:0.5,clip_frames:4}]",
            experiment="omnitokenizer_small",
        )


def test_control_c_keeps_the_work_and_the_same_command_goes_on(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)

    over = threading.Event()

    def interrupt_after_two_lines() -> None:
        while len(folder.read_metrics()) < 2:
            if over.wait(0.01):
                return
        os.kill(os.getpid(), signal.SIGINT)

    # Far too long to end by itself before the signal comes.
    thread = threading.Thread(target=interrupt_after_two_lines)
    thread.start()
    try:
        train(recording, tmp_path, "training.length.steps=10000000", EVERY_STEP)
    finally:
        over.set()
        thread.join()
    assert "the same command goes on from" in capsys.readouterr().out
    step = load_tensors(folder.checkpoint)[1]["step"]
    assert step >= 2
    train(recording, tmp_path, f"training.length.steps={step + 2}")
    assert load_tensors(folder.checkpoint)[1]["step"] == step + 2


def test_numbers_out_of_hand_stop_the_training_and_keep_the_last_checkpoint(
    recording: Path, tmp_path: Path
) -> None:
    folder = train(recording, tmp_path, "training.length.steps=2")
    before = folder.checkpoint.read_bytes()
    with pytest.raises(DivergedError, match=r"is (nan|inf) at step \d+; the last checkpoint"):
        train(recording, tmp_path, "training.optimiser.learning_rate=1e30")
    assert folder.checkpoint.read_bytes() == before


def test_other_settings_are_not_mixed_into_a_run(recording: Path, tmp_path: Path) -> None:
    train(recording, tmp_path)
    with pytest.raises(ConfigError, match="made with other settings of losses; resume=false"):
        train(recording, tmp_path, "losses.worst=0.0")
    train(recording, tmp_path / "wrong_codes", "perturbation_share=0.1")
    with pytest.raises(ConfigError, match="other settings of perturbation_share"):
        train(recording, tmp_path / "wrong_codes")
    folder = train(recording, tmp_path, "losses.worst=0.0", "resume=false")
    assert load_tensors(folder.checkpoint)[1]["step"] == 4


def test_a_missing_recording_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a recording"):
        train(tmp_path / "nowhere", tmp_path / "run")


@pytest.mark.parametrize(
    "experiment",
    [
        "car_racing",
        "crafter",
        "omnitokenizer_small",
        "omnitokenizer_small_images",
        "car_racing_temporal",
        "drivingworld_tokenizer",
    ],
)
def test_shipped_experiments_compose_and_build(experiment: str) -> None:
    config = build(RunConfig, load_config("visual_tokenizer", [f"experiment={experiment}"]))
    assert config.name == experiment
    assert config.run_folder == f"runs/visual_tokenizer/{experiment}"


def test_a_misspelt_setting_is_refused() -> None:
    composed = load_config("visual_tokenizer", ["experiment=crafter", "+training.lenght=3"])
    with pytest.raises(ConfigError, match="lenght"):
        build(RunConfig, composed)
