"""Which rows of a batch run which copy: planned once a forward pass, carried out without wasted work.

The naive formula for a gate g is `g * tuned(x) + (1 - g) * frozen(x)` for all rows: both forwards,
both backwards, both sets of saved activations. With hard gates the same values and the same gradients cost
less:

- the output of a row is that of the copy it chose, and only that copy's graph carries gradients;
- the gradient of its gate is <dL/doutput, tuned(x) - frozen(x)>: it needs the value of the other copy, but no
  graph through it;
- where no gate needs a gradient, the other copy is not run at all.

Shapes: B rows of the batch, G gates, w gates of one pair.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class Rows(NamedTuple):
    """The rows of a batch that chose each copy; together they are all rows."""

    frozen: Tensor  # (n,) indices
    tuned: Tensor  # (B - n,) indices


class Plan:
    """The gates of one forward pass and, for every one of them, where the rows go.

    One transfer from the device (how many rows chose tuned at each gate) serves all pairs: nothing else in a
    forward pass has to wait for the device.
    """

    def __init__(self, gates: Tensor) -> None:
        self.gates = gates
        hard = gates.detach() > 0.5
        # Per gate the frozen rows first, then the tuned ones, each in their order.
        self._order = hard.to(torch.uint8).argsort(dim=0, stable=True).t().contiguous()
        self._tuned: list[int] = hard.sum(0).tolist()

    @property
    def needs_other(self) -> bool:
        """Whether gates get gradients, which need the values of the copies that were not chosen."""
        return torch.is_grad_enabled() and self.gates.requires_grad

    def tuned_share(self, start: int, width: int) -> float:
        """The share of decisions of the gates from `start` on that are for tuned: 0.0 and 1.0 are exact."""
        return sum(self._tuned[start : start + width]) / (width * len(self.gates))

    def rows(self, gate: int) -> Rows:
        """Where the rows go at one gate."""
        frozen = len(self.gates) - self._tuned[gate]
        return Rows(self._order[gate, :frozen], self._order[gate, frozen:])


def split(value: Any, rows: Rows, batch: int) -> tuple[Any, Any]:
    """The frozen and the tuned rows of one argument.

    Tensors whose first dimension is the batch are split; everything else goes whole to both sides.
    """
    if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != batch:
        return value, value
    if value.requires_grad:
        return _Split.apply(value, rows.frozen, rows.tuned)
    return value.index_select(0, rows.frozen), value.index_select(0, rows.tuned)


def merge(gate: Tensor, rows: Rows, frozen: Any, tuned: Any, others: tuple[Any, Any] | None) -> Any:
    """Put the rows of both sides together again; tuples element by element, None stays None.

    frozen (n, ...), tuned (B - n, ...): each side's outputs of the copy it chose. others: each side's outputs
    of the copy it did not choose, for the gradient of gate (B, 1), or None if it needs none.
    """
    if frozen is None:
        return None
    if isinstance(frozen, tuple):
        both = zip(*others, strict=True) if others else [None] * len(frozen)
        return tuple(merge(gate, rows, *parts) for parts in zip(frozen, tuned, both, strict=True))
    return _Merge.apply(gate, frozen, tuned, *rows, *(others or (None, None)))


def with_gate_gradient(gate: Tensor, chosen: Any, difference: Any) -> Any:
    """`chosen` as it is, but with a gradient for the gate: <dL/dchosen, difference>, slice by slice.

    gate (B, w); chosen and difference = tuned - frozen (B, ..., w * n), or tuples of such, or None.
    """
    if chosen is None:
        return None
    if isinstance(chosen, tuple):
        return tuple(with_gate_gradient(gate, *parts) for parts in zip(chosen, difference, strict=True))
    return _GateGradient.apply(gate, chosen, difference)


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
    product = grad.flatten(1, -2) if grad.dim() > 2 else grad.unsqueeze(1)
    other = difference.reshape(product.shape)
    sliced = (len(grad), product.shape[1], width, -1)
    return torch.einsum("bswn,bswn->bw", product.reshape(sliced).float(), other.reshape(sliced).float())


class _Split(torch.autograd.Function):
    """Two index_selects whose gradients are copied into one tensor instead of added into two."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, frozen: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(frozen, tuned)
        return value.index_select(0, frozen), value.index_select(0, tuned)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_frozen: Tensor, grad_tuned: Tensor) -> tuple[Tensor, None, None]:
        return _join(grad_frozen, grad_tuned, *ctx.saved_tensors), None, None


class _Merge(torch.autograd.Function):
    """The inverse of a split, and the gradient of the gate that decided it."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        gate: Tensor,
        frozen: Tensor,
        tuned: Tensor,
        frozen_rows: Tensor,
        tuned_rows: Tensor,
        frozen_other: Tensor | None,
        tuned_other: Tensor | None,
    ) -> Tensor:
        dtype = torch.promote_types(frozen.dtype, tuned.dtype)
        difference = None
        if frozen_other is not None:
            difference = _join(frozen_other - frozen, tuned - tuned_other, frozen_rows, tuned_rows)
        ctx.save_for_backward(frozen_rows, tuned_rows, difference)
        ctx.dtypes = frozen.dtype, tuned.dtype, gate.dtype
        return _join(frozen.to(dtype), tuned.to(dtype), frozen_rows, tuned_rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        frozen_rows, tuned_rows, difference = ctx.saved_tensors
        frozen_dtype, tuned_dtype, gate_dtype = ctx.dtypes
        grad_gate = None if difference is None else _gate_gradient(grad, difference, 1).to(gate_dtype)
        grad_frozen = grad.index_select(0, frozen_rows).to(frozen_dtype)
        grad_tuned = grad.index_select(0, tuned_rows).to(tuned_dtype)
        return grad_gate, grad_frozen, grad_tuned, None, None, None, None


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


def _join(frozen: Tensor, tuned: Tensor, frozen_rows: Tensor, tuned_rows: Tensor) -> Tensor:
    """A tensor with the given rows in their places."""
    joined = frozen.new_empty(len(frozen) + len(tuned), *frozen.shape[1:])
    joined.index_copy_(0, frozen_rows, frozen)
    return joined.index_copy_(0, tuned_rows, tuned)
