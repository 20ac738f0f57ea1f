"""From a photo to its regions, by the detector of LXMERT's features or on a plain grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from common.errors import UserError
from common.files import sha256_of
from regions.images import PhotoFault, read_photo, scale
from regions.network import Detector, Predictions
from regions.proposals import propose, roi_pool
from regions.selection import RECIPES, REGIONS, Candidates, Recipe
from regions.weights import find_file, load_detector, read_names

KINDS = ("detector", "grid")
LARGEST_GRID = 20
PATCH = 6  # a cell of the grid is resized to PATCH x PATCH pixels, as the regions of the embedded scenes are
TOGETHER = 25  # regions that go through the last layers at once, which bounds memory


class PhotoRegions(NamedTuple):
    """What is seen in a photo: R regions of D features each."""

    features: np.ndarray  # (R, D) float32
    boxes: np.ndarray  # (R, 4) float32: x1, y1, x2, y2 in pixels of the photo
    width: int  # of the photo, in pixels
    height: int
    classes: np.ndarray | None = None  # (R,) int64, from 0 on: lines of objects_vocab.txt; None of a grid
    attributes: np.ndarray | None = None  # (R,) int64: lines of attributes_vocab.txt
    scores: np.ndarray | None = None  # (R,) float32: probability of the class,
    attribute_scores: np.ndarray | None = None  # and of the attribute


@dataclass(frozen=True)
class Extractor:
    """One way to describe photos. Two with the same `record` give the same regions."""

    record: dict[str, Any]  # kind, recipe and sha256 of the weights, or kind and grid
    names: dict[str, list[str]]  # of classes and attributes, if they are known: see `weights.read_names`
    regions: int  # the most of one photo
    feature_size: int
    device: str  # cpu or cuda
    look: Callable[[np.ndarray], PhotoRegions]  # of pixels (height, width, 3) uint8 in RGB

    def describe(self, photo: Path) -> PhotoRegions:
        """The regions of a photo; `PhotoFault`, a kind of UserError, says why there are none."""
        pixels = read_photo(photo)
        found = self.look(pixels)
        if not len(found.features):
            raise PhotoFault(photo, "shows nothing that the detector would propose as a region")
        return found


def load_extractor(kind: str, weights: Path | None, recipe: str, grid: int) -> Extractor:
    """The detector with these weights and recipe, on a GPU if there is one; or a grid, which needs neither.

    kind: one of KINDS; weights: a file, or the folder of one, see `regions.weights`; recipe: one of
    `selection.RECIPES`; grid: cells each way. CheckpointError, with a sentence, for weights that are missing,
    damaged or another network's; UserError for other values.
    """
    if kind not in KINDS:
        raise UserError(f"there is no extractor {kind!r}; there are {' and '.join(KINDS)}")
    if kind == "grid":
        if not 1 <= grid <= LARGEST_GRID:
            raise UserError(f"a grid has 1 to {LARGEST_GRID} cells each way, not {grid}")
        look = partial(look_at_grid, grid=grid)
        return Extractor({"kind": kind, "grid": grid}, {}, grid * grid + 1, PATCH * PATCH * 3, "cpu", look)
    if recipe not in RECIPES:
        raise UserError(f"there is no recipe {recipe!r}; there are {' and '.join(RECIPES)}")
    file = find_file(weights)
    names = read_names(file.parent)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detector = load_detector(file).to(device)
    record = {"kind": kind, "recipe": recipe, "weights": sha256_of(file)}
    look = partial(look_for_objects, detector=detector, recipe=RECIPES[recipe])
    size = detector.roi_heads["box_predictor"].cls_score.in_features
    return Extractor(record, names, REGIONS, size, device, look)


def look_at_grid(pixels: np.ndarray, grid: int) -> PhotoRegions:
    """The cells of a grid, row by row, and the whole photo, each as PATCH x PATCH pixels in [-1, 1]."""
    height, width = pixels.shape[:2]
    edges = np.arange(grid + 1) / grid
    cells = [(x, y, x + 1, y + 1) for y in range(grid) for x in range(grid)]
    boxes = [*edges[np.array(cells)] * [width, height, width, height], (0, 0, width, height)]
    picture = Image.fromarray(pixels)
    patches = [picture.resize((PATCH, PATCH), Image.Resampling.BOX, box=tuple(box)) for box in boxes]
    features = np.stack([np.asarray(patch, np.float32).ravel() / 127.5 - 1 for patch in patches])
    return PhotoRegions(features, np.array(boxes, np.float32), width, height)


@torch.inference_mode()
def look_for_objects(pixels: np.ndarray, detector: Detector, recipe: Recipe) -> PhotoRegions:
    """What the detector finds in pixels (height, width, 3) uint8, chosen by a recipe; maybe nothing."""
    scaled = scale(pixels, recipe.shortest, recipe.longest, recipe.original)
    height, width = scaled.image.shape[1:]
    # On a GPU: the same bits every time, and all of them.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        device = next(detector.buffers()).device
        feature_map = detector.feature_map(torch.from_numpy(scaled.image)[None].to(device))
        logits, deltas = (maps[0].cpu().numpy() for maps in detector.proposals(feature_map))
        least = recipe.least * scaled.scale[0]
        boxes = propose(logits, deltas, (width, height), recipe.original, least)
        parts = [
            detector.predict(roi_pool(feature_map, boxes[start : start + TOGETHER]))
            for start in range(0, max(len(boxes), 1), TOGETHER)
        ]
    predicted = Predictions(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))
    scores = predicted.classes.softmax(1)[:, :-1].numpy()
    # The original has "no attribute" compete with the others, transformers' port has not.
    logits = predicted.attributes
    attributes = logits.softmax(1)[:, :-1] if recipe.original else logits[:, :-1].softmax(1)
    rows, boxes = recipe.choose(Candidates(boxes, scores, predicted.deltas.numpy()), scaled)
    size = pixels.shape[1], pixels.shape[0]
    classes, scores, attributes = scores[rows].argmax(1), scores[rows].max(1), attributes.numpy()[rows]
    features = predicted.features.numpy()[rows]
    return PhotoRegions(features, boxes, *size, classes, attributes.argmax(1), scores, attributes.max(1))
