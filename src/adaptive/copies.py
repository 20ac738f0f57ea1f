"""Where the tuned side of a module comes from: a copy of its own, or a low-rank update of the frozen one.

Each function here makes what `adapt` puts in the place of a module, given the gates that it shares.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from adaptive.gates import Gates
from adaptive.low_rank import Apart, GatedDropout, GatedSlices, LowRank
from adaptive.pair import GatedPair, Sliced
from adaptive.storage import cast_matrices

# Which names of submodules copies put into the names of parameters, see `plain_name`.
PARTS = (".tuned", ".frozen", ".sliced")
# In a module whose dropout is off: what was set to 0, and its values, so that they can be put back.
RATES = "_rates_of_dropout"
Copies = Callable[[nn.Module, Gates | None, int, int], nn.Module]  # module, gates, first gate, how many


def full_copy(frozen_dtype: torch.dtype | None = None) -> Copies:
    """A `GatedPair` of the module, to be tuned, and of a duplicate, frozen.

    The matrices of the frozen one are stored in `frozen_dtype` (None: as they are).
    """

    def copies(module: nn.Module, gates: Gates, start: int, width: int) -> nn.Module:
        frozen = copy.deepcopy(module)
        if frozen_dtype is not None:
            cast_matrices(frozen, frozen_dtype)
        return GatedPair(frozen, module, gates, start, width)

    return copies


def low_rank(rank: int, alpha: float | None = None, frozen_dtype: torch.dtype | None = None) -> Copies:
    """The module itself, frozen, with a `LowRank` update of every Linear in it whose weights were to train.

    alpha: the update is scaled by alpha / rank (None: by 1). Biases, layer norms and whatever else there is
    stay frozen. Its dropout modules apply to what runs tuned only, as with full copies; a part that drops by
    itself, at a rate that it reads, could not tell who runs tuned, so this is switched off, see
    `drops_nothing_itself`. Without gates (None) everything runs tuned: plain LoRA. A Linear that is in
    several places stays one, with the gates of the first; of Linears that share their weight each gets an
    update of its own. In evaluation frozen and tuned examples may run apart, see `Apart`.

    ValueError for a rank that is not positive, for a module with matrices but no Linear, and for one with an
    `nn.MultiheadAttention`, which multiplies with its weights by itself.
    """
    if rank < 1:
        raise ValueError(f"a rank is at least 1, not {rank}")
    scale = 1.0 if alpha is None else alpha / rank
    made: dict[int, nn.Module] = {}  # by the id of what they replace
    held: set[int] = set()  # ids of parameters that were to train, until a unit froze them

    def copies(module: nn.Module, gates: Gates | None, start: int, width: int) -> nn.Module:
        _require_linears(module)

        def replaced(part: nn.Module, inside_slices: bool = False) -> nn.Module:
            if id(part) in made:
                return made[id(part)]
            sliced = gates is not None and isinstance(part, Sliced)
            for name, child in list(part._modules.items()):  # of one module all names, unlike named_children
                if child is not None:
                    setattr(part, name, replaced(child, inside_slices or sliced))
            fresh = part
            if isinstance(part, nn.Linear) and (part.weight.requires_grad or id(part.weight) in held):
                fresh = LowRank(part, rank, scale, gates, start, width)
            elif sliced:
                fresh = GatedSlices(part, gates, start, width)
            elif gates is not None and isinstance(part, nn.Dropout) and not inside_slices:
                fresh = GatedDropout(part, gates, start, width)
            if gates is not None and not (inside_slices or sliced):
                drops_nothing_itself(part)
            made[id(part)] = made[id(fresh)] = fresh
            kept.append(part)
            return fresh

        kept: list[nn.Module] = []
        fresh = replaced(module)
        for part in kept:
            for parameter in part.parameters(recurse=False):
                held.update([id(parameter)] if parameter.requires_grad else [])
                parameter.requires_grad_(False)
            if frozen_dtype is not None and isinstance(part, nn.Linear):
                cast_matrices(part, frozen_dtype)
        layers = [part for part in fresh.modules() if isinstance(part, LowRank)]
        # Not where a layer has the gates of another unit: that one needs to see the whole batch. And for one
        # layer alone, sorting the examples would cost what it saves.
        alike = all((layer.gates, layer.start) == (gates, start) for layer in layers)
        has_forward = type(fresh).forward is not nn.Module.forward  # and is no list of modules
        if gates is not None and width == 1 and alike and has_forward and len(layers) > 1:
            fresh.forward = Apart(fresh, gates, start)
        return fresh

    return copies


def drops_nothing_itself(part: nn.Module) -> None:
    """Set the rates of dropout to 0 that a module reads, and has no dropout module for.

    They are numbers among its attributes, or in a configuration that its forward pass looks at, of which it
    gets a copy.
    """
    rates: dict[str, Any] = dict(_rates(vars(part)))
    read = getattr(inspect.unwrap(type(part).forward), "__code__", _rates.__code__).co_names
    config = getattr(part, "config", None)
    in_config = {name: 0.0 for name, _ in _rates(getattr(config, "__dict__", {})) if name in read}
    if in_config and "config" in read:
        part.config = copy.copy(config)
        vars(part.config).update(in_config)
    elif not rates:
        return
    vars(part).update(dict.fromkeys(rates, 0.0))
    setattr(part, RATES, rates | ({"config": config} if in_config else {}))


def _rates(attributes: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in attributes.items():
        if "drop" in name and isinstance(value, float) and value > 0:
            yield name, value


def _require_linears(module: nn.Module) -> None:
    """ValueError if low-rank updates of a module would never be taken."""
    parts, reason = list(module.modules()), None
    if any(isinstance(part, nn.MultiheadAttention) for part in parts):
        reason = (
            "its nn.MultiheadAttention does not call its Linears. Give it full copies, or another attention"
        )
    matrices = any(parameter.dim() > 1 for parameter in module.parameters())
    if matrices and not any(isinstance(part, nn.Linear | LowRank) for part in parts):
        reason = "none of its layers is an nn.Linear"
    if reason:
        raise ValueError(f"{type(module).__name__} cannot have low-rank copies: {reason}.")


def plain_name(name: str) -> str:
    """The name that a parameter of an adapted model had before; that of a low-rank factor for its Linear."""
    for part in PARTS:
        name = f".{name}.".replace(f"{part}.", ".").strip(".")
    return name


def is_tuned_side(name: str) -> bool:
    """Whether a parameter of this name is one that copies added: of a tuned copy, or a low-rank factor."""
    return ".tuned." in name or name.endswith((".down", ".up"))
