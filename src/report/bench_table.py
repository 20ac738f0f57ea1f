"""The benchmark's JSON as a markdown table of figures and ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = ("", "train examples/s", "eval examples/s", "peak GB", "against", "train", "eval", "memory")


def bench_markdown(report: Mapping[str, Any]) -> str:
    """The table, and below it what it was measured with."""
    rows = {row["name"]: row for row in report["rows"]}
    lines = [_line(HEADER), _line(["---"] + ["---:"] * 3 + ["---"] + ["---:"] * 3)]
    for row in rows.values():
        figures = [row["name"], _figure(row["train"]), _figure(row["evaluation"]), f"{row['peak'][1]:.2f}"]
        references = [rows[name] for name in row["against"] if name in rows]
        for reference in references or [None]:
            ratios = _ratios(row, reference) if reference else [""] * 4
            lines.append(_line([*figures, *ratios]))
            figures = [""] * 4  # once is enough
    hardware, versions, arguments = report["hardware"], report["versions"], report["arguments"]
    note = (
        f"{hardware['processor']}, {hardware['threads']} threads, torch {versions['torch']}, transformers "
        f"{versions['transformers']}; batch {arguments['batch']}, {arguments['repeats']} turns, median "
        "(minimum to maximum)."
    )
    return "\n".join([*lines, "", note])


def _ratios(row: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    ratios = [row[figure][1] / reference[figure][1] for figure in ("train", "evaluation", "peak")]
    return [reference["name"], *(f"{ratio:.2f}x" for ratio in ratios)]


def _figure(spread: Sequence[float]) -> str:
    """Minimum, median and maximum as "median (minimum to maximum)"."""
    low, middle, high = (f"{value:.1f}" for value in spread)
    return middle if low == high else f"{middle} ({low} to {high})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
