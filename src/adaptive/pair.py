"""A frozen and a tuned copy of one module, and gates that say which of the two an example gets."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from adaptive.gates import Gates
from adaptive.routing import map_tensors, merge, mix, pick, split_arguments, with_gate_gradient
from adaptive.storage import call_in_dtype


@runtime_checkable
class Sliced(Protocol):
    """A module whose forward is `combine(project(*args), None, *args)`, slice by slice.

    `project` returns tensors whose last dimension falls into w slices. `combine` has no parameters, and slice
    i of its output depends on slice i of each projection only. So a pair can choose among the projections and
    combine once, instead of combining both and choosing among the results. Where a gate needs a gradient it
    does that, for then it needs both results.

    `tuned` (B, w) tells `combine` which slices are the tuned copy's: only they get dropout. None: all.
    """

    def project(self, *args: Any) -> tuple[Tensor, ...]: ...

    def combine(self, projected: tuple[Tensor, ...], tuned: Tensor | None, *args: Any) -> Tensor: ...


class GatedPair(nn.Module):
    """Two copies of a module, called on the same input, with gates that choose between their outputs.

    With width w, a gate decides over each of w equal slices of the output's last dimension. The frozen copy
    is the pre-trained function: without gradients and always in evaluation mode, so that its dropout is off.
    """

    def __init__(self, frozen: nn.Module, tuned: nn.Module, gates: Gates, start: int, width: int = 1) -> None:
        super().__init__()
        self.tuned = tuned
        self.frozen = frozen.requires_grad_(False).eval()
        self.gates = gates
        self.start = start
        self.width = width
        gates.announce(start, width)

    def train(self, mode: bool = True) -> GatedPair:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        gate = self.gates.of(self.start, self.width)
        if not self.gates.dense:
            share = self.gates.share_tuned(self.start, self.width)
            if share in (0.0, 1.0):
                return self._one_copy(gate, share == 1.0, args, kwargs)
            if self.gates.choose and self.width == 1:
                return self._by_rows(gate, args, kwargs)
            if self.gates.choose and isinstance(self.tuned, Sliced) and not kwargs and not gate.requires_grad:
                return self._by_slices(args)
        return mix(gate, self.tuned(*args, **kwargs), self._frozen(*args, **kwargs))

    def _frozen(self, *args: Any, **kwargs: Any) -> Any:
        return call_in_dtype(self.frozen, self.frozen, self.tuned, *args, **kwargs)

    def _one_copy(self, gate: Tensor, all_tuned: bool, args: Any, kwargs: Any) -> Any:
        """All examples chose the same copy."""
        chosen, other = (self.tuned, self._frozen) if all_tuned else (self._frozen, self.tuned)
        output = chosen(*args, **kwargs)
        if not gate.requires_grad:
            return output
        with torch.no_grad():
            values = output, other(*args, **kwargs)
            difference = map_tensors(torch.sub, *(values if all_tuned else reversed(values)))
        return with_gate_gradient(gate, output, difference)

    def _by_rows(self, gate: Tensor, args: Any, kwargs: Any) -> Any:
        """Each copy runs the examples that chose it, and the others for their value if a gate needs it."""
        rows = self.gates.rows(self.start)
        of_frozen, of_tuned = split_arguments(rows, len(gate), args, kwargs)
        frozen, tuned = self._frozen(*of_frozen[0], **of_frozen[1]), self.tuned(*of_tuned[0], **of_tuned[1])
        others = ()
        if gate.requires_grad:
            with torch.no_grad():
                others = self.tuned(*of_frozen[0], **of_frozen[1]), self._frozen(*of_tuned[0], **of_tuned[1])
        return merge(gate, rows, frozen, tuned, *others)

    def _by_slices(self, args: Any) -> Any:
        """Both copies project, and the slices that were chosen are combined once."""
        choice = self.gates.tuned(self.start, self.width)
        tuned = self.tuned.project(*args)
        frozen = call_in_dtype(self.frozen.project, self.frozen, self.tuned, *args)
        return self.tuned.combine(map_tensors(partial(pick, choice), tuned, frozen), choice, *args)
