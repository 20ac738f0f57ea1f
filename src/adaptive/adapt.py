"""Make any model adaptive: swap named submodules for gated pairs and put a policy in front.

    gates = adapt(model, [(["layer.0"], 1), (["layer.1.up", "layer.1.down"], 1)])
    adaptive = Adaptive(model, policy, gates)     # policy(**inputs) -> logits (B, G, 2), or (B, 1, 2)
    output = adaptive(**inputs)                   # .outputs of the model, .gates (B, G), .policy_logits

Load the pre-trained weights before `adapt`: the frozen copies are copies of what is there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptive.copies import Copies, full_copy
from adaptive.gates import Gates
from adaptive.policy import choose_gates, sample_gates


def adapt(
    model: nn.Module,
    units: Sequence[tuple[Sequence[str], int]],
    copies: Copies | None = None,
) -> Gates:
    """Swap the submodules of each unit, (their names, width), for what `copies` makes of them, in place.

    Gates are numbered in the order of the units; a unit takes as many as it is wide, and its submodules share
    them, as do all calls of a module within one forward pass. AttributeError for an unknown name. `copies`
    is `full_copy()`, which makes `GatedPair`s, if it is not given; `low_rank(rank)` is the other choice.

    A submodule must be a function of its arguments (no cache that it writes to) with the batch as the first
    dimension of every tensor that differs between examples; for its outputs see `routing.map_tensors`.
    """
    copies = copies or full_copy()
    gates = Gates(sum(width for _, width in units))
    start = 0
    for names, width in units:
        for name in names:
            parent, _, child = name.rpartition(".")
            adapted = copies(model.get_submodule(name), gates, start, width)
            setattr(model.get_submodule(parent), child, adapted)
        start += width
    return gates


class AdaptiveOutput(NamedTuple):
    """What `Adaptive` returns."""

    outputs: Any  # whatever the model returns
    gates: Tensor | None  # (B, G), or (1, G) for weights; None without a policy
    policy_logits: Tensor | None  # (B, G, 2), or (B, 1, 2) of tied gates; None where no policy decided

    def gates_of(self, batch: Tensor) -> Tensor:
        """The gates (B, G) of a batch (B, ...) of examples; without a policy G is 0."""
        return batch.new_zeros(len(batch), 0) if self.gates is None else self.gates.expand(len(batch), -1)


class Adaptive(nn.Module):
    """A model and its policy as one module: prepared, clipped, saved and loaded together.

    In training mode gates are sampled, with the gradients of an estimator of `adaptive.policy`; in evaluation
    mode, and where it no longer `explores`, the likelier copy is taken. Without a policy (plain fine-tuning)
    the model runs as it is. While `train_policy` is false gates get no gradient, so that only the chosen
    copies run. A policy with one pair of logits an example ties all gates: they are one decision, drawn once.
    Between forward passes it holds no graph, so that it can be copied and pickled.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: nn.Module | None = None,
        gates: Gates | None = None,
        temperature: float = 5.0,
        estimator: str = "gumbel",
    ) -> None:
        super().__init__()
        if (policy is None) != (gates is None):
            raise ValueError("a policy and gates go together")
        self.model = model
        self.policy = policy
        self.gates = gates
        self.temperature = temperature
        self.estimator = estimator
        self.train_policy = True
        self.explores = True
        self._noise: Tensor | None = None

    def draw_noise(self, generator: torch.Generator, batch: int, rows: slice) -> None:
        """Draw the gate noise of a batch of so many examples, of which the next forward pass gets `rows`.

        For processes that share a batch: with generators in the same state each example has the same noise
        whichever process it falls to. Without this, noise is drawn from the global generator as it is needed.
        """
        if self.gates is not None:
            noise = torch.empty(batch, self.gates.total, 2, device=generator.device)
            self._noise = noise.exponential_(generator=generator)[rows]

    def forward(self, gates: Tensor | None = None, **inputs: Any) -> AdaptiveOutput:
        """Both the policy and the model are called with `inputs`.

        gates: what decides instead of the policy: gates (B, G), or (B, 1) for all gates alike, each 0 or 1;
        or, in evaluation, weights (G,) from 0 to 1 of the tuned copies, with which the outputs of both are
        averaged.
        """
        if self.policy is None:
            return AdaptiveOutput(self.model(**inputs), None, None)
        noise, self._noise = self._noise, None
        logits = None
        if gates is None:
            learns = self.train_policy and self.explores
            with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
                logits = self.policy(**inputs)
                gates = self._decide(logits, noise)
        if gates.dim() == 2:
            gates = gates.float().expand(-1, self.gates.total)
            self.gates.fill(gates)
        else:
            self.gates.weigh(gates)
            gates = gates[None]
        outputs = self.model(**inputs)
        self.gates.detach()
        return AdaptiveOutput(outputs, gates, logits)

    def _decide(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """The gates (B, G) of policy logits (B, G, 2), or (B, 1) of (B, 1, 2)."""
        if self.training and self.explores:
            noise = noise if noise is None else noise[:, : logits.shape[1]]
            return sample_gates(logits, self.temperature, noise, self.estimator)
        return choose_gates(logits)
