"""Dozens of architectures of transformers: what the engine runs is exact, the rest it refuses."""

from __future__ import annotations

import re

import pytest
from tests.helpers.architectures import ARCHITECTURES, README, WORKS, verdict

ROWS = {
    cells[0]: cells[3:]
    for line in README.read_text(encoding="utf-8").splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0] in ARCHITECTURES
}
EVERY_KIND = ("bert", "gpt2", "llama", "t5", "mixtral", "vit", "clip")  # quick


def slow_if_many(name: str) -> object:
    return pytest.param(name, marks=[] if name in EVERY_KIND else [pytest.mark.slow])


@pytest.mark.parametrize("name", map(slow_if_many, ARCHITECTURES))
def test_full_copies_are_exact_or_refused_as_the_table_says(name: str) -> None:
    """A mixed batch is its rows, equal copies are the plain model, hidden states are whole."""
    assert verdict(name) == ROWS[name][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_low_rank_copies_are_too(name: str) -> None:
    assert verdict(name, tuned="lora", rank=2) == ROWS[name][1]


def test_the_table_has_every_architecture_and_most_work() -> None:
    assert list(ROWS) == list(ARCHITECTURES)
    assert sum(full == WORKS for full, _ in ROWS.values()) >= 30
    refused = [cell for row in ROWS.values() for cell in row if cell != WORKS]
    assert all(re.search(r"[a-z] [a-z]", cell) for cell in refused)  # sentences
