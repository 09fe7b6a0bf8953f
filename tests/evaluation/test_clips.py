"""Test clips are the same from a recording and from the environment that made it."""

from pathlib import Path

import numpy as np
import pytest

from tests.evaluation import toy_car
from worldgen.data.episodes import Dataset
from worldgen.errors import DataError, EnvironmentMissingError
from worldgen.evaluation.clips import (
    load_clips,
    read_clip_specs,
    render_clips,
    write_clip_specs,
)
from worldgen.real_environment import RealEnvironment


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("recording")
    toy_car.record(folder, episodes={"test": 3}, length=40)
    return Dataset(folder)


def test_clips_rendered_from_seed_and_actions_equal_the_recorded_ones(
    dataset: Dataset, tmp_path: Path
) -> None:
    recorded = load_clips(dataset, count=5, context=4, horizon=12)
    path = tmp_path / "evaluation.json"
    write_clip_specs(path, recorded.specs, context=4, horizon=12)
    specs, context, horizon = read_clip_specs(path)
    assert (context, horizon) == (4, 12)
    with RealEnvironment(toy_car.ENVIRONMENT, {}) as environment:
        rendered = render_clips(specs, environment, context=context)
    assert np.array_equal(rendered.frames, recorded.frames)
    assert np.array_equal(rendered.actions, recorded.actions)
    assert np.allclose(rendered.columns["yaw"], recorded.columns["yaw"])
    assert rendered.changed == 0
    assert rendered.horizon == recorded.horizon == 12


def test_clips_use_every_episode_before_one_is_used_twice(dataset: Dataset) -> None:
    clips = load_clips(dataset, count=3, context=4, horizon=12)
    assert len({spec.seed for spec in clips.specs}) == 3
    again = load_clips(dataset, count=3, context=4, horizon=12)
    assert np.array_equal(clips.frames, again.frames)


def test_a_changed_environment_is_counted(dataset: Dataset) -> None:
    clips = load_clips(dataset, count=1, context=4, horizon=12)
    spec = clips.specs[0]
    other = spec.actions.copy()
    other[-1, 0] = (other[-1, 0] + 1) % 3
    altered = type(spec)(
        seed=spec.seed, context_end=spec.context_end, actions=other, digest=spec.digest
    )
    with RealEnvironment(toy_car.ENVIRONMENT, {}) as environment:
        assert render_clips([altered], environment, context=4).changed == 1


def test_clips_longer_than_every_episode_are_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no test episode has the 8 \\+ 64 frames"):
        load_clips(dataset, context=8, horizon=64)


def test_missing_and_malformed_clip_lists_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data recordings"):
        read_clip_specs(tmp_path / "evaluation.json")
    path = tmp_path / "evaluation.json"
    path.write_text('{"format": "other", "version": 1}')
    with pytest.raises(DataError, match="not 'worldgen-evaluation-clips' version 1"):
        read_clip_specs(path)
    path.write_text("{")
    with pytest.raises(DataError, match="is not a list of test clips"):
        read_clip_specs(path)
    path.write_text(
        '{"format": "worldgen-evaluation-clips", "version": 1, "context": 2, "horizon": 3, '
        '"episodes": [{"seed": 1, "actions": [[[0], 6]]}], '
        '"clips": [{"episode": 0, "context_end": 4, "digest": ""}]}'
    )
    with pytest.raises(DataError, match="clip 0 has 6 actions"):
        read_clip_specs(path)


def test_a_missing_environment_is_named() -> None:
    with pytest.raises(EnvironmentMissingError, match="no_such_module"):
        RealEnvironment("no_such_module:worldgen/Nothing-v0", {})
