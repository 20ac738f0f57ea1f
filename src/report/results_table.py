"""The table of results: every row's accuracies, gaps, share tuned and time, averaged over seeds.

Rows are compared with a reference and with the best one, question by question and seed by seed: see
`report.statistics`. Below the table it checks the orderings one expects of adaptive fine-tuning and says of
each, with the measured number, whether it holds.
"""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common import markdown
from common.errors import RunError
from common.files import write_json
from common.words import counted
from report.run import TYPES, Run
from report.statistics import Interval, crossed_interval, paired_interval, seeds_interval

REFERENCE = "standard"  # the row that others are compared with, unless another one is named
SCRATCH_MARGIN, STANDARD_MARGIN, GAP_MARGIN = 20.0, 1.5, 2.5  # points
TIED = "†"


class Measure(NamedTuple):
    """A number of result.json that is averaged over seeds: its heading, that in a terminal, and digits."""

    heading: str
    brief: str
    digits: int
    optional: bool = False  # left out of a table in which no row has it


MEASURES = {
    "train_accuracy": Measure("running train accuracy (%)", "train %", 1),
    "val_accuracy": Measure("validation accuracy (%)", "val %", 1),
    "gap": Measure("gap (points)", "gap", 1),
    "own_gap": Measure("own gap (points)", "own gap", 1, optional=True),
    "best_val_accuracy": Measure("best validation accuracy (%)", "best val %", 1),
    "share_tuned": Measure("share tuned", "tuned", 2),
    "worth": Measure("worth of the choice per input (points)", "worth", 2, optional=True),
}
UNITS = (("s", 1, 600), ("min", 60, 3 * 3600), ("h", 3600, float("inf")))  # name, seconds, up to which time

Summary = dict[str, float | None]  # over the seeds: "mean", and "std" of the sample (None for one seed)


class Row(NamedTuple):
    """One row's runs; accuracies in %, gaps in points, share tuned 0..1 (None without gates), seconds.

    Differences are in validation accuracy of the last epoch, in points; None where nothing can be paired.
    """

    name: str
    seeds: list[int]
    epochs: int
    adaptive: bool
    from_scratch: bool
    measures: dict[str, Summary | None]
    by_type: Mapping[str, Mapping[str, Summary | None]]  # validation accuracy, by kind of type and name
    to_reference: Interval | None = None  # this row minus the reference
    to_best: Interval | None = None  # this row minus the one with the highest mean

    def mean(self, measure: str) -> float:
        return self.measures[measure]["mean"]


class Check(NamedTuple):
    claim: str
    measured: str
    holds: bool


class Table(NamedTuple):
    """The rows of one data set."""

    dataset: str
    reference: str | None  # the name of the row that others are compared with
    drawn: str  # over what intervals are: "seeds and images", or one of them
    rows: list[Row]

    @property
    def best(self) -> Row:
        """The row with the highest mean validation accuracy, the first of equals."""
        return max(self.rows, key=lambda row: row.mean("val_accuracy"))

    def tied(self, row: Row) -> bool:
        """Whether the row is the best one, or its interval does not tell it from the best."""
        if row is self.best:
            return any(other.to_best for other in self.rows)
        return bool(row.to_best and row.to_best.includes_zero)

    @property
    def least_detectable(self) -> float | None:
        """The least difference to the reference that such comparisons find: the median of the rows'."""
        found = [row.to_reference.least_detectable for row in self.rows if row.to_reference]
        return statistics.median(found) if found else None


def show_results(
    runs: Sequence[Run],
    order: Sequence[str],
    *,
    reference: str | None = None,
    readme: Path | None = None,
    json: Path | None = None,
    markdown_only: bool = False,
) -> None:
    """Print a table of finished runs for each data set, and its orderings.

    Write the tables between the results markers of `readme` too, and unrounded into `json`.

    RunError if a run is unfinished or damaged, or if runs cannot be compared; UserError for files that cannot
    be written. `order` names the strategies as the rows are to be ordered; `reference`, the row to compare
    with, is by default `standard`, where there is one.
    """
    tables = make_tables(runs, order, reference)
    block = "\n\n".join(map(results_block, tables))
    if readme:
        markdown.write_block(readme, "results", block)
    if json:
        write_json(json, {"tables": [plain(table) for table in tables]})
    print(block if markdown_only else "\n\n\n".join(map(terminal_text, tables)))


def make_tables(runs: Sequence[Run], order: Sequence[str] = (), reference: str | None = None) -> list[Table]:
    """A table for each data set, in the order of the runs.

    RunError as of `make_table`, if a run is unfinished, or if no data set has a row `reference`.
    """
    if unfinished := [str(run.folder) for run in runs if not run.finished]:
        raise RunError(f"no result.json in {', '.join(unfinished)}: finish these runs or leave them out.")
    names = dict.fromkeys(map(row_name, runs))
    if reference not in (None, *names):
        raise RunError(f"there is no row {reference!r} to compare with; there are {', '.join(names)}.")
    datasets: dict[str, list[Run]] = {}
    for run in runs:
        datasets.setdefault(run.result["dataset"], []).append(run)
    return [make_table(part, order, reference) for part in datasets.values()]


def make_table(runs: Sequence[Run], order: Sequence[str] = (), reference: str | None = None) -> Table:
    """Average the runs of each row over its seeds, and compare rows.

    runs: on one data set. Rows from scratch come first, then those named in `order`, others last. RunError if
    runs answered other questions, if those of a row differ in epochs, if one has a seed twice, or if only
    some of its runs have a share tuned, unless they refit what others found.
    """
    groups: dict[tuple[bool, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.result["from_scratch"], run.label), []).append(run)
    places = {name: place for place, name in enumerate(order)}

    def place(group: tuple[bool, str]) -> tuple[Any, ...]:
        strategy, *rest = group[1].split(" + ")  # after the copies of its own, the low-rank ones
        number = places.get(group[1], places.get(strategy, len(places)))
        return not group[0], number, strategy, len(group[1]), rest

    ordered = sorted(groups, key=place)
    rows = [_row(groups[group]) for group in ordered]
    reference = next((row.name for row in rows if row.name == (reference or REFERENCE)), None)
    answered = {row.name: _answered(groups[group]) for row, group in zip(rows, ordered, strict=True)}
    over = {"seeds": any(len(row.seeds) > 1 for row in rows), "images": all(run.has_scores for run in runs)}
    drawn = " and ".join(name for name, counts in over.items() if counts)
    table = Table(runs[0].result["dataset"], reference, drawn, rows)
    best = table.best.name

    def compared(row: Row) -> Row:
        to_reference, to_best = (
            difference(answered[row.name], answered[other]) if other not in (None, row.name) else None
            for other in (reference, best)
        )
        return row._replace(to_reference=to_reference, to_best=to_best)

    return table._replace(rows=list(map(compared, rows)))


def row_name(run: Run) -> str:
    """What the row of a finished run is called."""
    scratch = run.result["from_scratch"]
    return f"{run.label} from scratch".removeprefix("standard ") if scratch else run.label


def _row(runs: Sequence[Run]) -> Row:
    name, from_scratch = row_name(runs[0]), runs[0].result["from_scratch"]
    seeds = sorted(run.result["seed"] for run in runs)
    if len(set(seeds)) < len(seeds):
        raise RunError(f"{name} has two runs with the same seed (seeds {seeds}): leave one of them out.")
    if len(epochs := sorted({run.result["epochs"] for run in runs})) > 1:
        raise RunError(
            f"the runs of {name} have different numbers of epochs {epochs}: compare like with like."
        )
    if len({run.adaptive for run in runs}) > 1 and not all(run.refits for run in runs):
        raise RunError(f"some runs of {name} have a share tuned and some have not: compare like with like.")
    results = [run.result | {"best_val_accuracy": run.result["best"]["val_accuracy"]} for run in runs]
    measures = {m: _summary([result.get(m) for result in results]) for m in (*MEASURES, "seconds")}
    return Row(name, seeds, epochs[0], runs[0].adaptive, from_scratch, measures, _by_type(results))


def _by_type(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Summary | None]]:
    """Of the runs of a row; a type that not all of them have is left out."""
    table = {}
    for kind in TYPES:
        found = [result.get(f"val_by_{kind}") or {} for result in results]
        names = [name for name in found[0] if all(name in accuracies for accuracies in found)]
        table[kind.replace("_", " ")] = {name: _summary([part[name] for part in found]) for name in names}
    return table


def _summary(values: Sequence[float | None]) -> Summary | None:
    if None in values:
        return None
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


# ---------------------------------------------------------------------------------------- differences of rows


class Answered(NamedTuple):
    """What is known of the last epoch of one run's validation, for comparing it."""

    accuracy: float  # in per cent
    question_id: np.ndarray | None  # (N,), in order; None for a run of before there were scores
    image: np.ndarray | None  # (N,)
    score: np.ndarray | None  # (N,) in per cent


def _answered(runs: Sequence[Run]) -> dict[int, Answered]:
    """By seed."""
    answered = {}
    for run in runs:
        columns = (None, None, None)
        if run.has_scores:
            scores = run.scores()
            columns = (scores.question_id, scores.image, 100 * scores.score.astype(np.float64))
        answered[run.result["seed"]] = Answered(run.result["val_accuracy"], *columns)
    return answered


def difference(one: Mapping[int, Answered], other: Mapping[int, Answered]) -> Interval | None:
    """The first row's validation accuracy minus the second's, over the seeds that both have.

    Over seeds and images where there are scores, over images alone for a single seed, over seeds alone
    without scores, and None where that is a single one too. RunError if different questions were answered.
    """
    seeds = sorted(one.keys() & other.keys())
    pairs = [(one[seed], other[seed]) for seed in seeds]
    runs = [run for pair in pairs for run in pair]
    if not runs or any(run.score is None for run in runs):
        accuracies = np.array([first.accuracy - second.accuracy for first, second in pairs])
        return seeds_interval(accuracies) if len(seeds) > 1 else None
    if any(not np.array_equal(run.question_id, runs[0].question_id) for run in runs):
        raise RunError("some of the runs answered other validation questions: compare like with like.")
    differences = np.array([first.score - second.score for first, second in pairs])
    images = runs[0].image
    if len(np.unique(images)) < 2:
        return None
    return (
        crossed_interval(differences, images) if len(seeds) > 1 else paired_interval(differences[0], images)
    )


def interval_text(interval: Interval | None, digits: int = 1) -> str:
    """ "+1.3 [+0.2, +2.4]"."""
    if interval is None:
        return "none"
    mean, low, high = (f"{value:+.{digits}f}" for value in interval[:3])
    return f"{mean} [{low}, {high}]"


# ------------------------------------------------------------------------------------------------------ texts


def results_block(table: Table) -> str:
    """The table and its caption, in markdown."""
    return f"{markdown.table(cells_of(table))}\n\n{caption_of(table)}"


def cells_of(table: Table, brief: bool = False) -> list[list[str]]:
    """The heading, brief or not, and a line of cells for each row; times in a unit for the slowest one."""
    longest = max(row.mean("seconds") for row in table.rows)
    unit, length = next((unit, length) for unit, length, limit in UNITS if longest < limit)
    shown = {
        name: measure
        for name, measure in MEASURES.items()
        if not measure.optional or any(row.measures[name] for row in table.rows)
    }
    compares = any(row.to_reference for row in table.rows)
    lines = [["strategy"], *([row.name] for row in table.rows)]
    for name, measure in shown.items():
        cells = [_text(row.measures[name], measure.digits) for row in table.rows]
        if name == "val_accuracy":
            marks = (f" {TIED}" * table.tied(row) for row in table.rows)
            cells = list(map("".join, zip(cells, marks, strict=True)))
        _add(lines, measure.brief if brief else measure.heading, cells)
        if name == "val_accuracy" and compares:
            texts = [
                "" if row.name == table.reference else interval_text(row.to_reference) for row in table.rows
            ]
            _add(lines, f"{'to' if brief else 'difference to'} {table.reference}", texts)
    times = [_text(row.measures["seconds"], int(unit != "s"), 1 / length) for row in table.rows]
    _add(lines, f"{'' if brief else 'training '}time ({unit})", times)
    return lines


def type_cells(table: Table, kind: str) -> list[list[str]]:
    """The validation accuracies by one kind of type: a heading, a line for each type, and that of all last.

    Empty if no row has any.
    """
    names = list(dict.fromkeys(name for row in table.rows for name in row.by_type[kind]))
    if not names:
        return []
    digits = MEASURES["val_accuracy"].digits
    lines = [[kind, *(row.name for row in table.rows)]]
    lines += [[name, *(_text(row.by_type[kind].get(name), digits) for row in table.rows)] for name in names]
    return [*lines, ["all", *(_text(row.measures["val_accuracy"], digits) for row in table.rows)]]


def _add(lines: Sequence[list[str]], heading: str, cells: Sequence[str]) -> None:
    """One more column."""
    for line, cell in zip(lines, (heading, *cells), strict=True):
        line.append(cell)


def _text(summary: Summary | None, digits: int, scale: float = 1.0) -> str:
    if summary is None:
        return "none"
    return " ± ".join(f"{value * scale:.{digits}f}" for value in summary.values() if value is not None)


def caption_of(table: Table) -> str:
    """What the numbers are of, and how much they say."""
    seeds = _of_each({row.name: len(row.seeds) for row in table.rows}, "seed", " per strategy")
    epochs = _of_each({row.name: row.epochs for row in table.rows}, "epoch")
    most = max(len(row.seeds) for row in table.rows)
    spread = "mean ± standard deviation over seeds" if most > 1 else "no standard deviation"
    sentences = [f"Data set {table.dataset}, {epochs}, {seeds}; {spread}."]
    if least := table.least_detectable:
        sentences.append(
            f"Differences to {table.reference} are in validation accuracy, with 95 % intervals, paired over "
            f"{table.drawn}; such a comparison finds a difference of {least:.1f} points in 80 % of cases."
        )
    if any(map(table.tied, table.rows)):
        sentences.append(f"{TIED} best, or tied with the best: the interval of the difference includes 0.")
    return " ".join(sentences)


def _of_each(counts: Mapping[str, int], what: str, every: str = "") -> str:
    """ "3 seeds per strategy", or "seeds: standard 3, Frozen 2"."""
    if len(set(counts.values())) > 1:
        return f"{what}s: " + ", ".join(f"{name} {count}" for name, count in counts.items())
    (count,) = set(counts.values())
    return counted(count, what) + every


def terminal_text(table: Table) -> str:
    """The table, its caption and its orderings, in lines that fit a terminal."""
    brief = [[cell.replace(" ± ", "±") for cell in line] for line in cells_of(table, brief=True)]
    parts = []
    for kind in table.rows[0].by_type:
        if lines := [[cell.replace(" ± ", "±") for cell in line] for line in type_cells(table, kind)]:
            parts += [f"Validation accuracy by {kind} (%):", *markdown.folded(lines)]
    parts += [*markdown.folded(brief), textwrap.fill(caption_of(table), markdown.COLUMNS)]
    if checks := check_orderings(table.rows):
        texts = (f"- {c.claim}: {c.measured}: {'holds' if c.holds else 'does not hold'}" for c in checks)
        lines = (textwrap.fill(text, markdown.COLUMNS, subsequent_indent="  ") for text in texts)
        parts.append("\n".join(["Orderings:", *lines]))
    return "\n\n".join(parts)


def plain(table: Table) -> dict[str, Any]:
    """The table for JSON, unrounded."""
    rows = [
        {
            **{"name": row.name, "seeds": row.seeds, "epochs": row.epochs, **row.measures},
            "by_type": row.by_type,
            "to_reference": row.to_reference and row.to_reference._asdict(),
            "to_best": row.to_best and row.to_best._asdict(),
            "tied": table.tied(row),
        }
        for row in table.rows
    ]
    orderings = [check._asdict() for check in check_orderings(table.rows)]
    settings = {"dataset": table.dataset, "reference": table.reference}
    return settings | {"least_detectable": table.least_detectable, "rows": rows, "orderings": orderings}


def check_orderings(rows: Sequence[Row]) -> list[Check]:
    """Check those of the orderings whose strategies were run.

    From scratch is far below all others in validation; adaptive is not much worse than standard there; and
    its gap between training and validation lies between Frozen's and standard's.
    """
    by_name = {row.name: row for row in rows}
    scratch, frozen, standard = (by_name.get(name) for name in ("from scratch", "Frozen", "standard"))
    others = [row for row in rows if not row.from_scratch]
    adaptive = [row for row in others if row.adaptive] if standard else []
    checks = []
    if scratch and others:
        lowest = min(others, key=lambda row: row.mean("val_accuracy"))
        distance = lowest.mean("val_accuracy") - scratch.mean("val_accuracy")
        claim = f"from scratch is at least {SCRATCH_MARGIN:g} points below all others in validation"
        measured = f"{distance:.2f} below {lowest.name}, the next"
        checks.append(Check(claim, measured, distance >= SCRATCH_MARGIN))
    for row in adaptive:
        distance = row.mean("val_accuracy") - standard.mean("val_accuracy")
        claim = f"{row.name} is at most {STANDARD_MARGIN:g} points below standard in validation"
        checks.append(Check(claim, f"{distance:+.2f}", distance >= -STANDARD_MARGIN))
    for row in adaptive if frozen else ():
        low, middle, high = (r.mean("gap") for r in (frozen, row, standard))
        claim = f"gap Frozen < {row.name} < standard, by at least {GAP_MARGIN:g} points below standard"
        measured = f"{low:.2f}, {middle:.2f}, {high:.2f}; {high - middle:.2f} below standard"
        checks.append(Check(claim, measured, low < middle and high - middle >= GAP_MARGIN))
    return checks
