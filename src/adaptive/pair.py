"""A frozen and a tuned copy of one module, and gates that say which of the two an example gets."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.compiler import is_compiling

from adaptive.both import Both
from adaptive.compiling import uncompiled
from adaptive.gates import FROZEN, TUNED, Gates
from adaptive.layout import Layout
from adaptive.routing import map_tensors, pick
from adaptive.storage import call_in_dtype


@runtime_checkable
class Sliced(Protocol):
    """A module whose forward is `combine(project(*args), None, *args)`, slice by slice.

    `project` returns tensors whose last dimension falls into w slices. `combine` has no parameters, and slice
    i of its output depends on slice i of each projection only. So a pair can choose among the projections and
    combine once, instead of combining both and choosing among the results. Where a gate needs a gradient it
    does that, for then it needs both results.

    `tuned` (B, w) tells `combine` which slices are the tuned copy's: only they get dropout. None: all.
    """

    def project(self, *args: Any) -> tuple[Tensor, ...]: ...

    def combine(self, projected: tuple[Tensor, ...], tuned: Tensor | None, *args: Any) -> Tensor: ...


class InPlaceOf(nn.Module):
    """A module in the place of another, which is a child of it and whose attributes show through.

    An attribute that is set goes to that child, and to its other copies, if any. AttributeError for a tensor
    or module, which two copies cannot have in common. Names that begin with an underscore are its own.
    """

    SHOWN: str  # the name of the child
    COPIES: tuple[str, ...]  # the names of the children that are set, this one and others
    OWN: frozenset[str]  # what it has itself

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            child = self.__dict__.get("_modules", {}).get(self.SHOWN)
            if child is None or name.startswith("__"):
                raise
            return getattr(child, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.OWN or name in vars(self) or name.startswith("_") or hasattr(type(self), name):
            super().__setattr__(name, value)
            return
        if len(self.COPIES) > 1 and isinstance(value, nn.Module | Tensor):
            parts = " or ".join(f".{part}.{name}" for part in self.COPIES)
            raise AttributeError(f"each copy has a {name} of its own: set {parts}")
        for part in self.COPIES:
            setattr(getattr(self, part), name, value)


class GatedPair(InPlaceOf):
    """Two copies of a module, called on the same input, with gates that choose between their outputs.

    With width w, a gate decides over each of w equal slices of the output's last dimension. The frozen copy
    is the pre-trained function: without gradients and always in evaluation mode, so that its dropout is off.
    """

    SHOWN = "tuned"
    COPIES = ("tuned", "frozen")
    OWN = frozenset({*COPIES, "gates", "start", "width", "layout"})

    def __init__(self, frozen: nn.Module, tuned: nn.Module, gates: Gates, start: int, width: int = 1) -> None:
        super().__init__()
        self.tuned = tuned
        self.frozen = frozen.requires_grad_(False).eval()
        self.gates = gates
        self.start = start
        self.width = width
        self.layout = Layout()
        gates.announce(start, width)

    def train(self, mode: bool = True) -> GatedPair:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # How many rows each copy gets is another number in every batch, for which a graph would be made anew.
        return uncompiled(self._run, *args, **kwargs) if is_compiling() else self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.gates.probe is not None:
            return self.gates.probe.call(self, self._frozen, self.frozen, args, kwargs)
        gate = self.gates.of(self.start, self.width)
        both = Both((self.frozen, self.tuned), (self._frozen, self.tuned), self.layout, self.gates)
        if not self.gates.dense:
            share = self.gates.share_tuned(self.start, self.width)
            if share in (0.0, 1.0):
                return both.one(gate, TUNED if share else FROZEN, args, kwargs)
            if self.gates.choose and self.width == 1:
                return both.by_rows(gate, self.gates.rows(self.start), args, kwargs)
            if self.gates.choose and isinstance(self.tuned, Sliced) and not kwargs and not gate.requires_grad:
                return self._by_slices(args)
        return both.mixed(gate, args, kwargs)

    def _frozen(self, *args: Any, **kwargs: Any) -> Any:
        return call_in_dtype(self.frozen, self.frozen, self.tuned, *args, **kwargs)

    def _by_slices(self, args: Any) -> Any:
        """Both copies project, and the slices that were chosen are combined once."""
        choice = self.gates.tuned(self.start, self.width)
        tuned = self.tuned.project(*args)
        frozen = call_in_dtype(self.frozen.project, self.frozen, self.tuned, *args)
        return self.tuned.combine(map_tensors(partial(pick, choice), tuned, frozen), choice, *args)
