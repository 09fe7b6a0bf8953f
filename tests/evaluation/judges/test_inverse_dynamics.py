"""The judge of actions: what a label depends on, files, and what is read from recordings."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation import toy_clicks
from tests.factories import car_schema
from worldgen.checkpoint import save_tensors
from worldgen.data.episodes import Dataset
from worldgen.errors import ActionError, CheckpointError, ConfigError, DataError
from worldgen.evaluation.judges.inverse_dynamics import (
    InverseDynamicsConfig,
    InverseDynamicsModel,
    group_ids,
    load_inverse_dynamics,
    save_inverse_dynamics,
)
from worldgen.evaluation.judges.inverse_dynamics_data import (
    LabelledFrames,
    label_weights,
    load_labelled_clips,
    load_labelled_frames,
)
from worldgen.tokenizers.action import ActionSchema, Categorical, minecraft_schema


def config(**changes: int | tuple[int, ...]) -> InverseDynamicsConfig:
    sizes: dict[str, int | tuple[int, ...]] = {
        "frame_height": 16,
        "frame_width": 16,
        "channels": (4, 8),
        "width": 12,
    }
    return InverseDynamicsConfig(**(sizes | changes))  # type: ignore[arg-type]


def model(schema: ActionSchema | None = None, **changes: int) -> InverseDynamicsModel:
    torch.manual_seed(0)
    return InverseDynamicsModel(config(**changes), schema or car_schema()).eval()


def random_frames(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("window", [2, 4, 8])
def test_a_label_depends_on_its_window_of_frames_and_no_other(window: int) -> None:
    judge = model(window_frames=window)
    frames = torch.rand(1, 14, 3, 16, 16) * 2 - 1
    step = 6
    # Half of the window up to frame 6, half from frame 7 on.
    first, last = step + 1 - window // 2, step + window // 2
    before = judge(frames)[0][0, step]
    for place in range(14):
        other = frames.clone()
        other[:, place] = -other[:, place]
        same = torch.equal(judge(other)[0][0, step], before)
        assert same == (not first <= place <= last), place


def test_there_is_a_softmax_for_every_option_and_every_bin() -> None:
    for preset in ("mineworld", "vpt_camera", "minecraft"):
        schema = minecraft_schema(preset)
        logits = model(schema)(torch.zeros(2, 5, 3, 16, 16))
        assert [part.shape for part in logits] == [(2, 4, group.size) for group in schema.groups]


def test_labels_are_the_likeliest_options_of_each_clip_alone() -> None:
    judge = model()
    frames = random_frames(3, 9, 16, 16)
    labels = judge.label(frames)
    assert labels.shape == (3, 8, 2)
    assert labels.dtype == np.int64
    clips = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0
    expected = torch.stack([part.argmax(dim=-1) for part in judge(clips)], dim=-1)
    assert np.array_equal(labels, expected.numpy())


def test_long_clips_are_labelled_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = model()
    frames = random_frames(1, 23, 16, 16)
    whole = judge.label(frames)
    monkeypatch.setattr("worldgen.evaluation.judges.inverse_dynamics._PAIRS_AT_ONCE", 5)
    assert np.array_equal(judge.label(frames), whole)


def test_frames_of_another_size_are_brought_to_the_judge_s() -> None:
    judge = model()
    frames = random_frames(1, 6, 16, 16)
    enlarged = frames.repeat(2, axis=2).repeat(2, axis=3)
    assert judge.label(enlarged).shape == (1, 5, 2)
    plain = np.full((1, 6, 40, 24, 3), 90, np.uint8)
    assert np.array_equal(judge.label(plain), judge.label(plain[:, :, :16, :16]))


def test_a_single_frame_holds_no_action() -> None:
    with pytest.raises(ConfigError, match="between two frames, got 1"):
        model().label(random_frames(1, 1, 16, 16))


def test_ids_are_options_and_bins() -> None:
    schema = toy_clicks.clicks_schema()
    actions = np.array([[0, -1.0], [2, 0.0], [1, 0.99]])
    assert group_ids(schema, actions).tolist() == [[0, 0], [2, 2], [1, 4]]
    with pytest.raises(ActionError, match="'move' got 3"):
        group_ids(schema, np.array([[3, 0.0]]))


def test_a_file_gives_back_judge_schema_and_figures(tmp_path: Path) -> None:
    path = tmp_path / "inverse_dynamics.safetensors"
    schema = minecraft_schema("vpt_camera")
    judge = model(schema)
    for parameter in judge.parameters():
        parameter.data = parameter.data.half().float()
    save_inverse_dynamics(path, judge, {"steps": 7})
    loaded, figures = load_inverse_dynamics(path, schema)
    assert figures == {"steps": 7}
    assert loaded.config == judge.config
    assert loaded.schema == schema
    for name, tensor in judge.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert path.stat().st_size < 2.3 * sum(p.numel() for p in judge.parameters()) + 20_000


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "inverse_dynamics.safetensors"
    save_tensors(path, {"a": torch.zeros(1)}, {"kind": "probes"})
    with pytest.raises(CheckpointError, match="holds 'probes', not an inverse dynamics model"):
        load_inverse_dynamics(path)
    save_inverse_dynamics(path, model(), {})
    with pytest.raises(
        CheckpointError, match=r"reads the groups steering \(3\), pedals \(3\), but .* move \(3\)"
    ):
        load_inverse_dynamics(path, toy_clicks.clicks_schema())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_inverse_dynamics(path)
    with pytest.raises(CheckpointError, match="no weights at"):
        load_inverse_dynamics(tmp_path / "nothing.safetensors")


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"even number of at least 2, .* got 7"):
        config(window_frames=7)
    with pytest.raises(ConfigError, match="at least 16 x 16 pixels, got 16 x 8"):
        config(frame_width=8, channels=(1, 1, 1, 1))
    with pytest.raises(ConfigError, match="must be positive"):
        config(width=0)
    with pytest.raises(ConfigError, match="must be positive"):
        config(channels=())


def labelled(follows: list[bool], actions: list[list[int]]) -> LabelledFrames:
    count = len(follows)
    return LabelledFrames(
        frames=np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3),
        actions=np.array(actions),
        follows=np.array(follows),
    )


def test_clips_never_cross_a_cut_or_an_episode_s_end() -> None:
    follows = [True, True, False, True, True, True, False]
    data = labelled(follows, [[0]] * 7)
    for clip_frames in range(1, 6):
        expected = [
            start + clip_frames <= 7 and all(follows[start : start + clip_frames - 1])
            for start in range(7)
        ]
        assert data.clip_starts(clip_frames).tolist() == expected
    frames, actions = data.clips(np.array([3, 0]), 3)
    assert np.array_equal(frames[0], data.frames[3:6])
    assert actions.shape == (2, 2, 1)


def test_clips_with_rare_actions_are_drawn_more_often() -> None:
    schema = ActionSchema(groups=(Categorical("key", ("none", "down")),))
    follows = [True] * 9 + [False]
    data = labelled(follows, [[0]] * 8 + [[1], [1]])
    even = label_weights(data, schema, 3, 0.0)
    assert even[:8] == pytest.approx(np.full(8, even[0]))
    assert even[8:].tolist() == [0.0, 0.0]
    # Of the nine steps one has the key down: by the full power a step weighs 9 / 8 or 9.
    rare = label_weights(data, schema, 3, 1.0)
    assert rare[7] / rare[0] == pytest.approx((9 / 8 + 9) / (9 / 8 + 9 / 8))
    with pytest.raises(DataError, match="as long as a clip of 11 frames"):
        label_weights(data, schema, 11, 0.0)


def test_recordings_are_read_with_their_actions_and_resized(tmp_path: Path) -> None:
    dataset = Dataset(toy_clicks.record(tmp_path / "recording", episodes=2, length=20))
    data = load_labelled_frames(dataset, "train", (8, 8), 1000)
    assert data.frames.shape == (40, 8, 8, 3)
    assert np.flatnonzero(~data.follows).tolist() == [19, 39]
    frames, actions = load_labelled_clips(dataset, "test", (16, 16), 1000, clip_frames=10)
    # Two clips of ten frames in each episode; the second begins with the last frame of the first.
    assert frames.shape == (4, 10, 16, 16, 3)
    assert np.array_equal(frames[0, -1], frames[1, 0])
    for clip, taken in zip(frames, actions, strict=True):
        hops = np.array([0, -1, 1])[taken[:, 0].astype(int)]
        places = (clip[:, 3, :, 0] > 200).argmax(axis=1) // 4
        assert np.array_equal(np.diff(places) % 4, hops % 4)
    with pytest.raises(DataError, match="as long as a clip of 21 frames"):
        load_labelled_clips(dataset, "test", (16, 16), 1000, clip_frames=21)


def test_an_action_that_the_schema_does_not_know_is_named_with_its_file(tmp_path: Path) -> None:
    folder = toy_clicks.record(tmp_path / "recording", episodes=1, length=8)
    path = folder / "train" / "episode_000000.npz"
    with np.load(path) as arrays:
        columns = dict(arrays)
    columns["action"][3, 0] = 5
    np.savez_compressed(path, **columns)
    with pytest.raises(DataError, match=r"episode_000000.npz: action group 'move' got 5"):
        load_labelled_frames(Dataset(folder), "train", (16, 16), 100)
    columns["action"] = columns["action"][:, :1]
    np.savez_compressed(path, **columns)
    with pytest.raises(DataError, match=r"must have 2 numbers, one for each group"):
        load_labelled_frames(Dataset(folder), "train", (16, 16), 100)
