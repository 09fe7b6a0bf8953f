"""What a frame must read and compute, by formula, against the operations that torch counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.factories import tiny_model_config
from worldgen.evaluation.speed.decode_bench_floor import Machine, Work, frame_work, probe_machine
from worldgen.generation import SamplingConfig, make_decoder
from worldgen.generation.random import frame_uniforms
from worldgen.models import (
    DrivingConfig,
    DrivingTransformer,
    NextFrameTransformer,
    NextTokenConfig,
    NextTokenTransformer,
)

GREEDY = SamplingConfig(temperature=0.0)
NAMES = ["raster", "diagonal", "rows", "refine:3", "jacobi"]


def next_token_model() -> NextTokenTransformer:
    config = NextTokenConfig(
        rows=4,
        columns=6,
        codebook_size=32,
        num_action_tokens=2,
        action_vocabulary_size=6,
        width=32,
        num_heads=4,
        num_key_value_heads=2,
        feed_forward_width=24,
        windows=(8, 8, 3),
        mask="diagonal",
    )
    return NextTokenTransformer(config)


def driving_model() -> DrivingTransformer:
    config = DrivingConfig(
        rows=4,
        columns=6,
        codebook_size=32,
        num_action_tokens=2,
        action_vocabulary_size=9,
        slot_options=(4, 5),
        first_action=(0, 4),
        width=48,
        num_heads=4,
        context_depth=2,
        within_frame_depth=2,
        window=4,
        code_width=8,
        motion_width=8,
    )
    return DrivingTransformer(config)


def counted(
    model: NextFrameTransformer | NextTokenTransformer | DrivingTransformer,
    name: str,
    num_past: int,
) -> tuple[int, list[Work]]:
    """Return the operations of a frame as torch counts them, and its passes by formula."""
    layout = model.layout
    ids = torch.zeros(1, layout.num_cells, dtype=torch.int64)
    actions = torch.zeros(1, layout.num_action_tokens, dtype=torch.int64)
    if isinstance(model, DrivingTransformer):
        actions = torch.tensor([model.config.first_ids])
    cache = model.new_cache(1)
    for _ in range(num_past):
        model.observe(cache, ids, actions)
    decoder = make_decoder(name, layout, GREEDY)
    uniforms = frame_uniforms([0], [1], layout.num_cells)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        draft = model.observe(cache, ids, actions)
        decoder.draw_frame(model, draft, uniforms)
    works = frame_work(model, decoder, draft.calls, num_past)
    assert works is not None
    return counter.get_total_flops(), works


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_past", [0, 5])
def test_operations_of_the_next_frame_model_are_those_counted(name: str, num_past: int) -> None:
    torch.manual_seed(0)
    model = NextFrameTransformer(tiny_model_config(width=32, num_heads=4, num_key_value_heads=2))
    total, works = counted(model, name, num_past)
    assert sum(work.operations for work in works) == total


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_past", [0, 5])
def test_operations_of_the_next_token_model_are_at_most_those_counted(
    name: str, num_past: int
) -> None:
    torch.manual_seed(0)
    total, works = counted(next_token_model(), name, num_past)
    # Slots of a step that are not drawn yet are computed and masked; the floor leaves them out.
    assert 0.7 * total <= sum(work.operations for work in works) <= total


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_past", [0, 5])
def test_operations_of_the_driving_model_are_nearly_those_counted(name: str, num_past: int) -> None:
    torch.manual_seed(0)
    total, works = counted(driving_model(), name, num_past)
    # The few tokens of the action, and who carries what, count as nothing.
    assert 0.8 * total <= sum(work.operations for work in works) <= 1.01 * total


def test_a_guess_that_rounding_may_have_decided_counts_raster_order_too() -> None:
    model = NextFrameTransformer(tiny_model_config())
    jacobi, raster = (make_decoder(name, model.layout, GREEDY) for name in ("jacobi", "raster"))
    two = frame_work(model, jacobi, 2, 3)
    again = frame_work(model, jacobi, 2 + 64, 3)
    plain = frame_work(model, raster, 64, 3)
    assert two is not None
    assert plain is not None
    assert again == two + plain[1:]


def test_a_whole_frame_of_the_next_token_model_is_counted_exactly() -> None:
    model = next_token_model()
    total, works = counted(model, "raster", 5)
    observed = works[0].operations
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        cache = model.new_cache(1)
        ids, actions = torch.zeros(1, 24).long(), torch.zeros(1, 2).long()
        for _ in range(5):
            model.observe(cache, ids, actions)
        before = counter.get_total_flops()
        model.observe(cache, ids, actions)
    assert counter.get_total_flops() - before == observed < total


def test_weights_and_cache_that_are_read_are_those_of_the_model() -> None:
    model = next_token_model()
    _, works = counted(model, "raster", 5)
    matrices = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if name.startswith("blocks") and weight.ndim == 2
    )
    assert works[0].weights == matrices
    # Two key-value heads of 8 channels, keys and values, 26 tokens a frame, windows 8, 8 and 3.
    assert works[0].cached == 2 * 2 * 8 * 26 * (5 + 5 + 2)
    # The first cell is read out of the last token of the step before.
    assert works[1].weights == model.readout.weight.numel()
    assert len(works) == 1 + 24
    assert all(work.weights == matrices + model.readout.weight.numel() for work in works[2:])


def test_floor_of_a_pass_is_the_slower_of_reading_and_computing() -> None:
    machine = Machine(bytes_per_second=1000.0, operations_per_second=100.0)
    passes = [
        Work(operations=10, weights=300, cached=200),
        Work(operations=400, weights=5, cached=5),
    ]
    floor = machine.floor(passes, itemsize=2)
    assert floor["bytes_per_frame"] == 1020
    assert floor["operations_per_frame"] == 410
    assert floor["bandwidth_floor_ms"] == pytest.approx(1020.0)
    assert floor["arithmetic_floor_ms"] == pytest.approx(4100.0)
    assert floor["floor_ms"] == pytest.approx(1000.0 + 4000.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probe_gives_speeds_that_a_processor_can_have(dtype: torch.dtype) -> None:
    machine = probe_machine(torch.device("cpu"), dtype, 2**22)
    assert 1e8 < machine.bytes_per_second < 1e14
    assert 1e8 < machine.operations_per_second < 1e16
    assert set(machine.to_json()) == {"memory_gb_per_second", "matrix_products_gflops"}
