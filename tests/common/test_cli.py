"""Flags as people write and read them: spellings, paths, and help that nobody reads to its end."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers.paths import SRC

from common.cli import STARTED_IN, Parser, user_path


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user stands who calls a command that works in another folder, tmp_path / "root"."""
    for folder in ("root", "stand"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "root")
    monkeypatch.setenv(STARTED_IN, str(tmp_path / "stand"))
    return tmp_path / "stand"


def test_paths_are_as_seen_from_where_the_user_stands(stand: Path) -> None:
    parser = Parser()
    parser.add_argument("--to", type=Path, default=Path("snap"))
    assert parser.parse_args(["--to", "new"]).to == stand / "new"
    assert parser.parse_args([]).to == Path("snap")  # a default is the command's own
    assert user_path("/absolute") == "/absolute"


def test_what_is_only_in_the_commands_folder_is_found_there(stand: Path) -> None:
    Path("README.md").touch()
    assert user_path("README.md") == "README.md"
    (stand / "README.md").touch()
    assert user_path("README.md") == str(stand / "README.md")


def test_a_name_is_a_path_only_where_there_is_one(stand: Path) -> None:
    assert user_path("someone/model", named=True) == "someone/model"
    (stand / "someone" / "model").mkdir(parents=True)
    assert user_path("someone/model", named=True) == str(stand / "someone" / "model")


def test_what_can_be_no_path_is_left_to_whoever_opens_it(stand: Path) -> None:
    assert user_path("a" * 5000) == "a" * 5000


def test_from_the_commands_own_folder_nothing_changes(stand: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stand)
    assert user_path("new/file") == "new/file"


def test_help_spells_each_flag_once_and_the_others_at_its_end() -> None:
    parser = Parser(prog="x")
    parser.add_argument(
        "--batch-size", "--batch_size", "--batchSize", type=int, metavar="N", help="Examples."
    )
    parser.add_argument("--tqdm-bars", "--tqdm_bars", action=argparse.BooleanOptionalAction, help="Bars.")
    text = parser.format_help()
    flags, _, others = text.partition("Other spellings:")
    assert "  --batch-size N " in flags and "  --[no-]tqdm-bars " in flags
    listed = flags.partition("options:")[2]
    assert "_" not in listed and "batchSize" not in listed
    assert " ".join(others.split()) == "_ for - in every flag, --batchSize is --batch-size."
    assert parser.parse_args(["--batchSize", "3"]).batch_size == 3


@pytest.mark.parametrize("flag", ["--help", "--wrong"])
def test_help_and_mistakes_bear_a_reader_who_has_gone(flag: str, tmp_path: Path) -> None:
    code = "from common.cli import Parser; Parser(description='x' * 200_000).parse_args()"
    (tmp_path / "command.py").write_text(code)
    line = f"'{sys.executable}' command.py {flag} 2>errors | true; exit ${{PIPESTATUS[0]}}"
    if flag == "--wrong":
        line = f"'{sys.executable}' command.py {flag} 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SRC)}, timeout=60
    )
    assert done.returncode == (0 if flag == "--help" else 2)
    errors = tmp_path / "errors"
    assert not errors.exists() or errors.read_text() == ""
