"""Pictures of what the policy learned: the share of examples that ran the tuned copy, gate by gate.

One gate per layer gives bars; several components per layer give heat maps, one panel per stream. The layout
follows the gates' own labels, see `report.gates`, so a new granularity needs no change here.
"""

import io
import itertools
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from common.errors import RunError
from common.files import replace_file
from common.words import cut
from report.gates import GateTable, Panel, panels_of, unique
from report.run import Run

WIDTH, TITLE, KEY, LABELS, ROW = 8.0, 0.52, 0.35, 0.8, 0.21  # inches; LABELS above and below a panel together
DPI, FONT = 150, 7  # dots per inch, points
HEADLINE, DETAIL, TYPE = 95, 125, 40  # the most letters of the two lines above, and of a question type's name
LETTERS, NUMBER = 130, 6  # letters that fit side by side; those a number takes
MOST_TYPES, MOST_NUMBERS = 12, 150  # more rows or numbers would hide what matters
SHARE_LABEL = "share of examples that ran the tuned copy"
STREAM_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7")  # Okabe & Ito: safe for colour-blind readers
DEAD_STYLE = {"facecolor": "0.88", "edgecolor": "0.6", "hatch": "//////", "linewidth": 0}
DEAD_LABEL = "dead gate: cannot influence the answer"


def draw_policy(usage: GateTable, share: np.ndarray, title: str, path: Path) -> None:
    """Save `policy_figure` as a PNG, 1200 pixels wide; the folder is made if need be."""
    save_figure(policy_figure(usage, share, title), path)


def draw_run(run: Run, output: Path) -> list[Path]:
    """Draw a run's last epoch into `output`: training, validation, question types; return the files."""
    usage = run.usage
    when = f"epoch {len(usage['val'])}"
    train, val = usage["train"][-1], usage["val"][-1]
    types = [str(name) for name in usage["question_types"]]
    figures = {
        "policy_train.png": policy_figure(usage, train, f"{run.name}: training, {when}"),
        "policy_val.png": policy_figure(usage, val, f"{run.name}: validation, {when}"),
        "policy_by_question_type.png": question_type_figure(
            usage, types, usage["val_by_type"], val, f"{run.name}: validation by question type, {when}"
        ),
    }
    for file, figure in figures.items():
        save_figure(figure, output / file)
    return [output / file for file in figures]


def policy_figure(usage: GateTable, share: np.ndarray, title: str) -> Figure:
    """Picture the share tuned (G,) of every gate, from 0 (always frozen) to 1 (always tuned).

    The title gains the mean over the live gates; dead gates are grey. Raises RunError for arrays that do
    not fit together and for shares outside 0..1.
    """
    share = np.asarray(share, dtype=float)
    _check(usage, share)
    title = f"{title}\n{_mean_text(usage, share)}"
    is_block = np.all(usage["component"] == "layer")
    return _bars(usage, share, title) if is_block else _heat_map(usage, share, title)


def question_type_figure(
    usage: GateTable, question_types: Sequence[str], share_by_type: np.ndarray, share: np.ndarray, title: str
) -> Figure:
    """Picture how the share tuned of each question type (K, G) departs from that of all examples (G,).

    One row per type, that with the highest mean over the live gates on top; one column per gate. Of many
    types the 12 that depart most are shown. A type without examples (its shares are not numbers) is left out.
    Raises RunError as `policy_figure` does.
    """
    share, by_type = np.asarray(share, dtype=float), np.asarray(share_by_type, dtype=float)
    expected = (len(question_types), len(share))
    if by_type.shape != expected:
        raise RunError(f"the shares by question type have shape {by_type.shape}, expected {expected}.")
    seen = np.flatnonzero(~np.isnan(by_type).all(axis=1))
    _check(usage, np.vstack([share, by_type[seen]]))
    live = usage["live"]
    if not len(seen) or not live.any():
        raise RunError("no question type has both examples and live gates: there is nothing to compare.")
    distance = np.abs(by_type[seen] - share)[:, live].mean(axis=1)
    shown = seen[np.argsort(-distance, kind="stable")[:MOST_TYPES]]
    means = by_type[:, live].mean(axis=1)
    shown = shown[np.argsort(-means[shown], kind="stable")]
    names = [f"{_plain(cut(question_types[k], TYPE))} ({means[k]:.2f})" for k in shown]
    some = f"; the {len(shown)} of {len(seen)} types that depart most" if len(shown) < len(seen) else ""
    title = f"{title}\n{_mean_text(usage, share)}; in brackets, that of a question type{some}"
    return _departures(usage, names, by_type[shown] - share, title)


def _plain(text: str) -> str:
    """The text as it is drawn as it is: a dollar does not begin a formula."""
    return text.replace("$", r"\$")


def _bars(usage: GateTable, share: np.ndarray, title: str) -> Figure:
    """Draw a bar per layer, and the mean over all live gates as a dashed line."""
    panels, live = panels_of(usage), usage["live"]
    columns, top = [len(panel.layers) for panel in panels], TITLE + KEY * (not live.all())
    figure, all_axes, _ = _lay_out(columns, [2.5] * len(panels), title, not live.all(), top)
    for panel, axes, colour in zip(panels, all_axes, itertools.cycle(STREAM_COLOURS)):
        gates = panel.gate[:, 0]
        bars = axes.bar([str(layer) for layer in panel.layers], share[gates], 0.82, color=colour)
        for bar in np.array(bars.patches)[~live[gates]]:
            bar.set(**DEAD_STYLE)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
        axes.bar_label(bars, fmt="{:.2f}", padding=2, size=FONT, bbox=box, zorder=3)
        is_first = axes.get_subplotspec().is_first_col()
        axes.set(ylim=(0, 1.1), yticks=np.linspace(0, 1, 6) if is_first else [])
        axes.set_ylabel(SHARE_LABEL if is_first else "", size=FONT)
        axes.set_xlabel(f"{panel.stream} layer", size=FONT + 1)
        axes.spines[["top", "right"] if is_first else ["left", "top", "right"]].set_visible(False)
    if live.any():
        mean, place = share[live].mean(), {"xycoords": ("axes fraction", "data"), "va": "center"}
        for axes in all_axes:
            axes.axhline(mean, color="0.25", linewidth=0.9, linestyle="--", zorder=2, label="mean")
        axes.annotate(f"mean {mean:.2f}", (1.01, mean), size=FONT, **place)
    return figure


def _heat_map(usage: GateTable, share: np.ndarray, title: str) -> Figure:
    """Draw layers down, components across."""
    panels, live = panels_of(usage), usage["live"]
    columns, heights = [len(p.parts) for p in panels], [len(p.layers) * ROW for p in panels]
    figure, all_axes, crowds = _lay_out(columns, heights, title, not live.all())
    colours = ScalarMappable(Normalize(0, 1), colormaps["RdBu_r"])
    for panel, axes, crowd in zip(panels, all_axes, crowds, strict=True):
        values = np.where(panel.gate < 0, np.nan, share[panel.gate])
        dead = (panel.gate >= 0) & ~live[panel.gate]
        number_format = "{:.2f}" if crowd * NUMBER <= LETTERS else ""
        kinds = [part.group or part.name for part in panel.parts]
        _draw_cells(axes, values, dead, colours, number_format, kinds)
        _label_components(axes, panel, crowd)
        axes.set_yticks(np.arange(len(panel.layers)) + 0.5, panel.layers)
        axes.set_ylabel("layer", size=FONT, labelpad=2)
    bar = _add_colour_bar(figure, colours, SHARE_LABEL)
    bar.set_xticks(np.linspace(0, 1, 5), ["0 frozen", "0.25", "0.5", "0.75", "1 tuned"])
    return figure


def _departures(usage: GateTable, names: Sequence[str], departure: np.ndarray, title: str) -> Figure:
    """Draw question types (K) down, gates across, layer after layer."""
    panels, live = panels_of(usage), usage["live"]
    gates = [panel.gate[panel.gate >= 0] for panel in panels]
    heights = [len(names) * ROW] * len(panels)
    figure, all_axes, crowds = _lay_out([len(gate) for gate in gates], heights, title, not live.all())
    limit = max(0.1, np.ceil(np.abs(departure[:, live]).max() * 10) / 10)
    colours = ScalarMappable(Normalize(-limit, limit), colormaps["PuOr_r"])
    room = LETTERS - max(map(len, names))
    for panel, gate, axes, crowd in zip(panels, gates, all_axes, crowds, strict=True):
        dead = np.broadcast_to(~live[gate], (len(names), len(gate)))
        number_format = "{:+.2f}" if crowd * NUMBER <= room and departure.size <= MOST_NUMBERS else ""
        layers = usage["layer"][gate]
        _draw_cells(axes, departure[:, gate], dead, colours, number_format, layers)
        middles = [np.flatnonzero(layers == layer).mean() + 0.5 for layer in panel.layers]
        axes.set_xticks(middles, panel.layers)
        note = _order_note(panel, room * len(gate) // crowd)
        axes.set_xlabel("\n".join(["layer", *note]), size=FONT, labelpad=2)
        is_first = axes.get_subplotspec().is_first_col()
        axes.set_yticks(np.arange(len(names)) + 0.5, names if is_first else [""] * len(names))
        axes.set_title(panel.stream, size=FONT + 2, pad=5)
    bar = _add_colour_bar(figure, colours, "share tuned minus that of all examples")
    bar.set_xticks([-limit, 0, limit], [f"-{limit:.1f}", "0", f"+{limit:.1f}"])
    return figure


def _lay_out(
    columns: Sequence[int], heights: Sequence[float], title: str, has_dead: bool, top: float = TITLE + KEY
) -> tuple[Figure, list[Axes], list[int]]:
    """Make a figure with a title, the key to dead gates, and axes for panels of that many columns and inches.

    Panels are packed into rows no wider than the widest one, or than 30 columns; returned too is how many
    columns the row of each panel has.
    """
    rows: list[list[int]] = [[]]
    for panel, count in enumerate(columns):
        if rows[-1] and sum(columns[other] for other in rows[-1]) + count > max(30, *columns):
            rows.append([])
        rows[-1].append(panel)
    row_heights = [LABELS + max(heights[panel] for panel in row) for row in rows]
    height = top + sum(row_heights)
    figure = Figure((WIDTH, height), DPI, layout="constrained")
    figure.get_layout_engine().set(rect=(0.008, 0, 0.984, 1 - top / height), wspace=0.03)
    headline, _, detail = title.partition("\n")
    headline, detail = _plain(cut(headline, HEADLINE)), _plain(cut(detail, DETAIL))
    figure.text(0.012, 1 - 0.09 / height, headline, size=FONT + 3, weight="bold", va="top")
    figure.text(0.012, 1 - 0.30 / height, detail, size=FONT + 1, color="0.25", va="top")
    if has_dead:
        place = {"loc": "upper left", "bbox_to_anchor": (0.012, 1 - 0.55 / height), "borderaxespad": 0}
        dead = Patch(label=DEAD_LABEL, **DEAD_STYLE)
        figure.legend(handles=[dead], fontsize=FONT, frameon=False, borderpad=0, **place)
    axes, crowds = [], []
    for place, row in zip(figure.add_gridspec(len(rows), 1, height_ratios=row_heights), rows, strict=True):
        widths = [columns[panel] for panel in row]
        axes += place.subgridspec(1, len(row), width_ratios=widths).subplots(squeeze=False)[0].tolist()
        crowds += [sum(widths)] * len(row)
    for panel in axes:
        panel.tick_params(length=0, pad=2, labelsize=FONT)
    return figure, axes, crowds


def _add_colour_bar(figure: Figure, colours: ScalarMappable, label: str) -> Axes:
    """Add a colour bar at the right below the title, its label to the left of it."""
    height = figure.get_figheight()
    axes = figure.add_axes((1 - 2.3 / WIDTH, 1 - 0.67 / height, 2 / WIDTH, 0.12 / height))
    figure.colorbar(colours, cax=axes, orientation="horizontal")
    axes.tick_params(labelsize=FONT, length=2, pad=2)
    axes.text(-0.04, 0.5, label, size=FONT, ha="right", va="center", transform=axes.transAxes)
    return axes


def _draw_cells(
    axes: Axes,
    values: np.ndarray,
    dead: np.ndarray,
    colours: ScalarMappable,
    number_format: str,
    kinds: Sequence[Any],
) -> None:
    """Colour a grid of values (R, C), first row on top; hatch dead cells, leave missing ones (NaN) white.

    A white line parts the columns wherever their kind (C,) changes.
    """
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
    for column, (kind, previous) in enumerate(zip(kinds[1:], kinds[:-1], strict=True), 1):
        if kind != previous:
            axes.axvline(column, color="white", linewidth=2.2)
    axes.spines[:].set_visible(False)


def _label_components(axes: Axes, panel: Panel, crowd: int) -> None:
    """Write a column's number or name below it, a series' name below its numbers, and groups above."""
    parts = panel.parts
    words = [word for part in parts if not part.number for word in part.name.split()]
    upright = crowd * max(map(len, words), default=0) <= LETTERS
    names = [
        part.number or textwrap.fill(part.name, 1 if upright else 10, break_long_words=False)
        for part in parts
    ]
    ticks = axes.set_xticks(np.arange(len(parts)) + 0.5, names)
    for part, tick in zip(parts, ticks, strict=True):
        tick.label1.set(size=FONT - bool(part.number), rotation=0 if upright or part.number else 90)
    style = {
        "xycoords": axes.get_xaxis_transform(),
        "textcoords": "offset points",
        "ha": "center",
        "size": FONT,
    }
    series = [(part.group, f"{part.name}s") if part.number else ("", "") for part in parts]
    groups = [("", part.group) for part in parts]
    for labels, y, offset, va in ((series, 0, -12, "top"), (groups, 1, 3, "bottom")):
        for label in unique(label for label in labels if label[1]):
            middle = np.mean([i for i, other in enumerate(labels) if other == label]) + 0.5
            axes.annotate(label[1], (middle, y), (0, offset), va=va, **style)
    axes.set_title(panel.stream, size=FONT + 2, pad=14 if any(part.group for part in parts) else 5)


def _order_note(panel: Panel, width: int) -> list[str]:
    """Say in lines of `width` characters how the gates of a layer are ordered; nothing if there is one."""
    if len(panel.parts) == 1:
        return []
    counts = Counter((f"{part.group} {part.name}".strip(), bool(part.number)) for part in panel.parts)
    words = [f"{name}s ({count})" if numbered else name for (name, numbered), count in counts.items()]
    return textwrap.wrap("in each: " + ", ".join(words), max(20, width))


def _check(usage: GateTable, shares: np.ndarray) -> None:
    """Raise RunError unless the table's arrays and the shares (G,) or (any, G) fit together."""
    keys = ("stream", "layer", "component", "live")
    lengths = {key: len(usage[key]) if key in usage else 0 for key in keys}
    if set(lengths.values()) != {shares.shape[-1]} or not shares.size:
        raise RunError(f"the gate table's lengths {lengths} do not fit {shares.shape[-1]} shares.")
    if len(set(zip(usage["stream"], usage["layer"], usage["component"], strict=True))) < lengths["live"]:
        raise RunError("two gates of the table have the same stream, layer and component.")
    if not np.all((shares >= 0) & (shares <= 1)):
        raise RunError("a share tuned lies outside 0..1, or is not a number.")


def _mean_text(usage: GateTable, share: np.ndarray) -> str:
    live = usage["live"]
    dead = f" ({np.sum(~live)} dead)" if not live.all() else ""
    mean = f"{share[live].mean():.2f}" if live.any() else "undefined"
    return f"mean share tuned {mean} over {live.sum()} live gates{dead}"


def save_figure(figure: Figure, path: Path) -> None:
    """Save a picture as a PNG; the folder is made if need be."""
    image = io.BytesIO()
    figure.savefig(image, dpi=DPI)
    replace_file(path, image.getvalue())
