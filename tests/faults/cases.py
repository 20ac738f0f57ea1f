"""What a fault is here: a case of a group, which says nothing if the run bore it as intended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.place import Place

Fault = Callable[["Place"], str | None]  # None: as intended; else what went wrong, in a sentence


@dataclass(frozen=True)
class Case:
    """One thing that happens to a run.

    name: unique in its group. fault: does it, in a folder of its own, and judges what came of it. quick:
    whether the quick form has it too. limit: seconds after which the case counts as hanging; the cases
    with the longest are begun first.
    """

    name: str
    fault: Fault
    quick: bool = False
    limit: float = 240


class Noted(str):
    """What a case says that ended as intended."""

    __slots__ = ()


class Skip(Exception):
    """A case that this machine cannot have; the message says why."""


@dataclass(frozen=True)
class Group:
    """Cases of one kind. title: as the table says it. cases: made when small runs are there to look at.

    alone: whether the cases are measurements that others beside them would spoil.
    """

    name: str
    title: str
    cases: Callable[[Place], list[Case]]
    alone: bool = False


def every(step: int, cases: Iterable[Case]) -> Iterator[Case]:
    """The cases, each `step`-th of them in the quick form too."""
    for number, case in enumerate(cases):
        yield replace(case, quick=number % step == 0)
