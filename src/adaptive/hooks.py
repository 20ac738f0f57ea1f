"""Forward hooks inside copies that run parts of a batch: held back, and called once with all of it.

This is how hidden states and attentions that transformers records with hooks come whole and in order. A hook
that only one of the copies has sees what that copy runs; so do hooks that come before a forward pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import nn


class Event(NamedTuple):
    """A call of a part that has hooks."""

    name: str
    args: Any
    kwargs: Any
    output: Any


class Taps:
    """The hooks of the parts that all of some modules of one structure have, by the parts' names."""

    def __init__(self, *modules: nn.Module) -> None:
        self.parts: list[list[tuple[str, nn.Module]]] = [[] for _ in modules]
        self.events: list[list[Event]] = []
        if not any(part._forward_hooks for part in modules[-1].modules()):
            return
        found = [
            {name: part for name, part in module.named_modules() if part._forward_hooks} for module in modules
        ]
        names = [name for name in found[-1] if all(name in parts for parts in found)]
        self.parts = [[(name, parts[name]) for name in names] for parts in found]

    @contextmanager
    def held_back(self, module: int, keep: bool = True) -> Iterator[None]:
        """Let the hooks of one of the modules wait, for `replay` or, if not to be kept, for good."""
        events: list[Event] = []
        saved = [
            (part, part._forward_hooks, part._forward_hooks_with_kwargs) for _, part in self.parts[module]
        ]
        for name, part in self.parts[module]:
            part._forward_hooks = OrderedDict({0: partial(_note, events, name)})
            part._forward_hooks_with_kwargs = OrderedDict({0: True})
        try:
            yield
        finally:
            for part, hooks, with_kwargs in saved:
                part._forward_hooks, part._forward_hooks_with_kwargs = hooks, with_kwargs
        if keep:
            self.events.append(events)

    def replay(self, merge: Callable[..., Any], own: tuple[Any, Any, Any]) -> Any:
        """Call the hooks of the last module with what `merge` makes of the calls of each part.

        own: arguments, named arguments and output of the call of the module itself. Returns its output, which
        its hooks may change. RuntimeError for a hook inside that would change what its part returns, and
        where a part of one copy was called more often than that of the other.
        """
        parts, output = dict(self.parts[-1]), own[-1]
        if len({tuple(event.name for event in events) for events in self.events}) > 1:
            names = ", ".join(parts)
            raise RuntimeError(
                f"the copies did not call {names} equally often, so that hooks cannot see whole batches"
            )
        for calls in zip(*self.events, strict=True):
            name = calls[0].name
            whole = merge(name, *(call[1:] for call in calls)) if name else (*own[:-1], output)
            result = _call_hooks(parts[name], *whole)
            if name and result is not whole[-1]:
                raise RuntimeError(
                    f"a hook of {name}, inside a gated module, changes its output: hook the gated module"
                )
            output = output if name else result
        return output


def _note(events: list[Event], name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    events.append(Event(name, args, kwargs, output))


def _call_hooks(part: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    for key, hook in list(part._forward_hooks.items()):
        more: Sequence[Any] = (kwargs,) if key in part._forward_hooks_with_kwargs else ()
        result = hook(part, args, *more, output)
        output = output if result is None else result
    return output
