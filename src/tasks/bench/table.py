"""The benchmark's JSON as a markdown table of figures and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

HEADER = (
    *("", "train examples/s", "eval examples/s", "memory GB", "process GB"),
    *("against", "train", "eval", "memory", "process"),
)
FIGURES = {"train": 1, "evaluation": 1, "tensors": 2, "process": 2}  # in the report, and digits in the table


def bench_markdown(report: Mapping[str, Any]) -> str:
    """The table, and below it what it was measured with.

    A row of the report holds a list for each figure, one value a turn. A ratio is taken turn by turn, so that
    what slowed the machine down for a while slowed down both of its sides.
    """
    rows = {row["name"]: row for row in report["rows"]}
    lines = [_line(HEADER), _line(["---"] + ["---:"] * len(FIGURES) + ["---"] + ["---:"] * len(FIGURES))]
    for row in rows.values():
        figures = [row["name"], *(_spread(row[figure], digits) for figure, digits in FIGURES.items())]
        references = [rows[name] for name in row["against"] if name in rows]
        for reference in references or [None]:
            ratios = _ratios(row, reference) if reference else [""] * (1 + len(FIGURES))
            lines.append(_line([*figures, *ratios]))
            figures = [""] * (1 + len(FIGURES))  # once is enough
    hardware, versions, arguments = report["hardware"], report["versions"], report["arguments"]
    note = (
        f"{hardware['processor']}, {hardware['threads']} threads, torch {versions['torch']}, transformers "
        f"{versions['transformers']}; batch {arguments['batch']}, turns: {arguments['repeats']}, median "
        "(minimum to maximum)."
    )
    return "\n".join([*lines, "", note])


def _ratios(row: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    pairs = [zip(row[figure], reference[figure], strict=True) for figure in FIGURES]
    return [
        reference["name"],
        *(_spread([ours / theirs for ours, theirs in turns], 2, "x") for turns in pairs),
    ]


def _spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """The values of all turns as "median (minimum to maximum)"."""
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low} to {high})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
