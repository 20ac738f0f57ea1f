"""Arguments that a module writes to, such as the caches of decoders, apart for the rows of each copy.

In such an object every tensor of two or more dimensions has the examples in its first one, as all caches of
transformers do. A copy gets a view: the same object with only its rows. Afterwards the rows of both views are
put together in the object itself.
"""

from __future__ import annotations

import copy
import types
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.layout import is_constant, shape_of

_PLAIN = (Tensor, nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType, torch.Generator)


def is_state(value: Any) -> bool:
    """Whether a value is an object whose attributes could be written to: no tensor or module."""
    return (
        not is_constant(value)
        and hasattr(value, "__dict__")
        and not isinstance(value, _PLAIN)
        and not callable(value)
    )


def rows_of(value: Any, index: Tensor, batch: int) -> Any:
    """`value`, a state or what is in one, with the rows `index` of all tensors; the original stays as it is.

    ValueError for a tensor that has not one row for each of `batch` examples.
    """
    if isinstance(value, Tensor):
        if value.dim() < 2:
            return value.clone()
        if value.shape[0] != batch:
            raise ValueError(
                f"what a gated module may write to holds {shape_of(value)}, which is not of a batch of "
                f"{batch} "
                "examples: hand over a fresh one, or none (use_cache=False)"
            )
        return value.index_select(0, index)
    if isinstance(value, list):
        return _Lazily(value, index, batch)
    if type(value) in (dict, tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        made = {key: rows_of(part, index, batch) for key, part in parts}
        return made if isinstance(value, dict) else tuple(made.values())
    if is_state(value):
        view = copy.copy(value)
        vars(view).update({name: rows_of(part, index, batch) for name, part in vars(value).items()})
        return view
    return value


class _Lazily(list):
    """A list that makes views of what is looked at only: a layer looks at its own cache."""

    def __init__(self, original: list, index: Tensor, batch: int) -> None:
        super().__init__(original)
        self._rows = index, batch
        self._original = original

    def __getitem__(self, key: Any) -> Any:
        for place in range(len(self))[key] if isinstance(key, slice) else [key]:
            part = list.__getitem__(self, place)
            place = range(len(self))[place]
            if place < len(self._original) and part is self._original[place]:
                self[place] = rows_of(part, *self._rows)
        return list.__getitem__(self, key)

    def __iter__(self) -> Any:
        return (self[place] for place in range(len(self)))


def write_back(original: Any, views: tuple[Any, Any], rows: Any, batch: int) -> Any:
    """Put what the frozen and the tuned copy left in their views together, in `original`; returns it.

    rows: `adaptive.gates.Rows`. ValueError if they left different things that are no tensors.
    """
    frozen, tuned = views
    if frozen is tuned:  # nobody looked at it
        return frozen
    if frozen is original:
        frozen = rows_of(original, rows.frozen, batch)
    if tuned is original:
        tuned = rows_of(original, rows.tuned, batch)
    if isinstance(frozen, Tensor) and isinstance(tuned, Tensor):
        if frozen.dim() >= 2:
            return torch.cat([frozen, tuned]).index_select(0, rows.order.argsort())
        if torch.equal(frozen, tuned):
            return frozen
    elif isinstance(frozen, list) and isinstance(tuned, list) and len(frozen) == len(tuned):
        for place, pair in enumerate(zip(list.__iter__(frozen), list.__iter__(tuned), strict=True)):
            old = original[place] if isinstance(original, list) and place < len(original) else None
            made = write_back(old, pair, rows, batch)
            if isinstance(original, list) and place < len(original):
                original[place] = made
            elif isinstance(original, list):
                original.append(made)
        return original if isinstance(original, list) else frozen
    elif isinstance(frozen, dict) and isinstance(tuned, dict) and frozen.keys() == tuned.keys():
        old = original if isinstance(original, dict) else {}
        old.update({key: write_back(old.get(key), (frozen[key], tuned[key]), rows, batch) for key in frozen})
        return old
    elif isinstance(frozen, tuple) and isinstance(tuned, tuple) and len(frozen) == len(tuned):
        old = (
            original if isinstance(original, tuple) and len(original) == len(frozen) else [None] * len(frozen)
        )
        return tuple(
            write_back(*parts, rows, batch)
            for parts in zip(old, zip(frozen, tuned, strict=True), strict=True)
        )
    elif is_state(frozen) and type(frozen) is type(tuned):
        target = original if type(original) is type(frozen) else frozen
        old = dict(vars(target)) if target is original else {}
        for name in dict.fromkeys([*vars(frozen), *vars(tuned)]):
            pair = vars(frozen).get(name), vars(tuned).get(name)
            vars(target)[name] = write_back(old.get(name), pair, rows, batch)
        return target
    elif type(frozen) is type(tuned) and frozen == tuned:
        return frozen
    elif isinstance(frozen, int) and isinstance(tuned, int) and [frozen, tuned] == [*rows.sizes]:
        return batch  # how many rows there are
    raise ValueError(
        f"the two copies left different things in an argument that they wrote to: {frozen!r}, {tuned!r}"
    )
