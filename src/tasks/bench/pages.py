"""Where benchmarks are published: the README in short, run/BENCHMARKS.md beside it in full."""

from __future__ import annotations

from pathlib import Path

from common.markdown import check_block, write_block

FULL = Path("run/BENCHMARKS.md")


def check_pages(readme: Path, topic: str) -> None:
    """UserError unless both files have the markers of `topic`."""
    for page in (readme, readme.parent / FULL):
        check_block(page, topic)


def write_pages(readme: Path, topic: str, short: str, full: str) -> None:
    """Put `short` between the markers of `topic` in the README, `full` between those of run/BENCHMARKS.md."""
    write_block(readme.parent / FULL, topic, full)
    write_block(readme, topic, short)
