"""Nearest codes among many: in chunks, exact, and the same whatever the chunks are."""

from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["nearest_codes", "nearest_neighbours"]

# Relative error of one operation inside a matrix product, for each setting of its precision.
_ROUNDING = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}

# Vectors and codes compared at once. On a CPU the distances (4 MiB) stay in the cache, which was
# 1.4 times as fast as 32 MiB; elsewhere (256 MiB) few large calls are faster than many small ones.
_CPU_CHUNKS, _OTHER_CHUNKS = (256, 4096), (8192, 8192)

# Pairs of a vector and a code whose distance is worked out in float64 at once.
_PAIR_CHUNK = 1 << 18


@torch.no_grad()
def nearest_codes(
    vectors: Float[Tensor, "vector width"],
    codes: Float[Tensor, "code width"],
    *,
    allowed: Bool[Tensor, " code"] | None = None,
    chunks: tuple[int, int] | None = None,
) -> Int[Tensor, " vector"]:
    """Return the index of the code with the smallest squared Euclidean distance from each vector.

    A float32 matrix product over one chunk of vectors and one chunk of codes leaves, for each
    vector, the few codes that its rounding cannot tell from the best; float64 decides between
    these, and between equals the lower index. So ids depend neither on the chunks, nor on what
    else is in the batch, nor on the device, and no more than one chunk of distances is ever held.
    Without gradients; float32 inside autocast too.

    Args:
        vectors: float32.
        codes: float32.
        allowed: Codes that may be chosen; all by default. If none is, index 0 is returned.
        chunks: Vectors and codes compared at once, each at least 1; by default what is fast.

    Returns:
        int64 in [0, code); 0 for a vector with a NaN.
    """
    vector_chunk, code_chunk = chunks or _default_chunks(vectors.device)
    with torch.autocast(vectors.device.type, enabled=False):
        offsets = _squared_norms(codes, allowed)
        longest = offsets.where(offsets.isfinite(), 0.0).amax().sqrt()
        ids = [
            _nearest(chunk, codes, offsets, longest, code_chunk)
            for chunk in vectors.split(vector_chunk)
        ]
    return torch.cat(ids)


@torch.no_grad()
def nearest_neighbours(
    vectors: Float[Tensor, "vector width"],
    codes: Float[Tensor, "code width"],
    count: int,
    *,
    allowed: Bool[Tensor, " code"] | None = None,
    chunks: tuple[int, int] | None = None,
) -> Int[Tensor, "vector count"]:
    """Return the `count` nearest codes of each vector, nearest first, equals by index.

    Codes that are equally near up to float32 rounding may change places at the end of the list.
    Memory is bounded as in `nearest_codes`.

    Args:
        vectors: float32.
        codes: float32.
        count: In [1, codes allowed]; what is not allowed would follow after the rest.
        allowed: Codes that may be chosen; all by default.
        chunks: Vectors and codes compared at once, each at least 1; by default what is fast.
    """
    vector_chunk, code_chunk = chunks or _default_chunks(vectors.device)
    with torch.autocast(vectors.device.type, enabled=False):
        offsets = _squared_norms(codes, allowed)
        ids = [
            _nearest_few(chunk, codes, offsets, count, code_chunk)
            for chunk in vectors.split(vector_chunk)
        ]
    return torch.cat(ids)


def _default_chunks(device: torch.device) -> tuple[int, int]:
    return _CPU_CHUNKS if device.type == "cpu" else _OTHER_CHUNKS


def _squared_norms(codes: Tensor, allowed: Tensor | None) -> Tensor:
    norms = codes.square().sum(-1)
    return norms if allowed is None else norms.masked_fill(~allowed, torch.inf)


def _scores(vectors: Tensor, codes: Tensor, offsets: Tensor) -> Tensor:
    # |x - c|^2 without |x|^2, which is the same for every code.
    return torch.addmm(offsets, vectors, codes.T, alpha=-2.0)


def _nearest(
    vectors: Tensor, codes: Tensor, offsets: Tensor, longest: Tensor, code_chunk: int
) -> Tensor:
    # Twice the usual bound for products and sums of `width` terms, once for each of two scores.
    rounding = 4 * (codes.shape[1] + 2) * _ROUNDING[torch.get_float32_matmul_precision()]
    slack = rounding * longest * (longest + 2 * vectors.square().sum(-1, keepdim=True).sqrt())
    best_score = torch.full_like(slack, torch.inf)
    best = _Best(len(vectors), len(codes), vectors.device)
    for first in range(0, len(codes), code_chunk):
        chunk = slice(first, first + code_chunk)
        scores = _scores(vectors, codes[chunk], offsets[chunk])
        best_score = torch.minimum(best_score, scores.amin(1, keepdim=True))
        close = scores <= (best_score + slack).clamp(max=torch.finfo(torch.float32).max)
        for pairs in close.nonzero().split(_PAIR_CHUNK):
            rows, ids = pairs[:, 0], pairs[:, 1] + first
            best.update(rows, ids, _exact_distances(vectors[rows], codes[ids]))
    return best.ids.where(best.ids < len(codes), 0)


class _Best:
    """The smallest distance of each row so far, and the lowest id that has it."""

    def __init__(self, num_rows: int, no_id: int, device: torch.device) -> None:
        self.no_id = no_id
        self.distances = torch.full((num_rows,), torch.inf, dtype=torch.float64, device=device)
        self.ids = torch.full((num_rows,), no_id, dtype=torch.int64, device=device)

    def update(self, rows: Tensor, ids: Tensor, distances: Tensor) -> None:
        before = self.distances.clone()
        self.distances.scatter_reduce_(0, rows, distances, "amin")
        self.ids.masked_fill_(self.distances < before, self.no_id)
        equal = distances == self.distances[rows]
        self.ids.scatter_reduce_(0, rows[equal], ids[equal], "amin")


def _exact_distances(vectors: Tensor, codes: Tensor) -> Tensor:
    # One channel after the other: a sum in one call may add in another order for another size.
    channels = (vectors.double() - codes.double()).square().unbind(-1)
    return reduce(torch.add, channels)


def _nearest_few(
    vectors: Tensor, codes: Tensor, offsets: Tensor, count: int, code_chunk: int
) -> Tensor:
    scores = vectors.new_empty(len(vectors), 0)
    ids = torch.empty(len(vectors), 0, dtype=torch.int64, device=vectors.device)
    for first in range(0, len(codes), code_chunk):
        chunk = slice(first, first + code_chunk)
        more, more_ids = _keep(_scores(vectors, codes[chunk], offsets[chunk]), count)
        scores = torch.cat([scores, more], dim=1)
        ids = torch.cat([ids, more_ids + first], dim=1)
        scores, kept = _keep(scores, count)
        ids = ids.gather(1, kept)
    # Ascending ids, then a stable sort by the exact distance.
    ids = ids.sort(dim=1).values
    distances = _exact_distances(vectors.unsqueeze(1), codes[ids])
    distances = distances.masked_fill(offsets[ids].isinf(), torch.inf)
    return ids.gather(1, distances.argsort(dim=1, stable=True))


def _keep(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    kept = scores.topk(min(count, scores.shape[1]), largest=False)
    return kept.values, kept.indices
