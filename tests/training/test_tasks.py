"""Tasks of training clips, and what clips are told: frame by frame, and as a training sees them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import tiny_model_config
from tests.training.recordings import write_recording
from tests.training.test_world_model import train, write_tokenizer
from worldgen.checkpoint import load_tensors
from worldgen.data.captions import Caption, CaptionTable, write_caption_column
from worldgen.data.episodes import Dataset
from worldgen.data.token_cache import TokenCache, join_token_caches
from worldgen.errors import CheckpointError, ConfigError, DataError
from worldgen.models import NextFrameConfig, NextFrameTransformer, load_world_model
from worldgen.models.recall import find_recalled
from worldgen.pipeline import load
from worldgen.tokenizers.text import TextTokenizer
from worldgen.training.context import (
    CorruptionConfig,
    OnPolicyConfig,
    RandomTokensConfig,
    draw_rates,
    noise_levels,
)
from worldgen.training.tasks import TASKS, TaskClips, TasksConfig, TrainingClips
from worldgen.training.told import captions_of_steps, recalled_of_steps
from worldgen.training.world_model_loss import NextFrameLossConfig, world_model_losses

CELLS, STEPS, STRIDE = 64, 6, 3
MIXED = TasksConfig(forward=0.25, plan=0.25, fill=0.25, goal=0.25, stride=STRIDE)


def told_model(**changes: int) -> NextFrameConfig:
    sizes: dict[str, int] = {"sink": 1, "text_vocabulary_size": 300, "longest_jump": STRIDE}
    sizes |= {"farthest_goal": 15, "recall_after": 4, "noise_levels": 3}
    return tiny_model_config(**(sizes | changes))


def recording_of_tokens(lengths: tuple[int, ...] = (40, 30), seed: int = 0) -> TokenCache:
    """Return tokens in which every frame and every action can be told from all others."""
    random = np.random.default_rng(seed)
    count = sum(lengths)
    return TokenCache(
        visual_ids=random.integers(0, 64, (count, CELLS)).astype(np.uint16),
        action_ids=random.integers(0, 6, (count, 2)).astype(np.uint16),
        episode_starts=np.cumsum([0, *lengths]),
        metadata={"frames": count, "episodes": len(lengths), "rows": 8, "tokenizer_hash": "a"},
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def story_clips(tokens: TokenCache | None = None, config: TasksConfig = MIXED) -> TaskClips:
    tokens = recording_of_tokens() if tokens is None else tokens
    text_ids = torch.arange(66 * 4).reshape(4, 66) + 1
    text_ids[-1] = 0
    return TaskClips(
        tokens,
        config,
        told_model(),
        STEPS,
        recalled=recalled_of_steps(tokens, 4),
        text_ids=text_ids.int(),
        caption_of_step=np.arange(len(tokens.visual_ids)) % 3,
    )


class TestClips:
    """Which frames a clip has, and what its steps are told."""

    tokens = recording_of_tokens()

    def clip(self, task: str, start: int, seed: int = 0) -> TrainingClips:
        """Return one clip, of a model without text."""
        clips = TaskClips(
            self.tokens, MIXED, told_model(text_vocabulary_size=0, recall_after=0), STEPS
        )
        return clips.clips_of([task], np.array([start]), generator(seed))

    def check(self, clip: TrainingClips, start: int, frames: list[int]) -> None:
        assert clip.conditions is not None
        assert clip.conditions.times is not None
        rows = start + np.array(frames)
        assert np.array_equal(clip.visual_ids[0], self.tokens.visual_ids[rows])
        assert np.array_equal(clip.action_ids[0], self.tokens.action_ids[rows])
        assert clip.conditions.times[0].tolist() == frames[:-1]

    def check_jumps(self, clip: TrainingClips, start: int, frames: list[int], jumps: int) -> None:
        assert clip.conditions is not None
        assert clip.conditions.later_actions is not None
        told = clip.conditions.later_actions[0]
        for number in range(jumps):
            for skipped in range(STRIDE - 1):
                action = self.tokens.action_ids[start + frames[number] + 1 + skipped]
                assert told[number, skipped].tolist() == action.tolist()
        assert (told[jumps:] == -1).all()

    def test_a_forward_clip_is_told_when_its_frames_are_and_nothing_else(self) -> None:
        clip = self.clip("forward", 5)
        self.check(clip, 5, list(range(STEPS + 1)))
        self.check_jumps(clip, 5, [], 0)
        assert clip.conditions is not None
        assert clip.conditions.goal_distance is not None
        assert not clip.conditions.goal_distance.any()

    def test_a_plan_has_every_third_frame_and_all_actions(self) -> None:
        frames = [0, 3, 6, 9, 12, 15, 18]
        clip = self.clip("plan", 11)
        self.check(clip, 11, frames)
        self.check_jumps(clip, 11, frames, STEPS)
        assert clip.conditions is not None
        assert clip.conditions.goal_distance is not None
        assert not clip.conditions.goal_distance.any()

    def test_a_gap_is_filled_behind_a_plan_up_to_the_next_key_frame(self) -> None:
        frames = [0, 3, 6, 9, 10, 11, 12]
        clip = self.clip("fill", 2)
        self.check(clip, 2, frames)
        self.check_jumps(clip, 2, frames, 3)
        assert clip.conditions is not None
        assert clip.conditions.goal_ids is not None
        assert clip.conditions.goal_distance is not None
        assert clip.conditions.goal_distance[0].tolist() == [0, 0, 0, 3, 2, 1]
        for step in (3, 4, 5):
            assert np.array_equal(clip.conditions.goal_ids[0, step], self.tokens.visual_ids[14])

    def test_goals_are_as_far_as_they_say_and_reach_beyond_the_clip(self) -> None:
        seen = set()
        for seed in range(60):
            clip = self.clip("goal", 7, seed)
            self.check(clip, 7, list(range(STEPS + 1)))
            self.check_jumps(clip, 7, [], 0)
            assert clip.conditions is not None
            assert clip.conditions.goal_ids is not None
            assert clip.conditions.goal_distance is not None
            distance = clip.conditions.goal_distance[0].tolist()
            goal = distance[0]
            seen.add(goal)
            assert distance == [max(goal - step, 0) for step in range(STEPS)]
            for step in range(min(goal, STEPS)):
                shown = clip.conditions.goal_ids[0, step]
                assert np.array_equal(shown, self.tokens.visual_ids[7 + goal])
        assert seen == set(range(1, 16))

    def test_no_clip_reaches_into_the_next_episode(self) -> None:
        # A plan of six jumps spans 19 frames, which is more than the farthest goal.
        allowed = np.flatnonzero(story_clips(self.tokens).starts).tolist()
        assert allowed == [*range(40 - 18), *range(40, 70 - 18)]
        far = TaskClips(
            self.tokens, TasksConfig(forward=0.0, goal=1.0), told_model(farthest_goal=25), STEPS
        )
        assert far.span == 26

    def test_tasks_are_drawn_in_their_shares(self) -> None:
        config = replace(MIXED, forward=0.1, plan=0.2, fill=0.3, goal=0.4)
        clips = TaskClips(self.tokens, config, told_model(text_vocabulary_size=0), STEPS)
        batch = clips.clips(np.zeros(2000, dtype=np.int64), generator())
        assert batch.conditions is not None
        assert batch.conditions.later_actions is not None
        assert batch.conditions.goal_distance is not None
        jumps = (batch.conditions.later_actions >= 0).all(dim=-1).all(dim=-1)
        aimed = batch.conditions.goal_distance > 0
        found = {
            "forward": ~jumps[:, 0] & ~aimed[:, 0],
            "plan": jumps.all(dim=1),
            "fill": jumps[:, 0] & ~jumps[:, -1],
            "goal": aimed[:, 0],
        }
        for name, share in zip(TASKS, config.shares, strict=True):
            assert float(found[name].float().mean()) == pytest.approx(share, abs=0.04), name

    def test_clips_that_only_go_on_are_the_recording_and_nothing_beside_it(self) -> None:
        clips = TaskClips(self.tokens, TasksConfig(), tiny_model_config(), STEPS)
        starts = np.array([3, 41])
        batch = clips.clips(starts, generator())
        visual, actions = self.tokens.clips(starts, STEPS + 1)
        assert torch.equal(batch.visual_ids, visual)
        assert torch.equal(batch.action_ids, actions)
        assert batch.conditions is None
        assert batch.text_ids is None


class TestTold:
    """Texts, frames seen before, and levels of noise."""

    def test_the_text_is_that_of_the_first_frame_or_the_null_prompt(self) -> None:
        clips = story_clips()
        starts = np.arange(20).repeat(20)
        batch = clips.clips(starts, generator())
        assert batch.text_ids is not None
        assert clips.text_ids is not None
        null = (batch.text_ids == 0).all(dim=1)
        assert 0.13 < null.float().mean() < 0.27
        expected = clips.text_ids[torch.from_numpy(starts % 3)]
        assert torch.equal(batch.text_ids[~null], expected[~null].long())

    def test_frames_without_a_caption_begin_with_the_null_prompt(self) -> None:
        clips = story_clips()
        clips.caption_of_step = np.full(70, -1)
        text_ids = clips.clips(np.arange(8), generator()).text_ids
        assert text_ids is not None
        assert not text_ids.any()

    def test_half_of_the_clips_begin_right_behind_the_text_and_all_keep_their_distances(
        self,
    ) -> None:
        clips = story_clips()
        starts = np.zeros(600, dtype=np.int64)
        batch = clips.clips_of(["forward"] * 600, starts, generator())
        assert batch.conditions is not None
        assert batch.conditions.times is not None
        first = batch.conditions.times[:, 0]
        assert 0.43 < (first == 1).float().mean() < 0.57
        assert 900 < int(first.max()) <= 1024
        assert torch.equal(
            batch.conditions.times - first[:, None], torch.arange(STEPS).expand(600, -1)
        )

    def test_steps_recall_what_a_session_would(self) -> None:
        tokens = recording_of_tokens((30, 30))
        ids = np.array(tokens.visual_ids)
        # Out and back, and once more: frames come again in both orders.
        for start in (0, 30):
            ids[start + 10 : start + 20] = ids[start : start + 10][::-1]
            ids[start + 20 : start + 30] = ids[start : start + 10]
        tokens = replace(tokens, visual_ids=ids)
        clips = story_clips(tokens, replace(MIXED, no_recall=0.0))
        starts = np.flatnonzero(clips.starts)
        batch = clips.clips_of(["forward"] * len(starts), starts, generator())
        assert batch.conditions is not None
        recalled = batch.conditions.recalled_ids
        assert recalled is not None
        assert (recalled >= 0).any()
        for clip, start in enumerate(starts.tolist()):
            episode = 30 * (start // 30)
            for step in range(STEPS):
                history = ids[episode : start + step + 1]
                assert np.array_equal(recalled[clip, step], find_recalled(history, after=4))

    def test_recall_is_left_out_in_jumps_and_in_a_share_of_clips(self) -> None:
        tokens = recording_of_tokens((60,))
        tokens = replace(tokens, visual_ids=np.repeat(tokens.visual_ids[:1], 60, axis=0))
        clips = story_clips(tokens)
        starts = np.full(400, 10)
        for task in TASKS:
            batch = clips.clips_of([task] * 400, starts, generator())
            assert batch.conditions is not None
            assert batch.conditions.recalled_ids is not None
            share = (batch.conditions.recalled_ids >= 0).flatten(1).all(dim=1).float().mean()
            if task in {"plan", "fill"}:
                assert share == 0
            else:
                assert 0.73 < share < 0.87

    def test_levels_split_the_rates_evenly_and_0_is_clean(self) -> None:
        config = CorruptionConfig(share_of_clips=0.5, highest_rate=0.2)
        rates = torch.tensor([0.0, 0.001, 0.049, 0.051, 0.149, 0.151, 0.2])
        assert noise_levels(rates, config, 5).tolist() == [0, 1, 1, 2, 3, 4, 4]
        drawn = noise_levels(draw_rates(config, 4000, generator()), config, 5).bincount()
        shares = (drawn / 4000).tolist()
        assert shares == pytest.approx([0.5, *[0.125] * 4], abs=0.03)
        uniform = RandomTokensConfig(share_of_clips=1.0, keep=0.7)
        assert noise_levels(draw_rates(uniform, 3, generator()), uniform, 5).tolist() == [4] * 3
        clean = RandomTokensConfig(share_of_clips=1.0, keep=1.0)
        assert noise_levels(draw_rates(clean, 3, generator()), clean, 5).tolist() == [0] * 3


def losses_of(
    model: NextFrameTransformer, batch: TrainingClips, seed: int = 0, first_frame: float = 1.0
) -> dict[str, torch.Tensor]:
    return world_model_losses(
        model,
        batch,
        losses=NextFrameLossConfig(
            changed_weight=1.0, within_frame=0.5, schedules=("random", "raster")
        ),
        corruption=CorruptionConfig(share_of_clips=0.5, highest_rate=0.4),
        on_policy=OnPolicyConfig(share_of_clips=0.5, frames=3, rounds=2, temperature=1.0),
        generator=generator(seed),
        first_frame=first_frame,
    )


class TestLoss:
    """What a model with everything learns from a mixed batch."""

    def test_every_part_is_reached_by_the_gradient(self) -> None:
        torch.manual_seed(0)
        model = NextFrameTransformer(told_model())
        tokens = recording_of_tokens()
        tokens = replace(tokens, visual_ids=tokens.visual_ids[np.arange(70) % 10])
        batch = story_clips(tokens).clips(np.arange(16), generator(1))
        terms = losses_of(model, batch)
        assert set(terms) == {"prior", "first_frame", "within_frame"}
        torch.stack(list(terms.values())).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name

    def test_a_batch_that_is_told_nothing_costs_what_it_did(self) -> None:
        torch.manual_seed(0)
        plain = NextFrameTransformer(tiny_model_config())
        told = NextFrameTransformer(told_model(text_vocabulary_size=0, sink=0))
        told.load_state_dict(plain.state_dict(), strict=False)
        tokens = recording_of_tokens()
        clips = TaskClips(tokens, TasksConfig(), told.config, STEPS)
        batch = clips.clips(np.arange(4), generator())
        given = replace(batch, conditions=None)
        # New parts say nothing before they are trained.
        torch.testing.assert_close(losses_of(told, batch), losses_of(plain, given))

    def test_further_sentences_are_learned_with_the_first_frames(self) -> None:
        torch.manual_seed(0)
        model = NextFrameTransformer(told_model())
        clips = story_clips()
        plain = clips.clips(np.arange(4), generator())
        clips.config = replace(clips.config, sentences=12)
        batch = clips.clips(np.arange(4), generator())
        assert batch.sentence_ids is not None
        assert batch.described_ids is not None
        assert batch.sentence_ids.shape == (12, model.layout.tokens_per_step)
        assert batch.described_ids.shape == (12, model.layout.num_cells)
        for name in ("visual_ids", "action_ids", "text_ids"):
            torch.testing.assert_close(getattr(batch, name), getattr(plain, name))
        without, together = losses_of(model, plain), losses_of(model, batch)
        torch.testing.assert_close(together["prior"], without["prior"])
        hidden = model.encode_steps(
            torch.zeros(12, 0, model.layout.num_cells, dtype=torch.long),
            torch.zeros(12, 0, model.layout.num_action_tokens, dtype=torch.long),
            text_ids=batch.sentence_ids,
        )[:, 0]
        logits = model.read(hidden).flatten(0, 1)
        alone = torch.nn.functional.cross_entropy(logits, batch.described_ids.flatten())
        mean = (4 * without["first_frame"] + 12 * alone) / 16
        torch.testing.assert_close(together["first_frame"], mean)

    def test_the_first_frame_weighs_what_it_is_given(self) -> None:
        torch.manual_seed(0)
        model = NextFrameTransformer(told_model())
        batch = story_clips().clips(np.arange(4), generator())
        once, twice = (losses_of(model, batch, first_frame=weight) for weight in (1.0, 2.0))
        torch.testing.assert_close(twice["first_frame"], 2 * once["first_frame"])
        torch.testing.assert_close(twice["prior"], once["prior"])
        # Of random weights, all codes are about as likely.
        assert once["first_frame"].item() == pytest.approx(np.log(64), rel=0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TasksConfig(forward=0.5), "1 together"),
        (lambda: TasksConfig(forward=1.5, plan=-0.5, stride=2), "0 or more"),
        (lambda: TasksConfig(forward=0.5, plan=0.5), "stride of 2 frames or more"),
        (lambda: TasksConfig(stride=0), "at least 1 frame"),
        (lambda: TasksConfig(null_text=1.5), "null_text and no_recall"),
        (lambda: TasksConfig(first_frame=-1.0), "must not be negative"),
        (lambda: TasksConfig(sentences=-1), "must not be negative"),
        (lambda: clips_with(longest_jump=2), "model.longest_jump is 2"),
        (lambda: clips_with(farthest_goal=2), "raise it to 3 or more"),
        (lambda: clips_with(config=TasksConfig(forward=0, goal=1), farthest_goal=0), "task goal"),
        (lambda: clips_with(steps=2), "cannot fill a gap of 3 frames"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def clips_with(config: TasksConfig = MIXED, steps: int = STEPS, **changes: int) -> TaskClips:
    return TaskClips(recording_of_tokens(), config, told_model(**changes), steps)


def test_recordings_are_joined_episode_by_episode() -> None:
    one, other = recording_of_tokens((12, 9)), recording_of_tokens((7,), seed=1)
    joined = join_token_caches([one, other])
    assert joined.episode_starts.tolist() == [0, 12, 21, 28]
    assert np.array_equal(joined.visual_ids[21:], other.visual_ids)
    assert np.array_equal(joined.action_ids[:21], one.action_ids)
    assert joined.metadata["frames"] == 28
    assert join_token_caches([one]) is one
    with pytest.raises(DataError, match="different tokenizer_hash cannot be trained on together"):
        join_token_caches(
            [one, replace(other, metadata=dict(other.metadata) | {"tokenizer_hash": 1})]
        )


# The script, from captions to a world that begins with a sentence.

STORY = [
    "+model.sink=1",
    "+model.text_vocabulary_size=300",
    "+model.longest_jump=2",
    "+model.farthest_goal=5",
    "+model.recall_after=3",
    "+model.noise_levels=3",
    "tasks.forward=0.25",
    "tasks.plan=0.25",
    "tasks.fill=0.25",
    "tasks.goal=0.25",
    "tasks.stride=2",
    "on_policy.share_of_clips=0.5",
]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors", 0)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioned(tmp_path_factory.mktemp("recording"))


def write_captioned(folder: Path) -> Path:
    """Write a recording in which every third frame has no caption."""
    write_recording(folder, length=20, moving=True)
    dataset = Dataset(folder)
    texts = ("a red square", "a square in the corner")
    CaptionTable(captions=tuple(Caption(text=text, facts=()) for text in texts)).write(folder)
    for split in ("train", "validation", "test"):
        for info in dataset.episodes(split):
            write_caption_column(dataset, info, np.arange(info.length) % 3 - 1)
    return folder


def test_captions_of_several_recordings_are_counted_on(recording: Path) -> None:
    dataset = Dataset(recording)
    tokenizer = TextTokenizer.train(["a red square", "a square in the corner"], 300)
    text_ids, rows = captions_of_steps([dataset, dataset], "train", tokenizer, 17)
    assert text_ids.shape == (5, 17)
    assert not text_ids[-1].any()
    assert [tokenizer.decode(ids) for ids in text_ids[:2]] == [
        "a red square",
        "a square in the corner",
    ]
    assert rows[:4].tolist() == [-1, 0, 1, -1]
    assert rows[40:44].tolist() == [-1, 2, 3, -1]


def test_a_story_world_trains_resumes_bit_for_bit_and_begins_with_a_sentence(
    recording: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    whole = train(recording, tokenizer_file, tmp_path / "whole", *STORY)
    train(recording, tokenizer_file, tmp_path / "parts", *STORY, "training.length.steps=2")
    parts = train(recording, tokenizer_file, tmp_path / "parts", *STORY)
    expected, _ = load_tensors(whole.checkpoint)
    got, _ = load_tensors(parts.checkpoint)
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    figures = (whole.path / "summary.json").read_text()
    for name in ("first_frame_accuracy_caption", "middle_accuracy_goal", "middle_accuracy_no_goal"):
        assert f"validation_{name}" in figures
    world = load(whole.path)
    assert world.text_tokenizer is not None
    session = world.session(text="a red square", seed=0)
    assert session.step("right").shape == (16, 16, 3)


def test_new_parts_may_be_missing_from_initial_weights_and_nothing_else(
    recording: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    first = train(recording, tokenizer_file, tmp_path / "plain", "training.length.steps=1")
    again = [f"initial_weights={first.path / 'model.safetensors'}", "training.length.steps=1"]
    still = "training.optimiser.learning_rate=1e-12"
    twice = f"data.more_folders=[{recording}]"
    second = train(recording, tokenizer_file, tmp_path / "story", *STORY, *again, still, twice)
    before, after = (load_world_model(run.path / "model.safetensors")[0] for run in (first, second))
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], tensor)
    card = load(second.path).card
    assert card.data["frames"]["train"] == 80
    commands = card.training["commands"]
    assert any(command.startswith("python -m envs.caption") for command in commands)
    assert f"initial_weights={first.path / 'model.safetensors'}" in commands[-1]
    with pytest.raises(CheckpointError, match="width 32 instead of 64"):
        train(recording, tokenizer_file, tmp_path / "wide", *STORY, *again, "model.width=64")
    # What the other model learned beside must not be lost in silence.
    story = f"initial_weights={second.path / 'model.safetensors'}"
    with pytest.raises(CheckpointError, match="longest_jump 2 instead of 1"):
        train(recording, tokenizer_file, tmp_path / "back", story)


def test_a_recording_without_captions_says_how_to_make_them(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    silent = write_recording(tmp_path / "silent", length=20)
    with pytest.raises(DataError, match=r"has no captions; write .* `python -m envs\.caption"):
        train(silent, tokenizer_file, tmp_path / "run", *STORY)
    assert not (tmp_path / "run" / "text.json").exists()


def test_other_families_only_go_on(recording: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only models of family interleaved"):
        train(
            recording,
            tokenizer_file,
            tmp_path,
            "model=mineworld_tiny",
            "losses=next_token",
            "tasks.forward=0.5",
            "tasks.goal=0.5",
        )
