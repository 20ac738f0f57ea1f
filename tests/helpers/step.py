"""One training step of a small model on a given device, with everything that it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.helpers.small import ANSWERS, random_inputs
from torch import Tensor, nn

from adaptive import adapt
from adaptive.adapt import Adaptive
from adaptive.copies import is_tuned_side
from adaptive.policy import sample_gates
from lxmert.loading import load_pretrained
from tasks.finetune.args import VqaArgs
from tasks.finetune.model import build, vqa_loss
from tasks.finetune.spec import ModelSpec
from tasks.finetune.strategies import STRATEGIES
from training.optim import JointOptimizer, make_optimizer

EXAMPLES = 12
# Strategies with full copies, by their names, and those with low-rank ones.
LORA = [f"{name}, lora" for name, strategy in STRATEGIES.items() if not strategy.keeps]
VARIANTS = [*STRATEGIES, *LORA]


class Step(NamedTuple):
    """What a step gave, on the CPU."""

    logits: Tensor
    gates: Tensor
    gradients: dict[str, Tensor]
    parameters: dict[str, Tensor]  # after the step


def choices(variant: str) -> dict[str, Any]:
    """The arguments of the trainer for one of VARIANTS."""
    strategy, _, tuned = variant.partition(", ")
    return {"strategy": strategy} | ({"tuned": tuned, "rank": 3} if tuned else {})


def draw_gates_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that depend on no device, no rounding and no logits, but whose gradients reach the policy.

    Half of them are tuned: the noise outweighs the logits, at a temperature at which soft gates are not
    yet hard.
    """

    def sample(logits: Tensor, temperature: float, noise: Tensor | None, estimator: str) -> Tensor:
        tuned = torch.rand(logits.shape[:2], generator=torch.Generator().manual_seed(1)) < 0.5
        noise = torch.exp(torch.where(torch.stack([tuned, ~tuned], -1), 25.0, -25.0))
        return sample_gates(logits, 30.0, noise.to(logits.device), estimator)

    monkeypatch.setattr(adapt, "sample_gates", sample)


def make_model(pretrained: Path, variant: str, device: torch.device, **options: Any) -> Adaptive:
    """One of VARIANTS whose tuned copies have moved away from the frozen ones. options: those of `build`."""
    torch.manual_seed(0)
    spec = ModelSpec.of(VqaArgs(pretrained=str(pretrained), **choices(variant)))
    model = build(spec, load_pretrained(spec), ANSWERS, **options)[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_tuned_side(name):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(device).train()


def take_step(
    pretrained: Path, variant: str, device: torch.device, optimizer: str = "sgd", **options: Any
) -> Step:
    """A step without dropout, which no two devices draw alike. options: those of `build`."""
    model = make_model(pretrained, variant, device, **options)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return step_of(model, device, optimizer, options.get("precision", "fp32"))


def step_of(model: Adaptive, device: torch.device, optimizer: str, precision: str = "fp32") -> Step:
    """A step of `model`, which is on `device`."""
    joint = JointOptimizer([make_optimizer(optimizer, part, 0.1, 0.01) for part in model.children()])
    inputs = {name: tensor.to(device) for name, tensor in random_inputs(EXAMPLES).items()}
    target = torch.rand(EXAMPLES, len(ANSWERS), generator=torch.Generator().manual_seed(2)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = model(**inputs)
        loss = vqa_loss(output.outputs, target)
    loss.backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    joint.step()
    parameters = {name: p.detach().cpu() for name, p in model.named_parameters()}
    logits = output.outputs.detach().float()
    return Step(logits.cpu(), output.gates_of(logits).detach().cpu(), gradients, parameters)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor], floor: float = 1e-3) -> tuple[float, str]:
    """The largest difference between tensors of the same names, relative to the largest element of each.

    Of a tensor that is 0 but for rounding, as the gradients of keys' biases are, it is relative to a share of
    the largest element of all: `floor`.
    """
    assert found.keys() == expected.keys()
    sizes = {name: tensor.abs().max().item() for name, tensor in expected.items()}
    least = floor * max(sizes.values())
    distances = {
        name: (found[name] - tensor).abs().max().item() / max(sizes[name], least)
        for name, tensor in expected.items()
    }
    name = max(distances, key=distances.__getitem__)
    return distances[name], name
