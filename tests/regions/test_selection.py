"""The recipes' choices on numbers that can be followed by hand, and against the loops of the originals."""

from __future__ import annotations

import numpy as np
import pytest
from tests.helpers.boxes import moved, random_boxes, share

from regions.images import Scaled
from regions.selection import RECIPES, Candidates, best_confidence, choose_confident, choose_spread

HALF = Scaled(np.zeros((3, 300, 400), np.float32), np.float32([2, 2, 2, 2]))  # of a photo of 200 x 150


def row_of_boxes(count: int, side: float = 8.0) -> np.ndarray:
    """Boxes that do not touch."""
    left = np.arange(count) * 10.0
    return np.stack([left, 0 * left, left + side, 0 * left + side], 1).astype(np.float32)


def candidates(boxes: np.ndarray, scores: np.ndarray) -> Candidates:
    return Candidates(boxes, scores.astype(np.float32), np.zeros((*scores.shape, 4), np.float32))


def test_a_box_is_as_confident_as_the_best_class_in_which_it_is_not_hidden() -> None:
    boxes = np.float32([[0, 0, 99, 99], [0, 0, 99, 89], [200, 0, 299, 99]])
    scores = np.float32([[0.8, 0.1], [0.7, 0.3], [0.05, 0.02]])
    # The second is hidden by the first as class 0, and hides it as class 1.
    assert best_confidence(boxes, scores).tolist() == pytest.approx([0.8, 0.3, 0.05])


def test_a_box_that_is_hidden_in_every_class_has_no_confidence() -> None:
    boxes = np.float32([[0, 0, 99, 99], [0, 0, 99, 89]])
    assert best_confidence(boxes, np.float32([[0.8, 0.4], [0.7, 0.3]])).tolist() == pytest.approx([0.8, 0])


@pytest.mark.parametrize("seed", range(3))
def test_confidence_is_that_of_suppressing_class_by_class(seed: int) -> None:
    """The loop of LXMERT's extract_coco_image.py."""
    boxes = random_boxes(80, 50, seed)
    scores = np.random.default_rng(seed).dirichlet([0.3] * 13, 80)[:, :12].astype(np.float32)
    confidence = np.zeros(80)
    for column in scores.T:
        kept: list[int] = []
        for number in np.argsort(-column, kind="stable"):
            if all(share(boxes[other].tolist(), boxes[number].tolist(), 1) < 0.3 for other in kept):
                kept.append(int(number))
        confidence[kept] = np.maximum(confidence[kept], column[kept])
    np.testing.assert_array_equal(best_confidence(boxes, scores), confidence.astype(np.float32))
    assert (confidence == 0).any() and (confidence > 0.2).any()


@pytest.mark.parametrize(("sure", "expected"), [(36, "order"), (35, "confidence"), (37, "confidence")])
def test_lxmerts_36_come_by_confidence_unless_just_so_many_are_sure(sure: int, expected: str) -> None:
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.uniform(0.21, 0.9, sure), rng.uniform(0.01, 0.19, 60 - sure)])
    confidence = rng.permutation(confidence)
    boxes = row_of_boxes(60)
    rows, chosen = choose_confident(candidates(2 * boxes, confidence[:, None]), HALF)
    by_confidence = sorted(range(60), key=lambda row: -confidence[row])[:36]
    assert rows.tolist() == (sorted(by_confidence) if expected == "order" else by_confidence)
    np.testing.assert_array_equal(chosen, boxes[rows])  # as they were proposed, in pixels of the photo


def test_lxmert_takes_all_there_are_if_there_are_fewer() -> None:
    rows, boxes = choose_confident(candidates(row_of_boxes(3), np.array([[0.1], [0.3], [0.2]])), HALF)
    assert rows.tolist() == [1, 2, 0] and len(boxes) == 3
    empty = Candidates(
        np.empty((0, 4), np.float32), np.empty((0, 2), np.float32), np.empty((0, 2, 4), np.float32)
    )
    for recipe in RECIPES.values():
        rows, boxes = recipe.choose(empty, HALF)
        assert len(rows) == len(boxes) == 0


def test_lxmert_suppresses_in_pixels_of_the_photo() -> None:
    """Last pixels count: of small boxes they are a larger share."""
    pair = np.float32([[0, 0, 2, 2], [2, 0, 4, 2]])  # in the scaled image; 0 to 1 and 1 to 2 in the photo
    boxes = np.concatenate([pair, row_of_boxes(36)[1:] + 100])
    scores = np.array([[0.5], [0.4], *[[0.1]] * 35])
    assert best_confidence(boxes, scores.astype(np.float32))[1] == pytest.approx(0.4)
    rows, _ = choose_confident(candidates(boxes, scores), HALF)
    assert len(rows) == 36 and 1 not in rows


def test_transformers_takes_the_box_of_the_likeliest_class() -> None:
    boxes = 2 * row_of_boxes(40)
    scores = np.full((40, 3), 0.05)
    scores[np.arange(40), np.arange(40) % 3] = np.linspace(0.9, 0.5, 40)
    deltas = np.zeros((40, 3, 4), np.float32)
    deltas[:, 1] = [1, 2, 0.5, -0.5]  # times 10, 10, 5, 5
    rows, chosen = choose_spread(Candidates(boxes, scores.astype(np.float32), deltas), HALF)
    assert rows.tolist() == list(range(36))
    for row, box in zip(rows, chosen, strict=True):
        delta = [0.1, 0.2, 0.1, -0.1] if row % 3 == 1 else [0] * 4
        expected = np.clip(moved(boxes[row].tolist(), delta, 0), 0, [400, 300, 400, 300]) / 2
        np.testing.assert_allclose(box, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("pairs", "limit"), [(36, 0.5), (30, 0.6), (20, 0.7)])
def test_transformers_allows_more_overlap_until_36_are_left(pairs: int, limit: float) -> None:
    """Pairs of boxes that overlap by 0.55 or 0.65, as the limit has it."""
    overlap = {0.5: 0.55, 0.6: 0.55, 0.7: 0.65}[limit]
    first = row_of_boxes(pairs) * [1, 1, 1, 1]
    second = first.copy()
    second[:, 3] *= overlap
    boxes = np.concatenate([first, second]).astype(np.float32)
    rows, _ = choose_spread(candidates(boxes, np.linspace(0.9, 0.1, len(boxes))[:, None]), HALF)
    expected = list(range(36))
    assert rows.tolist() == expected


def test_transformers_keeps_what_there_is_where_its_own_code_fails() -> None:
    boxes = np.repeat(row_of_boxes(10), 5, 0)
    rows, chosen = choose_spread(candidates(boxes, np.linspace(0.9, 0.1, 50)[:, None]), HALF)
    assert rows.tolist() == list(range(0, 50, 5)) and len(chosen) == 10
