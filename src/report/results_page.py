"""The page of results: two pictures and, for each data set, a table.

The pictures show a row of a table as a point, with bars as long as its standard deviation over seeds: gap
against accuracy, and accuracy against training time. Shapes and names tell the points apart, so that they can
be read without colours.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text

from common import markdown
from common.files import replace_file
from common.words import counted, cut
from report.policy_plot import DPI, save_figure
from report.results_table import UNITS, Row, Table, results_block, row_name, type_cells
from report.run import Run

WIDTH, HEIGHT, FONT = 8.0, 4.2, 9  # of a panel in inches; points
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")  # Okabe & Ito
MARKERS, MARKER = "osD^vPX*", 8  # shapes; points
AXES = {
    "val_accuracy": "validation accuracy (%)",
    "gap": "running train minus validation accuracy (points)",
    "seconds": "training time ({unit})",
}
PICTURES = {  # by the end of the file's name: horizontal and vertical measure, and a text
    "gap": ("val_accuracy", "gap", "Gap against validation accuracy: the lower right is the best place."),
    "time": ("seconds", "val_accuracy", "Validation accuracy against training time: so is the upper left."),
}
REACHES = (5, 12, 22, 34, 48, 64)  # from a point to its name, in points
DIRECTIONS = 16
HALO = withStroke(linewidth=2.5, foreground="white")  # of names, where they have to cross a bar
NAME = 40  # letters of a name at most

Boxes = np.ndarray  # (n, 4): left, bottom, right, top, in pixels


def write_page(page: Path, tables: Sequence[Table], runs: Sequence[Run]) -> list[Path]:
    """Write the page in markdown and, beside it, its pictures; returns the files.

    runs: those that the tables were made of.
    """
    files = {name: page.with_name(f"{page.stem}_{name}.png") for name in PICTURES}
    text = ["# Results", f"This page is generated. {origin_of(runs)}"]
    for name, (x, y, caption) in PICTURES.items():
        save_figure(scatter_figure(tables, x, y), files[name])
        text.append(f"![{caption}]({files[name].name})\n\n*{caption}*")
    text.append("A point is a mean over seeds, a bar reaches a standard deviation to either side.")
    for table in tables:
        text += [f"## {table.dataset}", results_block(table)]
        of_table = [run for run in runs if run.result["dataset"] == table.dataset]
        text += [*found_layers(of_table), *by_group(of_table)]
        by_type = [type_cells(table, kind) for kind in table.rows[0].by_type]
        for cells in filter(None, by_type):
            escaped = [[cell.replace("|", r"\|") for cell in line] for line in cells]
            text.append(f"Validation accuracy by {cells[0][0]} (%):\n\n{markdown.table(escaped)}")
    replace_file(page, "\n\n".join(text) + "\n")
    return [page, *files.values()]


def found_layers(runs: Sequence[Run]) -> list[str]:
    """Which layers runs tuned because another run had found them: a table, or [] if none did."""
    found = Counter()
    for run in runs:
        arguments = run.arguments if (run.folder / "args.json").is_file() else {}
        if arguments.get("refit") or arguments.get("tune_from"):
            policy = "decided by the policy that was found"
            layers = arguments.get("tune") or (policy if "worth" in run.result else "none")
            found[row_name(run), layers.replace(",", ", ")] += 1
    if not found:
        return []
    lines = [["row", "layers that were found and tuned", "seeds"]]
    lines += [[row, layers, str(count)] for (row, layers), count in sorted(found.items())]
    return [markdown.table(lines)]


def by_group(runs: Sequence[Run]) -> list[str]:
    """Accuracy, worth and share tuned in each group of questions, means over seeds; [] if there are none.

    Accuracy is that of the last epoch, what gates did that of the best one.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        rows.setdefault(row_name(run), []).append(run.result)
    groups = sorted({group for run in runs for group in run.result.get("val_by_group") or ()})
    if not groups:
        return []
    measures = {"accuracy (%)": 1, "worth (points)": 2, "share tuned": 2}  # and digits
    lines = [["row", *(f"{group}: {measure}" for group in groups for measure in measures)]]
    for row, results in rows.items():
        cells = []
        for group in groups:
            gated = [result.get("worth_by_group", {}).get(group, {}) for result in results]
            accuracies = [(result.get("val_by_group") or {}).get(group) for result in results]
            columns = (accuracies, *([part.get(key) for part in gated] for key in ("worth", "share_tuned")))
            for values, digits in zip(columns, measures.values(), strict=True):
                cells.append("none" if None in values else f"{fmean(values):.{digits}f}")
        lines.append([row, *cells])
    return [markdown.table(lines)]


def origin_of(runs: Sequence[Run]) -> str:
    """Of which commits the runs are and where they ran, in a sentence, as far as they say so."""
    facts: dict[str, set[str]] = {"commit": set(), "on": set(), "with torch": set()}
    for run in runs:
        if (run.folder / "env.json").is_file():
            environment = run.environment
            changed = " and uncommitted changes" if environment.get("dirty") else ""
            facts["commit"].add(f"{(environment.get('commit') or 'unknown')[:10]}{changed}")
            hardware = environment.get("processor") or environment.get("device")  # older runs have no name
            facts["on"].add(f"{hardware} ({environment.get('platform')})")
            facts["with torch"].add(str(environment.get("packages", {}).get("torch")))
    known = [f"{what} {', '.join(sorted(values))}" for what, values in facts.items() if values]
    return f"{counted(len(runs), 'run')}{': ' * bool(known)}{'; '.join(known)}."


def scatter_figure(tables: Sequence[Table], x: str, y: str) -> Figure:
    """A panel for each data set, in which each row is a named point; x, y: measures of AXES.

    Rows from scratch would press all others together: the title of a panel says where they are instead.
    """
    names = list(dict.fromkeys(row.name for table in tables for row in table.rows))
    figure = Figure((WIDTH, HEIGHT * len(tables)), DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(tables), squeeze=False)[:, 0]
    notes = [_draw(axes, table, (x, y), names) for axes, table in zip(panels, tables, strict=True)]
    figure.draw_without_rendering()  # from here on, it is settled where the panels are
    for axes, names_of_points in zip(panels, notes, strict=True):
        if names_of_points:
            _place(axes, names_of_points)
    return figure


def _draw(axes: Axes, table: Table, measures: tuple[str, str], names: Sequence[str]) -> list[Annotation]:
    """Draw a panel; returns the names of its points, each still on its point. `names` number the shapes."""
    longest = max(row.mean("seconds") for row in table.rows)
    unit, second = next((unit, length) for unit, length, limit in UNITS if longest < limit)
    notes, elsewhere = [], []
    for row in table.rows:
        (x, x_spread), (y, y_spread) = (_summary(row, measure, second) for measure in measures)
        if row.from_scratch and len(table.rows) > 1:
            elsewhere.append(f"{row.name} ({x:.1f}, {y:.1f})")
            continue
        number = names.index(row.name)
        point = {"marker": MARKERS[number % len(MARKERS)], "markersize": MARKER, "color": "black"}
        point |= {"markerfacecolor": COLOURS[number % len(COLOURS)], "markeredgewidth": 0.8}
        bars = {"ecolor": "0.55", "elinewidth": 1, "capsize": 2.5}
        axes.errorbar(x, y, y_spread, x_spread, **point, **bars)
        line = {"arrowstyle": "-", "color": "0.45", "linewidth": 0.7, "shrinkA": 0, "shrinkB": MARKER / 2}
        style = {"size": FONT, "ha": "center", "va": "center", "parse_math": False, "arrowprops": line}
        notes.append(axes.annotate(cut(row.name, NAME), (x, y), (0, 0), textcoords="offset points", **style))
        notes[-1].set_path_effects([HALO])
        notes[-1].set_in_layout(False)
    axes.set_title(cut(table.dataset, NAME), size=FONT + 2, weight="bold", loc="left", parse_math=False)
    if elsewhere:
        axes.set_title(
            cut(f"off the picture: {', '.join(elsewhere)}", 2 * NAME),
            size=FONT,
            loc="right",
            parse_math=False,
        )
    x_label, y_label = (AXES[measure].format(unit=unit) for measure in measures)
    axes.set_xlabel(x_label, size=FONT)
    axes.set_ylabel(y_label, size=FONT)
    axes.tick_params(labelsize=FONT - 1)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.18)
    return notes


def _summary(row: Row, measure: str, second: float) -> tuple[float, float]:
    """Mean and standard deviation, 0 for a single seed; times in a unit of so many seconds."""
    mean, spread = row.measures[measure]["mean"], row.measures[measure]["std"] or 0.0
    scale = 1 / second if measure == "seconds" else 1
    return mean * scale, spread * scale


def _place(axes: Axes, notes: Sequence[Annotation]) -> None:
    """Move names off their points to where they cover nothing, or as little as can be."""
    figure = axes.get_figure()
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72  # pixels a point
    boxes = [Text.get_window_extent(note, renderer) for note in notes]
    sizes = np.array([(box.width, box.height) for box in boxes]) + 3 * pixel
    points = axes.transData.transform([note.xy for note in notes])
    reach = 0.7 * MARKER * pixel
    markers = np.hstack([points - reach, points + reach])
    bars = np.array([bar.get_window_extent(renderer).extents for bar in axes.collections])
    bars += np.array([-1, -1, 1, 1]) * 2 * pixel
    middles = choose_places(points, sizes, np.vstack([markers, bars]), np.array(axes.bbox.extents), pixel)
    for note, offset in zip(notes, (middles - points) / pixel, strict=True):
        note.set_position(offset)


def choose_places(
    points: np.ndarray, sizes: np.ndarray, obstacles: Boxes, inside: np.ndarray, pixel: float
) -> np.ndarray:
    """The middles (n, 2) of boxes of `sizes` (n, 2) near `points` (n, 2), all in pixels.

    Boxes keep off each other, and off `obstacles` (m, 4), and stay `inside` (4,). Of the places around each
    point, at several distances, that with the smallest cost is taken, in turns until nothing moves. pixel:
    how many there are to a point of type.
    """
    angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    ways = np.stack([np.cos(angles), np.sin(angles)], 1)
    ways /= np.abs(ways).max(1, keepdims=True)  # on a square: a box on a diagonal is clear of both error bars
    ways = np.tile(ways, (len(REACHES), 1))  # (candidates, 2)
    reaches = np.repeat(REACHES, DIRECTIONS)
    half = sizes[:, None] / 2
    candidates = points[:, None] + ways * (half + reaches[:, None] * pixel)  # (n, candidates, 2)
    choices = np.concatenate([candidates - half, candidates + half], -1)  # (n, candidates, 4)
    areas = sizes.prod(1)
    within = np.stack([overlap(of_one, inside[None])[:, 0] for of_one in choices])
    fixed = 3 * (areas[:, None] - within)
    fixed += 3 * np.stack([overlap(of_one, obstacles).sum(1) for of_one in choices])
    fixed += 0.01 * areas.mean() * reaches  # rather a near place than a far one
    chosen = np.zeros(len(points), int)
    for _ in range(10):
        before = chosen.copy()
        for number in range(len(points)):
            others = np.delete(choices[np.arange(len(points)), chosen], number, axis=0)
            cost = fixed[number] + 3 * overlap(choices[number], others).sum(1)
            chosen[number] = cost.argmin()
        if (chosen == before).all():
            break
    return candidates[np.arange(len(points)), chosen]


def overlap(boxes: Boxes, others: Boxes) -> np.ndarray:
    """The area (n, m) that each of n boxes has in common with each of m others."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(0).prod(-1)
