"""Line, bar and scatter charts as SVG text that follows the colours of its page."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["bar_chart", "line_chart", "scatter_chart"]

_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 26, 34
_TICKS = 5


def line_chart(
    lines: Mapping[str, Sequence[float]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    step: float = 1,
) -> str:
    """Return an SVG with one line per entry over the steps 1, 2, 3, ..., or multiples of `step`.

    Lines are coloured by the classes line-0, line-1, ... of the page's style sheet.

    Args:
        lines: Label -> value of each step, finite.
        title: Said to people who cannot see the picture.
        x_label: Under the horizontal axis.
        y_label: At the top of the vertical axis.
        step: What one step is on the horizontal axis.
    """
    values = [value for line in lines.values() for value in line]
    low, high, tick = _nice_range(min(values), max(values))
    count = max(len(line) for line in lines.values())

    def x(index: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * index / max(count - 1, 1)

    parts = [*_frame(title, low, high, tick)]
    for number in _x_ticks(count):
        parts.append(
            f'<text x="{x(number - 1):.1f}" y="{_HEIGHT - _BOTTOM + 16}" '
            f'text-anchor="middle">{number * step:g}</text>'
        )
    parts.append(_labels(x_label, y_label))
    for number, line in enumerate(lines.values()):
        points = " ".join(
            f"{x(index):.1f},{_y(value, low, high):.1f}" for index, value in enumerate(line)
        )
        parts.append(f'<polyline class="line line-{number}" points="{points}"/>')
    parts.append("</svg>")
    legend = "".join(
        f'<span class="key"><i class="line-{number}"></i>{html.escape(label)}</span>'
        for number, label in enumerate(lines)
    )
    return f"<figure>{''.join(parts)}<figcaption>{legend}</figcaption></figure>"


def bar_chart(values: Sequence[float], *, title: str, x_label: str, y_label: str) -> str:
    """Return an SVG with one bar per value, from left to right, upwards from 0.

    Args:
        values: Not negative, finite, at least one.
        title: Said to people who cannot see the picture.
        x_label: Under the horizontal axis.
        y_label: At the top of the vertical axis.
    """
    low, high, step = _nice_range(0.0, max(max(values), 1e-9))
    width = (_WIDTH - _LEFT - _RIGHT) / len(values)
    bars = "".join(
        f'<rect class="bar" x="{_LEFT + index * width:.2f}" y="{_y(value, low, high):.2f}" '
        f'width="{0.9 * width:.2f}" height="{_y(low, low, high) - _y(value, low, high):.2f}"/>'
        for index, value in enumerate(values)
    )
    frame = "".join(_frame(title, low, high, step))
    return f"<figure>{frame}{bars}{_labels(x_label, y_label)}</svg></figure>"


def scatter_chart(
    points: Mapping[str, tuple[float, float]],
    *,
    front: Sequence[str] = (),
    title: str,
    x_label: str,
    y_label: str,
) -> str:
    """Return an SVG with one named point per entry, over a logarithmic horizontal axis.

    Args:
        points: Label -> horizontal value, above 0, and vertical value; at least one, finite.
        front: Labels that stand out, joined by a line in their order.
        title: Said to people who cannot see the picture.
        x_label: Under the horizontal axis.
        y_label: At the top of the vertical axis.
    """
    heights = [value for _, value in points.values()]
    # Around equal values there is no scale of their own.
    margin = 0.05 if max(heights) - min(heights) < 1e-6 else 0.0
    low, high, step = _nice_range(min(heights) - margin, max(heights) + margin)
    logs = [math.log10(value) for value, _ in points.values()]
    # Room at the right for the name of the last point.
    first, last = min(logs) - 0.05, max(logs) + max(0.25, 0.25 * (max(logs) - min(logs)))

    def x(value: float) -> float:
        share = (math.log10(value) - first) / (last - first)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share

    parts = [*_frame(title, low, high, step)]
    for tick in _log_ticks(10**first, 10**last):
        parts.append(
            f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" '
            f'text-anchor="middle">{tick:g}</text>'
        )
    parts.append(_labels(x_label, y_label))
    places = {
        name: (x(horizontal), _y(vertical, low, high))
        for name, (horizontal, vertical) in points.items()
    }
    if len(front) > 1:
        line = " ".join("{:.1f},{:.1f}".format(*places[name]) for name in front)
        parts.append(f'<polyline class="line line-0" points="{line}"/>')
    taken: list[tuple[float, float, float]] = []
    for name, (across, down) in sorted(places.items(), key=lambda entry: entry[1]):
        kind = "point front" if name in front else "point"
        parts.append(f'<circle class="{kind}" cx="{across:.1f}" cy="{down:.1f}" r="4"/>')
        text_y = _free_place(across, down + 4, 7 * len(name) + 10, taken)
        parts.append(f'<text x="{across + 8:.1f}" y="{text_y:.1f}">{html.escape(name)}</text>')
    return f"<figure>{''.join(parts)}</svg></figure>"


def _free_place(
    across: float, wanted: float, width: float, taken: list[tuple[float, float, float]]
) -> float:
    """Return the height nearest to the one wanted at which a text meets no other; take it."""
    for distance in range(0, _HEIGHT, 3):
        for place in (wanted - distance, wanted + distance):
            free = all(
                abs(place - y) >= 12 or across + width < left or right < across
                for left, right, y in taken
            )
            if free and _TOP <= place <= _HEIGHT - _BOTTOM:
                taken.append((across, across + width, place))
                return place
    return wanted


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _y(value: float, low: float, high: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)


def _frame(title: str, low: float, high: float, step: float) -> Iterator[str]:
    """Begin the picture, with a line at each round number."""
    yield (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">'
    )
    tick = low
    while tick <= high + step / 2:
        y = _y(tick, low, high)
        yield (
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
        tick = round(tick + step, 10)


def _labels(x_label: str, y_label: str) -> str:
    return (
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 3}" '
        f'text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text x="4" y="12">{html.escape(y_label)}</text>'
    )


def _nice_range(low: float, high: float) -> tuple[float, float, float]:
    """Return bounds on round numbers around the values, and the distance of the ticks."""
    if high - low < 1e-9 * max(abs(high), 1.0):
        # All values are equal: a line in the middle.
        margin = 0.1 * max(abs(high), 1.0)
        low, high = low - margin, high + margin
    spread = high - low
    raw = spread / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step


def _x_ticks(count: int) -> list[int]:
    every = next(e for e in (1, 2, 4, 8, 16, 32, count) if count / e <= 9)
    return sorted({1, *range(every, count + 1, every)})
