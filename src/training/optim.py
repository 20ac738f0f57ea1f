"""Optimizers by name, and one schedule and one clipping for all of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

# "bert" is the earlier implementation's name for its Adam with decoupled decay and without bias correction.
# Here it is AdamW with bias correction, under the same schedule.
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "bert": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "rms": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
# These update all parameters in one pass over memory instead of one pass an operation.
FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)


class JointOptimizer(torch.optim.Optimizer):
    """Several optimizers that step as one.

    To gradient scaling they are one optimizer: a step with an overflow is skipped by all or by none.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        return {key: value for optimizer in self.optimizers for key, value in optimizer.state.items()}

    def step(self, closure: Callable[[], float] | None = None) -> None:
        for optimizer in self.optimizers:
            optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {str(index): optimizer.state_dict() for index, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for index, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state_dict[str(index)])


def make_optimizer(name: str, module: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters; weight matrices decay, biases and layer norms do not."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    kind = OPTIMIZERS[name]
    return kind(groups, lr=lr, **({"fused": True} if kind in FUSED else {}))


def warm_up_then_decay(steps: int, warmup: float) -> Callable[[int], float]:
    """Factor on the learning rate: linear from 0 over `warmup` (a share) of the steps, then linear to 0."""
    rise = int(steps * warmup)
    return lambda step: step / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))


def geometric(start: float, end: float | None, share_done: float) -> float:
    """What goes from `start` to `end` (None: it stays) by equal factors, after a share of all steps."""
    return start if end is None else start * (end / start) ** share_done


def make_schedule(optimizer: JointOptimizer, factor: Callable[[int], float]) -> LambdaLR:
    """`factor` on the rate of the first of the joint optimizers; the others keep theirs."""
    first = len(optimizer.optimizers[0].param_groups)
    others = len(optimizer.param_groups) - first
    return LambdaLR(optimizer, [factor] * first + [lambda step: 1.0] * others)


def clip_gradients(accelerator: Accelerator, modules: Iterable[nn.Module], max_norm: float) -> None:
    """Clip the gradient norm of each module by itself."""
    accelerator.unscale_gradients()
    for module in modules:
        nn.utils.clip_grad_norm_(module.parameters(), max_norm)
