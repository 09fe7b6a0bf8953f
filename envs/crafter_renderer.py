"""Draw Crafter tile by tile: each tile is looked up, not painted, and digits can be read."""

from functools import lru_cache

import numpy as np
from crafter import constants, engine
from numpy.typing import NDArray
from PIL import Image

__all__ = ["TILE", "draw_inventory", "draw_map"]

TILE = 8
_Pixels = NDArray[np.uint8]

# Stock shrinks its digits to 4x4 pixels, where 6, 8 and 9 look alike; these are 3x5.
_DIGITS = (
    "111101101101111",
    "010110010010111",
    "111001111100111",
    "111001111001111",
    "101101111001001",
    "111100111001111",
    "111100111101111",
    "111001001001001",
    "111101111101111",
    "111101111001111",
)


def draw_map(materials: NDArray[np.integer], objects: list[tuple[int, int, str]]) -> _Pixels:
    """Return the map part of a frame, uint8 [rows * 8, columns * 8, 3], equal to the stock one.

    Args:
        materials: Simulator's material numbers [rows, columns]; 0 is outside the world.
        objects: Row, column and texture name of each object in view.
    """
    rows, columns = materials.shape
    tiles = _ground_tiles()[materials]
    for row, column, texture in objects:
        tiles[row, column] = _object_tile(int(materials[row, column]), texture)
    return np.asarray(tiles.swapaxes(1, 2).reshape(rows * TILE, columns * TILE, 3))


def draw_inventory(amounts: tuple[int, ...], columns: int) -> _Pixels:
    """Return the inventory part of a frame, uint8 [rows * 8, columns * 8, 3].

    Args:
        amounts: How many of each item, in the simulator's order; an item at 0 leaves its tile
            black.
        columns: Tiles per row; divides the number of items.
    """
    tiles = np.stack([_item_tile(item, amount) for item, amount in enumerate(amounts)])
    rows = len(amounts) // columns
    grid = tiles.reshape(rows, columns, TILE, TILE, 3)
    return np.asarray(grid.swapaxes(1, 2).reshape(rows * TILE, columns * TILE, 3))


@lru_cache(maxsize=1)
def _textures() -> engine.Textures:
    return engine.Textures(constants.root / "assets")


def _texture(name: str, size: int) -> _Pixels:
    """Return a stock texture, uint8 [size, size, 3 or 4], rows first."""
    return np.asarray(_textures().get(name, (size, size))).swapaxes(0, 1)


@lru_cache(maxsize=1)
def _ground_tiles() -> _Pixels:
    outside = np.full((TILE, TILE, 3), 127, np.uint8)
    return np.stack([outside, *(_texture(name, TILE)[..., :3] for name in constants.materials)])


@lru_cache(maxsize=1024)
def _object_tile(material: int, texture: str) -> _Pixels:
    return _blend(_ground_tiles()[material], _texture(texture, TILE))


@lru_cache(maxsize=1024)
def _item_tile(item: int, amount: int) -> _Pixels:
    tile = np.zeros((TILE, TILE, 3), np.uint8)
    if amount < 1:
        return tile
    name = list(constants.items)[item]
    # Averaged, not picked: a pickaxe is thinner than the distance between picked pixels.
    icon = Image.fromarray(_texture(name, 16)).convert("RGBA").resize((7, 7), Image.Resampling.BOX)
    tile[:7, :7] = _blend(tile[:7, :7], np.asarray(icon))
    digit = np.array(list(_DIGITS[min(amount, 9)]), np.uint8).reshape(5, 3) * 255
    # A black edge keeps the digit apart from a bright icon.
    tile[2:8, 4:8] = 0
    tile[3:8, 5:8] = digit[..., None]
    return tile


def _blend(below: _Pixels, above: _Pixels) -> _Pixels:
    """Return `above` over `below` with the rounding of the stock renderer."""
    if above.shape[-1] == 3:
        return above
    opacity = above[..., 3:].astype(np.float32) / 255
    colour = above[..., :3].astype(np.float32) / 255
    blended = opacity * colour + (1 - opacity) * (below.astype(np.float32) / 255)
    return (255 * blended).astype(np.uint8)
