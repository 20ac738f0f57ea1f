"""Low-rank tuned copies (LoRA, Hu et al. 2022, arXiv:2106.09685) with a gate: y = W x + b + g scale B A x.

The tuned copy of a Linear is the frozen one plus a product of two thin matrices, so that one pass serves
both: a gate of 0 leaves the frozen output as it is, bit for bit, and a gate of 1 is the Linear with the
weight W + scale B A. There is nothing to route, and shapes do not depend on the gates.

The gate's gradient is the derivative of this very formula in g, the sum over the Linears of a unit of
<dL/dy, scale B A x>. That of `GatedPair` is <dL/dz, tuned(x) - frozen(x)> for the output z of the whole unit:
for a unit of several layers another estimator of what a change of the gate would do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from adaptive.both import Both
from adaptive.gates import Gates
from adaptive.layout import Layout, rows_back, rows_first
from adaptive.pair import InPlaceOf, Sliced
from adaptive.routing import per_slice, reshaped
from adaptive.storage import call_in_dtype


class LowRank(InPlaceOf):
    """A frozen Linear and a low-rank update of it, taken where the gates are 1.

    With width w, a gate decides over each of w equal slices of the output's last dimension. gates None: the
    update is always taken. `down` (r, in) starts random and `up` (out, r) at zero, so that training starts
    from the pre-trained function.
    """

    SHOWN = "frozen"
    COPIES = ("frozen",)
    OWN = frozenset({*COPIES, "down", "up", "scale", "gates", "start", "width", "layout"})

    def __init__(
        self, frozen: nn.Linear, rank: int, scale: float, gates: Gates | None, start: int = 0, width: int = 1
    ) -> None:
        super().__init__()
        if frozen.out_features % width:
            raise ValueError(f"size {frozen.out_features} does not fall into {width} equal slices")
        where = {"device": frozen.weight.device, "dtype": frozen.weight.dtype}
        self.down = nn.Parameter(torch.empty(rank, frozen.in_features, **where))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank, **where))
        nn.init.normal_(self.down, std=frozen.in_features**-0.5)
        self.frozen = frozen
        self.scale = scale
        self.gates = gates
        self.start = start
        self.width = width
        if gates is not None:
            gates.announce(start, width)
        self.layout = Layout(needs_examples=True)
        self._merged: tuple[Any, nn.Module] | None = None

    def train(self, mode: bool = True) -> LowRank:
        self._merged = None  # it would be out of date, and takes memory
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> LowRank:
        self._merged = None  # a tensor's version does not tell that it went to another type or device
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_merged": None}

    def forward(self, input: Tensor) -> Tensor:
        """(B, ..., in) -> (B, ..., out)."""
        (output,) = self.together(input, [self])
        return output

    @staticmethod
    def together(input: Tensor, layers: Sequence[LowRank]) -> tuple[Tensor, ...]:
        """The outputs of several layers for the same input; those of one unit share a product of `down`."""
        first = layers[0]
        if not all(isinstance(layer, LowRank) and layer._unit == first._unit for layer in layers):
            return tuple(layer(input) for layer in layers)
        if first.gates is not None and first.gates.probe is not None:
            return tuple(layer._probed(input) for layer in layers)
        choice = None if first.training or torch.is_grad_enabled() else first._constant_choice()
        if choice is not None:
            return tuple(layer._call_merged(input, choice) for layer in layers)
        if torch.is_grad_enabled():
            for layer in layers:  # a step may follow, and fused ones leave no trace in a tensor's version
                layer._merged = None
        gate = None if first.gates is None else first.gates.of(first.start, first.width)
        if gate is None or first.layout.learned is None:
            return _product(layers, input, gate)
        batch = gate.shape[0]  # len() would become a constant of a traced graph
        where = first.layout.argument(path_of(input), input, batch, first.gates.apart)
        rows = rows_first(input, where, batch)
        return tuple(rows_back(output, where) for output in _product(layers, rows, gate))

    def call_frozen(self, input: Tensor) -> Tensor:
        return call_in_dtype(self.frozen, self.frozen, self, input)

    def _probed(self, input: Tensor) -> Tensor:
        self.gates.probe.note(self.layout, path_of(input), input)
        return self.call_frozen(input)

    def _written_out(self, input: Tensor, gate: Tensor | None) -> Tensor:
        """The formula as it stands, for a graph, in which sizes stay open."""
        dtype = self.up.dtype
        update = functional.linear(functional.linear(input.to(dtype), self.down), self.up)
        if gate is not None:
            slices = update.unflatten(-1, (self.width, -1))
            ones = [1] * (slices.dim() - 3)
            update = (slices * gate.to(dtype).view(-1, *ones, self.width, 1)).flatten(-2)
        frozen = self.call_frozen(input)
        return frozen + self.scale * update.to(frozen.dtype)

    @property
    def _unit(self) -> tuple[Any, ...]:
        """What layers have in common that can go through one product."""
        return self.gates, self.start, self.width, self.scale, len(self.down)

    def _constant_choice(self) -> tuple[float, ...] | None:
        """The gates of the slices, if these are the same in all examples of the batch."""
        if self.gates is None:
            return (1.0,)
        return None if torch.compiler.is_compiling() else self.gates.constant(self.start, self.width)

    def _call_merged(self, input: Tensor, gates: tuple[float, ...]) -> Tensor:
        """One product with a weight W + g scale B A, slice by slice. It is kept until training goes on."""
        if not any(gates):
            return self.call_frozen(input)
        weight = self.frozen.weight
        key = (gates, *((id(tensor), tensor._version) for tensor in (weight, self.down, self.up)))
        if self._merged is None or self._merged[0] != key:
            slices = self.up.new_tensor(gates).repeat_interleave(len(weight) // len(gates))
            update = self.scale * (self.up * slices[:, None]) @ self.down
            linear = copy.copy(self.frozen)
            merged = nn.Parameter((weight + update).to(weight.dtype), requires_grad=False)
            linear._parameters = {**self.frozen._parameters, "weight": merged}
            self._merged = key, linear
        return call_in_dtype(self._merged[1], self._merged[1], self, input)


def path_of(input: Tensor) -> tuple[str, int]:
    """Where a layout knows the input of a layer: a layer may be called with tensors of several ranks."""
    return "in", input.dim()


class Apart:
    """The forward pass of a module with low-rank copies in it, which all have the same gate.

    In evaluation on a CPU the examples that chose the tuned copy run with merged weights and the others with
    the frozen ones, instead of all with the thin products, for which a CPU waits for its memory. A GPU would
    wait for twice as many launches. With `Gates.dense` all examples run together everywhere.
    """

    def __init__(self, module: nn.Module, gates: Gates, start: int) -> None:
        self.module = module
        self.gates = gates
        self.start = start
        self.layout = Layout()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward, gates = partial(type(self.module).forward, self.module), self.gates
        if gates.probe is not None:
            return gates.probe.call(self, forward, self.module, args, kwargs)
        compiling = torch.compiler.is_compiling()
        if compiling or self.module.training or torch.is_grad_enabled() or gates.dense:
            return forward(*args, **kwargs)
        gate = gates.of(self.start, 1)
        if gate.device.type != "cpu" or gates.constant(self.start, 1):
            return forward(*args, **kwargs)
        calls = partial(self._call, forward, False), partial(self._call, forward, True)
        both = Both((self.module, self.module), calls, self.layout, gates)
        return both.by_rows(gate, gates.rows(self.start), args, kwargs)

    def _call(self, forward: Callable, tuned: bool, *args: Any, **kwargs: Any) -> Any:
        with self.gates.all_tuned(tuned):
            return forward(*args, **kwargs)


class GatedDropout(nn.Module):
    """Dropout of the examples that run tuned."""

    def __init__(self, dropout: nn.Dropout, gates: Gates, start: int, width: int) -> None:
        super().__init__()
        self.dropout = dropout
        self.gates = gates
        self.start = start
        self.width = width
        self.layout = Layout()

    @property
    def p(self) -> float:
        """The rate for a module that reads it to drop by itself, in all examples alike: 0."""
        return 0.0

    @p.setter
    def p(self, rate: float) -> None:
        self.dropout.p = rate

    def forward(self, input: Tensor) -> Tensor:
        """(B, ..., w * n) -> the same shape."""
        if self.gates.probe is not None:
            self.gates.probe.note(self.layout, path_of(input), input)
        if not self.training:
            return input
        if self.layout.learned is None:
            return self._drop(input)
        batch = self.gates.tuned(self.start, self.width).shape[0]
        where = self.layout.argument(path_of(input), input, batch, self.gates.apart)
        if where is None and input.shape[:1] != (1,):
            return input  # what all examples share is of none that runs tuned
        return rows_back(self._drop(rows_first(input, where, batch)), where)

    def _drop(self, input: Tensor) -> Tensor:
        tuned = per_slice(self.gates.tuned(self.start, self.width), input)
        if isinstance(self.dropout, Selective):
            return self.dropout.only(input, tuned)
        return torch.where(tuned, self.dropout(input), input)


@runtime_checkable
class Selective(Protocol):
    """A dropout that can do without a mask for what is not dropped."""

    def only(self, input: Tensor, where: Tensor) -> Tensor:
        """Dropout where `where`, of a shape that broadcasts to that of the input, is true."""
        ...


class GatedSlices(nn.Module):
    """A `Sliced` module whose dropout is that of the slices that run tuned."""

    def __init__(self, sliced: Sliced, gates: Gates, start: int, width: int) -> None:
        super().__init__()
        self.sliced = sliced
        self.gates = gates
        self.start = start
        self.width = width

    def forward(self, *args: Any) -> Tensor:
        tuned = self.gates.tuned(self.start, self.width) if self.training else None
        return self.sliced.combine(self.sliced.project(*args), tuned, *args)


def _product(layers: Sequence[LowRank], input: Tensor, gate: Tensor | None) -> tuple[Tensor, ...]:
    """The outputs of layers of one unit, from x (B, ..., in) and gates (B, w) or None."""
    if torch.compiler.is_exporting():
        return tuple(layer._written_out(input, gate) for layer in layers)
    factors = [factor for layer in layers for factor in (layer.down, layer.up)]
    return _LowRankProduct.apply(layers, input, gate, *factors)


class _LowRankProduct(torch.autograd.Function):
    """y_i = W_i x + b_i + g scale B_i A_i x for n layers of one unit, in few passes over x and y.

    Inputs: the layers; x (B, ..., in); gates (B, w) or None; A_1 (r, in), B_1 (out, r), A_2, B_2, ...
    With w = 1 a gate weighs the numbers A x of its example, else the rows of B that make its slice.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        layers: Sequence[LowRank],
        input: Tensor,
        gate: Tensor | None,
        first: Tensor,
        *others: Tensor,
    ) -> tuple[Tensor, ...]:
        # `first` apart, as a compiler without autograd leaves out ctx where the numbers of arguments say so.
        factors = first, *others
        frozen = [layer.frozen for layer in layers]
        fused = all(isinstance(linear, OwnProduct) and linear.fuses_sums(input) for linear in frozen)
        # Either the update is added to the frozen output, or that is added to the bias and the update.
        starts = [linear.bias for linear in frozen] if fused else [at.call_frozen(input) for at in layers]
        dtype = starts[0].dtype
        downs, ups = factors[::2], [up.to(dtype) for up in factors[1::2]]
        down = (torch.cat(downs) if len(downs) > 1 else downs[0]).to(dtype)
        # Without a -1 for the middle, as the batch may be empty.
        shape = input.shape[0], math.prod(input.shape[1:-1]), input.shape[-1]
        rows = input.reshape(shape).to(dtype)  # (B, S, in)
        gate = None if gate is None else gate.to(dtype)
        hidden = rows @ down.t()  # (B, S, n r)
        gated = _gate_rows(hidden, gate)
        outputs, parts = [], gated.split(len(down) // len(downs), -1)
        for linear, start, part, up in zip(frozen, starts, parts, ups, strict=True):
            start = start if fused else start.view(-1, len(up))
            total = _add_update(start, part, up, gate, layers[0].scale)
            total = linear.onto(total, rows.flatten(0, 1)) if fused else total
            outputs.append(reshaped(total, (*input.shape[:-1], len(up))))
        ctx.layers, ctx.shape, ctx.on_cpu = layers, input.shape, input.device.type == "cpu"
        ctx.save_for_backward(rows, hidden, gated, gate, down, *ups)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, gated, gate, down, *ups = ctx.saved_tensors
        layers, scale, sliced = ctx.layers, ctx.layers[0].scale, _is_sliced(gate)
        exact = torch.promote_types(hidden.dtype, torch.float32)  # in which gates' gradients are added up
        parts = gated.split(len(down) // len(ups), -1)
        grads = tuple(grad.reshape(*rows.shape[:2], len(up)) for grad, up in zip(grads, ups, strict=True))
        grad_gate, grad_parts, grad_ups = None, [], []
        for grad, up, part in zip(grads, ups, parts, strict=True):
            if sliced:
                grad_parts.append(torch.baddbmm(part, grad, _gate_slices(up, gate), beta=0, alpha=scale))
                by_slice = torch.bmm(grad.mT, part).mul_(scale).unflatten(1, (gate.shape[1], -1))
                grad_ups.append((by_slice * gate[:, :, None, None]).sum(0).view_as(up))
                of_layer = (by_slice * up.view(*by_slice.shape[1:])).sum((2, 3), dtype=exact)
                grad_gate = of_layer if grad_gate is None else grad_gate + of_layer
            else:
                flat, flat_part = grad.flatten(0, 1), part.flatten(0, 1)
                if ctx.on_cpu:  # along its columns it is read in half the time
                    up = up.t().contiguous().t()
                grad_parts.append(torch.addmm(flat_part, flat, up, beta=0, alpha=scale).view_as(part))
                # This way round a CPU takes half the time.
                grad_ups.append(torch.addmm(up.t(), flat_part.t(), flat, beta=0, alpha=scale).t())
        grad_hidden = torch.cat(grad_parts, -1) if len(grad_parts) > 1 else grad_parts[0]
        if gate is not None and not sliced:
            grad_gate = _row_products(grad_hidden, hidden, exact)
            grad_hidden = _gate_rows(grad_hidden, gate)
        flat_hidden, grad_rows = grad_hidden.flatten(0, 1), None
        grad_downs = (flat_hidden.t() @ rows.flatten(0, 1)).split(len(down) // len(ups))
        if ctx.needs_input_grad[1]:
            for layer, grad in zip(layers, grads, strict=True):
                grad_rows = _input_gradient(layer.frozen, grad.flatten(0, 1), grad_rows)
            grad_rows = grad_rows.addmm_(flat_hidden, down).view(ctx.shape)
        factors = [grad for pair in zip(grad_downs, grad_ups, strict=True) for grad in pair]
        return None, grad_rows, grad_gate, *factors


def _add_update(start: Tensor, part: Tensor, up: Tensor, gate: Tensor | None, scale: float) -> Tensor:
    """start (N, out) + scale part (B, S, r) up.T, with gates of slices; in place, but for a bias (out,)."""
    if _is_sliced(gate):
        start = start.expand(part.shape[0] * part.shape[1], -1) if start.dim() == 1 else start
        weights = _gate_slices(up, gate).mT
        return torch.baddbmm(start.view(*part.shape[:2], len(up)), part, weights, alpha=scale).flatten(0, 1)
    rows = part.flatten(0, 1)
    if start.dim() == 1:
        return torch.addmm(start, rows, up.t(), alpha=scale)
    return start.addmm_(rows, up.t(), alpha=scale)


def _row_products(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """The inner products of the rows of a and b (B, ...), added up in `dtype`: (B, 1)."""
    if a.dtype != dtype:
        return (a * b).flatten(1).sum(1, keepdim=True, dtype=dtype)
    return torch.bmm(a.flatten(1)[:, None], b.flatten(1)[:, :, None])[:, 0]


def _is_sliced(gate: Tensor | None) -> bool:
    return gate is not None and gate.shape[1] > 1


def _gate_rows(hidden: Tensor, gate: Tensor | None) -> Tensor:
    """(B, S, r) weighed by gates (B, 1), one an example; as it is where these are None or of slices."""
    return hidden if gate is None or _is_sliced(gate) else hidden * gate[:, :, None]


def _gate_slices(up: Tensor, gate: Tensor) -> Tensor:
    """(out, r) for each example, the rows of each of w slices weighed by its gate (B, w): (B, out, r)."""
    return (up.view(gate.shape[1], -1, up.shape[1]) * gate[:, :, None, None]).flatten(1, 2)


@runtime_checkable
class OwnProduct(Protocol):
    """A Linear that knows faster products than PyTorch's."""

    bias: Tensor | None

    def fuses_sums(self, input: Tensor) -> bool:
        """Whether `onto` is faster than adding to the output of `forward`; else it is not called."""
        ...

    def onto(self, total: Tensor, input: Tensor) -> Tensor:
        """total (N, out) + input (N, in) @ weight.T: bit for bit the output if `total` is the bias."""
        ...

    def input_gradient(self, grad: Tensor, total: Tensor | None) -> Tensor:
        """grad (N, out) @ weight, added to total (N, in) if there is one."""
        ...


def _input_gradient(frozen: nn.Linear, grad: Tensor, total: Tensor | None) -> Tensor:
    """grad (N, out) @ weight in the type of `grad`, added in place to total (N, in) if there is one."""
    weight = frozen.weight
    if weight.dtype != grad.dtype == torch.float32:
        # What is stored in 16 bits is multiplied in 16 bits, as in the forward pass; see adaptive.storage.
        product = (grad.to(weight.dtype) @ weight).to(grad.dtype)
        return product if total is None else total.add_(product)
    if isinstance(frozen, OwnProduct):
        return frozen.input_gradient(grad, total)
    weight = weight.to(grad.dtype)
    return grad @ weight if total is None else total.addmm_(grad, weight)
