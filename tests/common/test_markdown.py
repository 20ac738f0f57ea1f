"""Blocks that commands write into documents, and tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from common.markdown import aligned, check_block, table, write_block

BEGIN, END = "<!-- topic:begin -->", "<!-- topic:end -->"
ROWS = [["name", "value"], ["a", "10.5"], ["longer", "9"]]


def test_only_what_is_between_the_markers_changes(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"before {BEGIN}old{END} after", encoding="utf-8")
    check_block(file, "topic")
    for _ in range(2):
        write_block(file, "topic", r"\1 | $x ±")  # no pattern, and not only ASCII
        assert file.read_text(encoding="utf-8") == f"before {BEGIN}\n\\1 | $x ±\n{END} after"


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"])
def test_a_file_without_each_marker_once_and_in_order_is_refused_and_untouched(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "page.md"
    file.write_text(text)
    with pytest.raises(UserError, match=str(file)):
        check_block(file, "topic")
    with pytest.raises(UserError, match=BEGIN):
        write_block(file, "topic", "block")
    assert file.read_text() == text


def test_a_table_has_its_numbers_to_the_right() -> None:
    assert table(ROWS) == "| name | value |\n| --- | ---: |\n| a | 10.5 |\n| longer | 9 |"
    assert aligned(ROWS) == "name    value\na        10.5\nlonger      9"
