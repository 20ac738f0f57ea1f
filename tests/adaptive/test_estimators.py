"""What each estimator's gradient is on average, against the exact one: all patterns of gates enumerated."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from adaptive.gates import FROZEN, TUNED
from adaptive.policy import ESTIMATORS, sample_gates

PROBABILITIES = torch.tensor([0.3, 0.85])  # multiples of a cell of the grid: no threshold cuts one
CELLS = 100
TAU = 5.0

Loss = Callable[[Tensor], Tensor]  # gates (B, 2) -> (B,)
LOSSES: dict[str, Loss] = {
    "linear in each gate": lambda g: 2.0 * g[:, 0] - g[:, 1] + 3.0 * g[:, 0] * g[:, 1],
    "quadratic": lambda g: (1.5 * g[:, 0] - g[:, 1] + 0.3) ** 2 + 0.5 * g[:, 1],
    "neither": lambda g: torch.exp(1.2 * g[:, 0] - 0.7 * g[:, 1]) + torch.sin(2.0 * g[:, 1]),
}
PATTERNS = torch.tensor([*product((0.0, 1.0), repeat=2)])


def weights() -> Tensor:
    """The probability of each pattern."""
    return torch.where(PATTERNS == 1, PROBABILITIES, 1 - PROBABILITIES).prod(1)


def exact(loss: Loss) -> Tensor:
    """dE[L]/dz of both gates: p (1 - p) times the mean difference that a flip of the gate makes."""
    slopes = []
    for gate in range(2):
        ends = [PATTERNS.clone(), PATTERNS.clone()]
        ends[0][:, gate], ends[1][:, gate] = 0.0, 1.0
        flip = (weights() * (loss(ends[1]) - loss(ends[0]))).sum()
        slopes.append(PROBABILITIES[gate] * (1 - PROBABILITIES[gate]) * flip)
    return torch.stack(slopes)


def expected(loss: Loss, slope: Callable[[float, float], float]) -> Tensor:
    """The mean of g * slope(d, p) over all patterns d, for g the gradient of the loss at the pattern."""
    points = PATTERNS.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(points).sum(), points)
    p = PROBABILITIES.tolist()
    slopes = [[slope(d, p[gate]) for gate, d in enumerate(row)] for row in PATTERNS.tolist()]
    return (weights()[:, None] * g * torch.tensor(slopes)).sum(0)


def relaxed_slope(d: float, p: float) -> float:
    """The mean of s (1 - s) / tau over the noise with which the gate is d, by the midpoint rule."""
    z = torch.logit(torch.tensor(p, dtype=torch.float64))
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000  # of the noise below which the gate is d
    u = 1 - p + p * u if d else (1 - p) * u
    soft = torch.sigmoid((z + torch.logit(u)) / TAU)
    return (soft * (1 - soft) / TAU).mean().item()


def measured(estimator: str, loss: Loss) -> Tensor:
    """The mean gradient of z that `sample_gates` gives, over a grid of the noise of both gates."""
    u = (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS
    difference = torch.logit(torch.cartesian_prod(u, u))  # of the two Gumbel numbers of each gate
    noise = torch.stack([difference.exp(), torch.ones_like(difference)], dim=-1)
    logits = torch.stack([torch.zeros(2), torch.logit(PROBABILITIES)], dim=-1).requires_grad_()
    gates = sample_gates(logits.expand(len(noise), 2, 2), TAU, noise.float(), estimator)
    assert torch.allclose(gates.mean(0), PROBABILITIES, atol=1e-6)
    loss(gates.double()).mean().backward()
    assert torch.allclose(logits.grad[:, FROZEN], -logits.grad[:, TUNED], atol=1e-7)
    return logits.grad[:, TUNED]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("estimator", "slope"),
    [
        ("gumbel", relaxed_slope),
        ("straight-through", lambda d, p: p * (1 - p)),
        ("reinmax", lambda d, p: abs(d - p) / 2),
    ],
)
def test_an_estimator_is_its_formula(estimator: str, slope: Callable[..., float], loss: str) -> None:
    assert torch.allclose(measured(estimator, LOSSES[loss]), expected(LOSSES[loss], slope), atol=3e-4)


def test_every_estimator_is_held_against_its_formula() -> None:
    assert {*ESTIMATORS} == {"gumbel", "straight-through", "reinmax"}


def test_reinmax_is_exact_for_quadratic_losses() -> None:
    for name in ("linear in each gate", "quadratic"):
        assert torch.allclose(measured("reinmax", LOSSES[name]), exact(LOSSES[name]), atol=1e-5), name
    assert not torch.allclose(measured("reinmax", LOSSES["neither"]), exact(LOSSES["neither"]), atol=1e-3)


def test_straight_through_is_exact_for_losses_that_are_linear_in_each_gate() -> None:
    loss = LOSSES["linear in each gate"]
    assert torch.allclose(measured("straight-through", loss), exact(loss), atol=1e-5)


def test_the_bias_of_straight_through_is_that_of_a_first_order_rule() -> None:
    """p (1 - p) (p - 1/2) L'' for a loss with the curvature L'' in a gate."""
    bias = measured("straight-through", LOSSES["quadratic"]) - exact(LOSSES["quadratic"])
    curvature = torch.tensor([2 * 1.5**2, 2.0])
    p = PROBABILITIES
    assert torch.allclose(bias, p * (1 - p) * (p - 0.5) * curvature, atol=1e-5)


@pytest.mark.parametrize(("p", "weight"), [(0.5, 0.0485), (0.98, 0.042)])
def test_the_temperature_weighs_gradients_whatever_the_loss(p: float, weight: float) -> None:
    """At tau = 5 an undecided gate gets a fifth of p (1 - p) = 0.25, a decided one 2.1 times its 0.02."""
    mean = p * relaxed_slope(1.0, p) + (1 - p) * relaxed_slope(0.0, p)
    assert mean == pytest.approx(weight, rel=0.02)


def test_all_estimators_draw_the_same_gates() -> None:
    torch.manual_seed(0)
    logits, noise = 2 * torch.randn(500, 7, 2), torch.empty(500, 7, 2).exponential_()
    drawn = [sample_gates(logits, 3.0, noise, name) for name in ESTIMATORS]
    assert all(torch.equal(gates, drawn[0]) for gates in drawn)
    assert set(drawn[0].unique().tolist()) == {0.0, 1.0}
