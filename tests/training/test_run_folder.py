from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import RunError
from common.files import write_json
from training import run_folder
from training.run_folder import describe_environment, open_run_folder

ARGUMENTS: dict[str, Any] = {
    "lr": 5e-5,
    "seed": 1,
    "load": None,
    "folder": Path("snap"),
    "betas": (0.9, 0.99),
}
FREE = frozenset({"tqdm"})


def test_a_new_folder_is_made_and_holds_the_arguments(tmp_path: Path) -> None:
    folder = tmp_path / "vqa" / "run"
    open_run_folder(folder, ARGUMENTS, free=FREE)
    held = json.loads((folder / "args.json").read_text())
    assert held == {**ARGUMENTS, "folder": "snap", "betas": [0.9, 0.99]}


def test_the_same_arguments_open_the_same_folder_again(tmp_path: Path) -> None:
    open_run_folder(tmp_path, ARGUMENTS, free=FREE)
    (tmp_path / "train.log").write_text("epoch 1")
    open_run_folder(tmp_path, dict(reversed(ARGUMENTS.items())), free=FREE)
    assert (tmp_path / "train.log").read_text() == "epoch 1"


def test_other_arguments_are_refused_and_the_differing_ones_named(tmp_path: Path) -> None:
    open_run_folder(tmp_path, {**ARGUMENTS, "gone": 3}, free=FREE)
    before = (tmp_path / "args.json").read_bytes()
    with pytest.raises(RunError) as refusal:
        open_run_folder(tmp_path, {**ARGUMENTS, "lr": 1e-4, "added": "x"}, free=FREE)
    message = str(refusal.value)
    assert "lr was 5e-05 and is now 0.0001" in message
    assert "gone was 3 and is now None" in message
    assert "added was None and is now 'x'" in message
    assert "seed" not in message
    assert "Choose another version name" in message
    assert (tmp_path / "args.json").read_bytes() == before


def test_free_arguments_may_differ_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    open_run_folder(tmp_path, {**ARGUMENTS, "tqdm": True}, free=FREE)
    open_run_folder(tmp_path, {**ARGUMENTS, "tqdm": False}, free=FREE)
    assert json.loads((tmp_path / "args.json").read_text())["tqdm"] is False


@pytest.mark.parametrize("content", ["", '{"lr": 5e-0', "\0\0\0"])
def test_damaged_arguments_are_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "args.json").write_text(content)
    with pytest.raises(RunError, match=r"args\.json is damaged\. Delete .* or choose another"):
        open_run_folder(tmp_path, ARGUMENTS, free=FREE)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written: Not a directory\.$"):
        open_run_folder(tmp_path / "file" / "run", ARGUMENTS, free=FREE)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in no repository, in which the code pretends to be."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "run_folder.py"))
    return tmp_path


def test_the_environment_holds_versions_device_command_and_hashes(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_bytes(b"questions" * 200_000)  # more than is read at once
    environment = describe_environment("cpu", [file])
    assert environment["packages"]["torch"] == str(torch.__version__)
    assert environment["packages"].keys() >= {"transformers", "accelerate", "safetensors", "numpy"}
    assert environment["python"] == platform.python_version()
    assert environment["device"] == "cpu"
    assert environment["command"] == sys.argv
    assert environment["data_sha256"] == {str(file): hashlib.sha256(b"questions" * 200_000).hexdigest()}
    assert json.loads(json.dumps(environment)) == environment


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_environment_names_the_commit_and_whether_it_was_changed(elsewhere: Path) -> None:
    file = elsewhere / "run_folder.py"
    file.write_text("committed")
    git(elsewhere, "init")
    git(elsewhere, "add", "run_folder.py")
    git(elsewhere, "commit", "-m", "first")
    (elsewhere / "notes.txt").write_text("not tracked")
    clean = describe_environment("cpu", [])
    assert clean["commit"] == git(elsewhere, "rev-parse", "HEAD")
    assert clean["dirty"] is False
    file.write_text("changed")
    assert describe_environment("cpu", []) == {**clean, "dirty": True}


def test_a_copy_without_history_has_no_commit(elsewhere: Path) -> None:
    assert describe_environment("cpu", [])["commit"] is None


def test_a_machine_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_environment("cpu", [])["commit"] is None


def test_a_reader_never_meets_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.json"
    write_json(file, {"epoch": 1})

    def power_cut(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Path, "replace", power_cut)
        with pytest.raises(KeyboardInterrupt):
            write_json(file, {"epoch": 2})
    assert json.loads(file.read_text()) == {"epoch": 1}
    write_json(file, {"epoch": 2})
    assert json.loads(file.read_text()) == {"epoch": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_content_that_is_no_json_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_json(file, {"epoch": 1})
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="Circular"):
        write_json(file, endless)
    assert json.loads(file.read_text()) == {"epoch": 1}
