"""The table of results: every strategy's accuracies, gap, share tuned and time, averaged over seeds.

    python src/report/results_table.py snap/vqa/compare-* [--readme README.md] [--json FILE] [--markdown-only]

Reads each run folder's result.json. Below the table it checks the orderings one expects of adaptive
fine-tuning and says of each, with the measured number, whether it holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # as a script it is not in a package: make it one
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.errors import RunError

ORDER = ("from scratch", "Frozen", "standard", "SpotTune_Block", "SpotTune")
SCRATCH_MARGIN, STANDARD_MARGIN, GAP_MARGIN = 20.0, 1.5, 2.5  # points

Result = dict[str, Any]


class Summary(NamedTuple):
    """One measure over the seeds of a strategy: mean and sample standard deviation (None for one seed)."""

    mean: float
    std: float | None


class Row(NamedTuple):
    """One strategy's runs; accuracies in %, gap in points, share tuned 0..1 (None without a policy)."""

    name: str
    seeds: list[int]
    train_accuracy: Summary
    val_accuracy: Summary
    gap: Summary
    best_val_accuracy: Summary
    share_tuned: Summary | None
    seconds: Summary


class Check(NamedTuple):
    claim: str
    measured: str
    holds: bool


# ---- from run folders to rows ----


def read_results(runs: Sequence[Path]) -> list[Result]:
    """Read result.json of every run folder; raises RunError naming the runs that have none."""
    unfinished = [str(run) for run in runs if not (run / "result.json").is_file()]
    if unfinished:
        raise RunError(f"no result.json in {', '.join(unfinished)}: finish these runs or leave them out.")
    return [_read_result(run / "result.json") for run in runs]


def _read_result(path: Path) -> Result:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        keys = ("dataset", "strategy", "from_scratch", "seed", "epochs", "share_tuned")
        return {key: result[key] for key in keys} | {
            "train_accuracy": float(result["train_accuracy"]),
            "val_accuracy": float(result["val_accuracy"]),
            "gap": float(result["gap"]),
            "best_val_accuracy": float(result["best"]["val_accuracy"]),
            "seconds": float(result["seconds"]),
        }
    except KeyError as error:
        raise RunError(f"{path} lacks {error}: run the fine-tuning again.") from error
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} cannot be read ({error}): run the fine-tuning again.") from error


def summarise(results: Sequence[Result]) -> list[Row]:
    """Average the runs of each strategy over its seeds, rows in the table's order.

    Raises RunError if the runs differ in data set or epochs, if a strategy has a seed twice, or if only
    some of its runs have a share tuned.
    """
    for key, name in (("dataset", "data sets"), ("epochs", "numbers of epochs")):
        values = sorted({str(result[key]) for result in results})
        if len(values) > 1:
            raise RunError(f"the runs have different {name} ({', '.join(values)}): compare like with like.")
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(_row_name(result), []).append(result)
    names = sorted(groups, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return [_row(name, groups[name]) for name in names]


def _row_name(result: Result) -> str:
    if not result["from_scratch"]:
        return result["strategy"]
    return "from scratch" if result["strategy"] == "standard" else f"{result['strategy']} from scratch"


def _row(name: str, results: Sequence[Result]) -> Row:
    seeds = sorted(result["seed"] for result in results)
    if len(set(seeds)) < len(seeds):
        raise RunError(f"{name} has two runs with the same seed (seeds {seeds}): leave one of them out.")
    shares = [result["share_tuned"] for result in results]
    if None in shares and any(share is not None for share in shares):
        raise RunError(f"some runs of {name} have a share tuned and some have not: compare like with like.")
    measures = {
        key: _summary([result[key] for result in results])
        for key in ("train_accuracy", "val_accuracy", "gap", "best_val_accuracy", "seconds")
    }
    return Row(name, seeds, share_tuned=None if None in shares else _summary(shares), **measures)


def _summary(values: Sequence[float]) -> Summary:
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


# ---- the table ----


def markdown(rows: Sequence[Row], dataset: str, epochs: int) -> str:
    """Return the table in markdown and, below it, a caption with data set, epochs and seeds."""
    unit, seconds = _time_unit(rows)
    head = ["strategy", "running train accuracy (%)", "validation accuracy (%)", "gap (points)"]
    head += ["best validation accuracy (%)", "share tuned", f"training time ({unit})"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        accuracies = (row.train_accuracy, row.val_accuracy, row.gap, row.best_val_accuracy)
        share = _text(row.share_tuned, 2) if row.share_tuned else "none"
        time = _text(row.seconds, 0 if unit == "s" else 1, 1 / seconds)
        lines.append([row.name, *(_text(summary, 1) for summary in accuracies), share, time])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{_caption(rows, dataset, epochs)}"


def _text(summary: Summary, digits: int, scale: float = 1.0) -> str:
    spread = "" if summary.std is None else f" ± {summary.std * scale:.{digits}f}"
    return f"{summary.mean * scale:.{digits}f}{spread}"


def _time_unit(rows: Sequence[Row]) -> tuple[str, int]:
    """Choose a unit for the slowest strategy; return it and its length in seconds."""
    longest = max(row.seconds.mean for row in rows)
    if longest < 600:
        return "s", 1
    return ("min", 60) if longest < 3 * 3600 else ("h", 3600)


def _caption(rows: Sequence[Row], dataset: str, epochs: int) -> str:
    counts = {len(row.seeds) for row in rows}
    if len(counts) == 1:
        (count,) = counts
        seeds = f"{count} seed{'s' * (count > 1)} a strategy"
    else:
        seeds = "seeds: " + ", ".join(f"{row.name} {len(row.seeds)}" for row in rows)
    spread = "mean ± standard deviation over seeds" if max(counts) > 1 else "no standard deviation"
    return f"Data set {dataset}, {epochs} epoch{'s' * (epochs > 1)}, {seeds}; {spread}."


def replace_block(text: str, block: str, name: str, topic: str = "results") -> str:
    """Return `text` with `block` between the two markers of `topic`, which stay; nothing else changes.

    Raises RunError, with the file's `name`, unless each marker is there once and in order.
    """
    begin, end = (f"<!-- {topic}:{edge} -->" for edge in ("begin", "end"))
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise RunError(f"{name} must have the markers {begin} and {end}, each once and in this order.")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{block}\n{end}{rest.partition(end)[2]}"


# ---- the orderings ----


def check_orderings(rows: Sequence[Row]) -> list[Check]:
    """Check the orderings for which the strategies needed are there.

    From scratch is far below all others in validation; adaptive is about as good as standard there; and its
    gap between training and validation lies between Frozen's and standard's. Adaptive: with a share tuned.
    """
    by_name = {row.name: row for row in rows}
    scratch, frozen, standard = (by_name.get(name) for name in ("from scratch", "Frozen", "standard"))
    others = [row for row in rows if not row.name.endswith("from scratch")]
    adaptive = [row for row in others if row.share_tuned and row not in (frozen, standard)]
    checks = []
    if scratch and others:
        checks.append(_check_scratch(scratch, others))
    if standard:
        checks += [_check_validation(row, standard) for row in adaptive]
    if frozen and standard:
        checks += [_check_gap(frozen, row, standard) for row in adaptive]
    return checks


def _check_scratch(scratch: Row, others: Sequence[Row]) -> Check:
    lowest = min(others, key=lambda row: row.val_accuracy.mean)
    distance = lowest.val_accuracy.mean - scratch.val_accuracy.mean
    claim = f"from scratch is at least {SCRATCH_MARGIN:g} points below all others in validation"
    return Check(claim, f"{distance:.2f} below {lowest.name}, the next", distance >= SCRATCH_MARGIN)


def _check_validation(row: Row, standard: Row) -> Check:
    difference = row.val_accuracy.mean - standard.val_accuracy.mean
    claim = f"{row.name} is within {STANDARD_MARGIN:g} points of standard in validation"
    return Check(claim, f"{difference:+.2f}", abs(difference) <= STANDARD_MARGIN)


def _check_gap(frozen: Row, row: Row, standard: Row) -> Check:
    low, middle, high = frozen.gap.mean, row.gap.mean, standard.gap.mean
    claim = f"gap Frozen < {row.name} < standard, by at least {GAP_MARGIN:g} points below standard"
    measured = f"{low:.2f}, {middle:.2f}, {high:.2f}; {high - middle:.2f} below standard"
    return Check(claim, measured, low < middle and high - middle >= GAP_MARGIN)


# ---- the script ----


def _as_json(rows: Sequence[Row], checks: Sequence[Check], dataset: str, epochs: int) -> str:
    table = []
    for row in rows:
        fields = row._asdict().items()
        table.append({k: v._asdict() if isinstance(v, Summary) else v for k, v in fields})
    orderings = [check._asdict() for check in checks]
    content = {"dataset": dataset, "epochs": epochs, "rows": table, "orderings": orderings}
    return json.dumps(content, indent=2) + "\n"


def _report(options: argparse.Namespace) -> None:
    results = read_results(options.runs)
    rows = summarise(results)
    dataset, epochs = results[0]["dataset"], results[0]["epochs"]
    table, checks = markdown(rows, dataset, epochs), check_orderings(rows)
    if options.readme:
        text = options.readme.read_text(encoding="utf-8")
        options.readme.write_text(replace_block(text, table, str(options.readme)), encoding="utf-8")
    if options.json:
        options.json.write_text(_as_json(rows, checks, dataset, epochs), encoding="utf-8")
    print(table)
    if checks and not options.markdown_only:
        print("\nOrderings:")
        for check in checks:
            print(f"- {check.claim}: {check.measured}: {'holds' if check.holds else 'does not hold'}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print a markdown table of finished runs, a row a strategy.")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, such as snap/vqa/compare-*")
    parser.add_argument(
        "--readme", type=Path, help="also put the table between the results markers of this file"
    )
    parser.add_argument("--json", type=Path, help="also write the rows and the orderings to this file")
    parser.add_argument("--markdown-only", action="store_true", help="print the table without the orderings")
    options = parser.parse_args(arguments)
    try:
        _report(options)
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
