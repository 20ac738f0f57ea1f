"""How the rows of a batch run in the copies they chose, with exact gradients and without wasted work.

The naive formula for a gate g is `g * tuned(x) + (1 - g) * frozen(x)` for all rows: both forwards, both
backwards, both sets of saved activations. With hard gates the same values and gradients cost less:

- the output of a row is that of the copy it chose, and only that copy's graph carries gradients;
- the gradient of its gate is <dL/doutput, tuned(x) - frozen(x)>: it needs the value of the other copy, but no
  graph through it;
- where no gate needs a gradient, the other copy is not run at all.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from adaptive.gates import Rows


def map_tensors(function: Callable[..., Tensor], *outputs: Any) -> Any:
    """Apply `function` to the tensors that stand at the same place in each of `outputs`.

    Outputs are tensors, None, and tuples (named ones too), lists and mappings of them, such as the output
    classes of transformers; the result is of the same kind. TypeError for anything else.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return function(*outputs)
    if len({type(output) for output in outputs}) == 1:
        if first is None:
            return None
        if isinstance(first, Mapping):
            mapped = copy.copy(first)  # keeps what a subclass has beside its entries
            for name in first:
                mapped[name] = map_tensors(function, *(output[name] for output in outputs))
            return mapped
        if isinstance(first, tuple | list):
            parts = [map_tensors(function, *part) for part in zip(*outputs, strict=True)]
            return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    kinds = ", ".join(type(output).__name__ for output in outputs)
    raise TypeError(f"gates choose between tensors, and tuples, lists and mappings of them, not: {kinds}")


def mix(gate: Tensor, tuned: Any, frozen: Any) -> Any:
    """The naive formula, gate * tuned + (1 - gate) * frozen, slice by slice.

    gate (B, w); the others are outputs with tensors (B, ..., w * n).
    """

    def blend(tuned: Tensor, frozen: Tensor) -> Tensor:
        weight = per_slice(gate.to(tuned.dtype), tuned)
        return weight * tuned + (1 - weight) * frozen

    return map_tensors(blend, tuned, frozen)


def split(value: Any, rows: Rows, batch: int) -> tuple[Any, Any]:
    """The frozen and the tuned rows of one argument.

    Tensors whose first dimension is the batch are split; everything else goes whole to both copies.
    """
    if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != batch:
        return value, value
    if value.requires_grad:
        return _Split.apply(value, rows)
    return value.index_select(0, rows.frozen), value.index_select(0, rows.tuned)


def merge(gate: Tensor, rows: Rows, frozen: Any, tuned: Any, *others: Any) -> Any:
    """Put the rows that each copy ran together again.

    frozen (n, ...), tuned (B - n, ...): the outputs of the rows that chose that copy. others: for the same
    rows the outputs of the copy they did not choose, if gate (B, 1) needs a gradient, else nothing.
    """
    return map_tensors(partial(_Merge.apply, gate, rows), frozen, tuned, *others)


def with_gate_gradient(gate: Tensor, chosen: Any, difference: Any) -> Any:
    """`chosen` as it is, but with a gradient for the gate: <dL/dchosen, difference>, slice by slice.

    gate (B, w); chosen and difference = tuned - frozen are outputs with tensors (B, ..., w * n).
    """
    return map_tensors(partial(_GateGradient.apply, gate), chosen, difference)


def per_slice(gate: Tensor, like: Tensor) -> Tensor:
    """Gates (B, w) spread over the last dimension of `like` (B, ..., w * n): (B, 1, ..., w * n).

    ValueError if that dimension does not fall into w equal slices.
    """
    if like.shape[-1] % gate.shape[1]:
        raise ValueError(f"size {like.shape[-1]} does not fall into {gate.shape[1]} equal slices")
    spread = gate.repeat_interleave(like.shape[-1] // gate.shape[1], dim=1)
    return spread.view(len(gate), *[1] * (like.dim() - 2), -1)


def _gate_gradient(grad: Tensor, difference: Tensor, width: int) -> Tensor:
    """Sum of grad * difference over each of `width` slices of the last dimension: (B, width)."""
    shape = (len(grad), -1, width, grad.shape[-1] // width if grad.dim() > 1 else 1)
    return torch.einsum("bswn,bswn->bw", grad.reshape(shape).float(), difference.reshape(shape).float())


class _Split(torch.autograd.Function):
    """Two index_selects whose gradients are copied into one tensor instead of added into two."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        ctx.rows = rows
        return value.index_select(0, rows.frozen), value.index_select(0, rows.tuned)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_frozen: Tensor, grad_tuned: Tensor) -> tuple[Tensor, None]:
        return _join(grad_frozen, grad_tuned, ctx.rows), None


class _Merge(torch.autograd.Function):
    """The inverse of a split, and the gradient of the gate that decided it."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, gate: Tensor, rows: Rows, frozen: Tensor, tuned: Tensor, *others: Tensor
    ) -> Tensor:
        ctx.rows, ctx.dtypes = rows, (frozen.dtype, tuned.dtype, gate.dtype)
        if others:
            ctx.save_for_backward(_join(others[0] - frozen, tuned - others[1], rows))
        dtype = torch.promote_types(frozen.dtype, tuned.dtype)
        return _join(frozen.to(dtype), tuned.to(dtype), rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        frozen_dtype, tuned_dtype, gate_dtype = ctx.dtypes
        difference = ctx.saved_tensors  # read once, or gradient checkpointing complains
        grad_gate = _gate_gradient(grad, *difference, 1).to(gate_dtype) if difference else None
        grad_frozen = grad.index_select(0, ctx.rows.frozen).to(frozen_dtype)
        grad_tuned = grad.index_select(0, ctx.rows.tuned).to(tuned_dtype)
        return grad_gate, None, grad_frozen, grad_tuned, None, None


class _GateGradient(torch.autograd.Function):
    """The identity on `chosen`, with the straight-through gradient of its gates."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, chosen: Tensor, difference: Tensor) -> Tensor:
        ctx.save_for_backward(difference)
        ctx.width, ctx.dtype = gate.shape[1], gate.dtype
        return chosen.view_as(chosen)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (difference,) = ctx.saved_tensors
        return _gate_gradient(grad, difference, ctx.width).to(ctx.dtype), grad, None


def _join(frozen: Tensor, tuned: Tensor, rows: Rows) -> Tensor:
    """The rows of both copies in their places."""
    joined = frozen.new_empty(len(frozen) + len(tuned), *frozen.shape[1:])
    joined.index_copy_(0, rows.frozen, frozen)
    return joined.index_copy_(0, rows.tuned, tuned)
