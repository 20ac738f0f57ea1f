"""Panels of gates: the grid that gate labels make, and the parts that every policy picture is drawn from.

A panel holds the gates of one stream, layers down and components across. Lengths are in inches.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

GateTable = Mapping[str, np.ndarray]

# Lengths are in inches: fixed places make all pictures alike, and are drawn faster than an automatic layout.
WIDTH, DPI = 8.0, 150
TITLE, KEY, HEADER, GAP, RIGHT, ROW = 0.52, 0.35, 0.42, 0.5, 0.15, 0.21
FONT, CHARACTER = 7, 0.054  # points; the average width of a character of that size
VALUE_WIDTH = 0.27  # a column as wide as this has room for its number

DEAD_STYLE = {"facecolor": "0.88", "edgecolor": "0.6", "hatch": "//////", "linewidth": 0}
DEAD_LABEL = "dead gate: cannot influence the answer"


class Component(NamedTuple):
    """A component's label taken apart: "cross head 3" is group "cross", name "head", number "3"."""

    label: str
    group: str  # the stream that the label begins with, or ""
    name: str
    number: str  # or ""


class Panel(NamedTuple):
    """The gates of one stream, as layers (rows) times components (columns)."""

    stream: str
    layers: list[int]
    components: list[Component]
    gate: np.ndarray  # (layers, components) index of the gate, -1 where a layer lacks the component


def panels_of(usage: GateTable) -> list[Panel]:
    """Return the table's streams in order, each with its gates in a grid."""
    stream, layer, component = (np.asarray(usage[key]) for key in ("stream", "layer", "component"))
    streams, panels = unique(stream), []
    for name in streams:
        mine = np.flatnonzero(stream == name)
        layers = sorted(unique(layer[mine]))
        components = _components(unique(component[mine]), streams)
        labels = [part.label for part in components]
        gate = np.full((len(layers), len(components)), -1)
        for g in mine:
            gate[layers.index(layer[g]), labels.index(component[g])] = g
        panels.append(Panel(name, layers, components, gate))
    return panels


def _components(labels: Sequence[str], streams: Sequence[str]) -> list[Component]:
    """Take labels apart and bring each group's together, keeping the order otherwise."""
    parts = []
    for label in labels:
        group, _, rest = label.partition(" ")
        group, rest = (group, rest) if group in streams and rest else ("", label)
        numbered = re.fullmatch(r"(.+) (\d+)", rest)
        parts.append(Component(label, group, *(numbered.groups() if numbered else (rest, ""))))
    groups, kinds = [part.group for part in parts], [(part.group, part.name) for part in parts]
    return sorted(parts, key=lambda part: (groups.index(part.group), kinds.index((part.group, part.name))))


def order_note(panel: Panel, width: float) -> list[str]:
    """Say in lines of `width` inches how the gates of a layer are ordered; nothing if there is only one."""
    if len(panel.components) == 1:
        return []
    counts = Counter((f"{part.group} {part.name}".strip(), bool(part.number)) for part in panel.components)
    words = [f"{name}s ({count})" if numbered else name for (name, numbered), count in counts.items()]
    return textwrap.wrap("in each: " + ", ".join(words), max(20, int(width / CHARACTER)))


def unique(values: Iterable[Any]) -> list[Any]:
    """Return the distinct values in the order of their first appearance."""
    return list(dict.fromkeys(value.item() if isinstance(value, np.generic) else value for value in values))


def pack_rows(columns: Sequence[int]) -> list[list[int]]:
    """Pack panels into rows no wider than the widest panel, or than 30 columns."""
    rows: list[list[int]] = [[]]
    for panel, count in enumerate(columns):
        if rows[-1] and sum(columns[other] for other in rows[-1]) + count > max(30, *columns):
            rows.append([])
        rows[-1].append(panel)
    return rows


def column_widths(columns: Sequence[int], left: float) -> list[float]:
    """Return the width of a column of each panel: a row of panels fills the figure's width."""
    widths = []
    for row in pack_rows(columns):
        room = WIDTH - left - RIGHT - GAP * (len(row) - 1)
        widths += [room / sum(columns[panel] for panel in row)] * len(row)
    return widths


def place_panels(
    columns: Sequence[int], heights: Sequence[float], footer: float, left: float, title: str, has_dead: bool
) -> tuple[Figure, list[Axes]]:
    """Make a figure with axes for every panel, packed into rows."""
    rows, widths = pack_rows(columns), column_widths(columns, left)
    row_heights = [HEADER + max(heights[panel] for panel in row) + footer for row in rows]
    figure = new_figure(TITLE + KEY + sum(row_heights), title, has_dead)
    axes, top = [], TITLE + KEY
    for row, row_height in zip(rows, row_heights, strict=True):
        x = left
        for panel in row:
            width = widths[panel] * columns[panel]
            axes.append(add_axes(figure, x, top + HEADER, width, heights[panel]))
            x += width + GAP
        top += row_height
    return figure, axes


def new_figure(height: float, title: str, has_dead: bool) -> Figure:
    """Make a figure with a headline, the title's second line below it, and the key to dead gates."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    headline, _, detail = title.partition("\n")
    figure.text(0.012, 1 - 0.09 / height, headline, size=FONT + 3, weight="bold", va="top")
    figure.text(0.012, 1 - 0.30 / height, detail, size=FONT + 1, color="0.25", va="top")
    if has_dead:
        place = {"loc": "upper left", "bbox_to_anchor": (0.012, 1 - 0.55 / height), "borderaxespad": 0}
        dead = Patch(label=DEAD_LABEL, **DEAD_STYLE)
        figure.legend(handles=[dead], fontsize=FONT, frameon=False, borderpad=0, **place)
    return figure


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes whose upper left corner is that far from the figure's (inches)."""
    total = figure.get_figheight()
    return figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))


def add_colour_bar(figure: Figure, colours: ScalarMappable, label: str) -> Axes:
    """Add a colour bar at the right below the title, its label to the left of it."""
    axes = add_axes(figure, WIDTH - 2.3, TITLE + 0.03, 2.0, 0.12)
    figure.colorbar(colours, cax=axes, orientation="horizontal")
    axes.tick_params(labelsize=FONT, length=2, pad=2)
    axes.text(-0.04, 0.5, label, size=FONT, ha="right", va="center", transform=axes.transAxes)
    return axes


def draw_cells(
    axes: Axes, values: np.ndarray, dead: np.ndarray, colours: ScalarMappable, number_format: str
) -> None:
    """Colour a grid of values (R, C), first row on top; hatch dead cells, leave missing ones (NaN) white."""
    shown = np.ma.masked_where(dead | np.isnan(values), values)
    axes.pcolormesh(shown, cmap=colours.cmap, norm=colours.norm)
    axes.invert_yaxis()
    if dead.any():
        cells = [Rectangle((column, row), 1, 1) for row, column in np.argwhere(dead)]
        axes.add_collection(PatchCollection(cells, label=DEAD_LABEL, **DEAD_STYLE))
    for row, column in np.argwhere(~np.ma.getmaskarray(shown)) if number_format else ():
        value = shown[row, column]
        tint = "white" if abs(colours.norm(value) - 0.5) > 0.33 else "black"
        style = {"size": FONT - 1, "color": tint, "ha": "center", "va": "center"}
        axes.text(column + 0.5, row + 0.52, number_format.format(value), **style)
    axes.tick_params(length=0, pad=2, labelsize=FONT)
    axes.spines[:].set_visible(False)


def separate(axes: Axes, kinds: Sequence[Any]) -> None:
    """Draw a white line wherever the columns' kind changes."""
    for column in range(1, len(kinds)):
        if kinds[column] != kinds[column - 1]:
            axes.axvline(column, color="white", linewidth=2.2)


def label_components(axes: Axes, panel: Panel, rotate: bool) -> None:
    """Write a column's number or name below it, a series' name below its numbers, and groups above."""
    parts = panel.components
    names = [
        part.number or textwrap.fill(part.name, 10 if rotate else 1, break_long_words=False) for part in parts
    ]
    ticks = axes.set_xticks(np.arange(len(parts)) + 0.5, names)
    for part, tick in zip(parts, ticks, strict=True):
        tick.label1.set(size=FONT - bool(part.number), rotation=90 if rotate and not part.number else 0)
    style = {
        "xycoords": axes.get_xaxis_transform(),
        "textcoords": "offset points",
        "ha": "center",
        "size": FONT,
    }
    for group, name in unique((part.group, part.name) for part in parts if part.number):
        mine = [i for i, part in enumerate(parts) if part.number and (part.group, part.name) == (group, name)]
        axes.annotate(f"{name}s", (np.mean(mine) + 0.5, 0), (0, -12), va="top", **style)
    groups = unique(part.group for part in parts if part.group)
    for group in groups:
        mine = [i for i, part in enumerate(parts) if part.group == group]
        axes.annotate(group, (np.mean(mine) + 0.5, 1), (0, 3), va="bottom", **style)
    axes.set_title(panel.stream, size=FONT + 2, pad=14 if groups else 5)
