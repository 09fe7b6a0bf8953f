"""MineRL: every key of both dialects, checked by a stand-in that raises on any mistake."""

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.drivers import make_driver
from envs.record import RecordConfig, play_episode, record
from worldgen.config import build, load_config
from worldgen.data.episodes import Dataset, EpisodeInfo
from worldgen.errors import ActionError, ConfigError, EnvironmentMissingError
from worldgen.real_environment import RealEnvironment
from worldgen.tokenizers.action import ActionTokenizer, actions_from_keys
from worldgen.tokenizers.action.minecraft import ENVIRONMENT_KEYS, to_environment_action

IDENTIFIER = "envs.minerl:worldgen/MineRL-v0"
STAND_IN = Path(__file__).parent / "minerl_stand_in"
MODERN_KEYS = {
    "KeyW": "forward",
    "KeyS": "back",
    "KeyA": "left",
    "KeyD": "right",
    "Space": "jump",
    "ShiftLeft": "sneak",
    "ControlLeft": "sprint",
    "Mouse0": "attack",
    "Mouse2": "use",
    "Mouse1": "pickItem",
    "KeyQ": "drop",
    "KeyE": "inventory",
    "KeyF": "swapHands",
    **{f"Digit{number}": f"hotbar.{number}" for number in range(1, 10)},
}
OLD_KEYS = {code: MODERN_KEYS[code] for code in list(MODERN_KEYS)[:8]}

Make = Callable[..., gymnasium.Env[Any, Any]]


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gym", "minerl"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that installs the stand-in of a dialect until the test is over."""

    def installed(dialect: str) -> None:
        # Through the environment and the path, so that the recorder's processes find it too.
        monkeypatch.setenv("MINERL_STAND_IN", dialect)
        monkeypatch.syspath_prepend(str(STAND_IN))
        _forget(monkeypatch)

    yield installed
    for name in ("gym", "minerl"):
        sys.modules.pop(name, None)


@pytest.fixture
def modern(install: Callable[[str], None]) -> Make:
    """Return a function that makes environments of MineRL 1.0."""
    install("1.0")
    return _make


@pytest.fixture
def old(install: Callable[[str], None]) -> Make:
    """Return a function that makes environments of MineRL 0.4, which lack many keys."""
    install("0.4")

    def make(**options: Any) -> gymnasium.Env[Any, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _make(**{"dialect": "0.4", "task": "MineRLNavigate-v0", **options})

    return make


def _make(**options: Any) -> gymnasium.Env[Any, Any]:
    sizes = {"height": 28, "width": 48}
    return gymnasium.make(IDENTIFIER, disable_env_checker=True, **{**sizes, **options})


def _game(environment: gymnasium.Env[Any, Any]) -> Any:
    """Return the stand-in inside."""
    return environment.unwrapped._game.unwrapped  # type: ignore[attr-defined]


def _action(environment: gymnasium.Env[Any, Any], **settings: Any) -> np.ndarray:
    schema = environment.unwrapped.action_schema  # type: ignore[attr-defined]
    return np.asarray(schema.action(settings))


def _down(sent: dict[str, Any]) -> set[str]:
    """Return what of an action is not at rest."""
    rest = {str: "none"}
    return {key for key, value in sent.items() if np.any(value != rest.get(type(value), 0))}


@pytest.mark.parametrize("dialect", ["0.4", "1.0"])
def test_without_minerl_the_message_says_how_to_install_it(
    dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gym", None)
    source = {"0.4": r"pip install minerl==0\.4\.4", "1.0": r"git\+https://github.com/minerllabs"}
    with pytest.raises(EnvironmentMissingError, match=rf"Java 8.*{source[dialect]}.*Python 3\.11"):
        _make(dialect=dialect)


def test_a_broken_minerl_is_told_from_a_missing_one(
    install: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("1.0")
    (tmp_path / "minerl.py").write_text("raise RuntimeError('no gradle')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        EnvironmentMissingError, match=r"broken \(RuntimeError: no gradle\).*Java 8"
    ):
        _make()


def test_neither_gym_nor_minerl_is_imported_before_an_environment_is_made() -> None:
    code = "import sys, envs.minerl; print({'gym', 'minerl'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=250,
        env={**os.environ, "PYTHONPATH": str(STAND_IN), "MINERL_STAND_IN": "1.0"},
    )
    assert result.stdout.strip() == "set()"


def test_gymnasium_accepts_the_environment_in_the_modern_dialect(modern: Make) -> None:
    check_env(modern(task="MineRLHumanSurvival-v0", render_mode="rgb_array").unwrapped)


@pytest.mark.filterwarnings("ignore:MineRLNavigate-v0 has no")
def test_gymnasium_accepts_the_environment_in_the_old_dialect(old: Make) -> None:
    check_env(old(render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("preset", ["minecraft", "mineworld", "vpt_camera"])
def test_every_key_of_the_page_presses_its_key_in_the_game(modern: Make, preset: str) -> None:
    environment = modern(task="MineRLHumanSurvival-v0", schema=preset)
    environment.reset(seed=0)
    schema = environment.unwrapped.action_schema  # type: ignore[attr-defined]
    beyond = set() if preset == "minecraft" else {"KeyE", "KeyF"}
    for code, key in MODERN_KEYS.items():
        if code not in beyond:
            environment.step(actions_from_keys([code], schema))
            assert _down(_game(environment).received[-1]) == {key}
    assert len(_game(environment).received) == len(MODERN_KEYS) - len(beyond)


def test_every_option_of_every_group_is_an_action_of_the_game(modern: Make) -> None:
    environment = modern(task="MineRLHumanSurvival-v0", schema="mineworld")
    environment.reset(seed=0)
    seen = set()
    for group in environment.unwrapped.action_schema.groups:  # type: ignore[attr-defined]
        for option in getattr(group, "options", ()):
            environment.step(_action(environment, **{group.name: option}))
            down = _down(_game(environment).received[-1])
            assert down == (set() if option == "none" else {option})
            seen |= down
    assert seen == set(MODERN_KEYS.values()) - {"inventory", "swapHands"}


def test_keys_are_held_together_and_at_any_camera(modern: Make) -> None:
    environment = modern(task="MineRLHumanSurvival-v0")
    environment.reset(seed=0)
    taken = _action(environment, forward_back="forward", jump="jump", use_attack="use&attack")
    taken[:2] = (-1.25, 30.3)
    environment.step(taken)
    sent = _game(environment).received[-1]
    assert _down(sent) == {"forward", "jump", "use", "attack", "camera"}
    # Pitch first, and not rounded to the bins of the schema.
    assert sent["camera"].tolist() == pytest.approx([-1.25, 30.3])
    environment.step(tuple(taken.tolist()))
    assert str(_game(environment).received[-1]) == str(sent)


def test_the_camera_is_clipped_to_the_range_of_the_task(modern: Make) -> None:
    environment = modern(task="MineRLNarrowCamera-v0")
    environment.reset(seed=0)
    environment.step(_action(environment, camera_pitch=-90.0, camera_yaw=2.5))
    assert _game(environment).received[-1]["camera"].tolist() == [-3.0, 2.5]


def test_wrong_actions_are_refused(modern: Make) -> None:
    environment = modern()
    environment.reset(seed=0)
    with pytest.raises(ActionError, match=r"12 groups, got an action of shape \(3,\)"):
        environment.step(np.zeros(3))
    with pytest.raises(ActionError, match="'jump' got 2"):
        environment.step(_action(environment) + 2)
    with pytest.raises(ActionError, match="finite turns of the camera"):
        environment.step(np.where(np.arange(12) < 2, np.nan, 0.0))
    assert _game(environment).received == []


def test_keys_that_the_old_dialect_lacks_do_nothing_and_one_warning_says_so(old: Make) -> None:
    lacking = r"Navigate-v0 has no ESC, drop, hotbar\.1, .*swapHands, use"
    with pytest.warns(UserWarning, match=lacking) as told:
        environment = _make(dialect="0.4", task="MineRLNavigate-v0")
    assert len(told) == 1
    environment.reset(seed=0)
    schema = environment.unwrapped.action_schema  # type: ignore[attr-defined]
    for code, key in MODERN_KEYS.items():
        environment.step(actions_from_keys([code], schema))
        assert _down(_game(environment).received[-1]) == ({key} if code in OLD_KEYS else set())


def test_what_keys_cannot_say_stays_at_the_no_op(old: Make) -> None:
    environment = old(task="MineRLObtainDiamond-v0")
    environment.reset(seed=0)
    environment.step(_action(environment, forward_back="forward"))
    sent = _game(environment).received[-1]
    named = {key: sent[key] for key in ("place", "equip", "craft", "nearbyCraft", "nearbySmelt")}
    assert set(named.values()) == {"none"}
    assert _down(sent) == {"forward"}


def test_the_old_dialect_uses_where_the_task_does(old: Make) -> None:
    environment = old(task="MineRLBasaltFindCave-v0")
    environment.reset(seed=0)
    environment.step(_action(environment, use_attack="use"))
    assert _down(_game(environment).received[-1]) == {"use"}


def test_frames_are_the_whole_picture_in_the_size_asked_for(modern: Make) -> None:
    stock = modern(height=360, width=640).reset(seed=3)[0]
    assert stock.shape == (360, 640, 3)
    eighth = modern(height=45, width=80).reset(seed=3)[0]
    assert eighth.dtype == np.uint8
    # The world is blocks of 8x8 pixels of one colour: all of them are there, none is moved.
    blocks = stock[4::8, 4::8].astype(float)
    for shown in (eighth, modern(height=90, width=160).reset(seed=3)[0][::2, ::2]):
        assert np.corrcoef(shown.ravel(), blocks.ravel())[0, 1] > 0.95
    assert modern(height=224, width=384).reset(seed=3)[0].shape == (224, 384, 3)


def test_the_old_dialect_gives_frames_too(old: Make) -> None:
    environment = old(height=64, width=64)
    frame = environment.reset(seed=3)[0]
    assert frame.shape == (64, 64, 3)
    turned = environment.step(_action(environment, camera_yaw=4.0))[0]
    assert np.array_equal(turned, np.roll(frame, -8, 1))


def test_seeds_make_worlds(modern: Make) -> None:
    environment = modern()
    first = environment.reset(seed=7)[0]
    assert not np.array_equal(environment.reset(seed=8)[0], first)
    assert np.array_equal(environment.reset(seed=7)[0], first)
    # Without a seed the world follows from the seed before, as everywhere in Gymnasium.
    again = environment.reset()[0]
    assert not np.array_equal(again, first)
    environment.reset(seed=7)
    assert np.array_equal(environment.reset()[0], again)


def test_info_holds_what_the_task_observes(modern: Make) -> None:
    environment = modern(task="MineRLHumanSurvival-v0")
    columns = environment.unwrapped.COLUMNS  # type: ignore[attr-defined]
    assert [*columns] == ["x", "y", "z", "yaw", "pitch", "inventory"]
    assert columns["inventory"].meaning == "how many of: acacia_boat, dirt, torch"
    _, info = environment.reset(seed=0)
    assert info["inventory"].tolist() == [0, 1, 2]
    turn = {"camera_pitch": 10.0, "camera_yaw": 90.0}
    info = environment.step(_action(environment, forward_back="forward", **turn))[4]
    assert info["x"] == pytest.approx(-0.2)
    assert (info["yaw"], info["pitch"]) == (90.0, 10.0)
    assert info["inventory"].tolist() == [1, 2, 3]
    assert info["isGuiOpen"] is False
    for name, column in columns.items():
        assert np.asarray(info[name]).astype(column.dtype).shape == column.shape
    assert modern().unwrapped.COLUMNS == {}  # type: ignore[attr-defined]


def test_escape_ends_an_episode_and_later_steps_change_nothing(modern: Make) -> None:
    environment = modern()
    environment.reset(seed=0)
    assert environment.step(_action(environment))[2:4] == (False, False)
    frame, _, terminated, truncated, _ = environment.step(_action(environment, escape="ESC"))
    assert (terminated, truncated) == (True, False)
    later, reward, *end, _ = environment.step(_action(environment, use_attack="attack"))
    assert (reward, *end) == (0.0, True, False)
    assert np.array_equal(later, frame)
    assert len(_game(environment).received) == 2
    environment.reset(seed=0)
    assert environment.step(_action(environment, use_attack="attack"))[1:4] == (1.0, False, False)


def test_a_time_limit_truncates(old: Make) -> None:
    environment = old()
    environment.reset(seed=0)
    ends = [environment.step(_action(environment))[2:4] for _ in range(30)]
    assert ends == [(False, False)] * 29 + [(False, True)]
    environment.step(_action(environment))
    assert len(_game(environment).received) == 30


def test_the_noise_that_follows_a_breakdown_is_no_frame(modern: Make) -> None:
    environment = modern(task="MineRLHumanSurvival-v0")
    before, info_before = environment.reset(seed=0)
    _game(environment).loses_connection = True
    frame, _, terminated, truncated, info = environment.step(_action(environment))
    assert (terminated, truncated) == (False, True)
    assert info["error"] == "Connection timed out!"
    assert info["x"] == info_before["x"]
    assert np.array_equal(frame, before)


def test_a_minecraft_that_does_not_start_is_explained(modern: Make) -> None:
    environment = modern()
    _game(environment).fails_to_start = True
    with pytest.raises(
        EnvironmentMissingError, match=r"did not start.*finished unexpectedly.*Java 8.*xvfb-run"
    ):
        environment.reset(seed=0)


def test_numpy_is_left_as_it_was_and_the_game_is_closed(modern: Make) -> None:
    before = set(vars(np))
    environment = modern()
    environment.reset(seed=0)
    environment.step(_action(environment))
    assert set(vars(np)) == before
    environment.close()
    assert _game(environment).closed


def test_wrong_options_say_what_is_allowed(modern: Make) -> None:
    with pytest.raises(ConfigError, match=r"dialect='2'; use one of \['0\.4', '1\.0'\]"):
        _make(dialect="2")
    with pytest.raises(ConfigError, match="height=0 width=48; use 1 pixel"):
        _make(height=0)
    with pytest.raises(ConfigError, match=r"no task 'MineRLFly-v0'.*MineRLBasaltFindCave-v0"):
        _make(task="MineRLFly-v0")
    with pytest.raises(ActionError, match="no Minecraft preset 'quake'"):
        _make(schema="quake")
    with pytest.raises(ConfigError, match=r"speaks MineRL 1\.0 here, asked for dialect 0\.4"):
        # As a number, which is what a command line makes of it.
        _make(dialect=0.4)


def test_tasks_without_keys_are_refused(old: Make) -> None:
    with pytest.raises(ConfigError, match="instead of keys and a camera"):
        old(task="MineRLObtainDiamondVectorObf-v0")
    with pytest.raises(ConfigError, match=r"speaks MineRL 0\.4 here, asked for dialect 1\.0"):
        old(dialect="1.0", task="MineRLBasaltFindCave-v0")


def test_it_runs_beside_a_dream(modern: Make) -> None:
    with RealEnvironment(IDENTIFIER, {"height": 28, "width": 48}) as environment:
        first = environment.reset(seed=5)
        action = np.zeros(12)
        action[1] = 20.0
        assert not np.array_equal(environment.step(action), first)
        action[-1] = 1
        environment.step(action)
        assert environment.ended
        assert environment.step(action).shape == (28, 48, 3)


def _drive(environment: gymnasium.Env[Any, Any], seed: int, length: int) -> Any:
    info = EpisodeInfo(index=0, seed=seed, length=length, driver="")
    episode = play_episode(environment, "walker", info)
    assert episode is not None
    assert episode.info.length == length
    return episode


def test_the_walker_walks_looks_jumps_and_hits(modern: Make) -> None:
    environment = modern(task="MineRLHumanSurvival-v0")
    schema = environment.unwrapped.action_schema  # type: ignore[attr-defined]
    drives = []
    for seed in range(3):
        driver = make_driver("walker", environment, np.random.default_rng(seed))
        drives.append(np.stack([driver.act({}) for _ in range(600)]))
    pressed = to_environment_action(np.concatenate(drives), schema)
    share = {key: pressed[key].mean() for key in ENVIRONMENT_KEYS}
    assert 0.4 < share["forward"] < 0.9
    assert 0.05 < share["attack"] < 0.4
    assert 0.05 < share["jump"] < 0.5
    assert min(share[key] for key in ("sprint", "left", "right", "sneak", "use", "back")) > 0.003
    assert sum(share[key] for key in ("ESC", "inventory", "drop", "swapHands", "pickItem")) == 0
    for drive in drives:
        camera = drive[:, :2]
        assert np.abs(camera).max() <= 9.5
        assert 0.05 < (camera == 0).all(1).mean() < 0.8
        assert (np.abs(camera[:, 1]) > 0.5).mean() > 0.15
        # As smooth as a hand: it hardly ever changes its speed by two degrees a frame.
        assert np.mean(np.abs(np.diff(camera, axis=0)) > 2.0) < 0.02
        assert np.abs(np.cumsum(camera[:, 0])).max() <= 75


def test_the_walker_turns_away_from_what_it_cannot_pass(modern: Make) -> None:
    environment = modern(task="MineRLHumanSurvival-v0")
    environment.reset(seed=0)

    def jumps(step: float) -> int:
        driver = make_driver("walker", environment, np.random.default_rng(0))
        schema = environment.unwrapped.action_schema  # type: ignore[attr-defined]
        infos = [{"x": step * frame, "z": 0.0, "pitch": 0.0} for frame in range(400)]
        taken = [driver.act(info)[schema.group_index("jump")] for info in infos]
        return int(np.sum(taken))

    assert jumps(0.0) > jumps(0.3) + 50


def test_the_same_seed_makes_the_same_episode_in_both_dialects(old: Make) -> None:
    environment = old()
    first, again, other = (_drive(environment, seed, 30) for seed in (4, 4, 5))
    assert np.array_equal(first.actions, again.actions)
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.actions, other.actions)
    # Keys without an effect would teach a world that they have none.
    schema = environment.unwrapped.action_schema  # type: ignore[attr-defined]
    assert not first.actions[:, schema.group_index("hotbar")].any()


def test_the_walker_plays_nothing_else() -> None:
    other = gymnasium.make("envs.crafter:worldgen/Crafter-v0", disable_env_checker=True)
    with pytest.raises(ConfigError, match="driver 'walker' plays Minecraft"):
        make_driver("walker", other, np.random.default_rng(0))


def _recording(out: Path, *overrides: str) -> Dataset:
    settings = ["env=minerl", f"out={out}", "env.options.height=32", "env.options.width=48"]
    settings += ["frames=40", "episode_length=20", *overrides]
    return record(build(RecordConfig, load_config("record", settings)))


def test_recordings_of_the_modern_dialect_are_native_episodes(modern: Make, tmp_path: Path) -> None:
    dataset = _recording(tmp_path / "minecraft", "env.options.task=MineRLHumanSurvival-v0")
    metadata = dataset.metadata
    assert metadata.frames_per_second == 20.0
    assert (metadata.frame_height, metadata.frame_width) == (32, 48)
    assert {"x", "yaw", "inventory", "reward", "cut"} <= set(metadata.columns)
    assert metadata.environment is not None
    described = json.loads((dataset.folder / "dataset.json").read_text())
    assert set(described["action_schema"]["pointer"]) == {"x", "y"}
    environment: gymnasium.Env[Any, Any] = gymnasium.make(
        metadata.environment["id"], **metadata.environment["options"]
    )
    for split in ("train", "validation"):
        (info,) = dataset.episodes(split)
        episode = dataset.load(info)
        assert (info.length, info.driver, info.ended) == (20, "walker", "length")
        ids = ActionTokenizer(metadata.schema).encode(episode.actions)
        assert ids.shape == (20, 12)
        frame, state = environment.reset(seed=info.seed)
        for step, action in enumerate(episode.actions):
            assert np.array_equal(frame, episode.frames[step])
            assert state["z"] == episode.columns["z"][step]
            assert state["inventory"].tolist() == episode.columns["inventory"][step].tolist()
            frame, _, _, _, state = environment.step(tuple(action))


@pytest.mark.slow  # starts a process of its own, as the test above does
@pytest.mark.filterwarnings("ignore:MineRLNavigate-v0 has no")
def test_recordings_of_the_old_dialect_are_native_episodes(old: Make, tmp_path: Path) -> None:
    options = ["env.options.dialect=0.4", "env.options.task=MineRLNavigate-v0"]
    dataset = _recording(tmp_path / "minecraft", *options, "env.options.schema=mineworld")
    assert set(dataset.metadata.columns) == {"inventory", "reward", "cut"}
    (info,) = dataset.episodes("train")
    episode = dataset.load(info)
    assert episode.frames.shape == (20, 32, 48, 3)
    assert ActionTokenizer(dataset.metadata.schema).encode(episode.actions).shape == (20, 11)


@pytest.mark.slow  # minutes, and only where it is installed
def test_the_real_minerl_plays_and_records(tmp_path: Path) -> None:
    if os.environ.get("WORLDGEN_MINERL") != "1":
        pytest.skip("set WORLDGEN_MINERL=1 to start the real Minecraft")
    if importlib.util.find_spec("minerl") is None:
        pytest.skip("MineRL is not installed")
    dialect = os.environ.get("WORLDGEN_MINERL_DIALECT", "1.0")
    dataset = _recording(tmp_path / "minecraft", f"env.options.dialect={dialect}")
    for split in ("train", "validation"):
        (info,) = dataset.episodes(split)
        episode = dataset.load(info)
        assert episode.frames.shape == (20, 32, 48, 3)
        assert len(np.unique(episode.frames)) > 16
