"""The table of results: every strategy's accuracies, gap, share tuned and time, averaged over seeds.

Below the table it checks the orderings one expects of adaptive fine-tuning and says of each, with the
measured number, whether it holds.
"""

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import markdown
from common.errors import RunError
from common.files import write_json
from report.run import Run

SCRATCH_MARGIN, STANDARD_MARGIN, GAP_MARGIN = 20.0, 1.5, 2.5  # points
# What is averaged over seeds besides the time: its heading, that in a terminal, and digits.
MEASURES = {
    "train_accuracy": ("running train accuracy (%)", "train %", 1),
    "val_accuracy": ("validation accuracy (%)", "val %", 1),
    "gap": ("gap (points)", "gap", 1),
    "best_val_accuracy": ("best validation accuracy (%)", "best val %", 1),
    "share_tuned": ("share tuned", "tuned", 2),
}
UNITS = (("s", 1, 600), ("min", 60, 3 * 3600), ("h", 3600, float("inf")))  # name, seconds, up to which time

Summary = dict[str, float | None]  # over the seeds: "mean", and "std" of the sample (None for one seed)


class Row(NamedTuple):
    """One strategy's runs; accuracies in %, gap in points, share tuned 0..1 (None without gates), seconds."""

    name: str
    seeds: list[int]
    adaptive: bool
    from_scratch: bool
    measures: dict[str, Summary | None]

    def mean(self, measure: str) -> float:
        return self.measures[measure]["mean"]


class Check(NamedTuple):
    claim: str
    measured: str
    holds: bool


def show_results(
    runs: Sequence[Run],
    order: Sequence[str],
    *,
    readme: Path | None = None,
    json: Path | None = None,
    markdown_only: bool = False,
) -> None:
    """Print the table of finished runs and its orderings; write it between the results markers of `readme`,
    and unrounded into `json`.

    RunError if a run is unfinished or damaged, or if runs cannot be compared; UserError for files that cannot
    be written. `order` names the strategies as the rows are to be ordered.
    """
    rows = make_rows(runs, order)
    checks = check_orderings(rows)
    setting = {key: runs[0].result[key] for key in ("dataset", "epochs")}
    caption = _caption(rows, **setting)
    block = results_block(rows, **setting)
    if readme:
        markdown.write_block(readme, "results", block)
    if json:
        lines = [{"name": row.name, "seeds": row.seeds, **row.measures} for row in rows]
        write_json(json, setting | {"rows": lines, "orderings": [check._asdict() for check in checks]})
    if markdown_only:
        print(block)
        return
    brief = [[cell.replace(" ± ", "±") for cell in line] for line in _cells(rows, brief=True)]
    print(markdown.aligned(brief), "", textwrap.fill(caption, 79), sep="\n")
    if checks:
        print("\nOrderings:")
    for check in checks:
        text = f"- {check.claim}: {check.measured}: {'holds' if check.holds else 'does not hold'}"
        print(textwrap.fill(text, 79, subsequent_indent="  "))


def results_block(rows: Sequence[Row], dataset: str, epochs: int) -> str:
    """The table of a data set and its caption, in markdown."""
    return f"{markdown.table(_cells(rows))}\n\n{_caption(rows, dataset, epochs)}"


def make_rows(runs: Sequence[Run], order: Sequence[str] = ()) -> list[Row]:
    """Average the runs of each strategy over its seeds.

    Rows from scratch come first, then strategies as in `order`, others last. RunError if a run has no result,
    if runs differ in data set or epochs, if a strategy has a seed twice, or if only some of its runs have a
    share tuned.
    """
    if unfinished := [str(run.folder) for run in runs if not run.finished]:
        raise RunError(f"no result.json in {', '.join(unfinished)}: finish these runs or leave them out.")
    for field, what in (("dataset", "data sets"), ("epochs", "numbers of epochs")):
        values = sorted({str(run.result[field]) for run in runs})
        if len(values) > 1:
            raise RunError(f"the runs have different {what} ({', '.join(values)}): compare like with like.")
    groups: dict[tuple[bool, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.result["from_scratch"], run.label), []).append(run)
    places = {name: place for place, name in enumerate(order)}

    def place(group: tuple[bool, str]) -> tuple[Any, ...]:
        strategy, *rest = group[1].split(" + ")  # after the copies of its own, the low-rank ones
        return not group[0], places.get(strategy, len(places)), strategy, len(group[1]), rest

    ordered = sorted(groups, key=place)
    return [_row(*group, groups[group]) for group in ordered]


def _row(from_scratch: bool, label: str, runs: Sequence[Run]) -> Row:
    name = f"{label} from scratch".removeprefix("standard ") if from_scratch else label
    seeds = sorted(run.result["seed"] for run in runs)
    if len(set(seeds)) < len(seeds):
        raise RunError(f"{name} has two runs with the same seed (seeds {seeds}): leave one of them out.")
    if len({run.adaptive for run in runs}) > 1:
        raise RunError(f"some runs of {name} have a share tuned and some have not: compare like with like.")
    results = [run.result | {"best_val_accuracy": run.result["best"]["val_accuracy"]} for run in runs]
    measures = {m: _summary([result[m] for result in results]) for m in (*MEASURES, "seconds")}
    return Row(name, seeds, runs[0].adaptive, from_scratch, measures)


def _summary(values: Sequence[float | None]) -> Summary | None:
    if None in values:
        return None
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def _cells(rows: Sequence[Row], brief: bool = False) -> list[list[str]]:
    """The heading, brief or not, and a line of cells for each row; times in a unit for the slowest one."""
    longest = max(row.mean("seconds") for row in rows)
    unit, length = next((unit, length) for unit, length, limit in UNITS if longest < limit)
    titles = [names[brief] for names in MEASURES.values()]
    cells = [["strategy", *titles, f"{'' if brief else 'training '}time ({unit})"]]
    for row in rows:
        texts = [_text(row.measures[measure], digits) for measure, (*_, digits) in MEASURES.items()]
        cells.append([row.name, *texts, _text(row.measures["seconds"], int(unit != "s"), 1 / length)])
    return cells


def _text(summary: Summary | None, digits: int, scale: float = 1.0) -> str:
    if summary is None:
        return "none"
    return " ± ".join(f"{value * scale:.{digits}f}" for value in summary.values() if value is not None)


def _caption(rows: Sequence[Row], dataset: str, epochs: int) -> str:
    counts = {row.name: len(row.seeds) for row in rows}
    most = max(counts.values())
    if min(counts.values()) == most:
        seeds = f"{most} seed{'s' * (most > 1)} per strategy"
    else:
        seeds = "seeds: " + ", ".join(f"{name} {count}" for name, count in counts.items())
    spread = "mean ± standard deviation over seeds" if most > 1 else "no standard deviation"
    return f"Data set {dataset}, {epochs} epoch{'s' * (epochs > 1)}, {seeds}; {spread}."


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
        difference = row.mean("val_accuracy") - standard.mean("val_accuracy")
        claim = f"{row.name} is at most {STANDARD_MARGIN:g} points below standard in validation"
        checks.append(Check(claim, f"{difference:+.2f}", difference >= -STANDARD_MARGIN))
    for row in adaptive if frozen else ():
        low, middle, high = (r.mean("gap") for r in (frozen, row, standard))
        claim = f"gap Frozen < {row.name} < standard, by at least {GAP_MARGIN:g} points below standard"
        measured = f"{low:.2f}, {middle:.2f}, {high:.2f}; {high - middle:.2f} below standard"
        checks.append(Check(claim, measured, low < middle and high - middle >= GAP_MARGIN))
    return checks
