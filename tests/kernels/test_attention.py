"""Attention computes equation 1 whichever way it takes, and drops only in the heads it is told to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import attention as module
from kernels.attention import attention

HEADS = 3


def make() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries (4, 3, 5, 8), keys and values (4, 3, 7, 8), and a mask (4, 7)."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(4, HEADS, n, 8, generator=generator) for n in (5, 7, 7))
    return query, key, value, torch.arange(7) < torch.tensor([7, 1, 4, 6])[:, None]


def by_the_book(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Example by example, without the keys that are masked."""
    rows = []
    for q, k, v, seen in zip(query, key, value, mask, strict=True):
        weights = torch.softmax(q @ k[:, seen].mT / 8**0.5, dim=-1)
        rows.append(weights @ v[:, seen])
    return torch.stack(rows)


@pytest.mark.parametrize("fused", [True, False])
def test_both_ways_compute_the_formula_and_its_gradients(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_fused", lambda *_: fused)
    *inputs, mask = make()
    gradients = []
    for compute in (lambda *args: attention(*args, 0.0), by_the_book):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = compute(*leaves, mask)
        gradients.append([output, *torch.autograd.grad(output.sin().sum(), leaves)])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tuned", [None, torch.arange(12).view(4, HEADS) % 5 < 2])
def test_only_heads_of_the_tuned_copy_get_dropout(tuned: Tensor | None) -> None:
    inputs = make()
    torch.manual_seed(0)
    draws = torch.stack([attention(*inputs, 0.5, tuned) for _ in range(20)])
    moved = (draws - attention(*inputs, 0.0)).abs().amax(dim=(0, 3, 4)) > 1e-4  # (4, HEADS)
    assert torch.equal(moved, torch.ones_like(moved) if tuned is None else tuned)


def test_dropout_keeps_the_mean() -> None:
    inputs = make()
    torch.manual_seed(0)
    draws = torch.stack([attention(*inputs, 0.25) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), attention(*inputs, 0.0), rtol=0, atol=0.06)


@pytest.mark.parametrize(
    ("dtype", "rate", "fused"),
    [(torch.float32, 0.0, True), (torch.float32, 0.1, False), (torch.bfloat16, 0.0, False)],
)
def test_a_cpu_takes_the_fused_way_in_fp32_without_dropout(
    dtype: torch.dtype, rate: float, fused: bool
) -> None:
    assert module._fused(make()[0].to(dtype), rate) == fused


def test_other_devices_always_take_it() -> None:
    assert module._fused(make()[0].to("meta").bfloat16(), 0.1)


@pytest.mark.parametrize("heads", [HEADS, 1])
def test_fused_and_step_by_step_agree_on_heads_without_dropout(
    heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the others get dropout both ways; one mark may stand for all heads of an example."""
    tuned = torch.arange(4 * heads).view(4, heads) % 3 < 1
    inputs = make()
    plain = attention(*inputs, 0.0)
    for fused in (True, False):
        monkeypatch.setattr(module, "_fused", lambda query, rate, fused=fused: fused)
        torch.manual_seed(0)
        moved = (attention(*inputs, 0.5, tuned) - plain).abs().amax(dim=(2, 3)) > 1e-4
        assert torch.equal(moved, tuned.expand(4, HEADS))
