"""Lines lie where their numbers are, between round numbers, and their names do not overlap."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from report.charts import (
    BOTTOM,
    HEIGHT,
    LABEL_HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    axis,
    line_chart,
    spread,
)


def line(y: list[float | None], name: str = "") -> Line:
    return Line(name, 0, False, list(range(1, len(y) + 1)), y)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (61.3, 74.9), (0.001, 0.0042), (-3, 3), (5, 5), (0, 0), (1200, 98000)]
)
def test_an_axis_holds_its_numbers_between_a_few_round_ones(low: float, high: float) -> None:
    ticks = axis(low, high)
    assert ticks[0] <= low <= high <= ticks[-1] and 2 <= len(ticks) <= 8
    steps = {round(b - a, 9) for a, b in pairwise(ticks)}
    (step,) = steps
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)


def test_whole_numbers_have_no_ticks_between_them() -> None:
    assert axis(1, 3, whole=True) == [1, 2, 3]
    assert all(tick == int(tick) for tick in axis(1, 14, whole=True))


def test_points_are_where_their_numbers_are() -> None:
    chart = line_chart("t", "epoch", [line([0.0, 50.0, 100.0])])
    (path,) = chart.paths
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    assert path.points == [
        (LEFT, HEIGHT - BOTTOM),
        (middle, TOP + (HEIGHT - TOP - BOTTOM) / 2),
        (WIDTH - RIGHT, TOP),
    ]
    assert [tick.label for tick in chart.x_ticks] == ["1", "2", "3"]
    assert [tick.label for tick in chart.y_ticks] == ["0", "20", "40", "60", "80", "100"]


def test_what_is_no_number_is_left_out_and_nothing_is_no_chart() -> None:
    (path,) = line_chart("t", "epoch", [line([1.0, None, 3.0])]).paths
    assert len(path.points) == 2
    assert line_chart("t", "epoch", [line([None])]) is None
    assert line_chart("t", "epoch", []) is None


def test_one_point_is_a_chart() -> None:
    (path,) = line_chart("t", "epoch", [line([70.0], "validation")]).paths
    ((x, y),) = path.points
    assert x == LEFT and TOP <= y <= HEIGHT - BOTTOM


def test_a_long_line_is_thinned_and_keeps_its_ends() -> None:
    (path,) = line_chart("t", "step", [line([float(n) for n in range(9_999)])]).paths
    assert len(path.points) <= MOST_POINTS + 1
    assert path.points[0] == (LEFT, HEIGHT - BOTTOM)
    assert path.points[-1][0] == WIDTH - RIGHT


def test_names_at_the_ends_of_lines_do_not_overlap_and_stay_inside() -> None:
    bottom = HEIGHT - BOTTOM
    places = spread([bottom, 40.0, bottom - 1, 41.0])
    assert all(b - a >= LABEL_HEIGHT - 1e-9 for a, b in pairwise(sorted(places)))
    assert max(places) <= bottom
    assert sorted(range(4), key=places.__getitem__) == [1, 3, 2, 0]  # in the order of the lines
    assert spread([]) == []
