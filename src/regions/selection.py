"""Which of the proposals become an image's regions, and with which boxes: the recipes.

`lxmert` is how the features were made that LXMERT was trained on (`data/mscoco_imgfeat` of its repository, on
the original detector in Caffe); `huggingface` is what its port to transformers does. They differ in the size
of the image, in boxes, and in what counts as the same object twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from regions.images import Scaled
from regions.proposals import clip, move, overlapping, suppress

REGIONS = 36
SURE, SAME_OBJECT = 0.2, 0.3  # LXMERT's least confidence, and what boxes of one class may overlap
LOOSER_AND_LOOSER = (0.5, 0.6, 0.7)  # what boxes may overlap in transformers, until enough are left
WEIGHTS = np.float32([10, 10, 5, 5])  # of the deltas that the network was trained on


class Candidates(NamedTuple):
    """The proposals of an image, n of them, as the detector sees them."""

    boxes: np.ndarray  # (n, 4), in the scaled image
    scores: np.ndarray  # (n, classes), probabilities; what is missing to 1 is that of no object
    deltas: np.ndarray  # (n, classes, 4), see `network.Predictions`


Choose = Callable[[Candidates, Scaled], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Recipe:
    """One way from a photo to its regions."""

    shortest: int  # pixels of the scaled image's shorter side,
    longest: int  # unless the longer one gets longer than this
    original: bool  # conventions of the detector in Caffe: see `proposals`, and `images.scale`
    least: int  # pixels of the photo that a proposal has at least, in width and height
    choose: Choose  # the rows of the chosen candidates, and their boxes (R, 4) in pixels of the photo


def choose_confident(found: Candidates, scaled: Scaled) -> tuple[np.ndarray, np.ndarray]:
    """The most confident proposals, with the boxes that they were proposed with.

    If exactly REGIONS of them are `SURE`, they keep the order of the proposals.
    """
    boxes = found.boxes / scaled.scale
    confidence = best_confidence(boxes, found.scores)
    sure = np.flatnonzero(confidence >= SURE)
    rows = sure if len(sure) == REGIONS else np.argsort(-confidence, kind="stable")[:REGIONS]
    return rows, boxes[rows]


def best_confidence(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of each box the best score among the classes in which no better box hides it, or 0; (n,).

    boxes (n, 4) in pixels of the photo, scores (n, classes). For every class, boxes are suppressed by those
    of a higher score that overlap them: all classes at once, from their best box down.
    """
    hides = overlapping(boxes[:, None], boxes[None], SAME_OBJECT, inclusive=True)
    order = np.argsort(-scores, axis=0, kind="stable")
    best = np.zeros(len(boxes), scores.dtype)
    alive = np.ones(scores.T.shape, bool)  # (classes, n)
    classes = np.arange(len(alive))
    for candidates in order:  # of each class the next box
        kept = classes[alive[classes, candidates]]
        winners = candidates[kept]
        np.maximum.at(best, winners, scores[winners, kept])
        alive[kept] &= ~hides[winners]
    return best


def choose_spread(found: Candidates, scaled: Scaled) -> tuple[np.ndarray, np.ndarray]:
    """The most confident proposals that overlap little, with the boxes of their likeliest class.

    If even the loosest limit leaves fewer than REGIONS, these are all: transformers' code fails there.
    """
    rows = np.arange(len(found.boxes))
    deltas = found.deltas[rows, found.scores.argmax(1)] / WEIGHTS
    height, width = scaled.image.shape[1:]
    boxes = clip(move(found.boxes, deltas, inclusive=False), width, height, inclusive=False)
    order = np.argsort(-found.scores.max(1), kind="stable")
    for overlap in LOOSER_AND_LOOSER:
        rows = order[suppress(boxes[order], overlap, False, REGIONS)]
        if len(rows) == REGIONS:
            break
    return rows, boxes[rows] / scaled.scale


RECIPES = {
    "lxmert": Recipe(600, 1000, original=True, least=16, choose=choose_confident),
    "huggingface": Recipe(800, 1333, original=False, least=0, choose=choose_spread),
}
