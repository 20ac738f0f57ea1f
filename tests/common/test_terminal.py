from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from tests.helpers.paths import SRC

from common.cli import run_command
from common.errors import UserError
from common.terminal import printable

ESCAPE = "\x1b[31m\x1b]0;owned\x07"
SHOWN = r"\x1b[31m\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"yes{ESCAPE}", f"yes{SHOWN}"),
        ("over\rwritten\b", r"over\rwritten\x08"),
        ("C1: \x9b31m", r"C1: \x9b31m"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("isolated \u2066x\u2069, \u200fmark", r"isolated \u2066x\u2069, \u200fmark"),
        ("two\u2028lines\x85", r"two\u2028lines\x85"),
        ("half \ud83d of a face", r"half \ud83d of a face"),
        ("größer\n\tänd 數 👩\u200d🔬 می\u200c\xa0!", "größer\n\tänd 數 👩\u200d🔬 می\u200c\xa0!"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_no_control_code_passes_but_newline_and_tab() -> None:
    codes = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cc"]
    assert len(codes) == 65
    assert [code for code in codes if printable(code) == code] == ["\t", "\n"]


@pytest.mark.parametrize("failure", ["", "no question like "])
def test_a_command_prints_nothing_that_a_terminal_obeys(
    failure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        print(f"question: {ESCAPE}")
        print("\rdrawn again\x1b[A", ESCAPE, file=sys.stderr)  # as progress bars do
        if failure:
            raise UserError(f"{failure}\r{ESCAPE}")

    assert run_command(command, "") == (2 if failure else 0)
    said = capsys.readouterr()
    assert said.out == f"question: {SHOWN}\n"
    expected = rf"error: {failure}\r{SHOWN}" + "\n" if failure else ""
    assert said.err == f"\rdrawn again\x1b[A {SHOWN}\n{expected}"


SCRIPT = """
import sys
from pathlib import Path
from tqdm import tqdm
from common.cli import run_command

def command():
    for number in tqdm(range(3)):
        print("größer", number, flush=True)
        tqdm.write("above the bar")
    Path("done").write_text("all of it")
    return 1

sys.exit(run_command(command, ""))
"""


def run(folder: Path, line: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A script in a shell line, in which {} is the command that runs it."""
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    return subprocess.run(
        ["bash", "-c", line.format(f"'{sys.executable}' script.py")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SRC), **env},
        capture_output=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    "line",
    [
        "{} >/dev/full",
        "{} 2>/dev/full",
        "{} >/dev/full 2>&1",
        "{} >&-",
        "{} 2>&-",
        "{} <&- >&- 2>&-",
        "{} | true; exit ${{PIPESTATUS[0]}}",
        "{} 2>&1 | true; exit ${{PIPESTATUS[0]}}",
    ],
)
def test_where_nobody_can_read_it_a_command_ends_as_it_would(tmp_path: Path, line: str) -> None:
    done = run(tmp_path, line)
    assert done.returncode == 1
    assert (tmp_path / "done").read_text() == "all of it"
    assert b"Traceback" not in done.stderr
    lost = b"Some of the output is lost: it cannot be written ([Errno 28] No space left on device).\n"
    assert done.stderr.endswith(lost) == (line == "{} >/dev/full")


def test_letters_that_a_terminal_does_not_have_are_shown_by_their_codes(tmp_path: Path) -> None:
    done = run(tmp_path, "{}", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert rb"gr\xf6\xdfer 0" in done.stdout


def test_closed_streams_are_not_given_to_the_next_file(tmp_path: Path) -> None:
    """The number of a closed stream would be reused, and what is printed would end up in that file."""
    code = (
        "import os, sys; from common.cli import run_command\n"
        "def command():\n"
        "    with open('state', 'w') as file:\n"
        "        os.system('echo a word; echo another >&2')\n"
        "        return 0 if file.fileno() > 2 else 3\n"
        "sys.exit(run_command(command, ''))"
    )
    command = ["bash", "-c", f'"{sys.executable}" -c "$0" <&- >&- 2>&-', code]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SRC)}, timeout=30)
    assert done.returncode == 0
    assert (tmp_path / "state").read_text() == ""


def test_a_path_that_is_too_long_is_one_sentence_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: (tmp_path / ("a" * 300)).exists() and 0, "") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "too long" in error and error.count("\n") == 1 and len(error) < 110


def test_another_error_of_the_system_is_a_bug_and_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_command(lambda: (tmp_path / "missing").read_text() and 0, "")
