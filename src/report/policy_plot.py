"""Pictures of what the policy learned: the share of examples that ran the tuned copy, gate by gate.

One gate a layer ("block" granularity) gives bars; several components a layer give heat maps, one panel a
stream. The layout follows the gates' own labels, so a new granularity needs no change here. As a script it
redraws a run's last epoch, and how each question type departs from the average:

    python src/report/policy_plot.py snap/vqa/<version> [--output DIR]

A gate table is a mapping of arrays over the G gates, in model order: `stream` (str), `layer` (int, from 1),
`component` (str) and `live` (bool); a dead gate cannot influence the answer. `usage.npz` is such a table.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

GateTable = Mapping[str, np.ndarray]

# Lengths are in inches: fixed places make all pictures alike, and are drawn faster than an automatic layout.
WIDTH, DPI = 8.0, 150
TITLE, KEY, HEADER, GAP, RIGHT, ROW = 0.52, 0.35, 0.42, 0.5, 0.15, 0.21
FONT, CHARACTER = 7, 0.054  # points; the average width of a character of that size
VALUE_WIDTH = 0.27  # a column as wide as this has room for its number
MOST_TYPES, MOST_NUMBERS = 12, 150  # more rows or numbers would hide what matters

SHARE_LABEL = "share of examples that ran the tuned copy"
STREAM_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7")  # Okabe & Ito: safe for colour-blind readers
DEAD_STYLE = {"facecolor": "0.88", "edgecolor": "0.6", "hatch": "//////", "linewidth": 0}
DEAD_LABEL = "dead gate: cannot influence the answer"


class UsageError(ValueError):
    """Gate usage that is missing, unreadable or inconsistent; the message says what and what to do."""


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


def draw_policy(usage: GateTable, share: np.ndarray, title: str, path: Path) -> None:
    """Save `policy_figure` as a PNG, 1200 pixels wide; the folder is made if need be."""
    _save(policy_figure(usage, share, title), path)


def policy_figure(usage: GateTable, share: np.ndarray, title: str) -> Figure:
    """Picture the share tuned (G,) of every gate, from 0 (always frozen) to 1 (always tuned).

    The title gains the mean over the live gates; dead gates are grey. Raises UsageError for arrays that do
    not fit together and for shares outside 0..1.
    """
    share = np.asarray(share, dtype=float)
    _check(usage, share)
    title = f"{title}\n{_mean_text(usage, share)}"
    is_block = np.all(np.asarray(usage["component"]) == "layer")
    return _bars(usage, share, title) if is_block else _heat_map(usage, share, title)


def question_type_figure(
    usage: GateTable, question_types: Sequence[str], share_by_type: np.ndarray, share: np.ndarray, title: str
) -> Figure:
    """Picture how the share tuned of each question type (K, G) departs from that of all examples (G,).

    One row a type, that with the highest mean over the live gates on top; one column a gate. Of many types
    the 12 that depart most are shown. A type without examples (its shares are not numbers) is left out.
    Raises UsageError as `policy_figure` does.
    """
    share, by_type = np.asarray(share, dtype=float), np.asarray(share_by_type, dtype=float)
    wanted = (len(question_types), len(share))
    if by_type.shape != wanted:
        raise UsageError(f"the shares by question type have shape {by_type.shape}, expected {wanted}.")
    seen = np.flatnonzero(~np.isnan(by_type).all(axis=1))
    _check(usage, np.vstack([share, by_type[seen]]))
    live = np.asarray(usage["live"], dtype=bool)
    if not len(seen) or not live.any():
        raise UsageError("no question type has both examples and live gates: there is nothing to compare.")
    distance = np.abs(by_type[seen] - share)[:, live].mean(axis=1)
    shown = seen[np.argsort(-distance, kind="stable")[:MOST_TYPES]]
    means = by_type[:, live].mean(axis=1)
    shown = shown[np.argsort(-means[shown], kind="stable")]
    names = [f"{question_types[k]} ({means[k]:.2f})" for k in shown]
    some = f"; the {len(shown)} of {len(seen)} types that depart most" if len(shown) < len(seen) else ""
    title = f"{title}\n{_mean_text(usage, share)}; in brackets, that of a question type{some}"
    return _departures(usage, names, by_type[shown] - share, title)


# ---- the three pictures ----


def _bars(usage: GateTable, share: np.ndarray, title: str) -> Figure:
    """Draw a bar a layer, grouped by stream, and the mean as a dashed line."""
    live = np.asarray(usage["live"], dtype=bool)
    streams = _unique(usage["stream"])
    stream = np.array([streams.index(name) for name in usage["stream"]])
    order = np.argsort(stream, kind="stable")
    position = np.empty(len(share))
    position[order] = np.arange(len(share)) + stream[order]  # one bar's width between streams
    top, height = TITLE + 0.05 + KEY * (not live.all()), 2.5
    figure = _new_figure(top + height + 0.5, title, not live.all())
    axes = _add_axes(figure, 0.55, top, WIDTH - 1.2, height)
    for s, name in enumerate(streams):
        mine = np.flatnonzero(stream == s)
        for gate, bar in zip(mine, axes.bar(position[mine], share[mine], 0.82), strict=True):
            bar.set(**{"color": STREAM_COLOURS[s % len(STREAM_COLOURS)]} if live[gate] else DEAD_STYLE)
        where = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
        axes.text(position[mine].mean(), -0.09, f"{name} layer", size=FONT + 1, **where)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
    for x, value in zip(position, share, strict=True):
        axes.text(x, value + 0.02, f"{value:.2f}", ha="center", size=FONT, bbox=box, zorder=3)
    axes.set(xlim=(-0.7, position.max() + 0.7), ylim=(0, 1.1), yticks=np.linspace(0, 1, 6))
    if live.any():
        mean = share[live].mean()
        axes.axhline(mean, color="0.25", linewidth=0.9, linestyle="--", zorder=2, label="mean")
        axes.annotate(
            f"mean {mean:.2f}", (1.01, mean), size=FONT, va="center", xycoords=("axes fraction", "data")
        )
    axes.set_ylabel(SHARE_LABEL, size=FONT)
    axes.set_xticks(position, [str(layer) for layer in usage["layer"]])
    axes.tick_params(length=0, labelsize=FONT)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _heat_map(usage: GateTable, share: np.ndarray, title: str) -> Figure:
    """Draw a panel a stream: layers down, components across."""
    panels, live = _panels(usage), np.asarray(usage["live"], dtype=bool)
    left, columns = 0.45, [len(panel.components) for panel in panels]
    widths = _column_widths(columns, left)
    words = [[w for c in panel.components if not c.number for w in c.name.split()] for panel in panels]
    rotated = [
        max(map(len, w), default=0) * CHARACTER > width for w, width in zip(words, widths, strict=True)
    ]
    footer = 0.7 if any(rotated) else 0.42
    heights = [len(panel.layers) * ROW for panel in panels]
    figure, all_axes = _place(columns, heights, footer, left, title, not live.all())
    colours = ScalarMappable(Normalize(0, 1), colormaps["RdBu_r"])
    for i, (panel, axes) in enumerate(zip(panels, all_axes, strict=True)):
        values = np.where(panel.gate < 0, np.nan, share[panel.gate])
        dead = (panel.gate >= 0) & ~live[panel.gate]
        _draw_cells(axes, values, dead, colours, "{:.2f}" if widths[i] > VALUE_WIDTH else "")
        _separate(axes, [component.group or component.name for component in panel.components])
        _label_components(axes, panel, rotated[i])
        axes.set_yticks(np.arange(len(panel.layers)) + 0.5, [str(layer) for layer in panel.layers])
        axes.set_ylabel("layer", size=FONT, labelpad=2)
    bar = _add_colour_bar(figure, colours, SHARE_LABEL)
    bar.set_xticks(np.linspace(0, 1, 5), ["0 frozen", "0.25", "0.5", "0.75", "1 tuned"])
    return figure


def _departures(usage: GateTable, names: Sequence[str], departure: np.ndarray, title: str) -> Figure:
    """Draw a panel a stream: question types (K) down, gates across, layer after layer."""
    panels, live = _panels(usage), np.asarray(usage["live"], dtype=bool)
    left = max(len(name) for name in names) * CHARACTER + 0.15
    gates = [panel.gate[panel.gate >= 0] for panel in panels]
    columns = [len(gate) for gate in gates]
    widths, row_starts = _column_widths(columns, left), [row[0] for row in _rows(columns)]
    notes = [_order_note(p, n * width) for p, n, width in zip(panels, columns, widths, strict=True)]
    footer = 0.35 + 0.12 * max(len(note) for note in notes)
    figure, all_axes = _place(columns, [len(names) * ROW] * len(panels), footer, left, title, not live.all())
    limit = max(0.1, np.ceil(np.abs(departure[:, live]).max() * 10) / 10)
    colours = ScalarMappable(Normalize(-limit, limit), colormaps["PuOr_r"])
    for i, (panel, gate, axes) in enumerate(zip(panels, gates, all_axes, strict=True)):
        dead = np.broadcast_to(~live[gate], (len(names), len(gate)))
        has_room = widths[i] > VALUE_WIDTH and departure.size <= MOST_NUMBERS
        _draw_cells(axes, departure[:, gate], dead, colours, "{:+.2f}" if has_room else "")
        layers = np.asarray(usage["layer"])[gate]
        _separate(axes, layers)
        middles = [np.flatnonzero(layers == layer).mean() + 0.5 for layer in panel.layers]
        axes.set_xticks(middles, [str(layer) for layer in panel.layers])
        axes.set_xlabel("\n".join(["layer", *notes[i]]), size=FONT, labelpad=2)
        axes.set_yticks(np.arange(len(names)) + 0.5, names if i in row_starts else [""] * len(names))
        axes.set_title(panel.stream, size=FONT + 2, pad=5)
    bar = _add_colour_bar(figure, colours, "share tuned minus that of all examples")
    bar.set_xticks([-limit, 0, limit], [f"-{limit:.1f}", "0", f"+{limit:.1f}"])
    return figure


# ---- from labels to rows and columns ----


def _panels(usage: GateTable) -> list[Panel]:
    """Return the table's streams in order, each with its gates in a grid."""
    stream, layer, component = (np.asarray(usage[key]) for key in ("stream", "layer", "component"))
    streams, panels = _unique(stream), []
    for name in streams:
        mine = np.flatnonzero(stream == name)
        layers = sorted(_unique(layer[mine]))
        components = _components(_unique(component[mine]), streams)
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


def _order_note(panel: Panel, width: float) -> list[str]:
    """Say in lines of `width` inches how the gates of a layer are ordered; nothing if there is only one."""
    if len(panel.components) == 1:
        return []
    counts = Counter((f"{part.group} {part.name}".strip(), bool(part.number)) for part in panel.components)
    words = [f"{name}s ({count})" if numbered else name for (name, numbered), count in counts.items()]
    return textwrap.wrap("in each: " + ", ".join(words), max(20, int(width / CHARACTER)))


def _unique(values: Iterable[Any]) -> list[Any]:
    """Return the distinct values in the order of their first appearance."""
    return list(dict.fromkeys(value.item() if isinstance(value, np.generic) else value for value in values))


def _check(usage: GateTable, shares: np.ndarray) -> None:
    """Raise UsageError unless the table's arrays and the shares (G,) or (any, G) fit together."""
    keys = ("stream", "layer", "component", "live")
    lengths = {key: len(usage[key]) if key in usage else 0 for key in keys}
    if set(lengths.values()) != {shares.shape[-1]} or not shares.size:
        raise UsageError(f"the gate table's lengths {lengths} do not fit {shares.shape[-1]} shares.")
    if len(set(zip(usage["stream"], usage["layer"], usage["component"], strict=True))) < lengths["live"]:
        raise UsageError("two gates of the table have the same stream, layer and component.")
    if not np.all((shares >= 0) & (shares <= 1)):
        raise UsageError("a share tuned lies outside 0..1, or is not a number.")


def _mean_text(usage: GateTable, share: np.ndarray) -> str:
    live = np.asarray(usage["live"], dtype=bool)
    dead = f" ({np.sum(~live)} dead)" if not live.all() else ""
    mean = f"{share[live].mean():.2f}" if live.any() else "undefined"
    return f"mean share tuned {mean} over {live.sum()} live gates{dead}"


# ---- drawing ----


def _rows(columns: Sequence[int]) -> list[list[int]]:
    """Pack panels into rows no wider than the widest panel, or than 30 columns."""
    rows: list[list[int]] = [[]]
    for panel, count in enumerate(columns):
        if rows[-1] and sum(columns[other] for other in rows[-1]) + count > max(30, *columns):
            rows.append([])
        rows[-1].append(panel)
    return rows


def _column_widths(columns: Sequence[int], left: float) -> list[float]:
    """Return the width of a column of each panel: a row of panels fills the figure's width."""
    widths = []
    for row in _rows(columns):
        room = WIDTH - left - RIGHT - GAP * (len(row) - 1)
        widths += [room / sum(columns[panel] for panel in row)] * len(row)
    return widths


def _place(
    columns: Sequence[int], heights: Sequence[float], footer: float, left: float, title: str, has_dead: bool
) -> tuple[Figure, list[Axes]]:
    """Make a figure with axes for every panel, packed into rows."""
    rows, widths = _rows(columns), _column_widths(columns, left)
    row_heights = [HEADER + max(heights[panel] for panel in row) + footer for row in rows]
    figure = _new_figure(TITLE + KEY + sum(row_heights), title, has_dead)
    axes, top = [], TITLE + KEY
    for row, row_height in zip(rows, row_heights, strict=True):
        x = left
        for panel in row:
            width = widths[panel] * columns[panel]
            axes.append(_add_axes(figure, x, top + HEADER, width, heights[panel]))
            x += width + GAP
        top += row_height
    return figure, axes


def _new_figure(height: float, title: str, has_dead: bool) -> Figure:
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


def _add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes whose upper left corner is that far from the figure's (inches)."""
    total = figure.get_figheight()
    return figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))


def _add_colour_bar(figure: Figure, colours: ScalarMappable, label: str) -> Axes:
    """Add a colour bar at the right below the title, its label to the left of it."""
    axes = _add_axes(figure, WIDTH - 2.3, TITLE + 0.03, 2.0, 0.12)
    figure.colorbar(colours, cax=axes, orientation="horizontal")
    axes.tick_params(labelsize=FONT, length=2, pad=2)
    axes.text(-0.04, 0.5, label, size=FONT, ha="right", va="center", transform=axes.transAxes)
    return axes


def _draw_cells(
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


def _separate(axes: Axes, kinds: Sequence[Any]) -> None:
    """Draw a white line wherever the columns' kind changes."""
    for column in range(1, len(kinds)):
        if kinds[column] != kinds[column - 1]:
            axes.axvline(column, color="white", linewidth=2.2)


def _label_components(axes: Axes, panel: Panel, rotate: bool) -> None:
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
    for group, name in _unique((part.group, part.name) for part in parts if part.number):
        mine = [i for i, part in enumerate(parts) if part.number and (part.group, part.name) == (group, name)]
        axes.annotate(f"{name}s", (np.mean(mine) + 0.5, 0), (0, -12), va="top", **style)
    groups = _unique(part.group for part in parts if part.group)
    for group in groups:
        mine = [i for i, part in enumerate(parts) if part.group == group]
        axes.annotate(group, (np.mean(mine) + 0.5, 1), (0, 3), va="bottom", **style)
    axes.set_title(panel.stream, size=FONT + 2, pad=14 if groups else 5)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


# ---- the script ----


def _read_usage(run: Path) -> dict[str, np.ndarray]:
    """Read a run's usage.npz whole; raises UsageError if it is missing, damaged, incomplete or empty."""
    path = run / "usage.npz"
    if not path.is_file():
        raise UsageError(f"{path} does not exist: only a SpotTune run that has ended an epoch has one.")
    try:
        with np.load(path) as file:
            usage = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read ({error}): run the fine-tuning again.") from error
    if missing := [key for key in ("train", "val", "question_types", "val_by_type") if key not in usage]:
        raise UsageError(f"{path} lacks {', '.join(missing)}: run the fine-tuning again.")
    if not len(usage["train"]) or not len(usage["val"]):
        raise UsageError(f"{path} holds no epoch yet: wait until the first one has ended.")
    return usage


def draw_run(run: Path, output: Path) -> list[Path]:
    """Draw a run's last epoch into `output`: training, validation, question types; return the files."""
    usage = _read_usage(run)
    when = f"epoch {len(usage['val'])}"
    train, val = usage["train"][-1], usage["val"][-1]
    types = [str(name) for name in usage["question_types"]]
    name = run.resolve().name
    figures = {
        "policy_train.png": policy_figure(usage, train, f"{name}: training, {when}"),
        "policy_val.png": policy_figure(usage, val, f"{name}: validation, {when}"),
        "policy_by_question_type.png": question_type_figure(
            usage, types, usage["val_by_type"], val, f"{name}: validation by question type, {when}"
        ),
    }
    for file, figure in figures.items():
        _save(figure, output / file)
    return [output / file for file in figures]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw what the policy of a run did in its last epoch (PNG).")
    parser.add_argument("run", type=Path, help="a run folder, snap/vqa/<version>")
    parser.add_argument("--output", type=Path, help="where to put them; default visualizations/<version>")
    options = parser.parse_args(arguments)
    try:
        paths = draw_run(options.run, options.output or Path("visualizations", options.run.resolve().name))
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"wrote {path}" for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
