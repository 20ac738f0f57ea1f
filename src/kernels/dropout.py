"""Dropout (Srivastava et al., JMLR 2014) that does not cost a CPU as much as the matrix product before it.

PyTorch draws a whole Bernoulli number for every element, and on a CPU that takes as long as a linear layer.
Here one 64-bit number serves four elements, each compared with the rate in steps of 2^-16; and what is kept
for backward is one byte an element and not four. Other devices use PyTorch's, which is one kernel there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 2**16  # of the rate: 0.1 becomes 6554 / 65536


class Dropout(nn.Dropout):
    """`nn.Dropout`; in training on a CPU with masks of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training else input

    def only(self, input: Tensor, where: Tensor) -> Tensor:
        """Dropout where `where` is true; its shape broadcasts to that of the input."""
        return dropout(input, self.p, where) if self.training else input


def dropout(input: Tensor, rate: float, where: Tensor | None = None) -> Tensor:
    """The input with a share of its elements, `rate`, set to 0 and the others scaled to the same mean.

    where: bool, of a shape that broadcasts to that of the input; only there, None: everywhere.
    """
    if input.device.type != "cpu" or rate >= 1 or torch.compiler.is_compiling():
        thinned = F.dropout(input, rate)
        return thinned if where is None else torch.where(where, thinned, input)
    dropped = round(rate * STEPS)
    if not dropped:
        return input
    numbers = _numbers(input.shape)
    scale = STEPS / (STEPS - dropped)  # as the rate that is really drawn: the mean stays exact
    if where is None:
        return input * (numbers >= dropped - STEPS // 2) * scale
    keep = (numbers >= dropped - STEPS // 2).logical_or_(~where)
    return input * keep * torch.where(where, scale, 1.0).to(input.dtype)


def _numbers(shape: torch.Size) -> Tensor:
    """Whole numbers from -STEPS / 2 to STEPS / 2 - 1, each as likely as any other."""
    size = shape.numel()
    numbers = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    return numbers.view(torch.int16)[:size].view(shape)
