from __future__ import annotations

import torch

from adaptive.policy import GateHead, choose_gates, sample_gates


def test_sampled_gates_are_exactly_zero_or_one() -> None:
    torch.manual_seed(0)
    gates = sample_gates(torch.randn(4000, 25, 2) * 3, temperature=5.0)
    assert set(gates.unique().tolist()) == {0.0, 1.0}


def test_the_second_logit_is_the_tuned_copy() -> None:
    logits = torch.tensor([[[0.0, 50.0], [50.0, 0.0]]])
    assert choose_gates(logits).tolist() == [[1.0, 0.0]]
    assert sample_gates(logits, temperature=1.0).tolist() == [[1.0, 0.0]]


def test_sampling_follows_the_softmax_of_the_logits() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 1.0], [0.5, -1.5], [0.0, 0.0]]).expand(200_000, 3, 2)
    expected = logits[0].softmax(-1)[:, 1]
    for temperature in (0.5, 5.0):  # the temperature shapes the gradient, not the draw
        assert torch.allclose(sample_gates(logits, temperature).mean(0), expected, atol=0.005)


def test_the_gradient_is_that_of_the_soft_gates() -> None:
    logits = torch.randn(7, 5, 2, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(7, 5)
    torch.manual_seed(3)
    (sample_gates(logits, 2.0) * weight).sum().backward()

    torch.manual_seed(3)
    noise = -torch.empty(7, 5, 2).exponential_().log()
    soft = torch.softmax((logits.detach() + noise) / 2.0, -1)[..., 1]
    slope = weight * soft * (1 - soft) / 2.0  # of a two-way softmax
    assert torch.allclose(logits.grad, torch.stack([-slope, slope], -1), atol=1e-6)


def test_evaluation_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    choose_gates(torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())


def test_half_precision_logits_give_float32_gates() -> None:
    assert sample_gates(torch.randn(2, 3, 2).bfloat16(), 1.0).dtype == torch.float32
    assert choose_gates(torch.randn(2, 3, 2).bfloat16()).dtype == torch.float32


def test_a_head_gives_two_logits_a_gate() -> None:
    assert GateHead(8, 19)(torch.randn(4, 8)).shape == (4, 19, 2)
