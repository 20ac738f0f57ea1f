"""Optimizers by name, and one schedule and one clipping for all of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
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

    To gradient scaling they are one optimizer: a step with an overflow is skipped by all or by none. `skip`,
    a bool tensor () on the device, leaves out the step if it is true. The fused ones read it on the device;
    the others make the host wait for it.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        self.defaults: dict[str, Any] = {}
        self.skip: Tensor | None = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        return {key: value for optimizer in self.optimizers for key, value in optimizer.state.items()}

    def step(self, closure: Callable[[], float] | None = None) -> None:
        for optimizer in self.optimizers:
            if self.skip is not None and type(optimizer) in FUSED:
                optimizer.found_inf = self.skip.float()  # as a GradScaler tells them
            elif self.skip is not None and self.skip:
                continue
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


def set_rate(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Let an optimizer step these of its parameters at a rate of their own."""
    own = {*parameters}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if parameter in own]
        group["params"] = [parameter for parameter in group["params"] if parameter not in own]
        optimizer.add_param_group({**group, "params": moved, "lr": lr})


def pull_to_start(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], strength: float
) -> None:
    """Let an optimizer pull parameters towards the values they have now, instead of decaying them towards 0.

    L2-SP (Li et al. 2018, arXiv:1802.01483), decoupled from the gradient as AdamW's decay is: before each
    of its steps w <- w - rate * strength * (w - start), for matrices, biases and layer norms alike.
    """
    pulled = {parameter: parameter.detach().clone() for parameter in parameters if parameter.requires_grad}
    rates: dict[float, list[nn.Parameter]] = {}  # one rate is one group, as in the states of earlier runs
    for group in optimizer.param_groups:
        rates.setdefault(group["lr"], []).extend(group["params"])
        group["params"] = [parameter for parameter in group["params"] if parameter not in pulled]
    first = len(optimizer.param_groups)
    for rate, stepped in rates.items():
        own = {*stepped}
        moved = [parameter for parameter in pulled if parameter in own]
        optimizer.add_param_group({"params": moved, "lr": rate, "weight_decay": 0.0})

    @torch.no_grad()
    def pull(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        taken = 1 - getattr(optimizer, "found_inf", 0.0)  # 0: the step is left out, see `JointOptimizer`
        for group in optimizer.param_groups[first:]:
            share = group["lr"] * strength * taken
            for parameter in group["params"]:
                if parameter.grad is not None:
                    start = pulled[parameter] = pulled[parameter].to(parameter.device)
                    parameter.sub_((parameter - start) * share)

    optimizer.register_step_pre_hook(pull)


def warm_up_then(kind: str, steps: int, warmup: float) -> Callable[[int], float]:
    """Factor on the learning rate: linear from 0 over `warmup` (a share) of the steps, then as `kind` says.

    kind: "linear" falls to 0, "constant" stays.
    """
    rise = int(steps * warmup)
    if kind == "constant":
        return lambda step: step / rise if step < rise else 1.0
    return lambda step: step / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))


def in_two_acts(kind: str, steps: int, warmup: float, first: int) -> Callable[[int], float]:
    """`warm_up_then` for the first so many steps, and anew for the others."""
    acts = warm_up_then(kind, first, warmup), warm_up_then(kind, steps - first, warmup)
    return lambda step: acts[0](step) if step < first else acts[1](step - first)


def geometric(start: float, end: float | None, share_done: float) -> float:
    """What goes from `start` to `end` (None: it stays) by equal factors, after a share of all steps."""
    return start if end is None else start * (end / start) ** share_done


def make_schedule(optimizer: JointOptimizer, factor: Callable[[int], float]) -> LambdaLR:
    """`factor` on the rate of the first of the joint optimizers; the others keep theirs."""
    first = len(optimizer.optimizers[0].param_groups)
    others = len(optimizer.param_groups) - first
    return LambdaLR(optimizer, [factor] * first + [lambda step: 1.0] * others)


def clip_gradients(accelerator: Accelerator, modules: Iterable[nn.Module], max_norm: float) -> Tensor:
    """Clip the gradient norm of each of M modules by itself; returns what the norms (M,) were."""
    accelerator.unscale_gradients()
    norms = [nn.utils.clip_grad_norm_(module.parameters(), max_norm) for module in modules]
    return torch.stack([norm.to(accelerator.device) for norm in norms])  # without gradients it is on the CPU
