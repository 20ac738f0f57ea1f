"""Pictures of what the policy learned: the share of examples that ran the tuned copy, gate by gate.

One gate per layer gives bars; several components per layer give heat maps, one panel per stream. The layout
follows the gates' own labels, so a new granularity needs no change here.

A gate table is a mapping of arrays over the G gates, in model order: `stream` (str), `layer` (int, from 1),
`component` (str) and `live` (bool); a dead gate cannot influence the answer. `usage.npz` is such a table.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from common.errors import RunError
from common.files import replace_file
from report.panels import (
    CHARACTER,
    DEAD_STYLE,
    DPI,
    FONT,
    KEY,
    ROW,
    TITLE,
    VALUE_WIDTH,
    WIDTH,
    GateTable,
    add_axes,
    add_colour_bar,
    column_widths,
    draw_cells,
    label_components,
    new_figure,
    order_note,
    pack_rows,
    panels_of,
    place_panels,
    separate,
    unique,
)
from report.run import Run

MOST_TYPES, MOST_NUMBERS = 12, 150  # more rows or numbers would hide what matters
SHARE_LABEL = "share of examples that ran the tuned copy"
STREAM_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7")  # Okabe & Ito: safe for colour-blind readers


def draw_policy(usage: GateTable, share: np.ndarray, title: str, path: Path) -> None:
    """Save `policy_figure` as a PNG, 1200 pixels wide; the folder is made if need be."""
    _save(policy_figure(usage, share, title), path)


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
        _save(figure, output / file)
    return [output / file for file in figures]


def policy_figure(usage: GateTable, share: np.ndarray, title: str) -> Figure:
    """Picture the share tuned (G,) of every gate, from 0 (always frozen) to 1 (always tuned).

    The title gains the mean over the live gates; dead gates are grey. Raises RunError for arrays that do
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
    live = np.asarray(usage["live"], dtype=bool)
    if not len(seen) or not live.any():
        raise RunError("no question type has both examples and live gates: there is nothing to compare.")
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
    """Draw a bar per layer, grouped by stream, and the mean as a dashed line."""
    live = np.asarray(usage["live"], dtype=bool)
    streams = unique(usage["stream"])
    stream = np.array([streams.index(name) for name in usage["stream"]])
    order = np.argsort(stream, kind="stable")
    position = np.empty(len(share))
    position[order] = np.arange(len(share)) + stream[order]  # one bar's width between streams
    top, height = TITLE + 0.05 + KEY * (not live.all()), 2.5
    figure = new_figure(top + height + 0.5, title, not live.all())
    axes = add_axes(figure, 0.55, top, WIDTH - 1.2, height)
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
    """Draw a panel per stream: layers down, components across."""
    panels, live = panels_of(usage), np.asarray(usage["live"], dtype=bool)
    left, columns = 0.45, [len(panel.components) for panel in panels]
    widths = column_widths(columns, left)
    words = [[w for c in panel.components if not c.number for w in c.name.split()] for panel in panels]
    rotated = [
        max(map(len, w), default=0) * CHARACTER > width for w, width in zip(words, widths, strict=True)
    ]
    footer = 0.7 if any(rotated) else 0.42
    heights = [len(panel.layers) * ROW for panel in panels]
    figure, all_axes = place_panels(columns, heights, footer, left, title, not live.all())
    colours = ScalarMappable(Normalize(0, 1), colormaps["RdBu_r"])
    for i, (panel, axes) in enumerate(zip(panels, all_axes, strict=True)):
        values = np.where(panel.gate < 0, np.nan, share[panel.gate])
        dead = (panel.gate >= 0) & ~live[panel.gate]
        draw_cells(axes, values, dead, colours, "{:.2f}" if widths[i] > VALUE_WIDTH else "")
        separate(axes, [component.group or component.name for component in panel.components])
        label_components(axes, panel, rotated[i])
        axes.set_yticks(np.arange(len(panel.layers)) + 0.5, [str(layer) for layer in panel.layers])
        axes.set_ylabel("layer", size=FONT, labelpad=2)
    bar = add_colour_bar(figure, colours, SHARE_LABEL)
    bar.set_xticks(np.linspace(0, 1, 5), ["0 frozen", "0.25", "0.5", "0.75", "1 tuned"])
    return figure


def _departures(usage: GateTable, names: Sequence[str], departure: np.ndarray, title: str) -> Figure:
    """Draw a panel per stream: question types (K) down, gates across, layer after layer."""
    panels, live = panels_of(usage), np.asarray(usage["live"], dtype=bool)
    left = max(len(name) for name in names) * CHARACTER + 0.15
    gates = [panel.gate[panel.gate >= 0] for panel in panels]
    columns = [len(gate) for gate in gates]
    widths, row_starts = column_widths(columns, left), [row[0] for row in pack_rows(columns)]
    notes = [order_note(p, n * width) for p, n, width in zip(panels, columns, widths, strict=True)]
    footer = 0.35 + 0.12 * max(len(note) for note in notes)
    figure, all_axes = place_panels(
        columns, [len(names) * ROW] * len(panels), footer, left, title, not live.all()
    )
    limit = max(0.1, np.ceil(np.abs(departure[:, live]).max() * 10) / 10)
    colours = ScalarMappable(Normalize(-limit, limit), colormaps["PuOr_r"])
    for i, (panel, gate, axes) in enumerate(zip(panels, gates, all_axes, strict=True)):
        dead = np.broadcast_to(~live[gate], (len(names), len(gate)))
        has_room = widths[i] > VALUE_WIDTH and departure.size <= MOST_NUMBERS
        draw_cells(axes, departure[:, gate], dead, colours, "{:+.2f}" if has_room else "")
        layers = np.asarray(usage["layer"])[gate]
        separate(axes, layers)
        middles = [np.flatnonzero(layers == layer).mean() + 0.5 for layer in panel.layers]
        axes.set_xticks(middles, [str(layer) for layer in panel.layers])
        axes.set_xlabel("\n".join(["layer", *notes[i]]), size=FONT, labelpad=2)
        axes.set_yticks(np.arange(len(names)) + 0.5, names if i in row_starts else [""] * len(names))
        axes.set_title(panel.stream, size=FONT + 2, pad=5)
    bar = add_colour_bar(figure, colours, "share tuned minus that of all examples")
    bar.set_xticks([-limit, 0, limit], [f"-{limit:.1f}", "0", f"+{limit:.1f}"])
    return figure


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
    live = np.asarray(usage["live"], dtype=bool)
    dead = f" ({np.sum(~live)} dead)" if not live.all() else ""
    mean = f"{share[live].mean():.2f}" if live.any() else "undefined"
    return f"mean share tuned {mean} over {live.sum()} live gates{dead}"


def _save(figure: Figure, path: Path) -> None:
    image = io.BytesIO()
    figure.savefig(image, dpi=DPI)
    replace_file(path, image.getvalue())
