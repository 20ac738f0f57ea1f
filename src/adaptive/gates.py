"""The gates of a forward pass, and which rows of the batch they send to which copy.

A gate is 1 where an example takes the tuned copy and 0 where it takes the frozen one, everywhere.
Shapes in this package: B examples (rows), G gates of the whole model, w gates (the "width") of one pair.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

FROZEN, TUNED = 0, 1


class Rows(NamedTuple):
    """The rows of a batch that chose each copy; together they are all rows."""

    frozen: Tensor  # (n,) indices
    tuned: Tensor  # (B - n,) indices


class Plan(NamedTuple):
    """Who runs what in a forward pass, known to the host."""

    order: Tensor  # (G, B) rows: of each gate the frozen ones first, then the tuned ones
    tuned: list[int]  # how many rows of each gate are tuned


class Gates:
    """The gates of the forward pass under way, shared by all pairs of one model.

    Not a module: it holds no parameters and must not appear in a state dict. `dense` makes the pairs compute
    both copies for all examples: the oracle of the tests and the baseline of the benchmark.
    """

    def __init__(self, total: int, *, dense: bool = False) -> None:
        self.total = total
        self.dense = dense
        self._values: Tensor | None = None
        self._tuned: Tensor | None = None
        self._plan: Plan | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What copying and pickling take along: no gates, for a copy has no forward pass under way."""
        return vars(Gates(self.total, dense=self.dense))

    def fill(self, gates: Tensor) -> None:
        """Set the gates (B, G), each 0 or 1, of the coming forward pass. ValueError if G is not `total`."""
        if gates.shape[1:] != (self.total,):
            raise ValueError(f"gates have the shape {tuple(gates.shape)}; expected (batch, {self.total})")
        self._values = gates
        self._tuned = gates.detach() > 0.5
        self._plan = None

    @property
    def plan(self) -> Plan:
        """Made when a pair first asks for it: one wait for the device, then, serves all pairs of the pass."""
        if self._plan is None:
            self._require_filled()
            order = self._tuned.to(torch.uint8).argsort(dim=0, stable=True).t().contiguous()
            self._plan = Plan(order, self._tuned.sum(0).tolist())
        return self._plan

    def detach(self) -> None:
        """Let go of the policy's graph at the end of the forward pass; the values stay, as a leaf.

        Gradient checkpointing needs them to run pairs again in backward. It takes gradients through the first
        graph and not through this second one, except with `use_reentrant=True`, which is refused here.
        """
        if self._values.requires_grad:
            self._values = self._values.detach().requires_grad_()
            self._values.register_hook(_refuse_gradient)

    def of(self, start: int, width: int) -> Tensor:
        """The gates (B, w) of one pair, without a graph where autograd is off. RuntimeError if not filled."""
        self._require_filled()
        values = self._values if torch.is_grad_enabled() else self._values.detach()
        return values[:, start : start + width]

    def tuned(self, start: int, width: int) -> Tensor:
        """Where the gates of one unit are 1, bool (B, w), without a gradient. RuntimeError if not filled."""
        self._require_filled()
        return self._tuned[:, start : start + width]

    def constant(self, start: int, width: int) -> tuple[bool, ...] | None:
        """Which of `width` gates are 1, if each of them is the same for all examples; else None."""
        counts, batch = self.plan.tuned[start : start + width], len(self._values)
        return tuple(count == batch for count in counts) if {*counts} <= {0, batch} else None

    def share_tuned(self, start: int, width: int) -> float:
        """The share of decisions of `width` gates that are for tuned: 0.0 and 1.0 are exact."""
        return sum(self.plan.tuned[start : start + width]) / (width * len(self._values))

    def rows(self, gate: int) -> Rows:
        """The rows that chose each copy at one gate."""
        frozen = len(self._values) - self.plan.tuned[gate]
        return Rows(self.plan.order[gate, :frozen], self.plan.order[gate, frozen:])

    def _require_filled(self) -> None:
        if self._values is None:
            raise RuntimeError("a gated module was called without gates: call Adaptive, not its model")


def _refuse_gradient(grad: Tensor) -> None:
    raise RuntimeError("gates got a gradient after their forward pass; checkpoint with use_reentrant=False")
