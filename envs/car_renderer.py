"""Draw CarRacing in 64x64 pixels: the map once per episode, then one resampled crop per frame."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from gymnasium.envs.box2d import car_dynamics
from gymnasium.envs.box2d.car_racing import (
    GRASS_DIM,
    PLAYFIELD,
    SCALE,
    WINDOW_H,
    WINDOW_W,
    ZOOM,
)
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["DASHBOARD_ROWS", "FRAME_SIZE", "TrackMap", "draw_dashboard", "draw_view"]

FRAME_SIZE = 64
DASHBOARD_ROWS = 8
SPEED_FULL_SCALE = 90.0
STEERING_FULL_SCALE = 0.42
YAW_RATE_FULL_SCALE = 5.0

_Polygon = tuple[Sequence[tuple[float, float]], Sequence[float]]
_Frame = NDArray[np.uint8]

_VIEW_ROWS = FRAME_SIZE - DASHBOARD_ROWS
# The stock camera squeezes a 1000x800 window into a square, so a unit is wider than it is high.
_PIXELS_PER_UNIT_X = ZOOM * SCALE * FRAME_SIZE / WINDOW_W
_PIXELS_PER_UNIT_Y = ZOOM * SCALE * FRAME_SIZE / WINDOW_H
_CAR_COLUMN = FRAME_SIZE / 2
_CAR_ROW = FRAME_SIZE * 3 / 4

_MAP_PIXELS_PER_UNIT = 2
_MAP_OVERSAMPLING = 2
_MAP_HALF_WIDTH = math.ceil(PLAYFIELD) + 2
_VIEW_OVERSAMPLING = 2

_SPRITE_SIZE = 12
_SPRITE_OVERSAMPLING = 8
_SPRITE_LEFT = int(_CAR_COLUMN) - _SPRITE_SIZE // 2
_SPRITE_TOP = int(_CAR_ROW) - _SPRITE_SIZE // 2
_SPRITE_STEPS_PER_RADIAN = 200
_HULL_COLOR = (204, 0, 0)


class TrackMap:
    """The whole playfield of one episode as a picture, seen from above, y growing with the row.

    Road tiles keep one grey: stock repaints a tile when it is first touched, which would put
    the history of the episode into the picture.
    """

    def __init__(
        self,
        road_polygons: Sequence[_Polygon],
        road_color: Sequence[float],
        field_color: Sequence[float],
        grass_color: Sequence[float],
    ) -> None:
        """Draw field, grass squares, road and kerbs.

        Args:
            road_polygons: Vertices in simulation units with their colour, kerbs among them.
            road_color: RGB in [0, 255] of the asphalt.
            field_color: RGB of the ground.
            grass_color: RGB of the squares on it.
        """
        scale = _MAP_PIXELS_PER_UNIT * _MAP_OVERSAMPLING
        size = 2 * _MAP_HALF_WIDTH * scale
        picture = Image.new("RGB", (size, size))
        draw = ImageDraw.Draw(picture)

        def corners(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
            # ImageDraw fills up to and including the pixel of each vertex: half a pixel less.
            return [
                ((x + _MAP_HALF_WIDTH) * scale - 0.5, (y + _MAP_HALF_WIDTH) * scale - 0.5)
                for x, y in points
            ]

        def square(left: float, bottom: float, side: float) -> list[tuple[float, float]]:
            return corners([(left, bottom), (left + side, bottom + side)])

        field = _rgb(field_color)
        grass = _rgb(grass_color)
        draw.rectangle(square(-PLAYFIELD, -PLAYFIELD, 2 * PLAYFIELD), fill=field)
        for column in range(-20, 20, 2):
            for row in range(-20, 20, 2):
                draw.rectangle(square(GRASS_DIM * column, GRASS_DIM * row, GRASS_DIM), fill=grass)
        asphalt = _rgb(road_color)
        for vertices, color in road_polygons:
            kerb = tuple(color) in {(255, 255, 255), (255, 0, 0)}
            draw.polygon(corners(vertices), fill=_rgb(color) if kerb else asphalt)
        self._picture = picture.reduce(_MAP_OVERSAMPLING)

    def crop(self, x: float, y: float, yaw: float) -> _Frame:
        """Return what the camera above the car sees, car and dashboard not drawn.

        Args:
            x: Car position in simulation units.
            y: Car position in simulation units.
            yaw: Car heading in radians, counterclockwise, 0 looks along +y.

        Returns:
            uint8 [56, 64, 3].
        """
        right = _MAP_PIXELS_PER_UNIT / (_PIXELS_PER_UNIT_X * _VIEW_OVERSAMPLING)
        down = -_MAP_PIXELS_PER_UNIT / (_PIXELS_PER_UNIT_Y * _VIEW_OVERSAMPLING)
        cosine, sine = math.cos(yaw), math.sin(yaw)
        x_per_column, y_per_column = cosine * right, sine * right
        x_per_row, y_per_row = -sine * down, cosine * down
        column, row = _CAR_COLUMN * _VIEW_OVERSAMPLING, _CAR_ROW * _VIEW_OVERSAMPLING
        map_x = (x + _MAP_HALF_WIDTH) * _MAP_PIXELS_PER_UNIT
        map_y = (y + _MAP_HALF_WIDTH) * _MAP_PIXELS_PER_UNIT
        view = self._picture.transform(
            (FRAME_SIZE * _VIEW_OVERSAMPLING, _VIEW_ROWS * _VIEW_OVERSAMPLING),
            Image.Transform.AFFINE,
            (
                x_per_column,
                x_per_row,
                map_x - column * x_per_column - row * x_per_row,
                y_per_column,
                y_per_row,
                map_y - column * y_per_column - row * y_per_row,
            ),
            Image.Resampling.BILINEAR,
        )
        return np.asarray(view.reduce(_VIEW_OVERSAMPLING))


def draw_view(
    track: TrackMap, x: float, y: float, yaw: float, wheel_angles: tuple[float, float]
) -> _Frame:
    """Return a frame with the car in its place and an empty dashboard, uint8 [64, 64, 3].

    Args:
        track: Map of the episode.
        x: Car position in simulation units.
        y: Car position in simulation units.
        yaw: Car heading in radians.
        wheel_angles: Left and right front wheel against the hull, radians, positive to the left.
    """
    frame = np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    frame[:_VIEW_ROWS] = track.crop(x, y, yaw)
    left, right = (round(angle * _SPRITE_STEPS_PER_RADIAN) for angle in wheel_angles)
    color, transparency = _car_sprite(left, right)
    rows = slice(_SPRITE_TOP, _SPRITE_TOP + _SPRITE_SIZE)
    columns = slice(_SPRITE_LEFT, _SPRITE_LEFT + _SPRITE_SIZE)
    frame[rows, columns] = (color + transparency * frame[rows, columns] + 0.5).astype(np.uint8)
    return frame


def draw_dashboard(frame: _Frame, speed: float, steering: float, yaw_rate: float) -> None:
    """Fill the last 8 rows of `frame` in place with three bars.

    White over the whole width: speed. Below, green from the middle of the left half: front
    wheel angle; red from the middle of the right half: yaw rate; both to the left when the car
    turns left. The last pixel of a bar is dimmed by the part of it that is covered, so that a
    tenth of a pixel can still be read.

    Args:
        frame: uint8 [64, 64, 3].
        speed: Units per second, at least 0; 90 fills the bar.
        steering: Radians, positive to the left; 0.42 fills one side.
        yaw_rate: Radians per second, positive to the left; 5 fills one side.
    """
    frame[_VIEW_ROWS:] = 0
    half = FRAME_SIZE // 2
    _fill(frame[_VIEW_ROWS + 1 : _VIEW_ROWS + 4], 0.0, speed / SPEED_FULL_SCALE * FRAME_SIZE, 255)
    lower = frame[_VIEW_ROWS + 5 :]
    for start, channel, value in (
        (0, 1, steering / STEERING_FULL_SCALE),
        (half, 0, yaw_rate / YAW_RATE_FULL_SCALE),
    ):
        middle = half / 2
        end = middle - max(-1.0, min(1.0, value)) * middle
        color = np.zeros(3)
        color[channel] = 255
        _fill(lower[:, start : start + half], min(middle, end), max(middle, end), color)


def _fill(bar: _Frame, start: float, end: float, color: float | NDArray[np.float64]) -> None:
    columns = np.arange(bar.shape[1])
    covered = np.clip(np.minimum(columns + 1, end) - np.maximum(columns, start), 0.0, 1.0)
    bar[:] = (covered[:, None] * color + 0.5).astype(np.uint8)


@lru_cache(maxsize=4096)
def _car_sprite(left_step: int, right_step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return premultiplied colour [12, 12, 3] and transparency [12, 12, 1] of the car.

    The camera turns with the hull, so the car looks the same in every frame but for its front
    wheels, whose angles are rounded to 1/200 rad to make few pictures.
    """
    size = _SPRITE_SIZE * _SPRITE_OVERSAMPLING
    sprite = Image.new("RGBA", (size, size))
    draw = ImageDraw.Draw(sprite)

    def polygon(points: Sequence[tuple[float, float]], color: tuple[int, int, int]) -> None:
        pixels = [
            (
                (_CAR_COLUMN - _SPRITE_LEFT + x * car_dynamics.SIZE * _PIXELS_PER_UNIT_X)
                * _SPRITE_OVERSAMPLING
                - 0.5,
                (_CAR_ROW - _SPRITE_TOP - y * car_dynamics.SIZE * _PIXELS_PER_UNIT_Y)
                * _SPRITE_OVERSAMPLING
                - 0.5,
            )
            for x, y in points
        ]
        draw.polygon(pixels, fill=(*color, 255))

    wheel_angles = (left_step, right_step, 0, 0)
    half_width, radius = car_dynamics.WHEEL_W, car_dynamics.WHEEL_R
    for (wheel_x, wheel_y), step in zip(car_dynamics.WHEELPOS, wheel_angles, strict=True):
        cosine = math.cos(step / _SPRITE_STEPS_PER_RADIAN)
        sine = math.sin(step / _SPRITE_STEPS_PER_RADIAN)
        polygon(
            [
                (wheel_x + x * cosine - y * sine, wheel_y + x * sine + y * cosine)
                for x, y in (
                    (-half_width, radius),
                    (half_width, radius),
                    (half_width, -radius),
                    (-half_width, -radius),
                )
            ],
            car_dynamics.WHEEL_COLOR,
        )
    for hull in (
        car_dynamics.HULL_POLY1,
        car_dynamics.HULL_POLY2,
        car_dynamics.HULL_POLY3,
        car_dynamics.HULL_POLY4,
    ):
        polygon(hull, _HULL_COLOR)
    pixels = np.asarray(sprite.convert("RGBa").reduce(_SPRITE_OVERSAMPLING), np.float32)
    return pixels[..., :3].copy(), 1.0 - pixels[..., 3:] / 255.0


def _rgb(color: Sequence[float]) -> tuple[int, int, int]:
    red, green, blue = (int(level) for level in color)
    return red, green, blue
