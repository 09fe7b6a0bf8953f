"""Many sequences in one pool hold what each would hold in a cache of its own."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldgen.errors import ConfigError, SessionLimitError
from worldgen.nn.cache import FrameCache
from worldgen.nn.cache_storage import CacheConfig, CacheStorage
from worldgen.nn.pooled_cache import CacheBatch, PooledFrameCache


def config(sink: int = 0, spare: int = 3, storage: CacheStorage = "exact") -> CacheConfig:
    return CacheConfig(
        heads=2, tokens=3, head_width=4, windows=(1, 4, 2), spare=spare, sink=sink, storage=storage
    )


def frame(numbers: torch.Generator) -> tuple[Tensor, Tensor]:
    key, value = torch.randn(2, 3, 1, 2, 3, 4, generator=numbers)
    return key, value


def real(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the tokens `[head, token, width]` of a row that are there."""
    return tokens if mask is None else tokens[:, mask]


def step(cache: CacheBatch, frames: list[tuple[Tensor, Tensor]], alone: list[FrameCache]) -> None:
    """Write a frame of each row, and the same into caches of their own; what is read is equal."""
    key, value = (torch.cat([each[part] for each in frames], dim=1) for part in (0, 1))
    assert cache.frame_numbers.tolist() == [each.num_frames for each in alone]
    for layer in range(3):
        before = cache.read_before(layer)
        seen = cache.write_and_read(layer, key[layer], value[layer])
        for row, (other, (own_key, own_value)) in enumerate(zip(alone, frames, strict=True)):
            for got, expected in (
                (before, other.read_before(layer)),
                (seen, other.write_and_read(layer, own_key[layer], own_value[layer])),
            ):
                mask = None if got.mask is None else got.mask[row]
                assert torch.equal(real(got.keys[row], mask), expected.keys[0])
                assert torch.equal(real(got.values[row], mask), expected.values[0])
    cache.advance()
    for other in alone:
        other.advance()


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(("sink", "storage"), [(0, "exact"), (2, "exact"), (1, "int8")])
def test_any_history_gives_the_contents_of_separate_caches(
    fixed: bool, sink: int, storage: CacheStorage
) -> None:
    sizes = config(sink=sink, storage=storage)
    pool = PooledFrameCache(sizes, slots=4)
    alone: dict[int, FrameCache] = {}
    choices, numbers = random.Random(sink), torch.Generator().manual_seed(0)
    counts = dict.fromkeys(("join", "leave", "fork", "rewind"), 0)
    for _ in range(150):
        what = choices.choice(("join", "leave", "fork", "rewind", "step", "step", "step", "step"))
        slot = choices.choice(list(alone)) if alone else None
        if what == "join" and pool.slots_left:
            alone[pool.join()] = FrameCache(sizes)
        elif what == "fork" and pool.slots_left and slot is not None:
            alone[pool.fork(slot)] = alone[slot].fork()
        elif what == "leave" and slot is not None and len(alone) > 2:
            pool.leave(slot)
            del alone[slot]
        elif what == "rewind" and slot is not None:
            target = max(0, alone[slot].num_frames - choices.randint(0, 5))
            assert pool.can_rewind_to(slot, target) == alone[slot].can_rewind_to(target)
            if not pool.can_rewind_to(slot, target):
                continue
            pool.rewind_to(slot, target)
            alone[slot].rewind_to(target)
        elif what == "step" and alone:
            rows = choices.sample(list(alone), choices.randint(1, len(alone)))
            with pool.batch(rows, fixed=fixed) as cache:
                for _ in range(choices.randint(1, 3)):
                    step(cache, [frame(numbers) for _ in rows], [alone[row] for row in rows])
            continue
        else:
            continue
        counts[what] += 1
    assert min(counts.values()) >= 5
    assert max(each.num_frames for each in alone.values()) > sizes.capacity + sink


def test_fixed_batches_read_whole_windows_into_the_same_memory() -> None:
    pool = PooledFrameCache(config(sink=1), slots=3)
    slots = [pool.join() for _ in range(3)]
    numbers = torch.Generator().manual_seed(0)
    alone = [FrameCache(config(sink=1)) for _ in slots]
    with pool.batch(slots[:2], fixed=True) as cache:
        first = cache.read_before(1)
        assert first.keys.shape == (2, 2, (1 + 4 - 1) * 3, 4)
        assert first.mask is not None
        assert not first.mask.any()
        places = [each.data_ptr() for each in (cache.frame_numbers, first.mask)]
        for _ in range(7):
            step(cache, [frame(numbers) for _ in range(2)], alone[:2])
        cache.select(slots[1:])
        step(cache, [frame(numbers) for _ in range(2)], alone[1:])
        again = cache.read_before(1)
        assert again.keys.shape == first.keys.shape
        assert again.mask is not None
        assert [each.data_ptr() for each in (cache.frame_numbers, again.mask)] == places


def test_rows_as_long_as_each_other_need_no_mask_and_no_more_frames_than_they_have() -> None:
    pool = PooledFrameCache(config(), slots=2)
    slots = [pool.join(), pool.join()]
    numbers = torch.Generator().manual_seed(0)
    with pool.batch(slots) as cache:
        step(cache, [frame(numbers), frame(numbers)], [FrameCache(config()), FrameCache(config())])
        seen = cache.read_before(1)
    assert seen.mask is None
    assert seen.keys.shape[2] == 3


def test_what_was_read_stays_whatever_is_written_later() -> None:
    pool = PooledFrameCache(config(spare=0), slots=2)
    slot, numbers = pool.join(), torch.Generator().manual_seed(0)
    alone = FrameCache(config(spare=0))
    with pool.batch([slot]) as cache:
        for _ in range(6):
            step(cache, [frame(numbers)], [alone])
        seen = cache.read_before(1)
        kept = seen.keys.clone()
        for _ in range(6):
            step(cache, [frame(numbers)], [alone])
    assert torch.equal(seen.keys, kept)


def test_frames_a_row_does_not_have_are_zero_even_if_another_sequence_is_broken() -> None:
    # Masked values are multiplied by zero, which does not help against what is not a number.
    pool = PooledFrameCache(config(), slots=2)
    broken, fresh = pool.join(), pool.join()
    for _ in range(9):
        with pool.batch([broken]) as cache:
            for layer in range(3):
                bad = torch.full((1, 2, 3, 4), torch.nan)
                cache.write_and_read(layer, bad, bad)
            cache.advance()
    with pool.batch([fresh], fixed=True) as cache:
        good = torch.ones(1, 2, 3, 4)
        assert cache.write_and_read(1, good, good).values.isfinite().all()


def test_forks_cost_no_memory_and_writes_do_not_leak() -> None:
    pool = PooledFrameCache(config(), slots=11)
    slot, numbers = pool.join(), torch.Generator().manual_seed(0)
    alone = FrameCache(config())
    with pool.batch([slot]) as cache:
        for _ in range(8):
            step(cache, [frame(numbers)], [alone])
    before = len(pool._free)
    slots = [slot, *(pool.fork(slot) for _ in range(10))]
    assert len(pool._free) == before
    others = [alone, *(alone.fork() for _ in range(10))]
    # The fork's fork goes its own way too.
    for rows in ([3], [3, 0], [5, 3, 7], list(range(11))):
        with pool.batch([slots[row] for row in rows]) as cache:
            step(cache, [frame(numbers) for _ in rows], [others[row] for row in rows])


def test_a_session_that_ends_in_the_middle_of_a_batch_disturbs_nobody() -> None:
    pool = PooledFrameCache(config(), slots=2)
    slots, numbers = [pool.join(), pool.join()], torch.Generator().manual_seed(0)
    alone = [FrameCache(config()), FrameCache(config())]
    with pool.batch(slots) as cache:
        step(cache, [frame(numbers), frame(numbers)], alone)
        pool.leave(slots[0])
        with pytest.raises(SessionLimitError, match="no sequence in slot 0"):
            pool.fork(slots[0])
        with pytest.raises(SessionLimitError, match="full"):
            pool.join()
        step(cache, [frame(numbers), frame(numbers)], alone)
    assert pool.join() == slots[0]
    with pool.batch(slots) as cache:
        step(cache, [frame(numbers), frame(numbers)], [FrameCache(config()), alone[1]])


def test_a_frame_that_fails_half_way_is_forgotten() -> None:
    pool = PooledFrameCache(config(), slots=2)
    slot, numbers = pool.join(), torch.Generator().manual_seed(0)
    alone = FrameCache(config())
    with pool.batch([slot]) as cache:
        step(cache, [frame(numbers)], [alone])
    free = len(pool._free)
    with pool.batch([slot]) as cache:
        cache.write_and_read(0, torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
        with pytest.raises(ConfigError, match=r"\[1, 2, 3, 4\], got keys \[2, 2, 3, 4\]"):
            cache.write_and_read(1, torch.ones(2, 2, 3, 4), torch.ones(2, 2, 3, 4))
    assert len(pool._free) == free
    with pool.batch([slot]) as cache:
        step(cache, [frame(numbers)], [alone])


@pytest.mark.parametrize("storage", ["exact", "bfloat16", "int8"])
@pytest.mark.parametrize("sink", [0, 2])
def test_memory_is_as_predicted(storage: CacheStorage, sink: int) -> None:
    sizes = config(sink=sink, storage=storage)
    pool = PooledFrameCache(sizes, slots=5)
    tensors = [*pool._key.parts, *pool._value.parts]
    truth = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert PooledFrameCache.predicted_bytes(sizes, slots=5) == truth == pool.num_bytes


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda pool: pool.join(), SessionLimitError, "all 2 slots are taken"),
        (lambda pool: pool.fork(0), SessionLimitError, "all 2 slots are taken"),
        (lambda pool: pool.leave(7), SessionLimitError, "no sequence in slot 7"),
        (lambda pool: pool.batch([]), ConfigError, "needs slots"),
        (lambda pool: pool.batch([1, 1]), ConfigError, r"each once.*\[1, 1\]"),
        (lambda pool: pool.batch([0, 5]), SessionLimitError, "no sequence in slot 5"),
        (lambda pool: (pool.batch([0]), pool.batch([0])), SessionLimitError, "another batch"),
        (lambda pool: pool.batch([0]).select([0, 1]), ConfigError, "keeps its size"),
        (lambda pool: pool.rewind_to(0, 3), SessionLimitError, "from 0 to 3 frames"),
        (lambda pool: (pool.batch([0]), pool.rewind_to(0, 0)), SessionLimitError, "in a batch"),
    ],
)
def test_misuse_is_refused(
    act: Callable[[PooledFrameCache], object], error: type[Exception], message: str
) -> None:
    pool = PooledFrameCache(config(), slots=2)
    pool.join(), pool.join()
    with pytest.raises(error, match=message):
        act(pool)


def test_a_pool_without_slots_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 slot, got 0"):
        PooledFrameCache(config(), slots=0)
