"""Blocks of a markdown file that commands write: what stands between two markers, and nothing else."""

from pathlib import Path

from common.errors import UserError
from common.files import read_text, replace_file

FULL = Path("run/BENCHMARKS.md")  # benchmarks in full, beside the README
COLUMNS = 79  # of a terminal
UNNAMED = "(none)"  # what tables call the type of questions that have none


def write_block(file: Path, topic: str, block: str) -> None:
    """Put `block` between <!-- topic:begin --> and <!-- topic:end --> of a file.

    UserError, with the file as it was, unless each marker is there once and in this order.
    """
    check_block(file, topic)
    begin, end = f"<!-- {topic}:begin -->", f"<!-- {topic}:end -->"
    before, _, rest = read_text(file).partition(begin)
    replace_file(file, f"{before}{begin}\n{block}\n{end}{rest.partition(end)[2]}")


def check_block(file: Path, topic: str) -> None:
    """UserError unless `write_block` will find its markers: for what takes long before it writes."""
    text, begin, end = read_text(file), f"<!-- {topic}:begin -->", f"<!-- {topic}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"{file} must have the markers {begin} and {end}, each once and in this order.")


def write_pages(readme: Path, topic: str, short: str, full: str) -> None:
    """Publish a benchmark: `short` in the block of `topic` of the README, `full` in run/BENCHMARKS.md's."""
    write_block(readme.parent / FULL, topic, full)
    write_block(readme, topic, short)


def check_pages(readme: Path, topic: str) -> None:
    """UserError unless `write_pages` will find its markers in both files."""
    for page in (readme, readme.parent / FULL):
        check_block(page, topic)


def table(rows: list[list[str]]) -> str:
    """Rows of cells, the first the heading, as a table with numbers to the right of the first column."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def aligned(rows: list[list[str]]) -> str:
    """The same rows for a terminal: columns aligned, numbers to the right of the first one."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def folded(rows: list[list[str]]) -> list[str]:
    """The same in as many blocks as a terminal needs: each has the first column and as many more as fit."""
    blocks, start = [], 1
    while start < len(rows[0]):
        stop = len(rows[0])
        while stop > start + 1 and _width(_columns(rows, start, stop)) > COLUMNS:
            stop -= 1
        blocks.append(aligned(_columns(rows, start, stop)))
        start = stop
    return blocks


def _columns(rows: list[list[str]], start: int, stop: int) -> list[list[str]]:
    return [[row[0], *row[start:stop]] for row in rows]


def _width(rows: list[list[str]]) -> int:
    return max(map(len, aligned(rows).splitlines()))
