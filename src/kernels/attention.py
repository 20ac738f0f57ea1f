"""Attention (Vaswani et al., 2017, arXiv:1706.03762, eq. 1): fused, or step by step where that is faster."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dropout import dropout


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rate: float, tuned: Tensor | None = None
) -> Tensor:
    """softmax(query key' / sqrt(d)) value, with dropout of the given rate on the softmax.

    query (B, heads, S, d), key and value (B, heads, C, d), mask (B, C) true where there is something to
    attend to -> (B, heads, S, d). tuned (B, heads): only these heads get dropout; None: all of them do.
    """
    mask = mask[:, None, None, :]
    if _fused(query, rate, tuned):
        return F.scaled_dot_product_attention(query, key, value, mask, rate)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    thinned = dropout(weights, rate) if rate else weights
    if rate and tuned is not None:
        thinned = torch.where(tuned[:, :, None, None], thinned, weights)
    return thinned @ value


def _fused(query: Tensor, rate: float, tuned: Tensor | None) -> bool:
    """Whether PyTorch's one kernel can do it, and is not the slower way.

    It knows no dropout in some heads only. On a CPU it is slow with dropout, and in bf16, where its backward
    pass takes several times as long as the steps.
    """
    if rate and tuned is not None:
        return False
    return query.device.type != "cpu" or (not rate and query.dtype == torch.float32)
