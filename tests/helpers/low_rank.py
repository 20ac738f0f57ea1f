"""Oracles of low-rank copies: the formula for autograd to differentiate, merged weights, counted products."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adaptive.low_rank import LowRank


def move(model: nn.Module) -> nn.Module:
    """As if training had gone on for a while: `up` is no longer zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LowRank):
                layer.up.copy_(0.3 * torch.randn(layer.up.shape, generator=generator))
    return model


def merge(model: nn.Module) -> nn.Module:
    """A copy of the model whose Linears are plain ones with W + scale B A, and which knows no gates."""

    def merged(layer: LowRank) -> nn.Linear:
        linear = copy.deepcopy(layer.frozen)
        with torch.no_grad():
            linear.weight.add_(layer.scale * layer.up @ layer.down)
        return linear

    twin = exchanged(copy.deepcopy(model), LowRank, merged)
    for module in twin.modules():
        vars(module).pop("forward", None)  # an `Apart`
    return twin


def exchanged(model: nn.Module, kind: type, make: Callable[[Any], nn.Module]) -> nn.Module:
    """The model with what `make` makes of each module of a kind in its place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, kind):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make(module))
    return model


class Naive(nn.Module):
    """y = W x + b + g scale B A x, for autograd to differentiate."""

    def __init__(self, layer: LowRank) -> None:
        super().__init__()
        self.frozen, self.down, self.up = layer.frozen, layer.down, layer.up
        self.layer = (layer,)

    def forward(self, x: Tensor) -> Tensor:
        (layer,) = self.layer
        update = layer.scale * F.linear(F.linear(x, self.down), self.up)
        if layer.gates is not None:
            gate = layer.gates.of(layer.start, layer.width)
            gate = gate.repeat_interleave(update.shape[-1] // layer.width, dim=1)
            update = gate.view(len(x), *[1] * (x.dim() - 2), gate.shape[1]) * update
        return self.frozen(x) + update


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__.rstrip("_")
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            self.counts[name] += 1
        return function(*args, **kwargs or {})

    @property
    def total(self) -> int:
        return self.counts.total()
