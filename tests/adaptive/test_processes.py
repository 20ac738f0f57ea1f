"""An adaptive model in several processes: the gradients of one that has the whole batch."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.adaptive.test_model import adaptive_bert, labelled
from tests.helpers.architectures import move
from tests.helpers.ranks import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

EACH = 2  # examples of a process
STEPS = 2  # of an optimizer, as what was not reduced in one would stop the next


def gates() -> Tensor:
    """Rows of the joined batch: of the first process mixed, of the second all frozen."""
    return torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])


def trained(model: nn.Module, rows: slice, held: bool, whole: nn.Module | None = None) -> dict[str, Tensor]:
    """Gradients of the last of some steps; `whole` is the model that holds `model.adaptive`."""
    chooser = (whole or model).adaptive
    inputs = {name: value[: 2 * EACH][rows] for name, value in labelled().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    draws = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        if held:
            with chooser.holding(gates()[rows]):
                loss = model(**inputs).loss
        else:
            chooser.draw_noise(draws, 2 * EACH, rows)
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
    found = (whole or model).named_parameters()
    return {name: parameter.grad for name, parameter in found if parameter.requires_grad}


def compare_gradients(tuned: str, held: bool, rank: int) -> None:
    """Of this process's part of the batch, joined, with those that one process alone would have."""
    model = adaptive_bert(tuned=tuned, rank=2).train()
    move(model)
    alone = copy.deepcopy(model)
    expected = trained(alone, slice(None), held)
    joined = DistributedDataParallel(model, find_unused_parameters=True)
    found = trained(joined, slice(rank * EACH, (rank + 1) * EACH), held, model)
    for name, value in expected.items():
        value = torch.zeros_like(found[name]) if value is None and found[name] is not None else value
        if value is not None:
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    moved = [name for name, value in expected.items() if value is not None and value.any()]
    assert any(".tuned." in name or name.endswith(".up") for name in moved)
    assert any(name.startswith("adaptive.") for name in moved) == (not held)


def compare(tuned: str) -> None:
    """What a process does: both runs."""
    dist.init_process_group("gloo")
    for held in (True, False):
        compare_gradients(tuned, held, dist.get_rank())
    gc.collect()  # what still holds the group would wait for it at the end of the process
    dist.barrier()
    dist.destroy_process_group()
    print("equal")


@pytest.mark.slow
@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_gradients_of_two_processes_are_those_of_the_joined_batch(tuned: str, tmp_path: Path) -> None:
    """Also where all examples of one run frozen, so that it does not use the tuned copies."""
    assert "equal" in run_ranks(2, tmp_path, compare, tuned)
