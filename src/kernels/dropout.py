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


def dropout(input: Tensor, rate: float) -> Tensor:
    """The input with a share of its elements, `rate`, set to 0 and the others scaled to the same mean."""
    if input.device.type != "cpu" or rate >= 1:
        return F.dropout(input, rate)
    dropped = round(rate * STEPS)
    if not dropped:
        return input
    # As the rate that is really drawn: the mean stays exact.
    return input * _keep(input.shape, dropped) * (STEPS / (STEPS - dropped))


def _keep(shape: torch.Size, dropped: int) -> Tensor:
    """True with a probability of 1 - dropped / STEPS."""
    size = shape.numel()
    numbers = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    return (numbers.view(torch.int16)[:size] >= dropped - STEPS // 2).view(shape)
