"""The two copies of a module, and how a call of the module becomes calls of one, of the other or of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.gates import FROZEN, TUNED, Gates, Rows
from adaptive.hooks import Taps
from adaptive.layout import FIRST, Layout, is_constant, leaves, map_leaves, rows_back, rows_first, words
from adaptive.routing import merge_tensors, mix_tensors, split_tensor, with_gate_gradient
from adaptive.state import is_state, rows_of, write_back

Call = Callable[..., Any]


class Both:
    """A frozen and a tuned copy: the modules, what to call to run each, and where the examples are."""

    def __init__(
        self, modules: tuple[nn.Module, nn.Module], calls: tuple[Call, Call], layout: Layout, gates: Gates
    ) -> None:
        self.modules = modules
        self.calls = calls
        self.layout = layout
        self.gates = gates

    def one(self, gate: Tensor, side: int, args: Any, kwargs: Any) -> Any:
        """All examples run one copy; the other runs for its value if the gate needs that."""
        if not gate.requires_grad:
            output = self.calls[side](*args, **kwargs)
            self._check(output, len(gate))
            return output
        whole = _Whole(self, len(gate), args, kwargs)
        # What is written to is looked at before it is written to; else the order is that of random numbers.
        other = self._value(1 - side, whole) if whole.spares else None
        output = self.calls[side](*args, **kwargs)
        other = other if whole.spares else self._value(1 - side, whole)

        def join(chosen: Tensor, other: Tensor) -> Tensor:
            tuned, frozen = (chosen, other) if side == TUNED else (other, chosen)
            return with_gate_gradient(gate, chosen, tuned, frozen)

        return self._combine(join, [len(gate)] * 2, ("out",), output, whole.originals(other))

    def _value(self, side: int, whole: _Whole) -> Any:
        """What the copy that was not chosen returns, without a graph, hooks, or traces in a cache."""
        args, kwargs = whole.arguments(whole.spares)
        with torch.no_grad(), Taps(self.modules[side]).held_back(0, keep=False):
            return self.calls[side](*args, **kwargs)

    def by_rows(self, gate: Tensor, rows: Rows, args: Any, kwargs: Any) -> Any:
        """Each copy runs the examples that chose it, and the others for their value if gates need it."""
        split = _Split(self, rows, args, kwargs)
        taps, outputs = Taps(*self.modules), []
        for side in (FROZEN, TUNED):
            values, named = split.arguments(side, split.views)
            with taps.held_back(side):
                outputs.append(self.calls[side](*values, **named))
        if gate.requires_grad:
            for side in (FROZEN, TUNED):
                values, named = split.arguments(side, split.spares)
                with torch.no_grad(), taps.held_back(1 - side, keep=False):
                    outputs.append(self.calls[1 - side](*values, **named))
        split.write_back()
        outputs = [split.originals(output) for output in outputs]
        merge = partial(merge_tensors, gate, rows)
        output = self._combine(merge, rows.sizes * (len(outputs) // 2), ("out",), *outputs)
        merge = partial(merge_tensors, gate.detach(), rows)
        return taps.replay(partial(self._whole_event, merge, split), (args, kwargs, output))

    def mixed(self, gate: Tensor, args: Any, kwargs: Any) -> Any:
        """Both copies run all examples, and their outputs are averaged.

        ValueError for an argument that the copies would write to.
        """
        require_no_state(self.layout.name, args, kwargs)
        taps, outputs, sizes = Taps(*self.modules), {}, [gate.shape[0]] * 2
        for side in (TUNED, FROZEN):
            with taps.held_back(side):
                outputs[side] = self.calls[side](*args, **kwargs)
        mix = partial(mix_tensors, gate)
        output = self._combine(mix, sizes, ("out",), outputs[TUNED], outputs[FROZEN])
        return taps.replay(partial(self._whole_event, mix, None), (args, kwargs, output))

    def _whole_event(self, join: Call, split: _Split | None, name: str, *calls: Any) -> list[Any]:
        """Arguments and output of a part inside, as of one call with the whole batch."""
        if split:
            calls = tuple(tuple(map(split.originals, call)) for call in calls)
        sizes = split.rows.sizes if split else [len(self.gates.tuned(0, 1))] * 2
        return [
            self._combine(join, sizes, (f"hook of {name}", kind), *values, strict=kind == "out")
            for kind, *values in zip(("in", "in", "out"), *calls, strict=True)
        ]

    def _combine(
        self, join: Call, sizes: Sequence[int], path: Any, *outputs: Any, strict: bool = True
    ) -> Any:
        """One output of several, of so many examples each: `join` makes one tensor of those at one place.

        TypeError for what gates cannot choose between, unless it is the same in all; if not strict, the last.
        """

        def leaf(path: Any, *found: Any) -> Any:
            if all(value is found[0] for value in found):
                return found[0]
            tensors = all(isinstance(value, Tensor) for value in found)
            if tensors and (strict or self.layout.knows(path)):
                # Weights are the same for all examples, wherever these are.
                where = self.layout.output(path, found, sizes) if self.gates.choose else FIRST
                first = (rows_first(value, where, size) for value, size in zip(found, sizes, strict=True))
                joined = rows_back(join(*first), where)
                if where is None:
                    self.gates.apart[id(joined)] = joined
                return joined
            if (
                all(is_constant(value) and type(value) is type(found[0]) for value in found)
                and len({*found}) == 1
            ):
                return found[0]
            if not strict:
                return found[-1]
            kinds = ", ".join(dict.fromkeys(type(value).__name__ for value in found))
            raise TypeError(
                f"{words(path)} of {self.layout.name or 'a gated module'} is no tensor and not the same in "
                f"both "
                f"copies, so that gates cannot choose: {kinds}"
            )

        return map_leaves(leaf, *outputs, path=path)

    def _check(self, output: Any, batch: int) -> None:
        """Refuse what other gates would refuse, so that a run does not fail after an hour."""
        if self.layout.learned is None and self.gates.choose:
            for path, value in leaves(output, ("out",)):
                if isinstance(value, Tensor):
                    self.layout.output(path, [value], [batch])


def require_no_state(name: str, args: Any, kwargs: Any) -> None:
    """ValueError if there is something among the arguments that a module may write to."""
    for path, value in leaves((args, kwargs), ("in",)):
        if is_state(value):
            raise ValueError(
                f"{words(path)} of {name or 'a gated module'}, of type {type(value).__name__}, can be "
                f"written to: "
                "what two copies write cannot be averaged, or chosen in slices; hand over none "
                "(use_cache=False)"
            )


class _Arguments:
    """The arguments of a call, with views for what may be written to; `spares` are thrown away."""

    def __init__(self, both: Both, batch: int, args: Any, kwargs: Any) -> None:
        self.both, self.batch, self.args, self.kwargs = both, batch, args, kwargs
        self._originals: dict[int, Any] = {}  # by the id of their views
        self._kept: list[Any] = []

    def leaves(self) -> Iterator[tuple[Any, Any]]:
        yield from leaves(self.args, ("in",))
        yield from leaves(self.kwargs, ("in",))

    def view(self, value: Any, index: Tensor) -> Any:
        view = rows_of(value, index, self.batch)
        self._originals[id(view)] = value
        self._kept.append(view)  # or its id would be given to another
        return view

    def originals(self, output: Any) -> Any:
        """An output with what views stand for in their place."""
        if not self._originals:
            return output
        return map_leaves(lambda path, value: self._originals.get(id(value), value), output)


class _Whole(_Arguments):
    """Those of a call with all examples."""

    def __init__(self, both: Both, batch: int, args: Any, kwargs: Any) -> None:
        super().__init__(both, batch, args, kwargs)
        states = [value for _, value in self.leaves() if is_state(value)]
        everything = torch.arange(batch, device=both.gates.of(0, 1).device) if states else None
        self.spares = {id(value): self.view(value, everything) for value in states}

    def arguments(self, views: dict[int, Any]) -> tuple[Any, Any]:
        if not views:
            return self.args, self.kwargs
        replaced = partial(map_leaves, lambda path, value: views.get(id(value), value))
        return replaced(tuple(self.args)), replaced(self.kwargs)


class _Split(_Arguments):
    """Those of two calls, with the frozen and with the tuned rows. A value that comes twice is split once."""

    def __init__(self, both: Both, rows: Rows, args: Any, kwargs: Any) -> None:
        super().__init__(both, len(rows.order), args, kwargs)
        self.rows = rows
        self.halves: dict[int, tuple[Any, Any]] = {}
        self.views: dict[int, tuple[Any, Any]] = {}
        self.spares: dict[int, tuple[Any, Any]] = {}
        self.states: dict[int, Any] = {}
        layout, apart = both.layout, both.gates.apart
        for path, value in self.leaves():
            if isinstance(value, Tensor) and id(value) not in self.halves:
                where = layout.argument(path, value, self.batch, apart)
                halves = (value, value) if where is None else split_tensor(value, rows, where)
                self.halves[id(value)] = halves
                self._originals |= {id(half): value for half in halves}  # it may be returned as it came
            elif is_state(value) and id(value) not in self.states:
                self.states[id(value)] = value
                for views in (self.views, self.spares):
                    views[id(value)] = self.view(value, rows.frozen), self.view(value, rows.tuned)

    def arguments(self, side: int, views: dict[int, tuple[Any, Any]]) -> tuple[Any, Any]:
        def half(path: Any, value: Any) -> Any:
            found = views.get(id(value)) if id(value) in views else self.halves.get(id(value))
            return value if found is None else found[side]

        return map_leaves(half, tuple(self.args)), map_leaves(half, self.kwargs)

    def write_back(self) -> None:
        """Put what the copies wrote together, where it belongs."""
        for key, state in self.states.items():
            write_back(state, self.views[key], self.rows, self.batch)
