"""Boxes, one at a time, by their definitions: the oracle of what is done to many at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def random_boxes(count: int, size: float = 100.0, seed: int = 0) -> np.ndarray:
    corners = np.sort(np.random.default_rng(seed).random((count, 2, 2)), axis=1) * size
    return corners.reshape(count, 4).astype(np.float32)


def moved(box: Sequence[float], delta: Sequence[float], extra: int) -> list[float]:
    """One box, by the definition."""
    x1, y1, x2, y2 = box
    dx, dy, dw, dh = delta
    width, height = x2 - x1 + extra, y2 - y1 + extra
    x, y = x1 + width / 2 + dx * width, y1 + height / 2 + dy * height
    width *= math.exp(min(dw, math.log(62.5)))
    height *= math.exp(min(dh, math.log(62.5)))
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def share(a: Sequence[float], b: Sequence[float], extra: int) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (a, b)]
    return width * height / (sum(areas) - width * height)
