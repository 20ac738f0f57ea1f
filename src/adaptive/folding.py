"""An adaptive model as a plain one: gates that are the same for all examples choose their copy for good."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.copies import RATES
from adaptive.low_rank import GatedDropout, GatedSlices, LowRank
from adaptive.model import InModel
from adaptive.pair import GatedPair
from adaptive.policies import ConstantPolicy
from adaptive.policy import choose_gates


def fold(model: nn.Module, batches: Iterable[Mapping[str, Any]] | None = None) -> nn.Module:
    """Make plain modules of those whose gates are the same for all examples of a data set.

    Returns the model. batches: its inputs, batch by batch; they can be left out for a constant policy. Where
    all gates are constant the model is then what it was before `get_adaptive_model`, with other weights;
    else the other modules stay gated, and `model.adaptive.folded` says which do not. ValueError without
    batches where they are needed, and for a model that is not adaptive.
    """
    chooser: InModel | None = getattr(model, "adaptive", None)
    if not isinstance(chooser, InModel):
        raise ValueError("the model is not adaptive: there is nothing to fold")
    gates = _constant(chooser, model, batches)  # (G,), with NaN where they vary
    width = chooser.gates.total // len(chooser.units)
    for number, name in enumerate(chooser.units):
        values = gates[number * width : (number + 1) * width]
        module = model.get_submodule(name)
        whole = bool((values == values[0]).all())
        if name in chooser.folded or values.isnan().any() or (isinstance(module, GatedPair) and not whole):
            continue
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _plain(module, values).train(model.training))
        chooser.folded[name] = int(values[0]) if whole else -1
    if len(chooser.folded) == len(chooser.units):
        chooser.detach_from(model)
        del model.adaptive
    return model


def _constant(chooser: InModel, model: nn.Module, batches: Iterable[Mapping[str, Any]] | None) -> Tensor:
    if batches is None:
        if not isinstance(chooser.network, ConstantPolicy):
            raise ValueError("whether gates are constant depends on the data: fold(model, batches of inputs)")
        found = [choose_gates(chooser.policy(input_ids=torch.zeros(1, 1)))]
    else:
        found = [chooser.gates_of(model, inputs) for inputs in batches]
    if not found:
        raise ValueError("without a batch there is nothing to tell whether gates are constant")
    every = torch.cat(found)
    return torch.where((every == every[0]).all(0), every[0], torch.nan).detach()


def _plain(module: nn.Module, gates: Tensor) -> nn.Module:
    """What a gated module (gates (w,)) is without gates."""
    if isinstance(module, GatedPair):
        chosen = module.tuned if gates[0] else module.frozen
        types = {name: parameter.dtype for name, parameter in module.tuned.named_parameters()}
        for name, parameter in chosen.named_parameters():
            parameter.data = parameter.data.to(types[name])
        return chosen.requires_grad_(True)
    made: dict[int, nn.Module] = {}

    def replaced(part: nn.Module) -> nn.Module:
        if id(part) not in made:
            made[id(part)] = part
            if isinstance(part, LowRank):
                made[id(part)] = _merged(part, gates)
            elif isinstance(part, GatedDropout):
                made[id(part)] = part.dropout
            elif isinstance(part, GatedSlices):
                made[id(part)] = replaced(part.sliced)
            else:
                vars(part).pop("forward", None)  # that of `Apart`
                vars(part).update(vars(part).pop(RATES, {}))
                for name, child in list(part._modules.items()):
                    if child is not None:
                        setattr(part, name, replaced(child))
        return made[id(part)]

    return replaced(module).requires_grad_(True)


def _merged(layer: LowRank, gates: Tensor) -> nn.Linear:
    """The Linear with its update in the rows whose gates are 1."""
    linear = copy.deepcopy(layer.frozen)
    rows = gates.to(layer.up).repeat_interleave(len(layer.up) // len(gates))
    with torch.no_grad():
        weight = linear.weight.to(layer.up.dtype) + layer.scale * (layer.up * rows[:, None]) @ layer.down
    linear.weight = nn.Parameter(weight)
    return linear
