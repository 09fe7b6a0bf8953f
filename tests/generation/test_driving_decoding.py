"""The driving family decodes for ever on its cache what it would computing everything anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.factories import tiny_world
from worldgen.generation import SamplingConfig, Session, WithDraftModel, make_decoder
from worldgen.generation.batch import advance_together
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import draw
from worldgen.interop.drivingworld_weights import drivingworld_config
from worldgen.models import DrivingConfig, DrivingTransformer, save_world_model
from worldgen.nn.attention import attend
from worldgen.nn.rotary import rotary_table
from worldgen.pipeline import World, load
from worldgen.schedule import make_schedule

pytestmark = pytest.mark.filterwarnings("ignore:.*was not trained for decoder")
FRAMES = 200


def config_of(**changes: Any) -> DrivingConfig:
    sizes: dict[str, Any] = {
        "rows": 2,
        "columns": 3,
        "codebook_size": 24,
        "num_action_tokens": 2,
        "action_vocabulary_size": 9,
        "slot_options": (4, 5),
        "width": 16,
        "num_heads": 2,
        "context_depth": 2,
        "within_frame_depth": 1,
        "window": 3,
        "code_width": 8,
        "motion_width": 8,
    }
    return DrivingConfig(**(sizes | changes))


def model_of(**changes: Any) -> DrivingTransformer:
    torch.manual_seed(0)
    model = DrivingTransformer(config_of(**changes)).eval()
    with torch.no_grad():
        # Cells of a fresh model hardly depend on each other; those of a trained one do.
        model.codes.weight.mul_(3)
        next(iter(model.cell_head[-1].parameters())).mul_(3)
    return model


# Exact, for ever


def play(model: DrivingTransformer, name: str, sampling: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Return the ids of a rollout on the cache, `[frame, cell]`, and its actions."""
    generator = torch.Generator().manual_seed(1)
    first = torch.randint(0, 24, (1, 6), generator=generator)
    slots = [
        torch.randint(low, high, (FRAMES,), generator=generator) for low, high in ((0, 4), (4, 9))
    ]
    actions, frames, cache = torch.stack(slots, dim=-1), [first], model.new_cache(1)
    decoder = make_decoder(name, model.layout, sampling)
    for number in range(FRAMES):
        draft = model.observe(cache, frames[-1], actions[number : number + 1])
        uniforms = frame_uniforms([5], [number], 6)
        frames.append(decoder.draw_frame(model, draft, uniforms))
    return torch.cat(frames), actions


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "time_positions", "temperature"),
    [
        ("raster", "rotary", 1.0),
        ("raster", "window", 0.0),
        ("diagonal", "rotary", 1.0),
        ("rows", "window", 1.0),
        ("whole_frame", "rotary", 0.0),
        ("refine:3", "rotary", 1.0),
    ],
)
def test_200_frames_on_the_cache_are_those_of_one_pass_over_all_of_them(
    name: str, time_positions: str, temperature: float
) -> None:
    model, sampling = (
        model_of(time_positions=time_positions),
        SamplingConfig(temperature=temperature),
    )
    frames, actions = play(model, name, sampling)
    # Frames repeat, as greedy worlds come to do; that is not the point here.
    assert len(frames.unique(dim=0)) > 4
    states = model.encode_steps(frames[None, :-1], actions[None])
    uniforms = frame_uniforms([5] * FRAMES, range(FRAMES), 6)
    if name.startswith("refine"):
        # Its rounds ask for all slots of a frame at once, on no cache.
        draft = model.draft(states[0], frames[:-1], actions)
        expected = make_decoder(name, model.layout, sampling).draw_frame(model, draft, uniforms)
    else:
        order = make_schedule(name, 2, 3).group_of_cell
        logits, _ = model.refine(states, frames[None, 1:], actions[None], order)
        expected = draw(logits[0], uniforms, sampling)
    assert torch.equal(frames[1:], expected)


def test_jacobi_and_speculation_draw_rasters_ids() -> None:
    large, sampling = model_of(), SamplingConfig()
    both = WithDraftModel(large, model_of(context_depth=1))
    generator = torch.Generator().manual_seed(1)
    ids = {
        name: [torch.zeros(3, 6, dtype=torch.int64)] for name in ("raster", "jacobi", "speculative")
    }
    caches = {name: both.new_cache(3) for name in ids}
    for number in range(8):
        action = torch.randint(0, 4, (3, 1), generator=generator)
        for name, frames in ids.items():
            draft = both.observe(caches[name], frames[-1], torch.cat((action, action + 4), dim=1))
            uniforms = frame_uniforms(range(3), [number] * 3, 6)
            decoder = make_decoder(name, both.layout, sampling)
            frames.append(decoder.draw_frame(both, draft, uniforms))
            assert draft.calls <= 7
    assert all(torch.equal(torch.stack(ids["raster"]), torch.stack(each)) for each in ids.values())


# Sessions


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tiny_world(tmp_path_factory.mktemp("world"))
    model = model_of(
        rows=8,
        columns=8,
        codebook_size=64,
        action_vocabulary_size=6,
        slot_options=(3, 3),
        first_action=(0, 3),
    )
    save_world_model(folder / "model.safetensors", model)
    return load(folder)


def drive(session: Session, count: int, offset: int = 0) -> Session:
    names = ["left", "gas", "nothing", "left+gas", "brake"]
    for number in range(offset, offset + count):
        session.step(names[number % len(names)])
    return session


def test_sessions_fork_rewind_look_ahead_and_replay(world: World, tmp_path: Path) -> None:
    session = drive(world.session(seed=3, decoder="rows"), 12)
    expected = session.log()
    fork = session.fork()
    drive(fork, 3, offset=1)
    assert session.log() == expected
    session.rewind(7)
    assert session.look_ahead("right")
    assert drive(session, 7, offset=5).log() == expected
    # Beyond what the ring keeps, where everything is observed anew.
    long = drive(world.session(seed=3, decoder="whole_frame"), 90)
    frame = long.frame_at(80)
    long.rewind(80)
    assert np.array_equal(drive(long, 70, offset=10).frame, frame)
    session.save(tmp_path / "log.json")
    assert np.array_equal(Session.load(session.parts, tmp_path / "log.json").frame, session.frame)


def test_sessions_in_company_draw_what_they_draw_alone(world: World) -> None:
    sessions = [world.session(seed=seed, decoder="whole_frame") for seed in range(3)]
    alone = [world.session(seed=seed, decoder="whole_frame") for seed in range(3)]
    for number in range(6):
        # One of them stays behind now and then.
        going = [n for n in range(3) if (number + n) % 4]
        known = [torch.tensor([[(number + n) % 3, 3 + n]]) for n in going]
        advance_together([sessions[n] for n in going], known)
        for n, action in zip(going, known, strict=True):
            alone[n].advance(action[0])
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(sessions, alone, strict=True))


def test_a_session_asks_the_model_where_it_would_drive(world: World) -> None:
    session = drive(world.session(seed=3, decoder="whole_frame"), 5)
    action = session.predict_action()
    assert action.tolist() == session.predict_action().tolist()
    likely = session.predict_action(SamplingConfig(temperature=0.0))
    session.step(likely)
    assert session.actions[-1].tolist() == likely.tolist()


def test_guidance_leads_away_from_rest(world: World) -> None:
    plain = drive(world.session(seed=3, decoder="rows"), 4)
    guided = drive(world.session(seed=3, decoder="rows", sampling=SamplingConfig(guidance=2.0)), 4)
    assert not np.array_equal(plain.ids, guided.ids)


# What it costs


@torch.no_grad()
def recomputed_frame(model: DrivingTransformer, visual_ids: Tensor, actions: Tensor) -> Tensor:
    """Return the best ids of the frame after a window, as DrivingWorld computes them.

    The window in one pass; then for every cell all slots up to it, and all heads on all of them.

    Args:
        model: To ask.
        visual_ids: Of the window, `[frame, cell]`.
        actions: Taken in each of its frames.
    """
    config, cells = model.config, model.layout.num_cells
    slots, half = config.num_action_tokens, config.head_width // 2
    states = model.encode_steps(visual_ids[None], actions[None])[:, -1]
    coordinates = torch.tensor(
        [[0, 0]] * slots
        + [[cell % config.columns, cell // config.columns] for cell in range(cells)]
    )
    cosine, sine = rotary_table(coordinates, (half, half), config.rotary_base)
    ids = torch.zeros(1, 0, dtype=torch.int64)
    for _ in range(cells):
        motion = model.embed_action(actions[None, -1])
        told = torch.cat((model.start.expand(1, 1, -1), motion, model.embed_cells(ids)), dim=1)
        if ids.numel():
            row, column = torch.arange(ids.shape[1]) // config.columns, torch.arange(ids.shape[1])
            told[:, slots + 1 :] += (
                model.origin_row[row] + model.origin_column[column % config.columns]
            )
        length = told.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()

        def see(query: Tensor, key: Tensor, value: Tensor, mask: Tensor = mask) -> Tensor:
            return attend(query, key, value, mask)

        stream = states[:, :length] + told
        for block in model.within_frame:
            stream = block(stream, (cosine[:length], sine[:length]), see)
        for slot, head in enumerate(model.action_heads):
            head(stream[:, slot])
        logits = model.cell_head(stream[:, slots:])
        ids = torch.cat((ids, logits[:, -1:].argmax(dim=-1)), dim=1)
    return ids


def counted(call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    # The counter knows attention as products of matrices, not as the fused kernel for CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = call()
    return result, counter.get_total_flops()


def blocks_by_hand(config: DrivingConfig, tokens: int, seen: int) -> int:
    """Return the operations of a block: two for each multiplication."""
    return 24 * tokens * config.width**2 + 4 * tokens * seen * config.width


def embedding_by_hand(config: DrivingConfig, cells: int, actions: int) -> int:
    half, features = config.width // 2, config.motion_width
    cell = 2 * half * (config.code_width + config.width)
    slots = config.num_action_tokens
    return cells * cell + actions * slots * 2 * features * (features + config.width)


def cell_head_by_hand(config: DrivingConfig) -> int:
    return 2 * (config.codebook_size // 2) * (config.width + config.codebook_size)


def cached_by_hand(config: DrivingConfig, groups: list[int]) -> int:
    """Return the operations of `observe` on a full cache, and of drawing groups of these sizes."""
    cells, slots = config.rows * config.columns, config.num_action_tokens
    tokens = cells + slots
    total = embedding_by_hand(config, cells, 2)
    over_time = blocks_by_hand(config, tokens, config.window)
    total += config.context_depth * (over_time + blocks_by_hand(config, tokens, tokens))
    before, known = 0, 0
    for number, size in enumerate(groups):
        fed = size + (0 if number else slots)
        known += fed
        total += config.within_frame_depth * blocks_by_hand(config, fed, known)
        total += size * cell_head_by_hand(config)
        # What the group before tells: read, and brought to the cells that carry it.
        total += embedding_by_hand(config, before, 0) + 2 * size * before * config.width
        before = size
    return total


def recomputed_by_hand(config: DrivingConfig) -> int:
    """Return the operations of `recomputed_frame`."""
    cells, slots = config.rows * config.columns, config.num_action_tokens
    frames, tokens = config.window, cells + slots
    total = embedding_by_hand(config, frames * cells, frames)
    over_time = blocks_by_hand(config, frames * tokens, frames)
    over_space = blocks_by_hand(config, frames * tokens, tokens)
    total += config.context_depth * (over_time + over_space)
    heads = sum(2 * options * (config.width + options) for options in config.slot_options)
    for cell in range(cells):
        length = slots + 1 + cell
        total += embedding_by_hand(config, cell, 1) + heads + (cell + 1) * cell_head_by_hand(config)
        total += config.within_frame_depth * blocks_by_hand(config, length, length)
    return total


@torch.no_grad()
@pytest.mark.parametrize("name", ["raster", "rows"])
def test_operations_are_as_counted_by_hand_and_ids_those_of_recomputation(name: str) -> None:
    config = config_of(rows=3, columns=4, window=5, first_action=(1, 6))
    model = model_of(rows=3, columns=4, window=5, first_action=(1, 6))
    visual_ids = torch.randint(0, 24, (5, 12))
    actions = torch.stack((torch.randint(0, 4, (5,)), torch.randint(4, 9, (5,))), dim=-1)
    cache = model.new_cache(1)
    for number in range(4):
        model.observe(cache, visual_ids[number, None], actions[number, None])
    decoder = make_decoder(name, model.layout, SamplingConfig(temperature=0.0))

    def cached() -> Tensor:
        draft = model.observe(cache, visual_ids[-1:], actions[-1:])
        return decoder.draw_frame(model, draft, torch.zeros(1, 12))

    ids, operations = counted(cached)
    sizes = [len(group) for group in make_schedule(name, 3, 4).groups]
    assert operations == cached_by_hand(config, sizes)
    expected, operations = counted(lambda: recomputed_frame(model, visual_ids, actions))
    # The action that led to the first frame is embedded for itself.
    assert operations == recomputed_by_hand(config)
    if name == "raster":
        assert torch.equal(ids, expected)


def test_at_upstreams_size_a_frame_needs_a_ninetieth_of_its_arithmetic() -> None:
    config = drivingworld_config({})
    recomputed = recomputed_by_hand(config)
    assert 96e12 < recomputed < 97e12
    for name, calls in (("raster", 512), ("diagonal", 47), ("rows", 16)):
        groups = make_schedule(name, config.rows, config.columns).groups
        assert len(groups) == calls
        cached = cached_by_hand(config, [len(group) for group in groups])
        assert 90 * cached < recomputed
        # The frame alone, once the context has been read: DrivingWorld's 85 TFLOP.
        context = cached_by_hand(config, [])
        assert 250 * (cached - context) < recomputed - 10.8e12
