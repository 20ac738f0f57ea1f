"""From a photo to its regions; and, where they are, the published rows and the published weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.detector import (
    SMALL,
    picture,
    random_state,
    small_detector,
    small_sizes,
    write_detectron,
    write_original,
)
from tests.helpers.feature_files import read_tsv
from tests.helpers.paths import SHARED

from common.errors import CheckpointError, UserError
from common.files import sha256_of
from regions.extract import PATCH, load_extractor, look_at_grid, look_for_objects
from regions.images import PhotoFault, read_photo, scale
from regions.proposals import propose, roi_pool
from regions.selection import RECIPES, Candidates
from vqadata.scenes import draw_scene

ROWS = SHARED / "lxmert_rows"
WEIGHTS = os.environ.get("SPOTTUNE_DETECTOR")  # file or folder
needs_rows = pytest.mark.skipif(not ROWS.is_dir(), reason="needs LXMERT's rows and photos in ../shared/data")
PIXELS = np.asarray(picture(150, 100))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_sizes(monkeypatch)
    return write_detectron(tmp_path / "pytorch_model.bin", random_state())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


# The detector


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_photo_has_36_regions_within_its_edges(weights: Path, photo: Path, recipe: str) -> None:
    extractor = load_extractor("detector", weights, recipe, 0)
    found = extractor.describe(photo)
    assert (found.width, found.height) == (150, 100)
    assert found.features.shape == (36, extractor.feature_size) == (36, SMALL.features)
    assert found.features.dtype == found.boxes.dtype == np.float32 and found.boxes.shape == (36, 4)
    assert (found.boxes >= 0).all() and (found.boxes[:, :2] <= found.boxes[:, 2:]).all()
    assert (found.boxes <= [150, 100, 150, 100]).all()
    for ids, count in ((found.classes, SMALL.classes), (found.attributes, SMALL.attributes)):
        assert ids.shape == (36,) and ids.dtype == np.int64 and len(set(ids)) > 1
        assert ((ids >= 0) & (ids < count)).all()
    for scores in (found.scores, found.attribute_scores):
        assert scores.shape == (36,) and ((scores > 0) & (scores <= 1)).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_regions_are_those_of_the_parts_put_together_by_hand(recipe: str) -> None:
    detector, rule = small_detector(), RECIPES[recipe]
    scaled = scale(PIXELS, rule.shortest, rule.longest, rule.original)
    maps = detector.feature_map(torch.from_numpy(scaled.image)[None])
    logits, deltas = (column[0].numpy() for column in detector.proposals(maps))
    least = 16 * scaled.scale[0] if recipe == "lxmert" else 0
    boxes = propose(logits, deltas, scaled.image.shape[:0:-1], recipe == "lxmert", least)
    predicted = detector.predict(roi_pool(maps, boxes))  # all at once
    scores = predicted.classes.softmax(1)[:, :-1]
    rows, chosen = rule.choose(Candidates(boxes, scores.numpy(), predicted.deltas.numpy()), scaled)
    found = look_for_objects(PIXELS, detector, rule)
    assert len(boxes) > 100 and len(rows) == 36
    np.testing.assert_allclose(found.boxes, chosen, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.features, predicted.features[rows], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.scores, scores[rows].amax(1), rtol=1e-4)
    np.testing.assert_array_equal(found.classes, scores[rows].argmax(1))
    attributes = predicted.attributes[rows]
    without = attributes[:, :-1].softmax(1)
    expected = attributes.softmax(1)[:, :-1] if recipe == "lxmert" else without
    np.testing.assert_allclose(found.attribute_scores, expected.amax(1), rtol=1e-4)
    np.testing.assert_array_equal(found.attributes, expected.argmax(1))
    if recipe == "lxmert":
        np.testing.assert_array_equal(found.boxes, boxes[rows] / scaled.scale)  # as proposed
    else:
        assert np.abs(found.boxes - boxes[rows] / scaled.scale).max() > 0.1  # moved


def test_describing_changes_nothing(weights: Path, photo: Path) -> None:
    extractor = load_extractor("detector", weights, "lxmert", 0)
    first, second = extractor.describe(photo), extractor.describe(photo)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_another_format_give_the_same_regions(weights: Path, photo: Path, tmp_path: Path) -> None:
    theirs = write_original(tmp_path / "a.pth", random_state())
    a = load_extractor("detector", weights, "lxmert", 0).describe(photo)
    b = load_extractor("detector", theirs, "lxmert", 0).describe(photo)
    np.testing.assert_allclose(a.features, b.features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(a.classes, b.classes)


def test_the_record_says_what_made_the_regions(weights: Path) -> None:
    extractor = load_extractor("detector", weights.parent, "huggingface", 7)
    assert extractor.record == {"kind": "detector", "recipe": "huggingface", "weights": sha256_of(weights)}
    assert load_extractor("grid", None, "lxmert", 7).record == {"kind": "grid", "grid": 7}


def test_nothing_to_see_is_said(weights: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state()
    state["proposal_generator.rpn_head.anchor_deltas.bias"][:] = -1000  # boxes far outside, of no size
    write_detectron(weights, state)
    with pytest.raises(PhotoFault, match="shows nothing that the detector would propose"):
        load_extractor("detector", weights, "lxmert", 0).describe(photo)


def test_unknown_values_are_refused(weights: Path) -> None:
    for arguments in (
        ("clip", None, "lxmert", 6),
        ("detector", weights, "mine", 6),
        ("grid", None, "lxmert", 0),
    ):
        with pytest.raises(UserError):
            load_extractor(*arguments)
    with pytest.raises(CheckpointError, match="The detector needs its weights"):
        load_extractor("detector", None, "lxmert", 6)


# The grid


def test_the_grid_has_its_cells_row_by_row_and_then_the_whole_photo(photo: Path) -> None:
    extractor = load_extractor("grid", None, "lxmert", 3)
    found = extractor.describe(photo)
    assert found.features.shape == (10, 108) == (extractor.regions, extractor.feature_size)
    assert (found.width, found.height) == (150, 100) and found.classes is None and found.scores is None
    third = 100 / 3
    np.testing.assert_allclose(found.boxes[1], [50, 0, 100, third], rtol=1e-6)
    np.testing.assert_allclose(found.boxes[3], [0, third, 50, 2 * third], rtol=1e-6)
    assert found.boxes[9].tolist() == [0, 0, 150, 100]


def test_a_cell_is_seen_as_the_mean_colours_of_its_parts() -> None:
    pixels = np.asarray(picture(72, 48))  # of 2 x 2 cells each part is 6 x 4 pixels
    found = look_at_grid(pixels, 2)
    cell = pixels[24:, 36:].reshape(PATCH, 4, PATCH, 6, 3).mean((1, 3))
    np.testing.assert_allclose(found.features[3], cell.ravel() / 127.5 - 1, atol=1 / 127)
    assert (np.abs(found.features) <= 1).all()


def test_regions_of_the_grid_look_like_those_of_the_embedded_scenes() -> None:
    scene = draw_scene(np.random.default_rng(0))
    for box, feature in zip(scene.boxes * 112, scene.features, strict=True):
        left, top, right, bottom = box.round().astype(int)
        found = look_at_grid(scene.image[top:bottom, left:right], 1)
        np.testing.assert_array_equal(found.features[0], feature)


# The published rows


@needs_rows
def test_boxes_of_lxmerts_rows_end_where_its_recipe_clips_them() -> None:
    """To the last digit: the size of the scaled photo, its rounding, and the convention of boxes."""
    rule = RECIPES["lxmert"]
    for row in read_tsv(ROWS / "train2014_obj36.tsv"):
        pixels = read_photo(ROWS / "images" / f"{row['img_id']}.jpg")
        assert pixels.shape == (int(row["img_h"]), int(row["img_w"]), 3)
        scaled = scale(pixels, rule.shortest, rule.longest, rule.original)
        last = (np.float32(scaled.image.shape[:0:-1]) - 1) / scaled.scale[:2]
        np.testing.assert_array_equal(row["boxes"][:, 2:].max(0), last)
        sizes = (row["boxes"][:, 2:] - row["boxes"][:, :2]) * scaled.scale[0] + 1
        assert (sizes >= rule.least * scaled.scale[0]).all() and (row["boxes"] >= 0).all()


@needs_rows
@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS, reason="needs the detector's weights, at the path in SPOTTUNE_DETECTOR")
def test_the_published_weights_find_lxmerts_regions() -> None:
    """Not to the last digit: pictures are decoded by another library, and arithmetic is in another order."""
    extractor = load_extractor("detector", Path(WEIGHTS or ""), "lxmert", 0)
    for row in read_tsv(ROWS / "train2014_obj36.tsv"):
        found = extractor.describe(ROWS / "images" / f"{row['img_id']}.jpg")
        near = np.abs(found.boxes[:, None] - row["boxes"][None]).max(2)
        ours = near.argmin(0)
        same = near.min(0) < 2
        a, b = found.features[ours][same], row["features"][same]
        alike = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert same.sum() >= 30 and alike.min() > 0.98, row["img_id"]
        assert (found.classes[ours][same] == row["objects_id"][same, 0]).mean() > 0.9
