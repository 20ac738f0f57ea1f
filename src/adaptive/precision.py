"""A frozen copy in half the memory: its matrices in a 16-bit type, its arithmetic that of autocast to it.

So where autocast to that type is on anyway, no number changes: autocast would round the same matrices at each
call. Vectors (biases, layer norms) stay as they are: they weigh next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def hold(module: nn.Module, dtype: torch.dtype) -> None:
    """Turn the floating-point matrices of a module, one by one and in place, into another type."""
    for parameter in module.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def run_held(
    call: Callable[..., Any], dtype: torch.dtype | None, like: nn.Module, *args: Any, **named: Any
) -> Any:
    """The output of `call`, whose matrices are held in `dtype`, in the type in which `like` would give it.

    Where autocast is on, it decides about the types of both; else `like` gives the type of its weights.
    """
    weight = next(like.parameters(), None)
    if dtype is None or weight is None or torch.is_autocast_enabled(weight.device.type):
        return call(*args, **named)
    with torch.autocast(weight.device.type, dtype):
        output = call(*args, **named)
    return _cast(output, dtype, weight.dtype)


def _cast(value: Any, old: torch.dtype, new: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(part, old, new) for part in value)
    return value.to(new) if isinstance(value, Tensor) and value.dtype == old else value
