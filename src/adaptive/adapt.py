"""Make any model adaptive: swap named submodules for gated pairs and put a policy in front.

    gates = adapt(model, [(["layer.0"], 1), (["layer.1.up", "layer.1.down"], 1)])
    adaptive = Adaptive(model, policy, gates)     # policy(**inputs) -> logits (B, G, 2), or (B, 1, 2)
    output = adaptive(**inputs)                   # .outputs of the model, .gates (B, G), .policy_logits

Load the pre-trained weights before `adapt`: the frozen copies are copies of what is there. One line that does
all of it for models of transformers is `adaptive.model.get_adaptive_model`, which uses these parts.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from adaptive.copies import Copies, full_copy
from adaptive.gates import Gates
from adaptive.layout import Layout
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

    A submodule must be a function of its arguments, with the batch as the first dimension of every tensor
    that differs between examples: a tensor that all share, whose first dimension happens to be as large,
    would be split. `get_adaptive_model` learns which is which, and never goes by the size. ValueError for a
    model that is adaptive already, for a unit within a unit, and for a submodule that mixes examples, as
    batch norms do.
    """
    copies = copies or full_copy()
    _require_gateable(model, [name for names, _ in units for name in names])
    gates = Gates(sum(width for _, width in units))
    start = 0
    for names, width in units:
        for name in names:
            parent, _, child = name.rpartition(".")
            module = model.get_submodule(name)
            training = module.training
            adapted = copies(module, gates, start, width).train(training)
            setattr(model.get_submodule(parent), child, adapted)
            for part, layout in layouts(adapted):
                layout.name = layout.name or f"{name}.{part}".rstrip(".")
        start += width
    return gates


def layouts(module: nn.Module) -> Iterator[tuple[str, Layout]]:
    """Where the examples are in all gated parts of an adapted module, by the names of the parts."""
    for name, part in module.named_modules():
        for holder in (part, vars(part).get("forward")):
            if isinstance(vars(holder).get("layout") if hasattr(holder, "__dict__") else None, Layout):
                yield name, holder.layout


def is_adapted(model: nn.Module) -> bool:
    """Whether `adapt` was here."""
    return any(isinstance(vars(part).get("gates"), Gates) for part in model.modules())


def _require_gateable(model: nn.Module, names: Sequence[str]) -> None:
    """ValueError, in a sentence, for what gates cannot decide over."""
    if is_adapted(model):
        raise ValueError("the model is adaptive already: adapt it once, with all units")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is in more than one unit, or twice in one")
        for part_name, part in model.get_submodule(name).named_modules():
            where = f"{name}.{part_name}".rstrip(".")
            if part_name and where in names:
                raise ValueError(f"unit {where} is a part of unit {name}: choose one of them")
            if isinstance(part, _BatchNorm) or (isinstance(part, _InstanceNorm) and part.track_running_stats):
                raise ValueError(
                    f"{where} is a {type(part).__name__}, whose statistics are of the batch, and each copy "
                    f"sees a "
                    "part of it: leave the module out, or put a norm of each example (GroupNorm, "
                    "LayerNorm) in its "
                    "place"
                )


class AdaptiveOutput(NamedTuple):
    """What `Adaptive` returns."""

    outputs: Any  # whatever the model returns
    gates: Tensor | None  # (B, G), or (1, G) for weights; None without a policy
    policy_logits: Tensor | None  # (B, G, 2), or (B, 1, 2) of tied gates; None where no policy decided

    def gates_of(self, batch: Tensor) -> Tensor:
        """The gates (B, G) of a batch (B, ...) of examples; without a policy G is 0."""
        return batch.new_zeros(len(batch), 0) if self.gates is None else self.gates.expand(len(batch), -1)


class Chooser(nn.Module):
    """A policy and the gates that it fills.

    In training mode gates are sampled, with the gradients of an estimator of `adaptive.policy`; in evaluation
    mode, and where it no longer `explores`, the likelier copy is taken. While `train_policy` is false gates
    get no gradient, so that only the chosen copies run. A policy with one pair of logits an example ties all
    gates: they are one decision, drawn once. Between forward passes it holds no graph, so that it can be
    copied and pickled.
    """

    def __init__(
        self,
        policy: nn.Module | None = None,
        gates: Gates | None = None,
        temperature: float = 5.0,
        estimator: str = "gumbel",
    ) -> None:
        super().__init__()
        self._set_up(policy, gates, temperature, estimator)

    def _set_up(
        self, policy: nn.Module | None, gates: Gates | None, temperature: float, estimator: str
    ) -> None:
        if (policy is None) != (gates is None):
            raise ValueError("a policy and gates go together")
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

    def choose(self, inputs: dict[str, Any], gates: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Fill the gates of the coming forward pass, as the policy says of the inputs, or with those given.

        Returns gates (B, G), or (1, G) for weights, and policy logits (B, G, 2), None where no policy
        decided.
        """
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
        return gates, logits

    def _decide(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """The gates (B, G) of policy logits (B, G, 2), or (B, 1) of (B, 1, 2)."""
        if self.training and self.explores:
            noise = noise if noise is None else noise[:, : logits.shape[1]]
            return sample_gates(logits, self.temperature, noise, self.estimator)
        return choose_gates(logits)


class Adaptive(Chooser):
    """A model and its policy as one module: prepared, clipped, saved and loaded together.

    Without a policy (plain fine-tuning) the model runs as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: nn.Module | None = None,
        gates: Gates | None = None,
        temperature: float = 5.0,
        estimator: str = "gumbel",
    ) -> None:
        nn.Module.__init__(self)
        self.model = model  # before the policy: this is the order of parameters
        self._set_up(policy, gates, temperature, estimator)

    def forward(self, gates: Tensor | None = None, **inputs: Any) -> AdaptiveOutput:
        """Both the policy and the model are called with `inputs`.

        gates: what decides instead of the policy: gates (B, G), or (B, 1) for all gates alike, each 0 or 1;
        or, in evaluation, weights (G,) from 0 to 1 of the tuned copies, with which the outputs of both are
        averaged.
        """
        if self.policy is None:
            return AdaptiveOutput(self.model(**inputs), None, None)
        gates, logits = self.choose(inputs, gates)
        outputs = self.model(**inputs)
        self.gates.detach()
        return AdaptiveOutput(outputs, gates, logits)
