"""The benchmark's JSON as a markdown table of figures and ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = ("", "train examples/s", "eval examples/s", "peak GB", "against", "train", "eval", "memory")


def bench_markdown(report: Mapping[str, Any]) -> str:
    """The table, and below it what it was measured with."""
    rows = {row["name"]: row for row in report["rows"]}
    lines = [_line(HEADER), _line(["---"] + ["---:"] * 3 + ["---"] + ["---:"] * 3)]
    lines += [_line(_cells(row, rows.get(row["against"]))) for row in rows.values()]
    hardware, versions = report["hardware"], report["versions"]
    repeats, batch = report["arguments"]["repeats"], report["arguments"]["batch"]
    note = (
        f"{hardware['processor']}, {hardware['threads']} threads, torch {versions['torch']}, transformers "
        f"{versions['transformers']}; batch {batch}, median of {repeats} turns (minimum to maximum)."
    )
    return "\n".join([*lines, "", note])


def _cells(row: Mapping[str, Any], reference: Mapping[str, Any] | None) -> list[str]:
    figures = [_figure(row["train"], 1), _figure(row["evaluation"], 1), f"{row['peak'][1]:.2f}"]
    if reference is None:
        return [row["name"], *figures, "", "", "", ""]
    ratios = [f"{row[key][1] / reference[key][1]:.2f}x" for key in ("train", "evaluation", "peak")]
    return [row["name"], *figures, reference["name"], *ratios]


def _figure(spread: Sequence[float], digits: int) -> str:
    """Minimum, median and maximum as "median (minimum to maximum)"."""
    low, middle, high = (f"{value:.{digits}f}" for value in spread)
    return middle if low == high else f"{middle} ({low} to {high})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
