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
    attend to -> (B, heads, S, d). tuned (B, heads) or (B, 1): only these heads get dropout; None: all do.
    """
    mask = mask[:, None, None, :]
    where = tuned[:, :, None, None] if rate and tuned is not None else None
    if _fused(query, rate):
        thinned = F.scaled_dot_product_attention(query, key, value, mask, rate)
        if where is None:
            return thinned
        # Its kernel knows no dropout in some heads only; twice that kernel is less than all the steps.
        return torch.where(where, thinned, F.scaled_dot_product_attention(query, key, value, mask))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return (dropout(weights, rate, where) if rate else weights) @ value


def _fused(query: Tensor, rate: float) -> bool:
    """Whether PyTorch's one kernel is not the slower way.

    On a CPU it is slow with dropout, and in bf16, where its backward pass takes several times as long as the
    steps.
    """
    return query.device.type != "cpu" or (not rate and query.dtype == torch.float32)
