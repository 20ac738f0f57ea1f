"""Anchors, boxes, suppression and pooling, against slow forms of the same written from their definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.helpers.boxes import moved, random_boxes, share
from torch.nn import functional as F

from regions.proposals import (
    ANCHORS,
    cell_anchors,
    clip,
    move,
    overlapping,
    parts,
    propose,
    roi_pool,
    suppress,
)

# Anchors


def test_anchors_of_the_original_are_those_of_py_faster_rcnn() -> None:
    """The table in the comment of its generate_anchors.py, for sides of 128, 256 and 512, counted from 0."""
    known = {
        (-84, -40, 99, 55), (-176, -88, 191, 103), (-360, -184, 375, 199), (-56, -56, 71, 71),
        (-120, -120, 135, 135), (-248, -248, 263, 263), (-36, -80, 51, 95), (-80, -168, 95, 183),
        (-168, -344, 183, 359),
    }  # fmt: skip
    found = [tuple(anchor) for anchor in cell_anchors(inclusive=True).tolist()]
    assert len(found) == ANCHORS and set(found[3:]) == known
    assert found[3:6] == [(-84, -40, 99, 55), (-56, -56, 71, 71), (-36, -80, 51, 95)]  # one side, its ratios


def test_later_anchors_have_exact_areas_and_ratios_around_0() -> None:
    found = cell_anchors(inclusive=False)
    for anchor, (side, ratio) in zip(
        found, [(s, r) for s in (64, 128, 256, 512) for r in (0.5, 1, 2)], strict=True
    ):
        width, height = anchor[2:] - anchor[:2]
        assert width * height == pytest.approx(side**2, rel=1e-5) and height / width == pytest.approx(
            ratio, rel=1e-5
        )
        assert (anchor[:2] == -anchor[2:]).all()


# Boxes


@pytest.mark.parametrize("inclusive", [True, False])
def test_boxes_are_moved_by_their_deltas(inclusive: bool) -> None:
    boxes = random_boxes(50)
    deltas = np.random.default_rng(1).normal(0, 1, (50, 4)).astype(np.float32)
    deltas[7, 2:] = 9.0  # more than a side can grow by
    expected = [
        moved(box, delta, inclusive) for box, delta in zip(boxes.tolist(), deltas.tolist(), strict=True)
    ]
    np.testing.assert_allclose(move(boxes, deltas, inclusive), expected, rtol=1e-4, atol=1e-3)
    if not inclusive:
        np.testing.assert_allclose(move(boxes, np.zeros((50, 4), np.float32), inclusive), boxes, atol=1e-5)


def test_boxes_end_with_the_image() -> None:
    box = np.float32([[-5, -6, 700, 800]])
    assert clip(box, 640, 480, inclusive=True).tolist() == [[0, 0, 639, 479]]
    assert clip(box, 640, 480, inclusive=False).tolist() == [[0, 0, 640, 480]]


# Suppression


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("most", [5, 1000])
def test_suppression_is_that_of_comparing_each_box_with_each(
    inclusive: bool, overlap: float, most: int
) -> None:
    boxes = random_boxes(150, 60)
    kept: list[int] = []
    for number, box in enumerate(boxes.tolist()):
        if all(share(boxes[other].tolist(), box, inclusive) <= overlap for other in kept):
            kept.append(number)
    found = suppress(boxes, overlap, inclusive, most)
    assert found.tolist() == kept[:most] and len(kept) > 5


def test_an_overlap_of_just_the_limit_is_too_much_in_the_original_only() -> None:
    a, b = np.float32([0, 0, 9, 9]), np.float32([0, 0, 9, 4])  # half of it, last pixels included
    assert overlapping(a, b, 0.5, inclusive=True)
    assert not overlapping(np.float32([0, 0, 10, 10]), np.float32([0, 0, 10, 5]), 0.5, inclusive=False)
    assert overlapping(np.float32([0, 0, 10, 10]), np.float32([0, 0, 10, 5.1]), 0.5, inclusive=False)


def test_boxes_without_area_overlap_nothing() -> None:
    points = np.zeros((2, 4), np.float32)
    assert not overlapping(points[0], points, 0.5, inclusive=False).any()
    assert suppress(np.empty((0, 4), np.float32), 0.5, False, 10).tolist() == []


# Proposals


def proposed(
    logits: np.ndarray, deltas: np.ndarray, size: tuple[int, int], original: bool, least: float
) -> list[list[float]]:
    """Box by box, in the steps of the original's proposal_layer.py, or of detectron2's."""
    found = []
    for row in range(logits.shape[1]):
        for column in range(logits.shape[2]):
            for number, anchor in enumerate(cell_anchors(original).tolist()):
                shift = [16 * column, 16 * row] * 2
                box = moved(
                    [a + s for a, s in zip(anchor, shift, strict=True)],
                    deltas[4 * number : 4 * number + 4, row, column].tolist(),
                    original,
                )
                box = [min(max(v, 0), edge - original) for v, edge in zip(box, size * 2, strict=True)]
                found.append((float(logits[number, row, column]), box))
    found.sort(key=lambda pair: -pair[0])

    def large(box: Sequence[float]) -> bool:
        sides = box[2] - box[0] + original, box[3] - box[1] + original
        return min(sides) >= least and min(sides) > 0

    boxes = [box for _, box in (found if original else found[:6000])]
    kept: list[list[float]] = []
    for box in [box for box in boxes if large(box)][:6000]:
        if all(share(other, box, original) <= 0.7 for other in kept):
            kept.append(box)
    return kept[:300]


@pytest.mark.parametrize(("original", "least"), [(True, 28.8), (False, 0.0)])
def test_proposals_are_those_of_going_through_them_one_by_one(original: bool, least: float) -> None:
    rng = np.random.default_rng(3)
    logits = rng.permutation(12 * 6 * 9).reshape(12, 6, 9).astype(np.float32)
    deltas = rng.normal(0, 0.5, (48, 6, 9)).astype(np.float32)
    found = propose(logits, deltas, (144, 96), original, least)
    expected = proposed(logits, deltas, (144, 96), original, least)
    assert 30 < len(expected) == len(found) <= 300
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_there_are_300_proposals_at_most_and_small_ones_make_room_only_in_the_original() -> None:
    """The likeliest of more than 6,000 anchors are moved to where nothing is left of them."""
    logits = np.zeros((12, 25, 25), np.float32)
    logits[:10] = 1
    deltas = np.zeros((48, 25, 25), np.float32)
    deltas[:40:4] = -100  # far to the left
    inside = propose(logits, deltas, (400, 400), True, 16)
    assert 0 < len(inside) <= 300 and (inside[:, 2] - inside[:, 0] + 1 >= 16).all()
    assert len(propose(logits, deltas, (400, 400), False, 0)) == 0


# Pooling


def pooled_by_loops(feature_map: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """RoIPool in the steps of its layer in Caffe, in its precision; (C, 14, 14)."""
    channels, height, width = feature_map.shape
    x1, y1, x2, y2 = (math.floor(value * 0.0625 + 0.5) for value in box)
    part_height = np.float32(max(y2 - y1 + 1, 1)) / np.float32(14)
    part_width = np.float32(max(x2 - x1 + 1, 1)) / np.float32(14)
    out = np.zeros((channels, 14, 14), np.float32)
    for row in range(14):
        top = min(max(math.floor(np.float32(row) * part_height) + y1, 0), height)
        bottom = min(max(math.ceil(np.float32(row + 1) * part_height) + y1, 0), height)
        for column in range(14):
            left = min(max(math.floor(np.float32(column) * part_width) + x1, 0), width)
            right = min(max(math.ceil(np.float32(column + 1) * part_width) + x1, 0), width)
            if bottom > top and right > left:
                out[:, row, column] = feature_map[:, top:bottom, left:right].max((1, 2))
    return out


def test_pooling_is_that_of_loops_bit_for_bit() -> None:
    feature_map = np.random.default_rng(0).normal(size=(3, 38, 63)).astype(np.float32)
    boxes = [
        *random_boxes(60, 599).tolist(),
        [0, 0, 999, 599], [0, 0, 980, 599], [0, 0, 903, 599], [20, 20, 912, 599],  # 63, 62, 57, 57 cells
        [0, 0, 1000, 600], [995, 590, 1000, 600], [100, 100, 100, 100], [104, 8, 120, 24], [0, 0, 7.99, 7.99],
    ]  # fmt: skip
    found = roi_pool(torch.from_numpy(feature_map)[None], np.float32(boxes))
    assert found.shape == (len(boxes), 3, 14, 14)
    for pooled, box in zip(found.numpy(), boxes, strict=True):
        np.testing.assert_array_equal(pooled, pooled_by_loops(feature_map, box), err_msg=str(box))


def test_pooling_is_that_of_adaptive_max_pooling_but_for_two_sizes() -> None:
    """Where the ends of parts are other ones in float32 than as exact fractions."""
    line = torch.randn(1, 1, 1, 80, generator=torch.Generator().manual_seed(0))
    differing = []
    for cells in range(1, 80):
        adaptive = F.adaptive_max_pool2d(line[..., :cells], (1, 14))
        ours = line[0, 0, 0][torch.from_numpy(parts(0, cells - 1, 80))].amax(1)
        if not torch.equal(adaptive.ravel(), ours):
            differing.append(cells)
    assert set(differing) <= {57, 62}
    assert parts(0, 56, 80)[13].max() == 57 and parts(0, 61, 80)[7].min() == 30


def test_what_lies_outside_the_map_counts_as_0() -> None:
    below_zero = torch.full((1, 2, 4, 4), -3.0)
    inside, outside = roi_pool(below_zero, np.float32([[0, 0, 48, 48], [200, 200, 300, 300]]))
    assert (inside == -3).all() and (outside == 0).all()
    assert roi_pool(below_zero, np.empty((0, 4), np.float32)).shape == (0, 2, 14, 14)
