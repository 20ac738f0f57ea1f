"""Terms for the policy against their formulas, and a share that a bias holds."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from adaptive.terms import PRIOR, TERMS, add_terms


def probabilities(examples: int = 7, gates: int = 4) -> torch.Tensor:
    return torch.rand(examples, gates, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_entropy_is_that_of_the_coin_of_each_gate() -> None:
    p = probabilities()
    expected = -torch.distributions.Bernoulli(probs=p).entropy().mean()
    assert TERMS["entropy"].of(p).item() == pytest.approx(expected.item())
    assert TERMS["entropy"].of(torch.tensor([[0.0, 1.0]])).item() == pytest.approx(0.0, abs=1e-4)


def test_batch_shaping_is_the_distance_to_the_priors_distribution() -> None:
    p = probabilities()
    place = torch.arange(1, 8, dtype=torch.float64)[:, None] / 8
    expected = (torch.from_numpy(stats.beta(*PRIOR).cdf(p.sort(0).values.numpy())) - place).square().mean()
    assert TERMS["batch_shaping"].of(p).item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_gradient_of_batch_shaping_is_the_priors_density() -> None:
    p = (0.02 + 0.96 * probabilities()).requires_grad_()
    TERMS["batch_shaping"].of(p).backward()
    prior, values = stats.beta(*PRIOR), p.detach().numpy()
    place = (values.argsort(0).argsort(0) + 1) / 8
    expected = 2 * (prior.cdf(values) - place) * prior.pdf(values) / values.size
    assert p.grad.numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", TERMS)
def test_certain_gates_have_finite_gradients(name: str) -> None:
    logits = torch.tensor([[[90.0, -90.0], [-90.0, 90.0]]]).requires_grad_()
    add_terms(torch.zeros(()), logits, {name: 1.0}).backward()
    assert logits.grad.isfinite().all()


def test_gates_that_differ_are_nearer_to_the_prior_than_gates_that_do_not() -> None:
    both = torch.tensor([[0.02], [0.98]]).repeat(20, 1)
    assert TERMS["batch_shaping"].of(both) < TERMS["batch_shaping"].of(torch.full((40, 1), 0.98))


def test_terms_are_added_with_their_weights_and_cost_nothing_without() -> None:
    loss, logits = torch.tensor(2.0), torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)[..., 1]
    found = add_terms(loss, logits, {"entropy": 0.5, "batch_shaping": 3.0})
    expected = 2.0 + 0.5 * TERMS["entropy"].of(p) + 3.0 * TERMS["batch_shaping"].of(p)
    assert found.item() == pytest.approx(expected.item())
    assert add_terms(loss, logits, {"entropy": 0.0}) is loss
    assert add_terms(loss, None, {"entropy": 1.0}) is loss
