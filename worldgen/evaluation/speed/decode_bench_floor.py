"""The least time a frame can take on a machine: what must be read and computed, and how fast it can.

A decoder draws a frame in passes, each a batch of tokens through a stack of blocks. A pass must read
the stack's weights and the keys and values of earlier frames, and make its matrix products. Neither can
go faster than the machine's memory and its matrix products, which are measured here. Everything else
(norms, activations, softmax, drawing, the interpreter) counts as nothing, so the floor is a bound
that a program may come near to and never reaches.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from worldgen.generation.grouped import GroupedJacobiDecoder
from worldgen.generation.jacobi import JacobiDecoder
from worldgen.generation.refinement import RefinementDecoder
from worldgen.generation.scheduled import Decoder, ScheduleDecoder
from worldgen.models import (
    DrivingTransformer,
    NextFrameTransformer,
    NextTokenTransformer,
    Transformer,
)
from worldgen.nn.blocks import BlockConfig
from worldgen.schedule import DecodeSchedule, make_schedule

__all__ = ["Machine", "Work", "frame_work", "probe_machine"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one pass must do at least, for one sequence."""

    operations: int
    """Floating-point operations of its matrix products, two for each multiplication."""
    weights: int
    """Numbers of the weights that it reads."""
    cached: int
    """Numbers of the keys and values that it reads and did not just compute."""

    def __add__(self, other: "Work") -> "Work":
        return Work(
            operations=self.operations + other.operations,
            weights=self.weights + other.weights,
            cached=self.cached + other.cached,
        )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Speeds of a machine for a type of numbers."""

    bytes_per_second: float
    """Memory is read so fast, in a buffer as large as the model's weights and cache."""
    operations_per_second: float
    """Of products of large matrices."""

    def to_json(self) -> dict[str, float]:
        """Return the two speeds in gigabytes and in 10^9 operations a second."""
        return {
            "memory_gb_per_second": self.bytes_per_second / 1e9,
            "matrix_products_gflops": self.operations_per_second / 1e9,
        }

    def floor(self, passes: Sequence[Work], itemsize: int) -> dict[str, Any]:
        """Return what the passes of a frame read and compute, and the least milliseconds they take.

        Args:
            passes: Of the frame, one after the other.
            itemsize: Bytes of a number.
        """
        read = [itemsize * (work.weights + work.cached) for work in passes]
        computed = [work.operations for work in passes]
        seconds = [
            (bytes_ / self.bytes_per_second, operations / self.operations_per_second)
            for bytes_, operations in zip(read, computed, strict=True)
        ]
        return {
            "bytes_per_frame": sum(read),
            "operations_per_frame": sum(computed),
            "bandwidth_floor_ms": 1000 * sum(reading for reading, _ in seconds),
            "arithmetic_floor_ms": 1000 * sum(computing for _, computing in seconds),
            # Reading and computing overlap within a pass, but a pass waits for the one before.
            "floor_ms": 1000 * sum(max(pair) for pair in seconds),
        }


def frame_work(
    model: Transformer, decoder: Decoder, calls: int, num_past: int
) -> list[Work] | None:
    """Return the passes of one frame; None for decoders whose passes are not known here.

    Args:
        model: That draws it.
        decoder: By which it is drawn.
        calls: How often the decoder asked the model; it depends on the frame for some.
        num_past: Frames that the cache holds.
    """
    passes: _Passes
    if isinstance(model, NextFrameTransformer):
        passes = _NextFramePasses(model, num_past)
    elif isinstance(model, DrivingTransformer):
        passes = _DrivingPasses(model, num_past)
    else:
        passes = _NextTokenPasses(model, num_past)
    if isinstance(decoder, ScheduleDecoder):
        return [passes.observe(), *passes.groups(decoder.schedule)]
    guesses = calls - model.layout.num_cells
    if isinstance(decoder, JacobiDecoder) and guesses > 0:
        # What rounding might have decided was drawn again, cell by cell.
        raster = make_schedule("raster", model.layout.rows, model.layout.columns)
        return [passes.observe(), *[passes.score()] * guesses, *passes.groups(raster)]
    if isinstance(decoder, JacobiDecoder | GroupedJacobiDecoder | RefinementDecoder):
        return [passes.observe(), *[passes.score()] * calls]
    return None


class _Passes(Protocol):
    def observe(self) -> Work:
        """Return the pass that remembers a step."""

    def groups(self, schedule: DecodeSchedule) -> list[Work]:
        """Return the passes that draw the groups of a schedule."""

    def score(self) -> Work:
        """Return the pass that verifies a guess of the whole frame."""


class _InterleavedPasses:
    def __init__(self, model: NextFrameTransformer | NextTokenTransformer, num_past: int) -> None:
        self.layout, self.block = model.layout, model.block_config
        self.width, self.vocabulary_size = model.readout.in_features, model.readout.out_features
        self.cells = model.layout.num_cells
        self.past = [
            min(window - 1, num_past) * model.layout.tokens_per_step for window in model.windows
        ]
        config = model.cache_config()
        for layer in config.far_layers:
            num_far = min(config.far_frames, max(0, num_past + 1 - model.windows[layer]))
            self.past[layer] += num_far * config.far_tokens
        """For each layer the tokens of earlier frames that it sees."""

    def read_out(self, tokens: int) -> Work:
        weights = self.width * self.vocabulary_size
        return Work(operations=2 * tokens * weights, weights=weights if tokens else 0, cached=0)

    def over_sequence(self, tokens: int, known: int = 0) -> Work:
        """Return the pass of tokens that see the past, known tokens of their own step, and themselves."""
        return _stack(self.block, tokens, [past + known for past in self.past])


def _stack(block: BlockConfig, tokens: int, earlier: Sequence[int]) -> Work:
    """Return the pass of tokens through blocks; each sees all of them and earlier ones of its layer."""
    if not tokens:
        return Work(operations=0, weights=0, cached=0)
    attention = block.attention
    kv_width = attention.num_key_value_heads * attention.head_width
    weights = attention.width * (2 * attention.width + 2 * kv_width + 3 * block.feed_forward_width)
    seen = sum(tokens + each for each in earlier)
    return Work(
        operations=len(earlier) * 2 * tokens * weights + 4 * tokens * seen * attention.width,
        weights=len(earlier) * weights,
        cached=2 * kv_width * sum(earlier),
    )


class _NextFramePasses(_InterleavedPasses):
    def __init__(self, model: NextFrameTransformer, num_past: int) -> None:
        super().__init__(model, num_past)
        self.depth = model.config.within_frame_depth
        self.neighbourhood = 9 * model.config.token_embedding_width * self.width

    def observe(self) -> Work:
        square = self.width * self.width
        embedding = Work(
            operations=2 * self.cells * self.neighbourhood + 2 * square,
            weights=self.neighbourhood + square,
            cached=0,
        )
        passed = self.over_sequence(self.layout.tokens_per_step)
        return embedding + passed + self.read_out(self.cells)

    def groups(self, schedule: DecodeSchedule) -> list[Work]:
        """Return the passes after the first group, which is drawn from `observe`."""
        sizes = [len(group) for group in schedule.groups]
        works = []
        for number in range(1, len(sizes)):
            fresh, known = sizes[number - 1], sum(sizes[: number - 1])
            works.append(self._within(fresh, fresh + sizes[number], known, sizes[number]))
        return works

    def score(self) -> Work:
        return self._within(self.cells, 2 * self.cells, 0, self.cells)

    def _within(self, content: int, tokens: int, known: int, read: int) -> Work:
        square = self.width * self.width
        context = Work(operations=2 * content * square, weights=square, cached=0)
        passed = _stack(self.block, tokens, [known] * self.depth)
        return context + passed + self.read_out(read)


class _NextTokenPasses(_InterleavedPasses):
    def __init__(self, model: NextTokenTransformer, num_past: int) -> None:
        super().__init__(model, num_past)
        self.trained = model.config.order.group_of_cell.tolist()

    def observe(self) -> Work:
        return self.over_sequence(self.layout.tokens_per_step)

    def groups(self, schedule: DecodeSchedule) -> list[Work]:
        works, known = [], 0
        fresh: tuple[int, ...] = ()
        for number, group in enumerate(schedule.groups):
            # A cell just drawn asks for the next one itself; others need a token that asks.
            asking = sum(
                not (cell == 0 and number == 0)
                and not (cell - 1 in fresh and self.trained[cell] == self.trained[cell - 1] + 1)
                for cell in group
            )
            works.append(self.over_sequence(len(fresh) + asking, known) + self.read_out(len(group)))
            known += len(fresh)
            fresh = group
        return works

    def score(self) -> Work:
        return self.over_sequence(2 * self.cells) + self.read_out(self.cells)


class _DrivingPasses:
    def __init__(self, model: DrivingTransformer, num_past: int) -> None:
        config = model.config
        self.config, self.width = config, config.width
        self.slots, self.cells = config.num_action_tokens, config.rows * config.columns
        self.num_past = min(config.window - 1, num_past)

    def observe(self) -> Work:
        tokens, depth = self.slots + self.cells, self.config.context_depth
        # Over time a slot sees itself in each frame, over space all slots of its own.
        over_time = self._blocks(tokens, 1 + self.num_past, depth)
        remembered = 2 * depth * self.width * tokens * self.num_past
        over_time += Work(operations=0, weights=0, cached=remembered)
        return self._embed(self.cells) + over_time + self._blocks(tokens, tokens, depth)

    def groups(self, schedule: DecodeSchedule) -> list[Work]:
        works, known, fresh = [], 0, 0
        for number, group in enumerate(schedule.groups):
            tokens = len(group) + (0 if number else self.slots)
            known += tokens
            works.append(self._embed(fresh) + self._within(tokens, known, len(group)))
            fresh = len(group)
        return works

    def score(self) -> Work:
        tokens = self.slots + self.cells
        return self._embed(self.cells) + self._within(tokens, tokens, self.cells)

    def _within(self, tokens: int, seen: int, read: int) -> Work:
        hidden = max(self.config.codebook_size // 2, 1)
        weights = hidden * (self.width + self.config.codebook_size)
        head = Work(operations=2 * read * weights, weights=weights, cached=0)
        depth = self.config.within_frame_depth
        known = Work(operations=0, weights=0, cached=2 * depth * self.width * (seen - tokens))
        return self._blocks(tokens, seen, depth) + known + head

    def _blocks(self, tokens: int, seen: int, depth: int) -> Work:
        # Four square maps of the attention, and a feed-forward layer of four times the width.
        weights = 12 * self.width**2
        return Work(
            operations=depth * (2 * tokens * weights + 4 * tokens * seen * self.width),
            weights=depth * weights,
            cached=0,
        )

    def _embed(self, tokens: int) -> Work:
        weights = self.width // 2 * (self.config.code_width + self.width)
        return Work(operations=2 * tokens * weights, weights=weights if tokens else 0, cached=0)


_PROBE_SECONDS = 0.4
_LEAST_RUNS = 5
_LEAST_BYTES = 2**20
_PROBE_WIDTH = 1024
_PIECE_BYTES = 2**24
_MATRIX_SIDES = {"cpu": (512, 1024), "cuda": (4096, 8192)}
"""On a processor the first is small enough to pass between two interruptions by other programs."""


def probe_machine(device: torch.device, dtype: torch.dtype, working_bytes: int) -> Machine:
    """Measure how fast this process reads memory and multiplies matrices, with torch's threads.

    The best of several runs and, for memory, of two ways of reading it: a sum, and the product of
    a matrix and a vector. About a second in all.

    Args:
        device: Where the model computes.
        dtype: In which it computes.
        working_bytes: Of its weights and its cache. The buffer is as large, so that a model that
            fits the processor's own memory is held against the speed of that one.
    """
    numbers = max(working_bytes, _LEAST_BYTES) // 4 // _PROBE_WIDTH * _PROBE_WIDTH
    matrix = torch.ones(numbers // _PROBE_WIDTH, _PROBE_WIDTH, device=device)
    vector = torch.ones(_PROBE_WIDTH, device=device)
    # A processor reads the buffer piece by piece, round and round; what a program that interrupts
    # takes then spoils a piece and not the buffer. A graphics card would hardly begin with a piece.
    count = 1 if device.type == "cuda" else -(-4 * numbers // _PIECE_BYTES)
    pieces = itertools.cycle(matrix.chunk(count))
    piece_bytes = 4 * matrix.chunk(count)[0].numel()
    seconds = min(
        _best_seconds(lambda: next(pieces).sum(), device, least=count),
        _best_seconds(lambda: next(pieces) @ vector, device, least=count),
    )
    speeds = []
    for side in _MATRIX_SIDES.get(device.type, (512,)):
        left = torch.ones(side, side, dtype=dtype, device=device)
        speeds.append(2 * side**3 / _best_seconds(partial(torch.mm, left, left), device))
    return Machine(bytes_per_second=piece_bytes / seconds, operations_per_second=max(speeds))


def _best_seconds(
    run: Callable[[], torch.Tensor], device: torch.device, least: int = _LEAST_RUNS
) -> float:
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < max(least, _LEAST_RUNS) or time.perf_counter() - started < _PROBE_SECONDS:
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times)
