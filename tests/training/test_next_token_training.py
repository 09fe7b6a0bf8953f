"""Next-token models from recordings to a world: losses, policy, fine-tuning, resuming."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.recordings import write_recording
from tests.training.test_world_model import overrides, write_tokenizer
from train.world_model import RunConfig, run
from worldgen.checkpoint import load_tensors
from worldgen.config import build, load_config
from worldgen.errors import ActionError, ConfigError
from worldgen.generation import SamplingConfig, make_decoder
from worldgen.models import (
    NextTokenConfig,
    NextTokenTransformer,
    build_world_model,
    world_model_config,
)
from worldgen.pipeline import load
from worldgen.training import RunFolder
from worldgen.training.context import CorruptionConfig, OnPolicyConfig
from worldgen.training.tasks import TrainingClips
from worldgen.training.world_model_loss import (
    NextFrameLossConfig,
    NextTokenLossConfig,
    world_model_losses,
)

CLEAN = CorruptionConfig(share_of_clips=0.0, highest_rate=0.0)
RECORDED = OnPolicyConfig(share_of_clips=0.0, frames=1, rounds=1, temperature=0.0)
LOSSES = NextTokenLossConfig(changed_weight=1.0, actions=1.0)


def losses_of(model: NextTokenTransformer, clip: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clips = TrainingClips(visual_ids=clip[0], action_ids=clip[1])
    return world_model_losses(
        model, clips, losses=LOSSES, corruption=CLEAN, on_policy=RECORDED, generator=generator
    )


def runner_clips(count: int, frames: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return clips of a runner on a ring of three rows and five columns, told to go or to stay.

    He goes right (action 1) or stays (0), three to one, and changes his row at the edge.
    """
    random = np.random.default_rng(seed)
    actions = (random.random((count, frames)) < 0.75).astype(np.int64)
    places = random.integers(0, 15, (count, 1)) + np.cumsum(actions, axis=1)
    places = np.concatenate((places[:, :1] - actions[:, :1], places[:, :-1]), axis=1) % 15
    visual_ids = np.zeros((count, frames, 15), dtype=np.int64)
    np.put_along_axis(visual_ids, places[..., None], 1, axis=-1)
    return torch.from_numpy(visual_ids), torch.from_numpy(actions[..., None])


@pytest.fixture(scope="module")
def runner() -> NextTokenTransformer:
    """Return a model that has seen the runner: raster first, then fine-tuned for diagonals."""
    sizes = {
        "rows": 3,
        "columns": 5,
        "codebook_size": 2,
        "num_action_tokens": 1,
        "action_vocabulary_size": 2,
        "width": 32,
        "num_heads": 2,
        "num_key_value_heads": 1,
        "feed_forward_width": 64,
        "windows": (2, 2),
    }
    torch.manual_seed(0)
    raster = NextTokenTransformer(NextTokenConfig(**sizes, mask="raster"))  # type: ignore[arg-type]
    learn(raster, steps=250)
    diagonal = NextTokenTransformer(NextTokenConfig(**sizes, mask="diagonal"))  # type: ignore[arg-type]
    diagonal.load_state_dict(raster.state_dict())
    before = losses_of(diagonal, runner_clips(64, 4, seed=9))["cells"]
    learn(diagonal, steps=150)
    after = losses_of(diagonal, runner_clips(64, 4, seed=9))["cells"]
    assert after < before / 2
    return diagonal.eval()


def learn(model: NextTokenTransformer, steps: int) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(steps):
        loss = sum(losses_of(model, runner_clips(32, 4, seed=100 + step)).values())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimiser.step()


class TestRunner:
    """What a model learns from clips in which actions decide."""

    @pytest.mark.parametrize("order", ["diagonal", "raster"])
    def test_rollouts_follow_the_actions(self, runner: NextTokenTransformer, order: str) -> None:
        visual_ids, action_ids = runner_clips(16, 8, seed=3)
        cache = runner.new_cache(16)
        decoder = make_decoder(order, runner.layout, SamplingConfig(temperature=0.0))
        ids = visual_ids[:, 0]
        for frame in range(7):
            draft = runner.observe(cache, ids, action_ids[:, frame])
            ids = decoder.draw_frame(runner, draft, torch.zeros(16, 15))
            assert (ids == visual_ids[:, frame + 1]).float().mean() > 0.97

    def test_the_policy_is_as_likely_to_go_as_the_player(
        self, runner: NextTokenTransformer
    ) -> None:
        visual_ids, _ = runner_clips(64, 4, seed=4)
        asked: list[Tensor] = []

        def choose(slot: int, logits: Tensor) -> Tensor:
            asked.append(logits.softmax(dim=-1)[:, 1])
            return logits.argmax(dim=-1)

        action = runner.predict_action(
            runner.new_cache(64), visual_ids[:, 0], [torch.tensor([0, 1])], choose
        )
        assert 0.6 < float(asked[0].mean()) < 0.9
        assert action.eq(1).all()


def test_losses_are_those_of_the_plain_objective() -> None:
    model = build_world_model(
        world_model_config(
            "interleaved_next_token",
            {
                "rows": 3,
                "columns": 5,
                "codebook_size": 2,
                "num_action_tokens": 1,
                "action_vocabulary_size": 2,
                "width": 16,
                "num_heads": 2,
                "num_key_value_heads": 1,
                "feed_forward_width": 24,
                "windows": (4, 4),
            },
        )
    )
    assert isinstance(model, NextTokenTransformer)
    visual_ids, action_ids = runner_clips(3, 4, seed=0)
    terms = losses_of(model, (visual_ids, action_ids))
    # One flat sequence, each token predicting the next: what language models are trained on.
    tokens = torch.cat((visual_ids, action_ids + 2), dim=-1).flatten(1)
    hidden = model.encode_clip(visual_ids, action_ids).flatten(1, 2)
    flat = torch.nn.functional.cross_entropy(
        model.read(hidden[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    ).reshape(3, -1)
    place = torch.arange(1, tokens.shape[1])
    cells = flat[:, (place >= 16) & (place % 16 < 15)].mean()
    actions = flat[:, place % 16 == 15].mean()
    torch.testing.assert_close(terms["cells"], cells)
    torch.testing.assert_close(terms["actions"], actions / 15)
    wrong = NextFrameLossConfig(changed_weight=1.0, within_frame=0.5, schedules=("raster",))
    with pytest.raises(ConfigError, match="choose losses=next_frame for family interleaved"):
        world_model_losses(
            model,
            TrainingClips(visual_ids=visual_ids, action_ids=action_ids),
            losses=wrong,
            corruption=CLEAN,
            on_policy=RECORDED,
            generator=torch.Generator(),
        )


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("recording"), length=20, moving=True)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors", 0)


def train(recording: Path, tokenizer_file: Path, folder: Path, *changes: str) -> RunFolder:
    small = [
        *overrides(recording, tokenizer_file, folder)[2:],
        "experiment=mineworld_tiny",
        "model.width=16",
        "model.num_heads=2",
        "model.feed_forward_width=24",
        "model.windows=[3,3]",
    ]
    return run(load_config("world_model", [*small, f"run_folder={folder}", *changes]))


def test_a_training_leaves_a_world_to_play_and_to_ask(
    recording: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    folder = train(recording, tokenizer_file, tmp_path / "run")
    summary = json.loads((folder.path / "summary.json").read_text())
    assert {"validation_accuracy", "validation_psnr_dream_4"} <= summary["figures"].keys()
    world = load(folder.path)
    session = world.session(seed=3)
    assert session.decoder.name == "diagonal"
    for _ in range(5):
        action = session.predict_action()
        assert np.array_equal(action, session.predict_action())
        session.step(action)
    assert list(world.replay_session(session.log()).replay(session.log())) == [True] * 5
    frames = session.rewind(3), session.step("right")
    assert frames[0].shape == (16, 16, 3)
    other = world.session(seed=4, decoder="raster")
    certain = SamplingConfig(temperature=0.0)
    assert np.array_equal(other.predict_action(certain), world.session().predict_action(certain))


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    recording: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    whole = train(recording, tokenizer_file, tmp_path / "whole")
    train(recording, tokenizer_file, tmp_path / "parts", "training.length.steps=2")
    parts = train(recording, tokenizer_file, tmp_path / "parts")
    expected, got = (load_tensors(folder.checkpoint)[0] for folder in (whole, parts))
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name


def test_fine_tuning_for_diagonals_starts_from_a_raster_model(
    recording: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    raster = train(recording, tokenizer_file, tmp_path / "raster")
    tuned = train(
        recording,
        tokenizer_file,
        tmp_path / "tuned",
        "experiment=mineworld_parallel",
        f"initial_weights={raster.path / 'model.safetensors'}",
    )
    world = load(tuned.path)
    assert world.model.config.mask == "diagonal"
    assert (world.model.stand_in != 0).any()
    world.session().step("right")


def test_a_world_that_predicts_frames_only_says_so(tmp_path: Path) -> None:
    session = load("crafter").session()
    with pytest.raises(ActionError, match="interleaved_next_token or driving predict both"):
        session.predict_action()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("300m_16f", 321.0),
        ("700m_16f", 726.0),
        ("700m_32f", 726.0),
        ("1200m_16f", 1229.3),
        ("1200m_32f", 1229.3),
    ],
)
def test_presets_have_the_published_sizes(name: str, millions: float) -> None:
    composed = load_config("world_model", [f"experiment=mineworld_{name}"])
    config = build(RunConfig, composed)
    sizes = dict(config.model)
    grid = {"rows": 14, "columns": 24, "codebook_size": 8192}
    actions = {"num_action_tokens": 11, "action_vocabulary_size": 70}
    model_config = world_model_config(sizes.pop("family"), sizes | grid | actions)
    assert isinstance(model_config, NextTokenConfig)
    with torch.device("meta"):
        model = build_world_model(model_config)
    # The mark of stand-ins is ours.
    count = sum(p.numel() for name, p in model.named_parameters() if name != "stand_in")
    assert round(count / 1e6, 1) == millions
    assert model_config.windows == (int(name[-3:-1]),) * 20
    assert config.data.clip_frames == int(name[-3:-1]) - 1
