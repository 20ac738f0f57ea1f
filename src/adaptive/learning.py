"""Learning where examples are: a batch, and the same batch with its first example once more at the end.

Both run through the frozen model, and what gated modules get and return is compared. The dimension that grew
by one example's share is that of the examples. Their values are compared too: what an example gets must not
depend on which others are in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.both import require_no_state
from adaptive.gates import Gates
from adaptive.layout import (
    Examples,
    Layout,
    Path,
    Shared,
    is_constant,
    leaves,
    map_leaves,
    shape_of,
    without_examples,
    words,
)
from adaptive.state import is_state, rows_of

TOLERANCE = 0.05  # of the mean size of numbers: batches of other sizes are rounded differently


class Probe:
    """What gated modules got and returned in a forward pass."""

    def __init__(self) -> None:
        self.seen: list[tuple[Layout, Path, Any]] = []

    def call(self, unit: Any, run: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The output of `run`, which calls `module`; all that the unit gets and returns is noted.

        ValueError for arguments that it writes to and cannot be handed to two copies, and for outputs that
        gates cannot choose.
        """
        layout = unit.layout
        if getattr(unit, "width", 1) > 1:
            require_no_state(layout.name, args, kwargs)
        before = [*leaves(args, ("in",)), *leaves(kwargs, ("in",))]
        versions = [_version(value) for _, value in before]
        with self._hooks(layout, module):
            output = run(*args, **kwargs)
        after = [*leaves(args, ("in",)), *leaves(kwargs, ("in",))]
        for (path, value), version in zip(before, versions, strict=True):
            if _version(value) != version:
                raise ValueError(
                    f"{layout.name} writes into {words(path)}: it cannot be run twice, so leave it out"
                )
        if [(path, id(value)) for path, value in before] != [(path, id(value)) for path, value in after]:
            raise ValueError(f"{layout.name} adds to a list or dict that it is given, so leave it out")
        for path, value in before:
            self.note(layout, path, value)
        for path, value in leaves(output, ("out",)):
            if not any(value is given for _, given in before):
                self.note(layout, path, value)
        return output

    def note(self, layout: Layout, path: Path, value: Any) -> None:
        if isinstance(value, Tensor) or is_constant(value):
            self.seen.append((layout, path, value))
        elif path[0] == "out" and not is_state(value):
            kind = type(value).__name__
            raise ValueError(
                f"{words(path)} of {layout.name} is a {kind}, which gates cannot choose: leave it out"
            )

    @contextmanager
    def _hooks(self, layout: Layout, module: nn.Module) -> Iterator[None]:
        """Note of the calls of parts that have hooks."""

        def note(name: str, part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            for kind, value in (("in", args), ("in", kwargs), ("out", output)):
                for path, leaf in leaves(value, (f"hook of {name}", kind)):
                    self.note(layout, path, leaf)

        hooked = [(name, part) for name, part in module.named_modules() if part._forward_hooks]
        handles = [
            part.register_forward_hook(partial(note, name), with_kwargs=True, prepend=True)
            for name, part in hooked
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def learn(
    model: nn.Module,
    gates: Gates,
    inputs: Mapping[str, Any],
    batch: int,
    entries: Mapping[str, Layout],
    fixed: Mapping[str, Any],
) -> None:
    """Learn from the inputs of one batch where the examples are in all gated modules of a model.

    batch: its number of examples. fixed: inputs in which the first dimension is not that of the examples.
    entries: by the names of modules, where the examples are in their arguments. ValueError, which names the
    module, for one that cannot be gated.
    """
    device = next(
        (value.device for _, value in leaves(inputs) if isinstance(value, Tensor)), torch.device("cpu")
    )
    probes = []
    for size in (batch, batch + 1):
        index = torch.arange(size, device=device) % batch
        gates.fill(torch.zeros(size, gates.total, device=device))
        gates.probe = Probe()
        probes.append(gates.probe)
        note = partial(_enter, probes[-1])
        handles = [
            model.get_submodule(name).register_forward_pre_hook(partial(note, layout), with_kwargs=True)
            for name, layout in entries.items()
        ]
        try:
            with as_a_function(model):
                model.forward(**fixed, **{name: taken(value, index, batch) for name, value in inputs.items()})
        finally:
            gates.probe = None
            for handle in handles:
                handle.remove()
    _compare(*probes, batch)


@contextmanager
def as_a_function(model: nn.Module) -> Iterator[None]:
    """A block in which a model runs without gradients, dropout, and traces in the state of random numbers."""
    training = [part for part in model.modules() if part.training]
    for part in training:
        part.training = False
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(sorted(devices, key=str)):
            yield
    finally:
        for part in training:
            part.training = True


def _enter(probe: Probe, layout: Layout, module: nn.Module, args: Any, kwargs: Any) -> None:
    for value in (args, kwargs):
        for path, leaf in leaves(value, ("in",)):
            probe.note(layout, path, leaf)


def taken(value: Any, index: Tensor, batch: int) -> Any:
    """Rows of an input of a model: of tensors, of those in containers, and of caches."""
    if isinstance(value, Tensor):
        return value.index_select(0, index) if value.dim() and value.shape[0] == batch else value
    if isinstance(value, tuple | list | Mapping):
        return map_leaves(lambda path, leaf: taken(leaf, index, batch), value)
    return rows_of(value, index, batch) if is_state(value) else value


def _compare(one: Probe, more: Probe, batch: int) -> None:
    """Write what grew from one forward pass to the other into the layouts."""
    if [(id(layout), path) for layout, path, _ in one.seen] != [
        (id(layout), path) for layout, path, _ in more.seen
    ]:
        raise ValueError(
            "the model calls other modules, or with other arguments, for a batch of another size"
        )
    found: dict[int, tuple[Layout, dict[Path, Any]]] = {}
    for (layout, path, before), (_, _, after) in zip(one.seen, more.seen, strict=True):
        _, table = found.setdefault(id(layout), (layout, {}))
        entry = _grown(layout.name, path, before, after, batch)
        if entry is None:
            continue
        if isinstance(entry, Shared) and path[0] == "out" and before.shape[:1] != (1,):
            raise ValueError(without_examples(layout.name, path, before))
        if isinstance(entry, Shared) and layout.needs_examples:
            raise ValueError(
                f"{layout.name} is called with {shape_of(before)}, the same for all examples, so that its "
                f'low-rank update cannot be gated: AdaptiveConfig(freeze="{layout.name}"), or tuned="full"'
            )
        table[path] = _both(layout, path, table.get(path, (layout.learned or {}).get(path)), entry)
    for layout, table in found.values():
        layout.learned = {**(layout.learned or {}), **table}


def _both(
    layout: Layout, path: Path, known: Examples | Shared | None, new: Examples | Shared
) -> Examples | Shared:
    """What holds of a tensor in several calls."""
    if known is None:
        return new
    if isinstance(known, Shared) and isinstance(new, Shared) and known.rank == new.rank:
        return Shared(new.rank, known.ones & new.ones)
    if isinstance(known, Examples) and isinstance(new, Examples) and known.dim == new.dim:
        return Examples(new.dim, known.joined or new.joined)
    examples, shared = (known, new) if isinstance(known, Examples) else (new, known)
    if isinstance(examples, Examples) and isinstance(shared, Shared) and examples.dim in shared.ones:
        return examples  # where its size is 1, it is shared
    raise ValueError(
        f"the examples are not in the same place in all calls with {words(path)} of {layout.name}"
    )


def _grown(name: str, path: Path, before: Any, after: Any, batch: int) -> Examples | Shared | None:
    """Where the examples of a tensor are; None for a constant."""
    what = f"{words(path)} of {name}"
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        if type(before) is type(after) and before == after:
            return None
        raise ValueError(
            f"{what} depends on how many examples there are, {before!r} and {after!r}: leave it out"
        )
    if before.dim() != after.dim():
        raise ValueError(f"{what} has more dimensions in a larger batch: leave the module out")
    dims = [dim for dim in range(before.dim()) if before.shape[dim] != after.shape[dim]]
    if not dims:
        return Shared(before.dim(), frozenset(dim for dim, size in enumerate(before.shape) if size == 1))
    size = before.shape[dims[0]]
    if len(dims) > 1 or size % batch or after.shape[dims[0]] != size // batch * (batch + 1):
        raise ValueError(
            f"{what}, {shape_of(before)} for {batch} examples and {tuple(after.shape)} for {batch + 1}, "
            f"does not fall "
            "into examples: leave the module out"
        )
    if not _alike(before, after.narrow(dims[0], 0, size)):
        raise ValueError(
            f"{what} is not the same for an example in a larger batch: either the examples are not in the "
            f"first "
            "dimension of every input (name those in AdaptiveConfig(shared=...)), or they are not independent"
        )
    return Examples(dims[0], joined=size != batch)


def _alike(before: Tensor, after: Tensor) -> bool:
    if not before.is_floating_point():
        return bool((before == after).float().mean() > 1 - TOLERANCE) if before.numel() else True
    before, after = before.float(), after.float()
    differs = torch.where(before == after, 0.0, before - after).nan_to_num().abs()
    size = before.nan_to_num(0.0, 0.0, 0.0).abs()
    return bool(differs.sum() <= TOLERANCE * size.sum())


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0
