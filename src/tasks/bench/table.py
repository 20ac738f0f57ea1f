"""What the benchmark measured, as tables: in full, as the README shows it, and for a terminal.

`measured` is the benchmark's JSON: its rows hold a list for each figure, with one value per repeat. A ratio
is taken repeat by repeat, so that what slowed the machine down for a while slowed down both of its variants.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from common.markdown import table

HEADER = [
    *("", "train examples/s", "eval examples/s", "memory GB", "process GB", "train operations"),
    *("eval operations", "against", "train", "eval", "memory", "process", "train operations"),
    "eval operations",
]
FIGURES = {  # in the JSON, and digits in the tables
    **{"train": 1, "evaluation": 1, "tensors": 2, "process": 2},
    **{"train_operations": 0, "evaluation_operations": 0},
}

# The rows that the README shows: references, then ours.
HIGHLIGHTS = (
    "Hugging Face standard",
    "standard, fp32",
    "dense SpotTune_Block",
    "SpotTune_Block, lxmert policy, fp32",
    "SpotTune, lxmert policy, fp32",
    "SpotTune_Block, light policy every 4th step, fp32",
    "SpotTune_Block + LoRA, embeddings frozen, fp32",
    "SpotTune + LoRA, embeddings frozen, fp32",
)

Row = Mapping[str, Any]


def all_tables(tables: Sequence[Mapping[str, Any]]) -> str:
    """A table per batch size, under headings if there are several."""
    if len(tables) == 1:
        return all_rows(tables[0])
    return "\n\n".join(f"**Batch {table['arguments']['batch']}**\n\n{all_rows(table)}" for table in tables)


def all_rows(measured: Mapping[str, Any]) -> str:
    """Every row with its spread and its ratios to each reference, and what it was measured with."""
    rows = _by_name(measured)
    lines = [HEADER]
    for row in rows.values():
        figures = [row["name"], *(_spread(row[figure], digits) for figure, digits in FIGURES.items())]
        for name in [name for name in row["against"] if name in rows] or [""]:
            ratios = [_spread(_ratios(row, rows[name], f), 2, "x") if name else "" for f in FIGURES]
            lines.append([*figures, name, *ratios])
            figures = [""] * len(figures)  # once is enough
    return f"{table(lines)}\n\n{_setting(measured)}, median (minimum to maximum)."


def highlights(measured: Mapping[str, Any]) -> str:
    """The medians of HIGHLIGHTS in markdown, and what they were measured with."""
    lines = {
        name: [name, *figures, f"{speed} {other}".strip()]
        for name, *figures, speed, other in medians(measured)
    }
    head = ["", "train examples/s", "eval examples/s", "memory GB", "training speed"]
    more = "all rows, with their spread, in [run/BENCHMARKS.md](run/BENCHMARKS.md)"
    return f"{table([head, *map(lines.get, HIGHLIGHTS)])}\n\n{_setting(measured)}, medians; {more}."


def medians(measured: Mapping[str, Any]) -> list[list[str]]:
    """A heading, and for each row its name, its medians, and its training speed against which reference."""
    rows = _by_name(measured)
    lines = [["", "train/s", "eval/s", "GB", "speed", "against"]]
    for row in rows.values():
        figures = [f"{statistics.median(row[figure]):.{FIGURES[figure]}f}" for figure in list(FIGURES)[:3]]
        reference = reference_of(row, rows)
        speed = [f"{speed_ratio(row, reference, 'train'):.2f}x", reference["name"]] if reference else ["", ""]
        lines.append([row["name"], *figures, *speed])
    return lines


def reference_of(row: Row, rows: Mapping[str, Row]) -> Row | None:
    """The first of the rows that this one is compared with."""
    return next((rows[name] for name in row["against"] if name in rows), None)


def speed_ratio(row: Row, reference: Row, figure: str) -> float:
    """How many times as much of a figure a row has as its reference, the median over repeats."""
    return statistics.median(_ratios(row, reference, figure))


def _ratios(row: Row, reference: Row, figure: str) -> list[float | None]:
    """The same of every repeat, None where one of the two is not known."""
    pairs = zip(row[figure], reference[figure], strict=True)
    return [ours / theirs if ours and theirs else None for ours, theirs in pairs]


def _by_name(measured: Mapping[str, Any]) -> dict[str, Row]:
    return {row["name"]: row for row in measured["rows"]}


def _setting(measured: Mapping[str, Any]) -> str:
    hardware, versions, arguments = measured["hardware"], measured["versions"], measured["arguments"]
    return (
        f"{hardware['processor']}, {hardware['threads']} threads, torch {versions['torch']}, transformers "
        f"{versions['transformers']}; batch {arguments['batch']}, repeats: {arguments['repeats']}"
    )


def _spread(values: Sequence[float | None], digits: int, unit: str = "") -> str:
    """The values of all repeats as "median (minimum to maximum)"; nothing if they are not known."""
    if None in values:
        return ""
    low, middle, high = (f"{f(values):,.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low} to {high})"
