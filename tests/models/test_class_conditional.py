"""The class-conditional model: who sees whom, its cache, and what is drawn from it."""

from pathlib import Path

import pytest
import torch

from worldgen.checkpoint import save_tensors
from worldgen.errors import CheckpointError, ConfigError
from worldgen.generation.class_conditional import (
    ClassConditionalSamplingConfig,
    sample_tokens,
)
from worldgen.generation.random import frame_uniforms
from worldgen.generation.sampling import SamplingConfig
from worldgen.models.class_conditional import (
    ClassConditionalConfig,
    ClassConditionalTransformer,
    load_class_conditional,
    save_class_conditional,
)

LABELS = torch.tensor([2, 0])


def tiny(*, class_first: bool = True, num_positions: int = 12) -> ClassConditionalTransformer:
    config = ClassConditionalConfig(
        codebook_size=7,
        num_classes=3,
        num_positions=num_positions,
        width=16,
        num_heads=2,
        depth=2,
        class_first=class_first,
    )
    model = ClassConditionalTransformer(config)
    # As drawn for training, logits are so alike that nothing could be told apart.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def greedy(**changes: float | bool | int) -> ClassConditionalSamplingConfig:
    return ClassConditionalSamplingConfig(
        sampling=SamplingConfig(temperature=0.0),
        **changes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("class_first", "before"), [(True, [3, 0]), (False, [0, 3])])
def test_a_sequence_is_class_start_and_codes(class_first: bool, before: list[int]) -> None:
    model = tiny(class_first=class_first)
    codes = torch.tensor([[0, 6, 3]])
    tokens, positions = model.sequence(codes, LABELS[:1])
    assert tokens.tolist() == [[*before, 4, 10, 7]]
    assert positions.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(model.codes(tokens[:, 2:]), codes)
    assert model.codes(tokens[:, :2]).tolist() == [[0, 0]]


def test_without_its_class_a_sequence_keeps_the_positions_of_its_codes() -> None:
    tokens, positions = tiny().sequence(torch.tensor([[0, 6, 3]]), None)
    assert tokens.tolist() == [[0, 4, 10, 7]]
    assert positions.tolist() == [0, 2, 3, 4]


@torch.no_grad()
def test_a_token_sees_what_came_before_and_nothing_after() -> None:
    model = tiny()
    tokens, positions = model.sequence(torch.randint(7, (2, 8)), LABELS)
    logits = model(tokens, positions)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] - 3) % 7 + 4
    again = model(changed, positions)
    torch.testing.assert_close(again[:, :6], logits[:, :6])
    assert not torch.allclose(again[:, 6:], logits[:, 6:], atol=1e-3)


@torch.no_grad()
def test_the_loss_is_of_codes_alone() -> None:
    model = tiny()
    codes = torch.randint(7, (2, 5))
    for labels in (LABELS, None):
        tokens, positions = model.sequence(codes, labels)
        chances = model(tokens, positions).log_softmax(-1)
        start = tokens.shape[1] - 5
        by_hand = [
            -chances[row, start + place - 1, tokens[row, start + place]]
            for row in range(2)
            for place in range(5)
        ]
        torch.testing.assert_close(model.loss(codes, labels), torch.stack(by_hand).mean())


@torch.no_grad()
@pytest.mark.parametrize("class_first", [True, False])
@pytest.mark.parametrize("labels", [LABELS, None])
def test_the_cache_equals_recomputation(class_first: bool, labels: torch.Tensor | None) -> None:
    model = tiny(class_first=class_first)
    tokens, positions = model.sequence(torch.randint(7, (2, 9)), labels)
    cache = model.new_cache(2)
    size = cache.num_bytes
    places = positions.tolist()
    cached = [model.observe(cache, tokens[:, i], place) for i, place in enumerate(places)]
    torch.testing.assert_close(torch.stack(cached, 1), model(tokens, positions))
    assert cache.num_bytes == size


@torch.no_grad()
@pytest.mark.parametrize("growing", [True, False])
@pytest.mark.parametrize("class_first", [True, False])
def test_guided_drawing_equals_recomputing_every_sequence(class_first: bool, growing: bool) -> None:
    model = tiny(class_first=class_first)
    config = greedy(guidance=0.8, growing_guidance=growing)
    drawn = sample_tokens(model, LABELS, torch.zeros(2, 10, dtype=torch.float64), config)
    codes = torch.zeros(2, 0, dtype=torch.int64)
    for step in range(10):
        last = []
        for labels in (LABELS, None):
            tokens, positions = model.sequence(codes, labels)
            last.append(model(tokens, positions)[:, -1, model.config.first_code :])
        strength = 0.8 * (step if growing else 1)
        guided = (1 + strength) * last[0] - strength * last[1]
        codes = torch.cat((codes, guided.argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(model.codes(drawn), codes)
    plain = sample_tokens(model, LABELS, torch.zeros(2, 10, dtype=torch.float64), greedy())
    assert not torch.equal(drawn, plain)


def test_draws_are_a_function_of_the_seed_and_not_of_the_batch() -> None:
    model = tiny()
    config = ClassConditionalSamplingConfig(
        sampling=SamplingConfig(temperature=1.3, top_k=5, top_p=0.95), guidance=0.5
    )
    together = sample_tokens(model, LABELS, frame_uniforms([4, 9], [0, 0], 8), config)
    apart = sample_tokens(model, LABELS[1:], frame_uniforms([9], [0], 8), config)
    assert torch.equal(together[1:], apart)
    other = sample_tokens(model, LABELS[1:], frame_uniforms([10], [0], 8), config)
    assert not torch.equal(other, apart)


def test_only_codes_are_drawn_unless_wanted_otherwise() -> None:
    model = tiny()
    with torch.no_grad():
        model.norm.weight.fill_(0.0)
        model.norm.bias.fill_(1.0)
        model.head.weight[1].fill_(50.0)
    unused = torch.zeros(2, 3, dtype=torch.float64)
    assert (sample_tokens(model, LABELS, unused, greedy()) >= model.config.first_code).all()
    assert (sample_tokens(model, LABELS, unused, greedy(codes_only=False)) == 1).all()


def test_it_learns_which_code_belongs_to_which_class() -> None:
    model = tiny().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-2)
    labels = torch.arange(3)
    codes = (2 * labels)[:, None].expand(-1, 4)
    for _ in range(25):
        optimiser.zero_grad()
        model.loss(codes, labels).backward()
        optimiser.step()
    drawn = sample_tokens(model.eval(), labels, torch.zeros(3, 4, dtype=torch.float64), greedy())
    assert torch.equal(model.codes(drawn), codes)


def test_every_position_can_be_used_and_none_beyond() -> None:
    model = tiny(num_positions=6)
    unused = torch.zeros(2, 6, dtype=torch.float64)
    assert sample_tokens(model, LABELS, unused[:, :5], greedy(guidance=1.0)).shape == (2, 5)
    with pytest.raises(ConfigError, match="at most 5 codes, got 6"):
        sample_tokens(model, LABELS, unused, greedy())
    tokens, positions = model.sequence(torch.zeros(2, 5, dtype=torch.int64), LABELS)
    with pytest.raises(ConfigError, match="has 6 positions, got a sequence that needs 7"):
        model(tokens, positions)
    with pytest.raises(ConfigError, match=r"positions lie in \[0, 6\), got 6"):
        model.observe(model.new_cache(2), tokens[:, 0], 6)


def test_a_saved_model_says_the_same(tmp_path: Path) -> None:
    model = tiny()
    path = tmp_path / "model.safetensors"
    save_class_conditional(path, model, name="tiny")
    again = load_class_conditional(path)
    assert again.config == model.config
    codes = torch.randint(7, (2, 5))
    assert torch.equal(again.loss(codes, LABELS), model.loss(codes, LABELS))
    save_tensors(path, model.state_dict(), {"artifact": "visual_tokenizer"})
    with pytest.raises(CheckpointError, match="holds a 'visual_tokenizer'"):
        load_class_conditional(path)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"labels lie in \[0, 3\), got \[0, 3\]"):
        tiny().prefix(2, torch.tensor([0, 3]))
    with pytest.raises(ConfigError, match="num_heads must divide width, got 3 and 16"):
        ClassConditionalConfig(
            codebook_size=7,
            num_classes=3,
            num_positions=12,
            width=16,
            num_heads=3,
            depth=1,
            class_first=True,
        )
    with pytest.raises(ConfigError, match="num_positions at least 3"):
        tiny(num_positions=2)
    with pytest.raises(ConfigError, match="guidance must not be negative"):
        ClassConditionalSamplingConfig(guidance=-1.0)
