from __future__ import annotations

import torch

from adaptive.usage import Usage, variation


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
