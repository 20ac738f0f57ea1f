"""A detector of a few channels with random weights, its files in each format, and photos to look at."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from regions.network import Detector, Sizes

SMALL = Sizes(width=2, blocks=(1, 2, 2, 1), hidden=8, classes=11, attributes=7)
HEAD, RPN = "roi_heads.box_predictor.", "proposal_generator.rpn_head."
SIDES, RATIOS = 4, 3  # anchors


def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files read into a detector as small as the ones written here."""
    monkeypatch.setattr("regions.weights.SIZES", SMALL)


def random_state(sizes: Sizes = SMALL, seed: int = 7) -> dict[str, Tensor]:
    """Weights under which proposals differ, and, with seed 7, classes and attributes too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Detector(sizes).state_dict().items()}
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith(("norm.weight", "running_var")):
            state[name] = 1 + 0.2 * values.tanh()
        elif len(shape) > 1:
            state[name] = values * (1.5 / shape[1:].numel()) ** 0.5
        else:
            state[name] = 0.1 * values
    state[f"{RPN}objectness_logits.weight"] *= 5
    state[f"{RPN}anchor_deltas.weight"] *= 0.3
    state[f"{HEAD}bbox_pred.weight"] *= 0.2
    for name in ("cls_score", "fc_attr", "attr_score"):  # not the mean of what they read, but differences
        weight = state[f"{HEAD}{name}.weight"]
        state[f"{HEAD}{name}.weight"] = 0.5 * (weight - weight.mean(1, keepdim=True))
    return state


def small_detector(seed: int = 7) -> Detector:
    detector = Detector(SMALL)
    detector.load_state_dict(random_state(seed=seed))
    return detector.eval().requires_grad_(False)


def write_detectron(file: Path, state: dict[str, Tensor]) -> Path:
    """As Hugging Face has it: with a counter for each batch norm, and the anchors."""
    counters = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(0)
        for name in state
        if name.endswith("running_var")
    }
    anchors = {"proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(12, 4)}
    torch.save(state | counters | anchors, file)
    return file


def write_pickle(file: Path, state: dict[str, Tensor], protocol: int = 2) -> Path:
    """As py-bottom-up-attention has it."""
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    file.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}, protocol))
    return file


def original_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network in the order of Caffe, which bottom-up-attention.pytorch keeps: row by row."""
    rng = np.random.default_rng(5)
    theirs = {
        name.replace("cls_embedding", "cls_embed")
        .replace("fc_attr", "attr_linear1")
        .replace("attr_score", "attr_linear2"): tensor.clone()
        for name, tensor in state.items()
    }
    for name in (
        "cls_score.weight",
        "cls_score.bias",
        "cls_embed.weight",
        "attr_linear2.weight",
        "attr_linear2.bias",
    ):
        ours = theirs[HEAD + name]
        theirs[HEAD + name] = torch.stack([ours[-1], *ours[:-1]])
    for kind in ("weight", "bias"):
        logits, deltas = (state[f"{RPN}{name}.{kind}"] for name in ("objectness_logits", "anchor_deltas"))
        no = torch.from_numpy(rng.normal(size=logits.shape).astype(np.float32))
        yes, moves = torch.empty_like(logits), torch.empty_like(deltas)
        for side in range(SIDES):
            for ratio in range(RATIOS):
                ours, row = side * RATIOS + ratio, ratio * SIDES + side
                yes[row] = logits[ours] + no[row]
                moves[4 * row : 4 * row + 4] = deltas[4 * ours : 4 * ours + 4]
        theirs[f"{RPN}objectness_logits.{kind}"] = torch.cat([no, yes])
        theirs[f"{RPN}anchor_deltas.{kind}"] = moves
        boxes = state[f"{HEAD}bbox_pred.{kind}"].clone()
        for row in range(len(boxes)):
            boxes[row] /= 10 if row % 4 < 2 else 5
        theirs[f"{HEAD}bbox_pred.{kind}"] = torch.cat([torch.ones_like(boxes[:4]), boxes])
    return theirs


def write_original(file: Path, state: dict[str, Tensor]) -> Path:
    """As bottom-up-attention.pytorch has it."""
    torch.save({"model": original_state(state), "iteration": 7}, file)
    return file


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured rectangles on a noisy ground."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    for _ in range(6):
        x, y = sorted(rng.integers(0, width, 2)), sorted(rng.integers(0, height, 2))
        pixels[y[0] : y[1] + 1, x[0] : x[1] + 1] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def write_photos(folder: Path, count: int = 4) -> Path:
    """photo_0.png and so on, of different sizes."""
    folder.mkdir(parents=True)
    for number in range(count):
        picture(90 + 10 * number, 80, number).save(folder / f"photo_{number}.png")
    return folder
