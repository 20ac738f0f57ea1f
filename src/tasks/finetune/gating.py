"""How gates come about in evaluation: what --evaluate-gates takes, and gates that are given from outside.

A `Decide` says, for a model, its inputs and the ids of its questions, what is added to the inputs: the gates
that `Adaptive` takes instead of its policy's, or nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptive.adapt import Adaptive
from adaptive.policy import sample_gates
from common.errors import UserError
from tasks.finetune.spec import AVERAGE, ModelSpec
from tasks.finetune.strategies import STRATEGIES
from vqadata.dataset import VqaDataset

Decide = Callable[[Adaptive, Mapping[str, Tensor], Tensor], Mapping[str, Tensor]]


def as_the_policy_does(
    model: Adaptive, inputs: Mapping[str, Tensor], question_ids: Tensor
) -> dict[str, Tensor]:
    """The likelier copy at each gate, which is what `Adaptive` does by itself in evaluation."""
    return {}


def drawn(model: Adaptive, inputs: Mapping[str, Tensor], question_ids: Tensor) -> dict[str, Tensor]:
    """Gates (B, G) drawn with the policy's probabilities.

    The noise of a question depends on its id alone: it is the same at every evaluation, in whatever batch.
    """
    logits = model.policy(**inputs)
    generator = torch.Generator()
    # Uniform numbers, because PyTorch draws exponential ones differently from one processor to another.
    seeded = (generator.manual_seed(question) for question in question_ids.tolist())
    uniform = torch.stack([torch.rand(logits.shape[1:], generator=g) for g in seeded])
    return {"gates": sample_gates(logits, 1.0, -uniform.log().to(logits.device))}


def given(gates: np.ndarray, question_ids: np.ndarray) -> Decide:
    """The rows of gates (N, G), bool, of the questions (N,)."""
    order = np.argsort(question_ids)
    ids = question_ids[order]

    def look_up(model: Adaptive, inputs: Mapping[str, Tensor], question_ids: Tensor) -> dict[str, Tensor]:
        rows = order[np.searchsorted(ids, question_ids.cpu().numpy())]
        return {"gates": torch.from_numpy(gates[rows]).to(question_ids.device)}

    return look_up


def weighed(weights: np.ndarray | float) -> Decide:
    """Weights of the tuned copies, (G,) or one for all, with which the outputs of both are averaged."""

    def same(model: Adaptive, inputs: Mapping[str, Tensor], question_ids: Tensor) -> dict[str, Tensor]:
        spread = np.broadcast_to(np.float32(weights), model.gates.total)
        return {"gates": torch.tensor(spread, device=question_ids.device)}

    return same


@dataclass(frozen=True)
class Way:
    """A value of --evaluate-gates."""

    about: str  # for --help
    caption: str  # for pictures
    decide: Callable[[ModelSpec], Decide]


WAYS = {
    "argmax": Way("the likelier copy", "the likelier copy", lambda spec: as_the_policy_does),
    "sample": Way(
        "drawn with the policy's probabilities, the same for a question at every evaluation",
        "gates drawn",
        lambda spec: drawn,
    ),
    AVERAGE: Way(
        "the outputs of both copies, weighed with --average; both run, except with --tuned lora, where one "
        "merged model does, at the price of standard",
        "both copies averaged",
        lambda spec: weighed(spec.average),
    ),
}


def chooses(spec: ModelSpec) -> bool:
    """Whether evaluation takes one copy at each gate: there are gates, and no averages."""
    return STRATEGIES[spec.strategy].adaptive and spec.evaluate_gates != AVERAGE


def require_choice(spec: ModelSpec, dataset: VqaDataset) -> None:
    """UserError unless gates are chosen for the questions of a data set, and scored."""
    for holds, reason in (
        (STRATEGIES[spec.strategy].adaptive, f"--strategy {spec.strategy} has no gates"),
        (chooses(spec), f"--evaluate-gates {AVERAGE} chooses none: add --evaluate-gates argmax"),
        (dataset.labelled, "the split has no answers to score against"),
    ):
        if not holds:
            raise UserError(f"--controls compares the gates that were chosen with others, and {reason}")


def decided_by(spec: ModelSpec) -> Decide:
    """How the gates of a model come about in evaluation; where there are none, nothing is added."""
    adaptive = STRATEGIES[spec.strategy].adaptive
    return WAYS[spec.evaluate_gates].decide(spec) if adaptive else as_the_policy_does
