"""Terms that a policy is trained with besides the task's loss: what each rewards, with formula and source.

p (B, G) are the probabilities of the tuned copy in a batch of B examples, H(p) = -p ln p - (1 - p) ln(1 - p).
Each term is small where its aim is reached, and is added to the loss with a weight.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive.gates import TUNED

PRIOR = (0.6, 0.4)  # of batch-shaping, as published
POINTS = 4097
EDGE = 1e-6  # how near to 0 and 1 probabilities are told apart


@dataclass(frozen=True)
class Term:
    """One of them, of probabilities (B, G)."""

    about: str
    of: Callable[[Tensor], Tensor]


def negative_entropy(p: Tensor) -> Tensor:
    """The mean of -H(p), in nats."""
    p = p.clamp(EDGE, 1 - EDGE)
    return (torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean()


def distance_to_prior(p: Tensor) -> Tensor:
    """The mean of (F(p_n) - n / (B + 1))^2: p_n a gate's n-th smallest, F the prior's distribution.

    F is that of Beta(0.6, 0.4), which is high at 0 and at 1: over a batch, a gate is to be sure of both.
    """
    ordered = p.clamp(EDGE, 1 - EDGE).sort(dim=0).values
    place = torch.arange(1, len(p) + 1, device=p.device, dtype=p.dtype) / (len(p) + 1)
    return (_beta_distribution(ordered) - place[:, None]).square().mean()


TERMS = {
    # Williams and Peng 1991; Mnih et al. 2016, arXiv:1602.01783.
    "entropy": Term("-mean H(p): against early certainty", negative_entropy),
    # Bejnordi et al. 2020, arXiv:1907.06627.
    "batch_shaping": Term(
        "mean (F(p_n) - n / (B + 1))^2, F of Beta(0.6, 0.4): for gates that differ between inputs",
        distance_to_prior,
    ),
}


def add_terms(loss: Tensor, logits: Tensor | None, weights: Mapping[str, float]) -> Tensor:
    """The loss with the terms of policy logits (B, G, 2), each times its weight; without weights as it is."""
    used = {name: weight for name, weight in weights.items() if weight}
    if not used or logits is None:
        return loss
    p = torch.softmax(logits.float(), dim=-1)[..., TUNED]
    return loss + sum(weight * TERMS[name].of(p) for name, weight in used.items())


def _beta_distribution(x: Tensor) -> Tensor:
    """F(x) of the prior, by interpolation in the angle a with x = sin(a)^2, where its density is finite.

    It is proportional to sin(a)^(2 alpha - 1) cos(a)^(2 beta - 1) there.
    """
    alpha, beta = PRIOR
    angles = torch.linspace(0, math.pi / 2, 16 * (POINTS - 1) + 1, dtype=torch.float64)
    middle = (angles[1:] + angles[:-1]) / 2
    density = middle.sin() ** (2 * alpha - 1) * middle.cos() ** (2 * beta - 1)
    table = torch.cat([density.new_zeros(1), density.cumsum(0)])[::16]
    table = (table / table[-1]).to(x)
    position = x.sqrt().asin() * (2 / math.pi * (POINTS - 1))
    below = position.detach().floor().clamp(max=POINTS - 2).long()
    return table[below] + (position - below) * (table[below + 1] - table[below])
