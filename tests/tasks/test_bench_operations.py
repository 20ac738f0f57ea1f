"""Operations are counted as a GPU would be asked for them, and a step has a budget of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LxmertConfig

from kernels.attention import attention
from kernels.dropout import Dropout
from kernels.linear import WORTHWHILE, Linear
from tasks.bench.operations import as_on_a_gpu, count_operations, narrow
from tasks.bench.variants import ANSWERS, Variant
from tasks.finetune.strategies import STRATEGIES
from tasks.vqa_bench import measure_operations

CPU = torch.device("cpu")

# Upper limits at base depth, half of the gates tuned, light policy: in training and in evaluation.
BUDGETS = {
    "standard": (1331, 392),
    "Frozen": (833, 392),
    "SpotTune": (3907, 1131),
    "SpotTune_Res": (3957, 1079),
    "SpotTune_Block": (3234, 883),
}


# With low-rank copies.
LOW_RANK_BUDGETS = {"standard": (2183, 392), "SpotTune": (3621, 939), "SpotTune_Block": (3269, 885)}


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("strategy", BUDGETS)
def test_a_step_stays_within_its_budget_of_operations(strategy: str) -> None:
    """A change that needs fewer lowers its limit; one that needs more has to say why."""
    config = LxmertConfig(num_qa_labels=ANSWERS)
    counted = measure_operations(Variant("", strategy, policy="light"), config, 16, CPU)
    limits = dict(zip(("train_operations", "evaluation_operations"), BUDGETS[strategy], strict=True))
    assert all(0.97 * limit <= counted[name] <= limit for name, limit in limits.items()), counted


@pytest.mark.parametrize("strategy", LOW_RANK_BUDGETS)
def test_a_step_with_low_rank_copies_does_too(strategy: str) -> None:
    config = LxmertConfig(num_qa_labels=ANSWERS)
    counted = measure_operations(Variant("", strategy, policy="light", tuned="lora"), config, 16, CPU)
    limits = dict(zip(("train_operations", "evaluation_operations"), LOW_RANK_BUDGETS[strategy], strict=True))
    assert all(0.97 * limit <= counted[name] <= limit for name, limit in limits.items()), counted


def test_full_copies_of_every_strategy_have_a_budget() -> None:
    assert set(BUDGETS) == set(STRATEGIES)


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (lambda x: x.view(-1).view(4, 4).t().detach().unsqueeze(0), 0),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x + 1, 1),
        (lambda x: (x * x).sum(), 2),
        (lambda x: (x.clone().requires_grad_() * 2).sum().backward(), 1 + 2 + 2),  # ones and a product
    ],
    ids=["views", "an allocation", "a sum", "two", "with backward"],
)
def test_what_starts_a_kernel_is_counted_and_nothing_else(function: object, operations: int) -> None:
    x = torch.randn(4, 4)
    assert count_operations(lambda: function(x)) == operations


MASK = torch.arange(8) < torch.tensor([[8], [5]])


def attend(x: Tensor, rate: float) -> Tensor:
    return attention(x, x, x, MASK, rate)


def test_without_a_gpu_its_path_is_taken() -> None:
    """Fused attention with its dropout, dropout in one operation, PyTorch's own product."""
    x = torch.randn(2, 3, 8, 16)
    layer = Linear(512, WORTHWHILE // 512)
    module = nn.Sequential(layer, Dropout(0.1)).train()
    rows = torch.randn(2, 512)
    with as_on_a_gpu(CPU):
        assert count_operations(lambda: attend(x, 0.1)) == count_operations(lambda: attend(x, 0.0)) == 2
        assert count_operations(lambda: module(rows)) == 2
        assert count_operations(lambda: nn.Dropout(0.1)(rows)) == 1
    assert count_operations(lambda: attend(x, 0.1)) > 6
    assert count_operations(lambda: module(rows)) > 2


def test_there_a_tensor_is_on_a_gpu_for_whoever_asks_and_the_numbers_stay() -> None:
    x = torch.randn(2, 3, 8, 16)
    expected = attend(x, 0.0)
    with as_on_a_gpu(CPU):
        assert x.device.type == nn.Parameter(x).device.type == "cuda"
        made = torch.arange(3, device=x.device)
        assert torch.equal(attend(x.to(x.device), 0.0), expected)
        assert torch.equal(F.dropout(x, 0.5, training=False), x)
        thinned = F.dropout(torch.ones(10_000), 0.25)
    assert made.device == x.device == CPU
    assert thinned.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert not torch.is_autocast_enabled("cuda")


def test_a_narrow_model_is_as_deep_and_has_as_many_heads() -> None:
    wide = LxmertConfig(l_layers=3, r_layers=2, x_layers=4, hidden_size=96, num_attention_heads=6)
    config = narrow(wide)
    assert config.hidden_size == 4 * 6
    for name in ("l_layers", "r_layers", "x_layers", "num_attention_heads", "num_qa_labels"):
        assert getattr(config, name) == getattr(wide, name)
