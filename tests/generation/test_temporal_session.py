"""Sessions of worlds that draw several frames at a time: when actions count, and exactness."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import temporal_tokenizer_config, tiny_world
from worldgen.errors import ActionError, ConfigError, LogError, SessionLimitError
from worldgen.generation import RolloutLog, Session, Start
from worldgen.generation.pixels import SessionPixels
from worldgen.pipeline import World, load
from worldgen.records import to_uint8
from worldgen.tokenizers.visual import OmniTokenizer

ACTIONS = ["left", "gas", "nothing", "left+gas", "brake", "right"]
TOGETHER = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(tiny_world(tmp_path_factory.mktemp("world"), frames_per_step=TOGETHER))


def script(count: int, offset: int = 0) -> list[str]:
    return [ACTIONS[number % len(ACTIONS)] for number in range(offset, offset + count)]


def played(session: Session, count: int, offset: int = 0) -> list[np.ndarray]:
    return list(session.play(script(count, offset)))


def decoded_whole(session: Session) -> np.ndarray:
    """Return frame 0 and all frames drawn, from one pass over the whole clip."""
    log = session.log()
    grids = [session.ids_at(index) for index in range(1, session.frame_index + 1, TOGETHER)]
    clip = torch.tensor(np.concatenate((np.array(log.context_ids), np.stack(grids))))
    frames = to_uint8(session.parts.visual_tokenizer.decode(clip.reshape(1, -1, 8, 8)))[0].numpy()
    first = session.parts.visual_tokenizer.num_frames(len(log.context_ids)) - 1
    return frames[first:]


def test_frames_are_those_of_the_whole_clip_decoded_at_once(world: World) -> None:
    session = world.session(seed=3)
    frames = [session.frame, *played(session, 22)]
    expected = decoded_whole(session)
    assert len(expected) == 1 + 24
    for index, frame in enumerate(frames):
        assert np.array_equal(frame, expected[index])
        assert np.array_equal(session.frame_at(index), expected[index])
    changed = [bool((before != after).any()) for before, after in pairwise(expected)]
    assert sum(changed) > 20


def test_a_script_is_heeded_at_every_frame(world: World) -> None:
    session = world.session(seed=1)
    played(session, 8)
    assert session.actions.tolist() == [world_action(world, name) for name in script(8)]
    for place in range(8):
        changed = script(8)
        changed[place] = "right+brake"
        other = world.session(seed=1)
        list(other.play(changed))
        first = place // TOGETHER * TOGETHER + 1
        # The grid that the action leads to is another one, those before are not.
        assert not np.array_equal(other.ids_at(first), session.ids_at(first)), place
        if place >= TOGETHER:
            assert np.array_equal(other.ids_at(1), session.ids_at(1))


def world_action(world: World, name: str) -> list[int]:
    session = world.session()
    session.step(name)
    action: list[int] = session.actions[0].tolist()
    return action


def test_a_single_step_holds_its_action_until_the_next_grid(world: World) -> None:
    session, held = world.session(seed=2), world.session(seed=2)
    for name in ("left", "gas", "brake", "right", "gas"):
        session.step(name)
    list(held.play(["left"] * 4 + ["gas"] * 4))
    assert session.frame_index == 5
    assert session.frames_left == 3
    assert np.array_equal(session.actions, held.actions[:5])
    assert np.array_equal(session.action_at(4), held.action_at(1))
    for _ in range(3):
        session.step("nothing")
    assert session.log() == held.log()
    # A script that ends early holds its last action too.
    short = world.session(seed=2)
    list(short.play(["left"] * 3))
    assert np.array_equal(short.ids, held.ids_at(1))


def test_actions_that_do_not_exist_change_nothing(world: World) -> None:
    session = world.session()
    played(session, 2)
    before = session.log()
    with pytest.raises(ActionError, match="fly"):
        session.step("fly")
    played(session, 2)
    with pytest.raises(ActionError, match="fly"):
        session.step("left", ["fly"])
    assert session.log().digests[:2] == before.digests
    assert session.frame_index == 4
    with pytest.raises(SessionLimitError, match="frames 1 to 4"):
        session.action_at(0)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6, 30, 61])
def test_rewinding_and_playing_on_gives_the_same_frames(world: World, count: int) -> None:
    session = world.session(seed=8)
    frames = [session.frame, *played(session, 61)]
    expected = session.log()
    assert np.array_equal(session.rewind(count), frames[61 - count])
    assert session.frame_index == 61 - count
    again = played(session, count, offset=61 - count)
    assert session.log() == expected
    for one, other in zip(again, frames[62 - count :], strict=True):
        assert np.array_equal(one, other)


def test_rewinding_beyond_the_ring_computes_the_same(world: World) -> None:
    # 64 grids stay in the ring.
    session = world.session(seed=8)
    played(session, 300)
    expected, frame = session.log(), session.frame
    session.rewind(299)
    played(session, 299, offset=1)
    assert session.log() == expected
    assert np.array_equal(session.frame, frame)


def test_frames_drawn_together_stay_after_a_rewind_into_their_midst(world: World) -> None:
    session = world.session(seed=8)
    frames = played(session, 12)
    session.rewind(6)
    assert session.frames_left == 2
    for index in (6, 7):
        assert np.array_equal(session.step("brake"), frames[index])
    assert not np.array_equal(session.step("right"), frames[8])


def test_forks_and_rewinds_leave_each_other_alone(world: World) -> None:
    original = world.session(seed=1)
    played(original, 10)
    fork = original.fork()
    fork.rewind(5)
    away = played(fork, 9, offset=3)
    played(original, 4, offset=10)
    plain = world.session(seed=1)
    expected = played(plain, 10) + played(plain, 4, offset=10)
    assert original.log() == plain.log()
    for index in (14, 3, 11, 1):
        assert np.array_equal(original.frame_at(index), expected[index - 1])
    assert np.array_equal(fork.frame, away[-1])
    assert np.array_equal(fork.frame_at(5), expected[4])
    assert np.array_equal(decoded_whole(fork)[: fork.frame_index + 1][-1], fork.frame)


@pytest.mark.parametrize("count", [0, 1, 4, 7, 8])
def test_a_log_gives_the_session_again(world: World, tmp_path: Path, count: int) -> None:
    session = world.session(seed=11, start=1, decoder="strided:4")
    played(session, 10)
    session.rewind(10 - count)
    log = session.log()
    assert len(log.digests) == count
    assert len(log.actions) == -(-count // TOGETHER) * TOGETHER
    session.save(tmp_path / "log.json")
    loaded = world.load_session(tmp_path / "log.json")
    assert loaded.log() == log
    assert loaded.frame_index == count
    for index in range(count + 1):
        assert np.array_equal(loaded.frame_at(index), session.frame_at(index))
    # Both go on in the same way, from the midst of a grid too.
    assert np.array_equal(played(session, 5, offset=2), played(loaded, 5, offset=2))
    assert session.log() == loaded.log()


def test_another_process_shows_the_same_pixels(world: World, tmp_path: Path) -> None:
    session = world.session(seed=5)
    frames = played(session, 9)
    session.save(tmp_path / "log.json")
    code = (
        "import sys, numpy, torch, worldgen.pipeline as pipeline\n"
        "from pathlib import Path\n"
        "torch.set_num_threads(int(sys.argv[4]))\n"
        "session = pipeline.load(sys.argv[1]).load_session(Path(sys.argv[2]))\n"
        "numpy.save(sys.argv[3], [session.frame_at(number) for number in range(1, 10)])\n"
    )
    words = [str(world.folder), str(tmp_path / "log.json"), str(tmp_path / "frames.npy")]
    threads = str(torch.get_num_threads())
    subprocess.run([sys.executable, "-c", code, *words, threads], check=True)
    assert np.array_equal(np.load(tmp_path / "frames.npy"), frames)


def test_malformed_logs_are_named(world: World, tmp_path: Path) -> None:
    session = world.session()
    played(session, 6)
    data = session.log().to_json()
    assert data["frames_per_step"] == TOGETHER
    path = tmp_path / "log.json"
    for change, message in (
        ({"actions": data["actions"][:6]}, "6 actions but 6 digests of frames drawn 4 at a time"),
        ({"frames_per_step": 0}, "8 actions but 6 digests"),
        ({"frames_per_step": 2}, "8 actions but 6 digests of frames drawn 2"),
        ({"context_actions": [row[:2] for row in data["context_actions"]]}, "needs 8 ids"),
    ):
        path.write_text(json.dumps(data | change))
        with pytest.raises(LogError, match=message):
            world.load_session(path)
    longer = RolloutLog.from_json(data | {"frames_per_step": 8})
    with pytest.raises(LogError, match="8 frames at a time, world 'tiny' 4"):
        world.replay_session(longer)


def test_a_world_of_single_frames_writes_logs_as_ever(tmp_path: Path) -> None:
    session = load(tiny_world(tmp_path)).session()
    played(session, 3)
    assert "frames_per_step" not in session.log().to_json()
    assert session.frames_left == 0


def test_a_start_with_the_actions_of_single_frames_is_refused(world: World) -> None:
    start = Start(
        visual_ids=torch.zeros(3, 64, dtype=torch.int64),
        action_ids=torch.zeros(2, 2, dtype=torch.int64),
    )
    with pytest.raises(ActionError, match="has 8 action tokens"):
        world.session(start=start)


def test_a_start_of_a_single_frame_is_enough(world: World) -> None:
    start = Start(
        visual_ids=torch.zeros(1, 64, dtype=torch.int64),
        action_ids=torch.zeros(0, 8, dtype=torch.int64),
    )
    session = world.session(start=start)
    frames = [session.frame, *played(session, 8)]
    assert np.array_equal(frames, decoded_whole(session))


class CountedStreams:
    """A tokenizer of clips whose streams say how much they were fed."""

    single_frames = False
    rows = 1

    def __init__(self) -> None:
        self.pushes = 0

    def decoder_stream(self) -> "CountedStream":
        return CountedStream(self, 0.0)


class CountedStream:
    """Shows the sum of everything so far, so that order and completeness matter."""

    def __init__(self, owner: CountedStreams, total: float) -> None:
        self.owner, self.total = owner, total

    def push(self, ids: torch.Tensor) -> torch.Tensor:
        self.owner.pushes += 1
        self.total = (self.total * 3 + float(ids.sum())) % 251
        return torch.full((1, 2, 3, 4, 4), self.total / 127.5 - 1)

    def fork(self) -> "CountedStream":
        return CountedStream(self.owner, self.total)


def grid(number: int) -> torch.Tensor:
    return torch.tensor([number * 7 % 50])


def shown(length: int) -> Iterator[int]:
    total = 0
    for number in range(length):
        total = (total * 3 + number * 7 % 50) % 251
        yield total


def test_pixels_keep_few_streams_and_reach_the_past_in_half_the_way() -> None:
    tokenizer = CountedStreams()
    pixels = SessionPixels(tokenizer)  # type: ignore[arg-type]
    expected = list(shown(1000))
    for number in range(1000):
        assert pixels.frame(number, 0, grid)[0, 0, 0] == expected[number]
    assert tokenizer.pushes == 1000
    assert len(pixels._streams) < 24
    for number in (999, 990, 900, 500, 3):
        tokenizer.pushes = 0
        assert pixels.frame(number, -1, grid)[0, 0, 0] == expected[number]
        assert tokenizer.pushes <= 1 + (1000 - number) // 2
    tokenizer.pushes = 0
    assert pixels.frame(999, 0, grid)[0, 0, 0] == expected[999]
    assert tokenizer.pushes == 1


def test_grids_that_become_others_are_decoded_anew() -> None:
    pixels = SessionPixels(CountedStreams())  # type: ignore[arg-type]
    for number in range(20):
        pixels.frame(number, 0, grid)
    fork = pixels.fork()
    pixels.forget_from(10)

    def changed(number: int) -> torch.Tensor:
        return grid(number) + (number >= 10)

    fresh = SessionPixels(CountedStreams())  # type: ignore[arg-type]
    for number in (9, 10, 12, 19):
        other = fresh.frame(number, 0, changed)
        assert np.array_equal(pixels.frame(number, 0, changed), other)
    assert fork.frame(19, 0, grid)[0, 0, 0] == list(shown(20))[19]


def test_what_a_caller_draws_on_a_frame_stays_his(world: World) -> None:
    session = world.session()
    frame = session.step("left")
    before = frame.copy()
    frame[:] = 0
    assert np.array_equal(session.frame, before)


def test_a_tokenizer_that_needs_whole_clips_cannot_be_played() -> None:
    config = temporal_tokenizer_config()
    stack = dataclasses.replace(config.decoder, causal_convolution=False)
    with pytest.raises(ConfigError, match="needs whole clips"):
        SessionPixels(OmniTokenizer(dataclasses.replace(config, decoder=stack)))
