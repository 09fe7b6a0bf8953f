"""The ring of frames gives back its window in the order of time and forgets what it must."""

import pytest
import torch
from torch import Tensor

from worldgen.errors import ConfigError, SessionLimitError
from worldgen.nn.attention import attend, frame_causal_attention
from worldgen.nn.cache import FrameCache
from worldgen.nn.cache_storage import CacheConfig, CacheStorage
from worldgen.nn.far import FarTokens


def cache(spare: int = 0, sink: int = 0) -> FrameCache:
    return FrameCache(
        CacheConfig(heads=1, tokens=2, head_width=1, windows=(1, 3), spare=spare, sink=sink)
    )


def write(ring: FrameCache, value: float) -> list[list[float]]:
    frame = torch.full((1, 1, 2, 1), value)
    seen = [ring.write_and_read(layer, frame, frame).keys.flatten().tolist() for layer in (0, 1)]
    ring.advance()
    return seen


def twice(*values: float) -> list[float]:
    """Return the tokens of frames whose two tokens hold one value."""
    return [value for value in values for _ in range(2)]


def test_each_layer_sees_its_own_window_in_the_order_of_time() -> None:
    ring = cache()
    seen = [write(ring, float(number)) for number in range(8)]
    assert seen[0] == [[0, 0], [0, 0]]
    for number in range(2, 8):
        assert seen[number] == [twice(number), twice(number - 2, number - 1, number)]


def test_rewinding_within_the_spare_frames_forgets_what_came_later() -> None:
    ring = cache(spare=3)
    for number in range(10):
        write(ring, float(number))
    ring.rewind_to(7)
    assert write(ring, 70.0)[1] == [5, 5, 6, 6, 70, 70]


def test_rewinding_further_than_the_ring_reaches_is_refused() -> None:
    ring = cache(spare=3)
    for number in range(10):
        write(ring, float(number))
    # Six frames are kept: 4 to 9. Frame 6 needs 4 and 5, frame 5 would need 3.
    assert ring.can_rewind_to(6)
    assert not ring.can_rewind_to(5)
    with pytest.raises(SessionLimitError, match="only 6 frames are kept"):
        ring.rewind_to(5)


def test_repeated_rewinding_cannot_reach_overwritten_frames() -> None:
    ring = cache(spare=3)
    for number in range(10):
        write(ring, float(number))
    ring.rewind_to(6)
    assert not ring.can_rewind_to(5)


def test_a_frame_that_was_never_closed_has_overwritten_the_oldest_all_the_same() -> None:
    ring = cache(spare=3)
    for number in range(10):
        write(ring, float(number))
    frame = torch.zeros(1, 1, 2, 1)
    ring.write_and_read(1, frame, frame)
    assert not ring.can_rewind_to(6)
    assert ring.can_rewind_to(7)


# Forks


def places(*rings: FrameCache) -> set[int]:
    """Return where the memory of some caches lies."""
    return {part.data_ptr() for ring in rings for part in ring._buffers.key.parts}


def test_a_fork_is_independent() -> None:
    ring = cache(spare=2)
    for number in range(4):
        write(ring, float(number))
    fork = ring.fork()
    write(ring, 50.0)
    assert write(fork, 60.0)[1] == [2, 2, 3, 3, 60, 60]
    assert write(ring, 51.0)[1] == [3, 3, 50, 50, 51, 51]


def test_ten_forks_of_which_one_is_played_cost_one_copy() -> None:
    ring = cache(spare=2)
    for number in range(4):
        write(ring, float(number))
    forks = [ring.fork() for _ in range(10)]
    assert len(places(ring, *forks)) == 1
    for number in range(10, 15):
        write(forks[3], float(number))
    assert len(places(ring, *forks)) == 2
    assert places(ring) == places(forks[0])


def test_forks_that_are_dropped_cost_nothing() -> None:
    ring = cache(spare=2)
    write(ring, 0.0)
    before = places(ring)
    for number in range(5):
        fork = ring.fork()
        fork.fork()
        del fork
        write(ring, float(number))
    assert places(ring) == before


def test_the_last_one_left_keeps_the_memory() -> None:
    ring = cache(spare=2)
    write(ring, 0.0)
    fork, before = ring.fork(), places(ring)
    write(ring, 1.0)
    assert places(ring) != before
    write(fork, 2.0)
    assert places(fork) == before


def test_forks_of_forks_go_their_own_ways_and_come_back() -> None:
    ring = cache(spare=4)
    for number in range(6):
        write(ring, float(number))
    child = ring.fork()
    grandchild = child.fork()
    child.rewind_to(4)
    assert write(child, 40.0)[1] == twice(2, 3, 40)
    great = grandchild.fork()
    assert write(grandchild, 60.0)[1] == twice(4, 5, 60)
    assert write(great, 61.0)[1] == twice(4, 5, 61)
    assert write(ring, 62.0)[1] == twice(4, 5, 62)
    ring.rewind_to(5)
    grandchild.rewind_to(6)
    assert write(ring, 52.0)[1] == twice(3, 4, 52)
    assert write(grandchild, 63.0)[1] == twice(4, 5, 63)
    assert write(child, 50.0)[1] == twice(3, 40, 50)


@pytest.mark.parametrize("writer", ["original", "fork", "sibling"])
def test_a_view_that_is_in_use_is_not_written_to_by_anyone_else(writer: str) -> None:
    ring = cache()
    for number in range(7):
        write(ring, float(number))
    rings = {"original": ring, "fork": ring.fork(), "sibling": ring.fork()}
    views = {name: each.read_before(1) for name, each in rings.items() if name != writer}
    for number in range(70, 77):
        write(rings[writer], float(number))
    for seen in views.values():
        assert seen.keys.flatten().tolist() == seen.values.flatten().tolist() == twice(5, 6)


def test_what_was_read_before_a_frame_survives_its_being_written() -> None:
    # A frame in the making reads the frames before it, also while it is written.
    ring = cache()
    for number in range(7):
        write(ring, float(number))
        seen = ring.read_before(1)
        kept = seen.keys.clone()
        frame = torch.full((1, 1, 2, 1), -1.0)
        ring.write_and_read(1, frame, frame)
        assert torch.equal(seen.keys, kept)


# The first frames


def test_the_first_frames_stay_in_sight() -> None:
    ring = cache(sink=2)
    seen = [write(ring, float(number))[1] for number in range(12)]
    for number in range(5):
        assert seen[number] == twice(*range(max(0, number - 4), number + 1))
    for number in range(5, 12):
        assert seen[number] == twice(0, 1, number - 2, number - 1, number)
    assert ring.read_before(1).keys.flatten().tolist() == twice(0, 1, 10, 11)
    assert ring.read_before(0).keys.flatten().tolist() == twice(0, 1)


def test_frames_that_are_left_out_are_out_of_sight_once_the_window_has_passed() -> None:
    whole, cut = cache(spare=3, sink=1), cache(spare=3, sink=1)
    for number in range(12):
        write(whole, float(number))
    write(cut, 0.0)
    cut.skip_to(12 - cut.receptive_field)
    assert cut.receptive_field == 2
    for number in (10, 11):
        write(cut, float(number))
    assert write(cut, 12.0) == write(whole, 12.0)
    # Frame 11 saw frame 9, which was left out.
    assert cut.can_rewind_to(12)
    assert not cut.can_rewind_to(11)
    cut.rewind_to(1)
    assert write(cut, 5.0)[1] == twice(0, 5)


def test_frames_of_the_sink_are_not_left_out() -> None:
    ring = cache(sink=2)
    write(ring, 0.0)
    with pytest.raises(SessionLimitError, match="behind the 2 of the sink"):
        ring.skip_to(9)
    write(ring, 1.0)
    ring.skip_to(9)
    with pytest.raises(SessionLimitError, match="from 9 to 8"):
        ring.skip_to(8)


def test_rewinding_into_the_first_frames_needs_nothing_of_the_ring() -> None:
    ring = cache(spare=1, sink=3)
    for number in range(20):
        write(ring, float(number))
    assert [target for target in range(21) if ring.can_rewind_to(target)] == [
        0,
        1,
        2,
        3,
        18,
        19,
        20,
    ]
    fork = ring.fork()
    ring.rewind_to(18)
    assert write(ring, 180.0)[1] == twice(0, 1, 2, 16, 17, 180)
    ring.rewind_to(2)
    for number in range(20, 25):
        seen = write(ring, float(number))[1]
    # Frames 0 to 6 are 0, 1, 20 ... 24.
    assert seen == twice(0, 1, 20, 22, 23, 24)
    assert [target for target in range(8) if ring.can_rewind_to(target)] == list(range(8))
    ring.rewind_to(5)
    assert write(ring, 50.0)[1] == twice(0, 1, 20, 21, 22, 50)
    assert write(fork, 200.0)[1] == twice(0, 1, 2, 18, 19, 200)


@pytest.mark.parametrize("sink", [0, 1, 3])
@pytest.mark.parametrize("own_mask", [False, True])
def test_a_transformer_on_its_cache_equals_a_dense_mask_over_the_clip(
    sink: int, own_mask: bool
) -> None:
    windows, frames, tokens, width = (1, 4, 2), 11, 3, 8
    layers = torch.randn(3, 4, width, 4 * width, generator=torch.Generator().manual_seed(0)) / 3
    clip = torch.randn(2, frames * tokens, width, generator=torch.Generator().manual_seed(1))
    own = torch.ones(tokens, tokens, dtype=torch.bool).tril() if own_mask else None

    def heads(stream: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        # Four heads of queries on two of keys and values.
        projected = (stream @ layers[layer, 0]).unflatten(-1, (8, -1)).transpose(1, 2)
        query, key, value = projected.split((4, 2, 2), dim=1)
        return query, key, value

    def merge(mixed: Tensor, layer: int) -> Tensor:
        return (mixed.transpose(1, 2).flatten(2) @ layers[layer, 1].t()[:16, :]).tanh()

    frame = torch.arange(frames * tokens) // tokens
    token = torch.arange(frames * tokens) % tokens
    age = frame[:, None] - frame[None]
    dense, clipwise = clip, clip
    for layer, window in enumerate(windows):
        mask = (age >= 0) & ((age < window) | (frame[None] < sink))
        if own is not None:
            mask &= (age > 0) | own[token[:, None], token[None]]
        dense = dense + merge(attend(*heads(dense, layer), mask), layer)
        mixed = frame_causal_attention(
            *heads(clipwise, layer), num_frames=frames, window=window, own=own, sink=sink
        )
        clipwise = clipwise + merge(mixed, layer)
    assert torch.allclose(clipwise, dense, atol=1e-5)

    ring = FrameCache(
        CacheConfig(heads=2, tokens=tokens, head_width=4, windows=windows, spare=2, sink=sink),
        batch=2,
    )
    outputs: list[Tensor] = []
    # The last frames once more, after going back; and by a fork.
    for number in [*range(frames), -2, *range(frames - 2, frames)]:
        if number < 0:
            ring = ring.fork()
            ring.rewind_to(frames + number)
            continue
        stream = clip[:, number * tokens : (number + 1) * tokens]
        for layer in range(3):
            query, key, value = heads(stream, layer)
            seen = ring.write_and_read(layer, key, value)
            seen_now: Tensor | None = None
            if own is not None:
                past = own.new_ones(tokens, seen.keys.shape[2] - tokens)
                seen_now = torch.cat((past, own), dim=1)
            stream = stream + merge(attend(query, seen.keys, seen.values, seen_now), layer)
        ring.advance()
        outputs.append(stream)
    assert torch.allclose(torch.cat(outputs[:frames], dim=1), dense, atol=1e-5)
    assert torch.equal(torch.cat(outputs[frames:]), torch.cat(outputs[frames - 2 : frames]))


# Far frames


def far_ring(
    *, far_frames: int = 4, spare: int = 0, sink: int = 0, storage: CacheStorage = "exact"
) -> FrameCache:
    """Return a cache of three layers, of which the second and the third see far frames."""
    return FrameCache(
        CacheConfig(
            heads=1,
            tokens=2,
            head_width=2,
            windows=(1, 3, 3),
            spare=spare,
            sink=sink,
            far_frames=far_frames,
            far_tokens=1,
            storage=storage,
        )
    )


def write_far(ring: FrameCache, value: float) -> list[list[float]]:
    """Write a frame whose few tokens are negative; return what each layer sees."""
    frame = torch.full((1, 1, 2, 2), value)
    few = FarTokens(-frame[:, :, :1], -frame[:, :, :1])
    seen = []
    for layer in range(3):
        keys, values = ring.write_and_read(layer, frame, frame, few if layer else None)
        assert torch.equal(keys, values)
        seen.append(keys[0, 0, :, 0].tolist())
    ring.advance()
    return seen


def seen_of(number: int, far_frames: int, sink: int) -> list[float]:
    """Return what a layer with a window of 3 sees of frames numbered from 1, pair by pair."""
    kept, far, near = [], [], []
    for frame in range(number + 1):
        if number - frame < 3:
            near += [frame + 1.0] * 2
        elif frame < sink:
            kept += [frame + 1.0] * 2
        elif number - frame < 3 + far_frames:
            far += [-frame - 1.0]
    return [*kept, *far, *near]


@pytest.mark.parametrize("far_frames", [1, 4, 11])
@pytest.mark.parametrize("sink", [0, 2])
@pytest.mark.parametrize("spare", [0, 3])
def test_frames_behind_the_window_are_seen_as_few_tokens(
    far_frames: int, sink: int, spare: int
) -> None:
    ring = far_ring(far_frames=far_frames, sink=sink, spare=spare)
    size = ring.num_bytes
    assert size == FrameCache.predicted_bytes(ring.config)
    for number in range(5 * (far_frames + 3 + spare)):
        expected = seen_of(number, far_frames, sink)
        before = ring.read_before(2).keys[0, 0, :, 0].tolist()
        assert before == expected[:-2]
        ages = ring.ages_before(2).tolist()
        assert ages == [
            0 if abs(value) <= sink else number + 1 - abs(value) for value in expected[:-2]
        ]
        first, *others = write_far(ring, number + 1.0)
        assert first[-2:] == [number + 1.0] * 2
        assert others == [expected, expected]
    assert ring.num_bytes == size


@pytest.mark.parametrize("sink", [0, 2])
def test_rewinding_and_forking_leave_far_frames_as_they_were(sink: int) -> None:
    ring = far_ring(spare=5, sink=sink)
    for number in range(40):
        write_far(ring, number + 1.0)
    reached = [target for target in range(41) if ring.can_rewind_to(target)]
    # Eight frames are kept whole: 32 to 39.
    assert reached == [*range(sink + 1), *range(34, 41)]
    for target in reached:
        fork = ring.fork()
        fork.rewind_to(target)
        for number in range(target, target + 30):
            assert write_far(fork, number + 1.0)[1] == seen_of(number, 4, sink)
    assert write_far(ring, 41.0)[2] == seen_of(40, 4, sink)


def test_what_came_after_a_rewound_frame_is_no_longer_far() -> None:
    ring = far_ring(spare=5)
    for number in range(20):
        write_far(ring, number + 1.0)
    ring.rewind_to(16)
    for number in range(6):
        seen = write_far(ring, 100.0 + number)[1]
    assert seen == [-16, -100, -101, -102, *twice(103, 104, 105)]


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_far_frames_are_kept_in_fewer_bits_too(storage: CacheStorage) -> None:
    ring, exact = far_ring(storage=storage, spare=2), far_ring(spare=2)
    size = ring.num_bytes
    assert size == FrameCache.predicted_bytes(ring.config)
    for _ in range(30):
        frame = torch.randn(1, 1, 2, 2)
        few = FarTokens(*torch.randn(2, 1, 1, 1, 2).unbind())
        for layer in range(3):
            far = few if layer else None
            seen = ring.write_and_read(layer, frame, -frame, far)
            truth = exact.write_and_read(layer, frame, -frame, far)
            for part, true in zip(seen, truth, strict=True):
                assert torch.allclose(part, true, atol=0.02)
        ring.advance()
        exact.advance()
    assert not torch.equal(seen.keys, truth.keys)
    assert ring.num_bytes == size


def test_far_tokens_are_asked_for_where_they_are_seen_and_nowhere_else() -> None:
    ring, frame = far_ring(), torch.zeros(1, 1, 2, 2)
    few = FarTokens(frame[:, :, :1], frame[:, :, :1])
    with pytest.raises(ConfigError, match=r"layer 1 .* takes .*\[1, 1, 1, 2\] .* got none"):
        ring.write_and_read(1, frame, frame)
    with pytest.raises(ConfigError, match="layer 0 of this cache takes no tokens for a far frame"):
        ring.write_and_read(0, frame, frame, few)
    with pytest.raises(ConfigError, match=r"got \[\(1, 1, 2, 2\)\]"):
        ring.write_and_read(1, frame, frame, FarTokens(frame, frame))


def test_a_prediction_depends_on_what_all_layers_together_see() -> None:
    assert cache().config.receptive_field == 2
    assert noting().config.receptive_field == 3
    assert far_ring(far_frames=4).config.receptive_field == 2 * (2 + 4)
    assert far_ring(far_frames=0).config.receptive_field == 2 * 2


# Fewer bits


def stored(storage: CacheStorage, frame: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    _, heads, tokens, width = frame.shape
    config = CacheConfig(
        heads=heads, tokens=tokens, head_width=width, windows=(2,), storage=storage, dtype=dtype
    )
    ring = FrameCache(config)
    keys, values = ring.write_and_read(0, frame, -frame)
    assert torch.equal(keys, -values)
    return keys


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_storage_gives_back_what_it_got(dtype: torch.dtype) -> None:
    frame = torch.randn(1, 2, 5, 16).to(dtype)
    assert torch.equal(stored("exact", frame, dtype), frame)


def test_bfloat16_is_off_by_half_a_unit_of_its_last_place_at_most() -> None:
    frame = torch.randn(1, 2, 50, 16) * torch.logspace(-6, 6, 50)[:, None]
    result = stored("bfloat16", frame)
    assert result.dtype == torch.float32
    assert ((result - frame).abs() <= frame.abs() * 2**-8).all()
    assert (result != frame).any()


def test_8_bits_are_off_by_a_254th_of_the_largest_channel_at_most() -> None:
    frame = torch.randn(1, 2, 50, 16) * torch.logspace(-6, 6, 50)[:, None]
    frame[0, 0, 3] = 0
    result = stored("int8", frame)
    assert result.dtype == torch.float32
    largest = frame.abs().amax(dim=-1, keepdim=True)
    assert ((result - frame).abs() <= largest / 254 * (1 + 1e-5)).all()
    assert (result[0, 0, 3] == 0).all()
    # Symmetric, and the largest channel is kept to the last bits.
    assert torch.equal(stored("int8", -frame), -result)
    assert torch.allclose(result.abs().amax(dim=-1, keepdim=True), largest, rtol=1e-6, atol=0)


def test_8_bits_are_read_in_the_type_of_the_computation() -> None:
    frame = torch.randn(1, 2, 5, 16).bfloat16()
    result = stored("int8", frame, torch.bfloat16)
    assert result.dtype == torch.bfloat16
    largest = frame.float().abs().amax(dim=-1, keepdim=True)
    error = (result.float() - frame.float()).abs()
    assert (error <= largest / 254 + frame.float().abs() * 2**-8 + largest * 2**-9).all()


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_fewer_bits_still_slide_fork_and_rewind(storage: CacheStorage) -> None:
    config = CacheConfig(heads=1, tokens=2, head_width=4, windows=(3,), spare=2, storage=storage)
    ring = FrameCache(config)
    frames = torch.randn(12, 1, 1, 2, 4)
    kept = torch.cat([stored(storage, frame) for frame in frames])
    for number in range(9):
        seen = ring.write_and_read(0, frames[number], frames[number])
        ring.advance()
    assert torch.equal(seen.keys[0, 0], kept[6:9, 0].flatten(0, 1))
    fork = ring.fork()
    ring.rewind_to(8)
    seen = ring.write_and_read(0, frames[11], frames[11])
    assert torch.equal(seen.keys[0, 0], kept[[6, 7, 11], 0].flatten(0, 1))
    assert torch.equal(fork.read_before(0).values[0, 0], kept[7:9, 0].flatten(0, 1))


# Memory


@pytest.mark.parametrize("storage", ["exact", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "spare", "sink"), [(1, 0, 0), (3, 5, 0), (2, 4, 2)])
def test_memory_is_as_predicted_and_does_not_grow(
    storage: CacheStorage, dtype: torch.dtype, batch: int, spare: int, sink: int
) -> None:
    config = CacheConfig(
        heads=2,
        tokens=3,
        head_width=8,
        windows=(1, 4, 2),
        spare=spare,
        sink=sink,
        storage=storage,
        dtype=dtype,
    )
    ring = FrameCache(config, batch=batch)
    frame = torch.ones(batch, 2, 3, 8, dtype=dtype)
    for _ in range(3 * config.capacity):
        for layer in range(3):
            ring.write_and_read(layer, frame, frame)
        ring.advance()
    tensors = [*ring._buffers.key.parts, *ring._buffers.value.parts]
    truth = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert FrameCache.predicted_bytes(config, batch=batch) == truth == ring.num_bytes


def test_8_bits_take_about_a_quarter() -> None:
    sizes = {
        storage: CacheConfig(
            heads=2, tokens=3, head_width=64, windows=(4,), storage=storage
        ).bytes_per_frame
        for storage in ("exact", "bfloat16", "int8")
    }
    assert sizes["bfloat16"] * 2 == sizes["exact"]
    assert 0.25 < sizes["int8"] / sizes["exact"] < 0.27


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens of at least 1, got 0"),
        ({"windows": ()}, "at least one layer"),
        ({"windows": (2, 0)}, "at least 1 frame"),
        ({"spare": -1}, "fewer than 0 frames"),
        ({"sink": -2}, "sink -2"),
        ({"far_frames": 3}, "far_frames 3, far_tokens 0"),
        ({"far_frames": -1, "far_tokens": 2}, "far_frames -1"),
        ({"storage": "int4"}, "'int4'; allowed are exact, bfloat16, int8"),
        ({"dtype": torch.int8}, "floating-point"),
    ],
)
def test_sizes_that_make_no_cache_are_refused(change: dict[str, object], message: str) -> None:
    sizes = {"heads": 1, "tokens": 2, "head_width": 4, "windows": (2,)} | change
    with pytest.raises(ConfigError, match=message):
        CacheConfig(**sizes)  # type: ignore[arg-type]


def test_a_cache_of_no_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 sequence, got 0"):
        FrameCache(CacheConfig(heads=1, tokens=2, head_width=4, windows=(2,)), batch=0)


@pytest.mark.parametrize("shape", [(2, 1, 2, 1), (1, 2, 2, 1), (1, 1, 3, 1), (1, 1, 2, 2)])
def test_keys_and_values_that_do_not_fit_are_refused_and_nothing_is_written(
    shape: tuple[int, ...],
) -> None:
    ring = cache()
    write(ring, 5.0)
    good, bad = torch.zeros(1, 1, 2, 1), torch.zeros(shape)
    for key, value in ((bad, good), (good, bad)):
        with pytest.raises(ConfigError, match=r"takes keys and values of shape .*\[1, 1, 2, 1\]"):
            ring.write_and_read(1, key, value)
    assert ring.read_before(1).keys.flatten().tolist() == twice(5)


def test_a_layer_that_is_not_there_is_refused() -> None:
    frame = torch.zeros(1, 1, 2, 1)
    with pytest.raises(ConfigError, match="layers 0 to 1, there is no layer 2"):
        cache().write_and_read(2, frame, frame)


def noting(spare: int = 0, sink: int = 0, windows: tuple[int, ...] = (1, 3)) -> FrameCache:
    return FrameCache(
        CacheConfig(
            heads=1, tokens=2, head_width=1, windows=windows, spare=spare, sink=sink, notes=2
        ),
        batch=2,
    )


def step(ring: FrameCache, number: int) -> list[list[int]] | None:
    """Write and note a frame; return what was noted before it."""
    before = ring.noted_before()
    frame = torch.zeros(2, 1, 2, 1)
    for layer in range(len(ring.windows)):
        ring.write_and_read(layer, frame, frame)
    ring.note(torch.tensor([[number, -number], [10 * number, 1]]))
    ring.advance()
    return None if before is None else before.tolist()


def noted(number: int) -> list[list[int]]:
    return [[number, -number], [10 * number, 1]]


@pytest.mark.parametrize("windows", [(1, 3), (1,)])
@pytest.mark.parametrize("sink", [0, 2])
def test_what_is_noted_beside_a_frame_is_read_one_frame_later(
    sink: int, windows: tuple[int, ...]
) -> None:
    ring = noting(sink=sink, windows=windows)
    before = [step(ring, number) for number in range(9)]
    assert before == [None, *map(noted, range(8))]


@pytest.mark.parametrize("windows", [(1, 3), (1,)])
@pytest.mark.parametrize("sink", [0, 2])
def test_notes_are_there_wherever_a_cache_can_be_rewound_to(
    sink: int, windows: tuple[int, ...]
) -> None:
    ring = noting(spare=2, sink=sink, windows=windows)
    for number in range(9):
        step(ring, number)
    reached = [frames for frames in range(1, 10) if ring.can_rewind_to(frames)]
    # Those in the ring, of which the first needs what it looks at, and those in the sink.
    assert reached == [*range(1, sink + 1), 6, 7, 8, 9]
    for frames in reversed(reached):
        fork = ring.fork()
        fork.rewind_to(frames)
        assert step(fork, 70) == noted(frames - 1)
        assert step(fork, 71) == noted(70)


def test_forks_note_for_themselves() -> None:
    ring = noting()
    step(ring, 1)
    fork = ring.fork()
    assert step(fork, 2) == noted(1)
    assert step(ring, 3) == noted(1)
    assert step(fork, 4) == noted(2)
    assert step(ring, 5) == noted(3)


def test_notes_count_as_memory() -> None:
    ring = noting(spare=2)
    assert ring.num_bytes == FrameCache.predicted_bytes(ring.config, batch=2)
    plain = cache(spare=2)
    assert ring.num_bytes - 2 * plain.num_bytes == 2 * 5 * 2 * 8


def test_notes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"notes of shape \[batch, note\] = \[2, 2\], got \[2, 3\]"
    ):
        noting().note(torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="notes -1"):
        CacheConfig(heads=1, tokens=1, head_width=1, windows=(1,), notes=-1)
