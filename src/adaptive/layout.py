"""Which dimension of a tensor tells examples apart, for all that goes into and out of a module.

It is declared, as the first one, or learned: a batch and the same batch with one example more run through the
model, and the dimension that grows is the one. A size that happens to be that of the batch tells nothing.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Path = tuple[Any, ...]  # to a tensor: "in", "out" or the name of a part, then names and places in containers
CONSTANTS = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, enum.Enum)


class Examples(NamedTuple):
    """Where the examples of a tensor are."""

    dim: int
    joined: bool = (
        False  # with something else, say words, in the same dimension: neighbours are of one example
    )


class Shared(NamedTuple):
    """A tensor that is the same for all examples, with its number of dimensions and those of size 1."""

    rank: int
    ones: frozenset[int]


FIRST = Examples(0)


class Unlearned(RuntimeError):
    """A tensor of which nobody knows where its examples are."""


class Layout:
    """Where the examples are in what one module gets and returns."""

    def __init__(self, needs_examples: bool = False) -> None:
        self.needs_examples = needs_examples  # whether all that it gets must have examples
        self.learned: dict[Path, Examples | Shared] | None = (
            None  # None: first of all dimensions, as declared
        )
        self.name = ""

    def knows(self, path: Path) -> bool:
        """Whether it is known that a tensor has examples, and where."""
        return self.learned is None or isinstance(self.learned.get(path), Examples)

    def argument(self, path: Path, value: Tensor, batch: int, apart: Mapping[int, Tensor]) -> Examples | None:
        """Where the examples of an argument are, None if all share it; `Unlearned` if that is not known.

        apart: tensors, by their id, whose first dimension became the examples in this pass.
        """
        if self.learned is None:
            return FIRST if value.dim() and value.shape[0] == batch else None
        if apart and id(value) in apart:
            return FIRST
        known = self.learned.get(path)
        if isinstance(known, Examples) and value.dim() > known.dim:
            size = value.shape[known.dim]
            if size == batch or (known.joined and size % batch == 0):
                return known if size != batch else Examples(known.dim)
            if size == 1:
                return None
        if (
            isinstance(known, Shared)
            and value.dim() == known.rank
            and all(value.shape[d] == 1 for d in known.ones)
        ):
            return None
        raise self._unlearned(path, value)

    def output(self, path: Path, values: Sequence[Tensor], sizes: Sequence[int]) -> Examples | None:
        """The same for what copies returned for so many examples each; None: one row that serves them all.

        TypeError for a tensor in which there are no examples, where that is declared to be an error.
        """
        pairs = list(zip(values, sizes, strict=True))
        known = FIRST if self.learned is None else self.learned.get(path)
        if isinstance(known, Examples) and all(value.dim() > known.dim for value in values):
            found = [value.shape[known.dim] for value in values]
            if found == list(sizes):
                return Examples(known.dim)
            if known.joined and all(size % batch == 0 for size, batch in zip(found, sizes, strict=True)):
                return known
        if all(value.dim() and value.shape[0] == 1 for value, _ in pairs) and known is not None:
            return None
        if self.learned is None:
            raise TypeError(without_examples(self.name, path, values[0]))
        raise self._unlearned(path, values[0])

    def _unlearned(self, path: Path, value: Tensor) -> Unlearned:
        if not self.learned:
            return Unlearned(
                f"{self.name} is called now, and was not in evaluation, where it is learned which dimension "
                "tells examples apart: leave out the module that it is in"
            )
        return Unlearned(
            f"{words(path)} of {self.name}, {shape_of(value)}, is not as it was when it was learned where "
            f"the "
            "examples of a batch are: call model.adaptive.learn(model, batch) with such a batch"
        )


def without_examples(name: str, path: Path, value: Tensor) -> str:
    """What is wrong with an output that gates cannot choose."""
    return (
        f"{words(path)} of {name or 'a gated module'} is {shape_of(value)}, in which no dimension is that "
        f"of the "
        "examples, so that gates cannot choose for each of them: make a part that does not return it the unit"
    )


def shape_of(value: Tensor) -> str:
    return f"a tensor of shape {tuple(value.shape)}"


def words(path: Path) -> str:
    """("in", "mask", 0) -> argument mask.0"""
    kind = {"in": "argument", "out": "output"}.get(path[0], str(path[0]))
    return " ".join([kind, ".".join(map(str, path[1:]))]).strip()


# ------------------------------------------------------------------------------------------------ containers


def map_leaves(function: Callable[..., Any], *values: Any, path: Path = ()) -> Any:
    """What results if function(path, *leaves) takes the place of what stands at the same place in each value.

    Tuples (named ones too), lists and mappings are walked, such as the output classes of transformers.
    """
    first = values[0]
    if isinstance(first, Tensor) or len({type(value) for value in values}) > 1:
        return function(path, *values)
    if isinstance(first, Mapping):
        mapped = copy.copy(first)  # keeps what a subclass has beside its entries
        if any(value.keys() != first.keys() for value in values):
            raise TypeError(
                f"{words(path) if path else 'an output'} has other keys in one copy than in the other"
            )
        for name in first:
            mapped[name] = map_leaves(function, *(value[name] for value in values), path=(*path, name))
        return mapped
    if isinstance(first, tuple | list) and not isinstance(first, CONSTANTS):
        parts = [
            map_leaves(function, *part, path=(*path, index))
            for index, part in enumerate(zip(*values, strict=True))
        ]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return function(path, *values)


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """What `map_leaves` calls its function with, for one value."""
    if isinstance(value, Mapping):
        for name in value:
            yield from leaves(value[name], (*path, name))
    elif isinstance(value, tuple | list) and not isinstance(value, CONSTANTS):
        for index, part in enumerate(value):
            yield from leaves(part, (*path, index))
    else:
        yield path, value


def is_constant(value: Any) -> bool:
    return value is None or isinstance(value, CONSTANTS)


# --------------------------------------------------------------------------------------- rows to the front


def rows_first(value: Tensor, where: Examples | None, batch: int) -> Tensor:
    """A view (batch, ...) of a tensor; where None: of the one row that serves all examples."""
    if where is None:
        return value.expand(batch, *value.shape[1:])
    if where.dim:
        value = value.movedim(where.dim, 0)
    return value.unflatten(0, (batch, -1)) if where.joined else value


def rows_back(value: Tensor, where: Examples | None) -> Tensor:
    """The inverse of `rows_first`; what was one row for all stays (batch, ...)."""
    if where is None:
        return value
    if where.joined:
        value = value.flatten(0, 1)
    return value.movedim(0, where.dim) if where.dim else value
