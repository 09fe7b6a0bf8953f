"""Tiny worlds with random weights, made in a blink."""

from pathlib import Path

import torch

from worldgen.generation import SamplingConfig, Start
from worldgen.models import (
    DrivingConfig,
    DrivingTransformer,
    NextFrameConfig,
    NextFrameTransformer,
    save_world_model,
)
from worldgen.nn.space_time import SpaceTimeConfig
from worldgen.pipeline import EnvironmentCard, WorldCard, save_starts
from worldgen.tokenizers.action import (
    ActionSchema,
    ActionTokenizer,
    Categorical,
    driving_schema,
)
from worldgen.tokenizers.quantizers import FSQConfig
from worldgen.tokenizers.visual import (
    ConvolutionalTokenizerConfig,
    OmniTokenizerConfig,
    VisualTokenizerConfig,
    build_visual_tokenizer,
    save_visual_tokenizer,
)
from worldgen.tokenizers.visual.patch import PatchConfig


def car_schema() -> ActionSchema:
    """Return a schema like that of the car: two groups of three options."""
    return ActionSchema(
        groups=(
            Categorical("steering", ("none", "left", "right")),
            Categorical("pedals", ("none", "gas", "brake")),
        ),
        named={
            "nothing": {},
            "left": {"steering": "left"},
            "right": {"steering": "right"},
            "gas": {"pedals": "gas"},
            "brake": {"pedals": "brake"},
        },
        keys={
            "ArrowLeft": "left",
            "ArrowRight": "right",
            "ArrowUp": "gas",
            "ArrowDown": "brake",
        },
    )


def tiny_model_config(**changes: int | str | tuple[int, ...]) -> NextFrameConfig:
    """Return a model for the tiny tokenizer below, a few thousand weights."""
    sizes: dict[str, int | str | tuple[int, ...]] = {
        "rows": 8,
        "columns": 8,
        "codebook_size": 64,
        "num_action_tokens": 2,
        "action_vocabulary_size": 6,
        "width": 16,
        "num_heads": 2,
        "num_key_value_heads": 1,
        "feed_forward_width": 24,
        "windows": (2, 1, 4),
        "within_frame_depth": 1,
        "token_embedding_width": 8,
    }
    return NextFrameConfig(**(sizes | changes))  # type: ignore[arg-type]


def tiny_tokenizer_config() -> ConvolutionalTokenizerConfig:
    """Return a frame tokenizer 64 x 64 to 8 x 8 with 64 codes."""
    patch = PatchConfig(patch=8, width=8, blocks=1)
    return ConvolutionalTokenizerConfig(
        frame_height=64,
        frame_width=64,
        encoder=patch,
        decoder=patch,
        quantizer=FSQConfig(levels=(4, 4, 4)),
    )


def temporal_tokenizer_config(
    *, frames_per_latent: int = 4, size: int = 64, patch: int = 8
) -> OmniTokenizerConfig:
    """Return a tokenizer of clips with 64 codes; later frames depend on earlier ones."""
    stack = SpaceTimeConfig(
        width=8,
        num_heads=1,
        head_width=8,
        feed_forward_width=8,
        spatial_blocks="t",
        temporal_depth=1,
        temporal_window=3,
    )
    return OmniTokenizerConfig(
        frame_height=size,
        frame_width=size,
        patch=patch,
        frames_per_latent=frames_per_latent,
        encoder=stack,
        decoder=stack,
        quantizer=FSQConfig(levels=(4, 4, 4)),
    )


def tiny_world(
    folder: Path,
    *,
    name: str = "tiny",
    environment: EnvironmentCard | None = None,
    seed: int = 0,
    frames_per_step: int | None = None,
    **changes: int | str | tuple[int, ...],
) -> Path:
    """Write a world with random weights and two starts; return its folder.

    With `frames_per_step` the tokenizer is one of clips; `changes` are those of `tiny_model_config`.
    What a model learns to heed only by training, such as frames that it is reminded of, has weights
    here as well.
    """
    config: VisualTokenizerConfig = tiny_tokenizer_config()
    heeds_more = bool(changes)
    if frames_per_step is not None:
        config = temporal_tokenizer_config(frames_per_latent=frames_per_step)
        changes |= {"frames_per_step": frames_per_step, "num_action_tokens": 2 * frames_per_step}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = build_visual_tokenizer(config).eval()
        model = NextFrameTransformer(tiny_model_config(**changes))
        if heeds_more:
            give_weights(model)
        num_actions = 3 * model.layout.frames_per_step
        starts = [
            Start(
                visual_ids=torch.randint(0, 64, (4, 64)),
                action_ids=model.layout.actions_of_steps(
                    torch.stack(
                        (
                            torch.randint(0, 3, (num_actions,)),
                            torch.randint(3, 6, (num_actions,)),
                        ),
                        dim=-1,
                    )
                ),
            )
            for _ in range(2)
        ]
    if environment is not None:
        rest = ActionTokenizer(car_schema())
        starts = [
            Start(
                visual_ids=start.visual_ids,
                action_ids=start.action_ids,
                environment_seed=number,
                environment_actions=rest.decode(start.action_ids.reshape(-1, 2).numpy()),
            )
            for number, start in enumerate(starts)
        ]
    card = WorldCard(
        name=name,
        title="A tiny world",
        description="Random weights, for tests.",
        frames_per_second=16.0,
        action_schema=car_schema().to_json(),
        decoders=("whole_frame", "strided:4", "diagonal", "raster"),
        sampling=SamplingConfig(),
        environment=environment,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_visual_tokenizer(folder / "tokenizer.safetensors", tokenizer)
    save_world_model(folder / "model.safetensors", model)
    save_starts(folder / "starts.safetensors", starts)
    card.write(folder)
    return folder


def give_weights(model: torch.nn.Module) -> None:
    """Fill all weights that begin as zero, so that what they are for changes something."""
    with torch.no_grad():
        for weights in model.parameters():
            if not weights.any():
                weights.normal_(std=0.5)


def tiny_driven_world(
    folder: Path, *, frames_per_second: float = 16.0, schema: ActionSchema | None = None
) -> Path:
    """Write a world of the driving family, driven by ego motion; return its folder."""
    schema = schema or driving_schema("car_racing")
    actions = ActionTokenizer(schema)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_visual_tokenizer(tiny_tokenizer_config()).eval()
        model = DrivingTransformer(
            DrivingConfig(
                rows=8,
                columns=8,
                codebook_size=64,
                num_action_tokens=actions.num_slots,
                action_vocabulary_size=actions.vocabulary_size,
                slot_options=tuple(group.size for group in schema.groups),
                width=16,
                num_heads=2,
                context_depth=1,
                within_frame_depth=1,
                window=3,
                code_width=8,
                motion_width=8,
            )
        )
        starts = [
            Start(
                visual_ids=torch.randint(0, 64, (2, 64)),
                action_ids=torch.from_numpy(actions.encode(schema.rest()))[None],
            )
        ]
    card = WorldCard(
        name="tiny_driven",
        title="A tiny drive",
        description="Random weights, for tests.",
        frames_per_second=frames_per_second,
        action_schema=schema.to_json(),
        decoders=("whole_frame", "diagonal"),
        sampling=SamplingConfig(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_visual_tokenizer(folder / "tokenizer.safetensors", tokenizer)
    save_world_model(folder / "model.safetensors", model)
    save_starts(folder / "starts.safetensors", starts)
    card.write(folder)
    return folder
