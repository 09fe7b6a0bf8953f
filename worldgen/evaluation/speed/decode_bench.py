"""Speed of every decoder on one model, beside the least time that the machine allows."""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from einops import rearrange
from jaxtyping import Int
from torch import Tensor, nn
from tqdm import tqdm

from worldgen.config import build, config_dir
from worldgen.errors import ConfigError
from worldgen.evaluation.machine import (
    available_memory_megabytes,
    hardware,
    peak_memory_megabytes,
    versions,
)
from worldgen.evaluation.speed.decode_bench_floor import Machine, frame_work, probe_machine
from worldgen.evaluation.speed.plain_mineworld import PlainMineWorld
from worldgen.generation.decoding import Decoder, make_decoder
from worldgen.generation.jacobi import JacobiDecoder
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import SamplingConfig
from worldgen.generation.scheduled import ScheduleDecoder
from worldgen.generation.speculative import PairedDraft, SpeculativeDecoder, WithDraftModel
from worldgen.models import (
    DrivingConfig,
    NextTokenTransformer,
    Transformer,
    TransformerConfig,
    build_world_model,
    load_world_model,
    world_model_config,
)
from worldgen.models.base import FrameDraft, WorldModel
from worldgen.nn.cache import FrameCache
from worldgen.nn.far import FarTokens
from worldgen.pipeline import World
from worldgen.records import to_uint8
from worldgen.tokenizers.visual import (
    ConvolutionalTokenizerConfig,
    VisualTokenizer,
    build_visual_tokenizer,
)

__all__ = ["DecodeBench", "Subject", "bench_decoders", "preset_subject", "world_subject"]

Precision = Literal["float32", "bfloat16"]
Tell = Callable[[str], None]

_SEED = 0
_MOST_WARM_UP = 3
_SLOW_SECONDS = 60.0
_FRAMES_PER_ACTION = 4
_WORLD_DECODERS = ("raster", "jacobi", "outward", "blocks", "refine:4", "grouped")
_WITH_DRAFT = "speculative:whole_frame"
_PRESET_DECODERS = ("raster", "diagonal", "rows", "refine:4", "whole_frame")

_MINEWORLD_TOKENS: dict[str, Any] = {
    "codebook_size": 8192,
    "num_action_tokens": 11,
    "action_vocabulary_size": 70,
}
_DRIVINGWORLD_TOKENS: dict[str, Any] = {
    "codebook_size": 16384,
    "num_action_tokens": 3,
    "action_vocabulary_size": 768,
    "slot_options": (512, 128, 128),
}


@dataclass(frozen=True, kw_only=True)
class DecodeBench:
    """What is measured.

    Raises:
        ConfigError: If there is no frame, or no such device.
    """

    decoders: tuple[str, ...] = ()
    """As named by `make_decoder`; by default those of the world's card and one of every kind."""
    frames: int = 32
    device: str = "cpu"
    precision: Precision = "float32"
    with_upstream: bool = False
    """Whether the same model is run the way MineWorld runs it, for raster and diagonal order."""
    draft: Path | None = None
    """File of a small world model of the same tokenizers, for `speculative` decoders."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"a bench needs at least 1 frame, got {self.frames}")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("there is no graphics card that torch can use; take device cpu")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to draw frames with, and where it begins."""

    facts: dict[str, Any]
    """What stands about it in the report."""
    model: Transformer
    sampling: SamplingConfig
    decoders: tuple[str, ...]
    """Those measured by default."""
    tokenizer: VisualTokenizer | None
    """Turns ids into pixels; without one the figures are those of the model alone."""
    visual_ids: Int[Tensor, "step cell"] | None
    """Of the context; None fills the cache with random keys and values."""
    action_ids: Int[Tensor, "step slot"]
    """Those of the context but its last frame, then those that are taken in turn."""
    trained: tuple[str, ...] | None = None
    """Decoding orders that the model was trained for; None if it was not trained."""
    draft_model: Transformer | None = None
    """Guesses frames for `speculative` decoders."""

    @property
    def paired_model(self) -> WorldModel:
        """The model, with the one that guesses beside it if there is one."""
        if self.draft_model is None:
            return self.model
        return WithDraftModel(self.model, self.draft_model)

    def decoder(self, name: str) -> Decoder:
        """Return the decoder of a name.

        Raises:
            ConfigError: If there is none, or it needs another model beside this one and there is
                none.
        """
        decoder = make_decoder(name, self.model.layout, self.sampling, self.tokenizer)
        if isinstance(decoder, SpeculativeDecoder) and self.draft_model is None:
            raise ConfigError(
                f"decoder {name!r} needs a draft model beside this one; give the file of one with "
                "--draft, or take 'jacobi', whose draft is the frame before"
            )
        return decoder

    def begin(self, model: WorldModel, cache: FrameCache) -> Int[Tensor, "1 cell"]:
        """Fill a model's cache with all steps of the context but the last; return that one's ids."""
        if self.visual_ids is not None:
            for ids, actions in zip(self.visual_ids[:-1], self.action_ids, strict=False):
                model.observe(cache, ids[None], actions[None])
            return self.visual_ids[-1:].to(model.device)
        model = self.model
        # What is remembered does not matter for speed, and reading frames would take minutes.
        layout, config = model.layout, model.cache_config()
        vectors = torch.randn(config.frame_shape(1), device=model.device).to(config.dtype)
        few = FarTokens(*[vectors[:, :, : config.far_tokens]] * 2)
        for _ in range(max(config.windows) - 1 + config.far_frames):
            for layer in range(len(config.windows)):
                far = few if layer in config.far_layers else None
                cache.write_and_read(layer, vectors, vectors, far)
            if config.notes:
                cache.note(self.action_ids[:1])
            cache.advance()
        return torch.zeros(1, layout.num_cells, dtype=torch.int64, device=model.device)

    @property
    def num_context_actions(self) -> int:
        """Actions that were taken before the first one that counts."""
        return 0 if self.visual_ids is None else len(self.visual_ids) - 1


def world_subject(world: World, bench: DecodeBench) -> Subject:
    """Return a world as it is played from its first start.

    Raises:
        CheckpointError: If the draft model cannot be read.
        ConfigError: If it speaks of other tokens than the world.
    """
    model, tokenizer = world.model, world.tokenizer
    draft_model = None if bench.draft is None else load_world_model(bench.draft)[0]
    if draft_model is not None:
        # Refuses one of other tokenizers.
        WithDraftModel(model, draft_model)
    if bench.device != "cpu" or bench.precision != "float32":
        # The loaded world is shared, and stays where it is.
        model = copy.deepcopy(model).to(bench.device, getattr(torch, bench.precision))
        tokenizer = copy.deepcopy(tokenizer).to(bench.device)
        if draft_model is not None:
            draft_model = draft_model.to(bench.device, getattr(torch, bench.precision))
    start, schema = world.starts[0], world.action_tokenizer.schema
    named = [schema.action(settings) for settings in schema.named.values()] or [schema.rest()]
    taken = np.repeat(np.stack(named), _FRAMES_PER_ACTION, axis=0)
    ids = torch.from_numpy(world.action_tokenizer.encode(taken)).long()
    following = model.layout.actions_of_steps(ids)
    return Subject(
        facts={
            "world": world.name,
            "world_hash": world.hash,
            "draft_parameters": None if draft_model is None else _num_weights(draft_model),
        },
        model=model,
        sampling=world.card.sampling,
        decoders=tuple(
            dict.fromkeys(
                (
                    *world.card.decoders,
                    *_WORLD_DECODERS,
                    *((_WITH_DRAFT,) if draft_model is not None else ()),
                )
            )
        ),
        tokenizer=tokenizer,
        visual_ids=start.visual_ids,
        action_ids=torch.cat((start.action_ids, following)),
        trained=world.card.decoders,
        draft_model=draft_model,
    )


def preset_subject(
    name: str,
    bench: DecodeBench,
    *,
    rows: int = 14,
    columns: int = 24,
    layers: int | None = None,
    tokenizer: str | None = None,
) -> Subject:
    """Return a model of a shipped configuration with random weights, for speed alone.

    Codes and actions are those of the family's ancestor: MineWorld's 8,192 codes and 11 action
    tokens out of 70, or DrivingWorld's 16,384 codes and 3 tokens of ego motion.

    Args:
        name: Of a file in `configs/model`.
        bench: Says where and in which precision it computes.
        rows: Height of the grid.
        columns: Width of the grid.
        layers: Only so many of its layers; by default all.
        tokenizer: Of a file in `configs/tokenizer`, to count pixels too.

    Raises:
        ConfigError: If there is no such file, the model is of another family, the tokenizer has
            another grid, or the model does not fit the memory of the machine.
    """
    sizes = _preset("model", name)
    family = sizes.pop("family")
    if layers is not None:
        sizes = _with_layers(name, sizes, layers)
    tokens = _DRIVINGWORLD_TOKENS if family == "driving" else _MINEWORLD_TOKENS
    config = world_model_config(family, {**sizes, **tokens, "rows": rows, "columns": columns})
    with torch.device("meta"):
        shapes = build_world_model(config)
    _check_memory(name, shapes, bench)
    with torch.random.fork_rng(), _made_in(bench):
        torch.manual_seed(_SEED)
        model = build_world_model(config).eval().requires_grad_(False)
        actions = _preset_actions(config)
        pixels = None
        if tokenizer is not None:
            pixels = _preset_tokenizer(tokenizer, config)
    return Subject(
        facts={
            "model": name,
            "random_weights": True,
            "layers": len(model.cache_config().windows),
            "rows": rows,
            "columns": columns,
            "tokenizer": tokenizer,
        },
        model=model,
        sampling=SamplingConfig(),
        decoders=_PRESET_DECODERS,
        tokenizer=pixels,
        visual_ids=None,
        action_ids=actions,
    )


def _preset(kind: str, name: str) -> dict[str, Any]:
    names = {path.stem: path for path in sorted((config_dir() / kind).glob("*.yaml"))}
    if name not in names:
        raise ConfigError(f"there is no {kind} {name!r}; there are {', '.join(names)}")
    sizes: dict[str, Any] = yaml.safe_load(names[name].read_text(encoding="utf-8"))
    return {key: tuple(value) if key == "windows" else value for key, value in sizes.items()}


def _with_layers(name: str, sizes: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return sizes with only so many layers over the frames so far."""
    depth = sizes["context_depth"] if "context_depth" in sizes else len(sizes["windows"])
    if not 1 <= layers <= depth:
        raise ConfigError(f"model {name!r} has {depth} layers; ask for 1 to as many, got {layers}")
    if "context_depth" in sizes:
        return {**sizes, "context_depth": layers}
    return {**sizes, "windows": sizes["windows"][:layers]}


def _preset_actions(config: TransformerConfig) -> Int[Tensor, "step slot"]:
    """Return action tokens that the model can be told, drawn at random."""
    if isinstance(config, DrivingConfig):
        slots = [
            first + torch.randint(options, (16,), device="cpu")
            for first, options in zip(config.first_ids, config.slot_options, strict=True)
        ]
        return torch.stack(slots, dim=-1)
    shape = (16, config.num_action_tokens)
    return torch.randint(config.action_vocabulary_size, shape, device="cpu")


def _preset_tokenizer(name: str, config: TransformerConfig) -> VisualTokenizer:
    rows, columns = config.rows, config.columns
    sizes = _preset("tokenizer", name)
    if sizes.get("kind") != "convolutional":
        raise ConfigError(
            f"tokenizer {name!r} is of kind {sizes.get('kind')!r}; a bench takes a convolutional "
            "one, for example vqgan_16x"
        )
    tokenizer = build_visual_tokenizer(build(ConvolutionalTokenizerConfig, sizes))
    if (tokenizer.rows, tokenizer.columns) != (rows, columns):
        raise ConfigError(
            f"tokenizer {name!r} has a grid of {tokenizer.rows} x {tokenizer.columns}, the model "
            f"one of {rows} x {columns}; give --rows {tokenizer.rows} --columns "
            f"{tokenizer.columns}, or no tokenizer"
        )
    if tokenizer.codebook_size < config.codebook_size:
        raise ConfigError(
            f"tokenizer {name!r} has {tokenizer.codebook_size} codes, the model draws "
            f"{config.codebook_size}; take another one, or none"
        )
    return tokenizer.eval().requires_grad_(False)


@contextmanager
def _made_in(bench: DecodeBench) -> Iterator[None]:
    """Make new weights in the precision and on the device of a bench, never larger elsewhere."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, bench.precision))
    try:
        with torch.device(bench.device):
            yield
    finally:
        torch.set_default_dtype(before)


def _check_memory(name: str, shapes: Transformer, bench: DecodeBench) -> None:
    itemsize = getattr(torch, bench.precision).itemsize
    needed = itemsize * sum(weight.numel() for weight in shapes.parameters()) / 2**20
    if bench.device.startswith("cuda"):
        free: float | None = torch.cuda.mem_get_info()[0] / 2**20
    else:
        free = available_memory_megabytes()
    if free is not None and needed > free:
        raise ConfigError(
            f"the weights of model {name!r} take {needed:,.0f} MB in {bench.precision}, and "
            f"{free:,.0f} MB of memory are free; take --precision bfloat16, fewer --layers, or a "
            "larger machine"
        )


@torch.no_grad()
def bench_decoders(
    subject: Subject,
    bench: DecodeBench,
    *,
    progress: bool = True,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Return for each decoder its calls, times, memory, and the floor of this machine.

    One sequence, drawn as a session draws it: the pass that remembers the step, the groups or
    guesses of the decoder, the ids on the host, then the pixels where there is a tokenizer.

    Args:
        subject: From `world_subject` or `preset_subject`.
        bench: What is measured.
        progress: Show a bar on the terminal.
        tell: Gets a line where this will take long.

    Raises:
        ConfigError: If a decoder is unknown or cannot be measured, or upstream's design is asked
            for where there is none.
    """
    model = subject.model
    names = tuple(dict.fromkeys(bench.decoders or subject.decoders))
    # First of all, so that a wrong name is not found after minutes.
    decoders = [subject.decoder(name) for name in names]
    upstream = _upstream_windows(subject, decoders) if bench.with_upstream else {}
    dtype = model.cache_config().dtype
    # Embeddings are looked up, not read.
    looked_up = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    weights = _num_weights(model) - sum(part.weight.numel() for part in looked_up)
    cache_bytes = FrameCache.predicted_bytes(model.cache_config())
    machine = probe_machine(model.device, dtype, weights * dtype.itemsize + cache_bytes)
    grids = model.layout.num_steps(bench.frames)
    warm_up = min(_MOST_WARM_UP, grids // 2)
    conditions = hardware()
    notes = [] if warm_up else ["too few frames for a warm-up: the first one counts"]
    notes += _busy(conditions)
    if subject.sampling.guidance or subject.sampling.last_temperature is not None:
        notes.append("guidance and temperatures of single cells are left out")
    notes += _slow(subject, decoders, machine, grids + warm_up)
    for note in notes:
        if tell is not None:
            tell(note)
    total = (grids + warm_up) * len(decoders) + bench.frames * len(upstream)
    with tqdm(total=total, unit=" frames", disable=None if progress else True) as bar:
        entries = [_measure(subject, decoder, machine, grids, warm_up, bar) for decoder in decoders]
        upstream_entries = [
            _measure_upstream(subject, name, window, bench.frames, bar)
            for name, window in upstream.items()
        ]
    by_name = {entry["decoder"]: entry for entry in entries}
    for entry in upstream_entries:
        ours = by_name[entry["decoder"]]
        entry["times_faster"] = entry["model_ms_p50"] / ours["model_ms_p50"]
        entry["times_less_work"] = entry["processor_ms"] / ours["processor_ms"]
    return {
        **subject.facts,
        "parameters": _num_weights(model),
        "device": str(model.device),
        "precision": str(dtype).removeprefix("torch."),
        "frames": grids * model.layout.frames_per_step,
        "warm_up_frames": warm_up * model.layout.frames_per_step,
        "frames_drawn_together": model.layout.frames_per_step,
        "cells": model.layout.num_cells,
        "pixels_included": subject.tokenizer is not None,
        "sampling": dataclasses.asdict(subject.sampling),
        "machine": machine.to_json(),
        "decoders": entries,
        **({"upstream": upstream_entries} if upstream else {}),
        "notes": notes,
        "hardware": conditions,
        "versions": versions(),
    }


def _busy(conditions: dict[str, Any]) -> Iterator[str]:
    load, cores = conditions["load_average"], conditions["cores"]
    if load is not None and load > cores + 1:
        yield (
            f"other programs are running (load average {load:g} on {cores} cores): times are too "
            "long and shares of the floor too small; processor_ms is disturbed less"
        )


def _slow(subject: Subject, decoders: list[Decoder], machine: Machine, grids: int) -> Iterator[str]:
    """Say which decoders cannot be measured in a minute on this machine, whatever the program."""
    model = subject.model
    for decoder in decoders:
        passes = frame_work(model, decoder, 1, max(model.cache_config().windows) - 1)
        if passes is None:
            continue
        itemsize = model.cache_config().dtype.itemsize
        seconds = machine.floor(passes, itemsize)["floor_ms"] / 1000 * grids
        if seconds > _SLOW_SECONDS:
            yield (
                f"{decoder.name}: this machine needs at least {seconds:,.0f} s for {grids} frames "
                f"({len(passes)} passes each); fewer --frames or other decoders are faster"
            )


def _measure(
    subject: Subject, decoder: Decoder, machine: Machine, grids: int, warm_up: int, bar: Any
) -> dict[str, Any]:
    model: WorldModel = subject.model
    if isinstance(decoder, SpeculativeDecoder):
        model = subject.paired_model
    layout = model.layout
    bar.set_postfix_str(decoder.name)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    cache = model.new_cache(1)
    ids = subject.begin(model, cache)
    stream = None if subject.tokenizer is None else subject.tokenizer.decoder_stream()
    if stream is not None and not subject.tokenizer.single_frames:  # type: ignore[union-attr]
        assert subject.visual_ids is not None
        stream.push(_grid(subject.visual_ids.to(model.device), layout.rows))
    taken = subject.action_ids[subject.num_context_actions :]
    model_times, frame_times, work, calls, draft_calls = [], [], [], [], []
    right: list[float] = []
    for number in range(warm_up + grids):
        worked, begin = time.process_time(), time.perf_counter()
        draft = model.observe(cache, ids, taken[number % len(taken)][None])
        uniforms = frame_uniforms([_SEED], [number + 1], layout.num_cells)
        ids = decoder.draw_frame(model, draft, uniforms)
        ids.cpu()
        drawn, done = time.perf_counter(), time.process_time()
        if stream is not None:
            to_uint8(stream.push(_grid(ids, layout.rows))).cpu()
        shown = time.perf_counter()
        bar.update()
        if number >= warm_up:
            model_times.append((drawn - begin) / layout.frames_per_step)
            frame_times.append((shown - begin) / layout.frames_per_step)
            work.append((done - worked) / layout.frames_per_step)
            calls.append(draft.calls)
            guess = _guess(decoder, draft)
            if guess is not None:
                right.append(float((guess == ids).double().mean()))
            if isinstance(draft, PairedDraft):
                draft_calls.append(draft.small.calls)
    together = layout.frames_per_step
    floor = _floor(subject, decoder, machine, calls, cache.num_frames - 1)
    return {
        "decoder": decoder.name,
        "trained": _trained(subject, decoder),
        "calls_per_frame": statistics.mean(calls) / together,
        "draft_calls_per_frame": statistics.mean(draft_calls) / together if draft_calls else None,
        "guessed_right": statistics.mean(right) if right else None,
        "frames_per_second": 1 / statistics.mean(frame_times),
        **_milliseconds("frame_ms", frame_times),
        "model_frames_per_second": 1 / statistics.mean(model_times),
        **_milliseconds("model_ms", model_times),
        "processor_ms": 1000 * statistics.mean(work),
        "tokens_per_second": layout.num_cells / together / statistics.mean(model_times),
        "cache_bytes": sum(
            FrameCache.predicted_bytes(each.cache_config())
            for each in (subject.model, subject.draft_model if draft_calls else None)
            if each is not None
        ),
        "peak_memory_mb": _peak_memory(model.device),
        **floor,
        "share_of_floor": None
        if floor["floor_ms"] is None
        else floor["floor_ms"] / (1000 * statistics.median(model_times)),
    }


def _guess(decoder: Decoder, draft: FrameDraft) -> Int[Tensor, "batch cell"] | None:
    """Return the frame that a decoder checked first; None for those that do not guess."""
    if isinstance(draft, PairedDraft):
        return draft.guess
    return draft.previous_ids if isinstance(decoder, JacobiDecoder) else None


def _num_weights(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _grid(ids: Int[Tensor, "step cell"], rows: int) -> Int[Tensor, "1 step row column"]:
    return rearrange(ids, "step (row column) -> 1 step row column", row=rows)


def _trained(subject: Subject, decoder: Decoder) -> bool | None:
    if subject.trained is None:
        return None
    kinds = {name.partition(":")[0] for name in subject.trained if name.startswith("refine")}
    return decoder.order in kinds.union(subject.trained)


def _floor(
    subject: Subject, decoder: Decoder, machine: Machine, calls: list[int], num_past: int
) -> dict[str, Any]:
    """Return the mean over frames, whose calls may differ, for one frame of those drawn together."""
    model = subject.model
    itemsize = model.cache_config().dtype.itemsize
    names = tuple(machine.floor([], itemsize))
    floors = []
    for count in calls:
        passes = frame_work(model, decoder, count, num_past)
        if passes is None:
            return dict.fromkeys(names)
        floors.append(machine.floor(passes, itemsize))
    together = model.layout.frames_per_step
    return {name: statistics.mean(floor[name] for floor in floors) / together for name in names}


def _milliseconds(name: str, seconds: list[float]) -> dict[str, float]:
    return {
        f"{name}_p50": 1000 * statistics.median(seconds),
        f"{name}_p99": 1000 * float(np.percentile(seconds, 99)),
    }


def _peak_memory(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory_megabytes()


# Upstream's design


def _upstream_windows(subject: Subject, decoders: list[Decoder]) -> dict[str, int | None]:
    """Return the decoders that upstream has too, with the window that they have there."""
    if not isinstance(subject.model, NextTokenTransformer):
        raise ConfigError(
            "upstream's design is that of next-token models, and this one is a "
            f"{type(subject.model).__name__}; leave out --with-upstream, or take a model such as "
            "mineworld_300m_16f"
        )
    windows: dict[str, int | None] = {}
    for decoder in decoders:
        if not isinstance(decoder, ScheduleDecoder):
            continue
        kind, _, lag = decoder.name.partition(":")
        if kind == "raster":
            windows[decoder.name] = None
        elif kind == "diagonal" and int(lag or 1) <= subject.model.layout.columns:
            windows[decoder.name] = int(lag or 1)
    if not windows:
        raise ConfigError(
            "upstream draws in raster and diagonal order alone; ask for --decoder diagonal or "
            "--decoder raster beside --with-upstream"
        )
    return windows


def _measure_upstream(
    subject: Subject, name: str, window: int | None, frames: int, bar: Any
) -> dict[str, Any]:
    model = subject.model
    assert isinstance(model, NextTokenTransformer)
    bar.set_postfix_str(f"upstream's {name}")
    capacity = max(model.windows)
    plain = PlainMineWorld(model, capacity, subject.sampling)
    # Random, as the cache of the library's model is.
    plain.keys.normal_()
    plain.values.normal_()
    times, work, calls = [], [], []
    for number in range(frames):
        uniforms = frame_uniforms([_SEED], [number + 1], model.layout.num_cells)[0]
        actions = subject.action_ids[number % len(subject.action_ids)]
        before, worked, begin = plain.calls, time.process_time(), time.perf_counter()
        plain.draw_frame(capacity - 1, actions, uniforms, window)
        times.append(time.perf_counter() - begin)
        work.append(time.process_time() - worked)
        calls.append(plain.calls - before)
        bar.update()
    return {
        "decoder": name,
        "calls_per_frame": statistics.mean(calls),
        "model_frames_per_second": 1 / statistics.mean(times),
        **_milliseconds("model_ms", times),
        "processor_ms": 1000 * statistics.mean(work),
        "tokens_per_second": model.layout.num_cells / statistics.mean(times),
        "cache_bytes": 2 * plain.keys.numel() * plain.keys.element_size(),
    }
