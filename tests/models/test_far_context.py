"""Far frames as few tokens, and scores that fall with time: one model, whole clip or step by step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from tests.factories import tiny_model_config
from tests.nn.dense_attention import clip_mask, decay_bias, dense, far_mask
from worldgen.errors import ConfigError, SessionLimitError
from worldgen.generation.turns import CacheRows
from worldgen.models import NextFrameTransformer, NextTokenConfig, NextTokenTransformer
from worldgen.models.interleaved import InterleavedConfig, InterleavedTransformer
from worldgen.models.next_frame import NextFrameDraft
from worldgen.nn.blocks import Block
from worldgen.nn.cache import FrameCache
from worldgen.nn.far import FarPooling
from worldgen.nn.rotary import RotaryTable, apply_rotary

ROWS, COLUMNS, CODES, SLOTS, ACTIONS = 2, 4, 20, 2, 6
CELLS = ROWS * COLUMNS
LONGEST, FAR = 3, 7
Model = NextFrameTransformer | NextTokenTransformer
Make = Callable[..., Model]


def next_frame(**changes: Any) -> Model:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"windows": (2, 1, LONGEST), "far_frames": FAR, "far_patch": (2, 2)}
    config = tiny_model_config(rows=ROWS, columns=COLUMNS, codebook_size=CODES)
    return trained(NextFrameTransformer(replace(config, **(sizes | changes))))


def next_token(**changes: Any) -> Model:
    torch.manual_seed(0)
    config = NextTokenConfig(
        rows=ROWS,
        columns=COLUMNS,
        codebook_size=CODES,
        num_action_tokens=SLOTS,
        action_vocabulary_size=ACTIONS,
        width=16,
        num_heads=4,
        num_key_value_heads=2,
        feed_forward_width=24,
        windows=(LONGEST, LONGEST),
        far_frames=FAR,
        far_patch=(2, 2),
        mask="diagonal",
    )
    return trained(NextTokenTransformer(replace(config, **changes)))


def trained(model: Model) -> Model:
    """Return the model with weights as if it had learned, the pools' among them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.startswith("far_pools"):
                weight.add_(noise, alpha=0.2)
            elif weight.ndim > 1 and not name.startswith("embedding"):
                weight.copy_(noise * weight.shape[-1] ** -0.5)
            else:
                weight.add_(noise, alpha=0.1)
    return model.eval()


def steps(frames: int, *, batch: int = 1, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, CODES, (batch, frames, CELLS), generator=generator),
        torch.randint(0, ACTIONS, (batch, frames, SLOTS), generator=generator),
    )


def outputs(model: Model, visual_ids: Tensor, action_ids: Tensor) -> Tensor:
    """Return what the whole clip says at every frame, `[batch, frame, ...]`."""
    if isinstance(model, NextTokenTransformer):
        hidden = model.encode_clip(visual_ids, action_ids)
        return model.read(hidden[:, :, CELLS + SLOTS - 1])
    return model.read(model.encode_steps(visual_ids, action_ids))


def observed(model: Model, cache: Any, visual_ids: Tensor, action_ids: Tensor) -> Tensor:
    """Return what one more step says."""
    draft = model.observe(cache, visual_ids, action_ids)
    return draft.logits if isinstance(draft, NextFrameDraft) else model.read(draft.last)


def play(model: Model, clip: tuple[Tensor, Tensor], cache: FrameCache | None = None) -> Tensor:
    cache = cache or model.new_cache(len(clip[0]))
    frames = range(clip[0].shape[1])
    return torch.stack(
        [observed(model, cache, clip[0][:, frame], clip[1][:, frame]) for frame in frames], dim=1
    )


# The oracle


def written_out(
    model: InterleavedTransformer, stream: Tensor, rotary: RotaryTable, **sees: Any
) -> Tensor:
    """Return all blocks with dense masks over far tokens and whole frames, patch by patch."""
    frames, own, remembered = sees["frames"], sees["own"], sees["remembered"]
    tokens = stream.shape[1] // frames
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        window, sink, decay = model.windows[layer], model.sink, model.time_decay
        query, key, value = block.attention.project(block.attention_norm(stream), rotary)
        mask = clip_mask(frames, tokens, window, sink, own, remembered)
        bias = decay_bias(frames, tokens, sink, decay)
        if window == max(model.windows) and model.far_frames:
            pool = model.far_pools[str(layer)]
            assert isinstance(pool, FarPooling)
            few, places = [], []
            for frame in range(frames):
                for column in (0, 2):
                    first = frame * tokens + model.layout.visual_slice.start
                    cells = [first + column + at for at in (0, 1, COLUMNS, COLUMNS + 1)]
                    weights = pool.weight.split(stream.shape[2])
                    pairs = zip(cells, weights, strict=True)
                    few.append(torch.stack([stream[:, cell] @ part for cell, part in pairs]).sum(0))
                    places.append(cells[0])
            turned = tuple(part[..., places, :] for part in rotary)
            norm = block.attention_norm(torch.stack(few, dim=1))
            attention = block.attention
            projected = attention.query_key_value(norm).unflatten(
                -1, (-1, attention.config.head_width)
            )
            heads, kv_heads = attention.config.num_heads, attention.config.num_key_value_heads
            _, far_key, far_value = (
                part.transpose(1, 2) for part in projected.split((heads, kv_heads, kv_heads), dim=2)
            )
            key = torch.cat((apply_rotary(far_key, (turned[0], turned[1])), key), dim=2)
            value = torch.cat((far_value, value), dim=2)
            mask = torch.cat((far_mask(frames, tokens, window, sink, model.far_frames, 2), mask), 1)
            bias = torch.cat((decay_bias(frames, tokens, sink, decay, 2), bias), dim=1)
        stream = stream + block.attention.merge(dense(query, key, value, mask, bias))
        gate, up = block.gate_up(block.feed_forward_norm(stream)).chunk(2, dim=-1)
        stream = stream + block.down(F.silu(gate) * up)
    return stream


CASES = [
    {"sink": 2},
    {"time_decay": 0.3},
    {"sink": 1, "time_decay": 0.3, "far_frames": 0},
]


@torch.no_grad()
@pytest.mark.parametrize("make", [next_frame, next_token])
@pytest.mark.parametrize("case", CASES)
def test_clip_and_cache_equal_dense_masks(
    make: Make, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clip = make(**case), steps(13, batch=2)
    whole, cached = outputs(model, *clip), play(model, clip)

    def run_clip(
        tokens: Tensor,
        rotary: RotaryTable,
        own: Tensor | None = None,
        remembered: Tensor | None = None,
    ) -> Tensor:
        frames = tokens.shape[1]
        stream = written_out(
            model, tokens.flatten(1, 2), rotary, frames=frames, own=own, remembered=remembered
        )
        return rearrange(stream, "b (frame token) width -> b frame token width", frame=frames)

    monkeypatch.setattr(model, "run_clip", run_clip)
    expected = outputs(model, *clip)
    assert torch.allclose(whole, expected, atol=2e-5)
    assert torch.allclose(cached, expected, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("make", [next_frame, next_token])
def test_many_frames_on_the_cache_equal_the_whole_clip(make: Make) -> None:
    model, clip = make(sink=1, time_decay=0.1), steps(150)
    cache = model.new_cache(1)
    size = cache.num_bytes
    assert torch.allclose(play(model, clip, cache), outputs(model, *clip), atol=2e-5)
    assert cache.num_bytes == size == FrameCache.predicted_bytes(model.cache_config())


# What depends on what


def changed_at(
    model: Model, clip: tuple[Tensor, Tensor], frame: int, *, cell: int | None = None
) -> list[int]:
    """Return at which frames the output is another if one is."""
    visual_ids, action_ids = clip[0].clone(), clip[1].clone()
    cells = slice(None) if cell is None else cell
    visual_ids[:, frame, cells] = (visual_ids[:, frame, cells] + 7) % CODES
    before, after = outputs(model, *clip), outputs(model, visual_ids, action_ids)
    differ = (before != after).flatten(2).any(dim=-1)[0]
    return differ.nonzero().flatten().tolist()


@torch.no_grad()
@pytest.mark.parametrize("make", [next_frame, next_token])
@pytest.mark.parametrize("far_frames", [0, FAR])
def test_one_layer_sees_as_far_as_its_window_and_its_far_frames(
    make: Make, far_frames: int
) -> None:
    model = make(windows=(LONGEST,), far_frames=far_frames)
    seen = changed_at(model, steps(30), 8)
    assert seen == [*range(8, 8 + LONGEST + far_frames)]
    assert len(seen) == model.cache_config().receptive_field + 1


@torch.no_grad()
@pytest.mark.parametrize("cell", range(CELLS))
def test_every_cell_of_a_far_frame_is_seen(cell: int) -> None:
    model = next_frame(windows=(LONGEST,))
    seen = changed_at(model, steps(20), 4, cell=cell)
    assert seen == [*range(4, 4 + LONGEST + FAR)]


@torch.no_grad()
@pytest.mark.parametrize("make", [next_frame, next_token])
def test_a_prediction_depends_on_no_more_than_the_receptive_field(make: Make) -> None:
    model = make()
    reach = model.cache_config().receptive_field
    assert reach == {next_frame: 1 + 2 + FAR, next_token: 2 * (2 + FAR)}[make]
    seen = changed_at(model, steps(reach + 8), 3)
    assert seen[0] == 3
    assert seen[-1] == 3 + reach


@torch.no_grad()
@pytest.mark.parametrize("make", [next_frame, next_token])
def test_frames_of_the_sink_are_never_far(make: Make) -> None:
    model = make(windows=(LONGEST,), sink=1)
    changed = [*range(30)]
    assert changed_at(model, steps(30), 0) == changed
    model.far_pools["0"].weight.zero_()  # type: ignore[operator]
    # Far frames have become one and the same; the first frame is seen as before.
    assert changed_at(model, steps(30), 0) == changed
    assert changed_at(model, steps(30), 5) == [5, 6, 7]


@torch.no_grad()
@pytest.mark.parametrize("make", [next_frame, next_token])
def test_decay_makes_old_frames_matter_less(make: Make) -> None:
    clip, frame = steps(12), 2

    def effect(decay: float) -> list[float]:
        model = make(windows=(12,), far_frames=0, time_decay=decay)
        visual_ids = clip[0].clone()
        visual_ids[:, frame] = (visual_ids[:, frame] + 7) % CODES
        gap = outputs(model, visual_ids, clip[1]) - outputs(model, *clip)
        return [float(each) for each in gap.flatten(2).norm(dim=-1)[0, frame:]]

    plain, decayed = effect(0.0), effect(1.0)
    assert decayed[0] > 0.1 * plain[0]
    assert decayed[9] < 0.01 * plain[9]


# Caches


@torch.no_grad()
@pytest.mark.parametrize("make", [next_frame, next_token])
def test_rewinding_and_forks_go_on_as_if_nothing_had_been(make: Make) -> None:
    model, clip = make(sink=1, time_decay=0.1), steps(40)
    expected = play(model, clip)
    cache = model.new_cache(1, spare=4)
    play(model, (clip[0][:, :30], clip[1][:, :30]), cache)
    fork = cache.fork()
    other = steps(4, seed=9)
    play(model, other, cache)
    cache.rewind_to(30)
    for each in (cache, fork):
        assert torch.equal(play(model, (clip[0][:, 30:], clip[1][:, 30:]), each), expected[:, 30:])


@torch.no_grad()
@pytest.mark.parametrize("make", [next_frame, next_token])
@pytest.mark.parametrize("sink", [0, 2])
def test_a_long_sequence_is_remembered_again_from_its_end(make: Make, sink: int) -> None:
    model, clip = make(sink=sink), steps(60)
    expected = play(model, clip)
    reach = model.cache_config().receptive_field
    cache = model.new_cache(1, spare=4)
    play(model, (clip[0][:, :sink], clip[1][:, :sink]), cache) if sink else None
    first = 50 - reach
    cache.skip_to(first)
    rest = play(model, (clip[0][:, first:], clip[1][:, first:]), cache)
    assert torch.equal(rest[:, reach:], expected[:, 50:])
    assert cache.can_rewind_to(58)
    with pytest.raises(SessionLimitError):
        cache.rewind_to(first + reach - 1)


LENGTHS = (LONGEST + FAR + 1, 20, 14)


@torch.no_grad()
@pytest.mark.parametrize("make", [next_frame, next_token])
def test_rows_at_different_times_are_told_what_they_are_told_alone(make: Make) -> None:
    model = make(sink=1, time_decay=0.1)
    caches, alone = [], []
    for row, length in enumerate(LENGTHS):
        caches.append(model.new_cache(1))
        play(model, steps(length, seed=row), caches[-1])
        alone.append(caches[-1].fork())
    for frame in range(8):
        clip = steps(1, batch=len(LENGTHS), seed=100 + frame)
        together = observed(model, CacheRows(caches), clip[0][:, 0], clip[1][:, 0])
        for row, own in enumerate(alone):
            single = observed(model, own, clip[0][row : row + 1, 0], clip[1][row : row + 1, 0])
            assert torch.allclose(together[row], single[0], atol=1e-5)
            for layer in range(len(model.windows)):
                assert torch.equal(own.ages_before(layer), caches[row].ages_before(layer))


@torch.no_grad()
@pytest.mark.parametrize("order", ["raster", "diagonal", "whole_frame"])
def test_next_token_decoding_reads_far_frames_and_falls_with_time(order: str) -> None:
    # A cell is predicted from what the whole clip, which knows no cache, says of it.
    model, clip = next_token(time_decay=0.2, mask=order, sink=1), steps(20)
    assert isinstance(model, NextTokenTransformer)
    expected = model(*clip)[0][:, -1, :, :CODES]
    cache = model.new_cache(1)
    for frame in range(19):
        draft = model.observe(cache, clip[0][:, frame], clip[1][:, frame])
    for group in model.config.order.groups:
        cells = torch.tensor(group)
        assert torch.allclose(model.predict(draft, cells), expected[:, cells], atol=2e-5)
        model.reveal(draft, cells, clip[0][:, -1, cells])


@torch.no_grad()
@pytest.mark.parametrize(("storage", "share"), [("bfloat16", 0.51), ("int8", 0.4)])
def test_fewer_bits_hold_for_far_frames_too(storage: str, share: float) -> None:
    model, clip = next_frame(cache_storage=storage), steps(30)
    exact = next_frame()
    assert model.new_cache(1).num_bytes < share * exact.new_cache(1).num_bytes
    gap = (play(model, clip) - play(exact, clip)).abs().max()
    assert 0 < gap < 0.5


# Training, configuration


@pytest.mark.parametrize("make", [next_frame, next_token])
def test_pools_learn_from_what_lies_far_behind(make: Make) -> None:
    model, clip = make(windows=(LONGEST,)), steps(LONGEST + 2)
    outputs(model, *clip)[:, -1].square().sum().backward()
    gradient = model.far_pools["0"].weight.grad
    assert isinstance(gradient, Tensor)
    assert (gradient != 0).any(dim=1).all()
    model.zero_grad()
    outputs(model, *clip)[:, LONGEST - 1].square().sum().backward()
    gradient = model.far_pools["0"].weight.grad
    assert gradient is None or not gradient.any()  # type: ignore[operator]


@pytest.mark.parametrize("make", [next_frame, next_token])
def test_without_far_frames_a_model_has_the_weights_it_had(make: Make) -> None:
    plain = make(far_frames=0)
    assert not [name for name in plain.state_dict() if "far" in name]
    pooled = make()
    assert set(pooled.state_dict()) - set(plain.state_dict()) == {
        f"far_pools.{layer}.weight" for layer in pooled.cache_config().far_layers
    }
    # Before anything is far, both say the same.
    pooled.load_state_dict(plain.state_dict(), strict=False)
    clip = steps(LONGEST + 1)
    with torch.no_grad():
        before, after = outputs(plain, *clip), outputs(pooled, *clip)
    assert torch.equal(before[:, :LONGEST], after[:, :LONGEST])
    assert not torch.equal(before[:, LONGEST], after[:, LONGEST])


def test_far_frames_are_seen_by_the_layers_with_the_longest_window() -> None:
    config = next_frame(windows=(2, 3, 1, 3)).cache_config()
    assert config.far_layers == (1, 3)
    assert config.far_tokens == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"far_frames": -1}, "far_frames must be 0 or more, got -1"),
        ({"far_frames": 2, "far_patch": (2, 3)}, r"divide the 2 x 4 cells of a frame, got 2 x 3"),
        ({"far_patch": (0, 1)}, "got 0 x 1"),
        ({"time_decay": -0.1}, "time_decay must be a number from 0 on, got -0.1"),
        ({"time_decay": float("nan")}, "got nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    config: InterleavedConfig = tiny_model_config(rows=ROWS, columns=COLUMNS)
    with pytest.raises(ConfigError, match=message):
        replace(config, **change)
