"""Boxes: anchors, what the network makes of them, suppression of those that overlap, and pooling in them.

Boxes are x1, y1, x2, y2. There are two conventions. In the original, in Caffe, the last pixel is part of a
box, which is x2 - x1 + 1 wide; anchors are rounded, and boxes end at width - 1. Later versions (detectron2,
Hugging Face) measure x2 - x1, do not round, and end boxes at width. `inclusive` says which one is meant.
"""

import math
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

STRIDE = 16  # pixels of the image for a cell of the feature map
SIDES, RATIOS = (64, 128, 256, 512), (0.5, 1.0, 2.0)  # of anchors: square root of the area, height / width
ANCHORS = len(SIDES) * len(RATIOS)
LARGEST = math.log(1000 / 16)  # of the deltas of width and height
CANDIDATES, PROPOSALS, OVERLAP = 6000, 300, 0.7  # boxes before and after suppression, and what it allows
POOLED = 14  # cells of a region, each way


def cell_anchors(inclusive: bool) -> np.ndarray:
    """The anchors of the first cell, (ANCHORS, 4) float32: sides, and for each of them ratios."""
    anchors = []
    for side, ratio in product(SIDES, RATIOS):
        if inclusive:  # rounded for a side of 16, and then enlarged
            width = round(math.sqrt(STRIDE**2 / ratio))
            half = (np.array([width, round(width * ratio)]) * side / STRIDE - 1) / 2
            centre = (STRIDE - 1) / 2
        else:
            width = math.sqrt(side**2 / ratio)
            half, centre = np.array([width, width * ratio]) / 2, 0.0
        anchors.append([*(centre - half), *(centre + half)])
    return np.array(anchors, np.float32)


def move(boxes: np.ndarray, deltas: np.ndarray, inclusive: bool) -> np.ndarray:
    """Boxes (n, 4) moved by deltas (n, 4): shifts in widths and heights, and logarithms of their growth.

    Girshick et al. 2014, arXiv:1311.2524, appendix C.
    """
    sizes = boxes[:, 2:] - boxes[:, :2] + np.float32(inclusive)
    centres = deltas[:, :2] * sizes + (boxes[:, :2] + 0.5 * sizes)
    half = 0.5 * np.exp(np.minimum(deltas[:, 2:], LARGEST)) * sizes
    return np.concatenate([centres - half, centres + half], 1)


def clip(boxes: np.ndarray, width: int, height: int, inclusive: bool) -> np.ndarray:
    """Boxes (n, 4) as far as they lie in an image of this size."""
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32) - np.float32(inclusive))


def propose(
    logits: np.ndarray, deltas: np.ndarray, size: tuple[int, int], inclusive: bool, least: float
) -> np.ndarray:
    """The likeliest boxes of an image, (at most PROPOSALS, 4) in its pixels, the likeliest first.

    logits (ANCHORS, rows, columns) and deltas (4 x ANCHORS, rows, columns): of the network; size: width and
    height of the image; least: width and height of a box from which on it counts. Where it is 0, boxes
    without area are left out among the candidates; else before there are CANDIDATES, as the original does.
    """
    _, rows, columns = logits.shape
    corners = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 1, 2) * STRIDE
    anchors = (np.tile(corners, 2) + cell_anchors(inclusive)).astype(np.float32).reshape(-1, 4)
    deltas = deltas.reshape(ANCHORS, 4, rows, columns).transpose(2, 3, 0, 1).reshape(-1, 4)
    order = np.argsort(-logits.transpose(1, 2, 0).ravel(), kind="stable")
    if not least:
        order = order[:CANDIDATES]
    boxes = clip(move(anchors[order], deltas[order], inclusive), *size, inclusive)
    sizes = boxes[:, 2:] - boxes[:, :2] + np.float32(inclusive)
    boxes = boxes[((sizes >= least) & (sizes > 0)).all(1)][:CANDIDATES]
    return boxes[suppress(boxes, OVERLAP, inclusive, PROPOSALS)]


def suppress(boxes: np.ndarray, overlap: float, inclusive: bool, most: int) -> np.ndarray:
    """Which of the boxes (n, 4), sorted by decreasing score, are left: the first `most` of them.

    A box goes if one before it, which stays, overlaps it too much, see `overlapping`.
    """
    alive, kept = np.ones(len(boxes), bool), []
    for number, box in enumerate(boxes):
        if alive[number]:
            kept.append(number)
            if len(kept) == most:
                break
            alive[number:] &= ~overlapping(box, boxes[number:], overlap, inclusive)
    return np.array(kept, np.intp)


def overlapping(a: np.ndarray, b: np.ndarray, overlap: float, inclusive: bool) -> np.ndarray:
    """Whether the intersection of boxes (..., 4) is too large a share of their union.

    In the original it is so from `overlap` on, in later versions above it.
    """
    extra = np.float32(inclusive)
    sizes = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + extra
    common = np.maximum(sizes, 0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + extra).prod(-1) for boxes in (a, b)]
    share = common / np.maximum(areas[0] + areas[1] - common, 1e-12)  # which may be 0 for boxes without area
    return share >= overlap if inclusive else share > overlap


def roi_pool(feature_map: Tensor, boxes: np.ndarray) -> Tensor:
    """The largest values in POOLED x POOLED parts of each box: (n, C, POOLED, POOLED) of a map (1, C, H, W).

    boxes (n, 4) are in pixels of the image. RoIPool of Girshick 2015, arXiv:1504.08083: corners are rounded
    to cells, both of which belong to the box; parts may share cells; what lies outside the map counts as 0.
    The largest value of a part is that of its rows' largest values, so that one axis comes after the other.
    """
    height, width = feature_map.shape[2:]
    padded = F.pad(feature_map[0], (0, 1, 0, 1))  # a last row and column of 0
    pooled = feature_map.new_empty(len(boxes), len(padded), POOLED, POOLED)
    cells = np.floor(boxes.astype(np.float64) / STRIDE + 0.5).astype(int)
    for out, (x1, y1, x2, y2) in zip(pooled, cells.tolist(), strict=True):
        rows, columns = parts(y1, y2, height), parts(x1, x2, width)
        left, right = columns.min(), columns.max() + 1
        strip = _largest(padded[:, :, left:right], rows, 1)
        out.copy_(_largest(strip, columns - left, 2))
    return pooled


def parts(first: int, last: int, limit: int) -> np.ndarray:
    """The cells of each part between two cells, (POOLED, length): those of shorter ones are repeated.

    limit: how many cells the map has; a part that lies outside it gets the cell after them. The ends of parts
    are computed in float32, as they always were: at 57 and 62 cells exact fractions would give other ones.
    """
    size = np.float32(max(last - first + 1, 1)) / np.float32(POOLED)
    steps = np.arange(POOLED + 1, dtype=np.float32)
    starts = np.clip(np.floor(steps[:-1] * size).astype(int) + first, 0, limit)
    ends = np.clip(np.ceil(steps[1:] * size).astype(int) + first, 0, limit)
    cells = np.minimum(starts[:, None] + np.arange((ends - starts).max(initial=1)), ends[:, None] - 1)
    return np.where((ends > starts)[:, None], cells, limit)


def _largest(values: Tensor, cells: np.ndarray, axis: int) -> Tensor:
    """The largest of `values` (C, H, W) among each row of `cells`, which are places along an axis."""
    chosen = values.index_select(axis, torch.from_numpy(cells.ravel()).to(values.device))
    return chosen.unflatten(axis, cells.shape).amax(axis + 1)
