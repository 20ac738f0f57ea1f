"""Make any model adaptive: swap named submodules for gated pairs and put a policy in front.

    slots = adapt(model, [(["layer.0"], 1), (["layer.1.up", "layer.1.down"], 1)])
    adaptive = Adaptive(model, policy, slots)     # policy(**inputs) -> logits (B, slots.total, 2)
    outputs, gates = adaptive(**inputs)

Load the pre-trained weights before `adapt`: the frozen copies are copies of what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptive.pair import GatedPair, Slots
from adaptive.policy import choose_gates, sample_gates


def adapt(
    model: nn.Module,
    units: Iterable[tuple[Sequence[str], int]],
    frozen_dtype: torch.dtype | None = None,
) -> Slots:
    """Swap the submodules of each unit, (their names, width), for `GatedPair`s, in place.

    Gates are numbered in the order of the units; a unit takes as many as it is wide, and its submodules share
    them. So do all calls of a module that is called several times in one forward pass. AttributeError for an
    unknown name. The frozen copies' matrices are held in `frozen_dtype` (None: as they are).

    A submodule must be a function of its arguments (no cache that it writes to) with the batch as the first
    dimension of every tensor that differs between examples; outputs may be tensors, None, or tuples of them.
    """
    units = list(units)
    slots = Slots(sum(width for _, width in units))
    start = 0
    for names, width in units:
        for name in names:
            parent, _, child = name.rpartition(".")
            pair = GatedPair(model.get_submodule(name), slots, start, width, frozen_dtype)
            setattr(model.get_submodule(parent), child, pair)
        start += width
    return slots


class AdaptiveOutput(NamedTuple):
    """What `Adaptive` returns."""

    outputs: Any  # whatever the model returns
    gates: Tensor | None  # (B, G), None without a policy

    def gates_of(self, batch: Tensor) -> Tensor:
        """The gates (B, G) of a batch (B, ...) of examples; without a policy G is 0."""
        return batch.new_zeros(len(batch), 0) if self.gates is None else self.gates


class Adaptive(nn.Module):
    """A model and its policy as one module: prepared, clipped, saved and loaded together.

    In training mode gates are sampled, in evaluation mode the likelier copy is taken. Without a policy (plain
    fine-tuning) the model runs as it is. While `train_policy` is false gates get no gradient, so that only
    the chosen copies run.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: nn.Module | None = None,
        slots: Slots | None = None,
        temperature: float = 5.0,
    ) -> None:
        super().__init__()
        if (policy is None) != (slots is None):
            raise ValueError("a policy and slots go together")
        self.model = model
        self.policy = policy
        self.slots = slots
        self.temperature = temperature
        self.train_policy = True

    def forward(self, **inputs: Any) -> AdaptiveOutput:
        """Both the policy and the model are called with `inputs`."""
        if self.policy is None:
            return AdaptiveOutput(self.model(**inputs), None)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_policy):
            logits = self.policy(**inputs)
            gates = sample_gates(logits, self.temperature) if self.training else choose_gates(logits)
        self.slots.fill(gates)
        return AdaptiveOutput(self.model(**inputs), gates)
