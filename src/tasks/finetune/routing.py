"""How the gates of full copies are carried out: what --routing auto means on this device.

Routing halves the arithmetic and doubles the number of operations. On a CPU arithmetic decides; a fast GPU
waits for operations to be launched, and may be faster with both copies computed for all examples.
"""

import time
from itertools import cycle, islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from tasks.finetune.model import vqa_loss
from training.machine import Machine
from training.optim import JointOptimizer

ROUTED, DENSE = "routed", "dense"
WARM_UP, STEPS = 2, 6  # steps of both ways in turn


def settle_routing(
    asked: str | None, machine: Machine, model: nn.Module, optimizer: JointOptimizer, loader: DataLoader
) -> tuple[str, list[str]]:
    """What `asked`, the value of --routing or None, comes to: routed or dense, and messages about it.

    model, optimizer, loader: those of training, as the machine prepared them.
    """
    if asked is None and machine.device.type == "cpu":
        asked = ROUTED
    if asked in (ROUTED, DENSE):
        return asked, []
    chosen, words = _measure(machine, model, optimizer, next(iter(loader)))
    machine.accelerator.unwrap_model(model).gates.dense = chosen == DENSE
    return chosen, [words]


def _measure(
    machine: Machine, model: nn.Module, optimizer: JointOptimizer, batch: dict[str, Any]
) -> tuple[str, str]:
    """The faster way in a few steps of training on a batch, and a sentence that says so.

    Model and optimizer are left as they were, and so is the state of the random numbers: the run is the one
    that it would have been with the choice as a flag.
    """
    accelerator = machine.accelerator
    gates = accelerator.unwrap_model(model).gates
    seconds = dict.fromkeys((ROUTED, DENSE), 0.0)
    before = [(buffer, buffer.clone()) for buffer in model.train().buffers()]
    devices = [] if machine.device.type == "cpu" else [machine.device]
    with torch.random.fork_rng(devices, device_type=machine.device.type):
        for step, way in enumerate(islice(cycle(seconds), 2 * (WARM_UP + STEPS))):
            gates.dense = way == DENSE
            start = _now(machine.device)
            try:
                accelerator.backward(vqa_loss(model(**batch["inputs"]).outputs, batch["target"]))
            except torch.OutOfMemoryError:
                seconds = {ROUTED: 0.0, DENSE: float("inf")}
                break
            finally:
                optimizer.zero_grad()
            if step >= 2 * WARM_UP:
                seconds[way] += (_now(machine.device) - start) / STEPS
    for buffer, value in before:
        buffer.copy_(value)
    routed, dense = _mean_of_all(accelerator, seconds.values())
    chosen = ROUTED if routed <= dense else DENSE
    if dense == float("inf"):
        return chosen, f"routing: {chosen}, as there is no memory for both copies of all examples"
    measured = f"{routed:.3f} s routed and {dense:.3f} s dense"
    return chosen, f"routing: {chosen}, as a step took {measured} in the mean of {STEPS}"


def _mean_of_all(accelerator: Accelerator, values: Any) -> list[float]:
    """Of all processes, so that they choose the same."""
    mean = accelerator.reduce(torch.tensor([*values], device=accelerator.device), "mean")
    return mean.tolist()


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
