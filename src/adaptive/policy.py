"""From policy logits to gates: drawn in training, the likelier copy in evaluation.

Hard gates have no gradient; `ESTIMATORS` is the table of what takes its place. Below, z is the difference of
a gate's two logits (tuned minus frozen), p = sigmoid(z) the probability of tuned, d the gate drawn, and g
the gradient of the loss with respect to the gate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptive.gates import FROZEN, TUNED


@dataclass(frozen=True)
class Estimator:
    """What stands in for the gradient of a drawn gate."""

    about: str
    # logits (B, G, 2), soft gates and drawn ones (B, G) -> what has the gradient that the gates are to have
    surrogate: Callable[[Tensor, Tensor, Tensor], Tensor]


def _of_soft(logits: Tensor, soft: Tensor, drawn: Tensor) -> Tensor:
    return soft


def _of_probability(logits: Tensor, soft: Tensor, drawn: Tensor) -> Tensor:
    return torch.softmax(logits, dim=-1)[..., TUNED]


def _of_both_ends(logits: Tensor, soft: Tensor, drawn: Tensor) -> Tensor:
    away = (drawn - torch.softmax(logits.detach(), dim=-1)[..., TUNED]).abs()
    return away / 2 * (logits[..., TUNED] - logits[..., FROZEN])


# dL/dz, with s the soft gate at temperature tau: the sigmoid of (z + noise) / tau.
ESTIMATORS = {
    # Jang et al. 2017, arXiv:1611.01144, the straight-through form.
    "gumbel": Estimator("g s (1 - s) / tau, of the soft gate s at --temperature tau, as published", _of_soft),
    # Bengio et al. 2013, arXiv:1308.3432: exact where the loss is linear in each gate.
    "straight-through": Estimator("g p (1 - p), of the probability p; no temperature", _of_probability),
    # Liu et al. 2023, arXiv:2304.08612, for two categories: exact where the loss is quadratic in each gate.
    "reinmax": Estimator("g |d - p| / 2, of the drawn gate d, second order; no temperature", _of_both_ends),
}


def sample_gates(
    logits: Tensor, temperature: float, noise: Tensor | None = None, estimator: str = "gumbel"
) -> Tensor:
    """Draw hard gates whose gradient is that of an estimator, a name in `ESTIMATORS`.

    logits (B, G, 2) -> gates (B, G), exactly 0 or 1, in float32. noise: numbers (B, G, 2) from the
    exponential distribution; without them they are drawn from the global generator. Whatever the temperature
    and the estimator are, a gate is 1 with probability p: they only weigh its gradient.
    """
    logits = logits.float()
    gumbel = -(torch.empty_like(logits).exponential_() if noise is None else noise).log()
    soft = torch.softmax((logits + gumbel) / temperature, dim=-1)
    drawn = (soft[..., TUNED] > soft[..., FROZEN]).to(soft.dtype)
    surrogate = ESTIMATORS[estimator].surrogate(logits, soft[..., TUNED], drawn)
    # surrogate - surrogate.detach() is exactly 0, so the sum is exactly 0 or 1; in another order it is not.
    return drawn + (surrogate - surrogate.detach())


def choose_gates(logits: Tensor) -> Tensor:
    """The likelier copy of each gate: logits (B, G, 2) -> gates (B, G), 0 or 1, in float32."""
    return (logits[..., TUNED] > logits[..., FROZEN]).float()


class GateHead(nn.Module):
    """Policy logits from a feature vector: Linear, GELU, LayerNorm, Linear.

    `width` is how many values lie between the two, without it twice as many as come in.
    `spread` is the standard deviation of the last layer's weights. It sets how much the first gates differ
    between inputs and from each other: with 0 every gate would start as the same coin. `share` is how likely
    that coin says tuned, above 0 and below 1.
    """

    def __init__(
        self, size: int, gates: int, spread: float = 0.1, share: float = 0.5, width: int | None = None
    ) -> None:
        super().__init__()
        self.gates = gates
        width = width or 2 * size
        self.hidden = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.LayerNorm(width))
        self.logits = nn.Linear(width, 2 * gates)
        nn.init.normal_(self.logits.weight, 0.0, spread)
        odds = torch.zeros(gates, 2)
        odds[:, TUNED] = math.log(share / (1 - share))
        self.logits.bias.data = odds.flatten()

    def forward(self, features: Tensor) -> Tensor:
        """(B, size) -> logits (B, G, 2)."""
        return self.logits(self.hidden(features)).unflatten(-1, (self.gates, 2))
