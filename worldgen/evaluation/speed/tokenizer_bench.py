"""Speed and memory of the joint tokenizer at OmniTokenizer's released size, beside a plain reading."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from worldgen.errors import ConfigError
from worldgen.evaluation.machine import (
    hardware,
    memory_megabytes,
    peak_memory_megabytes,
    versions,
)
from worldgen.evaluation.speed.plain_omnitokenizer import PlainOmniTokenizer
from worldgen.interop.omnitokenizer import (
    TemporalMode,
    omnitokenizer_arguments,
    omnitokenizer_config,
    upstream_state,
)
from worldgen.tokenizers.visual import OmniTokenizer, OmniTokenizerConfig

__all__ = ["RELEASED_SIZES", "TokenizerBench", "bench_tokenizer", "measure"]

RELEASED_SIZES: dict[str, Any] = {
    "embedding_dim": 512,
    "n_codes": 8192,
    "codebook_dim": 8,
    "resolution": 256,
    "patch_size": 8,
    "temporal_patch_size": 4,
    "enc_block": "ttww",
    "dec_block": "tttt",
    "twod_window_size": 8,
    "spatial_pos": "rope",
    "causal_in_temporal_transformer": True,
    "causal_in_peg": True,
    "l2_code": True,
}
"""Arguments of OmniTokenizer's released weights, those left out with their defaults."""

Contender = Literal["plain", "aligned", "upstream"]
"""The plain reading, and the library in its own and in upstream's order of memory."""


@dataclass(frozen=True, kw_only=True)
class TokenizerBench:
    """What is measured."""

    frames: int = 17
    height: int = 256
    width: int = 256
    rounds: int = 3
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the library's encoder and decoder; the plain reading is always float32."""

    def __post_init__(self) -> None:
        patch, time = RELEASED_SIZES["patch_size"], RELEASED_SIZES["temporal_patch_size"]
        if self.height % patch or self.width % patch or min(self.height, self.width) < patch:
            raise ConfigError(
                f"height and width must be multiples of {patch}, got {self.height} x {self.width}"
            )
        if self.frames < 1 or (self.frames - 1) % time:
            raise ConfigError(f"frames must be 1 + k x {time}, got {self.frames}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("there is no graphics card that torch can use; take device cpu")

    @property
    def fits_plain(self) -> bool:
        """Whether upstream's design can take frames of this size: squares of whole windows."""
        window = RELEASED_SIZES["patch_size"] * RELEASED_SIZES["twod_window_size"]
        return self.height == self.width and self.height % window == 0


def bench_tokenizer(bench: TokenizerBench, sizes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return medians of time, and memory, of encoding and decoding one clip.

    All contenders have the same random weights and frames. Each pass runs in a process of its
    own, the contenders in turn, so that neither memory nor a busy machine favours one of them.

    `cpu_seconds` is what the processor worked in all threads, which other programs disturb less.
    `peak_mb` is the most memory that a process held, `working_mb` what came on top of weights and
    libraries. `ids_equal` is the share of ids in which the plain reading and the library in
    upstream's order agree.

    Args:
        bench: What is measured.
        sizes: Upstream's arguments, if not those of the released weights.
    """
    contenders: list[Contender] = ["aligned", "upstream"]
    if bench.fits_plain:
        contenders.insert(0, "plain")
    passes: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes:
        for _ in range(bench.rounds):
            for name in contenders:
                run = processes.submit(measure, bench, sizes or RELEASED_SIZES, name)
                passes[name].append(run.result())
    result: dict[str, Any] = {
        "frames": bench.frames,
        "height": bench.height,
        "width": bench.width,
        "rounds": bench.rounds,
        "device": bench.device,
        "precision": bench.precision,
        **{name: _medians(bench, measured) for name, measured in passes.items()},
    }
    if bench.fits_plain:
        plain, ours = result["plain"], result["aligned"]
        result["times_faster"] = plain["seconds"] / ours["seconds"]
        result["times_less_work"] = plain["cpu_seconds"] / ours["cpu_seconds"]
        if plain["peak_mb"] is not None:
            result["share_of_peak_memory"] = ours["peak_mb"] / plain["peak_mb"]
            result["share_of_working_memory"] = ours["working_mb"] / plain["working_mb"]
        pairs = zip(passes["plain"][0]["ids"], passes["upstream"][0]["ids"], strict=True)
        result["ids_equal"] = statistics.mean(float(one == other) for one, other in pairs)
    return result | {"hardware": hardware(), "versions": versions()}


def _medians(bench: TokenizerBench, measured: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("encode_seconds", "decode_seconds", "cpu_seconds", "peak_mb", "working_mb")
    found: dict[str, Any] = {}
    for name in names:
        values = [one[name] for one in measured]
        found[name] = None if None in values else statistics.median(values)
    found["seconds"] = statistics.median(
        one["encode_seconds"] + one["decode_seconds"] for one in measured
    )
    found["ms_per_frame"] = 1000.0 * found["seconds"] / bench.frames
    return found


@torch.inference_mode()
def measure(bench: TokenizerBench, sizes: dict[str, Any], name: Contender) -> dict[str, Any]:
    """Encode and decode one clip; figures of memory are those of the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator().manual_seed(0)
    shape = (1, bench.frames, 3, bench.height, bench.width)
    frames = (torch.rand(shape, generator=generator) * 2 - 1).to(bench.device)
    encode, decode = _contender(bench, sizes, name)
    # One small image, so that what is loaded at first use counts for nobody.
    side = 64
    decode(encode(frames[:, :1, :, :side, :side]))
    before = _memory(bench.device)
    worked = time.process_time()
    encode_seconds, ids = _timed(partial(encode, frames), bench.device)
    decode_seconds, _ = _timed(partial(decode, ids), bench.device)
    cpu_seconds = time.process_time() - worked
    peak = _peak_memory(bench.device)
    return {
        "encode_seconds": encode_seconds,
        "decode_seconds": decode_seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": peak,
        "working_mb": None if peak is None or before is None else peak - before,
        "ids": ids.flatten().tolist(),
    }


def _contender(
    bench: TokenizerBench, sizes: dict[str, Any], name: Contender
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    arguments, _ = omnitokenizer_arguments(sizes, Path("sizes"))
    mode: TemporalMode = "aligned" if name == "aligned" else "upstream"
    config = omnitokenizer_config(arguments, mode=mode, attention="sdpa")
    assert isinstance(config, OmniTokenizerConfig)
    torch.manual_seed(0)
    network = OmniTokenizer(config).eval().requires_grad_(False).to(bench.device)
    if name != "plain":
        precision = getattr(torch, bench.precision)
        network.encoder.to(precision)
        network.decoder.to(precision)
        return network.encode, network.decode
    plain = PlainOmniTokenizer(upstream_state(network), arguments)

    def encode(frames: Tensor) -> Tensor:
        return plain.encode(rearrange(frames, "b t rgb h w -> b rgb t h w") / 2)

    return encode, plain.decode


def _timed(run: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    begin = time.perf_counter()
    made = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, made


def _memory(device: str) -> float | None:
    if device == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    return memory_megabytes()


def _peak_memory(device: str) -> float | None:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_megabytes()
