"""Line charts as numbers for a template: ticks and lines in the coordinates of a picture, in pixels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 560, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 78, 10, 42  # margins; the right one is for the names of lines
MOST_POINTS = 400  # of a line; more would not be seen
LABEL_HEIGHT = 14
STEPS = (1, 2, 5, 10)  # between ticks, times a power of ten


class Line(NamedTuple):
    """Numbers to be drawn as a line; a y that is no number leaves a gap in what is joined."""

    name: str  # what stands at its end; may be empty
    tone: int  # number of its colour
    dashed: bool
    x: Sequence[float]
    y: Sequence[float | None]


class Tick(NamedTuple):
    at: float
    label: str


class Path(NamedTuple):
    """A line as it is drawn."""

    line: Line
    points: list[tuple[float, float]]
    label_y: float  # of its name


class Chart(NamedTuple):
    """What a template draws."""

    title: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    paths: list[Path]


def line_chart(title: str, x_label: str, lines: Sequence[Line]) -> Chart | None:
    """The lines in one picture; None if there is nothing to draw."""
    known = [(line, _thinned(line)) for line in lines]
    known = [(line, points) for line, points in known if points]
    if not known:
        return None
    xs, ys = zip(*(point for _, points in known for point in points), strict=True)
    x_axis, y_axis = axis(min(xs), max(xs), 8, whole=True), axis(min(ys), max(ys))

    def place_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - min(xs)) / ((max(xs) - min(xs)) or 1)

    def place_y(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (y_axis[-1] - y) / (y_axis[-1] - y_axis[0])

    placed = [(line, [(place_x(x), place_y(y)) for x, y in points]) for line, points in known]
    ends = spread([points[-1][1] for line, points in placed if line.name])
    return Chart(
        title,
        x_label,
        [Tick(place_x(x), f"{x:,g}") for x in x_axis if min(xs) <= x <= max(xs)],
        [Tick(place_y(y), f"{y:g}") for y in y_axis],
        [Path(line, points, ends.pop(0) if line.name else 0.0) for line, points in placed],
    )


def axis(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """Round numbers, some `count` at equal distances, the first at most `low`, the last at least `high`.

    whole: integers only.
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in STEPS if factor * power * count >= span * 0.999)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def spread(heights: Sequence[float]) -> list[float]:
    """The same heights in the same order, moved so that labels at them do not overlap."""
    order = sorted(range(len(heights)), key=lambda number: heights[number])
    places = [0.0] * len(heights)
    lowest = -math.inf
    for number in order:
        places[number] = lowest = max(heights[number], lowest + LABEL_HEIGHT)
    over = max(0.0, lowest - (HEIGHT - BOTTOM)) if heights else 0.0
    return [place - over for place in places]


def _thinned(line: Line) -> list[tuple[float, float]]:
    """Its points, the last one and at most `MOST_POINTS` others."""
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
    stride = -(-len(points) // MOST_POINTS)
    return points[:-1:stride] + points[-1:] if points else []
