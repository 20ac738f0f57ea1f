"""Parts of Markdown pages: sections, and the examples in fences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """A fenced example."""

    language: str
    name: str  # of its file; may be empty
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", text, flags=re.M | re.S)]


def sections(page: Path) -> dict[str, str]:
    """The parts of a page by heading."""
    _, *parts = re.split(r"^#{2,3} (.*)\n", page.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))
