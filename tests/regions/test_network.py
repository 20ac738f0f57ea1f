"""The detector's layers against their formulas, its size and names against those of the published file."""

from __future__ import annotations

import pytest
import torch
from tests.helpers.detector import SMALL, random_state, small_detector
from torch import Tensor
from torch.nn import functional as F

from regions.network import Detector, Sizes

PUBLISHED_VALUES = 65_545_166
PUBLISHED_BLOCKS = {"backbone.res2": 3, "backbone.res3": 4, "backbone.res4": 23, "roi_heads.res5": 3}
STATE = random_state()


def published() -> dict[str, Tensor]:
    with torch.device("meta"):
        return Detector(Sizes()).state_dict()


def test_the_published_network_has_as_many_values_as_its_file_has_bytes_for() -> None:
    values = sum(tensor.numel() for tensor in published().values())
    assert values == PUBLISHED_VALUES and round(4 * values / 1e6, 2) == 262.18


def test_names_are_those_of_detectron2() -> None:
    layers = [
        f"{stage}.{block}.{layer}"
        for stage, blocks in PUBLISHED_BLOCKS.items()
        for block in range(blocks)
        for layer in ("conv1", "conv2", "conv3", *(["shortcut"] if block == 0 else []))
    ]
    norms = ("weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    names = {f"{layer}.{name}" for layer in ("backbone.stem.conv1", *layers) for name in norms}
    with_bias = [
        *(f"proposal_generator.rpn_head.{name}" for name in ("conv", "objectness_logits", "anchor_deltas")),
        *(f"roi_heads.box_predictor.{name}" for name in ("cls_score", "bbox_pred", "fc_attr", "attr_score")),
    ]
    names |= {f"{layer}.{kind}" for layer in with_bias for kind in ("weight", "bias")}
    assert published().keys() == names | {"roi_heads.box_predictor.cls_embedding.weight"}


def test_heads_have_the_published_shapes() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in published().items()}
    expected = {
        "backbone.stem.conv1": (64, 3, 7, 7),
        "backbone.res4.0.shortcut": (1024, 512, 1, 1),
        "proposal_generator.rpn_head.conv": (512, 1024, 3, 3),
        "proposal_generator.rpn_head.objectness_logits": (12, 512, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas": (48, 512, 1, 1),
        "roi_heads.res5.0.conv1": (512, 1024, 1, 1),
        "roi_heads.box_predictor.cls_score": (1601, 2048),
        "roi_heads.box_predictor.bbox_pred": (6400, 2048),
        "roi_heads.box_predictor.cls_embedding": (1601, 256),
        "roi_heads.box_predictor.fc_attr": (512, 2304),
        "roi_heads.box_predictor.attr_score": (401, 512),
    }
    assert {name: shapes[f"{name}.weight"] for name in expected} == expected


def convolve(x: Tensor, name: str, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
    """A convolution and its batch norm by the formula of Ioffe & Szegedy 2015."""
    x = F.conv2d(x, STATE[f"{name}.weight"], None, stride, padding, dilation)
    weight, bias, mean, variance = (
        STATE[f"{name}.norm.{part}"].view(1, -1, 1, 1)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def bottleneck(x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
    out = convolve(x, f"{name}.conv1", stride).relu()
    out = convolve(out, f"{name}.conv2", padding=dilation, dilation=dilation).relu()
    out = convolve(out, f"{name}.conv3")
    changes = f"{name}.shortcut.weight" in STATE
    return (out + (convolve(x, f"{name}.shortcut", stride) if changes else x)).relu()


def pool_up(x: Tensor) -> Tensor:
    """3 x 3 with stride 2, without padding; a last window may reach over the edge."""
    rows, columns = (-(-(size - 3) // 2) + 1 for size in x.shape[2:])
    windows = [
        [x[..., 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].amax((2, 3)) for c in range(columns)]
        for r in range(rows)
    ]
    return torch.stack([torch.stack(row, -1) for row in windows], -2)


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (47, 50)])
def test_the_feature_map_is_that_of_the_formulas(size: tuple[int, int]) -> None:
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = pool_up(convolve(image, "backbone.stem.conv1", stride=2, padding=3).relu())
    for name, blocks in zip(("res2", "res3", "res4"), SMALL.blocks, strict=False):
        for block in range(blocks):
            stride = 2 if block == 0 and name != "res2" else 1
            expected = bottleneck(expected, f"backbone.{name}.{block}", stride)
    found = small_detector().feature_map(image)
    assert found.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "cells"), [((600, 900), (38, 57)), ((600, 1000), (38, 63)), ((600, 600), (38, 38))]
)
def test_a_cell_of_the_feature_map_stands_for_16_pixels(
    size: tuple[int, int], cells: tuple[int, int]
) -> None:
    assert small_detector().feature_map(torch.zeros(1, 3, *size)).shape == (1, 16 * SMALL.width, *cells)


def test_predictions_are_those_of_the_formulas() -> None:
    generator = torch.Generator().manual_seed(2)
    pooled = torch.rand(9, 16 * SMALL.width, 14, 14, generator=generator)
    pooled *= 20 * (torch.rand(9, 16 * SMALL.width, 1, 1, generator=generator) > 0.8)  # of different kinds
    features = pooled
    for block in range(SMALL.blocks[3]):
        features = bottleneck(features, f"roi_heads.res5.{block}", dilation=2)
    assert features.shape[2:] == (14, 14)  # res5 has no stride
    features = features.mean((2, 3))

    def linear(x: Tensor, name: str) -> Tensor:
        return (
            x @ STATE[f"roi_heads.box_predictor.{name}.weight"].T
            + STATE[f"roi_heads.box_predictor.{name}.bias"]
        )

    classes = linear(features, "cls_score")
    embedding = STATE["roi_heads.box_predictor.cls_embedding.weight"][classes.argmax(1)]
    hidden = linear(torch.cat([features, embedding], 1), "fc_attr").relu()
    found = small_detector().predict(pooled)
    assert len(classes.argmax(1).unique()) > 1
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.classes, classes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.attributes, linear(hidden, "attr_score"), rtol=1e-4, atol=1e-4)
    boxes = linear(features, "bbox_pred")
    assert found.deltas.shape == (9, SMALL.classes, 4)
    torch.testing.assert_close(found.deltas[:, 3], boxes[:, 12:16], rtol=1e-4, atol=1e-4)


def test_proposals_are_those_of_the_formulas() -> None:
    maps = torch.rand(1, 16 * SMALL.width, 5, 4, generator=torch.Generator().manual_seed(3))
    name = "proposal_generator.rpn_head."
    hidden = F.conv2d(maps, STATE[f"{name}conv.weight"], STATE[f"{name}conv.bias"], padding=1).relu()
    logits, deltas = small_detector().proposals(maps)
    for found, layer in ((logits, "objectness_logits"), (deltas, "anchor_deltas")):
        weight, bias = STATE[f"{name}{layer}.weight"][:, :, 0, 0], STATE[f"{name}{layer}.bias"]
        expected = torch.einsum("bchw,oc->bohw", hidden, weight) + bias.view(1, -1, 1, 1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
