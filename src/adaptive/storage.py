"""How frozen weights fit into half the memory.

Frozen matrices may be stored in a 16-bit type; their arithmetic is then that of autocast to that type. So
where autocast to it is on anyway, no number changes: autocast would round the same matrices at each call.
Vectors (biases, layer norms) stay as they are: they weigh next to nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.layout import map_leaves


def cast_matrices(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the floating-point matrices of a module in place, one by one."""
    for matrix in _matrices(module):
        matrix.data = matrix.data.to(dtype)


def call_in_dtype(call: Callable, module: nn.Module, like: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The output of `call`, a method of `module`, in the type in which `like` would return it.

    Where autocast is on, it decides about both. Else, if the matrices of `module` are stored in 16 bits and
    those of `like` in more, the call runs under autocast to that type and its output is cast back.
    """
    matrix = next(_matrices(module), None)
    if matrix is None or matrix.dtype == torch.float32 or torch.is_autocast_enabled(matrix.device.type):
        return call(*args, **kwargs)
    target = next(_matrices(like), matrix).dtype
    with torch.autocast(matrix.device.type, matrix.dtype, enabled=matrix.dtype != target):
        output = call(*args, **kwargs)

    def cast_back(path: Any, value: Any) -> Any:
        return value.to(target) if isinstance(value, Tensor) and value.dtype == matrix.dtype else value

    return map_leaves(cast_back, output)


def _matrices(module: nn.Module) -> Iterator[Tensor]:
    return (p for p in module.parameters() if p.dim() > 1 and p.is_floating_point())
