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
    if views[0] is views[1]:  # nobody looked at it
        return views[0]
    frozen, tuned = (
        rows_of(original, index, batch) if view is original else view
        for view, index in zip(views, (rows.frozen, rows.tuned), strict=True)
    )
    of_frozen, of_tuned = _parts(frozen), _parts(tuned)
    if isinstance(frozen, Tensor) and isinstance(tuned, Tensor):
        if frozen.dim() >= 2:
            return torch.cat([frozen, tuned]).index_select(0, rows.order.argsort())
        if torch.equal(frozen, tuned):
            return frozen
    elif of_frozen is not None and of_tuned is not None and _alike(frozen, tuned):
        target = original if _alike(original, frozen) else frozen
        old = _parts(target) if target is original else {}
        return _filled(
            target,
            {
                key: write_back(old.get(key), (of_frozen.get(key), of_tuned.get(key)), rows, batch)
                for key in of_frozen | of_tuned
            },
        )
    elif type(frozen) is type(tuned) and frozen == tuned:
        return frozen
    elif isinstance(frozen, int) and isinstance(tuned, int) and [frozen, tuned] == [*rows.sizes]:
        return batch  # how many rows there are
    raise ValueError(
        f"the two copies left different things in an argument that they wrote to: {frozen!r}, {tuned!r}"
    )


def _parts(value: Any) -> dict[Any, Any] | None:
    """What is in a container or state, by place or name, without making views of it; None for others."""
    if isinstance(value, list | tuple):
        return dict(enumerate(list.__iter__(value) if isinstance(value, list) else value))
    if isinstance(value, dict):
        return dict(value)
    return dict(vars(value)) if is_state(value) else None


def _alike(one: Any, other: Any) -> bool:
    """Whether two are lists, tuples or dicts, or states of one class."""
    return type(one) is type(other) or any(
        isinstance(one, kind) and isinstance(other, kind) for kind in (list, tuple, dict)
    )


def _filled(target: Any, parts: dict[Any, Any]) -> Any:
    """The inverse of `_parts`, in `target` itself if it can be written to."""
    if isinstance(target, tuple):
        return tuple(parts.values())
    if isinstance(target, list):
        target[:] = parts.values()
    elif isinstance(target, dict):
        target.update(parts)
    else:
        vars(target).update(parts)
    return target
