"""What the gates of a run stand for, brought into the order in which pictures show them.

A gate table is a mapping of arrays over the G gates, in model order: `stream` (str), `layer` (int, from 1),
`component` (str) and `live` (bool); a dead gate cannot influence the answer. `usage.npz` is such a table.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

GateTable = Mapping[str, np.ndarray]


class Part(NamedTuple):
    """A component's label taken apart: "cross head 3" is group "cross", name "head", number "3"."""

    group: str  # the stream that the label begins with, or ""
    name: str
    number: str  # or ""


class Panel(NamedTuple):
    """The gates of one stream, as layers (rows) times components (columns)."""

    stream: str
    layers: list[int]
    parts: list[Part]
    gate: np.ndarray  # (layers, components) index of the gate, -1 where a layer lacks the component


def panels_of(usage: GateTable) -> list[Panel]:
    """Return the table's streams in order, each with its gates in a grid, a group's columns side by side."""
    streams = unique(usage["stream"])
    pattern = re.compile(rf"(?:({'|'.join(map(re.escape, streams))}) (?=.))?(.+?)(?: (\d+))?")
    parts = [Part(*pattern.fullmatch(str(label)).groups("")) for label in usage["component"]]
    panels = []
    for name in streams:
        mine = np.flatnonzero(usage["stream"] == name)
        layers, row = np.unique(usage["layer"][mine], return_inverse=True)
        columns = unique(parts[g] for g in mine)
        groups, series = [part.group for part in columns], [part[:2] for part in columns]
        columns.sort(key=lambda part: (groups.index(part.group), series.index(part[:2])))
        gate = np.full((len(layers), len(columns)), -1)
        gate[row, [columns.index(parts[g]) for g in mine]] = mine
        panels.append(Panel(name, layers.tolist(), columns, gate))
    return panels


def unique(values: Iterable[Any]) -> list[Any]:
    """Return the distinct values in the order of their first appearance."""
    return list(dict.fromkeys(values))
