"""How the rows of a batch run in the copies they chose, with exact gradients and without wasted work.

The naive formula for a gate g is `g * tuned(x) + (1 - g) * frozen(x)` for all rows: both forwards, both
backwards, both sets of saved activations. With hard gates the same values and gradients cost less:

- the output of a row is that of the copy it chose, and only that copy's graph carries gradients;
- the gradient of its gate is <dL/doutput, tuned(x) - frozen(x)>: it needs the value of the other copy, but no
  graph through it;
- where no gate needs a gradient, the other copy is not run at all.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from adaptive.gates import Rows
from adaptive.layout import FIRST, Examples, map_leaves, rows_back, rows_first


def map_tensors(function: Callable[..., Tensor], *outputs: Any) -> Any:
    """Apply `function` to the tensors that stand at the same place in each of `outputs`.

    Outputs are tensors, None, and tuples (named ones too), lists and mappings of them, such as the output
    classes of transformers; the result is of the same kind. TypeError for anything else.
    """

    def leaf(path: Any, *leaves: Any) -> Any:
        if all(isinstance(leaf, Tensor) for leaf in leaves):
            return function(*leaves)
        if all(leaf is None for leaf in leaves):
            return None
        kinds = ", ".join(type(leaf).__name__ for leaf in leaves)
        raise TypeError(f"gates choose between tensors, and tuples, lists and mappings of them, not: {kinds}")

    return map_leaves(leaf, *outputs)


def mix_tensors(gate: Tensor, tuned: Tensor, frozen: Tensor) -> Tensor:
    """The naive formula, gate * tuned + (1 - gate) * frozen, slice by slice; gates need not be hard.

    gate (B, w); the others are outputs (B, ..., w * n). Whole numbers are not mixed: they are those of the
    tuned copy where its gate is above 1/2.
    """
    if tuned.is_floating_point():
        return _Mix.apply(gate, tuned, frozen)
    return pick(gate.detach() > 0.5, tuned, frozen)


def pick(choice: Tensor, tuned: Tensor, frozen: Tensor) -> Tensor:
    """The same for hard gates, choice (B, w), bool, and without a gradient for them."""
    tuned_slices, frozen_slices = (_slices(value, choice.shape[1]) for value in (tuned, frozen))
    return torch.where(choice[:, None, :, None], tuned_slices, frozen_slices).reshape(tuned.shape)


def split(value: Any, rows: Rows, batch: int) -> tuple[Any, Any]:
    """The frozen and the tuned rows of one argument.

    Tensors whose first dimension is the batch are split; everything else goes whole to both copies.
    """
    if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != batch:
        return value, value
    return split_tensor(value, rows, FIRST)


def split_tensor(value: Tensor, rows: Rows, where: Examples) -> tuple[Tensor, Tensor]:
    """The frozen and the tuned rows of a tensor whose examples are `where`."""
    if where != FIRST:
        first = rows_first(value, where, len(rows.order))
        frozen, tuned = (rows_back(half, where) for half in split_tensor(first, rows, FIRST))
        return frozen, tuned
    if value.requires_grad:
        return _Split.apply(value, rows)
    is_mask = value.dim() <= 2 and not value.is_floating_point()
    return (rows.sort(value) if is_mask else value.index_select(0, rows.order)).split(rows.sizes)


def merge(gate: Tensor, rows: Rows, frozen: Any, tuned: Any, *others: Any) -> Any:
    """Put the rows that each copy ran together again.

    frozen (n, ...), tuned (B - n, ...): the outputs of the rows that chose that copy. others: for the same
    rows the outputs of the copy they did not choose, if gate (B, 1) needs a gradient, else nothing.
    """
    return map_tensors(partial(merge_tensors, gate, rows), frozen, tuned, *others)


def merge_tensors(gate: Tensor, rows: Rows, frozen: Tensor, tuned: Tensor, *others: Tensor) -> Tensor:
    """The same for tensors."""
    if not frozen.is_floating_point():
        return _join(frozen, tuned, rows)
    return _Merge.apply(gate, rows, frozen, tuned, *others)


def with_gate_gradient(gate: Tensor, chosen: Tensor, tuned: Tensor, frozen: Tensor) -> Tensor:
    """`chosen` as it is, but with a gradient for the gate: <dL/dchosen, tuned - frozen>, slice by slice.

    gate (B, w); the others (B, ..., w * n).
    """
    if not chosen.is_floating_point():
        return chosen
    with torch.no_grad():
        difference = tuned - frozen
    return _GateGradient.apply(gate, chosen, difference)


def per_slice(gate: Tensor, like: Tensor) -> Tensor:
    """Gates (B, w) spread over the last dimension of `like` (B, ..., w * n): (B, 1, ..., w * n).

    ValueError if that dimension does not fall into w equal slices.
    """
    if like.shape[-1] % gate.shape[1]:
        raise ValueError(f"size {like.shape[-1]} does not fall into {gate.shape[1]} equal slices")
    spread = gate.repeat_interleave(like.shape[-1] // gate.shape[1], dim=1)
    return spread.view(len(gate), *[1] * (like.dim() - 2), -1)


def reshaped(result: Tensor, shape: Sequence[int]) -> Tensor:
    """The result of a custom function in another shape, without a copy, for callers that write into it.

    Autograd forbids that for views made inside such a function. `result` itself must not be used again.
    """
    return torch.ops.aten._unsafe_view(result, shape)


def _slices(value: Tensor, width: int) -> Tensor:
    """(B, ..., w * n) -> (B, S, w, n). ValueError if the last dimension has no w equal slices."""
    # Without a -1, as the batch may be empty; len() and numel() would become constants of a traced graph.
    batch, *middle, size = value.shape if value.dim() > 1 else (*value.shape, 1)
    if width == 1:
        return value.reshape(batch, 1, 1, math.prod(middle) * size)
    if value.dim() < 2 or size % width:
        raise ValueError(f"size {size} does not fall into {width} equal slices")
    return value.reshape(batch, math.prod(middle), width, size // width)


def _gate_gradient(grad: Tensor, difference: Tensor, width: int) -> Tensor:
    """Sum of grad * difference over each of `width` slices of the last dimension: (B, width)."""
    grad, difference = (_slices(value, width).float() for value in (grad, difference))
    if width == 1:
        return torch.bmm(grad.flatten(1, 2), difference.flatten(1, 2).mT)[:, 0]
    return (grad * difference).sum((1, 3))


class _Split(torch.autograd.Function):
    """Two index_selects whose gradients are copied into one tensor instead of added into two.

    Two and not one, with its halves as views: what the frozen copy does not keep is then freed.
    """

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
        dtype = torch.promote_types(frozen.dtype, tuned.dtype)
        if others:
            difference = frozen.new_empty(len(gate), *frozen.shape[1:], dtype=dtype)  # in the order of `rows`
            of_frozen, of_tuned = difference.split(rows.sizes)
            torch.sub(others[0], frozen, out=of_frozen)
            torch.sub(tuned, others[1], out=of_tuned)
            ctx.save_for_backward(difference)
        return _join(frozen.to(dtype), tuned.to(dtype), rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        frozen_dtype, tuned_dtype, gate_dtype = ctx.dtypes
        difference = ctx.saved_tensors  # read once, or gradient checkpointing complains
        grad = grad.index_select(0, ctx.rows.order)
        grad_gate = None
        if difference:
            of_rows = _gate_gradient(grad, *difference, 1).to(gate_dtype)
            grad_gate = torch.empty_like(of_rows).index_copy_(0, ctx.rows.order, of_rows)
        grad_frozen, grad_tuned = grad.split(ctx.rows.sizes)
        return grad_gate, None, grad_frozen.to(frozen_dtype), grad_tuned.to(tuned_dtype), None, None


class _Mix(torch.autograd.Function):
    """Linear interpolation from frozen to tuned, exact at both ends."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, tuned: Tensor, frozen: Tensor) -> Tensor:
        ctx.dtypes = gate.dtype, tuned.dtype, frozen.dtype
        dtype = torch.promote_types(tuned.dtype, frozen.dtype)
        weight = gate.to(dtype)[:, None, :, None]
        tuned, frozen = tuned.to(dtype), frozen.to(dtype)
        ctx.save_for_backward(weight, *([tuned - frozen] if ctx.needs_input_grad[0] else []))
        slices = (_slices(value, gate.shape[1]) for value in (frozen, tuned))
        return reshaped(torch.lerp(*slices, weight), tuned.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        weight, *difference = ctx.saved_tensors
        gate_dtype, tuned_dtype, frozen_dtype = ctx.dtypes
        width = weight.shape[2]
        grad_gate = _gate_gradient(grad, *difference, width).to(gate_dtype) if difference else None
        grad_tuned = (_slices(grad, width) * weight).reshape(grad.shape)
        return grad_gate, grad_tuned.to(tuned_dtype), (grad - grad_tuned).to(frozen_dtype)


class _GateGradient(torch.autograd.Function):
    """The identity on `chosen`, with the straight-through gradient of its gates."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, chosen: Tensor, difference: Tensor) -> Tensor:
        ctx.save_for_backward(difference)
        ctx.width, ctx.dtype = gate.shape[1], gate.dtype
        return chosen.clone()  # a module may go on to write into it, which autograd forbids for views

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
