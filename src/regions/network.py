"""The Faster R-CNN of bottom-up attention (ResNet-101, C4, with attributes), for inference.

Anderson et al. 2018, arXiv:1707.07998; layers as in the authors' Caffe model, names as detectron2 has them,
which are those of the published weights. What differs from the usual ResNet: the stem pools without padding
and rounds up, the stride of a stage is in its first 1 x 1 convolution, and res5 has no stride but a dilation
of 2. Batch norm is frozen.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regions.proposals import ANCHORS


class Sizes(NamedTuple):
    """How large the network is; the default is the published one, trained on Visual Genome."""

    width: int = 64  # channels of the stem; res4 has 16 times, res5 32 times as many
    blocks: Sequence[int] = (3, 4, 23, 3)  # of res2 to res5
    hidden: int = 512  # channels between the feature map and the proposals
    classes: int = 1600
    attributes: int = 400

    @property
    def features(self) -> int:
        """Of a region."""
        return 32 * self.width


class Predictions(NamedTuple):
    """What the network says of n regions; the last class and the last attribute mean that there is none."""

    features: Tensor  # (n, D)
    classes: Tensor  # (n, classes + 1), logits
    deltas: Tensor  # (n, classes, 4): to the object's box, see `proposals.move`; times `selection.WEIGHTS`
    attributes: Tensor  # (n, attributes + 1), logits, for the likeliest class


class FrozenBatchNorm(nn.Module):
    """Batch norm with the statistics of training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(value)))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)


class Convolution(nn.Conv2d):
    """A convolution without bias and its batch norm; odd kernels keep the size of what they read."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(inputs, outputs, kernel, stride, padding, dilation, bias=False)
        self.norm = FrozenBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut."""

    def __init__(self, inputs: int, middle: int, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = 4 * middle
        self.conv1 = Convolution(inputs, middle, 1, stride)
        self.conv2 = Convolution(middle, middle, 3, dilation=dilation)
        self.conv3 = Convolution(middle, outputs, 1)
        self.shortcut = Convolution(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


def stage(inputs: int, middle: int, blocks: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """Bottlenecks, of which the first changes the size: `inputs` channels become 4 x `middle`."""
    first = Bottleneck(inputs, middle, stride, dilation)
    rest = (Bottleneck(4 * middle, middle, 1, dilation) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class Stem(nn.Module):
    """An image (B, 3, h, w) at a quarter of its size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = Convolution(3, width, 7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), 3, 2, ceil_mode=True)


class ProposalHead(nn.Module):
    """For each cell of the feature map, whether its anchors have an object in them, and where exactly."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.objectness_logits = nn.Conv2d(hidden, ANCHORS, 1)
        self.anchor_deltas = nn.Conv2d(hidden, 4 * ANCHORS, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu_(self.conv(x))
        return self.objectness_logits(hidden), self.anchor_deltas(hidden)


class BoxPredictor(nn.Module):
    """Class, box and attribute of regions from their features (n, D)."""

    def __init__(self, features: int, classes: int, attributes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, classes + 1)
        self.bbox_pred = nn.Linear(features, 4 * classes)
        self.cls_embedding = nn.Embedding(classes + 1, features // 8)
        self.fc_attr = nn.Linear(features + features // 8, features // 4)
        self.attr_score = nn.Linear(features // 4, attributes + 1)

    def forward(self, features: Tensor) -> Predictions:
        classes = self.cls_score(features)
        likeliest = self.cls_embedding(classes.argmax(1))
        attributes = self.attr_score(F.relu_(self.fc_attr(torch.cat([features, likeliest], 1))))
        return Predictions(features, classes, self.bbox_pred(features).unflatten(1, (-1, 4)), attributes)


class Detector(nn.Module):
    """All of it; what lies between its parts, such as choosing proposals, is done by `regions.extract`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, blocks = sizes.width, sizes.blocks
        self.backbone = nn.Sequential()
        self.backbone.add_module("stem", Stem(width))
        self.backbone.add_module("res2", stage(width, width, blocks[0], 1))
        self.backbone.add_module("res3", stage(4 * width, 2 * width, blocks[1], 2))
        self.backbone.add_module("res4", stage(8 * width, 4 * width, blocks[2], 2))
        self.proposal_generator = nn.ModuleDict({"rpn_head": ProposalHead(16 * width, sizes.hidden)})
        self.roi_heads = nn.ModuleDict(
            {
                "res5": stage(16 * width, 8 * width, blocks[3], 1, dilation=2),
                "box_predictor": BoxPredictor(sizes.features, sizes.classes, sizes.attributes),
            }
        )

    def feature_map(self, image: Tensor) -> Tensor:
        """Of an image (1, 3, h, w), BGR less the mean: (1, 16 x width, about h / 16, about w / 16)."""
        return self.backbone(image)

    def proposals(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (1, ANCHORS, rows, columns) and deltas (1, 4 x ANCHORS, rows, columns)."""
        return self.proposal_generator["rpn_head"](feature_map)

    def predict(self, pooled: Tensor) -> Predictions:
        """Of regions as `proposals.roi_pool` cuts them out: (n, 16 x width, POOLED, POOLED)."""
        return self.roi_heads["box_predictor"](self.roi_heads["res5"](pooled).mean((2, 3)))
