"""Learned worlds that you can play: world models made of tokens."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldgen.pipeline import World as World
    from worldgen.pipeline import load as load
    from worldgen.pipeline import shipped_worlds as shipped_worlds

__version__ = "0.1.0"

__all__ = ["World", "__version__", "load", "shipped_worlds"]


def __getattr__(name: str) -> object:
    # Torch is heavy: names that need it are fetched when somebody asks for them.
    if name in {"World", "load", "shipped_worlds"}:
        from worldgen import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'worldgen' has no attribute {name!r}")
