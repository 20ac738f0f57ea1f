"""A training step on the device is that of the CPU, of both copies computed, and of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.helpers.step import (
    LORA,
    VARIANTS,
    Step,
    distance,
    draw_gates_alike,
    make_model,
    step_of,
    take_step,
)

from tasks.finetune.strategies import STRATEGIES

CPU = torch.device("cpu")
ADAPTIVE = [name for name, strategy in STRATEGIES.items() if strategy.adaptive]
FP32 = 1e-4
BF16 = 0.2  # twice what a CPU's bf16 comes to: its products round by up to 0.4 %, some twenty in a row


def assert_alike(found: Step, expected: Step, tolerance: float, floor: float = 1e-3) -> None:
    """tolerance and floor: see `distance`."""
    assert torch.equal(found.gates, expected.gates)
    assert distance({"logits": found.logits}, {"logits": expected.logits})[0] <= tolerance
    for part in ("gradients", "parameters"):
        worst, name = distance(getattr(found, part), getattr(expected, part), floor)
        assert worst <= tolerance, f"{part}: {name}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_in_fp32_is_that_of_the_cpu(
    pretrained: Path, variant: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_gates_alike(monkeypatch)
    assert_alike(take_step(pretrained, variant, device), take_step(pretrained, variant, CPU), FP32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_in_bf16_is_that_of_the_cpu_in_fp32_but_for_its_rounding(
    pretrained: Path, variant: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_gates_alike(monkeypatch)
    found = take_step(pretrained, variant, device, precision="bf16")
    expected = take_step(pretrained, variant, CPU)
    assert not torch.equal(found.logits, expected.logits)  # it was bf16
    cast = {name for name, tensor in found.parameters.items() if tensor.dtype != torch.float32}
    assert all(".frozen." in name for name in cast) and bool(cast) == (variant in (*ADAPTIVE, *LORA))
    assert_alike(found, expected, BF16, floor=1e-2)


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_routed_is_dense(
    pretrained: Path, strategy: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_gates_alike(monkeypatch)
    routed, dense = (take_step(pretrained, strategy, device, dense=dense) for dense in (False, True))
    assert 0.3 < routed.gates.mean() < 0.7
    assert_alike(routed, dense, FP32)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_step_again_is_the_same_to_the_last_bit(
    pretrained: Path, variant: str, precision: str, device: torch.device
) -> None:
    """With dropout and gate noise, which the seed decides, and no option that asks for determinism."""
    steps = [
        step_of(make_model(pretrained, variant, device, precision=precision), device, "adamw", precision)
        for _ in range(2)
    ]
    assert torch.equal(steps[0].logits, steps[1].logits)
    for part in ("gradients", "parameters"):
        one, other = (getattr(step, part) for step in steps)
        assert one.keys() == other.keys()
        assert not [name for name in one if not torch.equal(one[name], other[name])]
