from __future__ import annotations

import math

import pytest
import torch

from adaptive.usage import Usage, information, variation


def test_shares_are_counts_over_all_batches() -> None:
    torch.manual_seed(0)
    batches = [(torch.rand(n, 3) < 0.4, torch.randint(0, 2, (n,))) for n in (5, 1, 8)]
    usage = Usage(3, 2, torch.device("cpu"))
    for gates, group in batches:
        usage.update(gates.float(), group)
    gates = torch.cat([gates for gates, _ in batches]).float()
    group = torch.cat([group for _, group in batches])
    assert torch.allclose(usage.share(), gates.mean(0))
    for k in (0, 1):
        assert torch.allclose(usage.share_by_group()[k], gates[group == k].mean(0))


def test_counting_keeps_no_graph() -> None:
    gates = torch.ones(2, 3, requires_grad=True)
    usage = Usage(3, 1, torch.device("cpu"))
    usage.update(gates, torch.zeros(2, dtype=torch.long))
    assert not usage.tuned.requires_grad


def test_a_group_without_examples_has_no_share() -> None:
    usage = Usage(2, 2, torch.device("cpu"))
    usage.update(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
    assert usage.share_by_group()[1].isnan().all()


def test_variation_is_zero_for_a_fixed_mask_and_at_most_a_half() -> None:
    assert variation(torch.tensor([0.0, 1.0, 0.5, 0.9])).tolist() == [
        0.0,
        0.0,
        0.5,
        1 - torch.tensor(0.9).item(),
    ]


def test_information_is_the_sum_over_frequencies() -> None:
    torch.manual_seed(0)
    gates, group = torch.rand(200, 4) < torch.tensor([0.1, 0.5, 0.9, 0.0]), torch.randint(0, 3, (200,))
    gates[:, 1] |= group == 2
    usage = Usage(4, 3, torch.device("cpu"))
    usage.update(gates, group)
    bits = information(usage.tuned, usage.examples)
    for gate in range(4):
        total = 0.0
        for value in (False, True):
            for k in range(3):
                joint = ((gates[:, gate] == value) & (group == k)).float().mean().item()
                alone = (gates[:, gate] == value).float().mean() * (group == k).float().mean()
                total += joint * math.log2(joint / alone.item()) if joint else 0.0
        assert bits[gate].item() == pytest.approx(total, abs=1e-6)


def test_a_gate_that_is_the_group_tells_all_of_it_and_a_constant_one_nothing() -> None:
    group = torch.arange(40) % 2
    usage = Usage(2, 2, torch.device("cpu"))
    usage.update(torch.stack([group, torch.ones(40)], 1), group)
    assert information(usage.tuned, usage.examples).tolist() == pytest.approx([1.0, 0.0])
