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
TITLE, HEADER, FOOTER, GAP, COLOUR_BAR = 0.5, 0.42, 0.38, 0.5, 0.9
FONT, CHARACTER = 7, 0.056  # points; the average width of a character of that size
VALUE_WIDTH = 0.27  # a column as wide as this has room for its number

SHARE_LABEL = "share of examples that ran the tuned copy"
STREAM_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7")  # Okabe & Ito: safe for colour-blind readers
DEAD_STYLE = {"facecolor": "0.88", "edgecolor": "0.6", "hatch": "//////", "linewidth": 0}
DEAD_LABEL = "dead gate: cannot influence the answer"


class UsageError(ValueError):
    """Gate usage that is missing, unreadable or inconsistent; the message says what and what to do."""


class Component(NamedTuple):
    """A component's label taken apart: "cross head 3" is group "cross", name "head", number "3"."""

    label: str
    group: str  # the stream that the label of a cross layer's component begins with, or ""
    name: str
    number: str  # "" if there are no siblings


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
    _check(usage, share[None])
    title = f"{title}\n{_mean_text(usage, share)}"
    is_block = np.all(np.asarray(usage["component"]) == "layer")
    return _bars(usage, share, title) if is_block else _heat_map(usage, share, title)


def question_type_figure(
    usage: GateTable, question_types: Sequence[str], share_by_type: np.ndarray, share: np.ndarray, title: str
) -> Figure:
    """Picture how the share tuned of each question type (K, G) departs from that of all examples (G,).

    One row a type, that with the highest mean over the live gates on top; one column a gate. A type without
    examples (its shares are not numbers) is left out. Raises UsageError as `policy_figure` does.
    """
    share, share_by_type = np.asarray(share, dtype=float), np.asarray(share_by_type, dtype=float)
    wanted = (len(question_types), len(share))
    if share_by_type.shape != wanted:
        raise UsageError(f"the shares by question type have shape {share_by_type.shape}, expected {wanted}.")
    _check(usage, np.vstack([share, *(row for row in share_by_type if not np.isnan(row).all())]))
    means = _live_mean(usage, share_by_type)
    order = [k for k in np.argsort(-means, kind="stable") if np.isfinite(means[k])]
    if not order:
        raise UsageError("no question type has both examples and live gates: there is nothing to compare.")
    names = [f"{question_types[k]} ({means[k]:.2f})" for k in order]
    title = f"{title}\n{_mean_text(usage, share)}; in brackets, that of each question type"
    return _departures(usage, names, share_by_type[order] - share, title)


# ---- the three pictures ----


def _bars(usage: GateTable, share: np.ndarray, title: str) -> Figure:
    """Draw a bar a layer, grouped by stream, and the mean as a dashed line."""
    live = np.asarray(usage["live"], dtype=bool)
    streams = _unique(usage["stream"])
    stream = np.array([streams.index(name) for name in usage["stream"]])
    order = np.argsort(stream, kind="stable")
    position = np.empty(len(share))
    position[order] = np.arange(len(share)) + stream[order]  # one bar's width between streams
    height = 2.5
    figure = _new_figure(TITLE + height + 0.55, title, has_dead=not live.all())
    axes = _add_axes(figure, 0.55, TITLE + 0.05, WIDTH - 1.15, height)
    for s, name in enumerate(streams):
        mine = np.flatnonzero(stream == s)
        colour = STREAM_COLOURS[s % len(STREAM_COLOURS)]
        for gate, bar in zip(mine, axes.bar(position[mine], share[mine], 0.82, color=colour), strict=True):
            if not live[gate]:
                bar.set(**DEAD_STYLE)
        where = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
        axes.text(position[mine].mean(), -0.09, f"{name} layer", size=FONT + 1, **where)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
    for x, value in zip(position, share, strict=True):
        axes.text(x, value + 0.02, f"{value:.2f}", ha="center", size=FONT, bbox=box, zorder=3)
    axes.set(xlim=(-0.7, position.max() + 0.7), ylim=(0, 1.1), yticks=np.linspace(0, 1, 6))
    if live.any():
        mean = _live_mean(usage, share)
        axes.axhline(mean, color="0.25", linewidth=0.9, linestyle="--", zorder=2, label="mean")
        axes.text(
            1.01, mean, f"mean {mean:.2f}", size=FONT, va="center", transform=axes.get_yaxis_transform()
        )
    axes.set_ylabel(SHARE_LABEL, size=FONT)
    axes.set_xticks(position, [str(layer) for layer in usage["layer"]])
    axes.tick_params(length=0, labelsize=FONT)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _heat_map(usage: GateTable, share: np.ndarray, title: str) -> Figure:
    """Draw a panel a stream: layers down, components across."""
    panels, live = _panels(usage), np.asarray(usage["live"], dtype=bool)
    row_height, left = 0.21, 0.45
    widths = _column_widths([len(panel.components) for panel in panels], left)
    rotated, footers = [], []
    for panel, width in zip(panels, widths, strict=True):
        longest = max((len(c.name) for c in panel.components if not c.number), default=0) * CHARACTER
        rotated.append(longest > width)
        footers.append(max(FOOTER, longest + 0.1) if rotated[-1] else FOOTER)
    columns, rows = zip(*((len(panel.components), len(panel.layers)) for panel in panels), strict=True)
    figure, all_axes, bar = _place(columns, np.array(rows) * row_height, footers, left, title, not live.all())
    colours = ScalarMappable(Normalize(0, 1), colormaps["RdBu_r"])
    for i, (panel, axes) in enumerate(zip(panels, all_axes, strict=True)):
        values = np.where(panel.gate < 0, np.nan, share[panel.gate])
        dead = (panel.gate >= 0) & ~live[panel.gate]
        _draw_cells(axes, values, dead, colours, "{:.2f}" if widths[i] > VALUE_WIDTH else "")
        _separate(axes, [component.group or component.name for component in panel.components])
        _label_components(axes, panel, rotated[i])
        axes.set_yticks(np.arange(len(panel.layers)) + 0.5, [str(layer) for layer in panel.layers])
        axes.set_ylabel("layer", size=FONT, labelpad=2)
    figure.colorbar(colours, cax=bar, ticks=np.linspace(0, 1, 5)).set_label(SHARE_LABEL, size=FONT)
    bar.set_yticklabels(["0 frozen", "0.25", "0.5", "0.75", "1 tuned"], size=FONT)
    return figure


def _departures(usage: GateTable, names: Sequence[str], departure: np.ndarray, title: str) -> Figure:
    """Draw a panel a stream: question types (K) down, gates across, layer after layer."""
    panels, live = _panels(usage), np.asarray(usage["live"], dtype=bool)
    row_height = 0.2 if len(names) <= 24 else 0.12
    left = max(len(name) for name in names) * CHARACTER + 0.15
    gates = [panel.gate[panel.gate >= 0] for panel in panels]
    columns = [len(gate) for gate in gates]
    widths = _column_widths(columns, left)
    notes = [_order_note(p, n * width) for p, n, width in zip(panels, columns, widths, strict=True)]
    footers = [FOOTER + 0.12 * len(note) for note in notes]
    heights = [len(names) * row_height] * len(panels)
    figure, all_axes, bar = _place(columns, heights, footers, left, title, not live.all())
    limit = max(0.1, np.ceil(np.abs(departure[:, live]).max() * 10) / 10)
    colours = ScalarMappable(Normalize(-limit, limit), colormaps["PuOr_r"])
    row_starts = {row[0] for row in _rows(columns)}
    for i, (panel, gate, axes) in enumerate(zip(panels, gates, all_axes, strict=True)):
        dead = np.broadcast_to(~live[gate], (len(names), len(gate)))
        has_room = widths[i] > VALUE_WIDTH and row_height > 0.15
        _draw_cells(axes, departure[:, gate], dead, colours, "{:+.2f}" if has_room else "")
        layers = np.asarray(usage["layer"])[gate]
        _separate(axes, layers)
        middles = [np.flatnonzero(layers == layer).mean() + 0.5 for layer in panel.layers]
        axes.set_xticks(middles, [str(layer) for layer in panel.layers])
        axes.set_xlabel("\n".join(["layer", *notes[i]]), size=FONT, labelpad=2)
        axes.set_yticks(np.arange(len(names)) + 0.5, names if i in row_starts else [""] * len(names))
        axes.tick_params(axis="y", labelsize=min(FONT, row_height * 55))
        axes.set_title(panel.stream, size=FONT + 2, pad=5)
    label = "share tuned, less that of all examples"
    figure.colorbar(colours, cax=bar, format="%+.1f").set_label(label, size=FONT)
    bar.tick_params(labelsize=FONT)
    return figure


# ---- from labels to rows and columns ----


def _panels(usage: GateTable) -> list[Panel]:
    """Return the table's streams in order, each with its gates in a grid."""
    stream, layer, component = (np.asarray(usage[key]) for key in ("stream", "layer", "component"))
    streams = _unique(stream)
    panels = []
    for name in streams:
        mine = np.flatnonzero(stream == name)
        layers = sorted(_unique(layer[mine]))
        components = _components(_unique(component[mine]), streams)
        columns = {part.label: column for column, part in enumerate(components)}
        gate = np.full((len(layers), len(components)), -1)
        for g in mine:
            gate[layers.index(layer[g]), columns[component[g]]] = g
        panels.append(Panel(name, layers, components, gate))
    return panels


def _components(labels: Sequence[str], streams: Sequence[str]) -> list[Component]:
    """Take labels apart and bring each group's together, keeping the order otherwise."""
    parts = []
    for label in labels:
        group, _, rest = label.partition(" ")
        group, rest = (group, rest) if group in streams and rest else ("", label)
        numbered = re.fullmatch(r"(.+) (\d+)", rest)
        name, number = numbered.groups() if numbered else (rest, "")
        parts.append(Component(label, group, name, number))
    kinds = [(part.group, part.name) for part in parts]
    groups = [part.group for part in parts]
    return sorted(parts, key=lambda part: (groups.index(part.group), kinds.index((part.group, part.name))))


def _order_note(panel: Panel, width: float) -> list[str]:
    """Say in lines of `width` inches how the gates of one layer are ordered; nothing if there is only one."""
    if len(panel.components) == 1:
        return []
    kinds = _unique((part.group, part.name) for part in panel.components)
    words = []
    for group, name in kinds:
        count = sum((part.group, part.name) == (group, name) for part in panel.components)
        words.append(f"{group} {name}".strip() + (f"s ({count})" if count > 1 else ""))
    return textwrap.wrap("in each: " + ", ".join(words), max(20, int(width / CHARACTER)))


def _unique(values: Iterable[Any]) -> list[Any]:
    """Return the distinct values in the order of their first appearance."""
    return list(dict.fromkeys(value.item() if isinstance(value, np.generic) else value for value in values))


def _check(usage: GateTable, shares: np.ndarray) -> None:
    """Raise UsageError unless the table's arrays and the shares (any, G) fit together."""
    if missing := [key for key in ("stream", "layer", "component", "live") if key not in usage]:
        raise UsageError(f"the gate table lacks {', '.join(missing)}.")
    lengths = {key: len(usage[key]) for key in ("stream", "layer", "component", "live")}
    if set(lengths.values()) != {shares.shape[-1]} or not shares.size:
        raise UsageError(
            f"the gate table's lengths {lengths} do not fit {shares.shape[-1]} shares, one a gate."
        )
    labels = list(zip(usage["stream"], usage["layer"], usage["component"], strict=True))
    if len(set(labels)) < len(labels):
        raise UsageError("two gates of the table have the same stream, layer and component.")
    if not np.all((shares >= 0) & (shares <= 1)):
        raise UsageError("a share tuned lies outside 0..1, or is not a number.")


def _live_mean(usage: GateTable, shares: np.ndarray) -> np.ndarray:
    """Average shares (..., G) over the live gates; not a number if there are none."""
    live = np.asarray(usage["live"], dtype=bool)
    return shares[..., live].mean(axis=-1) if live.any() else np.full(shares.shape[:-1], np.nan)


def _mean_text(usage: GateTable, share: np.ndarray) -> str:
    live = int(np.sum(usage["live"]))
    dead = f" ({len(share) - live} dead)" if live < len(share) else ""
    return f"mean share tuned {_live_mean(usage, share):.2f} over {live} live gates{dead}"


# ---- drawing ----


def _rows(columns: Sequence[int]) -> list[list[int]]:
    """Pack panels into rows no wider than the widest panel, or than 24 columns."""
    rows: list[list[int]] = [[]]
    for panel, count in enumerate(columns):
        if rows[-1] and sum(columns[other] for other in rows[-1]) + count > max(24, *columns):
            rows.append([])
        rows[-1].append(panel)
    return rows


def _column_widths(columns: Sequence[int], left: float) -> list[float]:
    """Return the width of a column of each panel: a row of panels fills the figure's width."""
    widths = []
    for row in _rows(columns):
        room = WIDTH - left - COLOUR_BAR - GAP * (len(row) - 1)
        widths += [room / sum(columns[panel] for panel in row)] * len(row)
    return widths


def _place(
    columns: Sequence[int],
    heights: Sequence[float],
    footers: Sequence[float],
    left: float,
    title: str,
    has_dead: bool,
) -> tuple[Figure, list[Axes], Axes]:
    """Make a figure with axes for every panel and, on the right, for the colour bar."""
    rows, widths = _rows(columns), _column_widths(columns, left)
    row_heights = [HEADER + max(heights[p] + footers[p] for p in row) for row in rows]
    figure = _new_figure(TITLE + sum(row_heights), title, has_dead)
    axes, top = [], TITLE
    for row, row_height in zip(rows, row_heights, strict=True):
        x = left
        for panel in row:
            width = widths[panel] * columns[panel]
            axes.append(_add_axes(figure, x, top + HEADER, width, heights[panel]))
            x += width + GAP
        top += row_height
    length = min(2.4, sum(row_heights) - HEADER - 0.2)
    return figure, axes, _add_axes(figure, WIDTH - COLOUR_BAR + 0.15, TITLE + HEADER, 0.13, length)


def _new_figure(height: float, title: str, has_dead: bool) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    headline, _, detail = title.partition("\n")
    figure.text(0.012, 1 - 0.09 / height, headline, size=FONT + 3, weight="bold", va="top")
    figure.text(0.012, 1 - 0.30 / height, detail, size=FONT + 1, color="0.25", va="top")
    if has_dead:
        place = {"loc": "upper right", "bbox_to_anchor": (0.995, 1 - 0.24 / height), "borderaxespad": 0}
        figure.legend(handles=[Patch(label=DEAD_LABEL, **DEAD_STYLE)], fontsize=FONT, frameon=False, **place)
    return figure


def _add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes whose upper left corner is that far from the figure's (inches)."""
    total = figure.get_figheight()
    return figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))


def _draw_cells(
    axes: Axes, values: np.ndarray, dead: np.ndarray, colours: ScalarMappable, number_format: str
) -> None:
    """Colour a grid of values (R, C), first row on top; hatch the dead cells, leave missing ones (NaN) white."""
    shown = np.ma.masked_where(dead | np.isnan(values), values)
    axes.pcolormesh(shown, cmap=colours.cmap, norm=colours.norm)
    axes.invert_yaxis()
    if dead.any():
        cells = [Rectangle((column, row), 1, 1) for row, column in np.argwhere(dead)]
        axes.add_collection(PatchCollection(cells, label=DEAD_LABEL, **DEAD_STYLE))
    if number_format:
        for (row, column), value in np.ma.ndenumerate(shown):
            tint = "white" if abs(colours.norm(value) - 0.5) > 0.33 else "black"
            number = number_format.format(value)
            axes.text(column + 0.5, row + 0.52, number, size=FONT - 1, color=tint, ha="center", va="center")
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
    ticks = axes.set_xticks(np.arange(len(parts)) + 0.5, [part.number or part.name for part in parts])
    for part, tick in zip(parts, ticks, strict=True):
        tick.label1.set(
            size=FONT - 1 if part.number else FONT, rotation=90 if rotate and not part.number else 0
        )
    below = {
        "xycoords": axes.get_xaxis_transform(),
        "textcoords": "offset points",
        "ha": "center",
        "size": FONT,
    }
    for group, name in _unique((part.group, part.name) for part in parts if part.number):
        mine = [i for i, part in enumerate(parts) if part.number and (part.group, part.name) == (group, name)]
        axes.annotate(f"{name}s", (np.mean(mine) + 0.5, 0), (0, -12), va="top", **below)
    groups = _unique(part.group for part in parts if part.group)
    for group in groups:
        mine = [i for i, part in enumerate(parts) if part.group == group]
        axes.annotate(group, (np.mean(mine) + 0.5, 1), (0, 3), va="bottom", **below)
    axes.set_title(panel.stream, size=FONT + 2, pad=14 if groups else 5)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


# ---- the script ----


def _read_usage(run: Path) -> dict[str, np.ndarray]:
    """Read a run's usage.npz whole; raises UsageError if it is missing, damaged, incomplete or empty."""
    path = run / "usage.npz"
    if not path.is_file():
        raise UsageError(
            f"{path} does not exist: only runs with a policy (SpotTune...) that ended an epoch have it."
        )
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
    """Draw a run folder's last epoch into `output`: training, validation, question types. Returns the files."""
    usage = _read_usage(run)
    version, epochs = run.resolve().name, len(usage["val"])
    train, val = usage["train"][-1], usage["val"][-1]
    types, by_type = [str(name) for name in usage["question_types"]], usage["val_by_type"]
    figures = {
        "policy_train": policy_figure(usage, train, f"{version}: training, epoch {epochs}"),
        "policy_val": policy_figure(usage, val, f"{version}: validation, epoch {epochs}"),
        "policy_by_question_type": question_type_figure(
            usage, types, by_type, val, f"{version}: departures by question type, validation, epoch {epochs}"
        ),
    }
    for name, figure in figures.items():
        _save(figure, output / f"{name}.png")
    return [output / f"{name}.png" for name in figures]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Draw what the policy of a run learned (last epoch): PNG files."
    )
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
