"""A frozen and a tuned copy of one module, and a gate that says which of the two an example gets.

Polarity, everywhere in this package: gate 1 = tuned, gate 0 = frozen.
Shapes: B examples, G gates of the whole model, w gates ("width") of one pair.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from adaptive.precision import hold, run_held
from adaptive.routing import Plan, Rows, merge, per_slice, split, with_gate_gradient


class Slots:
    """The plan of the forward pass under way, shared by all pairs of one model.

    Not a module: it holds no parameters and must not appear in a state dict. `dense` makes the pairs compute
    both copies for all examples: the oracle of the tests and the baseline of the benchmark.
    """

    def __init__(self, total: int, *, dense: bool = False) -> None:
        self.total = total
        self.dense = dense
        self.plan: Plan | None = None

    def fill(self, gates: Tensor) -> None:
        """Set the gates (B, G), each 0 or 1, of the coming forward pass.

        They stay until the next call, because gradient checkpointing runs the pairs again in backward.
        """
        if gates.shape[1:] != (self.total,):
            raise ValueError(f"gates have the shape {tuple(gates.shape)}; expected (batch, {self.total})")
        self.plan = Plan(gates)


@runtime_checkable
class Sliced(Protocol):
    """A module whose forward is `combine(project(*args), None, *args)`, slice by slice.

    `project` returns tensors whose last dimension falls into w slices. `combine` has no parameters, and slice
    i of its output depends on slice i of each projection only. So a pair can choose among the projections and
    combine once, instead of combining both and choosing among the results.

    `tuned` (B, w) tells `combine` which slices are the tuned copy's: only they get dropout. None: all.
    """

    def project(self, *args: Any) -> tuple[Tensor, ...]: ...

    def combine(self, projected: tuple[Tensor, ...], tuned: Tensor | None, *args: Any) -> Tensor: ...


class GatedPair(nn.Module):
    """Two copies of `module`, `tuned` and `frozen`, called on the same input.

    With width w, a gate decides over each of w equal slices of the output's last dimension. Tuple outputs are
    gated element by element; None stays None. The frozen copy is the module as it is now: without gradients
    and always in evaluation mode, so that its dropout is off. Its matrices may be held in another type,
    `frozen_dtype`; see `adaptive.precision`.
    """

    def __init__(
        self,
        module: nn.Module,
        slots: Slots,
        start: int,
        width: int = 1,
        frozen_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.tuned = module
        self.frozen = copy.deepcopy(module).requires_grad_(False).eval()
        self.frozen_dtype = frozen_dtype
        if frozen_dtype is not None:
            hold(self.frozen, frozen_dtype)
        self.slots = slots
        self.start = start
        self.width = width

    def train(self, mode: bool = True) -> GatedPair:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plan = self.slots.plan
        if plan is None:
            raise RuntimeError(
                "a gated pair was called before its gates were set; call Adaptive, not its model"
            )
        gate = plan.gates[:, self.start : self.start + self.width]
        if self.slots.dense:
            return mix(gate, self.tuned(*args, **kwargs), self._frozen(*args, **kwargs))
        share = plan.tuned_share(self.start, self.width)
        if share in (0.0, 1.0):
            return self._one_copy(gate, plan.needs_other, share == 1.0, args, kwargs)
        if self.width == 1:
            return self._by_rows(gate, plan.needs_other, plan.rows(self.start), args, kwargs)
        if isinstance(self.tuned, Sliced) and not kwargs:
            return self._by_slices(gate, plan.needs_other, args)
        return mix(gate, self.tuned(*args, **kwargs), self._frozen(*args, **kwargs))

    def _frozen(self, *args: Any, **kwargs: Any) -> Any:
        return run_held(self.frozen, self.frozen_dtype, self.tuned, *args, **kwargs)

    def _one_copy(self, gate: Tensor, needs_other: bool, all_tuned: bool, args: Any, kwargs: Any) -> Any:
        """All examples chose the same copy."""
        chosen, other = (self.tuned, self._frozen) if all_tuned else (self._frozen, self.tuned)
        output = chosen(*args, **kwargs)
        if not needs_other:
            return output
        with torch.no_grad():
            value = other(*args, **kwargs)
            pair = (output, value) if all_tuned else (value, output)
            difference = _subtract(*pair)
        return with_gate_gradient(gate, output, difference)

    def _by_rows(self, gate: Tensor, needs_other: bool, rows: Rows, args: Any, kwargs: Any) -> Any:
        """Each copy runs the examples that chose it, and the others for their value if a gate needs it."""
        batch = len(gate)
        halves = [split(value, rows, batch) for value in args]
        named = {name: split(value, rows, batch) for name, value in kwargs.items()}
        sides = [([half[k] for half in halves], {n: half[k] for n, half in named.items()}) for k in (0, 1)]
        (frozen_args, frozen_kwargs), (tuned_args, tuned_kwargs) = sides
        frozen = self._frozen(*frozen_args, **frozen_kwargs)
        tuned = self.tuned(*tuned_args, **tuned_kwargs)
        others = None
        if needs_other:
            with torch.no_grad():
                others = (
                    self.tuned(*frozen_args, **frozen_kwargs),
                    self._frozen(*tuned_args, **tuned_kwargs),
                )
        return merge(gate, rows, frozen, tuned, others)

    def _by_slices(self, gate: Tensor, needs_other: bool, args: Any) -> Any:
        """Both copies project, the chosen slices are combined once with and once without a graph."""
        tuned = self.tuned.project(*args)
        frozen = run_held(self.frozen.project, self.frozen_dtype, self.tuned, *args)
        choice = gate.detach() > 0.5
        output = self.tuned.combine(_pick(choice, tuned, frozen), choice, *args)
        if not needs_other:
            return output
        with torch.no_grad():
            other = self.tuned.combine(_pick(~choice, tuned, frozen), ~choice, *args)
            difference = torch.where(per_slice(choice, output), output - other, other - output)
        return with_gate_gradient(gate, output, difference)


def mix(gate: Tensor, tuned: Any, frozen: Any) -> Any:
    """The naive formula, gate * tuned + (1 - gate) * frozen, slice by slice.

    gate (B, w); the others (B, ..., w * n), or tuples of such tensors, or None.
    """
    if tuned is None:
        return None
    if isinstance(tuned, tuple):
        return tuple(mix(gate, *outputs) for outputs in zip(tuned, frozen, strict=True))
    values = per_slice(gate.to(tuned.dtype), tuned)
    return values * tuned + (1 - values) * frozen


def _pick(choice: Tensor, tuned: tuple[Tensor, ...], frozen: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tuned slices where choice (B, w) is true, else the frozen ones."""
    return tuple(torch.where(per_slice(choice, t), t, f) for t, f in zip(tuned, frozen, strict=True))


def _subtract(tuned: Any, frozen: Any) -> Any:
    if tuned is None:
        return None
    if isinstance(tuned, tuple):
        return tuple(map(_subtract, tuned, frozen))
    return tuned - frozen
