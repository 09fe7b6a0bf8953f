"""The world model script from recording to playable world: resuming, stopping, and what it leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import temporal_tokenizer_config
from tests.training.recordings import write_recording
from train import package_world
from train.world_model import RunConfig, run
from worldgen.checkpoint import file_hash, load_tensors
from worldgen.config import build, load_config
from worldgen.data.episodes import Dataset
from worldgen.data.token_cache import open_or_build_token_cache, open_token_cache
from worldgen.errors import CheckpointError, ConfigError, DataError
from worldgen.models import load_world_model
from worldgen.pipeline import load
from worldgen.records import to_float
from worldgen.tokenizers.quantizers import FSQConfig
from worldgen.tokenizers.visual import (
    ConvolutionalTokenizerConfig,
    VisualTokenizer,
    build_visual_tokenizer,
    load_visual_tokenizer,
    save_visual_tokenizer,
)
from worldgen.tokenizers.visual.patch import PatchConfig
from worldgen.training import DivergedError, RunFolder


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("recording"), length=20)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors", 0)


def write_tokenizer(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    patch = PatchConfig(patch=4, width=8, blocks=1)
    config = ConvolutionalTokenizerConfig(
        frame_height=16,
        frame_width=16,
        encoder=patch,
        decoder=patch,
        quantizer=FSQConfig(levels=(4, 4)),
    )
    save_visual_tokenizer(path, build_visual_tokenizer(config))
    return path


@pytest.fixture(scope="module")
def clip_tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer of clips, four frames a grid."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip_tokenizer") / "tokenizer.safetensors"
    tokenizer = build_visual_tokenizer(temporal_tokenizer_config(size=16, patch=4))
    save_visual_tokenizer(path, tokenizer)
    return path


CLIPS = [
    "data.clip_frames=5",
    "data.encoded_steps=4",
    "validation.steps=6",
    "validation.context=5",
]


def overrides(recording: Path, tokenizer_file: Path, folder: Path) -> list[str]:
    return [
        "experiment=car_racing",
        "model=tiny",
        f"run_folder={folder}",
        f"data.folder={recording}",
        "data.clip_frames=4",
        f"tokenizer_file={tokenizer_file}",
        "validation.context=4",
        "validation.steps=5",
        "training.validation_frames=2",
        "training.batch_size=2",
        "training.length.max_minutes=null",
        "training.length.steps=4",
        "training.log_steps=1",
        "training.optimiser.warmup_share=0.0",
        "training.optimiser.final_share=1.0",
        "starts.count=3",
        "starts.context=4",
    ]


def train(recording: Path, tokenizer_file: Path, folder: Path, *changes: str) -> RunFolder:
    """Run the script at a size that takes a second."""
    composed = load_config("world_model", [*overrides(recording, tokenizer_file, folder), *changes])
    return run(composed)


def test_a_training_leaves_a_playable_world(
    recording: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    folder = train(recording, tokenizer_file, tmp_path / "run")
    assert (folder.path / "curves.png").exists()
    assert (folder.path / "rollouts_0000004.png").exists()
    figures = json.loads((folder.path / "summary.json").read_text())["figures"]
    assert {"validation_accuracy", "validation_psnr_dream_4"} <= figures.keys()
    world = load(folder.path)
    assert len(world.starts) == 3
    session = world.session(seed=3, decoder="strided:4")
    frames = [session.step("right") for _ in range(3)]
    assert frames[-1].shape == (16, 16, 3)
    assert list(world.replay_session(session.log()).replay(session.log())) == [True] * 3


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    recording: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    whole = train(recording, tokenizer_file, tmp_path / "whole")
    train(recording, tokenizer_file, tmp_path / "parts", "training.length.steps=2")
    parts = train(recording, tokenizer_file, tmp_path / "parts")
    expected, _ = load_tensors(whole.checkpoint)
    got, metadata = load_tensors(parts.checkpoint)
    assert metadata["step"] == 4
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name


def test_a_training_can_start_from_another_world_model(
    recording: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    first = train(recording, tokenizer_file, tmp_path / "first")
    file = first.path / "model.safetensors"
    again = [f"initial_weights={file}", "training.length.steps=1"]
    still = "training.optimiser.learning_rate=1e-12"
    second = train(recording, tokenizer_file, tmp_path / "second", *again, still)
    before, after = (load_world_model(run.path / "model.safetensors")[0] for run in (first, second))
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], tensor)
    # The card counts both trainings.
    assert load(first.path).card.training["world_model_steps"] == 4
    training = load(second.path).card.training
    assert training["world_model_steps"] == 5
    assert training["world_model_stages"] == 2
    with pytest.raises(CheckpointError, match="width 32 instead of 64"):
        train(recording, tokenizer_file, tmp_path / "third", *again, "model.width=64")


def test_numbers_out_of_hand_keep_the_last_checkpoint(
    recording: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    folder = train(recording, tokenizer_file, tmp_path, "training.length.steps=2")
    before = folder.checkpoint.read_bytes()
    with pytest.raises(DivergedError, match="the last checkpoint is kept"):
        train(recording, tokenizer_file, tmp_path, "training.optimiser.learning_rate=1e30")
    assert folder.checkpoint.read_bytes() == before


def test_a_run_is_not_resumed_with_another_tokenizer(
    recording: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    train(recording, tokenizer_file, tmp_path / "run")
    other = write_tokenizer(tmp_path / "other.safetensors", 1)
    with pytest.raises(ConfigError, match="other settings of tokenizer"):
        train(recording, other, tmp_path / "run")
    with pytest.raises(CheckpointError, match="tokens of another tokenizer"):
        package_world.run(
            load_config(
                "package_world",
                [
                    "experiment=car_racing",
                    f"out={tmp_path / 'world'}",
                    f"data.folder={recording}",
                    f"tokenizer_file={other}",
                    f"model_file={tmp_path / 'run' / 'model.safetensors'}",
                    "date=today",
                ],
            )
        )
    assert not (tmp_path / "world" / "world.json").exists()


def test_clips_longer_than_the_episodes_are_one_clear_message(
    recording: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"no train episode of .* holds a clip of 31 frames"):
        train(recording, tokenizer_file, tmp_path, "data.clip_frames=30")


def test_a_missing_tokenizer_is_one_clear_message(recording: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights at"):
        train(recording, tmp_path / "nothing.safetensors", tmp_path / "run")


class TestClipTokens:
    """A world model whose steps are grids for several frames."""

    def test_a_training_leaves_a_playable_world(
        self,
        recording: Path,
        clip_tokenizer_file: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder = train(recording, clip_tokenizer_file, tmp_path, *CLIPS, "starts.context=8")
        summary = json.loads((folder.path / "summary.json").read_text())
        # Four steps of two clips with two grids of context, each of which predicts four frames.
        assert summary["frame_predictions"] == 4 * 2 * 2 * 4
        assert summary["training_frames"] == 40
        assert {"validation_psnr_dream_1", "validation_psnr_dream_4"} <= summary["figures"].keys()
        assert "5 frames of context instead of 8" in capsys.readouterr().out
        world = load(folder.path)
        assert world.model.config.num_action_tokens == 4
        assert [start.visual_ids.shape for start in world.starts] == [(2, 16)] * 3
        assert [start.action_ids.shape for start in world.starts] == [(1, 4)] * 3

    def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
        self, recording: Path, clip_tokenizer_file: Path, tmp_path: Path
    ) -> None:
        whole = train(recording, clip_tokenizer_file, tmp_path / "whole", *CLIPS)
        half = [*CLIPS, "training.length.steps=2"]
        train(recording, clip_tokenizer_file, tmp_path / "parts", *half)
        parts = train(recording, clip_tokenizer_file, tmp_path / "parts", *CLIPS)
        expected, _ = load_tensors(whole.checkpoint)
        got, _ = load_tensors(parts.checkpoint)
        for name, tensor in expected.items():
            assert torch.equal(tensor, got[name]), name

    def test_lengths_that_do_not_fit_are_one_clear_message(
        self, recording: Path, clip_tokenizer_file: Path, tmp_path: Path
    ) -> None:
        def attempt(*changes: str) -> None:
            train(recording, clip_tokenizer_file, tmp_path, *CLIPS, *changes)

        with pytest.raises(ConfigError, match=r"clips of 1 \+ k x 4 frames, got 8; cut .* to 5"):
            attempt("data.clip_frames=8")
        with pytest.raises(DataError, match=r"5 steps of 4 frames; .*raise data.encoded_steps"):
            attempt("data.clip_frames=13")
        with pytest.raises(DataError, match=r"no validation episode .* lower validation.steps"):
            attempt("validation.steps=12")
        with pytest.raises(ConfigError, match="clips of 1 steps hold no next step"):
            attempt("data.encoded_steps=1")

    def test_an_episode_is_encoded_in_clips_with_the_actions_that_lead_on(
        self, clip_tokenizer_file: Path, tmp_path: Path
    ) -> None:
        folder = write_recording(tmp_path / "recording", length=23, moving=True)
        dataset, tokenizer = Dataset(folder), load_visual_tokenizer(clip_tokenizer_file)
        hashed = file_hash(clip_tokenizer_file)
        arguments = (dataset, "train", tmp_path, tokenizer, hashed)
        cache = open_or_build_token_cache(*arguments, clip_steps=3)
        # 23 frames are two clips of 1 + 2 x 4 and one of 1 + 1 x 4.
        assert cache.episode_starts.tolist() == [0, 3, 6, 8, 11, 14, 16]
        episode = dataset.load(dataset.episodes("train")[1])
        frames = to_float(torch.from_numpy(episode.frames))
        for first, step, steps in ((0, 8, 3), (9, 11, 3), (18, 14, 2)):
            clip = frames[None, first : first + 1 + 4 * (steps - 1)]
            expected = tokenizer.encode(clip).flatten(2)[0].numpy()
            assert np.array_equal(cache.visual_ids[step : step + steps], expected)
            for number in range(steps):
                taken = episode.actions[first + 4 * number : first + 4 * number + 4, 0]
                assert cache.action_ids[step + number].tolist()[: len(taken)] == taken.tolist()
        starts = [start for start in range(16) if start not in {2, 5, 7, 10, 13, 15}]
        assert np.flatnonzero(cache.clip_starts(2)).tolist() == starts
        fresh = cache.clip_starts(2, from_pixels=True)
        assert np.flatnonzero(fresh).tolist() == [0, 3, 6, 8, 11, 14]
        other = open_or_build_token_cache(*arguments, clip_steps=2)
        assert len(other.visual_ids) == 2 * (4 * 2 + 1)
        again = open_or_build_token_cache(*arguments, clip_steps=3)
        assert np.array_equal(again.visual_ids, cache.visual_ids)


@pytest.mark.parametrize("experiment", ["car_racing", "car_racing_temporal", "crafter"])
def test_shipped_experiments_compose_and_build(experiment: str) -> None:
    config = build(RunConfig, load_config("world_model", [f"experiment={experiment}"]))
    assert config.name == experiment
    packaging = load_config("package_world", [f"experiment={experiment}", "date=today"])
    assert build(package_world.RunConfig, packaging).world == config.world


class TestTokenCache:
    """Recordings as tokens."""

    def build(self, recording: Path, file: Path, folder: Path) -> tuple[Dataset, VisualTokenizer]:
        dataset, tokenizer = Dataset(recording), load_visual_tokenizer(file)
        open_or_build_token_cache(dataset, "train", folder, tokenizer, file_hash(file))
        return dataset, tokenizer

    def test_tokens_are_those_of_the_frames(
        self, recording: Path, tokenizer_file: Path, tmp_path: Path
    ) -> None:
        dataset, tokenizer = self.build(recording, tokenizer_file, tmp_path)
        cache = open_or_build_token_cache(
            dataset, "train", tmp_path, tokenizer, file_hash(tokenizer_file)
        )
        assert cache.episode_starts.tolist() == [0, 20, 40]
        episode = dataset.load(dataset.episodes("train")[1])
        frames = torch.from_numpy(episode.frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            expected = tokenizer.encode(frames[:, None]).flatten(1).numpy()
        assert np.array_equal(cache.visual_ids[20:], expected)
        visual_ids, action_ids = cache.clips(np.array([21, 5]), 4)
        assert np.array_equal(visual_ids[0].numpy(), expected[1:5])
        assert action_ids.shape == (2, 4, 1)

    def test_clips_do_not_cross_the_end_of_an_episode(
        self, recording: Path, tokenizer_file: Path, tmp_path: Path
    ) -> None:
        dataset, tokenizer = self.build(recording, tokenizer_file, tmp_path)
        cache = open_or_build_token_cache(
            dataset, "train", tmp_path, tokenizer, file_hash(tokenizer_file)
        )
        assert np.flatnonzero(cache.clip_starts(19)).tolist() == [0, 1, 20, 21]
        assert not cache.clip_starts(21).any()

    def test_tokens_of_another_tokenizer_are_refused(
        self, recording: Path, tokenizer_file: Path, tmp_path: Path
    ) -> None:
        self.build(recording, tokenizer_file, tmp_path)
        place = tmp_path / file_hash(tokenizer_file)[:16] / "train"
        with pytest.raises(DataError, match="made by tokenizer"):
            open_token_cache(place, "0" * 64)

    def test_a_half_written_cache_is_made_again(
        self, recording: Path, tokenizer_file: Path, tmp_path: Path
    ) -> None:
        dataset, tokenizer = self.build(recording, tokenizer_file, tmp_path)
        hashed = file_hash(tokenizer_file)
        place = tmp_path / hashed[:16] / "train"
        (place / "meta.json").unlink()
        (place / "visual_ids.npy").write_bytes(b"half")
        with pytest.raises(DataError, match="holds no tokens"):
            open_token_cache(place, hashed)
        cache = open_or_build_token_cache(dataset, "train", tmp_path, tokenizer, hashed)
        assert len(cache.visual_ids) == 40
