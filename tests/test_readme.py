"""What the documents say is so: commands are accepted, files and links exist, tables agree with the source.

Documents are the Markdown files, the comments at the top of the launchers and the docstrings of the commands.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helpers.paths import ROOT, SRC
from tests.helpers.small import write_dataset
from transformers import LxmertConfig

from lxmert.units import gate_labels, list_units
from tasks import vqa_prepare
from tasks.finetune.strategies import STRATEGIES

README = ROOT / "README.md"
MARKDOWN = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md")])
CURRENT = [path for path in MARKDOWN if path.name != "CHANGELOG.md"]  # which names what is gone
LAUNCHERS = sorted((ROOT / "run").glob("*.bash"))
COMMANDS = sorted(path for path in (SRC / "tasks").glob("*.py") if path.name != "__init__.py")
FORMER = {"python src/lxmert/checkpoint.py export"}  # named only to say what takes its place
PLACEHOLDERS = {"<gpu>": "0", "<commit>": "HEAD"}  # every other <name> stands for a name


def text_of(document: Path) -> str:
    """What a document tells its reader."""
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    if document.suffix == ".bash":
        header = text.split("\n\n")[0].splitlines()[1:]
        return "\n".join(line.removeprefix("#").removeprefix(" ") for line in header)
    return text


def commands_of(text: str) -> Iterator[str]:
    """Commands in indented lines, without what is said about them, and in `code`."""
    joined = re.sub(r"\\\n\s*", "", text)
    for line in re.findall(r"^ +((?:bash run/|python ).*)$", joined, flags=re.M):
        yield re.split(r"\s{2,}(?!-)", line)[0]
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    for span in re.findall(r"`((?:bash run/|python )[^`]+)`", prose):
        yield " ".join(span.split())


def words_of(command: str) -> list[str]:
    """The command with placeholders filled in, and without what may be left out."""
    command = re.sub(r" \[[^]]*\]", "", command)
    filled = re.sub(r"<[a-z_ ]+>", lambda match: PLACEHOLDERS.get(match[0], "a_name"), command)
    return shlex.split(filled, comments=True)


def shown() -> list[Any]:
    """(document, command) of every command that is shown, usage lines with an open <command> aside."""
    return [
        pytest.param(command, id=f"{document.relative_to(ROOT)}: {command}")
        for document in (*CURRENT, *LAUNCHERS, *COMMANDS)
        for command in dict.fromkeys(commands_of(text_of(document)))
        if "<command>" not in command and command not in FORMER
    ]


def script_and_flags(words: list[str]) -> tuple[Path, list[str]]:
    """The Python file that a command comes down to, and the flags that this gets."""
    if words[0] == "python":
        return ROOT / words[1], words[2:]
    launcher, flags = ROOT / words[1], words[2:]
    if launcher.stem in ("vqa_finetune", "vqa_test") and "--help" not in flags:
        gpu, version, *flags = flags
        assert re.fullmatch(r"cpu|\d+(,\d+)*", gpu)
        flags = ["--version", version, *flags]
        if launcher.stem == "vqa_test":
            flags += ["--load", f"snap/vqa/{version}/BEST"]
        return SRC / "tasks" / "vqa.py", flags
    scripts = re.findall(r"(?:src|tests)/\w+/\w+\.py", launcher.read_text(encoding="utf-8"))
    return ROOT / scripts[0], flags


class Parsed(Exception):
    """The flags were accepted."""


def parse(script: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the parser of a script read flags, and nothing come of it; SystemExit is a refusal, or help."""
    base = SRC if script.is_relative_to(SRC) else ROOT
    module = importlib.import_module(".".join(script.relative_to(base).with_suffix("").parts))
    if hasattr(module, "parse_args"):
        module.parse_args(flags)
        return
    read = ArgumentParser.parse_args

    def read_only(self: ArgumentParser, *arguments: Any) -> None:
        read(self, *arguments)
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", read_only)
    with pytest.raises(Parsed):
        module.main(flags)


# ------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize("command", shown())
def test_every_command_that_is_shown_is_accepted(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    words = words_of(command)
    script = Path(words[1])
    assert script.is_file(), f"there is no {script}"
    for word in words[2:]:
        if re.match(r"(src|tests|run)/|[A-Z]+\.md$", word):
            assert Path(word).exists(), f"there is no {word}"
    if script == Path("run/test.bash") or (not (ROOT / script).is_relative_to(SRC) and words[0] == "python"):
        return  # pytest's own flags; scripts of the tests
    try:
        parse(*script_and_flags(words), monkeypatch)
    except SystemExit as stop:
        assert stop.code == 0 and "--help" in words, capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "accepted"),
    [
        ("bash run/vqa_finetune.bash 0 demo --strategy=SpotTune", True),
        ("bash run/vqa_finetune.bash 0 demo --strategy=SpotTune_Head", False),
        ("bash run/vqa_test.bash 0 demo --test minival --tost", False),
        ("bash run/vqa_prepare.bash own --from <folder> --name <name>", True),
        ("bash run/vqa_prepare.bash own --from <folder> --nome <name>", False),
        ("python src/vqadata/scoring.py --predictions P", False),
    ],
)
def test_a_command_with_a_mistake_would_be_noticed(
    command: str, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if accepted:
        parse(*script_and_flags(words_of(command)), monkeypatch)
    else:
        with pytest.raises(SystemExit):
            parse(*script_and_flags(words_of(command)), monkeypatch)


def test_commands_are_found_in_every_form() -> None:
    text = (
        "Run `bash run/test.bash\n-x` or\n\n"
        "    bash run/a.bash 0 \\\n        v  # comment\n"
        "    python b.py [c]   described\n"
    )
    assert [words_of(command) for command in commands_of(text)] == [
        ["bash", "run/a.bash", "0", "v"],
        ["python", "b.py"],
        ["bash", "run/test.bash", "-x"],
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path.name)
def test_every_command_says_how_it_is_started(command: Path) -> None:
    assert list(commands_of(text_of(command))), f"the docstring of {command} shows no command"


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    sorted(
        {
            words[1]
            for document in (*CURRENT, *COMMANDS)
            for command in commands_of(text_of(document))
            if command.startswith("python ") and command not in FORMER
            if (words := words_of(command))[1].startswith("src/")
        }
    ),
)
def test_scripts_start_without_any_set_up(script: str) -> None:
    """Nothing is installed and no path is set, as the documents show it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr


HELPED = [  # the commands that say of themselves what their files say
    script
    for script in (*COMMANDS, ROOT / "tests" / "faults" / "run.py")
    if "description=__doc__" in script.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("script", HELPED, ids=lambda script: script.stem)
def test_what_help_says_of_a_command_fits_a_terminal(script: Path) -> None:
    said = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    assert max(map(len, said.splitlines())) <= 80


def test_what_help_says_of_the_commands_that_prepare_data_fits_a_terminal() -> None:
    for name, command in vqa_prepare.COMMANDS.items():
        assert max(map(len, command.description.splitlines())) <= 80, name


@pytest.mark.slow
def test_a_data_set_is_checked_by_the_command_that_the_readme_shows(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data" / "mine")

    def check() -> subprocess.CompletedProcess[str]:
        command = ["bash", "run/vqa_prepare.bash", "check", str(folder)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert (done := check()).returncode == 0, done.stdout + done.stderr
    (folder / "train.json").write_text('[{"question_id": 1, "img_id": "train_0", "sent": ""}]')
    assert (done := check()).returncode == 1, done.stdout + done.stderr
    assert "sent" in done.stdout


def test_a_former_command_is_gone() -> None:
    assert not [command for command in FORMER if (ROOT / command.split()[1]).exists()]


# ----------------------------------------------------------------------------------------------- documents


def anchors(document: Path) -> set[str]:
    """The headings of a document as links name them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_resolve(document: Path) -> None:
    text = re.sub(r"^    .*$|`[^`]*`", "", document.read_text(encoding="utf-8"), flags=re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        file = document.parent / path if path else document
        assert file.exists(), f"{document} links to {target}"
        assert not anchor or anchor in anchors(file), f"{document} links to {target}"


@pytest.mark.parametrize("document", CURRENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_files_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for command in FORMER:
        text = text.replace(f"`{command}`", "")
    for path in re.findall(r"`((?:src|tests|run)/[\w./]+)`", text):
        assert (ROOT / path).exists(), f"{document} names {path}"


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 190


def tree() -> list[Path]:
    """The paths of the annotated tree under "Where things are"."""
    section = README.read_text(encoding="utf-8").split("## Where things are\n")[1].split("\n## ")[0]
    paths, parents = [], {4: Path()}  # indentation -> the folder that its lines are in
    for line in section.splitlines():
        if not line.startswith("    "):
            continue
        indentation = len(line) - len(line.lstrip())
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        paths += [parents[indentation] / name for name in names]
        parents[indentation + 2] = paths[-1]
    return paths


def test_the_annotated_tree_shows_what_is_there() -> None:
    paths = tree()
    assert [path for path in paths if not (ROOT / path).exists()] == []
    here = [path for path in ROOT.iterdir() if not path.name.startswith(".") or path.name == ".ci"]
    top = {path.name for path in here if path.is_dir()} - {"__pycache__", "wandb"}
    packages = {f"src/{path.parent.name}" for path in SRC.glob("*/__init__.py")}
    parts = {f"src/tasks/{path.parent.name}" for path in SRC.glob("tasks/*/__init__.py")}
    commands = {str(path.relative_to(ROOT)) for path in COMMANDS}
    assert (top | packages | parts | commands) - {str(path) for path in paths} == set()


def test_the_strategy_table_agrees_with_the_source() -> None:
    table = README.read_text(encoding="utf-8").split("## Strategies\n")[1]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (\d+) \|", table, flags=re.M)
    assert [name for name, _ in rows] == list(STRATEGIES)
    config = LxmertConfig(l_layers=9, r_layers=5, x_layers=5, num_attention_heads=12)
    dead = {}
    for name, count in rows:
        granularity = STRATEGIES[name].granularity
        live = gate_labels(list_units(config, granularity))["live"] if STRATEGIES[name].adaptive else []
        assert int(count) == len(live)
        dead[name] = len(live) - sum(live)
    assert [count for _, count in rows] == ["0", "0", "425", "53", "19"]
    words = " ".join(table.split())
    assert f"{dead['SpotTune']} of the 425 gates ({dead['SpotTune_Res']} of the 53)" in words


@pytest.mark.parametrize(
    ("document", "topics"),
    [
        ("README.md", ["results", "performance", "data"]),
        ("data/README.md", ["regions"]),
        ("run/BENCHMARKS.md", ["performance", "data", "growth"]),
    ],
)
def test_blocks_that_commands_write_are_there(document: str, topics: list[str]) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- (\w+):begin -->\n(.+?)\n<!-- (\w+):end -->", text, flags=re.S)
    assert [(begin, end) for begin, _, end in blocks] == [(topic, topic) for topic in topics]


def test_the_citation_file_can_be_read_by_programs() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type", "version"} <= citation.keys()
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    assert citation["version"] == version[1]
    urls = {reference["url"].rsplit("/")[-1] for reference in citation["references"]}
    assert urls == {"1811.08737", "1908.07490"}
    for entry in (citation, *citation["references"]):
        assert entry["authors"] and all(
            {"name"} <= person.keys() or {"family-names", "given-names"} <= person.keys()
            for person in entry["authors"]
        )
