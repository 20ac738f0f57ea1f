"""The gates of a forward pass, and which rows of the batch they send to which copy.

A gate is 1 where an example takes the tuned copy and 0 where it takes the frozen one, everywhere. In
evaluation there may be weights instead, between 0 and 1 and the same for all examples: both copies run, and
are averaged.
Shapes in this package: B examples (rows), G gates of the whole model, w gates (the "width") of one pair.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

FROZEN, TUNED = 0, 1


class Plan:
    """Who runs what in a forward pass, known to the host."""

    def __init__(self, choice: Tensor) -> None:
        """From hard gates (B, G), bool. Waits for the device."""
        # (G, B) rows: of each gate the frozen ones first, then the tuned ones.
        self.order = choice.to(torch.uint8).argsort(dim=0, stable=True).t().contiguous()
        self.tuned: list[int] = choice.sum(0).tolist()  # how many rows of each gate are tuned
        self._sorted: dict[int, tuple[Tensor, int, Tensor]] = {}

    def sort_for_all_gates(self, mask: Tensor) -> Tensor:
        """(B, ...) -> (G, B, ...): the rows of `mask` in the order of each gate.

        All layers of a model get the same mask, so what is made for the first serves the others.
        """
        version = 0 if mask.is_inference() else mask._version
        source, its_version, rows = self._sorted.get(id(mask), (None, 0, None))
        if source is not mask or its_version != version:
            rows = mask.index_select(0, self.order.flatten()).unflatten(0, self.order.shape)
            self._sorted[id(mask)] = mask, version, rows
        return rows


class Rows:
    """The rows of a batch that chose each copy at one gate."""

    def __init__(self, plan: Plan, gate: int) -> None:
        self.order = plan.order[gate]  # (B,) indices: the frozen ones, then the tuned ones
        self.sizes = [len(self.order) - plan.tuned[gate], plan.tuned[gate]]
        self.frozen, self.tuned = self.order.split(self.sizes)
        self._plan = plan
        self._gate = gate

    def sort(self, mask: Tensor) -> Tensor:
        """The rows of `mask`, which needs no gradient, in this order."""
        return self._plan.sort_for_all_gates(mask)[self._gate]


class Gates:
    """The gates of the forward pass under way, shared by all pairs of one model.

    Not a module: it holds no parameters and must not appear in a state dict. `dense` means that no example
    is sent anywhere: pairs compute both copies for all examples, the oracle of the tests and the baseline of
    the benchmark, and low-rank copies run all examples together in evaluation too.
    """

    def __init__(self, total: int, *, dense: bool = False) -> None:
        self.total = total
        self.dense = dense
        self._units: set[tuple[int, int]] = set()
        self._values: Tensor | None = None
        self._weights: tuple[float, ...] | None = None
        self._tuned: Tensor | None = None
        self._parts: dict[tuple[int, int], Tensor] | None = None
        self._plan: Plan | None = None
        self._same: bool | None = None
        self.apart: dict[
            int, Tensor
        ] = {}  # in this pass: tensors, by id, whose first dimension became examples
        self.probe: Any = None  # what learns where examples are, see `adaptive.learning`

    def __getstate__(self) -> dict[str, Any]:
        """What copying and pickling take along: no gates, for a copy has no forward pass under way."""
        return vars(Gates(self.total, dense=self.dense)) | {"_units": self._units}

    def announce(self, start: int, width: int) -> None:
        """Say that `of` will be asked for these gates: the gradients of all such parts meet in one place."""
        self._units.add((start, width))

    def fill(self, gates: Tensor) -> None:
        """Set the gates (B, G), each 0 or 1, of the coming forward pass. ValueError if G is not `total`."""
        if gates.shape[1:] != (self.total,):
            raise ValueError(f"gates have the shape {tuple(gates.shape)}; expected (batch, {self.total})")
        self._values = gates
        self._tuned = gates.detach() > 0.5
        self._weights = None
        self._parts = None
        self._plan = None
        self.apart = {}

    def weigh(self, weights: Tensor) -> None:
        """Set weights (G,) of the tuned copies instead, for a pass without autograd. Waits for the device."""
        self.fill(weights[None])
        self._weights = tuple(weights.tolist())

    @property
    def values(self) -> Tensor | None:
        """The gates (B, G) of this forward pass or the last one, without a graph; None before the first."""
        return None if self._values is None else self._values.detach()

    @property
    def choose(self) -> bool:
        """Whether each example takes one copy at each gate: they are gates, and no weights."""
        return self._weights is None

    @property
    def plan(self) -> Plan:
        """Made when a pair first asks for it: one wait for the device, then, serves all pairs of the pass."""
        if self._plan is None:
            self._require_filled()
            self._plan = Plan(self._tuned)
        return self._plan

    def detach(self) -> None:
        """Let go of the policy's graph at the end of the forward pass; the values stay, as a leaf.

        Gradient checkpointing needs them to run pairs again in backward. It takes gradients through the first
        graph and not through this second one, except with `use_reentrant=True`, which is refused here.
        """
        self._parts = None
        self.apart = {}
        if self._values is not None and self._values.requires_grad:
            self._values = self._values.detach().requires_grad_()
            self._values.register_hook(_refuse_gradient)

    def of(self, start: int, width: int) -> Tensor:
        """The gates (B, w) of one pair, without a graph where autograd is off. RuntimeError if not filled."""
        self._require_filled()
        if not torch.is_grad_enabled():
            return self._values.detach()[:, start : start + width]
        if self._parts is None:
            self._parts = self._split()
        part = self._parts.get((start, width))
        return self._values[:, start : start + width] if part is None else part

    def _split(self) -> dict[tuple[int, int], Tensor]:
        """The gates of all units, by (start, width). Backward, a split is one operation, slices are many."""
        edges = {0, self.total, *(start for start, _ in self._units), *(sum(unit) for unit in self._units)}
        starts = sorted(edges)[:-1]
        widths = [end - start for start, end in pairwise(sorted(edges))]
        return dict(zip(zip(starts, widths, strict=True), self._values.split(widths, dim=1), strict=True))

    def tuned(self, start: int, width: int) -> Tensor:
        """Where the gates of one unit are 1, bool (B, w), without a gradient. RuntimeError if not filled."""
        self._require_filled()
        return self._tuned[:, start : start + width]

    def constant(self, start: int, width: int) -> tuple[float, ...] | None:
        """The values of `width` gates, if each of them is the same for all examples; else None."""
        if self._same is not None:
            return (self._same,) * width
        if self._weights is not None:
            return self._weights[start : start + width]
        counts, batch = self.plan.tuned[start : start + width], len(self._values)
        return tuple(count == batch for count in counts) if {*counts} <= {0, batch} else None

    @contextmanager
    def all_tuned(self, tuned: bool) -> Iterator[None]:
        """For a call with such examples of the batch only as run all tuned, or all frozen, there."""
        self._same = tuned
        try:
            yield
        finally:
            self._same = None

    def share_tuned(self, start: int, width: int) -> float:
        """The share of decisions of `width` gates that are for tuned: 0.0 and 1.0 are exact."""
        if self._weights is not None:
            return sum(self._weights[start : start + width]) / width
        if not len(self._values):
            return 1.0  # no example takes no copy: any serves
        return sum(self.plan.tuned[start : start + width]) / (width * len(self._values))

    def rows(self, gate: int) -> Rows:
        """The rows that chose each copy at one gate."""
        return Rows(self.plan, gate)

    def _require_filled(self) -> None:
        if self._values is None:
            raise RuntimeError("a gated module was called without gates: call Adaptive, not its model")


def _refuse_gradient(grad: Tensor) -> None:
    raise RuntimeError("gates got a gradient after their forward pass; checkpoint with use_reentrant=False")
