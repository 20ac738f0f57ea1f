"""Peak memory by the allocator, as the benchmark reports it."""

from __future__ import annotations

import gc

import pytest
import torch
from tests.helpers.small import small_config
from torch import Tensor
from transformers import LxmertConfig

from tasks.bench.memory import process_peak, tensor_peak
from tasks.bench.variants import Variant, build_variant
from tasks.finetune.strategies import STRATEGIES
from tasks.vqa_bench import make_batches, measure, measure_memory, training_step, trim

ADAPTIVE = [name for name, strategy in STRATEGIES.items() if strategy.adaptive]
EXAMPLES = 16


def sizes() -> LxmertConfig:
    """A narrow LXMERT with the heads of the real one: attention takes its usual share of the memory."""
    config = small_config()
    config.vocab_size = 2000
    config.hidden_size, config.num_attention_heads, config.intermediate_size = 192, 3, 768
    return config


def batches(device: torch.device) -> list[tuple[dict[str, Tensor], Tensor]]:
    return make_batches(EXAMPLES, 2, sizes(), torch.Generator().manual_seed(0), device)


def step_peak(strategy: str, dense: bool, device: torch.device) -> float:
    """GB that a step of training takes beyond the weights and the optimizer's state, which are there."""
    torch.manual_seed(0)
    variant = Variant("", strategy, policy="light")
    model = build_variant(variant, sizes()).to(device)
    model.gates.dense = dense
    step = training_step(variant, model, device)
    first, last = (trim(batch) for batch in batches(device)[1:])
    step(0, *first)
    gc.collect()
    with tensor_peak(device) as peak:
        step(1, *last)
    return peak()


def test_the_peak_of_the_tensors_is_what_was_held_at_once(device: torch.device) -> None:
    with tensor_peak(device) as peak:
        kept = [torch.zeros(2**20, device=device)]
        (torch.zeros(2**21, device=device), torch.zeros(2**22, device=device))
        kept.append(torch.zeros(2**20, device=device))
    after = torch.zeros(2**24, device=device)  # is not of the block
    assert peak() == pytest.approx((2**20 + 2**21 + 2**22) * 4 / 1e9, rel=0.01)
    assert len(kept) == 2 and len(after)


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_a_routed_step_takes_less_memory_than_a_dense_one(strategy: str, device: torch.device) -> None:
    routed, dense = (step_peak(strategy, dense, device) for dense in (False, True))
    assert 0 < routed < 0.9 * dense


@pytest.mark.parametrize(
    "variant", [Variant("", "SpotTune", policy="light"), Variant("", "SpotTune", dense=True)]
)
def test_a_row_of_the_benchmark_has_all_its_figures(variant: Variant, device: torch.device) -> None:
    figures = measure(variant, sizes(), batches(device), 0, device)
    assert all(figures[name] > 0 for name in ("train", "evaluation"))
    assert measure_memory(variant, sizes(), batches(device), device) > 0


def test_the_peak_of_the_process_covers_what_was_freed_again(device: torch.device) -> None:
    """On a GPU it is what the process took from the driver, the allocator's holes included."""
    with process_peak(device) as peak:
        torch.ones(25_000_000, device=device)
    assert peak() == pytest.approx(0.1, abs=0.02)
