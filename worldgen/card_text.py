"""A world described in words and numbers, for people and as JSON."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from worldgen.config import to_mapping
from worldgen.generation.told import Told
from worldgen.pipeline import World, WorldCard
from worldgen.tokenizers.action import Categorical

__all__ = ["card_as_markdown", "describe_world", "format_description"]


def describe_world(world: World) -> dict[str, Any]:
    """Return what a world is, how large, how it is played and how good, as JSON can hold it."""
    card, layout = world.card, world.model.layout
    schema = world.action_tokenizer.schema
    together = layout.frames_per_step
    tokens = layout.num_cells / together
    keys: dict[str, list[str]] = {name: [] for name in schema.named}
    for code, name in schema.keys.items():
        keys[name].append(code)
    return {
        "name": card.name,
        "title": card.title,
        "description": card.description,
        "folder": str(world.folder),
        "hash": world.hash,
        "size_megabytes": _megabytes(world),
        "parameters": {
            "visual_tokenizer": _parameters(world.tokenizer),
            "world_model": _parameters(world.model),
        },
        "frame": {
            "height": world.tokenizer.frame_height,
            "width": world.tokenizer.frame_width,
            "frames_per_second": card.frames_per_second,
        },
        "tokens": {
            **({"frames_drawn_together": together} if together > 1 else {}),
            "visual_tokens_per_frame": tokens if tokens % 1 else int(tokens),
            "grid": f"{layout.rows} x {layout.columns}",
            "codebook_size": world.tokenizer.codebook_size,
            "action_tokens_per_frame": layout.action_tokens_per_frame,
            "action_vocabulary_size": world.action_tokenizer.vocabulary_size,
            **_text_facts(world),
        },
        "play": {
            "decoders": list(card.decoders),
            "sampling": to_mapping(card.sampling),
            "starts": len(world.starts),
        },
        "action_groups": {
            group.name: group.options_text
            if isinstance(group, Categorical)
            else f"{group.low:g} to {group.high:g} in {group.bins} bins"
            for group in schema.groups
        },
        "actions": {name: ", ".join(codes) or "no key" for name, codes in keys.items()},
        "environment": None if card.environment is None else to_mapping(card.environment),
        "data": dict(card.data),
        "training": dict(card.training),
        "figures": dict(card.figures),
        "limits": list(card.limits),
    }


def _text_facts(world: World) -> dict[str, int]:
    told = Told.of(world.parts.model)
    if not told.text_length:
        return {}
    return {
        "text_tokens": told.text_length,
        "text_vocabulary_size": told.text_vocabulary_size,
    }


def format_description(description: Mapping[str, Any]) -> str:
    """Return the description as lines for a terminal, nested parts indented."""
    return "\n".join(_lines(description, ""))


def card_as_markdown(card: WorldCard) -> str:
    """Return the card as a page for people."""
    lines = [f"# {card.title}", "", card.description, ""]
    lines += [f"Played at {card.frames_per_second:.4g} frames per second.", ""]
    sections = {"Data": card.data, "Training": card.training, "Figures": card.figures}
    for title, entries in sections.items():
        if not entries:
            continue
        lines += [f"## {title}", "", *_bullets(entries, ""), ""]
    lines += ["## Limits", "", *(f"- {limit}" for limit in card.limits), ""]
    return "\n".join(lines)


def _bullets(entries: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in entries.items():
        label = f"{indent}- {name.replace('_', ' ')}"
        if isinstance(value, dict):
            lines += [f"{label}:", *_bullets(value, indent + "  ")]
        elif isinstance(value, list):
            lines += [f"{label}:", *(f"{indent}  - `{item}`" for item in value)]
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            lines.append(f"{label}: {shown}")
    return lines


def _lines(entries: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in entries.items():
        label = f"{indent}{key.replace('_', ' ')}"
        if isinstance(value, Mapping) and value:
            yield f"{label}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list) and any(
            isinstance(item, str) and " " in item for item in value
        ):
            yield f"{label}:"
            yield from (f"{indent}  - {item}" for item in value)
        elif value not in (None, "", [], {}):
            yield f"{label}: {_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)


def _parameters(module: nn.Module) -> int:
    return sum(math.prod(parameter.shape) for parameter in module.parameters())


def _megabytes(world: World) -> float:
    size = sum(path.stat().st_size for path in world.folder.iterdir() if path.is_file())
    return round(size / 1e6, 2)
